"""Drive our own HTTP/2 in conformance tests, and see that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from serviceradar_poller.config.model import SecurityConfig
from serviceradar_poller.env import SystemClock
from serviceradar_poller.errors import CallError
from serviceradar_poller.testing.conformance import SERVICE
from serviceradar_poller.testing.leaks import no_leaks
from serviceradar_poller.transport.http2 import Call
from serviceradar_poller.transport.native.channel import NativeChannel
from serviceradar_poller.transport.native.connection import Connection
from serviceradar_poller.transport.native.transport import NativeTransport
from serviceradar_poller.transport.resolver import SystemResolver

#: For calls that are to succeed: a machine that runs tests may be busy.
AMPLE_S = 60.0


def drive(main: Callable[[], Awaitable[None]]) -> None:
    """Run *main* and assert that no task, timer or file descriptor is left of it."""

    async def guarded() -> None:
        with no_leaks():
            await main()

    asyncio.run(guarded())


def new_transport() -> NativeTransport:
    """Make what channels are made by."""
    return NativeTransport(clock=SystemClock(), resolver=SystemResolver())


@contextlib.asynccontextmanager
async def channel_to(
    address: str, security: SecurityConfig | None = None, *, transport: NativeTransport | None = None
) -> AsyncIterator[NativeChannel]:
    """Make a channel, and close it; those of one *transport* judge the certificate files once."""
    channel = await (transport or new_transport()).channel(address, security)
    try:
        yield channel
    finally:
        await channel.close()


async def whole_call(channel: NativeChannel, method: str, request: bytes) -> tuple[Call, Connection]:
    """Make a call and return it when it has ended, with all that a channel's user doesn't get to see."""
    connection, headers = await channel.acquire(SERVICE + method, AMPLE_S, AMPLE_S)
    now = asyncio.get_running_loop().time()
    exchange = connection.open(headers, request, now=now, deadline=now + AMPLE_S, each=True)
    while not exchange.ended:
        exchange.call.want()
        connection.soon()
        await connection.wait(exchange)
    assert exchange.failure is None, exchange.failure
    return exchange.call, connection


async def until_taken(make: Callable[[], Awaitable[bytes]], refusals: list[str]) -> bytes:
    """Make a call again for as long as the peer has not taken it; *refusals* gets the reasons."""
    while True:
        try:
            return await make()
        except CallError as error:
            if error.reason not in ("refused_stream", "goaway") or not (error.retryable and error.unreachable):
                raise
            refusals.append(error.reason)
        await asyncio.sleep(0.01)


def connection_of(channel: NativeChannel) -> Connection:
    """Return the connection that the next call would take."""
    connection = channel._connection
    assert connection is not None
    return connection


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so that nobody tells us of."""
    async with asyncio.timeout(AMPLE_S):
        while not condition():  # noqa: ASYNC110  (there is no event to wait for)
            await asyncio.sleep(0.005)


async def messages(stream: Any) -> list[bytes]:
    """Read a stream to its end."""
    found: list[bytes] = []
    while (message := await stream.read()) is not None:
        found.append(message)
    return found
