"""The reporter among a core that refuses, hangs, says no, and comes back."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import pairwise

import pytest

from serviceradar_poller.config.model import (
    CheckConfig,
    PollerConfig,
    ReportMode,
    SecurityConfig,
    SecurityMode,
    TlsConfig,
)
from serviceradar_poller.errors import CallError, GrpcCode, Layer
from serviceradar_poller.events.polling import (
    CoreConnected,
    CoreLost,
    CredentialsRejected,
    CredentialsRenewed,
    ReportDropped,
    ReportFailed,
    ReportSent,
    ReportSetAside,
)
from serviceradar_poller.otp import Ref
from serviceradar_poller.reporting.reporter import RENEWAL_RETRY_S, ReconnectCore
from serviceradar_poller.testing.fakes import REFUSED
from serviceradar_poller.testing.simloop import SimLoop, run
from serviceradar_poller.testing.simsite import SimSite, agent_config, now_s, site_config, until
from serviceradar_poller.wire.messages import ResultsRequest, ResultsResponse, ServiceStatus, StatusResponse

INTERVAL_S = 10.0
INTERNAL = CallError(layer=Layer.GRPC, code=GrpcCode.INTERNAL, reason="internal", detail="database failure")
UNIMPLEMENTED = CallError(layer=Layer.GRPC, code=GrpcCode.UNIMPLEMENTED, reason="unimplemented", detail="no streams")


EXHAUSTED = CallError(
    layer=Layer.GRPC, code=GrpcCode.RESOURCE_EXHAUSTED, reason="resource_exhausted", detail="above the limit"
)


def _config(count: int = 2) -> PollerConfig:
    return site_config([agent_config(f"a{n}") for n in range(count)])


def _with_reporting(config: PollerConfig, **fields: object) -> PollerConfig:
    return replace(config, reporting=replace(config.reporting, **fields))  # type: ignore[arg-type]


def test_w5_a_core_that_hangs_is_left_after_the_deadline() -> None:
    """W5: every call to core has a deadline; polling goes on meanwhile, and what waited arrives later."""

    async def main() -> None:
        site = SimSite(_config())
        site.core.hang = True
        async with site.running():
            await asyncio.sleep(35.0)
            assert len(site.of(CoreLost)) == 1
            assert any(event.reason == "timeout" for event in site.of(ReportFailed))
            assert len(site.agents["a0"].requests) >= 6
            site.core.hang = False
            await until(lambda: len(site.core.reports) >= 4, within_s=15.0)
            assert len(site.of(CoreConnected)) == 1

    run(main())


def test_a_backlog_arrives_oldest_first_with_its_own_times() -> None:
    """Each report keeps the time at which it was sealed, however late it arrives."""

    async def main() -> None:
        site = SimSite(_config())
        async with site.running():
            await asyncio.sleep(5.0)
            site.core.reports.clear()
            site.core.error = REFUSED
            await asyncio.sleep(50.0)
            site.core.error = None
            await asyncio.sleep(15.0)
        stamps = [timestamp for _, transport, timestamp, _ in site.core.reports if transport == "unary"]
        assert stamps == sorted(stamps)
        kinds = [event.kind for event in site.of(ReportSent) if event.transport == "unary"][-len(stamps) :]
        assert kinds == ["cycle"] * 5 + ["current", "cycle"]  # what is current, once the backlog is there
        cycles = [stamp for stamp, kind in zip(stamps, kinds, strict=True) if kind == "cycle"]
        gaps = {second - first for first, second in pairwise(cycles)}
        assert gaps <= {9, 10, 11}, gaps

    run(main())


def test_the_first_report_and_the_first_after_an_outage_register() -> None:
    """Core learns of a poller by a stream only, and may have forgotten it while it was away."""

    async def main() -> None:
        site = SimSite(_config())
        async with site.running():
            await asyncio.sleep(25.0)
            site.core.error = REFUSED
            await asyncio.sleep(20.0)
            site.core.error = None
            await asyncio.sleep(20.0)
        streams = [statuses for _, transport, _, statuses in site.core.reports if transport == "stream"]
        assert len(streams) == 2
        assert all({status.agent_id for status in statuses} == {"a0"} for statuses in streams)
        assert [event.kind for event in site.of(ReportSent)].count("register") == 2

    run(main())


def test_a_core_without_streams_still_gets_reports() -> None:
    """When registering is refused for good, reports go without it."""

    async def main() -> None:
        site = SimSite(_config())
        site.core.stream_error = UNIMPLEMENTED
        async with site.running():
            await until(lambda: site.core.reports, within_s=60.0)
            assert site.core.reports[0][1] == "unary"
            assert not site.of(ReportDropped)

    run(main())


def test_a_server_that_knows_no_reports_is_no_core_and_costs_none() -> None:
    """UNIMPLEMENTED for the one call that every core has says nothing of the report: it waits and arrives."""

    async def main() -> None:
        site = SimSite(_config())
        async with site.running() as poller:
            await asyncio.sleep(25.0)
            site.core.refuse = lambda statuses: UNIMPLEMENTED
            await asyncio.sleep(120.0)
            assert not site.of(ReportSetAside) and not site.of(ReportDropped)
            assert len(site.of(CoreLost)) == 1
            site.core.refuse = lambda statuses: None
            await until(lambda: poller.reporting.sealer.reports == 0, within_s=30.0)
            accounts = poller.reporting.sealer.accounts()
            assert accounts.delivered == accounts.polled

    run(main())


def test_a_status_that_core_never_takes_for_its_size_holds_nobody_up() -> None:
    """What can't be made smaller is set aside when core takes the report behind it; the others arrive."""

    async def main() -> None:
        site = SimSite(_config())

        def refuse(statuses: tuple[ServiceStatus, ...]) -> CallError | None:
            big = any(len(status.message) > 20_000 for status in statuses)
            return EXHAUSTED if big else None

        site.core.refuse = refuse
        async with site.running() as poller:
            await asyncio.sleep(25.0)
            site.agents["a0"].status = lambda request: StatusResponse(
                available=True, message=b'{"x":"' + b"x" * 30_000 + b'"}', agent_id="a0"
            )
            await asyncio.sleep(15.0)
            site.agents["a0"].status = lambda request: StatusResponse(available=True, message=b"{}", agent_id="a0")
            await until(lambda: poller.reporting.sealer.reports == 0, within_s=300.0)
            accounts = poller.reporting.sealer.accounts()
            assert accounts.balanced and 0 < accounts.rejected < accounts.polled / 2
            assert site.of(ReportSetAside)

    run(main())


