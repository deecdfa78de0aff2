"""Results that stream for minutes, and what happens to their agent's connection and actors meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator

import pytest

from serviceradar_poller.agents import pull
from serviceradar_poller.agents.messages import RenewConnection
from serviceradar_poller.app.poller import AGENTS_PATH, Poller
from serviceradar_poller.config.model import CheckConfig, SecurityConfig, SecurityMode
from serviceradar_poller.errors import CallError, GrpcCode, Layer
from serviceradar_poller.events.polling import AgentLost, CheckFinished, CredentialsRenewed
from serviceradar_poller.otp import Ref
from serviceradar_poller.testing.fakes import FakeAgent
from serviceradar_poller.testing.simloop import run
from serviceradar_poller.testing.simsite import PING, SimSite, agent_config, now_s, site_config, until
from serviceradar_poller.wire.messages import ResultsChunk, ResultsRequest

SYNC = CheckConfig(service_type="sync", service_name="sync", results_interval_s=600.0)
MTLS = SecurityConfig(mode=SecurityMode.MTLS)
CHUNKS = 100


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is large begins at 2 KB."""
    monkeypatch.setattr(pull, "SMALL_BYTES_MAX", 2_000)


def _chunk(index: int, count: int = CHUNKS) -> ResultsChunk:
    return ResultsChunk(
        data=b"[" + b",".join([b'{"ip":"10.0.0.1"}'] * 40) + b"]",
        chunk_index=index,
        total_chunks=count,
        is_final=index == count - 1,
        current_sequence="7",
    )


def _flowing(request: ResultsRequest) -> Iterator[ResultsChunk | float]:
    """A chunk each second, for longer than a plain call may take."""
    for index in range(CHUNKS):
        yield _chunk(index)
        yield 1.0


def _site(stream: Callable[[ResultsRequest], Iterable[ResultsChunk | CallError | float]]) -> tuple[SimSite, FakeAgent]:
    site = SimSite(site_config([agent_config("a", PING, SYNC, security=MTLS)], interval_s=30.0))
    site.agents["a"].stream = stream
    return site, site.agents["a"]


def _actor(poller: Poller, name: str) -> Ref[object]:
    assert poller.tree is not None
    ref = poller.tree.system.whereis(f"{AGENTS_PATH}/a/{name}")
    assert isinstance(ref, Ref)
    return ref


def _pulls(site: SimSite) -> list[CheckFinished]:
    return [event for event in site.of(CheckFinished) if event.kind == "results"]


def test_w23_a_rotation_leaves_a_long_stream_its_time() -> None:
    """A stream that takes longer than a plain call may ends on the old connection, which is closed after it."""

    async def main() -> None:
        site, agent = _site(_flowing)
        async with site.running() as poller:
            await asyncio.sleep(10.0)
            old = poller.slots["a"].client
            _actor(poller, "connection").cast(RenewConnection())
            await until(lambda: site.of(CredentialsRenewed), within_s=5.0)
            await until(lambda: _pulls(site), within_s=120.0)
            await asyncio.sleep(1.0)
            assert [client.closed for client in site.transport.clients if client is old] == [True]
        assert [event.outcome for event in _pulls(site)] == ["available"]
        assert agent.streamed == CHUNKS
        assert not site.of(AgentLost)

    run(main())


def test_w23_what_becomes_of_the_old_connection_says_nothing_of_the_new_one() -> None:
    """Its stream may break, or flow on while the new one is silent."""
    broken = CallError(layer=Layer.HTTP2, code=GrpcCode.UNAVAILABLE, reason="reset", detail="connection reset")

    def breaks(request: ResultsRequest) -> Iterator[ResultsChunk | CallError | float]:
        for index in range(20):
            yield _chunk(index)
            yield 1.0
        yield broken

    async def renewed(
        stream: Callable[[ResultsRequest], Iterable[ResultsChunk | CallError | float]],
    ) -> tuple[SimSite, float]:
        site, agent = _site(stream)
        async with site.running() as poller:
            await asyncio.sleep(10.0)
            _actor(poller, "connection").cast(RenewConnection())
            await until(lambda: site.of(CredentialsRenewed), within_s=5.0)
            agent.stream = _flowing
            agent.hang_methods = {"health", "status"} if stream is _flowing else set()
            await asyncio.sleep(80.0)
            return site, poller.slots["a"].answered_s

    async def main() -> None:
        site, _ = await renewed(breaks)
        assert [event.reason for event in _pulls(site)][:1] == ["reset"]
        assert not site.of(AgentLost)
        site, answered_s = await renewed(_flowing)
        assert site.of(AgentLost), "the connection in use is silent"
        assert answered_s < now_s() - 60.0

    run(main())


