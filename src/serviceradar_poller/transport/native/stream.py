"""Pull a call's answer message by message."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from serviceradar_poller.errors import CallError
from serviceradar_poller.transport import failures

if TYPE_CHECKING:
    from serviceradar_poller.transport.native.channel import NativeChannel
    from serviceradar_poller.transport.native.connection import Connection
    from serviceradar_poller.transport.native.exchange import Exchange


class NativeStream:
    """
    A call that the peer answers with a stream, one message at a time.

    A message is asked for by its read: the peer may send one window ahead and no more.

    Args:
        payload: Makes the request; what it raises ends the stream.
    """

    __slots__ = (
        "_channel",
        "_connection",
        "_deadline",
        "_ended",
        "_exchange",
        "_failure",
        "_method",
        "_payload",
        "_stop",
        "_timeout_s",
    )

    def __init__(self, channel: NativeChannel, method: str, payload: Callable[[], bytes], timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._channel = channel
        self._method = method
        self._payload = payload
        self._timeout_s = timeout_s
        self._deadline = loop.time() + timeout_s
        self._stop: asyncio.Future[None] = loop.create_future()  # done when cancelled
        self._connection: Connection | None = None
        self._exchange: Exchange | None = None
        self._ended = False
        self._failure: CallError | None = None

    async def read(self) -> bytes | None:
        """Return the next message, None at the end. Raises CallError, and what making the request raises."""
        if not self._ended:
            try:
                message = await self._next()
            except asyncio.CancelledError:
                self._end(failures.cancelled(self._channel.peer))
                raise
            except CallError as failure:
                self._end(failure)
            else:
                if message is not None:
                    return message
                self._end(None)
        if self._failure is not None:
            raise failures.again(self._failure)
        return None

    async def cancel(self, failure: CallError | None = None) -> None:
        """End the call, with *failure* for later reads; a read under way fails with reason ``cancelled``."""
        self._end(failure or failures.cancelled(self._channel.peer))

    async def _next(self) -> bytes | None:
        exchange = self._exchange or await self._begin()
        connection, call = self._connection, exchange.call
        assert connection is not None
        message = call.take()
        if message is None and not exchange.ended:
            call.want()
            connection.soon()  # the credit
            while message is None and not exchange.ended:
                await connection.wait(exchange)
                message = call.take()
        if message is not None:
            connection.soon()
            return message
        if self._stop.done():
            raise failures.cancelled(self._channel.peer)
        outcome = call.outcome
        if exchange.failure is None and outcome is not None and outcome.code == 0:
            return None
        raise self._channel.failed(connection, exchange, self._timeout_s)

    async def _begin(self) -> Exchange:
        payload = self._payload()
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        connection, headers = await self._channel.acquire(
            self._method, self._deadline - began_at, self._timeout_s, self._stop
        )
        self._connection = connection
        self._exchange = connection.open(
            headers, payload, now=loop.time(), deadline=self._deadline, began_at=began_at, each=True
        )
        return self._exchange

    def _end(self, failure: CallError | None) -> None:
        if self._ended:
            return
        self._ended, self._failure = True, failure
        if not self._stop.done():
            self._stop.set_result(None)
        if self._exchange is not None and self._connection is not None:
            self._connection.cancel(self._exchange)
            self._exchange.wake()
        self._connection = self._exchange = None
