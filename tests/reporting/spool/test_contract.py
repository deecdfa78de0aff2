"""What every store of reports does; each test runs against the one on disk and the one in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from serviceradar_poller.errors import SpoolReadError, SpoolWriteError
from serviceradar_poller.events.polling import ReportDropped, ReportSetAside
from serviceradar_poller.reporting.spool import NewCall, NewReport, ReportStore
from serviceradar_poller.testing.spools import NOW, Opened, make_report

Body = Callable[[ReportStore], Awaitable[None]]


def use(opened: Opened, body: Body, **bounds: Any) -> None:
    async def main() -> None:
        async with opened(**bounds) as store:
            await body(store)
            stats = store.stats()
            assert stats.balanced
            assert stats.bytes + stats.writing_bytes <= stats.limit_bytes

    asyncio.run(main())


async def drain(store: ReportStore) -> list[str]:
    """Accept everything and return what the first parts said."""
    said = []
    while (head := await store.head()) is not None:
        said.append((await store.part(head.id, head.calls[0].index, 0)).rstrip(b".").decode())
        await store.accepted(head.id)
    return said


META = NewReport(kind="result", timestamp=NOW, change=True, fresh=0, calls=())


def test_reports_come_out_as_they_went_in_oldest_first(opened: Opened) -> None:
    """Order, fields, calls and bytes survive."""

    async def body(store: ReportStore) -> None:
        calls = (
            NewCall(kind="unary", parts=(b"one",), status_count=2),
            NewCall(kind="stream", parts=(b"two", b"three!"), status_count=1),
        )
        first = await store.seal(make_report(calls=calls, fresh=3, change=True, kind="early"))
        second = await store.seal(make_report(text="next"))
        head = await store.head()
        assert head is not None and first < second
        assert (head.id, head.kind, head.timestamp, head.change, head.fresh) == (first, "early", NOW, True, 3)
        assert (head.size, head.attempts, head.sealed_wall_s) == (12, 0, float(NOW))
        assert [(c.index, c.kind, c.part_count, c.size, c.status_count) for c in head.calls] == [
            (0, "unary", 1, 3, 2),
            (1, "stream", 2, 9, 1),
        ]
        assert [await store.part(first, 1, index) for index in (0, 1)] == [b"two", b"three!"]
        await store.accepted(first)
        assert await drain(store) == ["next"]
        assert await store.head() is None

    use(opened, body)


def test_progress_within_a_report_is_remembered(opened: Opened) -> None:
    """A call that core has is not among the calls any more; the report stays until it is accepted."""

    async def body(store: ReportStore) -> None:
        calls = tuple(NewCall(kind="unary", parts=(bytes([n]),), status_count=1) for n in range(3))
        report_id = await store.seal(make_report(calls=calls))
        await store.call_accepted(report_id, 1)
        await store.call_accepted(report_id, 1)
        head = await store.head()
        assert head is not None
        assert [call.index for call in head.calls] == [0, 2]
        assert head.size == 3
        await store.call_accepted(report_id, 0)
        await store.call_accepted(report_id, 2)
        head = await store.head()
        assert head is not None and head.calls == ()

    use(opened, body)


def test_failures_are_counted_for_each_report(opened: Opened) -> None:
    """Attempts belong to their report; one that is gone has none."""

    async def body(store: ReportStore) -> None:
        first = await store.seal(make_report())
        second = await store.seal(make_report())
        assert [await store.failed(first), await store.failed(first), await store.failed(second)] == [1, 2, 1]
        head = await store.head()
        assert head is not None and head.attempts == 2
        await store.accepted(first)
        assert await store.failed(first) == 0

    use(opened, body)


def test_positions_move_when_core_has_the_report(opened: Opened) -> None:
    """A seal moves nothing; an acceptance moves the report's own positions, in the order of acceptance."""

    async def body(store: ReportStore) -> None:
        live = store.positions()
        first = await store.seal(make_report(positions=(("a", "k", "5"), ("b", "k", "1"))))
        second = await store.seal(make_report(positions=(("a", "k", "6"),)))
        aside = await store.seal(make_report(positions=(("a", "k", "7"),)))
        assert dict(live) == {}
        await store.accepted(first)
        assert dict(live) == {("a", "k"): "5", ("b", "k"): "1"}
        await store.accepted(second)
        await store.set_aside(aside, "refused")
        await store.accepted(first)
        assert dict(store.positions()) == {("a", "k"): "6", ("b", "k"): "1"}

    use(opened, body)


