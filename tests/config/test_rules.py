"""What is required, what is defaulted, what is refused, and whom it concerns."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from serviceradar_poller.config import ParsedConfig, parse
from serviceradar_poller.config.model import CheckConfig, LoggingConfig, ReportMode, SecurityMode, TlsConfig
from serviceradar_poller.errors import ConfigError, ConfigProblem

MINIMAL: dict[str, Any] = {
    "core_address": "core:50052",
    "poller_id": "p1",
    "poll_interval": "30s",
    "agents": {"edge": {"address": "edge:50051"}},
}


def build(**changes: object) -> ParsedConfig:
    return parse(json.dumps({**copy.deepcopy(MINIMAL), **changes}), "poller.json")


def build_agent(**members: object) -> ParsedConfig:
    return build(agents={"edge": {"address": "edge:50051", **members}, "other": {"address": "other:50051"}})


def problems(**changes: object) -> tuple[ConfigProblem, ...]:
    with pytest.raises(ConfigError) as caught:
        build(**changes)
    return caught.value.problems


def only_problem(**changes: object) -> ConfigProblem:
    found = problems(**changes)
    assert len(found) == 1, found
    return found[0]


def agent_problem(parsed: ParsedConfig) -> ConfigProblem:
    edge, other = parsed.config.agents
    assert len(edge.problems) == 1, edge.problems
    assert other.problems == ()
    return edge.problems[0]


def warnings(parsed: ParsedConfig) -> list[tuple[str, str]]:
    return [(warning.path, warning.text) for warning in parsed.warnings]


def warned_at(parsed: ParsedConfig) -> list[str]:
    return [warning.path for warning in parsed.warnings]


def test_minimal_document_gets_every_default() -> None:
    """Three keys and an interval suffice, and give no warning."""
    parsed = build()
    config = parsed.config
    assert parsed.warnings == ()
    assert (config.partition, config.source_ip, config.listen_addr) == ("default", "auto", "")
    assert config.security is None
    assert config.agents[0].security is None
    assert config.logging == LoggingConfig()
    assert config.scheduling.check_timeout_s == 30
    assert config.scheduling.spread_window_s == 0.25
    assert config.reporting.deadline_s == 5
    assert config.http.listen_addr == "127.0.0.1:9610"
    assert config.http.control is False


def test_required_keys_come_first_in_order() -> None:
    """The fixed texts stand before every other problem, in the order in which Go checks."""
    found = problems(core_address="", poller_id=None, agents={}, workers=3)
    assert [problem.text for problem in found] == [
        "core address is required",
        "poller id is required",
        "agent address is required",
        "",
    ]


def test_keys_match_in_any_case() -> None:
    """Keys are matched without regard to case at every level."""
    text = (
        '{"CORE_Address":"c:1","Poller_Id":"p","AGENTS":{"A":{"Address":"a:1",'
        '"CHECKS":[{"Service_Type":"icmp","SERVICE_NAME":"n"}]}}}'
    )
    config = parse(text, "x").config
    assert config.agents[0].name == "A"
    assert config.agents[0].checks == (CheckConfig(service_type="icmp", service_name="n"),)


def test_unknown_keys_are_ignored_outside_our_sections() -> None:
    """Keys of other programs in a shared file say nothing."""
    assert build(service_type="grpc", core_security={"mode": 1}, reprting=1).warnings == ()


@pytest.mark.parametrize(
    ("section", "path", "hint"),
    [
        ({"scheduling": {"check_timout": "1s"}}, "scheduling.check_timout", "did you mean check_timeout?"),
        (
            {"resilience": {"breaker": {"Failure": 1}}},
            "resilience.breaker.failure",
            "did you mean failures?",
        ),
        ({"http": {"zzz": 1}}, "http.zzz", "known are listen_addr, control"),
    ],
)
def test_unknown_keys_in_our_sections_are_told(section: dict[str, object], path: str, hint: str) -> None:
    """A typo in a section of ours is a warning that names what was probably meant."""
    assert warnings(build(**section)) == [(path, f"unknown key, ignored: {hint}")]


@pytest.mark.parametrize(
    ("changes", "path", "found"),
    [
        ({"core_address": 5}, "core_address", "5"),
        ({"poller_id": ["p"]}, "poller_id", "a list"),
        ({"agents": []}, "agents", "a list"),
        ({"logging": "info"}, "logging", '"info"'),
        ({"logging": {"debug": "yes"}}, "logging.debug", '"yes"'),
        ({"security": []}, "security", "a list"),
        ({"workers": 1.0}, "workers", "1.0"),
        ({"workers": True}, "workers", "true"),
        ({"reporting": {"batch_size": 0}}, "reporting.batch_size", "0"),
        ({"reporting": {"queue_bytes": 2**63}}, "reporting.queue_bytes", str(2**63)),
        ({"resilience": {"retry": {"attempts": 1000}}}, "resilience.retry.attempts", "1000"),
        ({"resilience": {"retry": {"budget_ratio": 1.5}}}, "resilience.retry.budget_ratio", "1.5"),
        ({"scheduling": {"connects_per_s": 10**400}}, "scheduling.connects_per_s", "inf"),
        ({"scheduling": {"connects_per_s": 0}}, "scheduling.connects_per_s", "0.0"),
        ({"scheduling": {"check_timeout": "-1s"}}, "scheduling.check_timeout", '"-1s"'),
        ({"poll_interval": "-1s"}, "poll_interval", '"-1s"'),
        ({"poll_interval": None}, "poll_interval", "null"),
        ({"listen_addr": "50053"}, "listen_addr", '"50053"'),
        ({"listen_addr": ":99999"}, "listen_addr", '":99999"'),
        ({"http": {"listen_addr": "nowhere"}}, "http.listen_addr", '"nowhere"'),
        ({"reporting": {"mode": "odd"}}, "reporting.mode", '"odd"'),
        ({"reporting": {"deadline": "30s"}}, "reporting.deadline", "30s"),
        ({"scheduling": {"spread_window": "31s"}}, "scheduling.spread_window", "31s"),
        ({"resilience": {"reconnect": {"min": "1m"}}}, "resilience.reconnect", "min 1m, max 30s"),
        ({"resilience": {"quarantine": {"max": "10ms"}}}, "resilience.quarantine", "min 1s, max 10ms"),
        ({"logging": {"level": "loud"}}, "logging.level", '"loud"'),
    ],
)
def test_problem_outside_agents_is_fatal(changes: dict[str, object], path: str, found: str) -> None:
    """A wrong type or value outside the agents is the one problem, at its path, with what stands there."""
    problem = only_problem(**changes)
    assert (problem.source, problem.path) == ("poller.json", path)
    assert problem.found.startswith(found[:50])
    assert problem.accepted


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("1d", 'time: unknown unit "d" in duration "1d"'),
        ("10", 'time: missing unit in duration "10"'),
        ("", 'time: invalid duration ""'),
        (None, "invalid duration"),
        (True, "invalid duration"),
    ],
)
def test_bad_duration_has_the_text_of_go(value: object, text: str) -> None:
    """A duration that Go refuses is refused in Go's words."""
    assert only_problem(poll_interval=value).text == text