def test_an_agent_that_streams_is_alive_although_all_else_is_silent() -> None:
    """While chunks flow, neither checks nor health probes without an answer take the connection from the stream."""

    async def main() -> None:
        site, agent = _site(_flowing)
        async with site.running():
            await until(lambda: agent.streamed, within_s=5.0)
            agent.hang_methods = {"health", "status"}
            await until(lambda: _pulls(site), within_s=120.0)
            agent.hang_methods = set()
        assert [event.outcome for event in _pulls(site)] == ["available"]
        assert not site.of(AgentLost)
        assert site.transport.opened["a:50051"] == 1

    run(main())


@pytest.mark.parametrize("ends", ["crash", "stop"])
def test_a_client_that_is_being_retired_is_closed_with_its_actor(ends: str) -> None:
    """Whatever ends the connection's actor while an old client drains, none is left open."""

    async def main() -> None:
        site, _ = _site(_flowing)
        async with site.running() as poller:
            await asyncio.sleep(10.0)
            _actor(poller, "connection").cast(RenewConnection())
            await until(lambda: site.of(CredentialsRenewed), within_s=5.0)
            await asyncio.sleep(3.0)
            assert poller.tree is not None
            if ends == "crash":
                poller.tree.crash(f"{AGENTS_PATH}/a/connection", RuntimeError("by the test"))
                await asyncio.sleep(200.0)
                assert len([client for client in site.transport.clients if not client.closed]) == 2  # with core's
        assert all(client.closed for client in site.transport.clients)

    run(main())


def _told(site: SimSite) -> list[bool]:
    """Return what core was told of the streamed result, each time."""
    return [
        status.available
        for _, _, _, statuses in site.core.reports
        for status in statuses
        if status.service_name == "sync"
    ]


def test_a_stop_while_a_large_result_comes_in_tells_nothing_of_it() -> None:
    """An orderly stop is no failure of the agent's: the result is pulled when there is a poller again."""

    async def main() -> None:
        site, agent = _site(_flowing)
        async with site.running():
            await until(lambda: agent.streamed > 10, within_s=30.0)
        assert _told(site) == [] and _pulls(site) == []

    run(main())


@pytest.mark.parametrize("victim", ["breaker", "scheduler", "connection"])
def test_a_large_result_whose_actors_start_again_is_pulled_again(victim: str) -> None:
    """What the crash of another actor of the agent cuts has no outcome but that of the pull that follows."""

    async def main() -> None:
        site, agent = _site(_flowing)
        async with site.running() as poller:
            await until(lambda: agent.streamed > 10, within_s=30.0)
            assert poller.tree is not None
            poller.tree.crash(f"{AGENTS_PATH}/a/{victim}", RuntimeError("by the test"))
            await asyncio.sleep(3.0)
            assert len(_streams(agent)) == 2
            await until(lambda: _pulls(site), within_s=120.0)
            await until(lambda: _told(site), within_s=10.0)
        assert [event.outcome for event in _pulls(site)] == ["available"]
        assert all(_told(site))
        assert not site.of(AgentLost)

    run(main())


def _streams(agent: FakeAgent) -> list[float]:
    return [time_s for time_s, call in agent.calls if call == "stream"]


def test_a_crash_of_the_connection_is_no_failed_check() -> None:
    """Checks that were under way run again with the next incarnation; core hears of no trouble meanwhile."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a")], interval_s=30.0))
        agent = site.agents["a"]
        async with site.running() as poller:
            await asyncio.sleep(25.0)
            agent.hang = True
            before = len(agent.requests)
            await until(lambda: len(agent.requests) == before + 2, within_s=30.0)
            assert poller.tree is not None
            poller.tree.crash(f"{AGENTS_PATH}/a/connection", RuntimeError("by the test"))
            await asyncio.sleep(0.3)
            agent.hang = False
            await until(lambda: len(agent.requests) == before + 4, within_s=1.5)
            await asyncio.sleep(40.0)
        assert {event.outcome for event in site.of(CheckFinished)} == {"available"}
        assert all(status.available for _, _, _, statuses in site.core.reports for status in statuses)

    run(main())
