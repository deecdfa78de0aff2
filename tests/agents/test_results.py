"""Results that come as a stream: pulled, merged, told once, and tried again soon when they break."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import replace

import pytest

from serviceradar_poller.agents import results
from serviceradar_poller.config.model import CheckConfig
from serviceradar_poller.errors import CallError, GrpcCode, Layer
from serviceradar_poller.events.polling import CheckFinished
from serviceradar_poller.logic.merge import MergeLimits
from serviceradar_poller.logic.sequence import SEQUENCE_BYTES_MAX
from serviceradar_poller.reporting.spool import MemoryStore
from serviceradar_poller.testing.fakes import FakeResolver
from serviceradar_poller.testing.simloop import run
from serviceradar_poller.testing.simsite import PING, SimSite, agent_config, site_config, until
from serviceradar_poller.wire.messages import ResultsChunk, ResultsRequest, ResultsResponse, ServiceStatus

SYNC = CheckConfig(service_type="sync", service_name="sync", results_interval_s=600.0)
SWEEP = CheckConfig(service_type="sweep", service_name="network_sweep", results_interval_s=600.0)

Items = Iterable[ResultsChunk | float | CallError]


def _chunks(*parts: bytes, sequence: str = "7") -> list[ResultsChunk]:
    return [
        ResultsChunk(
            data=part,
            chunk_index=index,
            total_chunks=len(parts),
            is_final=index == len(parts) - 1,
            current_sequence=sequence,
        )
        for index, part in enumerate(parts)
    ]


def _told(site: SimSite, name: str) -> list[ServiceStatus]:
    return [
        status
        for _, _, _, statuses in site.core.reports
        for status in statuses
        if status.service_name == name and status.available
    ]


def test_a_sync_reaches_core_whole_and_once() -> None:
    """Chunks become one bare array under the type sync; the next request goes on from what core has."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a", PING, SYNC)]))
        site.agents["a"].stream = lambda request: _chunks(b'[{"ip":"10.0.0.1"}]', b'[{"ip":"10.0.0.2"}]')
        async with site.running() as poller:
            await asyncio.sleep(30.0)
            (status,) = {status.message: status for status in _told(site, "sync")}.values()
            assert json.loads(status.message) == [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}]
            assert (status.service_type, status.source) == ("sync", "results")
            assert poller.reporting.store.positions()["a", "sync:sync"] == "7"
            await asyncio.sleep(600.0)
        asked = [request for request in site.agents["a"].requests if isinstance(request, ResultsRequest)]
        assert [request.last_sequence for request in asked] == ["", "7"]

    run(main())


def test_w9_a_sweep_without_news_is_not_told() -> None:
    """W9: a sweep that has not changed is one empty final chunk, and nothing for core."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a", PING, SWEEP)]))
        agent = site.agents["a"]
        agent.stream = lambda request: (
            _chunks(b'{"network":"10.0.0.0/24","hosts":[{"host":"10.0.0.1"}]}')
            if request.last_sequence != "7"
            else _chunks(b"{}")
        )
        async with site.running():
            await asyncio.sleep(1_300.0)
        sweeps = {status.message for status in _told(site, "network_sweep")}
        (message,) = sweeps
        data = json.loads(message)["data"]
        assert data["hosts"] == [{"host": "10.0.0.1"}]
        assert data["network"] == "10.0.0.0/24"
        outcomes = [event.outcome for event in site.of(CheckFinished) if event.kind == "results"]
        assert outcomes == ["available"] * 3

    run(main())


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ([*_chunks(b"[1]", b"[2]")[:1]], "stream_no_final"),
        ([*_chunks(b"[1]", b"[2]", b"[3]")[::2]], "stream_gap"),
        ([*_chunks(b"[1]", b"oops")], "stream_parse"),
        (
            [
                *_chunks(b"[1]", b"[2]")[:1],
                CallError(layer=Layer.GRPC, code=GrpcCode.INTERNAL, detail="x", reason="internal"),
            ],
            "internal",
        ),
    ],
)
def test_w22_a_stream_that_breaks_leaves_nothing_and_is_tried_again_soon(
    items: list[ResultsChunk | CallError], reason: str
) -> None:
    """W22: nothing of a broken stream is told but that it failed, and why; the next try comes within seconds."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a", PING, SYNC)]))
        agent = site.agents["a"]
        answers: list[Items] = [items, _chunks(b"[1,2,3]")]
        agent.stream = lambda request: answers.pop(0) if len(answers) > 1 else answers[0]
        async with site.running():
            await until(lambda: _told(site, "sync"), within_s=40.0)
        first = next(event for event in site.of(CheckFinished) if event.kind == "results")
        assert (first.outcome, first.reason) == ("failed", reason)
        assert json.loads(_told(site, "sync")[0].message) == [1, 2, 3]

    run(main())


def test_a_missing_service_is_told_for_a_sync_and_not_for_a_sweep() -> None:
    """NOT_FOUND: a sweep is simply not configured there; a sync that is missing is unavailable."""
    missing = CallError(
        layer=Layer.GRPC, code=GrpcCode.NOT_FOUND, detail="No sweep service configured", reason="not_found"
    )

    async def main() -> None:
        site = SimSite(site_config([agent_config("a", PING, SYNC, SWEEP)]))
        site.agents["a"].stream = lambda request: (missing,)
        async with site.running():
            await asyncio.sleep(20.0)
        assert site.told() == {("a", "ping"): True, ("a", "sync"): False}
        assert json.loads(site.core.latest()["a", "sync"].message) == {"error": "No sweep service configured"}

    run(main())


def _grpc(code: GrpcCode) -> CallError:
    return CallError(layer=Layer.GRPC, code=code, detail="x", reason=code.name.lower())


