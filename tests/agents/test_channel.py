"""The way of a streamed result through an agent's channel: who may ask, and what is told of the agent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import pytest

from serviceradar_poller.agents.channel import AgentChannel, AgentStream
from serviceradar_poller.agents.evidence import CallCut
from serviceradar_poller.agents.messages import CallFailed, CallSucceeded
from serviceradar_poller.agents.slot import AgentSlot, Reach
from serviceradar_poller.app.poller import new_poller
from serviceradar_poller.errors import CallError, GrpcCode, Layer
from serviceradar_poller.logic.breaker import BreakerState
from serviceradar_poller.testing.fakes import REFUSED, FakeAgent, FakeAgentClient
from serviceradar_poller.testing.simloop import run
from serviceradar_poller.testing.simsite import SimSite, agent_config, now_s, site_config
from serviceradar_poller.wire.messages import ResultsChunk, ResultsRequest, StatusRequest

REQUEST = ResultsRequest(service_name="lan", service_type="sweep", last_sequence="7")
STATUS = StatusRequest(service_name="ping", service_type="icmp", agent_id="a", poller_id="p", details="")
MISSING = CallError(layer=Layer.GRPC, code=GrpcCode.NOT_FOUND, reason="not_found", detail="No sweep service configured")


class Bench:
    """A channel to a fake agent without the actors around it; ``told`` is what they would hear."""

    def __init__(self) -> None:
        site = SimSite(site_config([agent_config("a")]))
        self.agent: FakeAgent = site.agents["a"]
        self.slot: AgentSlot = new_poller(site.config, site.env, source_ip="127.0.0.1").slots["a"]
        self.slot.client = FakeAgentClient(self.agent)
        self.slot.reach = Reach.UP
        self.told: list[CallSucceeded | CallFailed] = []
        self.channel = AgentChannel(self.slot, tell=self.told.append)

    async def stream(self, timeout_s: float = 10.0) -> AgentStream:
        return await self.channel.stream_results(REQUEST, timeout_s=timeout_s)


def chunks(count: int) -> list[ResultsChunk]:
    return [ResultsChunk(data=b"[]", chunk_index=i, total_chunks=count, is_final=i == count - 1) for i in range(count)]


def _holding(
    *items: ResultsChunk | CallError | float,
) -> Callable[[ResultsRequest], Iterable[ResultsChunk | CallError | float]]:
    return lambda request: items


async def failure(stream: AgentStream) -> CallError:
    with pytest.raises(CallError) as caught:
        await stream.read()
    return caught.value


def test_chunks_are_pulled_one_by_one() -> None:
    """Each read takes one chunk from the agent, none is taken before, and a known agent is not told of again."""

    async def main() -> None:
        bench = Bench()
        bench.agent.stream = lambda request: iter(chunks(3))
        stream = await bench.stream()
        assert bench.agent.requests == []
        for taken, expected in enumerate(chunks(3), 1):
            assert await stream.read() == expected
            assert bench.agent.streamed == taken
        assert await stream.read() is None
        assert await stream.read() is None
        assert bench.agent.requests == [REQUEST]
        assert bench.told == []

    run(main())


def test_each_chunk_is_a_sign_of_life() -> None:
    """An agent that streams has answered just now, and one that was taken for lost is told of again."""

    async def main() -> None:
        bench = Bench()
        bench.agent.stream = _holding(*(item for chunk in chunks(3) for item in (2.0, chunk)))
        stream = await bench.stream()
        await stream.read()
        await stream.read()
        assert bench.slot.answered_s == now_s() and bench.told == []
        bench.slot.reach = Reach.DOWN
        await stream.read()
        assert bench.slot.answered_s == now_s() and bench.told == [CallSucceeded()]

    run(main())


def test_an_endless_stream_is_taken_as_far_as_it_is_read() -> None:
    """An agent that never ends costs what is read of it."""

    def endless() -> Iterator[ResultsChunk]:
        while True:
            yield ResultsChunk(data=b"[]")

    async def main() -> None:
        bench = Bench()
        bench.agent.stream = lambda request: endless()
        stream = await bench.stream()
        for _ in range(5):
            await stream.read()
        await stream.cancel()
        await stream.cancel()
        assert (bench.agent.streamed, bench.agent.streams_cancelled) == (5, 1)
        assert (await failure(stream)).reason == "cancelled"
        assert bench.told == []

    run(main())


def test_the_first_answer_is_told_once() -> None:
    """An agent that was not known to be there is told of by the first chunk, also when there is only an end."""

    async def main() -> None:
        for count in (0, 2):
            bench = Bench()
            bench.slot.reach = Reach.UNKNOWN
            bench.agent.stream = _holding(*chunks(count))
            stream = await bench.stream()
            while await stream.read() is not None:
                assert bench.told == [CallSucceeded()]
                bench.slot.reach = Reach.UP
            assert bench.told == [CallSucceeded()]

    run(main())


@pytest.mark.parametrize("before", [0, 1])
def test_a_failure_is_told_once_and_stays(before: int) -> None:
    """What ends a stream is told, at its first read or a later one; reading again tells nothing new."""

    async def main() -> None:
        bench = Bench()
        bench.agent.stream = lambda request: (*chunks(2)[:before], MISSING)
        stream = await bench.stream()
        for _ in range(before):
            await stream.read()
        errors = [await failure(stream) for _ in range(2)]
        assert [error.reason for error in errors] == ["not_found"] * 2
        assert bench.told == [CallFailed(errors[0], began_s=0.0)]

    run(main())


def test_a_slow_stream_is_not_a_lost_agent() -> None:
    """Time that runs out before the first chunk says something of the agent; after it, only of the stream."""

    async def main() -> None:
        for before, told in ((0, 1), (1, 0)):
            bench = Bench()
            bench.agent.stream = _holding(*chunks(2)[:before], 60.0, *chunks(2))
            stream = await bench.stream(timeout_s=5.0)
            for _ in range(before):
                await stream.read()
            assert (await failure(stream)).layer is Layer.DEADLINE
            assert now_s() % 5.0 < 0.01 or before
            assert len(bench.told) == told

    run(main())


def test_a_call_cut_by_a_replacement_says_so_and_nothing_of_the_agent() -> None:
    """A call whose connection was put out of use fails for that, or for what the agent is lost for."""

    async def main() -> None:
        for lost, reason, detail in (
            (None, "replaced", "the connection was replaced while the call was under way"),
            (REFUSED, "refused", "connection refused; the connection was replaced"),
        ):
            bench = Bench()
            bench.agent.hang = True
            bench.slot.lost = lost
            stream = await bench.stream()
            client, bench.slot.client = bench.slot.client, FakeAgentClient(bench.agent)
            assert client is not None
            reader = asyncio.create_task(failure(stream))
            await asyncio.sleep(1.0)
            await client.close()
            error = await reader
            assert (error.reason, error.detail) == (reason, detail)
            assert bench.told == []

    run(main())


def test_calls_that_find_no_client_or_lose_it_have_no_outcome() -> None:
    """Without a client there is no actor for the connection either: nothing is told of the agent, nor of the check."""

    async def main() -> None:
        bench = Bench()
        bench.agent.hang = True
        client = bench.slot.client
        assert client is not None
        stream = await bench.stream()
        calls: list[asyncio.Task[object]] = [
            asyncio.create_task(bench.channel.get_status(STATUS, timeout_s=10.0)),
            asyncio.create_task(bench.channel.get_results(REQUEST, timeout_s=10.0)),
            asyncio.create_task(stream.read()),
        ]
        await asyncio.sleep(1.0)
        bench.slot.client = None
        await client.close()
        calls.append(asyncio.create_task(bench.stream()))
        await asyncio.wait(calls)
        assert [type(call.exception()) for call in calls] == [CallCut] * 4
        assert bench.told == [] and not bench.slot.calls

    run(main())


def test_a_cancelled_reader_cancels_the_stream() -> None:
    """Cancelling the task that reads ends the call, and is not swallowed."""

    async def main() -> None:
        bench = Bench()
        bench.agent.hang_methods.add("stream")
        stream = await bench.stream()
        reader = asyncio.create_task(stream.read())
        await asyncio.sleep(1.0)
        reader.cancel()
        await asyncio.wait({reader})
        assert reader.cancelled()
        assert bench.agent.streams_cancelled == 1
        assert bench.told == []

    run(main())


def test_who_is_not_asked() -> None:
    """Unusable settings, an open breaker and a full bucket refuse a stream before it begins."""

    async def main() -> None:
        async def refusal(bench: Bench) -> str:
            with pytest.raises(CallError) as caught:
                await bench.stream(timeout_s=0.001)
            assert bench.agent.calls == []
            return caught.value.reason

        bench = Bench()
        bench.slot.fault = REFUSED
        assert await refusal(bench) == "refused"
        bench = Bench()
        bench.slot.breaker = replace(bench.slot.breaker, state=BreakerState.OPEN, cause="refused")
        assert await refusal(bench) == "breaker_open"
        bench = Bench()
        for _ in range(int(bench.slot.rate.burst)):
            await bench.stream()
        assert await refusal(bench) == "rate_limited"

    run(main())


def _waiting() -> tuple[Bench, asyncio.Event]:
    """Return a channel whose client is being made."""
    bench = Bench()
    bench.slot.client, bench.slot.reach = None, Reach.UNKNOWN
    bench.slot.making = asyncio.Event()
    return bench, bench.slot.making


def _made(bench: Bench, making: asyncio.Event) -> None:
    bench.slot.client, bench.slot.making = FakeAgentClient(bench.agent), None
    making.set()


def test_a_client_that_came_late_leaves_less_time_for_a_turn() -> None:
    """A call that has waited for its client asks for a connection with the time that is left, or is not made."""

    async def main() -> None:
        bench, making = _waiting()
        call = asyncio.create_task(bench.channel.get_status(STATUS, timeout_s=10.0))
        await asyncio.sleep(8.0)
        gate = bench.slot.fleet.gate
        while (gate.reserve(wait_s_max=100.0) or 0.0) < 5.0:
            pass
        _made(bench, making)
        await asyncio.wait({call})
        error = call.exception()
        assert isinstance(error, CallError) and error.reason == "connect_limited"
        assert now_s() < 10.0
        assert bench.told == []  # it says nothing of the agent

    run(main())


def test_who_asks_as_the_client_is_made_may_be_first() -> None:
    """Calls that waited for the client and one that begins just then are all made."""

    async def main() -> None:
        bench, making = _waiting()
        calls = [asyncio.create_task(bench.channel.get_status(STATUS, timeout_s=10.0)) for _ in range(2)]
        await asyncio.sleep(3.0)
        calls.append(asyncio.create_task(bench.channel.get_status(STATUS, timeout_s=10.0)))
        _made(bench, making)
        answers = await asyncio.gather(*calls)
        assert all(answer.available for answer in answers)

    run(main())
