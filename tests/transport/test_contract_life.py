"""What every transport does from its first call to its close, without leaks."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from serviceradar_poller.config.model import SecurityConfig
from serviceradar_poller.env import AgentClient, Transport
from serviceradar_poller.errors import CallError, Layer
from serviceradar_poller.testing.contract import (
    REQUEST,
    Block,
    chunks,
    failure,
    report,
    send_report,
    send_stream,
    server_credentials,
)
from serviceradar_poller.testing.peers import (
    Context,
    Peer,
    after_settings,
    serving,
    tcp_peer,
    unused_port,
)
from serviceradar_poller.wire.messages import StatusRequest


def test_lazy_and_back_at_once(transport: Transport) -> None:
    """Making a client connects nothing; a call right after the peer's start, or restart, succeeds at once."""

    async def main() -> None:
        port = unused_port()
        client = await transport.agent(f"127.0.0.1:{port}", None)
        loop = asyncio.get_running_loop()
        for _ in range(3):
            # The first calls after a stop may still meet the old connection's end, which gRPC's threads have to see.
            async with asyncio.timeout(10.0):
                while (await failure(client.get_status(REQUEST, timeout_s=5.0))).reason != "refused":  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            reasons = [(await failure(client.get_status(REQUEST, timeout_s=5.0))).reason for _ in range(3)]
            assert reasons == ["refused"] * 3
            peer = Peer()
            await peer.start(port=port)
            began_at = loop.time()
            assert (await client.get_status(REQUEST, timeout_s=5.0)).available
            assert loop.time() - began_at < 1.0
            await peer.stop()
        await client.close()

    asyncio.run(main())


