"""Every kind of child may crash while a hundred agents are polled: nobody else is late, and everything comes back."""

from __future__ import annotations

import pytest

from serviceradar_poller.testing.process import eventually
from serviceradar_poller.testing.site import MakeSite, Site

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

AGENTS = 100
FLEET = "poller/fleet/agents"
#: Children of one agent, each killed at an agent of its own.
OF_AN_AGENT = ("security", "connection", "scheduler", "results", "breaker", "")
#: Children that all agents share; the crash of none of them may touch a check.
SHARED = (
    "poller/fleet/roster",
    "poller/reporting/core-reporter",
    "poller/observe/loop-lag",
    "poller/observe/http",
    "poller/service/grpc-server",
    "poller/security/credentials",
)


def crash_and_await(made: Site, path: str) -> None:
    """Crash the child at *path* and wait until a new incarnation of it is up."""
    before = made.poller.child(path)
    assert before["state"] == "up", before
    mark = made.poller.mark()
    made.poller.restart(path)
    made.poller.await_event("child_exited", since=mark, path=path, reason="error")
    made.poller.await_event("child_started", since=mark, path=path)

    def up_again() -> bool:
        try:  # the crash may be the HTTP server's own
            return bool(made.poller.child(path)["state"] == "up")
        except OSError:
            return False

    eventually(up_again, f"{path} is up again")


def test_children_crash_while_a_hundred_agents_are_polled(site: MakeSite) -> None:
    """No crash of a single child makes another agent's check late by 100 ms, and reports go on with every check."""
    made = site(AGENTS, control=True)
    poller = made.poller
    poller.await_event("check_finished", agent=f"agent-{AGENTS:04d}", outcome="available")
    eventually(lambda: poller.json("/view")["agent_counts"]["up"] == AGENTS, "all agents are up")
    made.await_reports(2)
    mark = poller.mark()
    begin = made.next_report()
    killed = {f"agent-{number:04d}": child for number, child in enumerate(OF_AN_AGENT, 10)}
    for agent, child in killed.items():
        crash_and_await(made, f"{FLEET}/{agent}/{child}".rstrip("/"))
    for path in SHARED:
        crash_and_await(made, path)
    for agent in killed:
        poller.await_event("check_finished", since=poller.mark(), agent=agent, outcome="available")
    made.await_reports(3)

    made.assert_nobody_late(since=mark, without=list(killed))
    for agent in made.agents.port_of:
        outcomes = [line["outcome"] for line in poller.events("check_finished", since=mark, agent=agent)]
        assert outcomes and (set(outcomes) == {"available"} or agent in killed), (agent, outcomes)
    reports = [report for report in made.core.reports(begin) if report["transport"] == "unary"]
    assert len(reports) >= 3
    assert all(report["status_count"] == 2 * AGENTS and report["duplicates"] == 0 for report in reports)
    assert reports[-1]["available_count"] == 2 * AGENTS
    assert not poller.events("supervisor_gave_up") and not poller.events("report_dropped")
    assert poller.http("/healthz")[0] == 200
    assert poller.json("/view")["supervision"]["crashes"] >= len(killed) + len(SHARED)


@pytest.mark.parametrize("path", [FLEET, "poller/fleet", "poller/reporting", "poller/observe", "poller/service"])
def test_a_supervisor_crashes_and_its_part_comes_back(site: MakeSite, path: str) -> None:
    """A supervisor that crashes takes its children along; they are all back, and every check is told again."""
    made = site(30, control=True)
    made.await_reports(2)
    crash_and_await(made, path)
    eventually(lambda: made.poller.json("/view")["agent_counts"].get("up") == 30, "all agents are up")
    mark = made.poller.mark()
    begin = made.await_reports(3)
    last = made.core.reports(begin)[-1]
    assert last["status_count"] == 60 and last["available_count"] == 60
    for agent in made.agents.port_of:
        assert made.poller.await_event("check_finished", since=mark, agent=agent, outcome="available")
    if path not in (FLEET, "poller/fleet"):
        made.assert_nobody_late()
    assert made.poller.alive


def test_an_agent_whose_part_crashes_again_and_again_is_quarantined_alone(site: MakeSite) -> None:
    """Beyond its restart budget one agent waits in quarantine and comes back; the others are polled on time."""
    made = site(10, control=True, config={"resilience": {"quarantine": {"min": "1s", "max": "2s"}}})
    made.await_reports(2)
    mark = made.poller.mark()
    path = f"{FLEET}/agent-0005"
    while not made.poller.events("child_quarantined", since=mark):
        status, _ = made.poller.http("/tree/restart", {"path": f"{path}/scheduler"})
        assert status in (202, 404)
        assert len(made.poller.events("operator_restart", since=mark)) < 50
    made.poller.await_event("child_started", since=made.poller.mark(), path=f"{path}/scheduler")
    made.poller.await_event("check_finished", since=made.poller.mark(), agent="agent-0005", outcome="available")
    made.assert_nobody_late(since=mark, without=["agent-0005"])
    begin = made.await_reports(2)
    assert made.core.reports(begin)[-1]["available_count"] == 20


def test_a_restart_is_refused_unless_the_configuration_allows_it(site: MakeSite) -> None:
    """Without ``http.control`` nothing can be crashed from outside."""
    made = site(1)
    status, body = made.poller.http("/tree/restart", {"path": "poller"})
    assert status == 403 and b"control" in body
