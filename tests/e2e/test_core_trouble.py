"""Core may hang, refuse or be away: polling goes on, and what was measured arrives later, in order, as it was."""

from __future__ import annotations

import itertools

import pytest

from serviceradar_poller.env import SystemClock
from serviceradar_poller.testing.process import eventually
from serviceradar_poller.testing.site import MakeSite, Site

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def assert_in_order_with_original_times(made: Site, *, begin: int, end_wall_s: float, at_least: int) -> None:
    """Assert that *at_least* of the reports since index *begin* tell a time well before the outage ended."""
    reports = made.core.reports(begin, services=False)
    # A registering stream goes ahead of a backlog, with the newest statuses and their own time.
    times = [report["timestamp"] for report in reports if report["transport"] == "unary"]
    assert times == sorted(times), times
    replayed = [report for report in reports if report["timestamp"] < end_wall_s - 1.0]
    assert len(replayed) >= at_least
    cycles = [report["timestamp"] for report in reports if report["transport"] == "unary"]
    assert all(later - sooner <= 2 for sooner, later in itertools.pairwise(cycles)), "a cycle is missing"


def test_w5_a_core_that_hangs_from_the_first_report_on_does_not_stop_polling(site: MakeSite) -> None:
    """W5: calls to core have a deadline; agents are polled all along, and every cycle arrives with its own time."""
    made = site(5, core_fault="hang", config={"reporting": {"call_timeout": "1s"}})
    poller = made.poller
    poller.await_event("core_lost")
    poller.await_event("check_finished", agent="agent-0005", service_name="ping", outcome="available", count=5)
    eventually(lambda: poller.metric("queue_reports") >= 4, "reports wait")
    assert made.next_report() == 0
    end_wall_s = SystemClock().wall()
    made.core.clear_fault()
    poller.await_event("core_connected")
    eventually(lambda: poller.metric("queue_reports") == 0, "nothing waits any more")

    assert_in_order_with_original_times(made, begin=0, end_wall_s=end_wall_s, at_least=3)
    made.assert_nobody_late()
    assert not poller.events("report_dropped")


def test_w5_a_health_check_that_hangs_has_a_deadline(site: MakeSite) -> None:
    """W5: agents that never answer a health check are polled all the same, and told as available."""
    made = site(3, faults={"*": "hang_health"})
    made.await_reports(3)
    assert made.latest("agent-0002", "ping")["available"]
    made.assert_nobody_late()


def test_a_core_that_hangs_midway_gets_everything_afterwards(site: MakeSite) -> None:
    """Reports made while core hung are accepted afterwards, oldest first, none missing."""
    made = site(5, config={"reporting": {"call_timeout": "1s"}})
    begin = made.await_reports(3) + 3
    mark = made.poller.mark()
    made.core.set_fault("hang")
    made.poller.await_event("core_lost", since=mark)
    eventually(lambda: made.poller.metric("queue_reports") >= 4, "reports wait")
    end_wall_s = SystemClock().wall()
    made.core.clear_fault()
    made.poller.await_event("core_connected", since=mark)
    eventually(lambda: made.poller.metric("queue_reports") == 0, "nothing waits any more")

    assert_in_order_with_original_times(made, begin=begin, end_wall_s=end_wall_s, at_least=3)
    made.assert_nobody_late(since=mark)
    assert not made.poller.events("report_dropped")


def test_w1_core_down_at_boot_loses_nothing(site: MakeSite) -> None:
    """W1: with nobody listening at core's address the poller polls, and its reports arrive once somebody does."""
    made = site(5, core_fault="disappear")
    eventually(lambda: made.poller.metric("queue_reports") >= 4, "reports wait")
    assert made.poller.events("core_lost")[0]["reason"] == "refused"
    end_wall_s = SystemClock().wall()
    made.core.clear_fault()
    made.poller.await_event("core_connected")
    eventually(lambda: made.poller.metric("queue_reports") == 0, "nothing waits any more")

    reports = made.core.reports(services=False)
    assert reports[0]["transport"] == "stream", "core learns of a poller by a stream only"
    assert_in_order_with_original_times(made, begin=0, end_wall_s=end_wall_s, at_least=3)


def test_w2_a_core_that_vanishes_midway_gets_everything_afterwards(site: MakeSite) -> None:
    """W2: connections that break under way lose no report, and the poller makes itself known by a stream again."""
    made = site(5)
    begin = made.await_reports(3) + 3
    mark = made.poller.mark()
    made.core.set_fault("disappear")
    made.poller.await_event("core_lost", since=mark)
    eventually(lambda: made.poller.metric("queue_reports") >= 4, "reports wait")
    end_wall_s = SystemClock().wall()
    made.core.clear_fault()
    made.poller.await_event("core_connected", since=mark)
    eventually(lambda: made.poller.metric("queue_reports") == 0, "nothing waits any more")

    assert_in_order_with_original_times(made, begin=begin, end_wall_s=end_wall_s, at_least=3)
    assert any(report["transport"] == "stream" for report in made.core.reports(begin, services=False))
    made.assert_nobody_late(since=mark)
