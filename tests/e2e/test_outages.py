"""Agents that are away, at the start or later, are found again soon."""

from __future__ import annotations

import threading

import pytest

from serviceradar_poller.env import SystemClock
from serviceradar_poller.testing.process import eventually
from serviceradar_poller.testing.site import MakeSite

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CLOCK = SystemClock()


def test_all_agents_down_at_boot(site: MakeSite) -> None:
    """With no agent up the poller starts, tells core of every check as failed, and has all of them back at once."""
    made = site(20, interval="2s", faults={"*": "refuse"})
    first = made.await_reports(2, since=0)
    report = next(report for report in made.core.reports(first) if report["transport"] == "unary")
    assert report["status_count"] == 40 and report["available_count"] == 0
    assert all("refused" in str(status["message"]["data"]) for status in report["services"])
    assert made.poller.http("/healthz")[0] == 200
    assert made.poller.json("/health")["status"] == "degraded"

    made.agents.clear_fault()
    eventually(
        lambda: all(entry["available"] for entry in made.core.state()["latest"]),
        "all agents are available in core",
        timeout_s=15.0,  # half of what lies between two attempts at worst
    )
    made.assert_nobody_late()
    made.assert_no_crash()


def test_an_agent_back_after_20_s_is_good_in_core_within_5_s(site: MakeSite) -> None:
    """At an interval of 30 s, core has the first good status of an agent less than 5 s after it listens again."""
    made = site(5, interval="30s", config={"scheduling": {"spread_window": "2s"}})
    made.await_status("agent-0003", "ping", lambda status: status["available"])
    mark = made.poller.mark()
    made.agents.set_fault("agent-0003", "refuse")
    down_s = CLOCK.monotonic()
    made.await_status("agent-0003", "ping", lambda status: not status["available"], timeout_s=35.0)
    threading.Event().wait(max(20.0 - (CLOCK.monotonic() - down_s), 0.0))  # the length of the outage is the subject

    made.agents.clear_fault("agent-0003")
    up_wall_s = CLOCK.wall()
    made.await_status("agent-0003", "ping", lambda status: status["available"], timeout_s=20.0)
    good = next(
        status
        for status in made.statuses("agent-0003")
        if status["available"] and status["received_wall_s"] > up_wall_s
    )
    assert good["received_wall_s"] - up_wall_s < 5.0
    made.assert_nobody_late(since=mark, without=["agent-0003"])
