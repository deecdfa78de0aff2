"""Ten minutes without core, a thousand agents, on virtual time: every cycle is sealed, told, and arrives once."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from serviceradar_poller.config.model import CheckConfig
from serviceradar_poller.events.polling import CheckFinished, ReportDropped, ReportSetAside
from serviceradar_poller.testing.fakes import REFUSED
from serviceradar_poller.testing.simloop import run
from serviceradar_poller.testing.simsite import SimSite, agent_config, site_config, until

AGENTS = 1_000
OUTAGE_S = 600.0
INTERVAL_S = 30.0
PING = CheckConfig(service_type="icmp", service_name="ping", details="9.9.9.9")


@pytest.mark.slow
def test_ten_minutes_without_core_lose_no_cycle_and_delay_no_check() -> None:
    """Polling goes on at its own times, the accounts balance all along, and the backlog arrives in order."""

    async def main() -> None:
        site = SimSite(site_config([agent_config(f"a{n}", PING) for n in range(AGENTS)], interval_s=INTERVAL_S))
        async with site.running() as poller:
            sealer = poller.reporting.sealer
            await asyncio.sleep(2 * INTERVAL_S)
            site.core.error = REFUSED
            for _ in range(round(OUTAGE_S / INTERVAL_S)):
                await asyncio.sleep(INTERVAL_S)
                assert sealer.accounts().balanced
            assert sealer.reports >= OUTAGE_S / INTERVAL_S - 1
            assert sealer.fallback.stats().reports == 0
            site.core.error = None
            await until(lambda: sealer.reports == 0, within_s=30.0)
            accounts = sealer.accounts()
            assert accounts.delivered == accounts.polled
        stamps = [stamp for _, transport, stamp, _ in site.core.reports if transport == "unary"]
        assert stamps == sorted(stamps)
        assert all(later - sooner <= INTERVAL_S + 1 for sooner, later in pairwise(stamps))
        assert max(event.lateness_s for event in site.of(CheckFinished)) < 0.1
        assert not site.of(ReportDropped) and not site.of(ReportSetAside)

    run(main())
