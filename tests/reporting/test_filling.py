"""The forecast of a full spool, told once and taken back once."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import Any

from serviceradar_poller.events.polling import SpoolFilling, SpoolNotFilling
from serviceradar_poller.reporting.filling import WARN_S, FillWatch
from serviceradar_poller.reporting.spool import SpoolStats
from serviceradar_poller.testing.fakes import REFUSED, FakeTransport, fake_env
from serviceradar_poller.testing.simloop import run
from serviceradar_poller.testing.simsite import SimSite, agent_config, site_config, until

LIMIT = 100_000_000


def test_it_is_told_once_and_taken_back_once() -> None:
    """A backlog that will have no room within the hour is one warning, its end one line, however often one looks."""

    async def main() -> None:
        events: list[Any] = []
        watch = FillWatch(fake_env(FakeTransport(), events))
        nothing = SpoolStats()
        store = SpoolStats(limit_bytes=LIMIT)
        for minute in range(120):
            waits = (minute + 1) * 1_000_000
            store = replace(store, bytes=waits, bytes_in=waits)
            watch.look(store, nothing, reports=minute + 2)
            if minute > 0:
                assert math.isclose(watch.full_in_s, max(LIMIT - waits, 0) * 60 / 1_000_000, rel_tol=0.01)
            await asyncio.sleep(60.0)
        assert [type(event) for event in events] == [SpoolFilling]
        assert 0.9 * WARN_S < events[0].full_in_s < WARN_S
        watch.look(replace(store, bytes=0, bytes_out=store.bytes_in), nothing, reports=0)
        assert math.isinf(watch.full_in_s)
        assert [type(event) for event in events] == [SpoolFilling, SpoolNotFilling]

    run(main())


def test_the_disk_is_a_bound_and_memory_counts_while_it_is_full() -> None:
    """What the disk has left counts where it is less; while seals fail the reports in memory show the rate."""

    async def main() -> None:
        watch = FillWatch(fake_env(FakeTransport(), []))
        store = SpoolStats(limit_bytes=LIMIT, bytes=1_000_000, bytes_in=1_000_000, free_bytes=50_000)
        for number in range(10):
            watch.look(store, SpoolStats(bytes_in=number * 10_000), reports=number + 2)
            await asyncio.sleep(10.0)
        assert math.isclose(watch.full_in_s, 50.0, rel_tol=0.01)

    run(main())


def test_core_away_is_forecast_and_core_back_is_not() -> None:
    """The whole poller: no forecast while core takes reports, one while it is away, none when it has caught up."""

    async def main() -> None:
        site = SimSite(site_config([agent_config(f"a{n}") for n in range(20)]))
        async with site.running() as poller:
            sealer = poller.reporting.sealer
            await asyncio.sleep(60.0)
            assert math.isinf(sealer.full_in_s) and sealer.spool_figures()["full_in_s"] is None
            site.core.error = REFUSED
            await asyncio.sleep(300.0)
            figures = sealer.spool_figures()
            waiting, limit = figures["bytes"], figures["limit_bytes"]
            assert isinstance(waiting, int) and isinstance(limit, int)
            rate = waiting / 300.0
            assert math.isclose(sealer.full_in_s, (limit - waiting) / rate, rel_tol=0.2)
            site.core.error = None
            await until(lambda: sealer.reports == 0, within_s=60.0)
            await asyncio.sleep(15.0)
            assert math.isinf(sealer.full_in_s)

    run(main())
