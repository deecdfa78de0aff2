"""
Carry one peer's calls over one socket: TLS, the HTTP/2 session, deadlines, keepalive, and how it all ends.

A protocol of asyncio with a receive buffer that all connections of a loop share: an idle connection holds none.
Calls that begin in one iteration of the loop leave in one record and one write. All deadlines of a connection share
one timer, which moves only when a call is due before the others, so that a call costs none.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Final, cast

from serviceradar_poller.errors import CallError
from serviceradar_poller.transport import failures
from serviceradar_poller.transport.failures import ConnectStep
from serviceradar_poller.transport.http2 import Call, RequestHeaders, Session
from serviceradar_poller.transport.native.dial import connect_failure
from serviceradar_poller.transport.native.exchange import Exchange
from serviceradar_poller.transport.native.tls import RECORD_BYTES_MAX, TlsClient, TlsError

#: ServiceRadar's servers, in Go, are set to send GOAWAY too_many_pings to clients that ping more often than every
#: 120 s; grpc-go by itself would do so to those that ping more often than every 5 minutes.
KEEPALIVE_TIME_S = 120.0
KEEPALIVE_TIMEOUT_S = 20.0
#: What may wait for the socket, encrypted; more stays with the session until the socket takes it.
WRITE_BUFFER_BYTES_MAX: Final = 64 * 1024
#: What may wait for the socket of TLS's own answers, to key updates, while the socket takes nothing.
TLS_OUTPUT_BYTES_MAX: Final = 64 * 1024
#: A connection that has come so far takes no new calls: stream ids end at 2**31.
CALL_ID_MAX = 2**30
#: What one read takes from the socket, for all connections of a loop together.
READ_BUFFER_BYTES: Final = 64 * 1024


class Connection(asyncio.BufferedProtocol):
    """
    One connection, from the connected socket on.

    Args:
        tls: None for plaintext.
        buffer: Shared by all connections of a loop: what it holds is used up before any other code runs.
        on_change: Called when calls ended or the connection did; the channel looks for what it can do now.

    Attributes:
        ready: Result None when calls may begin, a CallError when none ever will.
        heard_at: When HTTP/2 last arrived, by the loop's clock; what TLS does by itself is no sign of life.
        ready_at: When calls could begin.
        paused_since: Since when the socket takes nothing more; infinite while it does.
        failure: Why it ended; None while it is up.
        closing: It takes no more calls.
        crowded: Calls wait for room; set by the channel, which then wants to know of everything that is received.
    """

    __slots__ = (
        "_active_since",
        "_buffer",
        "_flushing",
        "_loop",
        "_lost",
        "_on_change",
        "_paused",
        "_peer",
        "_pinged_at",
        "_timer",
        "_timer_at",
        "_tls",
        "_transport",
        "_unsent",
        "_used_up",
        "closing",
        "crowded",
        "exchanges",
        "failure",
        "heard_at",
        "paused_since",
        "ready",
        "ready_at",
        "session",
    )

    def __init__(
        self, *, peer: str, tls: TlsClient | None, buffer: memoryview, on_change: Callable[[Connection], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._peer = peer
        self._tls = tls
        self._buffer = buffer
        self._on_change = on_change
        self._transport: asyncio.Transport | None = None
        self._lost: asyncio.Future[None] | None = None  # made when somebody waits for the end
        self._paused = False  # the socket takes nothing more for now
        self._flushing = False  # a flush comes in the loop's next iteration
        self._unsent = memoryview(b"")  # taken from the session, not yet encrypted
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._active_since = 0.0
        self._pinged_at = 0.0
        self.session = Session()
        self.exchanges: dict[int, Exchange] = {}
        self.ready: asyncio.Future[CallError | None] | None = self._loop.create_future()
        self.failure: CallError | None = None
        self.closing = False
        self.crowded = False
        self._used_up = False
        self.paused_since = math.inf
        self.heard_at = self.ready_at = self._loop.time()

    # what the channel uses

    @property
    def room(self) -> int:
        """How many more calls may begin now; none while the socket takes nothing: they would pile up here."""
        return 0 if self.closing or self._paused else self.session.room

    @property
    def usable(self) -> bool:
        """Whether calls may begin, now or when others have ended."""
        session = self.session
        return not self.closing and not self._used_up and session.going_away is None and session.error is None

    @property
    def peer_certificate(self) -> bytes | None:
        """The peer's certificate in DER; None without TLS."""
        return self._tls.peer_certificate if self._tls is not None else None

    @property
    def step(self) -> ConnectStep:
        """What it waits for until it is ready."""
        return ConnectStep.TLS if self._tls is not None and not self._tls.established else ConnectStep.SETTINGS

    @property
    def paused(self) -> bool:
        """Whether the socket takes nothing more for now."""
        return self._paused

    def open(
        self,
        headers: RequestHeaders,
        message: bytes | None,
        *,
        now: float,
        deadline: float,
        began_at: float | None = None,
        each: bool = False,
    ) -> Exchange:
        """
        Begin a call; there must be room.

        Args:
            message: The whole request; None for a stream of messages, which are sent on the call.
            began_at: Before it waited for this connection; None when it did not.
            each: The caller takes message by message and asks for each.
        """
        timeout_s = deadline - now
        if message is None:
            call = self.session.open(headers, timeout_s=timeout_s, end=False)
        else:
            call = self.session.open(headers, timeout_s=timeout_s, message=message, streaming=each)
        exchange = Exchange(call, self._loop.create_future(), now if began_at is None else began_at, deadline)
        exchange.each = each or message is None
        if not self.exchanges:
            self._active_since = now
        if call.id >= CALL_ID_MAX:
            self._used_up = True
        self.exchanges[call.id] = exchange
        due = min(deadline, now + KEEPALIVE_TIME_S)
        if due < self._timer_at:
            self._wake_at(due)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)
        return exchange

    def wait(self, exchange: Exchange) -> asyncio.Future[None]:
        """Return what to await until something happens to *exchange*, from now on."""
        if exchange.waiter.done():
            exchange.waiter = self._loop.create_future()
        return exchange.waiter

    def soon(self) -> None:
        """Send what the session has in the loop's next iteration."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def cancel(self, exchange: Exchange) -> None:
        """End a call on this side, the peer is told; one that has ended is only forgotten."""
        if self.exchanges.pop(exchange.call.id, None) is not None:
            exchange.call.cancel()
            self.soon()
            self._on_change(self)

    def close(self, failure: CallError | None = None) -> None:
        """Say goodbye and close; calls under way fail with *failure*. May be called twice."""
        if self.closing:
            return
        self.closing = True
        self.session.close()
        transport = self._transport
        if transport is not None:
            if not self._paused and not transport.is_closing():
                if self.step is ConnectStep.SETTINGS:
                    self._flush()
                if self._tls is not None:
                    self._tls.finish()
                    transport.write(self._tls.take_output())
            # What the socket has not taken by now would keep it open for as long as the peer likes.
            if transport.get_write_buffer_size():
                transport.abort()
            else:
                transport.close()
        self._end(failure or failures.closed(self._peer))

    async def wait_lost(self) -> None:
        """Wait until the socket is closed, which takes an iteration of the loop after close()."""
        if self._transport is None:
            return
        if self._lost is None:
            self._lost = self._loop.create_future()
        await asyncio.wait({self._lost})

    # what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin TLS, or greet at once."""
        # Not an instance: loops other than asyncio's own have transports of their own kind.
        transport = cast("asyncio.Transport", transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES_MAX)
        if self.closing:
            transport.abort()
        elif self._tls is None:
            self._flush()
        else:
            try:
                self._tls.start()
            except TlsError as error:
                self._break(failures.tls(self._peer, str(error)))
                return
            transport.write(self._tls.take_output())

    def get_buffer(self, sizehint: int) -> memoryview:
        """Hand out the shared buffer: it is read before the loop does anything else."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take what the socket gave."""
        tls = self._tls
        if tls is None:
            data = bytes(self._buffer[:nbytes])
        else:
            try:
                data = tls.feed(self._buffer[:nbytes])
            except TlsError as error:
                self._tls_failed(error)
                return
            if tls.has_output and not self._answer(tls):
                return
        session = self.session
        if data:
            self.heard_at = self._loop.time()
            ended = self._told(session.receive(data))
            if session.error is not None:
                self._session_broke()
                return
            if ended or self.crowded or session.going_away is not None:
                self._on_change(self)
        ready = self.ready
        if ready is not None and session.ready:
            self.ready = None
            self.ready_at = self.heard_at
            ready.set_result(None) if not ready.done() else None
        if not self._paused:
            self._flush()
        if tls is not None and tls.closed:
            self._peer_closed()

    def eof_received(self) -> bool:
        """End at once: neither TLS nor HTTP/2 has a use for half a connection, and asyncio would wait to write."""
        self._peer_closed()
        return False

    def pause_writing(self) -> None:
        """Leave what there is with the session."""
        self._paused = True
        self.paused_since = self._loop.time()

    def resume_writing(self) -> None:
        """Go on sending, and let those go on who send streams, and those who wait to begin."""
        self._paused = False
        self.paused_since = math.inf
        if self._tls is not None and self._tls.has_output and self._transport is not None:
            self._transport.write(self._tls.take_output())
        self._flush()
        if self.crowded:
            self._on_change(self)
        if not self._paused:
            for exchange in self.exchanges.values():
                if exchange.each:
                    exchange.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what is under way."""
        if self._transport is not None:
            _unbind(self._transport)
        self._transport = None
        if self.failure is None:
            self._end(self._loss(exc))
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(None)

    # within

    def _told(self, calls: list[Call]) -> bool:
        """Wake whom it concerns; return whether calls ended."""
        exchanges = self.exchanges
        ended = False
        for call in calls:
            exchange = exchanges.get(call.id)
            if exchange is None:
                continue
            if call.outcome is not None:
                del exchanges[call.id]
                ended = True
            elif not exchange.each:
                continue
            if not exchange.waiter.done():
                exchange.waiter.set_result(None)
        return ended

    def _answer(self, tls: TlsClient) -> bool:
        """Send what TLS says by itself; False when the connection ended because the peer reads none of it."""
        if not self._paused:
            if self._transport is not None:
                self._transport.write(tls.take_output())
        elif tls.output_bytes > TLS_OUTPUT_BYTES_MAX:
            self._tls_failed(TlsError("the peer asks for more key updates than it reads"))
            return False
        return True

    def _flush(self) -> None:
        """Send what the session has, as long as the socket takes it."""
        self._flushing = False
        transport = self._transport
        if self._paused or transport is None:
            return
        tls = self._tls
        if tls is not None and not tls.established:
            return
        data: bytes | memoryview = self._unsent or self.session.take_output()
        while data:
            part, data = (data, b"") if len(data) <= RECORD_BYTES_MAX else _split(data)
            if tls is None:
                transport.write(part)
            else:
                try:
                    transport.write(tls.encrypt(part))
                except TlsError as error:
                    self._tls_failed(error)
                    return
            if self.paused:  # by the write
                break
            if not data:
                data = self.session.take_output()
            elif transport.is_closing():  # it broke; what is written now is lost
                break
        self._unsent = memoryview(data)

    def _wake_at(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = due
        self._timer = self._loop.call_at(due, self._on_timer)

    def _on_timer(self) -> None:
        """End calls whose time is over, ping where nothing was heard for long, and sleep until the next is due."""
        self._timer, self._timer_at = None, math.inf
        if not self.exchanges:
            return
        now = self._loop.time()
        late = [exchange for exchange in self.exchanges.values() if exchange.deadline <= now]
        for exchange in late:
            del self.exchanges[exchange.call.id]
            exchange.call.cancel()
            exchange.fail(failures.deadline(self._peer, exchange.timeout_s))
        if late:
            self._flush()
            self._on_change(self)
        if self.exchanges and self.failure is None:
            due = self._keepalive(now)
            if due is not None:
                self._wake_at(min(due, *(exchange.deadline for exchange in self.exchanges.values())))

    def _keepalive(self, now: float) -> float | None:
        """Return when to look again; None when the connection is dead."""
        session = self.session
        # Whatever came after the ping is a sign of life as good as its answer.
        if session.ping_pending and self.heard_at <= self._pinged_at:
            dead_at = self._pinged_at + KEEPALIVE_TIMEOUT_S
            if now >= dead_at:
                self._break(failures.lost(self._peer, "keepalive timeout"))
                return None
            return dead_at
        quiet_until = max(self.heard_at, self._active_since) + KEEPALIVE_TIME_S
        if now < quiet_until:
            return quiet_until
        session.ping()
        self._pinged_at = now
        self._flush()
        return now + KEEPALIVE_TIMEOUT_S

    def _tls_failed(self, error: TlsError) -> None:
        assert self._tls is not None
        if self._transport is not None and self._tls.has_output and not self._paused:
            self._transport.write(self._tls.take_output())  # the alert tells the peer why
        if self.ready is None:
            self._break(failures.lost(self._peer, str(error)))
        else:
            self._break(failures.tls(self._peer, str(error)))

    def _session_broke(self) -> None:
        error = self.session.error
        assert error is not None
        if self.ready is None:
            failure = failures.protocol(self._peer, f"broke the HTTP/2 protocol: {error.detail}")
        else:
            failure = failures.protocol(self._peer, f"the peer does not speak HTTP/2: {error.detail}")
        self._flush()  # the GOAWAY tells the peer why
        self._break(failure)

    def _peer_closed(self) -> None:
        if self.failure is None:
            self._break(self._loss(None))

    def _loss(self, error: Exception | None) -> CallError:
        """Say what it means that the connection is gone."""
        if self.ready is None:
            cause = "closed by the peer" if error is None else str(error)
            if isinstance(error, OSError):
                cause = connect_failure(self._peer, error).detail.removeprefix(f"{self._peer}: ")
            return failures.lost(self._peer, cause)
        if self.step is ConnectStep.TLS and error is None:
            return failures.tls(self._peer, "the peer broke the TLS handshake off (TLS 1.3?)")
        if isinstance(error, OSError) and (self.step is ConnectStep.TLS or self._tls is None):
            if isinstance(error, ConnectionError):
                return failures.connect_reset(self._peer, in_handshake=self._tls is not None)
            return connect_failure(self._peer, error)
        return failures.closed_before_settings(self._peer, secure=self._tls is not None)

    def _break(self, failure: CallError) -> None:
        """End at once, without a goodbye."""
        self.closing = True
        if self._transport is not None:
            if self._transport.get_write_buffer_size():
                self._transport.abort()
            else:
                self._transport.close()  # what was written still reaches the peer
        self._end(failure)

    def _end(self, failure: CallError) -> None:
        if self.failure is not None:
            return
        self.failure = failure
        self.closing = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._timer_at = None, math.inf
        for call in self.session.eof():
            exchange = self.exchanges.pop(call.id, None)
            if exchange is not None:
                exchange.wake()
        exchanges, self.exchanges = self.exchanges, {}
        for exchange in exchanges.values():
            exchange.fail(failure)
        self._unsent = memoryview(b"")
        ready, self.ready = self.ready, None
        if ready is not None and not ready.done():
            ready.set_result(failure)
        self._on_change(self)


def _unbind(transport: asyncio.Transport) -> None:
    """
    Let a transport that has ended go.

    asyncio's keeps bound methods of its own to be quick. That is a cycle, with a socket object in it, which only the
    garbage collector's oldest generation finds: at a poller whose agents flap they came to thousands.
    """
    attributes: dict[str, object] = getattr(transport, "__dict__", {})
    for name in [name for name, value in attributes.items() if getattr(value, "__self__", None) is transport]:
        del attributes[name]


def _split(data: bytes | memoryview) -> tuple[memoryview, memoryview]:
    view = memoryview(data)
    return view[:RECORD_BYTES_MAX], view[RECORD_BYTES_MAX:]