def test_a_core_that_is_busy_for_a_while_loses_nothing() -> None:
    """RESOURCE_EXHAUSTED may mean too many calls as well: reports are halved, wait, and arrive, in order."""

    async def main() -> None:
        site = SimSite(_config(5))
        async with site.running() as poller:
            await asyncio.sleep(25.0)
            site.core.error = EXHAUSTED
            await asyncio.sleep(180.0)
            assert not site.of(ReportSetAside) and not site.of(ReportDropped)
            site.core.error = None
            await until(lambda: poller.reporting.sealer.reports == 0, within_s=60.0)
            accounts = poller.reporting.sealer.accounts()
            assert accounts.delivered == accounts.polled
        stamps = [timestamp for _, transport, timestamp, _ in site.core.reports if transport == "unary"]
        assert stamps == sorted(stamps)

    run(main())


def test_trouble_of_core_s_own_loses_nothing() -> None:
    """Core answers UNKNOWN or INTERNAL when its database fails: reports wait, and core counts as lost."""

    async def main() -> None:
        site = SimSite(_config())
        async with site.running():
            await asyncio.sleep(5.0)
            site.core.error = INTERNAL
            site.core.reports.clear()
            await asyncio.sleep(120.0)
            assert not site.of(ReportDropped)
            assert len(site.of(CoreLost)) == 1
            site.core.error = None
            await asyncio.sleep(30.0)
        stamps = [timestamp for _, transport, timestamp, _ in site.core.reports if transport == "unary"]
        assert stamps == sorted(stamps)
        assert stamps[-1] - stamps[0] >= 120
        assert {second - first for first, second in pairwise(stamps)} <= {9, 10, 11}

    run(main())