def test_all_problems_come_at_once() -> None:
    """A fatal problem brings the agents' ones along."""
    found = problems(workers=4, agents={"a": {"address": ""}, "b": 7})
    assert [problem.path for problem in found] == ["agents.b", "agents.a.address", "workers"]


@pytest.mark.parametrize(
    ("members", "path"),
    [
        ({"address": ""}, "agents.edge.address"),
        ({"address": " "}, "agents.edge.address"),
        ({"address": None}, "agents.edge.address"),
        ({"address": 5}, "agents.edge.address"),
        ({"checks": {}}, "agents.edge.checks"),
        ({"checks": [{"port": 2**31}]}, "agents.edge.checks[0].port"),
        ({"checks": [{"port": 1e3}]}, "agents.edge.checks[0].port"),
        ({"checks": [1]}, "agents.edge.checks[0]"),
        ({"checks": [{"results_interval": "10"}]}, "agents.edge.checks[0].results_interval"),
        ({"security": 1}, "agents.edge.security"),
        ({"security": {"mode": "tls"}}, "agents.edge.security.mode"),
        ({"security": {"mode": 1}}, "agents.edge.security.mode"),
        ({"security": {"mode": "spiffe"}}, "agents.edge.security.mode"),
        ({"security": {"mode": "none", "role": "boss"}}, "agents.edge.security.role"),
        ({"security": {"mode": "none", "tls": {"ca_file": []}}}, "agents.edge.security.tls.ca_file"),
    ],
)
def test_problem_inside_an_agent_stays_there(members: dict[str, object], path: str) -> None:
    """One agent's mistake leaves the configuration usable and the other agent whole."""
    problem = agent_problem(build_agent(**members))
    assert problem.path == path


