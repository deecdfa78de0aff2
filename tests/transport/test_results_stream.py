"""Streamed results as every transport has to pull them; peers are real servers on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import pytest

from serviceradar_poller.config.model import SecurityConfig
from serviceradar_poller.env import AgentClient, ResultsStream, Transport
from serviceradar_poller.errors import CallError, GrpcCode, Layer
from serviceradar_poller.testing.peers import Context, Peer, serving, unused_port
from serviceradar_poller.wire import codec
from serviceradar_poller.wire.messages import ResultsChunk, ResultsRequest, StatusRequest

Block = Callable[..., SecurityConfig]
REQUEST = ResultsRequest(service_name="lan", service_type="sweep", agent_id="a", poller_id="p", last_sequence="7")
TIMEOUT_S = 5.0


def chunk(index: int, total: int = 0, size_bytes: int = 10) -> ResultsChunk:
    return ResultsChunk(
        data=b"x" * size_bytes,
        is_final=index == total - 1,
        chunk_index=index,
        total_chunks=total,
        current_sequence="8",
        timestamp=1_700_000_000,
    )


class Source:
    """
    Chunks for a peer to send.

    Attributes:
        taken: How many the server has taken so far.
        begun, sent: Set when a call began, and when it has sent all chunks.
        cancelled: Set when the server's call is cancelled.
    """

    def __init__(self, peer: Peer, *chunks: ResultsChunk, then: Callable[[Context], Awaitable[None]] | None = None):
        self.chunks = chunks
        self.then = then
        self.taken = 0
        self.begun = asyncio.Event()
        self.sent = asyncio.Event()
        self.cancelled = asyncio.Event()
        peer.results_stream = self.send

    async def send(self, request: ResultsRequest, context: Context) -> AsyncIterator[bytes]:
        self.begun.set()
        try:
            for each in self.chunks:
                self.taken += 1
                yield codec.encode_results_chunk(each)
            self.sent.set()
            if self.then is not None:
                await self.then(context)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise


async def hang(context: Context) -> None:
    await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def serving_to(
    transport: Transport, security: SecurityConfig | None = None
) -> AsyncIterator[tuple[Peer, AgentClient]]:
    async with serving() as peer:
        client = await transport.agent(peer.address, security)
        try:
            yield peer, client
        finally:
            await client.close()


async def rest(stream: ResultsStream) -> list[ResultsChunk]:
    chunks = []
    while (each := await stream.read()) is not None:
        chunks.append(each)
    return chunks


async def failure(call: Awaitable[object]) -> CallError:
    with pytest.raises(CallError) as caught:
        await call
    return caught.value


@pytest.mark.parametrize("count", [0, 1, 40])
def test_every_chunk_arrives_once_and_in_order(transport: Transport, count: int) -> None:
    """What the agent sends is read chunk by chunk, then the end, again and again; the request arrives as it was."""
    sent = [chunk(index, count, 100_000) for index in range(count)]

    async def main() -> None:
        async with serving_to(transport) as (peer, client):
            Source(peer, *sent)
            stream = client.stream_results(REQUEST, timeout_s=TIMEOUT_S)
            assert await rest(stream) == sent
            assert await stream.read() is None
            assert peer.requests == [REQUEST]
            await stream.cancel()

    asyncio.run(main())


def test_over_mtls(transport: Transport, pki: Path, block: Block) -> None:
    """A chunk larger than gRPC's usual 4 MiB passes through a TLS connection."""

    async def main() -> None:
        credentials = grpc.ssl_server_credentials(
            [((pki / "agent-key.pem").read_bytes(), (pki / "agent.pem").read_bytes())],
            root_certificates=(pki / "root.pem").read_bytes(),
            require_client_auth=True,
        )
        async with serving(credentials) as peer:
            sent = [chunk(0, 2, 5_000_000), chunk(1, 2)]
            Source(peer, *sent)
            client = await transport.agent(peer.address, block())
            assert await rest(client.stream_results(REQUEST, timeout_s=TIMEOUT_S)) == sent
            await client.close()

    asyncio.run(main())


def test_nothing_is_asked_for_before_the_first_read(transport: Transport) -> None:
    """A stream that nobody reads costs the agent nothing, and cancelling it either."""

    async def main() -> None:
        async with serving_to(transport) as (peer, client):
            stream = client.stream_results(REQUEST, timeout_s=TIMEOUT_S)
            await client.get_status(StatusRequest(), timeout_s=TIMEOUT_S)
            assert peer.requests == [StatusRequest()]
            await stream.cancel()
            assert (await failure(stream.read())).reason == "cancelled"
            assert peer.requests == [StatusRequest()]

    asyncio.run(main())


