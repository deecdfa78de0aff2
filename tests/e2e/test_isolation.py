"""An agent's fault is its own: nobody else is late or silent, and no check overlaps itself."""

from __future__ import annotations

import itertools
import signal
import threading

import pytest

from serviceradar_poller.testing.process import eventually
from serviceradar_poller.testing.site import MakeSite

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

FAULTY = {
    "agent-0001": "refuse",
    "agent-0002": "mute",
    "agent-0003": "freeze",
    "agent-0004": "hang_status",
    "agent-0005": "hang_health",
}


def test_w3_a_check_never_overlaps_itself_and_missed_intervals_are_counted(site: MakeSite) -> None:
    """W3: an agent slower than the interval holds one call of each check at a time, and what it misses is counted."""
    made = site(
        2,
        config={"scheduling": {"check_timeout": "1s"}},
        faults={"agent-0001": "slow:seconds=1.3,methods=status"},
    )
    poller = made.poller
    poller.await_event("check_missed", agent="agent-0001", count=2)
    made.agents.set_fault("agent-0001", "slow", seconds=0.9, methods=["status"])
    poller.await_event("check_finished", agent="agent-0001", outcome="available")
    eventually(lambda: poller.metric("polls_missed_total") >= 2, "misses are counted")

    slow = made.agents.agent("agent-0001")
    assert slow["overlaps"] == {"icmp:ping": 1, "process:agent-unit": 1}
    assert not poller.events("check_missed", agent="agent-0002")
    made.assert_nobody_late(without=["agent-0001"])


def test_w3_cycles_never_overlap(site: MakeSite) -> None:
    """W3: while agents are slower than a cycle, core gets each cycle's report once, in order, each check once in it."""
    made = site(4, faults={"agent-0001..agent-0002": "slow:seconds=0.95,methods=status"})
    first = made.await_reports(6)

    reports = [report for report in made.core.reports(first) if report["transport"] == "unary"]
    times = [report["timestamp"] for report in reports]
    assert times == sorted(times)
    assert all(report["duplicates"] == 0 for report in reports)
    assert all(report["status_count"] == 8 for report in reports[2:]), "only the first may come before slow outcomes"
    sent = made.poller.events("report_sent", kind="cycle")
    ticks = [line["wall_s"] - line["tick_s"] for line in sent]
    assert all(later - sooner > 0.9 for sooner, later in itertools.pairwise(ticks)), ticks


def test_a_program_that_stands_still_is_found_late(site: MakeSite) -> None:
    """What these tests call late is seen: a poller stopped for longer than 100 ms is not excused by a busy machine."""
    made = site(10)
    made.await_reports(2)
    mark = made.poller.mark()
    made.poller.send(signal.SIGSTOP)
    threading.Event().wait(1.3)  # a whole interval: some checks were due in it
    made.poller.send(signal.SIGCONT)
    made.await_reports(2)
    late = made.poller.late_checks(since=mark)
    assert late and max(check.own_s for check in late) > 0.2


def test_a_program_that_stood_still_tells_of_no_failure(site: MakeSite) -> None:
    """A poller that was stopped for many intervals takes its own pause for no agent's silence."""
    made = site(5, config={"scheduling": {"check_timeout": "500ms", "spread_window": "500ms"}})
    made.await_reports(2)
    since = made.next_report()
    made.poller.send(signal.SIGSTOP)
    threading.Event().wait(4.0)  # what is silent for 2.5 s is told as failed
    made.poller.send(signal.SIGCONT)
    made.await_reports(3)
    messages = [status["message"]["data"] for report in made.core.reports(since) for status in report["services"]]
    assert messages and not [message for message in messages if message.get("reason") == "stale"]
    assert made.poller.metric("checks_silent_total") == 0


def test_w4_agents_that_do_not_answer_delay_nobody(site: MakeSite) -> None:
    """W4: among 30 agents, one that refuses, is mute, freezes or hangs makes no other agent's check late or silent."""
    made = site(30, interval="2s", config={"reporting": {"deadline": "1500ms"}})
    good = [name for name in made.agents.port_of if name not in FAULTY]
    made.await_reports(2)
    mark = made.poller.mark()
    for agent, fault in FAULTY.items():
        made.agents.set_fault(agent, fault)
    poller = made.poller
    poller.await_event("agent_lost", agent="agent-0001", since=mark)
    poller.await_event("agent_lost", agent="agent-0002", since=mark)
    poller.await_event("check_finished", agent="agent-0003", outcome="failed", since=mark)
    poller.await_event("check_finished", agent="agent-0004", outcome="failed", since=mark)
    begin = made.next_report()
    poller.await_event("report_sent", kind="cycle", count=len(poller.events("report_sent", kind="cycle")) + 4)

    made.assert_nobody_late(since=mark)
    made.assert_no_crash(since=mark)
    for agent in good:
        mine = poller.events("check_finished", since=mark, agent=agent)
        assert mine and all(line["outcome"] == "available" for line in mine), agent
    latencies = sorted(
        line["latency_s"] for line in poller.events("check_finished", since=mark) if line["agent"] in good
    )
    # Whoever waits for one that hangs waits for its two seconds; a busy machine makes some answers late, not most.
    assert latencies[len(latencies) // 2] < 0.1, "others wait although they start on time"
    assert latencies[len(latencies) * 95 // 100] < 0.5, "some wait although they start on time"
    for report in made.core.reports(begin):
        if report["transport"] == "stream":
            continue
        told = {status["agent_id"]: status["available"] for status in report["services"]}
        assert len(told) == 30
        assert all(told[agent] for agent in good)
        assert told["agent-0005"], "only its health hangs, its checks are answered"


def test_w4_agents_that_never_answered_delay_nobody(site: MakeSite) -> None:
    """W4: the same with the faults in force from the first poll on: everyone else's first statuses come at once."""
    made = site(30, interval="4s", faults=FAULTY, config={"reporting": {"deadline": "3s"}})
    good = [name for name in made.agents.port_of if name not in FAULTY]
    poller = made.poller
    poller.await_event("report_sent", kind="cycle", count=2)

    made.assert_nobody_late()
    first = next(report for report in made.core.reports() if report["transport"] == "unary")
    told = {status["agent_id"] for status in first["services"] if status["available"]}
    assert told >= set(good)
    started_s = poller.events("poller_started")[0]["wall_s"]
    assert first["wall_s"] - started_s - poller.waits.waited_s(started_s, first["wall_s"]) < 5.0, "not its own deadline"


def test_a_frozen_agent_is_noticed_and_comes_back(site: MakeSite) -> None:
    """A connection that falls silent in the middle is told as lost, and is good again soon after it thaws."""
    made = site(5, config={"scheduling": {"check_timeout": "800ms"}})
    made.await_status("agent-0003", "ping", lambda status: status["available"])
    mark = made.poller.mark()
    made.agents.set_fault("agent-0003", "freeze")
    lost = made.poller.await_event("agent_lost", agent="agent-0003", since=mark)[0]
    made.await_status("agent-0003", "ping", lambda status: not status["available"])
    assert lost["reason"]

    made.agents.clear_fault("agent-0003")
    made.poller.await_event("agent_connected", agent="agent-0003", since=mark, timeout_s=12.0)
    made.await_status("agent-0003", "ping", lambda status: status["available"])
    made.assert_nobody_late(since=mark, without=["agent-0003"])
    made.assert_no_crash(since=mark)