@pytest.mark.parametrize("code", [GrpcCode.INVALID_ARGUMENT, GrpcCode.UNKNOWN])
def test_a_report_that_core_can_never_take_is_given_up_alone(code: GrpcCode) -> None:
    """A poisoned report is told apart from a troubled core by the fate of the next one, dropped and counted."""
    refusal = CallError(layer=Layer.GRPC, code=code, reason=code.name.lower(), detail="no")

    async def main() -> None:
        site = SimSite(_config())
        poisoned = 0.0

        def refuse(statuses: tuple[ServiceStatus, ...]) -> CallError | None:
            return refusal if any(b"poison" in status.message for status in statuses) else None

        site.core.refuse = refuse
        async with site.running() as poller:
            await asyncio.sleep(9.0)
            site.agents["a0"].status = lambda request: StatusResponse(available=True, message=b"poison")
            await until(lambda: any(isinstance(e, ReportFailed) for e in site.events), within_s=20.0)
            poisoned = now_s()
            site.agents["a0"].status = lambda request: StatusResponse(available=True)
            await until(lambda: site.of(ReportSetAside), within_s=60.0)
            assert len(site.of(ReportSetAside)) == 1
            assert poller.reporting.sealer.accounts().rejected == site.of(ReportSetAside)[0].statuses
            await asyncio.sleep(25.0)
            assert poller.reporting.sealer.reports == 0
        assert len([time_s for time_s, _, _, _ in site.core.reports if time_s > poisoned]) >= 3

    run(main())


def test_a_refused_giant_does_not_take_the_report_of_all_agents_along() -> None:
    """When core refuses the stream of one oversized status, the call with everybody else's still goes."""
    refusal = CallError(layer=Layer.GRPC, code=GrpcCode.INVALID_ARGUMENT, reason="invalid_argument", detail="no")

    async def main() -> None:
        site = SimSite(_config())
        site.core.refuse = lambda statuses: refusal if any(len(s.message) > 2_000_000 for s in statuses) else None
        giant = b'{"x":"' + b"y" * 4_000_000 + b'"}'
        site.agents["a1"].status = lambda request: StatusResponse(
            available=True, message=giant if request.service_name == "ping" else b"{}"
        )
        async with site.running():
            await until(lambda: ("a0", "ping") in site.told() and site.of(ReportSetAside), within_s=60.0)
            assert {event.statuses for event in site.of(ReportSetAside)} == {1}
            assert site.told()["a1", "unit"]

    run(main())


def test_a_call_above_core_s_limit_goes_in_smaller_ones() -> None:
    """RESOURCE_EXHAUSTED may be core's own lower limit: the call is halved until it fits."""
    refusal = CallError(layer=Layer.GRPC, code=GrpcCode.RESOURCE_EXHAUSTED, reason="resource_exhausted", detail="big")

    async def main() -> None:
        site = SimSite(_config(8))
        site.core.refuse = lambda statuses: refusal if len(statuses) > 5 else None
        async with site.running():
            await until(lambda: len(site.told()) == 16, within_s=30.0)
        assert max(len(statuses) for _, _, _, statuses in site.core.reports) <= 5

    run(main())


def test_a_slow_core_is_not_sent_the_same_again_and_again() -> None:
    """A core that stores but answers late gets more time for each further attempt, and no register with each."""

    async def main() -> None:
        site = SimSite(_config())
        async with site.running():
            await asyncio.sleep(9.0)
            before = len(site.core.calls)
            site.core.latency_s = 15.0  # the deadline is 10
            await asyncio.sleep(60.0)
            assert len(site.core.calls) - before <= 5
            assert not [name for _, name in site.core.calls[before:] if name == "stream"]

    run(main())