@pytest.mark.slow
def test_no_demand_stalls_the_agent(transport: Transport) -> None:
    """What an agent can send ahead of the reader is bounded by the window, and nothing of it is lost."""
    size_bytes, count = 100_000, 1000
    sent = [chunk(index, count, size_bytes) for index in range(count)]

    async def main() -> None:
        async with serving_to(transport) as (peer, client):
            source = Source(peer, *sent)
            stream = client.stream_results(REQUEST, timeout_s=60.0)
            for reads in range(1, 31):
                assert await stream.read() == sent[reads - 1]
                if reads in (1, 5, 30):
                    before = -1
                    while source.taken != before:  # until it stands still
                        before = source.taken
                        await asyncio.sleep(0.2)
                    assert (source.taken - reads) * size_bytes < 12 * 1024 * 1024
            assert await rest(stream) == sent[30:]

    asyncio.run(main())


@pytest.mark.parametrize("before", [0, 2])
def test_an_error_ends_the_stream(transport: Transport, before: int) -> None:
    """The agent's error comes after the chunks before it, and stays."""

    async def refuse(context: Context) -> None:
        await context.abort(grpc.StatusCode.NOT_FOUND, "No sweep service configured")

    async def main() -> None:
        async with serving_to(transport) as (peer, client):
            Source(peer, *(chunk(index) for index in range(before)), then=refuse)
            stream = client.stream_results(REQUEST, timeout_s=TIMEOUT_S)
            for index in range(before):
                assert await stream.read() == chunk(index)
            for _ in range(2):
                error = await failure(stream.read())
                assert (error.code, error.layer, error.reason) == (GrpcCode.NOT_FOUND, Layer.GRPC, "not_found")
                assert error.detail == "No sweep service configured"

    asyncio.run(main())


def test_an_agent_without_streams(transport: Transport) -> None:
    """UNIMPLEMENTED is told as such."""

    async def refuse(context: Context) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such results")

    async def main() -> None:
        async with serving_to(transport) as (peer, client):
            Source(peer, then=refuse)
            error = await failure(client.stream_results(REQUEST, timeout_s=TIMEOUT_S).read())
            assert error.reason == "unimplemented"

    asyncio.run(main())


def test_nobody_there(transport: Transport) -> None:
    """A refused connection is a refused stream."""

    async def main() -> None:
        client = await transport.agent(f"127.0.0.1:{unused_port()}", None)
        assert (await failure(client.stream_results(REQUEST, timeout_s=TIMEOUT_S).read())).reason == "refused"
        await client.close()

    asyncio.run(main())


@pytest.mark.slow
def test_the_time_is_for_the_whole_stream(transport: Transport) -> None:
    """An agent that goes on sending, but too slowly, is cut off at the deadline, counted from the request."""

    async def drip(request: ResultsRequest, context: Context) -> AsyncIterator[bytes]:
        for index in range(1000):
            yield codec.encode_results_chunk(chunk(index))
            await asyncio.sleep(0.05)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with serving_to(transport) as (peer, client):
            peer.results_stream = drip
            stream = client.stream_results(REQUEST, timeout_s=0.5)
            began_s = loop.time()
            error = await failure(rest(stream))
            assert (error.layer, error.reason) == (Layer.DEADLINE, "timeout")
            assert 0.4 < loop.time() - began_s < 20.0  # all of it would take fifty seconds
            late = client.stream_results(REQUEST, timeout_s=0.0)
            assert (await failure(late.read())).reason == "timeout"

    asyncio.run(main())


def test_a_cancelled_stream_is_over(transport: Transport) -> None:
    """After cancel() the agent's call is cancelled, no task of it is left, and the connection serves on."""

    async def main() -> None:
        async with serving_to(transport) as (peer, client):
            await client.get_status(StatusRequest(), timeout_s=TIMEOUT_S)
            source = Source(peer, chunk(0), then=hang)
            stream = client.stream_results(REQUEST, timeout_s=TIMEOUT_S)
            assert await stream.read() == chunk(0)
            tasks = asyncio.all_tasks()
            await stream.cancel()
            await stream.cancel()
            assert asyncio.all_tasks() <= tasks
            async with asyncio.timeout(TIMEOUT_S):
                await source.cancelled.wait()
            assert (await failure(stream.read())).reason == "cancelled"
            assert (await client.get_status(StatusRequest(), timeout_s=TIMEOUT_S)).available

    asyncio.run(main())


def test_cancelling_wakes_the_reader(transport: Transport) -> None:
    """A read under way fails with ``cancelled`` when another task cancels the stream; its own task is not cancelled."""

    async def main() -> None:
        async with serving_to(transport) as (peer, client):
            Source(peer, chunk(0), then=hang)
            stream = client.stream_results(REQUEST, timeout_s=TIMEOUT_S)
            await stream.read()
            reader = asyncio.create_task(failure(stream.read()))
            await asyncio.sleep(0)
            await stream.cancel()
            assert (await reader).reason == "cancelled"

    asyncio.run(main())