def _results(site: SimSite) -> list[CheckFinished]:
    return [event for event in site.of(CheckFinished) if event.kind == "results"]


def test_a_stream_that_breaks_after_its_first_chunk_is_not_pulled_again_at_once() -> None:
    """All of it would be read again: the next pull is that of a failed check; without a chunk it is a call like any."""

    async def main(before: int, pulls: int) -> None:
        site = SimSite(site_config([agent_config("a", PING, SYNC)]))
        agent = site.agents["a"]
        async with site.running():
            await until(lambda: _told(site, "sync"), within_s=10.0)  # the agent is known
            agent.stream = lambda request: [*_chunks(b"[1]", b"[2]")[:before], _grpc(GrpcCode.UNAVAILABLE)]
            agent.calls.clear()
            await until(lambda: len(_results(site)) == 2, within_s=610.0)
            await asyncio.sleep(3.0)
            assert (_results(site)[1].reason, _results(site)[1].attempts) == ("unavailable", pulls)
            assert [call for _, call in agent.calls].count("stream") == pulls

    run(main(before=1, pulls=1))
    run(main(before=0, pulls=3))


@pytest.mark.parametrize("check", [SYNC, SWEEP])
def test_a_service_that_goes_missing_in_the_middle_is_a_failure(check: CheckConfig) -> None:
    """NOT_FOUND after a chunk is no service that is not there: what had come is lost, which is told and mended."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a", PING, check)]))
        answers: list[Items] = [[*_chunks(b"[1]", b"[2]")[:1], _grpc(GrpcCode.NOT_FOUND)], _chunks(b"[1,2,3]")]
        site.agents["a"].stream = lambda request: answers.pop(0) if len(answers) > 1 else answers[0]
        async with site.running():
            await until(lambda: _told(site, check.service_name), within_s=20.0)
        first = next(event for event in site.of(CheckFinished) if event.kind == "results")
        assert (first.outcome, first.reason) == ("failed", "not_found")

    run(main())


GRPC = CheckConfig(service_type="grpc", service_name="g", results_interval_s=60.0)


@pytest.mark.parametrize("check", [SYNC, GRPC])
def test_a_position_that_is_too_long_is_a_failure_and_not_kept(check: CheckConfig) -> None:
    """It would go with every request from then on, and fail each: the check says so, and goes on from where it was."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a", PING, check)]))
        agent = site.agents["a"]
        sequences = ["7", "s" * (SEQUENCE_BYTES_MAX + 1), "ä" * (SEQUENCE_BYTES_MAX // 2)]

        def sequence() -> str:
            return sequences.pop(0) if len(sequences) > 1 else sequences[0]

        agent.stream = lambda request: _chunks(b"[1]", sequence=sequence())
        agent.results = lambda request: ResultsResponse(
            available=True, data=b"{}", agent_id="a", has_new_data=True, current_sequence=sequence()
        )
        async with site.running():
            await until(lambda: len(_results(site)) == 4, within_s=1_900.0)
        reason = "stream_too_large" if check is SYNC else "too_large"
        assert [event.reason for event in _results(site)] == ["", reason, "", ""]
        assert "current_sequence has 4097 bytes, more than 4096" in _results(site)[1].error
        asked = [request.last_sequence for request in agent.requests if isinstance(request, ResultsRequest)]
        assert asked == ["", "7", "7", sequences[0]]

    run(main())


def test_a_position_from_the_spool_that_is_too_long_is_none() -> None:
    """What an older version kept is not sent: the check begins anew, and its next position takes that one's place."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a", PING, GRPC)]))
        async with site.running() as poller:
            store = poller.reporting.store
            assert isinstance(store, MemoryStore)
            store._positions["a", "grpc:g"] = "s" * 5_000_000
            await asyncio.sleep(70.0)
            assert poller.reporting.store.positions()["a", "grpc:g"] == "1"
        asked = [request.last_sequence for request in site.agents["a"].requests if isinstance(request, ResultsRequest)]
        assert asked == ["", "1"]

    run(main())


def test_the_wait_for_an_address_is_part_of_a_stream_s_time() -> None:
    """A first pull whose agent's name is looked up in vain takes no longer than any other, and is made all the same."""

    async def main(time_s: float) -> None:
        check = replace(SYNC, results_interval_s=time_s)
        site = SimSite(site_config([agent_config("a", PING, check)], interval_s=time_s))
        resolver = site.env.resolver
        assert isinstance(resolver, FakeResolver)
        resolver.latency_s = 100.0
        site.agents["a"].hang_methods = {"stream"}
        async with site.running():
            await until(lambda: _results(site), within_s=40.0)
            assert _results(site)[0].latency_s == pytest.approx(time_s, abs=0.1)
            assert "stream" in [call for _, call in site.agents["a"].calls]

    run(main(20.0))
    run(main(4.0))


def test_an_endless_stream_ends_at_the_limit_and_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A result above what is held is told as failed; other checks go on in time."""
    monkeypatch.setattr(results, "STREAM_LIMITS", MergeLimits(total_bytes_max=10_000))

    def endless(request: ResultsRequest) -> Items:
        index = 0
        while True:
            yield 0.01
            yield ResultsChunk(data=b"[" + b"1," * 200 + b"1]", chunk_index=index)
            index += 1

    async def main() -> None:
        site = SimSite(site_config([agent_config("a", PING, SYNC), agent_config("b")]))
        site.agents["a"].stream = endless
        async with site.running():
            await asyncio.sleep(25.0)
        failed = [event for event in site.of(CheckFinished) if event.kind == "results"]
        assert {event.reason for event in failed} == {"stream_too_large"}
        assert all(event.lateness_s < 0.1 for event in site.of(CheckFinished))
        assert site.told()["a", "sync"] is False
        assert site.told()["b", "ping"] is True

    run(main())
