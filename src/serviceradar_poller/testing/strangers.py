"""Strangers at the poller's own port: plain sockets, and frames that no gRPC library would write."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import hpack
from grpc_health.v1 import health_pb2

from serviceradar_poller.config.model import SecurityConfig
from serviceradar_poller.env import SystemClock
from serviceradar_poller.testing.http2_frames import block, frame, prefixed, settings
from serviceradar_poller.transport.certificates import load_material
from serviceradar_poller.transport.credentials import server_context
from serviceradar_poller.transport.http2.frames import DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PREFACE
from serviceradar_poller.transport.port.limits import PortLimits, Refusals
from serviceradar_poller.transport.server import PollerServer, start

NOW = SystemClock().wall() + 3600  # certificates are made when the first test runs
#: For whatever must come.
PATIENCE_S = 20.0
CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
HELLO = PREFACE + settings()
EMPTY = prefixed(b"")
SERVING = prefixed(health_pb2.HealthCheckResponse(status=1).SerializeToString())

Stranger = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def running(
    limits: PortLimits | None = None, security: SecurityConfig | None = None
) -> AsyncIterator[tuple[PollerServer, Refusals]]:
    """Run the port, and assert in the end that nobody is left."""
    refusals = Refusals()
    context = None if security is None else server_context(load_material(security, now=NOW))
    server = await start("127.0.0.1:0", service_name="P", context=context, limits=limits, refusals=refusals)
    try:
        yield server, refusals
    finally:
        await server.stop(0.1)
        assert server.connections == 0


@asynccontextmanager
async def stranger(server: PollerServer) -> AsyncIterator[Stranger]:
    """Connect by TCP."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def request(
    stream: int,
    path: str = CHECK,
    *more: tuple[bytes, bytes],
    method: bytes = b"POST",
    kind: bytes = b"application/grpc",
) -> bytes:
    """Write the headers of a call."""
    fields = [
        (b":method", method),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", b"a"),
        (b"te", b"trailers"),
        (b"content-type", kind),
        *more,
    ]
    return frame(HEADERS, END_HEADERS, stream, block(fields))


def body(stream: int, data: bytes = EMPTY, *, end: bool = True) -> bytes:
    """Write a DATA frame."""
    return frame(DATA, END_STREAM if end else 0, stream, data)


async def frames(reader: asyncio.StreamReader) -> AsyncIterator[tuple[int, int, int, bytes]]:
    """Yield kind, flags, stream and payload until the connection ends."""
    try:
        while True:
            head = await reader.readexactly(9)
            payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
            yield head[3], head[4], int.from_bytes(head[5:], "big"), payload
    except (asyncio.IncompleteReadError, ConnectionError):
        return


async def answer(reader: asyncio.StreamReader, stream: int) -> tuple[bytes, bytes]:
    """Return the data and the encoded trailers of one call."""
    data = b""
    async with asyncio.timeout(PATIENCE_S):
        async for kind, flags, number, payload in frames(reader):
            if number != stream:
                continue
            if kind == DATA:
                data += payload
            if kind == HEADERS and flags & END_STREAM:
                return data, payload
    raise AssertionError("the connection ended before the call")


async def until_closed(reader: asyncio.StreamReader) -> int | None:
    """Return the code of the GOAWAY, if any, when the connection has ended."""
    code = None
    async with asyncio.timeout(PATIENCE_S):
        async for kind, _, _, payload in frames(reader):
            if kind == GOAWAY:
                code = int.from_bytes(payload[4:8], "big")
    return code


async def works(server: PollerServer) -> None:
    """Assert that somebody else is served."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        check: Any = channel.unary_unary(CHECK)
        assert health_pb2.HealthCheckResponse.FromString(await check(b"", timeout=PATIENCE_S)).status == 1


async def eventually(state: Callable[[], bool]) -> None:
    """Wait for a state that nothing tells of."""
    async with asyncio.timeout(PATIENCE_S):
        while not state():  # noqa: ASYNC110 - states of the server, without an event for them
            await asyncio.sleep(0.005)


async def answered(reader: asyncio.StreamReader) -> None:
    """Wait for the first message of an answer."""
    async with asyncio.timeout(PATIENCE_S):
        async for kind, _, _, _ in frames(reader):
            if kind == DATA:
                return


def decoded(data: bytes) -> dict[bytes, bytes]:
    """Decode the only header block of a connection so far, or one that names nothing of those before."""
    # Entries of earlier blocks stand in front: status 200 is static, content-type is the first that was added.
    decoder = hpack.Decoder()
    decoder.header_table.add(b"content-type", b"application/grpc")
    return {bytes(name): bytes(value) for name, value in decoder.decode(data, raw=True)}
