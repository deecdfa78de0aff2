from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest

from serviceradar_poller.config.model import SecurityConfig
from serviceradar_poller.errors import GrpcCode
from serviceradar_poller.testing.conformance import SERVICE, PeerProcess, stream_request
from serviceradar_poller.testing.conformance_client import AMPLE_S, channel_to, drive
from serviceradar_poller.testing.contract import failure
from serviceradar_poller.transport.http2.limits import Limits
from serviceradar_poller.transport.native.channel import NativeChannel
from serviceradar_poller.transport.native.connection import Connection

MIB = 1024 * 1024
LIMITS = Limits()
#: What a stream and the connection add to a window: one frame under way, prefixes, a request.
SLACK_BYTES = 64 * 1024


def connection_of(channel: NativeChannel) -> Connection:
    connection = channel._connection
    assert connection is not None
    return connection


@pytest.mark.slow
@pytest.mark.parametrize("size", [32 * 1024, MIB])
def test_large_answer(peer: PeerProcess, security: SecurityConfig | None, size: int) -> None:
    """Fifty megabytes are read message by message, in order, and never more is kept than a window and a message."""
    address = peer.start(tls=security is not None)
    count = 50_000_000 // size

    async def main() -> None:
        async with channel_to(address, security) as channel:
            stream = channel.receive_stream(f"{SERVICE}Stream", lambda: stream_request(count, size), AMPLE_S)
            kept_bytes_max = 0
            for index in range(count):
                message = await stream.read()
                assert message is not None
                assert len(message) == size
                assert message.startswith(index.to_bytes(8, "big") + b"x")
                if index % 16 == 0:
                    await asyncio.sleep(0.002)  # the reader is the slower one: the server runs into the window
                kept_bytes_max = max(kept_bytes_max, connection_of(channel).session.buffered_bytes)
            assert await stream.read() is None
            assert kept_bytes_max <= LIMITS.stream_window_bytes + size + SLACK_BYTES

    drive(main)


@pytest.mark.slow
def test_unread_answer(peer: PeerProcess, mtls: SecurityConfig) -> None:
    """A stream that nobody reads on stops at one window, and goes on when it is read."""
    address = peer.start(tls=True)
    size, count = 8 * 1024, 1000

    async def main() -> None:
        async with channel_to(address, mtls) as channel:
            stream = channel.receive_stream(f"{SERVICE}Stream", lambda: stream_request(count, size), AMPLE_S)
            assert await stream.read() is not None
            session = connection_of(channel).session
            async with asyncio.timeout(AMPLE_S):
                while session.buffered_bytes < LIMITS.stream_window_bytes * 0.6:
                    await channel.unary(f"{SERVICE}Unary", b"", AMPLE_S)
            await channel.unary(f"{SERVICE}Unary", b"x" * MIB, AMPLE_S)  # what is on its way has arrived since
            assert session.buffered_bytes <= LIMITS.stream_window_bytes + SLACK_BYTES
            for _ in range(count - 1):
                assert await stream.read() is not None
            assert await stream.read() is None

    drive(main)


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 1, 7])
def test_answer_broken_off(peer: PeerProcess, mtls: SecurityConfig, after: int) -> None:
    """A stream that its reader gives up leaves the connection to the calls that follow, again and again."""
    address = peer.start(tls=True)

    async def main() -> None:
        async with channel_to(address, mtls) as channel:
            for _ in range(12):  # the late data of so many is more than the connection's window
                stream = channel.receive_stream(f"{SERVICE}Stream", lambda: stream_request(200, 64 * 1024), AMPLE_S)
                for _ in range(after):
                    assert await stream.read() is not None
                if after == 0:
                    task = asyncio.create_task(stream.read())
                    await asyncio.sleep(0)
                    task.cancel()
                    await asyncio.wait({task})
                await stream.cancel()
            assert await channel.unary(f"{SERVICE}Unary", b"x" * 300_000, AMPLE_S) == b"x" * 300_000
            assert channel.opened == 1

    drive(main)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1000, MIB])
def test_large_request(peer: PeerProcess, security: SecurityConfig | None, size: int) -> None:
    """Twenty megabytes of messages reach the server, whole and in order; what waits to be sent stays bounded."""
    address = peer.start(tls=security is not None)
    count = (20 * MIB if size > 1000 else MIB) // size
    crc = 0
    kept_bytes_max = 0

    async def main() -> None:
        async with channel_to(address, security) as channel:

            async def parts() -> AsyncIterator[bytes]:
                nonlocal crc, kept_bytes_max
                for index in range(count):
                    part = index.to_bytes(8, "big") * (size // 8)
                    crc = zlib.crc32(part, crc)
                    yield part
                    kept_bytes_max = max(kept_bytes_max, connection_of(channel).session.buffered_bytes)

            seen = msgspec.json.decode(await channel.send_stream(f"{SERVICE}Collect", parts(), count, AMPLE_S))
            assert seen == {"count": count, "bytes": count * (size // 8 * 8), "crc": crc}
            # 64 KiB may wait for the window before the next message is asked for; that and one more are kept.
            assert kept_bytes_max <= 2 * size + 2 * SLACK_BYTES

    drive(main)


def test_request_ended_by_the_server(peer: PeerProcess, mtls: SecurityConfig) -> None:
    """A server that has enough ends a stream of requests with its own status, and the connection goes on."""
    address = peer.start(tls=True)
    sent = 0

    async def parts() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 1
            yield b"x" * 100_000

    async def main() -> None:
        async with channel_to(address, mtls) as channel:
            error = await failure(channel.send_stream(f"{SERVICE}Early", parts(), 1000, AMPLE_S))
            assert (error.code, error.detail) == (GrpcCode.RESOURCE_EXHAUSTED, "enough")
            assert sent < 1000
            assert await channel.unary(f"{SERVICE}Unary", b"x", AMPLE_S) == b"x"
            assert channel.opened == 1

    drive(main)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("grpcio", {"window_bytes": 1024}),
        ("grpcio", {"window_bytes": 65_535, "frame_bytes_max": 16_384}),
        ("grpcio", {"window_bytes": 4 * MIB, "frame_bytes_max": 16_777_215}),
        ("grpclib", {"window_bytes": 65_535}),
    ],
    ids=["tiny-window", "small-frame", "large-frame", "small-window"],
)
def test_windows_and_frames(
    peers: Callable[[str], PeerProcess], mtls: SecurityConfig, kind: str, options: dict[str, int]
) -> None:
    """Requests larger than a server's windows and frames arrive whole, several at a time."""
    address = peers(kind).start(tls=True, **options)
    window = options["window_bytes"]

    async def main() -> None:
        async with channel_to(address, mtls) as channel:
            sizes = [0, 1, 5, window - 6, window - 5, window - 4, window, window + 1, 16_379, 16_380, 300_000]
            payloads = [bytes([index]) * size for index, size in enumerate(sizes)]
            for payload in payloads:
                assert await channel.unary(f"{SERVICE}Unary", payload, AMPLE_S) == payload
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(channel.unary(f"{SERVICE}Unary", one, AMPLE_S)) for one in payloads * 3]
            assert [task.result() for task in tasks] == payloads * 3
            # The server did take the options.
            session = connection_of(channel).session
            assert session._initial_window == window
            assert "frame_bytes_max" not in options or session._peer_frame == options["frame_bytes_max"]

    drive(main)