def test_the_oldest_repeat_goes_before_any_change(opened: Opened, events: list[Any]) -> None:
    """When there is no room repeats go, oldest first; changes go for a change only; what went is told and counted."""

    async def body(store: ReportStore) -> None:
        for text, change in (("c1", True), ("r1", False), ("r2", False), ("c2", True)):
            await store.seal(make_report(text=text, change=change, fresh=2))
        await store.seal(make_report(text="r3", fresh=2))
        assert store.stats().dropped == {"spool_full": 2}
        await store.seal(make_report(text="c3", change=True, fresh=2))
        await store.seal(make_report(text="c4", change=True, fresh=2))
        assert store.stats().dropped == {"spool_full": 6}
        with pytest.raises(SpoolWriteError) as refused:
            await store.seal(make_report(text="r4", fresh=2))
        assert refused.value.reason == "spool_full"
        assert store.stats().write_errors == 1
        await store.seal(make_report(text="c5", change=True, fresh=2))
        assert store.stats().dropped == {"spool_full": 8}
        assert await drain(store) == ["c2", "c3", "c4", "c5"]
        dropped = [event for event in events if isinstance(event, ReportDropped)]
        assert [(event.statuses, event.reason, event.reports) for event in dropped] == [(2, "spool_full", 1)] * 4

    use(opened, body, bytes_max=400)


def test_too_many_small_reports_are_bounded_too(opened: Opened) -> None:
    """The number of reports has a bound of its own, and the same order."""

    async def body(store: ReportStore) -> None:
        for number in range(5):
            await store.seal(make_report(text=str(number), size=1, fresh=1))
        assert store.stats().reports == 3
        assert await drain(store) == ["2", "3", "4"]

    use(opened, body, reports_max=3)


def test_a_report_on_its_way_to_core_is_spared(opened: Opened) -> None:
    """What head() gave stays until it failed, whatever the bounds say."""

    async def body(store: ReportStore) -> None:
        await store.seal(make_report(text="a", at=NOW))
        await store.seal(make_report(text="b", at=NOW))
        head = await store.head()
        assert head is not None
        await store.seal(make_report(text="c", at=NOW))
        await store.expire(0.0)
        assert (await store.expire(1e9)).reports == 1, "only c"
        assert (await store.part(head.id, 0, 0)).startswith(b"a")
        await store.failed(head.id)
        gone = await store.expire(1e9)
        assert (gone.reports, gone.fresh) == (1, 1)
        assert await store.head() is None
        assert store.stats().expired == 2

    use(opened, body, bytes_max=200)


def test_a_report_above_the_bound_is_refused_and_drives_nothing_out(opened: Opened) -> None:
    """One that can never fit costs no other report."""

    async def body(store: ReportStore) -> None:
        await store.seal(make_report(text="kept"))
        for change in (False, True):
            with pytest.raises(SpoolWriteError) as refused:
                await store.seal(make_report(size=1_000, change=change))
            assert refused.value.reason == "too_large"
        assert await drain(store) == ["kept"]

    use(opened, body, bytes_max=500)


def test_reports_expire_by_how_long_they_have_waited(opened: Opened, events: list[Any]) -> None:
    """What has waited for longer than the bound goes, counted as expired and not as dropped; clocks may be set."""

    async def body(store: ReportStore) -> None:
        assert not (await store.expire(0.0)).reports
        await store.seal(make_report(text="1970", at=7, fresh=3))
        await store.seal(make_report(text="tomorrow", at=NOW + 86_400, fresh=3))
        assert not (await store.expire(20.0)).reports
        await store.seal(make_report(text="later", at=NOW, fresh=3))
        await store.seal(make_report(text="1971", at=31_536_000, fresh=3))
        for now_s in (60.0, 100.0, 119.0):
            assert not (await store.expire(now_s)).reports
        gone = await store.expire(121.0)
        assert (gone.reports, gone.fresh) == (2, 6)
        assert store.stats().expired == 6 and not store.stats().dropped
        assert store.stats().oldest_timestamp == NOW
        assert await drain(store) == ["later", "1971"]
        assert [event.reason for event in events if isinstance(event, ReportDropped)] == ["expired"]

    use(opened, body, age_max_s=100.0)


def test_poison_is_set_aside_and_bounded(opened: Opened, events: list[Any]) -> None:
    """A set-aside report is out of the way, its statuses are rejected, and only so many are kept."""

    async def body(store: ReportStore) -> None:
        for number in range(4):
            report_id = await store.seal(make_report(text=str(number), fresh=2))
            if number < 3:
                await store.set_aside(report_id, "refused")
                await store.set_aside(report_id, "refused")
        stats = store.stats()
        assert (stats.rejected, stats.set_aside, stats.reports) == (6, 2, 1)
        told = [event for event in events if isinstance(event, ReportSetAside)]
        assert [(event.statuses, event.reason) for event in told] == [(2, "refused")] * 3
        assert await drain(store) == ["3"]

    use(opened, body, set_aside_max=2)


