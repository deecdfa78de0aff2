"""The last reports of a stop: what only memory has is not left behind, and a store that fails makes nobody spin."""

from __future__ import annotations

import asyncio
from pathlib import Path

from serviceradar_poller.errors import SpoolWriteError
from serviceradar_poller.reporting.spool import MemoryStore, NewReport, ReportStore, SpoolSettings
from serviceradar_poller.testing.fakes import REFUSED
from serviceradar_poller.testing.simloop import run
from serviceradar_poller.testing.simsite import SimSite, agent_config, now_s, site_config, until
from serviceradar_poller.testing.spools import make_report

INTERVAL_S = 10.0


class Disk(MemoryStore):
    """
    A store on a disk that may stop to take anything.

    Attributes:
        broken: It does, and does not even remember what core has.
        asked: Times that a report was to be deleted.
        seal_s: What a seal takes.
    """

    broken = False
    asked = 0
    seal_s = 0.0

    async def seal(self, report: NewReport) -> int:
        await asyncio.sleep(self.seal_s)
        self._fail()
        return await super().seal(report)

    async def accepted(self, report_id: int) -> None:
        self.asked += 1
        self._fail()
        await super().accepted(report_id)

    def _fail(self) -> None:
        if self.broken:
            raise SpoolWriteError(reason="io_error", detail="by the test")


class DiskSite(SimSite):
    """A site whose poller keeps its reports on a Disk."""

    disk: Disk

    def make_store(self) -> ReportStore:
        self.disk = Disk(SpoolSettings(directory=Path()), emit=self.env.emit, wall=self.env.clock.wall)
        return self.disk

    def stamps(self) -> list[int]:
        """Return the times of the reports that core has, in the order of their arrival."""
        return [stamp for _, transport, stamp, _ in self.core.reports if transport == "unary"]


def test_a_store_that_can_not_be_written_is_not_asked_again_and_again() -> None:
    """Each failure is waited for at a stop too: a few attempts in all its time, not a busy loop."""

    async def main() -> None:
        site = DiskSite(site_config([agent_config("a")]))
        async with site.running() as poller:
            await asyncio.sleep(15.0)
            site.core.error = REFUSED
            await asyncio.sleep(3 * INTERVAL_S)
            site.disk.broken, site.core.error = True, None
            site.disk.asked = 0
            begin_s = now_s()
            assert poller.tree is not None
            await poller.tree.stop()
            assert now_s() - begin_s <= 10.1
            assert 1 <= site.disk.asked <= 25

    run(main())


def test_what_only_memory_has_is_sent_while_there_is_time() -> None:
    """On disk is more than core takes until the end: from half of the time on, what would be lost goes first."""

    async def main() -> None:
        site = DiskSite(site_config([agent_config("a")]))
        async with site.running() as poller:
            await asyncio.sleep(15.0)
            site.core.error = REFUSED
            await asyncio.sleep(40 * INTERVAL_S)
            site.disk.broken = True
            before = int(site.env.clock.wall())
            await asyncio.sleep(3 * INTERVAL_S)
            memory = poller.reporting.sealer.fallback
            kept = memory.stats().reports
            assert kept == 3
            site.disk.broken, site.core.error, site.core.latency_s = False, None, 0.5
            site.core.reports.clear()
            # Nothing new comes that would take what memory keeps along to the disk.
            poller.reporting.sealer._overtaken = True
            assert poller.tree is not None
            await poller.tree.stop()
            assert memory.stats().reports == 0
            stamps = site.stamps()
            old = [stamp for stamp in stamps if stamp < before]
            assert len(old) >= 5 and poller.reporting.sealer.reports > 0
            assert stamps[: len(old)] == old == sorted(old), "in order at first"
            assert len(stamps) - len(old) >= kept and stamps[len(old) :] == sorted(stamps[len(old) :])

    run(main())


def test_with_time_enough_everything_goes_in_order() -> None:
    """What is on disk is older and goes first, at once and not at the pace of a replay."""

    async def main() -> None:
        site = DiskSite(site_config([agent_config("a")]))
        async with site.running() as poller:
            await asyncio.sleep(15.0)
            site.core.error = REFUSED
            await asyncio.sleep(120 * INTERVAL_S)
            site.disk.broken = True
            await asyncio.sleep(3 * INTERVAL_S)
            site.disk.broken, site.core.error = False, None
            site.core.reports.clear()
            begin_s = now_s()
            assert poller.tree is not None
            await poller.tree.stop()
            assert now_s() - begin_s < 2.0
            assert poller.reporting.sealer.reports == 0
            stamps = site.stamps()
            assert len(stamps) >= 123 and stamps == sorted(stamps)

    run(main())


def test_a_call_that_hangs_does_not_use_up_the_time_of_what_only_memory_has() -> None:
    """It is cut when half of the time is over: what would be lost goes then, though that call might still end well."""

    async def main() -> None:
        site = DiskSite(site_config([agent_config("a")]))
        async with site.running() as poller:
            await asyncio.sleep(15.0)
            site.core.error = REFUSED
            await asyncio.sleep(10 * INTERVAL_S)
            site.disk.broken = True
            before = int(site.env.clock.wall())
            await asyncio.sleep(3 * INTERVAL_S)
            memory = poller.reporting.sealer.fallback
            assert memory.stats().reports >= 3
            site.core.error, site.core.latency_s = None, 3_600.0
            site.core.reports.clear()
            await call_begins(site)
            site.core.latency_s = 0.001
            begin_s = now_s()
            assert poller.tree is not None
            await poller.tree.stop()
            assert now_s() - begin_s <= 6.0
            assert memory.stats().reports == 0
            assert len([stamp for stamp in site.stamps() if stamp >= before]) >= 3

    run(main())


def test_what_the_last_seals_take_is_no_more_time_for_the_call_under_way() -> None:
    """A stop takes no longer than it may where the disk is slow and core hangs."""

    async def main() -> None:
        site = DiskSite(site_config([agent_config("a")]))
        async with site.running() as poller:
            await asyncio.sleep(15.0)
            site.core.latency_s = 3_600.0
            await asyncio.sleep(3 * INTERVAL_S)
            await call_begins(site)
            site.disk.seal_s = 4.0
            poller.reporting.sealer.put(make_report())
            begin_s = now_s()
            assert poller.tree is not None
            await poller.tree.stop()
            assert 4.0 <= now_s() - begin_s < 9.9, "the end of the time for a stop would have killed the reporter"

    run(main())


async def call_begins(site: DiskSite) -> None:
    """Wait for the next call to core."""
    calls = len(site.core.calls)
    await until(lambda: len(site.core.calls) > calls)