@pytest.mark.parametrize("before", [0, 1])
def test_a_cancelled_reader_cancels_the_call(transport: Transport, before: int) -> None:
    """Cancelling the task that reads ends the call at the agent, and the cancellation goes on."""

    async def main() -> None:
        async with serving_to(transport) as (peer, client):
            source = Source(peer, *(chunk(index) for index in range(before)), then=hang)
            stream = client.stream_results(REQUEST, timeout_s=TIMEOUT_S)
            for _ in range(before):
                await stream.read()
            reader = asyncio.create_task(stream.read())
            await asyncio.sleep(0)
            async with asyncio.timeout(TIMEOUT_S):
                await (source.begun if before == 0 else source.sent).wait()
            reader.cancel()
            await asyncio.wait({reader})
            assert reader.cancelled()
            async with asyncio.timeout(TIMEOUT_S):
                await source.cancelled.wait()
            assert (await failure(stream.read())).reason == "cancelled"

    asyncio.run(main())


def test_closing_the_client_ends_its_streams(transport: Transport) -> None:
    """A read under way fails with ``closed``, and so does every later one."""

    async def main() -> None:
        async with serving_to(transport) as (peer, client):
            Source(peer, chunk(0), then=hang)
            stream = client.stream_results(REQUEST, timeout_s=TIMEOUT_S)
            await stream.read()
            reader = asyncio.create_task(failure(stream.read()))
            await asyncio.sleep(0)
            await client.close()
            assert (await reader).reason == "closed"
            assert (await failure(stream.read())).reason == "closed"
            assert (await failure(client.stream_results(REQUEST, timeout_s=1.0).read())).reason == "closed"

    asyncio.run(main())


def test_a_connection_that_breaks(transport: Transport) -> None:
    """A stream whose connection breaks off fails after the chunks that came."""

    async def main() -> None:
        async with serving_to(transport) as (peer, client):
            Source(peer, chunk(0), then=hang)
            stream = client.stream_results(REQUEST, timeout_s=TIMEOUT_S)
            assert await stream.read() == chunk(0)
            await peer.stop()
            error = await failure(stream.read())
            assert error.code in (GrpcCode.UNAVAILABLE, GrpcCode.CANCELLED)

    asyncio.run(main())


@pytest.mark.parametrize(
    "bad", [b"\xff\xff\xff", codec.encode_results_chunk(chunk(0, 0, 70_000_000))], ids=["decode", "large"]
)
def test_unusable_chunks(transport: Transport, bad: bytes) -> None:
    """A chunk that can't be read or exceeds the receive limit ends the stream, at the agent too."""

    async def main() -> None:
        async with serving_to(transport) as (peer, client):
            cancelled = asyncio.Event()

            async def send(request: ResultsRequest, context: Context) -> AsyncIterator[bytes]:
                try:
                    yield bad
                    await asyncio.Event().wait()
                except (asyncio.CancelledError, GeneratorExit):
                    cancelled.set()
                    raise

            peer.results_stream = send
            stream = client.stream_results(REQUEST, timeout_s=TIMEOUT_S)
            for _ in range(2):
                error = await failure(stream.read())
                assert (error.layer, error.reason) == (Layer.APPLICATION, "decode" if len(bad) < 10 else "too_large")
            async with asyncio.timeout(TIMEOUT_S):
                await cancelled.wait()

    asyncio.run(main())


def test_a_request_that_cannot_be_written(transport: Transport) -> None:
    """A lone surrogate in the request fails the first read, not the caller of stream_results."""

    async def main() -> None:
        async with serving_to(transport) as (_, client):
            stream = client.stream_results(ResultsRequest(details="\ud800"), timeout_s=TIMEOUT_S)
            assert (await failure(stream.read())).reason == "encode"

    asyncio.run(main())


@pytest.mark.slow
def test_no_stream_leaves_anything_behind(transport: Transport) -> None:
    """However streams end, nothing of them is left once their client is closed: no task, no descriptor."""

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    async def end_in_every_way(source: Source, client: AgentClient) -> None:
        for round_ in range(60):
            source.then = hang if round_ % 3 else None
            stream = client.stream_results(REQUEST, timeout_s=TIMEOUT_S)
            for _ in range(round_ % 5):
                await stream.read()
            match round_ % 3:
                case 0:
                    await rest(stream)
                case 1:
                    await stream.cancel()
                case _:
                    reader = asyncio.create_task(rest(stream))
                    await asyncio.sleep(0.002 * (round_ % 4))
                    reader.cancel()
                    await asyncio.wait({reader})

    async def main() -> None:
        async with serving() as peer:
            source = Source(peer, *(chunk(index) for index in range(5)))
            opened = []
            for _ in range(2):
                client = await transport.agent(peer.address, None)
                await end_in_every_way(source, client)
                await client.close()
                async with asyncio.timeout(TIMEOUT_S):
                    while left := [task for task in asyncio.all_tasks() if _of_a_stream(task)]:
                        await asyncio.wait(left)
                opened.append(descriptors())
            assert opened[1] <= opened[0] + 2  # the server's own

    asyncio.run(main())


def _of_a_stream(task: asyncio.Task[object]) -> bool:
    return "StreamResults" in repr(task) or "_AioCall" in repr(task)