@pytest.mark.parametrize("block", [1, {"mode": "tls"}, {"mode": 1}, {"mode": "spiffe"}, {"mode": "mtls"}])
def test_broken_security_never_becomes_plain_text(block: object) -> None:
    """Whoever overlooks an agent's problems still can't reach it without a secured connection."""
    edge = build_agent(security=block).config.agents[0]
    assert edge.problems
    assert edge.security is not None
    assert edge.security.mode is not SecurityMode.NONE


def test_good_checks_of_a_broken_agent_are_listed() -> None:
    """An agent with a bad check keeps its others, so that each has an outcome."""
    edge = build_agent(
        checks=[
            {"service_type": "icmp", "service_name": "one"},
            {"service_type": 3, "service_name": "two"},
            {"service_type": "icmp", "service_name": "three"},
        ]
    ).config.agents[0]
    assert [check.service_name for check in edge.checks] == ["one", "three"]
    assert edge.problems[0].path == "agents.edge.checks[1].service_type"


def test_agent_that_is_no_object_has_one_problem() -> None:
    """An agent of the wrong type is told once, not for each missing key as well."""
    edge = build(agents={"edge": 5}).config.agents[0]
    assert [str(problem) for problem in edge.problems] == ["poller.json: agents.edge: found 5; accepted: an object"]


def test_agent_without_a_name_is_refused() -> None:
    """The empty name can't be an agent's id."""
    agent = build(agents={"": {"address": "a:1"}}).config.agents[0]
    assert [problem.path for problem in agent.problems] == ['agents[""]']


def test_odd_agent_names_are_quoted() -> None:
    """A name with a point is one step of the path."""
    agent = build(agents={"a.b": {}}).config.agents[0]
    assert agent.problems[0].path == 'agents["a.b"].address'


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


def test_secrets_are_hidden() -> None:
    """What stands under a key that may hold a secret never shows; what stands elsewhere does, shortened."""
    found = problems(
        logging={"otel": {"headers": {"x": 31337}, "endpoint": 1}},
        security={"tls": {"key_file": 5}, "mode": "m" * 500},
    )
    shown = {problem.path: problem.found for problem in found}
    assert shown["logging.otel.headers.x"] == "***"
    assert shown["security.tls.key_file"] == "5"
    assert len(shown["security.mode"]) == 60
    assert "m" * 61 not in str(found)


def test_agent_names_do_not_hide_values() -> None:
    """An agent called monkey is not a secret."""
    agent = build(agents={"monkey": {"address": 5}}).config.agents[0]
    assert agent.problems[0].found == "5"


def test_nanoseconds_below_a_second_are_told() -> None:
    """A bare small number is nearly always a mistake; what would spin is raised."""
    parsed = build(poll_interval=30)
    assert parsed.config.poll_interval_s == 0.01
    assert warned_at(parsed) == ["poll_interval", "poll_interval"]
    assert "30ns" in parsed.warnings[0].text
    assert build(poll_interval=30 * 10**9).warnings == ()


