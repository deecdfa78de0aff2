"""Core freezes, is busy, lacks half of its calls, dies under a call, or was away for days: nothing sealed is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from serviceradar_poller.env import SystemClock
from serviceradar_poller.lab.client import LabCore
from serviceradar_poller.logic.calls import ReportHead, plan_calls
from serviceradar_poller.reporting.delivery import REPLAY_REPORTS_PER_S_MAX
from serviceradar_poller.reporting.outgoing import encode_call
from serviceradar_poller.reporting.spool import NewReport, Spool, SpoolSettings
from serviceradar_poller.testing.process import PollerProcess, eventually
from serviceradar_poller.testing.site import PARTITION, POLLER_ID, MakeSite, Site
from serviceradar_poller.wire.codec import status_size
from serviceradar_poller.wire.messages import ServiceStatus

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CONFIG = {"reporting": {"call_timeout": "1s"}}
#: How long core is in trouble: some cycles.
TROUBLE_S = 5.0
DAY_S = 86_400
BACKLOG = 600
#: Reports of a clock that had not been set.
ASTRAY = 30


def linger() -> None:
    """Let the trouble last: its length is the subject."""
    threading.Event().wait(TROUBLE_S)


def settled(made: Site, *, timeout_s: float = 40.0) -> dict[str, Any]:
    """Wait until core has everything; return the accounts."""

    def look() -> dict[str, Any]:
        found: dict[str, Any] = made.poller.json("/health")["statuses"]
        return found if found["queued"] == 0 and found["delivered"] else {}

    return eventually(look, "core has everything", timeout_s=timeout_s)


def unary_times(made: Site, since: int = 0) -> list[int]:
    return [each["timestamp"] for each in made.core.reports(since, services=False) if each["transport"] == "unary"]


def assert_nothing_lost(made: Site) -> None:
    """Everything was delivered, in order, nobody was late and nothing crashed."""
    accounts = settled(made)
    assert accounts["delivered"] == accounts["polled"] + accounts["recovered"], accounts
    assert not made.poller.events("report_dropped") and not made.poller.events("report_set_aside")
    times = unary_times(made)
    assert times == sorted(times)
    assert all(later - sooner <= 2 for sooner, later in pairwise(times)), times
    made.assert_nobody_late()
    made.assert_no_crash()


@contextlib.contextmanager
def frozen(core: LabCore) -> Iterator[None]:
    """Stop the process without closing anything."""
    pid = core.process.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_core_that_freezes_and_thaws_gets_everything(site: MakeSite) -> None:
    """Connections that stay open and fall silent end at the deadline; what core took before it froze may come twice."""
    made = site(5, config=CONFIG)
    made.await_reports(3)
    with frozen(made.core):
        made.poller.await_event("core_lost")
        linger()
    assert_nothing_lost(made)


def busy(core: LabCore) -> None:
    core.set_fault("reject", code="RESOURCE_EXHAUSTED")


def without_unary(core: LabCore) -> None:
    core.set_fault("stream_only")


def mute(core: LabCore) -> None:
    core.set_fault("not_received")


@pytest.mark.parametrize("trouble", [busy, without_unary, mute])
def test_a_core_that_takes_nothing_for_a_while_gets_everything_later(
    site: MakeSite, trouble: Callable[[LabCore], None]
) -> None:
    """Busy, lacking the call that reports are made by, or saying no: that is core's trouble, and no report's."""
    made = site(5, config=CONFIG)
    made.await_reports(3)
    mark = made.poller.mark()
    trouble(made.core)
    made.poller.await_event("core_lost", since=mark)
    linger()
    made.core.clear_fault()
    assert_nothing_lost(made)


def test_a_core_without_streams_gets_every_report(site: MakeSite) -> None:
    """It can't be told of a poller by a stream; after a few attempts the reports go without one."""
    made = site(5, config=CONFIG, core_fault="unary_only")
    eventually(lambda: unary_times(made), "reports arrive", timeout_s=40.0)
    made.poller.await_event("core_connected")
    assert_nothing_lost(made)
    assert not [each for each in made.core.reports(services=False) if each["transport"] == "stream"]


