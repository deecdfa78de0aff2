"""Acceptance case B11 over the wire: without demand, HTTP/2 flow control stops the peer."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import grpc.aio
import pytest

from serviceradar_poller.flow import END, End, Event, Source, flow
from serviceradar_poller.testing.flow import site

CHUNK_BYTES = 64 * 1024
CHUNKS = 400
METHOD = "/lab.Results/Stream"
#: What gRPC takes in before anybody reads: its window per stream, which it may let grow with the bandwidth it
#: measures unless told not to, and what lies in socket buffers on both sides.
WINDOW_BYTES_MAX = 8 << 20


class Agent:
    """A server whose stream counts what it could hand to gRPC."""

    def __init__(self) -> None:
        self.sent = 0
        self.cut = asyncio.Event()
        self._server = grpc.aio.server()
        handler: Any = grpc.unary_stream_rpc_method_handler(self._stream)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("lab.Results", {"Stream": handler}),)
        )

    async def start(self) -> str:
        """Listen and return where."""
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return f"127.0.0.1:{port}"

    async def stop(self) -> None:
        """End every call."""
        await self._server.stop(None)

    async def _stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            for index in range(CHUNKS):
                yield index.to_bytes(4, "big") + bytes(CHUNK_BYTES)
                self.sent += 1
        finally:
            if self.sent < CHUNKS:
                self.cut.set()


class Results(Source[bytes]):
    """One read for one unit of demand."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.reads = 0

    async def produce(self, demand: int) -> Sequence[bytes] | End:
        """Read one chunk."""
        self.reads += 1
        chunk = await self._call.read()
        return END if chunk is grpc.aio.EOF else (chunk,)

    async def close(self) -> None:
        """End the call."""
        self._call.cancel()


async def steady(agent: Agent) -> int:
    """Wait until the agent can send no more, and return how many chunks it sent."""
    sent, same = -1, 0
    while same < 5 or sent == 0:  # connecting may take longer than five looks
        same = same + 1 if agent.sent == sent else 0
        sent = agent.sent
        await asyncio.sleep(0.05)
    return sent


@pytest.mark.slow
def test_b11_without_demand_the_agent_stalls_on_its_window() -> None:
    """A consumer that does not come back leaves the stream unread; the agent could send a window and no more."""

    async def main() -> None:
        agent = Agent()
        address = await agent.start()
        async with grpc.aio.insecure_channel(address, options=[("grpc.http2.bdp_probe", 0)]) as channel:
            stream: Any = channel.unary_stream(METHOD)
            gate, seen = asyncio.Event(), list[int]()

            async def write(event: Event[bytes]) -> None:
                await gate.wait()
                seen.append(int.from_bytes(event.data[:4], "big"))

            async with site(strict=False) as here:
                source = Results(stream(b""))
                pipeline = flow(source, id="p").consume(write, max_demand=1)
                await here.start(pipeline)
                sent = await steady(agent)
                assert source.reads == 1
                assert 1 <= sent < CHUNKS // 2
                assert sent * CHUNK_BYTES <= WINDOW_BYTES_MAX
                gate.set()
                outcome = await pipeline.wait()
                assert outcome.complete and agent.sent == CHUNKS
                assert seen == list(range(CHUNKS))

                gate.clear()
                agent.sent = 0
                abandoned = flow(Results(stream(b"")), id="q", drain_s=0.0).consume(write, max_demand=1)
                await here.start(abandoned)
                await steady(agent)
                outcome = await here.stop(abandoned)
                assert outcome.reason == "stopped" and outcome.unprocessed == 1
                async with asyncio.timeout(5.0):
                    await agent.cut.wait()
        await agent.stop()
        async with asyncio.timeout(20.0):
            while asyncio.all_tasks() != {asyncio.current_task()}:  # noqa: ASYNC110 (the server's, which follow)
                await asyncio.sleep(0.005)

    with asyncio.Runner() as runner:
        runner.run(main())
    gc.collect()