@pytest.mark.parametrize("value", [0, "0s", "0"])
def test_interval_of_zero_is_the_default(value: object) -> None:
    """Zero, like absence, is five minutes, at which core would call the poller offline."""
    parsed = build(poll_interval=value)
    assert parsed.config.poll_interval_s == 300
    assert warned_at(parsed) == ["poll_interval"]


def test_results_interval_makes_a_results_check() -> None:
    """Present, even zero, it makes a results check; null does not; a negative one counts as zero."""
    intervals: list[object] = ["10m", "0s", None, "-1s"]
    checks = [
        {"service_type": "sync", "service_name": f"n{i}", "results_interval": value}
        for i, value in enumerate(intervals)
    ]
    parsed = build_agent(checks=checks)
    assert [check.results_interval_s for check in parsed.config.agents[0].checks] == [600, 0, None, 0]
    assert warned_at(parsed) == ["agents.edge.checks[3].results_interval"]


def test_odd_checks_are_told() -> None:
    """Nameless checks, ports that are none, and repetitions within one agent are warnings."""
    check = {"service_type": "icmp", "service_name": "ping"}
    parsed = build_agent(checks=[None, {**check, "port": 70000}, check])
    assert warned_at(parsed) == [
        "agents.edge.checks[0].service_type",
        "agents.edge.checks[0].service_name",
        "agents.edge.checks[1].port",
        "agents.edge.checks",
    ]
    assert len(parsed.config.agents[0].checks) == 3


@pytest.mark.parametrize("address", ["10.0.0.1", "host", "fe80::1:50051"])
def test_address_without_a_port_is_told(address: str) -> None:
    """An address that names no port is probably not meant."""
    assert warned_at(build(agents={"a": {"address": address}})) == ["agents.a.address"]
    assert warned_at(build(core_address=address)) == ["core_address"]


@pytest.mark.parametrize("address", [":50051", "[::1]:50051", "host:1", "dns:///host:50051"])
def test_usual_addresses_are_silent(address: str) -> None:
    """Addresses as they are in use give no warning."""
    assert build(agents={"a": {"address": address}}).warnings == ()


@pytest.mark.parametrize(
    ("given", "level"),
    [(None, "info"), ("", "info"), ("WARNING", "warn"), ("Trace", "trace"), ("disabled", "disabled")],
)
def test_levels(given: object, level: str) -> None:
    """Levels are taken in any case; null and empty are info."""
    assert build(logging={"level": given}).config.logging.level == level


def test_logging_null_is_the_default() -> None:
    """A null block logs at info to stdout."""
    assert build(logging=None).config.logging == LoggingConfig()


def test_unknown_output_is_stdout_with_a_warning() -> None:
    """Lines that have nowhere to go go to stdout."""
    parsed = build(logging={"output": "file"})
    assert parsed.config.logging.output == "stdout"
    assert warned_at(parsed) == ["logging.output"]


def test_sections_are_read() -> None:
    """Every key of our own sections reaches the model."""
    config = build(
        scheduling={"spread_window": "0s", "check_timeout": "7s", "connects_per_s": 3},
        reporting={
            "mode": "Batch",
            "deadline": "3s",
            "early_interval": "4s",
            "batch_size": 5,
            "batch_interval": "6s",
            "call_timeout": "8s",
            "queue_bytes": 9,
            "queue_reports": 10,
        },
        resilience={
            "breaker": {"failures": 11, "security_failures": 12, "window": "13s", "open": "14s"},
            "retry": {"attempts": 15, "delay": "16s", "budget_ratio": 1},
            "reconnect": {"min": "17s", "max": "18s"},
            "quarantine": {"min": "19s", "max": "20s"},
            "shutdown_timeout": "21s",
        },
        http={"listen_addr": "", "control": False},
    ).config
    assert (config.scheduling.spread_window_s, config.scheduling.check_timeout_s) == (0, 7)
    assert config.scheduling.connects_per_s == 3
    reporting = config.reporting
    assert reporting.mode is ReportMode.BATCH
    assert (reporting.deadline_s, reporting.early_interval_s, reporting.batch_size) == (3, 4, 5)
    assert (reporting.batch_interval_s, reporting.call_timeout_s) == (6, 8)
    assert (reporting.queue_bytes_max, reporting.queue_reports_max) == (9, 10)
    resilience = config.resilience
    assert (resilience.breaker_failures, resilience.breaker_security_failures) == (11, 12)
    assert (resilience.breaker_window_s, resilience.breaker_open_s) == (13, 14)
    assert (resilience.retry_attempts, resilience.retry_delay_s, resilience.retry_budget_ratio) == (15, 16, 1)
    assert (resilience.reconnect_min_s, resilience.reconnect_max_s) == (17, 18)
    assert (resilience.quarantine_min_s, resilience.quarantine_max_s) == (19, 20)
    assert resilience.shutdown_timeout_s == 21
    assert config.http.listen_addr == ""


