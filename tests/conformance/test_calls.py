from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest

from serviceradar_poller.config.model import SecurityConfig
from serviceradar_poller.errors import GrpcCode, Layer
from serviceradar_poller.testing.conformance import (
    SERVICE,
    TRAILERS,
    PeerProcess,
    broken_request,
    slow_request,
    stream_request,
)
from serviceradar_poller.testing.conformance_client import AMPLE_S, channel_to, drive, messages, until_taken, whole_call
from serviceradar_poller.testing.contract import failure
from serviceradar_poller.transport.http2 import Cause

TEXT = 'Überlast: 100 % von "λ" ✓ 🜁 %41%zz'


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 1, 3 * 1024 * 1024])
def test_unary(peer: PeerProcess, security: SecurityConfig | None, size: int) -> None:
    """A message of any size comes back as it was."""
    address = peer.start(tls=security is not None)
    payload = bytes(range(256)) * (size // 256) + b"\x00" * (size % 256)

    async def main() -> None:
        async with channel_to(address, security) as channel:
            for _ in range(2):
                assert await channel.unary(f"{SERVICE}Unary", payload, AMPLE_S) == payload
            assert channel.opened == 1

    drive(main)


def test_request_headers(peer: PeerProcess, mtls: SecurityConfig) -> None:
    """The server gets the deadline that the caller set, less what passed, and the headers that gRPC asks for."""
    address = peer.start(tls=True)

    async def main() -> None:
        async with channel_to(address, mtls) as channel:
            for timeout_s in (0.9, 7.0, 3600.0):
                seen = msgspec.json.decode(await channel.unary(f"{SERVICE}Inspect", b"", timeout_s))
                assert timeout_s * 0.5 < seen["left_s"] <= timeout_s
            assert "serviceradar-poller/" in seen["metadata"].get("user-agent", "serviceradar-poller/")

    drive(main)


@pytest.mark.slow
def test_deadline(peer: PeerProcess, mtls: SecurityConfig) -> None:
    """A call that is not answered ends at its deadline on both sides, and the connection goes on."""
    address = peer.start(tls=True)
    tag = f"deadline {address}"

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with channel_to(address, mtls) as channel:
            await channel.unary(f"{SERVICE}Unary", b"", AMPLE_S)
            began_at = loop.time()
            error = await failure(channel.unary(f"{SERVICE}Hang", tag.encode(), 0.3))
            assert 0.28 <= loop.time() - began_at < 1.0
            assert (error.layer, error.reason) == (Layer.DEADLINE, "timeout")
            await peer.wait_for("ended", tag)
            assert await channel.unary(f"{SERVICE}Unary", b"x", AMPLE_S) == b"x"

    drive(main)


def test_cancellation(peer: PeerProcess, mtls: SecurityConfig) -> None:
    """A cancelled call ends at the server too, and the connection goes on."""
    address = peer.start(tls=True)
    tag = f"cancel {address}"

    async def main() -> None:
        async with channel_to(address, mtls) as channel:
            task = asyncio.create_task(channel.unary(f"{SERVICE}Hang", tag.encode(), AMPLE_S))
            await peer.wait_for("started", tag)
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled()
            await peer.wait_for("ended", tag)
            assert await channel.unary(f"{SERVICE}Unary", b"x", AMPLE_S) == b"x"
            assert channel.opened == 1

    drive(main)


@pytest.mark.parametrize("code", [code for code in GrpcCode if code])
def test_statuses(peer: PeerProcess, code: GrpcCode) -> None:
    """Every status and a message in any script arrive, without messages before it and after some."""
    address = peer.start()

    async def main() -> None:
        async with channel_to(address) as channel:
            for count in (0, 3):
                request = functools.partial(broken_request, count, code, TEXT)
                stream = channel.receive_stream(f"{SERVICE}Broken", request, AMPLE_S)
                for _ in range(count):
                    assert await stream.read() is not None
                error = await failure(stream.read())
                assert (error.layer, error.code, error.reason) == (Layer.GRPC, code, code.name.lower())
                assert error.detail == TEXT

    drive(main)


def test_trailers(peer: PeerProcess, mtls: SecurityConfig) -> None:
    """Trailing metadata arrives as text and as bytes, in an answer of trailers only and after messages."""
    address = peer.start(tls=True)

    async def main() -> None:
        async with channel_to(address, mtls) as channel:
            for count in (0, 2):
                call, _ = await whole_call(channel, "Broken", broken_request(count, 9, f"line\n{TEXT}"))
                outcome = call.outcome
                assert outcome is not None
                assert (outcome.cause, outcome.code, outcome.message) == (Cause.STATUS, 9, f"line\n{TEXT}")
                assert set(TRAILERS) <= set(outcome.metadata)
                assert call.has_headers == (count > 0)

    drive(main)


def test_unimplemented(peer: PeerProcess, mtls: SecurityConfig) -> None:
    """A method that the server doesn't have is told apart from other failures, for every form of call."""
    address = peer.start(tls=True)

    async def parts() -> AsyncIterator[bytes]:
        yield b"x"

    async def main() -> None:
        async with channel_to(address, mtls) as channel:
            for call in (
                channel.unary(f"{SERVICE}Missing", b"", AMPLE_S),
                messages(channel.receive_stream(f"{SERVICE}Missing", lambda: b"", AMPLE_S)),
                channel.send_stream(f"{SERVICE}Missing", parts(), 1, AMPLE_S),
            ):
                error = await failure(call)
                assert (error.layer, error.code) == (Layer.GRPC, GrpcCode.UNIMPLEMENTED)
            assert await channel.unary(f"{SERVICE}Unary", b"x", AMPLE_S) == b"x"
            assert channel.opened == 1

    drive(main)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "streams_max"), [("grpc-js", 100), ("grpc-js", 1), ("grpcio", 1)])