def test_a_core_that_dies_under_a_stream_and_under_calls_gets_everything(site: MakeSite) -> None:
    """Whatever breaks in the middle is made again from its beginning, on a new connection."""
    made = site(5, config=CONFIG)
    made.await_reports(3)
    made.core.set_fault("disappear")
    made.poller.await_event("core_lost")
    before = made.core.counts()["calls"]
    made.core.set_fault("die", count=1, seconds=0.5)  # under the stream that makes the poller known again
    eventually(lambda: made.core.counts()["calls"]["faulty"] > before["faulty"], "core dies under a stream")
    assert made.core.counts()["calls"]["stream"] > before["stream"]
    made.await_reports(3)
    before = made.core.counts()["calls"]
    made.core.set_fault("die", count=3, seconds=0.2)
    eventually(lambda: made.core.counts()["calls"]["faulty"] >= before["faulty"] + 3, "core dies under calls")
    assert_nothing_lost(made)


def old_report(timestamp: int) -> NewReport:
    """Return a report as an earlier run sealed it."""
    status = ServiceStatus(
        service_name="ping",
        service_type="icmp",
        available=True,
        message=b"{}",
        agent_id="agent-0001",
        poller_id=POLLER_ID,
        partition=PARTITION,
        source="getStatus",
    )
    head = ReportHead(poller_id=POLLER_ID, partition=PARTITION, source_ip="192.0.2.10", kv_store_id="")
    calls = plan_calls(head, (status,), timestamp=timestamp, size=status_size(status), size_of=status_size)
    return NewReport(
        kind="cycle", timestamp=timestamp, change=False, fresh=1, calls=tuple(encode_call(call) for call in calls)
    )


def seed(state_dir: Path, times: list[int]) -> None:
    """Fill the spool with reports of *times*, as an earlier run left it."""
    clock = SystemClock()

    async def main() -> None:
        spool = await Spool.open(SpoolSettings(directory=state_dir), emit=lambda event: None, wall=clock.wall)
        await asyncio.gather(*(spool.seal(old_report(time)) for time in times))
        await spool.close()

    asyncio.run(main())


def test_a_backlog_of_three_days_is_replayed_in_order_and_at_a_bounded_rate(site: MakeSite) -> None:
    """It comes as it was sealed, whatever clocks said then, the newest soon after, and no check is late."""
    made = site(5, config=CONFIG)
    made.await_reports(2)
    assert made.poller.stop() == 0  # nothing of its own waits in the spool
    now = int(SystemClock().wall())
    step = 3 * DAY_S // BACKLOG
    times = [*range(1, ASTRAY + 1)]  # of 1970
    times += [now - 3 * DAY_S + 60 + step * number for number in range(BACKLOG)]
    seed(made.directory / "state", times)
    begin = made.next_report()
    http_port = int(made.poller.url.rsplit(":", 1)[1])
    made.poller = PollerProcess(made.poller.config_file, http_port=http_port)
    try:
        made.poller.ready()
        accounts = settled(made, timeout_s=90.0)
        assert accounts["expired"] == 0
        assert accounts["polled"] + accounts["recovered"] == accounts["delivered"]
        reports = [each for each in made.core.reports(begin, services=False) if each["transport"] == "unary"]
        arrived = [each["timestamp"] for each in reports]
        assert arrived == sorted(arrived)
        assert set(times) <= set(arrived) and min(arrived) >= times[0]
        old = [each["monotonic_s"] for each in reports if each["timestamp"] <= times[-1]]
        per_s = (len(old) - 1) / (old[-1] - old[0])
        # A busy machine may take longer for one than the pause between two; one a cycle would be one a second.
        assert 0.2 * REPLAY_REPORTS_PER_S_MAX <= per_s <= REPLAY_REPORTS_PER_S_MAX + 1
        made.assert_nobody_late()
        made.assert_no_crash()
    finally:
        made.poller.end()
