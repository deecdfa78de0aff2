"""W23: certificates are replaced while the program runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from serviceradar_poller.lab.pki import Flaw, make_leaf
from serviceradar_poller.testing.site import MakeSite

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

#: Two looks at the files, five seconds apart, and the time to prove the new connections.
ROTATION_S = 20.0
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