def test_calls_wait_their_turn(peers: Callable[[str], PeerProcess], kind: str, streams_max: int) -> None:
    """Calls beyond what the server allows wait, in order, on one connection; none is refused."""
    peer = peers(kind)
    address = peer.start(streams_max=streams_max)
    count = 1000 if streams_max > 1 else 50

    async def main() -> None:
        async with channel_to(address) as channel:
            await channel.unary(f"{SERVICE}Unary", b"", AMPLE_S)
            await asyncio.to_thread(peer.ask, "stats")
            requests = [slow_request(tag, 0.02 if streams_max > 1 else 0.0) for tag in range(count)]
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(channel.unary(f"{SERVICE}Slow", request, AMPLE_S)) for request in requests]
            assert [task.result() for task in tasks] == requests
            assert channel.opened == 1
            seen = await asyncio.to_thread(peer.ask, "stats")
            assert streams_max // 2 < seen["peak"] <= streams_max
            assert seen["order"] == list(range(count))

    drive(main)


@pytest.mark.slow
def test_refused_calls_were_not_taken(grpcio: PeerProcess) -> None:
    """
    A call that the server refuses may be made again at once: no call ever runs twice.

    gRPC's C core counts calls until it has freed them, and so refuses some that its own limit allows, also to its own
    client.
    """
    address = grpcio.start(streams_max=100)
    refusals: list[str] = []

    async def main() -> None:
        async with channel_to(address) as channel:

            async def call(tag: int) -> bytes:
                request = slow_request(tag, 0.02)
                return await until_taken(lambda: channel.unary(f"{SERVICE}Slow", request, AMPLE_S), refusals)

            await asyncio.to_thread(grpcio.ask, "stats")
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(call(tag)) for tag in range(1000)]
            assert [task.result() for task in tasks] == [slow_request(tag, 0.02) for tag in range(1000)]
            assert channel.opened == 1
            seen = await asyncio.to_thread(grpcio.ask, "stats")
            assert sorted(seen["order"]) == list(range(1000))
            assert seen["peak"] <= 100
            assert set(refusals) <= {"refused_stream"}

    drive(main)


@pytest.mark.slow
def test_1000_calls_at_once(peer: PeerProcess, mtls: SecurityConfig) -> None:
    """A thousand calls at once are answered, whatever the server allows by itself."""
    address = peer.start(tls=True)

    async def main() -> None:
        async with channel_to(address, mtls) as channel:
            requests = [slow_request(tag, 0.02) for tag in range(1000)]
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(channel.unary(f"{SERVICE}Slow", request, AMPLE_S)) for request in requests]
            assert [task.result() for task in tasks] == requests
            assert channel.opened == 1

    drive(main)


def test_streams_and_calls_share(peer: PeerProcess, mtls: SecurityConfig) -> None:
    """A stream that nobody reads holds up neither calls nor other streams of the same connection."""
    address = peer.start(tls=True)

    async def main() -> None:
        async with channel_to(address, mtls) as channel:
            idle = channel.receive_stream(f"{SERVICE}Stream", lambda: stream_request(200, 32 * 1024), AMPLE_S)
            assert await idle.read() is not None
            assert await channel.unary(f"{SERVICE}Unary", b"x" * 600_000, AMPLE_S) == b"x" * 600_000
            busy = channel.receive_stream(f"{SERVICE}Stream", lambda: stream_request(200, 32 * 1024), AMPLE_S)
            assert len(await messages(busy)) == 200
            assert len(await messages(idle)) == 199
            assert channel.opened == 1

    drive(main)
