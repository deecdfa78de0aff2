"""Every status is in exactly one place, whatever core, the disk and the reporter go through."""

from __future__ import annotations

import asyncio
import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serviceradar_poller.app.poller import REPORTER_PATH, Poller
from serviceradar_poller.config.model import PollerConfig
from serviceradar_poller.errors import CallError, GrpcCode, Layer, SpoolReadError, SpoolWriteError
from serviceradar_poller.events.polling import ReportDropped, ReportSetAside
from serviceradar_poller.reporting.delivery import REPLAY_REPORTS_PER_S_MAX
from serviceradar_poller.reporting.sealing import FALLBACK_REPORTS_MAX, Sealer
from serviceradar_poller.reporting.spool import MemoryStore, NewReport, ReportStore, Spool, SpoolSettings, StoredReport
from serviceradar_poller.testing.fakes import REFUSED, FakeTransport, fake_env
from serviceradar_poller.testing.simloop import run
from serviceradar_poller.testing.simsite import SimSite, agent_config, now_s, site_config, until
from serviceradar_poller.testing.spools import NOW, make_report
from serviceradar_poller.wire.messages import StatusResponse

CODES = (
    GrpcCode.INTERNAL,
    GrpcCode.UNKNOWN,
    GrpcCode.RESOURCE_EXHAUSTED,
    GrpcCode.INVALID_ARGUMENT,
    GrpcCode.UNAVAILABLE,
)


INTERVAL_S = 10.0


class FailingStore(MemoryStore):
    """
    A store in memory.

    Attributes:
        full: Why seals fail; empty while they don't.
        seal_s: How long a seal takes, before and after it is done.
        sealed, reports: Timestamps of what was sealed, and all of it, in order.
    """

    full = ""
    seal_s = 0.0
    sealed: list[int]
    reports: list[NewReport]

    async def seal(self, report: NewReport) -> int:
        await asyncio.sleep(self.seal_s)
        if self.full:
            raise SpoolWriteError(reason=self.full, detail="by the test")
        self.sealed.append(report.timestamp)
        self.reports.append(report)
        return await super().seal(report)


class StoreSite(SimSite):
    """A site whose poller keeps its reports in a FailingStore."""

    store: FailingStore

    def __init__(
        self, config: PollerConfig, *, seed: int = 0, bytes_max: int = 1 << 30, reports_max: int = 10_000
    ) -> None:
        super().__init__(config, seed=seed)
        bounds = SpoolSettings(directory=Path(), bytes_max=bytes_max, reports_max=reports_max)
        self.store = FailingStore(bounds, emit=self.env.emit, wall=self.env.clock.wall)
        self.store.sealed, self.store.reports = [], []

    def make_store(self) -> ReportStore:
        return self.store

    def stamps(self) -> list[int]:
        """Return the times of the reports that core has, in the order of their first arrival."""
        return list(dict.fromkeys(stamp for _, transport, stamp, _ in self.core.reports if transport == "unary"))


def _crash(poller: Poller) -> None:
    """End the reporter as a bug would, wherever it is."""
    assert poller.tree is not None
    poller.tree.crash(REPORTER_PATH, RuntimeError("by the test"))


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_accounts_balance_at_any_instant(seed: int) -> None:
    """polled + recovered = delivered + queued + rejected + expired + dropped, under faults of everything at random."""
    rng = random.Random(seed)

    async def main() -> None:
        site = StoreSite(
            site_config([agent_config(f"a{n}") for n in range(3)]), seed=seed, bytes_max=rng.randrange(2_000, 20_000)
        )
        async with site.running() as poller:
            for _ in range(150):
                match rng.randrange(9):
                    case 0:
                        code = rng.choice(CODES)
                        site.core.error = CallError(layer=Layer.GRPC, code=code, reason=code.name.lower(), detail="")
                    case 1:
                        site.core.error = REFUSED
                    case 2:
                        site.core.hang = not site.core.hang
                    case 3:
                        site.core.received = not site.core.received
                    case 4 | 5:
                        site.core.error, site.core.hang, site.core.received = None, False, True
                    case 6:
                        up = rng.random() < 0.5
                        site.agents["a1"].status = lambda request, up=up: StatusResponse(available=up)  # type: ignore[misc]
                    case 7:
                        site.store.full = rng.choice(("", "", "disk_full", "io_error", "spool_full"))
                        site.store.seal_s = rng.choice((0.0, 0.0, 0.3))
                    case 8:
                        _crash(poller)
                for _ in range(3):
                    await asyncio.sleep(rng.random() * 6.0)
                    accounts = poller.reporting.sealer.accounts()
                    assert accounts.balanced, accounts
            assert poller.reporting.sealer.accounts().polled > 100
            site.core.error, site.core.hang, site.core.received = None, False, True
            site.store.full = ""
            await until(lambda: poller.reporting.sealer.accounts().queued == 0, within_s=300.0)
        accounts = poller.reporting.sealer.accounts()
        told = sum(event.statuses for event in site.of(ReportDropped))
        assert accounts.balanced and sum(accounts.dropped.values()) + accounts.expired == told
        assert accounts.rejected == sum(event.statuses for event in site.of(ReportSetAside))

    run(main())


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_crash_of_the_reporter_loses_nothing(seed: int) -> None:
    """Whatever the reporter was doing, each report is sealed once and reaches core, in order."""
    rng = random.Random(seed)

    async def main() -> None:
        site = StoreSite(site_config([agent_config(f"a{n}") for n in range(2)]), seed=seed)
        site.store.seal_s = rng.choice((0.0, 0.2))
        site.core.latency_s = rng.choice((0.001, 0.5))
        async with site.running() as poller:
            for _ in range(20):
                site.core.error = rng.choice((None, None, REFUSED))
                # Close to a tick more often than not: that is when the reporter has something to lose.
                near_s = INTERVAL_S - now_s() % INTERVAL_S + rng.random() * 2.0
                await asyncio.sleep(rng.choice((near_s, rng.random() * 15.0)))
                _crash(poller)
                await asyncio.sleep(7.0)  # within what the supervisor puts up with
            site.core.error = None
            await until(lambda: poller.reporting.sealer.accounts().queued == 0, within_s=120.0)
            await asyncio.sleep(12.0)
        reports = site.store.reports
        assert len({id(report) for report in reports}) == len(reports), "each once; two may share a second"
        assert site.stamps() == list(dict.fromkeys(site.store.sealed))
        assert all(later - sooner <= INTERVAL_S + 2 for sooner, later in pairwise(site.stamps()))
        accounts = poller.reporting.sealer.accounts()
        assert accounts.delivered == accounts.polled

    run(main())


