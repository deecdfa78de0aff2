"""A report that core did not take, for whatever reason, is given up only when core refuses it where it takes others."""

from __future__ import annotations

import asyncio

import pytest

from serviceradar_poller.app.poller import Poller
from serviceradar_poller.errors import CallError, GrpcCode, Layer
from serviceradar_poller.events.polling import CoreConnected, CoreLost, ReportFailed, ReportSetAside
from serviceradar_poller.testing.fakes import REFUSED
from serviceradar_poller.testing.simloop import run
from serviceradar_poller.testing.simsite import SimSite, agent_config, site_config, until
from serviceradar_poller.wire.messages import ServiceStatus, StatusResponse

UNKNOWN = CallError(layer=Layer.GRPC, code=GrpcCode.UNKNOWN, reason="unknown", detail="database failure")


def make_site() -> SimSite:
    return SimSite(site_config([agent_config("a0"), agent_config("a1")]))


async def until_failed(site: SimSite, attempt: int) -> None:
    """Wait until a report's attempt of this number has failed."""
    await until(lambda: any(event.attempt == attempt for event in site.of(ReportFailed)), step_s=0.001)


async def until_delivered(site: SimSite, poller: Poller) -> None:
    """Wait until nothing waits for core; all of it has arrived, and none was set aside."""
    sealer = poller.reporting.sealer
    await until(lambda: sealer.reports == 0, within_s=60.0)
    assert not site.of(ReportSetAside)
    assert sealer.accounts().delivered == sealer.accounts().polled


@pytest.mark.parametrize("attempts", [10, 15])
def test_a_core_that_is_mended_while_its_fault_is_looked_for_costs_no_report(attempts: int) -> None:
    """After the report behind it was taken, the doubtful one goes once more, and arrives."""

    async def main() -> None:
        site = make_site()
        async with site.running() as poller:
            await asyncio.sleep(25.0)
            site.core.error = UNKNOWN
            # The next attempt is the report behind: its acceptance says nothing of a core that was mended meanwhile.
            await until_failed(site, attempts)
            site.core.error = None
            await until_delivered(site, poller)

    run(main())


def test_a_core_that_says_no_without_an_error_is_the_same() -> None:
    """``received=false`` is as doubtful."""

    async def main() -> None:
        site = make_site()
        async with site.running() as poller:
            await asyncio.sleep(25.0)
            site.core.received = False
            await until_failed(site, 10)
            site.core.received = True
            await until_delivered(site, poller)

    run(main())


def test_a_stream_that_could_not_register_says_nothing_of_a_report() -> None:
    """All failures were those of registering: the report behind registers and is taken, and so is the first."""

    async def main() -> None:
        site = make_site()
        async with site.running() as poller:
            await asyncio.sleep(25.0)
            site.core.error = REFUSED  # core has to be told of the poller again
            await until(lambda: site.of(CoreLost))
            site.core.error = UNKNOWN
            await until_failed(site, 10)
            site.core.error = None
            await until_delivered(site, poller)

    run(main())


def test_the_way_to_core_breaking_decides_nothing() -> None:
    """The last chance is one that core had: a call that did not reach it is no refusal, and the search begins anew."""

    async def main() -> None:
        site = make_site()
        async with site.running() as poller:
            await asyncio.sleep(25.0)
            site.core.error = UNKNOWN
            await until_failed(site, 10)
            site.core.error = None
            count = len(site.core.reports)
            await until(lambda: len(site.core.reports) > count, step_s=0.0001)
            site.core.error = REFUSED  # between the report behind and the doubtful one
            await asyncio.sleep(20.0)
            assert not site.of(ReportSetAside)
            site.core.error = None
            await until_delivered(site, poller)

    run(main())


def test_what_core_refuses_between_others_is_given_up_and_core_is_not_called_lost_for_it() -> None:
    """Refused, the one behind taken, refused again: it is set aside, with core's own word."""

    async def main() -> None:
        site = make_site()

        def refuse(statuses: tuple[ServiceStatus, ...]) -> CallError | None:
            return UNKNOWN if any(b"poison" in status.message for status in statuses) else None

        site.core.refuse = refuse
        async with site.running() as poller:
            await asyncio.sleep(9.0)
            site.agents["a0"].status = lambda request: StatusResponse(available=True, message=b"poison")
            await until(lambda: site.of(ReportFailed), within_s=20.0)
            site.agents["a0"].status = lambda request: StatusResponse(available=True)
            await until(lambda: site.of(ReportSetAside), within_s=60.0)
            (told,) = site.of(ReportSetAside)
            assert told.reason == "unknown"
            await until(lambda: poller.reporting.sealer.reports == 0, within_s=60.0)
            await asyncio.sleep(30.0)
            assert len(site.of(ReportSetAside)) == 1
            assert len(site.of(CoreLost)) == 1 and len(site.of(CoreConnected)) == 2
            assert poller.reporting.sealer.accounts().rejected == told.statuses

    run(main())
