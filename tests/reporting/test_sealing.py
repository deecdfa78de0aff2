"""The way of reports into the store: what memory keeps for a disk that is full goes back, in order, and is bounded."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from serviceradar_poller.errors import SpoolWriteError
from serviceradar_poller.reporting.sealing import FALLBACK_REPORTS_MAX, MAKE_ROOM_AGAIN_S, Sealer
from serviceradar_poller.reporting.spool import Gone, MemoryStore, NewReport, SpoolSettings
from serviceradar_poller.testing.fakes import FakeTransport, fake_env
from serviceradar_poller.testing.simloop import run
from serviceradar_poller.testing.spools import NOW, make_report


class Disk(MemoryStore):
    """
    A store on a disk that others may fill.

    Attributes:
        full: Why seals fail; empty while they don't.
        room: Reports that make_room may free by giving up one.
        stolen: Somebody else takes what is freed.
        asked: Calls of make_room.
    """

    full = ""
    stolen = False
    asked = 0
    freed = 0

    async def seal(self, report: NewReport) -> int:
        await asyncio.sleep(0.01)
        if self.full and not self.freed:
            raise SpoolWriteError(reason=self.full, detail="by the test")
        self.freed = 0
        return await super().seal(report)

    async def make_room(self, size: int) -> Gone:
        await asyncio.sleep(0.01)
        self.asked += 1
        victims = [held.entry for held in self._reports.values() if not held.report.change][:1]
        self.freed = 0 if self.stolen else len(victims)
        return self._give_up(victims, "disk_full")


@dataclass
class Bench:
    """A sealer and its store."""

    events: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        env = fake_env(FakeTransport(), self.events)
        self.store = Disk(SpoolSettings(directory=Path()), emit=env.emit, wall=env.clock.wall)
        self.sealer = Sealer(self.store, env)
        self.count = 0

    async def put(self, count: int = 1, *, change: bool = False) -> None:
        """Cut and settle reports, each with its own number as its time."""
        for _ in range(count):
            self.count += 1
            self.sealer.put(make_report(at=NOW + self.count, change=change))
            await self.sealer.settle()
            assert self.sealer.accounts().balanced
            await asyncio.sleep(1.0)

    def stored(self) -> list[int]:
        """Return the numbers of the reports in the store, in its order."""
        return [held.entry.timestamp - NOW for held in self.store._reports.values()]

    def kept(self) -> list[int]:
        """Return those that memory keeps."""
        return [held.entry.timestamp - NOW for held in self.sealer.fallback._reports.values()]


def test_what_memory_kept_goes_to_the_disk_in_its_old_place() -> None:
    """When the disk has room again nothing is left to a restart, and the order is that of cutting."""

    async def main() -> None:
        bench = Bench()
        await bench.put(3)
        bench.store.full = "disk_full"
        await bench.put(4)
        assert (bench.stored(), bench.kept()) == ([1, 2, 3], [4, 5, 6, 7])
        bench.store.full = ""
        await bench.put(2)
        assert (bench.stored(), bench.kept()) == ([1, 2, 3, 4, 5, 6, 7, 8, 9], [])
        accounts = bench.sealer.accounts()
        assert (accounts.polled, accounts.queued) == (9, 9)

    run(main())


def test_a_report_that_core_may_be_accepting_stays_where_it_is() -> None:
    """It is not told twice, and what is newer waits behind it."""

    async def main() -> None:
        bench = Bench()
        bench.store.full = "io_error"
        await bench.put(3)
        bench.store.full = ""
        head = await bench.sealer.fallback.head()
        assert head is not None
        await bench.put(1)
        assert (bench.stored(), bench.kept()) == ([], [1, 2, 3, 4])
        await bench.sealer.fallback.accepted(head.id)
        await bench.put(1)
        assert (bench.stored(), bench.kept()) == ([2, 3, 4, 5], [])
        accounts = bench.sealer.accounts()
        assert (accounts.polled, accounts.delivered, accounts.queued) == (5, 1, 4)

    run(main())


def test_a_full_disk_costs_the_oldest_repeats_and_never_the_newest_reports() -> None:
    """When memory is full too the oldest repeats on disk make way, counted and told; changes and the newest stay."""

    async def main() -> None:
        bench = Bench()
        await bench.put(2)
        await bench.put(1, change=True)
        await bench.put(3)
        bench.store.full = "disk_full"
        await bench.put(FALLBACK_REPORTS_MAX + 3)
        assert bench.stored() == [3, 5, 6, 7, 8, 9]
        assert bench.kept() == [*range(10, FALLBACK_REPORTS_MAX + 10)]
        assert dict(bench.sealer.accounts().dropped) == {"disk_full": 3}
        bench.store.full = ""
        await bench.put(1)
        assert bench.stored() == [3, *range(5, FALLBACK_REPORTS_MAX + 11)]

    run(main())


def test_room_that_others_take_is_not_made_again_and_again() -> None:
    """Where what was given up frees nothing for us, little is given up, and memory's own bound holds."""

    async def main() -> None:
        bench = Bench()
        await bench.put(50)
        bench.store.full = "disk_full"
        bench.store.stolen = True
        await bench.put(FALLBACK_REPORTS_MAX)
        assert bench.store.asked == 0
        await bench.put(round(MAKE_ROOM_AGAIN_S))
        assert 1 <= bench.store.asked <= 2
        assert len(bench.stored()) >= 48 and len(bench.kept()) == FALLBACK_REPORTS_MAX
        assert bench.kept()[-1] == bench.count

    run(main())


STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "change", "full", "error", "bound", "well", "core", "fail", "steal"])),
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@example([("put",), ("full",), *[("put",)] * 5])  # room is made, so what was in memory is sealed after the rest of it
@given(steps=STEPS)
def test_order_and_accounts_hold_whatever_the_disk_does(steps: list[tuple[str]]) -> None:
    """Core gets what is left in the order of cutting, each report once; every status is in one place at any step."""

    async def main() -> None:
        bench = Bench()
        bench.sealer.fallback._settings = SpoolSettings(directory=Path(), reports_max=4)
        sent: list[int] = []

        async def core(*, accepts: bool) -> None:
            store, memory = bench.store, bench.sealer.fallback
            head, source = await store.head(), store
            kept = await memory.head()
            if kept is not None and (head is None or bench.sealer.is_older(kept, head)):
                head, source = kept, memory  # type: ignore[assignment]
            if head is None:
                return
            if accepts:
                await source.accepted(head.id)
                sent.append(head.timestamp)
            else:
                await source.failed(head.id)

        for (step,) in steps:
            match step:
                case "put" | "change":
                    await bench.put(1, change=step == "change")
                case "full" | "error" | "bound":
                    bench.store.full = {"full": "disk_full", "error": "io_error", "bound": "spool_full"}[step]
                case "well":
                    bench.store.full, bench.store.stolen = "", False
                case "steal":
                    bench.store.stolen = True
                case _:
                    await core(accepts=step == "core")
            assert bench.sealer.accounts().balanced
        while bench.sealer.reports:
            await core(accepts=True)
        assert sent == sorted(set(sent))
        accounts = bench.sealer.accounts()
        assert accounts.queued == 0 and accounts.delivered + sum(accounts.dropped.values()) == bench.count

    run(main())