def test_certificates_replaced_on_both_sides_are_found_without_being_told() -> None:
    """W23: when core refuses our certificates, the next call reads them from disk again."""

    async def main() -> None:
        config = replace(_config(), security=SecurityConfig(mode=SecurityMode.MTLS, tls=TlsConfig(cert_file="/none")))
        site = SimSite(config)
        async with site.running():
            await asyncio.sleep(9.0)
            opened = site.transport.opened.get("core:50052", 0)
            site.core.error = CallError(
                layer=Layer.TLS, code=GrpcCode.UNAVAILABLE, reason="tls", detail="unknown certificate authority"
            )
            await until(lambda: site.transport.opened.get("core:50052", 0) > opened, within_s=30.0)
            site.core.error = None
            before = len(site.core.reports)
            await until(lambda: len(site.core.reports) > before, within_s=15.0)

    run(main())


def test_received_false_is_not_acceptance() -> None:
    """A report that core answers with received=false goes again."""

    async def main() -> None:
        site = SimSite(_config())
        site.core.received = False
        async with site.running():
            await until(lambda: site.of(ReportFailed), within_s=10.0)
            assert site.of(ReportFailed)[0].reason == "not_received"
            site.core.received = True
            await until(lambda: site.core.reports, within_s=10.0)

    run(main())


def test_the_queue_is_bounded_and_drops_are_counted() -> None:
    """With core away for long, the oldest reports go, and nothing grows."""

    async def main() -> None:
        site = SimSite(_with_reporting(_config(), queue_reports_max=5))
        site.core.error = REFUSED
        async with site.running() as poller:
            await asyncio.sleep(200.0)
            assert poller.reporting.sealer.reports <= 5
            assert {event.reason for event in site.of(ReportDropped)} == {"spool_full"}
            accounts = poller.reporting.sealer.accounts()
            assert sum(accounts.dropped.values()) == sum(event.statuses for event in site.of(ReportDropped))
            assert accounts.balanced
            site.core.error = None
            await until(lambda: poller.reporting.sealer.reports == 0, within_s=30.0)

    run(main())


def test_batches_close_on_size() -> None:
    """In batch mode outcomes leave in batches of the size agreed."""

    async def main() -> None:
        config = _with_reporting(_config(10), mode=ReportMode.BATCH, batch_size=6, batch_interval_s=5.0)
        site = SimSite(config)
        async with site.running():
            await asyncio.sleep(9.0)
        sizes = [len(statuses) for _, transport, _, statuses in site.core.reports if transport == "unary"]
        assert sum(sizes) == 20
        assert sizes.count(6) == 3

    run(main())


def test_positions_move_only_when_core_has_the_result() -> None:
    """A results check asks from where core's knowledge ends, not from what was once read."""
    results = CheckConfig(service_type="grpc", service_name="sysmon", details="x:1", results_interval_s=10.0)

    async def main() -> None:
        site = SimSite(site_config([agent_config("a", results)]))
        sequence = iter(range(1, 100))
        agent = site.agents["a"]
        agent.results = lambda request: ResultsResponse(
            available=True, data=b"{}", has_new_data=True, current_sequence=str(next(sequence))
        )
        site.core.error = REFUSED
        async with site.running():
            await asyncio.sleep(25.0)
            asked = [request.last_sequence for request in agent.requests if isinstance(request, ResultsRequest)]
            assert asked == [""] * len(asked)
            assert len(asked) >= 2
            site.core.error = None
            await asyncio.sleep(30.0)
        asked = [request.last_sequence for request in agent.requests if isinstance(request, ResultsRequest)]
        assert asked[-1] not in ("", "1")

    run(main())