def test_check_timeout_is_cut_to_the_interval() -> None:
    """A check can't take longer than its interval."""
    parsed = build(poll_interval="10s", scheduling={"check_timeout": "1m"})
    assert parsed.config.scheduling.check_timeout_s == 10
    assert warned_at(parsed) == ["scheduling.check_timeout"]
    assert build(poll_interval="10s").config.scheduling.check_timeout_s == 10


@pytest.mark.parametrize(
    ("interval", "checks", "spread_s", "deadline_s"),
    [
        ("30s", 1, 0.25, 5),
        ("30s", 1600, 2, 5),
        ("30s", 8000, 4, 5),
        ("6s", 8000, 2.5, 3),
        ("100ms", 8000, 0.05, 0.05),
        ("600ms", 1, 0.25, 0.3),
    ],
)
def test_defaults_follow_interval_and_checks(interval: str, checks: int, spread_s: float, deadline_s: float) -> None:
    """More checks are spread wider, within half an interval and before the report leaves."""
    half = [{"service_type": "icmp", "service_name": f"n{i}"} for i in range(checks)]
    results = [{"service_type": "sync", "service_name": "s", "results_interval": "1m"}]
    config = build(poll_interval=interval, agents={"a": {"address": "a:1", "checks": half + results}}).config
    assert config.reporting.deadline_s == deadline_s
    assert config.scheduling.spread_window_s == spread_s


def test_default_spread_ends_by_the_deadline() -> None:
    """However early the report leaves, the default spread is not beyond it."""
    parsed = build(reporting={"deadline": "100ms"})
    assert parsed.config.scheduling.spread_window_s == 0.1
    assert parsed.warnings == ()


def test_spread_beyond_the_deadline_is_told() -> None:
    """Checks that start after the report has left are always a cycle late."""
    assert warned_at(build(scheduling={"spread_window": "6s"})) == ["scheduling.spread_window"]


@pytest.mark.parametrize("address", [":9610", "0.0.0.0:9610", "[::]:9610", "10.0.0.1:9610", "poller.local:9610"])
def test_http_beyond_loopback_is_told(address: str) -> None:
    """A listener that other machines reach is told, and can't be one that controls."""
    assert warned_at(build(http={"listen_addr": address})) == ["http.listen_addr"]
    assert only_problem(http={"listen_addr": address, "control": True}).path == "http.control"


@pytest.mark.parametrize("address", ["127.0.0.1:0", "localhost:9610", "[::1]:9610", "127.9.9.9:1"])
def test_control_on_loopback_is_fine(address: str) -> None:
    """On loopback an operator may be given control."""
    parsed = build(http={"listen_addr": address, "control": True})
    assert parsed.config.http.control
    assert parsed.warnings == ()


def test_control_without_a_listener_is_told() -> None:
    """Control needs a listener."""
    assert warned_at(build(http={"listen_addr": "", "control": True})) == ["http.control"]


def test_kv_store_id_prefers_the_domain() -> None:
    """Statuses name the KV domain, else its address."""
    assert build(kv_address="kv:1").config.kv_store_id == "kv:1"
    assert build(kv_address="kv:1", kv_domain="hub").config.kv_store_id == "hub"
