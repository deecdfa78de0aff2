from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest

from serviceradar_poller.config.model import SecurityConfig
from serviceradar_poller.errors import GrpcCode
from serviceradar_poller.testing.conformance import SERVICE, PeerProcess, piece, stream_request
from serviceradar_poller.testing.conformance_client import AMPLE_S, channel_to, connection_of, drive
from serviceradar_poller.testing.contract import failure
from serviceradar_poller.transport.http2.limits import Limits

MIB = 1024 * 1024
LARGE_BYTES = 50_000_000
LIMITS = Limits()
#: What a stream and the connection add to a window: one frame under way, prefixes, a request.
SLACK_BYTES = 64 * 1024


@pytest.mark.slow
@pytest.mark.parametrize("size", [32 * 1024, MIB])
def test_large_answer(peer: PeerProcess, security: SecurityConfig | None, size: int) -> None:
    """
    A stream of fifty megabytes is read message by message, whole and in order.

    Never more is kept of it than a window and a message.
    """
    address = peer.start(tls=security is not None)
    count = -(-LARGE_BYTES // size)

    async def main() -> None:
        async with channel_to(address, security) as channel:
            stream = channel.receive_stream(f"{SERVICE}Stream", lambda: stream_request(count, size), AMPLE_S)
            kept_bytes_max = 0
            for index in range(count):
                message = await stream.read()
                assert (message == piece(index, size)) is True  # without a printout of it
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
@pytest.mark.parametrize(
    ("size", "total"), [(1000, MIB), (32 * 1024, LARGE_BYTES), (MIB, LARGE_BYTES)], ids=["1000", "32768", "1048576"]
)
def test_large_request(peer: PeerProcess, security: SecurityConfig | None, size: int, total: int) -> None:
    """
    A stream of fifty megabytes reaches the server, whole and in order, and one of a thousand small messages does.

    What waits to be sent stays bounded.
    """
    address = peer.start(tls=security is not None)
    count = -(-total // size)
    hashed = hashlib.sha256()
    kept_bytes_max = 0

    async def main() -> None:
        async with channel_to(address, security) as channel:

            async def parts() -> AsyncIterator[bytes]:
                nonlocal kept_bytes_max
                for index in range(count):
                    part = piece(index, size)
                    hashed.update(part)
                    yield part
                    kept_bytes_max = max(kept_bytes_max, connection_of(channel).session.buffered_bytes)

            seen = msgspec.json.decode(await channel.send_stream(f"{SERVICE}Collect", parts(), count, AMPLE_S))
            assert seen == {"count": count, "bytes": count * size, "sha256": hashed.hexdigest()}
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
        (kind, {"window_bytes": window, "frame_bytes_max": frame})
        for kind in ("grpcio", "grpclib", "grpc-js")
        for window, frame in ((1024, 16_384), (65_535, 16_384), (4 * MIB, 16_777_215))
    ],
    ids=[
        f"{kind}-{name}"
        for kind in ("grpcio", "grpclib", "grpc-js")
        for name in ("tiny-window", "small-frame", "large-frame")
    ],
)
def test_windows_and_frames(
    peers: Callable[[str], PeerProcess], mtls: SecurityConfig, kind: str, options: dict[str, int]
) -> None:
    """Requests larger than a server's windows and frames arrive whole, several at a time; it did set them so."""
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
            session = connection_of(channel).session
            assert (session._initial_window, session._peer_frame) == (window, options["frame_bytes_max"])
            assert channel.opened == 1

    drive(main)
