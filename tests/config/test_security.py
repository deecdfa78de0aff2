"""The security blocks of core and of agents."""

from __future__ import annotations

import pytest

from serviceradar_poller.config.model import SecurityMode, TlsConfig
from serviceradar_poller.testing.configs import build, build_agent, only_problem, problems, warned_at


@pytest.mark.parametrize("block", [1, {"mode": "tls"}, {"mode": 1}, {"mode": "spiffe"}, {"mode": "mtls"}])
def test_broken_security_never_becomes_plain_text(block: object) -> None:
    """Whoever overlooks an agent's problems still can't reach it without a secured connection."""
    edge = build_agent(security=block).config.agents[0]
    assert edge.problems
    assert edge.security is not None
    assert edge.security.mode is not SecurityMode.NONE


def test_unknown_mode_has_the_known_text() -> None:
    """An unknown mode is told in the words that other programs know."""
    assert only_problem(security={"mode": "tls"}).text == "unknown security mode: tls"


def test_spiffe_is_clearly_not_available() -> None:
    """SPIFFE for core keeps the poller from starting and says what works."""
    problem = only_problem(security={"mode": "SPIFFE", "trust_domain": "td"})
    assert problem.text == "spiffe is not available in this version"
    assert problem.accepted == "none, mtls"


def test_security_block_is_normalised() -> None:
    """File names are joined to cert_dir, for core and for agents; role and client_ca_file have their defaults."""
    block = {
        "mode": "MTLS",
        "cert_dir": "/certs",
        "tls": {"cert_file": "p.pem", "key_file": "/keys/p.pem", "ca_file": "root.pem"},
    }
    config = build(security=block, agents={"edge": {"address": "a:1", "security": block}}).config
    assert config.security is not None
    assert config.security.mode is SecurityMode.MTLS
    assert config.security.role == "poller"
    assert config.security.tls == TlsConfig(
        cert_file="/certs/p.pem",
        key_file="/keys/p.pem",
        ca_file="/certs/root.pem",
        client_ca_file="/certs/root.pem",
    )
    assert config.agents[0].security == config.security


def test_spiffe_id_gets_its_trust_domain() -> None:
    """An id without a scheme belongs to the trust domain; a whole one stays."""
    for given, expected in (("core", "spiffe://td/core"), ("/core", "spiffe://td/core"), ("x://y", "x://y")):
        block = {"mode": "none", "trust_domain": "td", "server_spiffe_id": given}
        security = build(security=block).config.security
        assert security is not None
        assert security.server_spiffe_id == expected


def test_mtls_needs_its_files() -> None:
    """Each missing file of mtls is a problem."""
    found = problems(security={"mode": "mtls", "tls": {"ca_file": "x"}})
    assert [problem.path for problem in found] == ["security.tls.cert_file", "security.tls.key_file"]


def test_absent_mode_means_none_with_a_warning() -> None:
    """A block without a mode is plain text, and that is told."""
    for block in ({}, {"mode": ""}, {"mode": None}):
        parsed = build(security=block)
        assert parsed.config.security is not None
        assert parsed.config.security.mode is SecurityMode.NONE
        assert warned_at(parsed) == ["security.mode"]


def test_a_server_name_is_what_certificates_hold() -> None:
    """It is taken as Go reads it, and one that no certificate can hold is refused."""
    security = build(security={"mode": "none", "server_name": "[::ffff:10.0.0.1]"}).config.security
    assert security is not None and security.server_name == "10.0.0.1"
    assert only_problem(security={"mode": "none", "server_name": "a..b"}).path == "security.server_name"
    (problem,) = build_agent(security={"mode": "none", "server_name": "日本.jp"}).config.agents[0].problems
    assert problem.path == "agents.edge.security.server_name"