def test_a_full_disk_stops_neither_polling_nor_reports() -> None:
    """What can't be written goes to core from memory, in its turn; when the disk has room again it is used again."""

    async def main() -> None:
        site = StoreSite(site_config([agent_config("a")]))
        async with site.running() as poller:
            await asyncio.sleep(15.0)
            site.core.error = REFUSED
            await asyncio.sleep(20.0)
            site.store.full = "disk_full"
            await asyncio.sleep(30.0)
            assert poller.reporting.sealer.fallback.stats().reports == 3
            site.store.full = ""
            await asyncio.sleep(20.0)
            site.core.error = None
            await until(lambda: poller.reporting.sealer.reports == 0, within_s=20.0)
            accounts = poller.reporting.sealer.accounts()
        assert accounts.delivered == accounts.polled
        assert len(site.stamps()) >= 8 and site.stamps() == sorted(site.stamps())
        assert len(site.store.sealed) <= len(site.stamps()) - 3
        assert not site.of(ReportDropped)

    run(main())


def test_a_disk_that_can_not_even_be_read_does_not_hold_back_what_memory_keeps() -> None:
    """A disk that is full at the start has no spool to read: reports go to core from memory all the same."""

    async def main() -> None:
        site = StoreSite(site_config([agent_config("a")]))
        head = site.store.head

        async def unreadable() -> StoredReport | None:
            raise SpoolReadError(reason="unusable", detail="by the test")

        site.store.head = unreadable  # type: ignore[method-assign]
        site.store.full = "disk_full"
        async with site.running() as poller:
            await asyncio.sleep(120.0)
            assert len(site.stamps()) >= 8 and poller.reporting.sealer.reports <= 2
            assert site.stamps() == sorted(site.stamps())
            site.store.head = head  # type: ignore[method-assign]
            site.store.full = ""
            await asyncio.sleep(30.0)
            accounts = poller.reporting.sealer.accounts()
            assert accounts.balanced and accounts.delivered >= accounts.polled - 2
            assert site.store.stats().accepted > 0

    run(main())


def test_what_memory_keeps_for_a_full_disk_is_bounded_and_counted() -> None:
    """With the disk full and core away, the oldest reports go, each counted and told."""

    async def main() -> None:
        site = StoreSite(site_config([agent_config("a")], interval_s=1.0))
        site.core.error = REFUSED
        site.store.full = "io_error"
        async with site.running() as poller:
            await asyncio.sleep(2.0 * FALLBACK_REPORTS_MAX)
            accounts = poller.reporting.sealer.accounts()
            assert poller.reporting.sealer.reports == FALLBACK_REPORTS_MAX
            assert sum(accounts.dropped.values()) == sum(event.statuses for event in site.of(ReportDropped)) > 0
            assert accounts.balanced

    run(main())