def test_dead_connection_is_replaced(transport: Transport) -> None:
    """After a timeout on a connection that went silent, the next call uses a new connection."""
    connections = 0

    async def first_is_dead(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        if connections == 1:
            await after_settings(lambda w: None)(reader, writer)
        else:
            writer.close()

    async def main() -> None:
        async with tcp_peer(first_is_dead) as address:
            client = await transport.agent(address, None)
            assert (await failure(client.get_status(REQUEST, timeout_s=0.6))).reason == "timeout"
            await failure(client.get_status(REQUEST, timeout_s=5.0))
            assert connections == 2
            await client.close()

    asyncio.run(main())


def test_slow_call_spares_the_connection(transport: Transport) -> None:
    """A timeout on a connection that answered others meanwhile keeps the connection."""

    async def main() -> None:
        async with serving() as peer:
            client = await transport.agent(peer.address, None)
            await client.check_health(timeout_s=5.0)
            peer.status_answer = peer.hang
            slow = asyncio.create_task(failure(client.get_status(REQUEST, timeout_s=0.6)))
            await peer.started.wait()
            await client.check_health(timeout_s=5.0)
            assert (await slow).reason == "timeout"
            before = _sockets()
            await client.check_health(timeout_s=5.0)
            assert _sockets() == before
            await client.close()

    asyncio.run(main())


def test_a_call_that_waited_its_turn_spares_the_connection(transport: Transport) -> None:
    """A timeout of a call that waited for a stream, while another was answered, keeps the connection."""
    connections: list[str] = []

    async def slow(request: StatusRequest, context: Context) -> bytes:
        connections.append(context.peer())
        await asyncio.sleep(0.4 if len(connections) == 1 else 30.0)
        return b""

    async def main() -> None:
        async with serving(streams_max=1) as peer:
            client = await transport.agent(peer.address, None)
            await client.check_health(timeout_s=5.0)
            peer.status_answer = slow
            first = asyncio.create_task(client.get_status(REQUEST, timeout_s=5.0))
            while not connections:  # noqa: ASYNC110 (the server's side)
                await asyncio.sleep(0.005)
            error = await failure(client.get_status(REQUEST, timeout_s=1.5))
            assert (error.layer, error.reason) == (Layer.DEADLINE, "timeout")
            await first
            await failure(client.get_status(REQUEST, timeout_s=0.8))
            assert len(connections) == 3
            assert len(set(connections)) == 1
            await client.close()

    asyncio.run(main())


def test_cancel(transport: Transport) -> None:
    """Cancelling the caller ends its call at the peer, and other calls go on."""

    async def main() -> None:
        async with serving() as peer:
            client = await transport.agent(peer.address, None)
            peer.status_answer = peer.hang
            task = asyncio.create_task(client.get_status(REQUEST, timeout_s=30.0))
            await peer.started.wait()
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled()
            async with asyncio.timeout(5.0):
                await peer.cancelled.wait()
            assert await client.check_health(timeout_s=5.0) == "SERVING"
            await client.close()

    asyncio.run(main())


def test_cancel_of_a_stream(transport: Transport) -> None:
    """Cancelling a stream that waits for the peer to read ends it."""
    began = asyncio.Event()

    async def never_reads(stream: AsyncIterator[bytes], context: Context) -> bytes:
        began.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def main() -> None:
        async with serving() as peer:
            peer.stream_answer = never_reads
            client = await transport.core(peer.address, None)
            task = asyncio.create_task(send_stream(client, chunks(50, 1_000_000), timeout_s=30.0))
            await began.wait()
            task.cancel()
            await asyncio.wait({task}, timeout=20.0)
            assert task.cancelled()
            await client.close()

    asyncio.run(main())


def test_close(transport: Transport) -> None:
    """Closing fails the calls under way and all later ones with ``closed``; closing again does nothing."""

    async def main() -> None:
        async with serving() as peer:
            client: AgentClient = await transport.agent(peer.address, None)
            peer.status_answer = peer.hang
            calls = [asyncio.create_task(client.get_status(REQUEST, timeout_s=30.0)) for _ in range(5)]
            await peer.started.wait()
            await client.close()
            for call in calls:
                assert (await failure(call)).reason == "closed"
            await client.close()
            assert (await failure(client.get_status(REQUEST, timeout_s=1.0))).reason == "closed"
            unused = await transport.core(peer.address, None)
            await unused.close()
            assert (await failure(send_report(unused, report(), timeout_s=1.0))).reason == "closed"

    asyncio.run(main())


def test_cancel_wins_over_close(transport: Transport) -> None:
    """A caller that is cancelled while its client is closed is cancelled, not told ``closed``."""

    async def main() -> None:
        async with serving() as peer:
            client = await transport.agent(peer.address, None)
            peer.status_answer = peer.hang
            task = asyncio.create_task(client.get_status(REQUEST, timeout_s=30.0))
            await peer.started.wait()
            task.cancel()
            await client.close()
            await asyncio.wait({task})
            assert task.cancelled()

    asyncio.run(main())


def test_close_during_a_stream(transport: Transport) -> None:
    """Closing ends a stream that waits for the peer to read."""
    began = asyncio.Event()

    async def never_reads(stream: AsyncIterator[bytes], context: Context) -> bytes:
        began.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def main() -> None:
        async with serving() as peer:
            peer.stream_answer = never_reads
            client = await transport.core(peer.address, None)
            task = asyncio.create_task(send_stream(client, chunks(50, 1_000_000), timeout_s=30.0))
            await began.wait()
            await client.close()
            assert (await failure(task)).reason == "closed"

    asyncio.run(main())


def _sockets() -> int:
    return sum(os.path.exists(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))


@pytest.mark.slow
def test_soak(transport: Transport, pki: Path, block: Block) -> None:
    """Two hundred clients that call, fail, and close leave no task and no file descriptor."""

    async def cycle(address: str, security: SecurityConfig | None, expect_s: float) -> None:
        client = await transport.agent(address, security)
        try:
            await client.get_status(REQUEST, timeout_s=expect_s)
        except CallError:
            pass
        await client.close()

    async def main() -> None:
        refused = f"127.0.0.1:{unused_port()}"
        async with serving(server_credentials(pki)) as peer:

            async def cycles(count: int) -> tuple[int, int]:
                for _ in range(count):
                    await cycle(peer.address, block(), 5.0)
                    await cycle(refused, None, 5.0)
                    await cycle(peer.address, block(server_name="wrong"), 5.0)
                return await settled()

            async def settled() -> tuple[int, int]:
                """Count once the library's threads have closed what they hold."""
                counts, quiet = (-1, -1), 0
                while quiet < 5:
                    await asyncio.sleep(0.05)
                    now = (len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd")))
                    quiet = quiet + 1 if now == counts else 0
                    counts = now
                return counts

            tasks_before, fds_before = await cycles(10)
            tasks_after, fds_after = await cycles(60)
            assert tasks_after <= tasks_before + 2  # the server's own
            assert fds_after <= fds_before + 8  # threads of the library come and go with an fd or two

    asyncio.run(main())
