"""
Keep one peer's connection: opened by the first call, replaced when it can't be trusted, closed for good.

The policy is the one of the other backend, whose module says why. A failed connect is not remembered: the next call
dials anew, at once. Calls at the same time share one attempt to connect, and one that comes later joins it, unless a
call has waited for it in vain and it is no longer young; the first attempt that connects is for all who wait, and ends
the others. A call that timed out with nothing heard on the connection since it began, or with a socket that took
nothing in all that time, drops that connection; calls under way on a dropped one go on, and it is closed after the
last of them.

Calls beyond the streams that the peer allows wait their turn, in order, each until its own deadline.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterable, Callable
from typing import Any, Final

from serviceradar_poller import __version__
from serviceradar_poller.config.addresses import Address
from serviceradar_poller.env import Resolver
from serviceradar_poller.errors import CallError, GrpcCode, Layer
from serviceradar_poller.transport import failures
from serviceradar_poller.transport.feeding import Feed
from serviceradar_poller.transport.http2 import RequestHeaders
from serviceradar_poller.transport.native.attempts import Attempt
from serviceradar_poller.transport.native.connection import Connection
from serviceradar_poller.transport.native.dial import dial
from serviceradar_poller.transport.native.exchange import Exchange
from serviceradar_poller.transport.native.outcomes import failure_of, goodbye_of
from serviceradar_poller.transport.native.stream import NativeStream
from serviceradar_poller.transport.native.tls import TlsClient, TlsError

#: One attempt to connect: name, TCP, TLS and the peer's HTTP/2 settings together.
CONNECT_TIMEOUT_S = 10.0
#: A call that waited for the connect as well, and so did not listen all of its time, needs this share of it in silence
#: to conclude that the new connection is dead.
SILENT_SHARE: Final = 0.5
#: Calls that wait for a free stream; each is a task of ours, so this bounds what a bug could pile up.
WAITING_MAX: Final = 10_000
#: A stream's sender waits while more than this waits for the peer's window.
SEND_AHEAD_BYTES_MAX: Final = 64 * 1024
#: Nothing here waits longer.
TIMEOUT_S_MAX: Final = 86_400.0
#: A peer that ends a call for its deadline does so while ours expires; its clock may be this much ahead.
DEADLINE_SKEW_S: Final = 0.02

_TIMED_OUT: Final = frozenset({GrpcCode.DEADLINE_EXCEEDED.value, GrpcCode.CANCELLED.value})
USER_AGENT: Final = f"serviceradar-poller/{__version__}"


class NativeChannel:
    """
    Calls to one peer, in bytes.

    Belongs to one event loop. Calls raise CallError, or CancelledError when the caller's task is cancelled.

    Args:
        server_name: What the peer's certificate must hold, and its authority; empty: the address.
        context: None for plaintext.
        buffer: What connections read into, shared by all of a loop.

    Attributes:
        opened: How many attempts to connect were made so far.
    """

    __slots__ = (
        "_address",
        "_attempt",
        "_attempts",
        "_authority",
        "_buffer",
        "_closed",
        "_connection",
        "_context",
        "_dropped",
        "_granted",
        "_headers",
        "_peer",
        "_resolver",
        "_server_name",
        "_waiting",
        "opened",
    )

    def __init__(
        self,
        address: Address,
        *,
        server_name: str,
        context: ssl.SSLContext | None,
        resolver: Resolver,
        buffer: memoryview,
    ) -> None:
        self._address = address
        self._peer = str(address)
        self._server_name = server_name or address.host
        authority = server_name or str(address)
        self._authority = f"[{authority}]" if server_name and ":" in server_name else authority
        self._context = context
        self._resolver = resolver
        self._buffer = buffer
        self._headers: dict[str, RequestHeaders] = {}  # by method: a handful
        self._connection: Connection | None = None
        self._attempt: Attempt | None = None
        self._attempts: set[Attempt] = set()  # those superseded too; each lasts CONNECT_TIMEOUT_S at most
        self._dropped: set[Connection] = set()  # bounded by the calls under way
        self._waiting: deque[asyncio.Future[bool]] = deque()
        self._granted = 0  # streams promised to calls that have not run since
        self._closed = False
        self.opened = 0

    @property
    def peer(self) -> str:
        """``host:port`` for an operator's line."""
        return self._peer

    @property
    def peer_certificate(self) -> bytes | None:
        """The certificate that the peer proved, in DER; None without TLS or connection."""
        return self._connection.peer_certificate if self._connection is not None else None

    async def unary(self, method: str, payload: bytes, timeout_s: float) -> bytes:
        """Call a method with one message each way."""
        began_at = now = asyncio.get_running_loop().time()
        deadline = self._deadline(now, timeout_s, timeout_s)
        connection = self._connection
        if connection is None or self._waiting or connection.room <= self._granted:
            connection = await self._acquire(began_at, deadline, timeout_s)
            now = asyncio.get_running_loop().time()
        headers = self._headers.get(method) or self._new_headers(method)
        exchange = connection.open(headers, payload, now=now, deadline=deadline, began_at=began_at)
        try:
            await exchange.waiter
        except asyncio.CancelledError:
            connection.cancel(exchange)
            raise
        outcome = exchange.call.outcome
        if outcome is not None and outcome.code == 0 and exchange.failure is None:
            message = exchange.call.take()
            if message is not None:
                return message
        raise self.failed(connection, exchange, timeout_s)

    async def send_stream(self, method: str, payloads: AsyncIterable[bytes], count: int, timeout_s: float) -> bytes:
        """
        Call a method with a stream of *count* messages to the peer and one message back.

        Stops sending, and making messages, as soon as the peer has answered or the time is over.

        Raises:
            PollerError: from *payloads*; the call is cancelled.
        """
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        connection, headers = await self.acquire(method, timeout_s, timeout_s)
        deadline = began_at + min(timeout_s, TIMEOUT_S_MAX)
        exchange = connection.open(headers, None, now=loop.time(), deadline=deadline, began_at=began_at)
        call = exchange.call

        async def send(payload: bytes, number: int) -> bool:
            # Between two messages others get their turn.
            await asyncio.sleep(0)
            while not exchange.ended and (connection.paused or call.pending_bytes > SEND_AHEAD_BYTES_MAX):
                await connection.wait(exchange)
            if exchange.ended:
                return False
            call.send(payload, end=number == count)
            connection.soon()
            return True

        async def finish() -> None:
            if not exchange.ended and (feed.sent_count < count or count == 0):
                call.finish_sending()
                connection.soon()

        feed = Feed(payloads, send, finish)
        try:
            while not exchange.ended and not feed.failed:
                waited: set[asyncio.Future[None]] = {connection.wait(exchange)}
                if not feed.task.done():
                    waited.add(feed.task)
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            connection.cancel(exchange)  # does nothing to one that has ended
            await feed.stop()
        feed.check()
        outcome = call.outcome
        message = call.take() if outcome is not None and outcome.code == 0 and exchange.failure is None else None
        if message is None:
            raise self.failed(connection, exchange, timeout_s)
        if not call.sent_all:
            # What was sent last may wait for the peer's window still.
            raise failures.early_answer(self._peer, min(feed.sent_count, count - 1), count)
        return message

    def receive_stream(self, method: str, payload: Callable[[], bytes], timeout_s: float) -> NativeStream:
        """Return a call with one message to the peer and a stream of messages back, which begins when it is read."""
        return NativeStream(self, method, payload, min(timeout_s, TIMEOUT_S_MAX))

    async def close(self) -> None:
        """Close for good; calls under way fail with reason ``closed``."""
        self._closed = True
        connections = [*self._dropped, *([self._connection] if self._connection is not None else [])]
        self._connection = self._attempt = None
        self._dropped.clear()
        tasks = {attempt.task for attempt in self._attempts if attempt.task is not None}
        for task in tasks:
            task.cancel()
        for connection in connections:
            connection.close()
        self._retry_all()
        if tasks:
            await asyncio.wait(tasks)
        for connection in connections:
            await connection.wait_lost()
        if self.opened:
            # A connection that was dropped a moment ago loses its socket in the loop's next iteration.
            await asyncio.sleep(0)

    async def acquire(
        self, method: str, left_s: float, timeout_s: float, stop: asyncio.Future[None] | None = None
    ) -> tuple[Connection, RequestHeaders]:
        """
        Return what a call of *method* needs; the caller begins it before it awaits anything.

        Args:
            left_s: How long it may take.
            timeout_s: What the call was given, for the words of a failure.
            stop: When it is done, no connection is wanted any more: reason ``cancelled``.
        """
        began_at = asyncio.get_running_loop().time()
        deadline = self._deadline(began_at, left_s, timeout_s)
        connection = await self._acquire(began_at, deadline, timeout_s, stop)
        return connection, self._headers.get(method) or self._new_headers(method)

    # a connection with room for one more call

    def _deadline(self, now: float, left_s: float, timeout_s: float) -> float:
        if self._closed:
            raise failures.closed(self._peer)
        if not left_s > 0:
            raise failures.deadline(self._peer, timeout_s)
        return now + (left_s if left_s < TIMEOUT_S_MAX else TIMEOUT_S_MAX)

    async def _acquire(
        self, began_at: float, deadline: float, timeout_s: float, stop: asyncio.Future[None] | None = None
    ) -> Connection:
        """Return a connection with room; the caller begins its call before it awaits anything."""
        loop = asyncio.get_running_loop()
        stops = () if stop is None else (stop,)
        granted = False
        while True:
            connection = self._connection
            cancelled = stop is not None and stop.done()
            if self._closed or cancelled or loop.time() >= deadline:
                if granted and connection is not None:
                    self._changed(connection)  # the next one's turn
                if self._closed:
                    raise failures.closed(self._peer)
                raise failures.cancelled(self._peer) if cancelled else failures.deadline(self._peer, timeout_s)
            if connection is None:
                granted = False
                await self._connected(deadline, timeout_s, stops)
            elif connection.room > (0 if granted else self._granted) and (granted or not self._waiting):
                return connection
            else:
                granted = await self._turn(connection, began_at, deadline, timeout_s, stops)

    async def _connected(self, deadline: float, timeout_s: float, stops: tuple[asyncio.Future[None], ...]) -> None:
        """Wait for the attempt to connect. Raises CallError when it fails, or has not succeeded in time."""
        loop = asyncio.get_running_loop()
        attempt = self._attempt
        if attempt is None or attempt.stale(loop.time()):
            attempt = self._attempt = self._begin_attempt(loop)
        task = attempt.task
        assert task is not None
        waited: set[asyncio.Future[Any]] = {task, *stops}
        await asyncio.wait(waited, timeout=deadline - loop.time(), return_when=asyncio.FIRST_COMPLETED)
        if self._connection is not None:
            return  # by whichever attempt
        if not task.done():
            if self._closed or (stops and stops[0].done()):
                return
            attempt.doubted = True
            raise failures.connect_timeout(self._peer, attempt.step, GrpcCode.DEADLINE_EXCEEDED, timeout_s)
        if task.cancelled():
            return  # the channel is closed, or another attempt was faster and its connection has ended since
        outcome = task.result()
        if isinstance(outcome, CallError):
            raise failures.again(outcome)
        if not self._closed:
            # Another attempt is for another call.
            raise self._ended_at_once(outcome)

    def _begin_attempt(self, loop: asyncio.AbstractEventLoop) -> Attempt:
        self.opened += 1
        attempt = Attempt(loop.time())
        self._attempts.add(attempt)
        # Owned by this channel: it outlives the call that began it, and close() ends it.
        attempt.task = loop.create_task(self._connect(attempt), name=f"connect {self._peer}")
        # Not by the task itself: one that is cancelled before its first step does nothing.
        attempt.task.add_done_callback(lambda _: self._attempts.discard(attempt))
        return attempt

    async def _connect(self, attempt: Attempt) -> Connection | CallError:
        connection: Connection | None = None
        keep = False
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                tls = TlsClient(self._context, self._server_name) if self._context is not None else None
                sock = await dial(
                    self._address.host, self._address.port, peer=self._peer, resolver=self._resolver, at=attempt.at
                )
                connection = Connection(peer=self._peer, tls=tls, buffer=self._buffer, on_change=self._changed)
                attempt.connection = connection
                ready = connection.ready
                assert ready is not None
                try:
                    await asyncio.get_running_loop().create_connection(lambda: connection, sock=sock)
                except BaseException:
                    sock.close()
                    raise
                failure = await ready
                if failure is None and not connection.usable:
                    failure = self._ended_at_once(connection)
            keep = failure is None
        except TimeoutError:
            failure = failures.connect_timeout(self._peer, attempt.step, GrpcCode.UNAVAILABLE)
        except TlsError as error:
            failure = failures.tls(self._peer, str(error))
        except CallError as error:
            failure = failures.again(error)  # its traceback would hold this frame, and that the failure
        finally:
            attempt.task = None  # which holds the exception that cut it short, and that this frame
            if self._attempt is attempt:
                self._attempt = None
            if connection is not None and not keep:
                connection.close()
        if failure is not None:
            return failure
        assert connection is not None
        if self._connection is None and not self._closed:
            self._connection = connection
            self._attempt = None
            for other in self._attempts:
                if other.task is not None:
                    other.task.cancel()  # which wakes those who wait for it
        else:
            connection.close()
        return connection

    def _ended_at_once(self, connection: Connection) -> CallError:
        """Say what became of a connection that was lost in the moment in which it was ready."""
        going_away = connection.session.going_away
        if going_away is not None:
            return failures.goaway(self._peer, going_away.code, going_away.text)
        failure = connection.failure
        if failure is not None and failure.layer in (Layer.TLS, Layer.HTTP2):
            return failures.again(failure)
        # Lost or dropped: no call was on it.
        return failures.connect_reset(self._peer, in_handshake=False)

    async def _turn(
        self,
        connection: Connection,
        began_at: float,
        deadline: float,
        timeout_s: float,
        stops: tuple[asyncio.Future[None], ...],
    ) -> bool:
        """Wait for a free stream; False when the connection that had none is gone. Raises CallError."""
        loop = asyncio.get_running_loop()
        if len(self._waiting) >= WAITING_MAX:
            raise failures.no_stream(self._peer, WAITING_MAX)
        connection.crowded = True
        turn: asyncio.Future[bool] = loop.create_future()
        self._waiting.append(turn)
        waited: set[asyncio.Future[Any]] = {turn, *stops}
        try:
            await asyncio.wait(waited, timeout=deadline - loop.time(), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if turn.done():
                self._granted -= turn.result()
                if self._connection is not None:
                    self._changed(self._connection)  # the next one's turn
            raise
        finally:
            if not turn.done():
                turn.cancel()
                self._waiting.remove(turn)
        if turn.cancelled():
            if stops and stops[0].done():
                return False
            self._judge(connection, began_at, deadline)
            raise failures.deadline(self._peer, timeout_s)
        self._granted -= turn.result()
        return turn.result()

    def _changed(self, connection: Connection) -> None:
        """Give free streams to those who wait, and close what is no longer of use."""
        if connection is not self._connection:
            if not connection.exchanges and connection in self._dropped:
                self._dropped.discard(connection)
                connection.close()
            return
        if not connection.usable:
            self._drop(connection)
            return
        while self._waiting and connection.room > self._granted:
            self._granted += 1
            self._waiting.popleft().set_result(True)
        connection.crowded = bool(self._waiting)

    def _judge(self, connection: Connection, began_at: float, deadline: float) -> None:
        """Drop a connection on which, or waiting for which, a call ran out of time, if it may well be dead."""
        if began_at >= connection.ready_at:
            silent = connection.heard_at <= began_at
        else:
            silence_s = asyncio.get_running_loop().time() - connection.heard_at
            silent = silence_s >= SILENT_SHARE * (deadline - began_at)
        # A peer that says something now and then and reads nothing is of no use either.
        if silent or connection.paused_since <= began_at:
            self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        """Take no more calls on it, and close it when the last has ended."""
        if self._connection is connection:
            self._connection = None
            self._retry_all()
        if connection.exchanges:
            self._dropped.add(connection)
        else:
            connection.close()

    def _retry_all(self) -> None:
        while self._waiting:
            self._waiting.popleft().set_result(False)

    def _new_headers(self, method: str) -> RequestHeaders:
        headers = self._headers[method] = RequestHeaders(
            path=method, authority=self._authority, secure=self._context is not None, user_agent=USER_AGENT
        )
        return headers

    def failed(self, connection: Connection, exchange: Exchange, timeout_s: float) -> CallError:
        """Say why a call failed, and draw the conclusions for its connection."""
        failure = exchange.failure
        if failure is None:
            outcome = exchange.call.outcome
            assert outcome is not None
            if outcome.code in _TIMED_OUT and asyncio.get_running_loop().time() >= exchange.deadline - DEADLINE_SKEW_S:
                return failures.deadline(self._peer, timeout_s)
            failure = failure_of(exchange.call, connection, self._peer)
        elif failure.layer is Layer.DEADLINE:
            failure = failures.deadline(self._peer, timeout_s, goodbye=goodbye_of(connection))
            self._judge(connection, exchange.began_at, exchange.deadline)
        return failures.again(failure)