def test_a_report_without_room_is_dropped_and_told() -> None:
    """The bound is the bound: what the store refuses for want of room does not go round it by memory."""

    async def main() -> None:
        site = StoreSite(site_config([agent_config("a")]))
        site.store.full = "spool_full"
        site.core.error = REFUSED
        async with site.running() as poller:
            await asyncio.sleep(25.0)
            accounts = poller.reporting.sealer.accounts()
            assert poller.reporting.sealer.reports == 0 and accounts.polled == sum(accounts.dropped.values()) > 0
            assert {event.reason for event in site.of(ReportDropped)} == {"spool_full"}
            site.store.full = ""
            site.core.error = None
            await asyncio.sleep(12.0)
            assert site.core.reports

    run(main())


def test_a_result_kept_in_memory_for_a_full_disk_moves_no_position() -> None:
    """A position moves on disk or not at all, so a result that may be lost is asked for again."""

    async def main() -> None:
        env = fake_env(FakeTransport(), [])
        store = FailingStore(SpoolSettings(directory=Path()), emit=env.emit, wall=env.clock.wall)
        store.sealed, store.reports, store.full = [], [], "disk_full"
        sealer = Sealer(store, env)
        sealer.put(make_report(positions=(("a", "sync", "7"),)))
        await sealer.settle()
        kept = await sealer.fallback.head()
        assert kept is not None
        await sealer.fallback.accepted(kept.id)
        assert not sealer.fallback.positions() and not store.positions()

    run(main())


@pytest.mark.slow
def test_the_accounts_balance_between_any_two_steps_of_the_loop(tmp_path: Path) -> None:
    """On disk too, nobody who looks between two callbacks sees a status twice or not at all."""

    async def main() -> None:
        env = fake_env(FakeTransport(), [])
        store = await Spool.open(SpoolSettings(directory=tmp_path), emit=env.emit, wall=lambda: float(NOW))
        sealer = Sealer(store, env)
        looks = 0
        over = False

        def look() -> None:
            nonlocal looks
            looks += 1
            assert sealer.accounts().balanced
            if not over:
                asyncio.get_running_loop().call_soon(look)

        look()
        for number in range(30):
            sealer.put(make_report(fresh=number))
            await sealer.settle()
            if number % 3 == 0 and (head := await store.head()) is not None:
                await store.accepted(head.id)
        over = True
        assert looks > 100 and store.stats().reports == 20
        await asyncio.sleep(0)
        await store.close()

    asyncio.run(main())


@pytest.mark.slow
def test_a_seal_that_was_begun_is_neither_lost_nor_done_twice(tmp_path: Path) -> None:
    """Whoever waits for a seal may be cancelled at any step; the next one finds it done, or waits for it."""

    async def main() -> None:
        env = fake_env(FakeTransport(), [])
        store = await Spool.open(SpoolSettings(directory=tmp_path), emit=env.emit, wall=lambda: float(NOW))
        sealer = Sealer(store, env)
        for steps in range(12):
            sealer.put(make_report(fresh=1))
            task = asyncio.create_task(sealer.settle())
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
            await sealer.settle()
            assert store.stats().reports == store.stats().sealed == steps + 1
            assert sealer.accounts().balanced and sealer.reports == steps + 1
        await store.close()

    asyncio.run(main())


def test_a_report_whose_bytes_are_damaged_is_set_aside() -> None:
    """What can't be read as it was written is out of the way of the reports behind it, counted and told."""

    async def main() -> None:
        site = StoreSite(site_config([agent_config("a")]))
        read = site.store.part

        async def part(report_id: int, call_index: int, part_index: int) -> bytes:
            if report_id == 2:
                raise SpoolReadError(reason="damaged", detail="by the test")
            return await read(report_id, call_index, part_index)

        site.store.part = part  # type: ignore[method-assign]
        async with site.running() as poller:
            await asyncio.sleep(35.0)
            (event,) = site.of(ReportSetAside)
            accounts = poller.reporting.sealer.accounts()
            assert (event.report_id, event.reason, event.statuses) == (2, "damaged", accounts.rejected)
            assert accounts.balanced and accounts.queued == 0 and len(site.stamps()) >= 3

    run(main())


def test_a_backlog_is_replayed_at_a_bounded_rate() -> None:
    """A core that is back gets a long backlog at most so many reports a second, however fast it answers."""

    async def main() -> None:
        site = StoreSite(site_config([agent_config("a")], interval_s=1.0))
        site.core.error = REFUSED
        site.core.latency_s = 0.0
        async with site.running() as poller:
            await asyncio.sleep(300.0)
            site.core.error = None
            await until(lambda: poller.reporting.sealer.reports == 0, within_s=60.0)
        times = [time_s for time_s, transport, _, _ in site.core.reports if transport == "unary"]
        assert len(times) >= 300
        busiest = max(sum(begin <= time_s < begin + 1.0 for time_s in times) for begin in times)
        assert 0.5 * REPLAY_REPORTS_PER_S_MAX <= busiest <= REPLAY_REPORTS_PER_S_MAX + 2

    run(main())
