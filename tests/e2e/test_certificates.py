"""W23: certificates are replaced while the program runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from serviceradar_poller.lab.pki import Flaw, make_leaf
from serviceradar_poller.testing.process import eventually
from serviceradar_poller.testing.site import MakeSite

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

#: Two looks at the files, five seconds apart, and the time to prove the new connections, on a busy machine.
ROTATION_S = 50.0
AGENTS = 4


@pytest.fixture
def own_pki(pki: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(pki, tmp_path / "own-pki"))


def test_w23_a_new_certificate_is_used_without_restart_or_failed_check(site: MakeSite, own_pki: Path) -> None:
    """W23: a poller certificate that is replaced on disk is used for new connections, and no check fails for it."""
    made = site(AGENTS, cert_dir=own_pki)
    made.await_reports(2)
    accepted = {agent["id"]: agent["counts"]["accepted"] for agent in made.agents.agents()}
    mark = made.poller.mark()
    make_leaf(own_pki, "poller", role="poller", overwrite=True)

    for peer in (*made.agents.port_of, "core"):
        made.poller.await_event("credentials_renewed", peer=peer, timeout_s=ROTATION_S)
    begin = made.await_reports(2)
    after = {agent["id"]: agent["counts"]["accepted"] for agent in made.agents.agents()}
    assert all(after[agent] == accepted[agent] + 1 for agent in accepted), (accepted, after)
    outcomes = {line["outcome"] for line in made.poller.events("check_finished", since=mark)}
    assert outcomes == {"available"}
    assert all(report["available_count"] == report["status_count"] for report in made.core.reports(begin))
    assert not made.poller.events("credentials_rejected") and not made.poller.events("report_failed")
    made.assert_nobody_late(since=mark)


def test_w23_a_bad_new_certificate_keeps_the_old_connections(site: MakeSite, pki: Path, tmp_path: Path) -> None:
    """W23: a new certificate that can't work is refused with a line per peer; polling and reports go on as before."""
    flaws = (Flaw.KEY_MISMATCH, Flaw.OTHER_CA)  # seen when the files are read, and only by the peer
    pkis = [Path(shutil.copytree(pki, tmp_path / flaw)) for flaw in flaws]
    sites = [site(AGENTS, cert_dir=each) for each in pkis]
    for made in sites:
        made.await_reports(2)
    marks = [made.poller.mark() for made in sites]
    for each, flaw in zip(pkis, flaws, strict=True):
        make_leaf(each, "poller", role="poller", flaw=flaw, overwrite=True)

    for made, mark in zip(sites, marks, strict=True):
        for peer in (*made.agents.port_of, "core"):
            line = made.poller.await_event("credentials_rejected", peer=peer, timeout_s=ROTATION_S)[0]
            assert line["level"] == "error" and line["error"]
        begin = made.await_reports(3)
        outcomes = {line["outcome"] for line in made.poller.events("check_finished", since=mark)}
        assert outcomes == {"available"}
        assert all(report["available_count"] == report["status_count"] for report in made.core.reports(begin))
        assert not made.poller.events("credentials_renewed")
        made.assert_no_crash(since=mark)


def test_the_running_program_never_loads_the_library_that_judges_certificates(site: MakeSite, own_pki: Path) -> None:
    """Start, polling and a rotation over mTLS: certificates are judged elsewhere, and no child is left."""
    made = site(2, cert_dir=own_pki, config={"transport": "native"})
    made.await_reports(2)
    make_leaf(own_pki, "poller", role="poller", overwrite=True)
    made.poller.await_event("credentials_renewed", peer="core", timeout_s=ROTATION_S)
    process = Path("/proc") / str(made.poller.process.pid)
    assert "cryptography" not in (process / "maps").read_text()
    eventually(
        lambda: not (process / "task" / process.name / "children").read_text(), "the processes for judging have ended"
    )
    made.assert_no_crash()


def test_expired_certificates_are_told_of_and_cost_no_process_each(site: MakeSite, pki: Path, tmp_path: Path) -> None:
    """An agent group whose certificate has expired is down with the reason, from one judgement for all of them."""
    expired = Path(shutil.copytree(pki, tmp_path / "expired"))
    make_leaf(expired, "poller", role="poller", flaw=Flaw.EXPIRED, overwrite=True)

    def change(config: dict[str, Any]) -> None:
        for name in list(config["agents"])[1:]:
            config["agents"][name]["security"]["cert_dir"] = str(expired)

    made = site(AGENTS, cert_dir=pki, config={"transport": "native"}, change=change)
    warned = made.poller.await_event("config_warning")
    assert [line for line in warned if "expired at" in line["text"] and str(expired) in line["text"]]
    for number in range(2, AGENTS + 1):
        told = made.poller.await_event("agent_misconfigured", agent=f"agent-{number:04d}")[0]
        assert "expired at" in told["problem"]
    made.await_status("agent-0001", "ping", lambda status: status["available"])
    made.assert_no_crash()