def test_w25_the_last_report_is_flushed_and_the_flush_is_bounded() -> None:
    """W25: a stop sends what waits when core can take it, and ends in time when it can't."""

    async def stop_with(core_hangs: bool) -> tuple[float, int]:
        site = SimSite(_config())
        async with site.running() as poller:
            await asyncio.sleep(5.0)
            site.core.error = REFUSED
            await asyncio.sleep(20.0)
            assert poller.reporting.sealer.reports >= 2
            site.core.error = None
            site.core.hang = core_hangs
            assert poller.tree is not None
            begin_s = now_s()
            await poller.tree.stop()
            return now_s() - begin_s, poller.reporting.sealer.reports

    async def main() -> None:
        took_s, left = await stop_with(core_hangs=False)
        assert (left, took_s < 3.0) == (0, True)
        took_s, left = await stop_with(core_hangs=True)
        assert left >= 2
        assert took_s <= 10.1

    run(main())


def test_new_credentials_are_proven_before_the_old_connection_goes() -> None:
    """A good renewal moves reports over; a bad one is told, and the old connection goes on."""

    async def main() -> None:
        config = replace(_config(), security=SecurityConfig(mode=SecurityMode.MTLS, tls=TlsConfig(cert_file="/none")))
        site = SimSite(config)
        async with site.running() as poller:
            assert poller.tree is not None
            await asyncio.sleep(5.0)
            reporter = poller.tree.system.whereis("poller/reporting/core-reporter")
            assert isinstance(reporter, Ref)
            site.transport.unusable["core:50052"] = CallError(
                layer=Layer.CONFIG, code=GrpcCode.FAILED_PRECONDITION, reason="credentials", detail="key mismatch"
            )
            reporter.cast(ReconnectCore())
            await until(lambda: site.of(CredentialsRejected), within_s=1.0)
            before = len(site.core.reports)
            await until(lambda: len(site.core.reports) > before, within_s=15.0)
            site.transport.unusable.clear()
            reporter.cast(ReconnectCore())
            await until(lambda: site.of(CredentialsRenewed), within_s=15.0)
            before = len(site.core.reports)
            await until(lambda: len(site.core.reports) > before, within_s=15.0)
        assert not site.of(CoreLost)

    run(main())


def test_rotations_that_fail_are_one_retry_together() -> None:
    """However often core's bad files change, they are tried again as often as after one change."""

    async def main() -> None:
        site = SimSite(_config())
        async with site.running() as poller:
            assert poller.tree is not None
            await asyncio.sleep(5.0)
            reporter = poller.tree.system.whereis("poller/reporting/core-reporter")
            assert isinstance(reporter, Ref)
            site.transport.unusable["core:50052"] = CallError(
                layer=Layer.CONFIG, code=GrpcCode.FAILED_PRECONDITION, reason="credentials", detail="key mismatch"
            )
            for _ in range(10):
                reporter.cast(ReconnectCore())
                await asyncio.sleep(1.0)
            before = site.transport.opened["core:50052"]
            await asyncio.sleep(10 * RENEWAL_RETRY_S)
            assert 9 <= site.transport.opened["core:50052"] - before <= 10

    run(main())


def test_no_timer_is_lost_or_left_over() -> None:
    """Reports go on whatever moment the loop looks at its timers, and timers don't pile up with the changes."""

    async def main() -> None:
        site = SimSite(_config())
        async with site.running():
            loop = asyncio.get_running_loop()
            assert isinstance(loop, SimLoop)
            await asyncio.sleep(5.0)
            counts = []
            for turn in range(40):
                site.agents["a0"].error = REFUSED if turn % 2 else None
                # Steps that are no fraction of anything, so that timers meet every rounding.
                for _ in range(100):
                    await asyncio.sleep(0.0701)
                counts.append(len(loop.pending_timers()))
            assert max(counts[20:]) <= max(counts[:20]) + 2
            cycles = [event for event in site.of(ReportSent) if event.kind == "cycle"]
            assert len(cycles) == int(now_s() // INTERVAL_S) + (now_s() % INTERVAL_S > 1.5)

    run(main())