def test_a_result_is_visible_from_its_seal_on(opened: Opened) -> None:
    """Parts that are added are nobody's until the seal, which puts the result behind what was sealed before."""

    async def body(store: ReportStore) -> None:
        writer = await store.begin_result(META)
        await writer.add(b"first")
        await store.seal(make_report(text="between"))
        await writer.add(b"second")
        assert writer.size == 11 == store.stats().writing_bytes
        assert store.stats().reports == 1
        report_id = await writer.seal(fresh=4, positions=(("a", "k", "9"),), status_count=2)
        await writer.abandon()
        assert store.stats().writing_bytes == 0
        assert (store.stats().reports, store.stats().bytes, store.stats().fresh_queued) == (2, 111, 5)
        head = await store.head()
        assert head is not None
        await store.accepted(head.id)
        head = await store.head()
        assert head is not None and head.id == report_id
        (call,) = head.calls
        assert (call.kind, call.part_count, call.size, call.status_count) == ("stream", 2, 11, 2)
        assert [await store.part(report_id, 0, index) for index in (0, 1)] == [b"first", b"second"]
        await store.accepted(report_id)
        assert dict(store.positions()) == {("a", "k"): "9"}

    use(opened, body)


def test_an_abandoned_result_leaves_nothing(opened: Opened) -> None:
    """Neither bytes nor a report, however often it is abandoned."""

    async def body(store: ReportStore) -> None:
        writer = await store.begin_result(META)
        await writer.add(b"x" * 50)
        await writer.abandon()
        await writer.abandon()
        assert (store.stats().writing_bytes, store.stats().reports) == (0, 0)
        assert await store.head() is None

    use(opened, body)


def test_a_result_makes_room_as_any_report_does(opened: Opened) -> None:
    """Its parts drive repeats out, and what does not fit then is refused."""

    async def body(store: ReportStore) -> None:
        await store.seal(make_report(text="r", size=200))
        await store.seal(make_report(text="c", size=200, change=True))
        meta = NewReport(kind="result", timestamp=NOW, change=False, fresh=0, calls=())
        writer = await store.begin_result(meta)
        await writer.add(b"x" * 100)
        await writer.add(b"x" * 150)
        assert store.stats().dropped == {"spool_full": 1}
        with pytest.raises(SpoolWriteError) as refused:
            await writer.add(b"x" * 100)
        assert refused.value.reason == "spool_full"
        await writer.abandon()
        assert await drain(store) == ["c"]

    use(opened, body, bytes_max=500)


def test_what_is_not_there_is_gone(opened: Opened) -> None:
    """A part that does not exist is a typed error; operations on a report that is gone do nothing."""

    async def body(store: ReportStore) -> None:
        report_id = await store.seal(make_report())
        for ids in ((report_id + 1, 0, 0), (report_id, 1, 0), (report_id, 0, 1)):
            with pytest.raises(SpoolReadError) as missing:
                await store.part(*ids)
            assert missing.value.reason == "gone"
        await store.accepted(report_id + 1)
        await store.call_accepted(report_id + 1, 0)
        await store.set_aside(report_id + 1, "x")
        assert store.stats().reports == 1

    use(opened, body)


def test_a_closed_store_says_so(opened: Opened) -> None:
    """After close() every call is a typed error, and closing again is nothing."""

    async def body(store: ReportStore) -> None:
        writer = await store.begin_result(META)
        await writer.add(b"x")
        await store.close()
        await store.close()
        for call in (store.seal(make_report()), store.accepted(1), store.expire(0.0), store.begin_result(META)):
            with pytest.raises(SpoolWriteError) as refused:
                await call
            assert refused.value.reason == "closed"
        for read in (store.head(), store.part(1, 0, 0)):
            with pytest.raises(SpoolReadError):
                await read

    async def main() -> None:
        async with opened() as store:
            await body(store)

    asyncio.run(main())


def test_the_report_behind_the_head_can_be_tried_first(opened: Opened) -> None:
    """second() gives the oldest but one, which the bounds then spare in place of the head."""

    async def body(store: ReportStore) -> None:
        assert await store.second() is None
        first = await store.seal(make_report(size=100))
        assert await store.second() is None
        second = await store.seal(make_report(size=100))
        await store.seal(make_report(size=100))
        head, behind = await store.head(), await store.second()
        assert head is not None and behind is not None
        assert (head.id, behind.id) == (first, second)
        await store.seal(make_report(size=200))
        left = await store.head()
        assert left is not None and left.id == second
        await store.accepted(second)
        assert store.stats().balanced

    use(opened, body, bytes_max=300)


def test_a_report_set_aside_in_part_counts_in_two_places(opened: Opened, events: list[Any]) -> None:
    """Of a report whose calls core took but for one, only that one's statuses are rejected; no position moves."""

    async def body(store: ReportStore) -> None:
        report_id = await store.seal(make_report(fresh=7, positions=(("a", "sync", "1"),)))
        await store.set_aside(report_id, "invalid_argument", rejected=2)
        stats = store.stats()
        assert (stats.rejected, stats.accepted, stats.reports) == (2, 5, 0)
        assert stats.balanced and not store.positions()
        assert events[-1].statuses == 2

    use(opened, body)
