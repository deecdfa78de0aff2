"""
Keep one peer's gRPC channel: opened by the first call, replaced when it can't be trusted, closed for good.

When to try a peer again is decided above this package, and gRPC's own policy is in the way of that: after a
failed connect its channel answers calls from the cached failure until its backoff ends, and reconnects on its
own for as long as it lives. So a channel whose connect failed is dropped at once and the next call opens a fresh
one: the call that comes after the peer's return succeeds, and nothing runs between calls. A new channel costs
about 0.4 ms.

A connection is also dropped when a call on it timed out and nothing was heard on it since the call began: after
a network outage TCP would only find out with its next retransmission, many seconds later.
Calls under way on a dropped channel go on; it is closed after the last of them.

Names are resolved by gRPC's default resolver, c-ares: it takes no thread of ours, asks the servers of
/etc/resolv.conf and reads /etc/hosts. As a channel that failed is replaced, its half-minute limit between two
resolutions does not delay a peer whose address changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable
from typing import Final

import grpc
import grpc.aio

from serviceradar_poller import __version__
from serviceradar_poller.config.addresses import Address
from serviceradar_poller.errors import CallError, Layer, PollerError
from serviceradar_poller.transport import failures, grpcio_failures
from serviceradar_poller.transport.feeding import Feed

#: ServiceRadar's servers, in Go, are set to send GOAWAY too_many_pings to clients that ping more often than every
#: 120 s; grpc-go by itself would do so to those that ping more often than every 5 minutes.
KEEPALIVE_TIME_MS: Final = 120_000
KEEPALIVE_TIMEOUT_MS: Final = 20_000
#: Go's default of 4 MiB is what peers send by default; they may be told to send more.
RECEIVE_BYTES_MAX: Final = 64 * 1024 * 1024
#: What a peer may send ahead of what is read. By itself the library lets it grow with the line, and held up to 150 MiB
#: of a stream whose chunks are written to disk before the next is read; this much is 20 MB/s over 50 ms.
WINDOW_BYTES: Final = 1024 * 1024
#: One attempt to connect: TCP, TLS and HTTP/2 together. C-core keeps the socket of an attempt that waits for
#: SETTINGS for as long, even when the channel is closed.
CONNECT_TIMEOUT_MS = 10_000
DNS_TIMEOUT_MS: Final = 5_000
#: A call does not join an attempt to connect that is older: its next SYN may be many seconds away.
ATTEMPT_AGE_S_MAX: Final = 2.0
#: What TLS buffers of outgoing data a connection: a request is a few hundred bytes, and a report is cut as well.
TLS_FRAME_BYTES_MAX: Final = 2048
#: gRPC's clock arithmetic has an end; nothing here waits longer.
TIMEOUT_S_MAX: Final = 86_400.0
#: How long the end of a cancelled stream is waited for; the loop's next rounds bring it.
CANCEL_GRACE_S: Final = 1.0

_READY = grpc.ChannelConnectivity.READY


def channel_options(address: Address, server_name: str) -> list[tuple[str, str | int]]:
    """Return the options of every channel; *server_name* replaces the address' host in certificate checks."""
    name = server_name or address.host
    authority = server_name or str(address)
    if server_name and ":" in server_name:
        authority = f"[{server_name}]"
    options: list[tuple[str, str | int]] = [
        ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.http2.max_pings_without_data", 0),  # a long stream may be silent for more than two pings
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
        ("grpc.max_receive_message_length", RECEIVE_BYTES_MAX),
        ("grpc.max_send_message_length", -1),
        ("grpc.use_local_subchannel_pool", 1),  # a replaced channel shares no failed connection
        # In C-core an attempt may take the larger of the first two. A channel that failed is gone before it retries.
        ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),
        ("grpc.initial_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),
        ("grpc.max_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),
        ("grpc.dns_ares_query_timeout", DNS_TIMEOUT_MS),
        ("grpc.enable_http_proxy", 0),  # http_proxy in the environment is not meant for agents
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.enable_retries", 0),  # retries are decided above, with a budget
        ("grpc.enable_channelz", 0),  # 3 KiB of traces a connection that nobody reads
        ("grpc.tsi.max_frame_size", TLS_FRAME_BYTES_MAX),
        ("grpc.primary_user_agent", f"serviceradar-poller/{__version__}"),
        ("grpc.default_authority", authority),
    ]
    if name != address.host:
        options.append(("grpc.ssl_target_name_override", name))
    return options


class _Line:
    """One grpc.aio channel and what is known of it."""

    __slots__ = ("attempted_at", "calls", "channel", "doubted", "heard_at", "methods")

    def __init__(self, channel: grpc.aio.Channel, now: float) -> None:
        self.channel = channel
        self.calls = 0
        self.attempted_at = now
        self.heard_at = now
        self.doubted = False  # a call ran out of time while connecting
        self.methods: dict[str, grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = {}


class PeerChannel:
    """
    Calls to one peer, in bytes.

    Belongs to one event loop. Calls raise CallError, or CancelledError when the caller's task is cancelled.

    Attributes:
        opened: How many channels were made so far.
    """

    def __init__(self, address: Address, *, server_name: str, credentials: grpc.ChannelCredentials | None) -> None:
        self._target = address.target
        self._peer = str(address)
        self._credentials = credentials
        self._options = channel_options(address, server_name)
        self._line: _Line | None = None
        self._dropped: set[_Line] = set()  # bounded by the calls under way
        self._closed = False
        self.opened = 0

    @property
    def peer(self) -> str:
        """``host:port`` for an operator's line."""
        return self._peer

    async def unary(self, method: str, payload: bytes, timeout_s: float) -> bytes:
        """Call a method with one message each way."""
        line, loop = self._begin(timeout_s)
        call = line.methods.get(method)
        if call is None:
            call = line.methods[method] = line.channel.unary_unary(method)
        began_at = loop.time()
        cancels_before = _cancels()
        line.calls += 1
        try:
            answer: bytes = await call(payload, timeout=min(timeout_s, TIMEOUT_S_MAX))
        except grpc.aio.AioRpcError as error:
            raise self._failed(line, error, began_at, timeout_s) from error
        except asyncio.CancelledError as error:
            if self._closed and _cancels() == cancels_before:
                raise failures.closed(self._peer) from error
            raise
        finally:
            line.calls -= 1
            if line in self._dropped:
                await self._close_if_idle(line)
        line.heard_at = loop.time()
        return answer

    async def send_stream(self, method: str, payloads: AsyncIterable[bytes], count: int, timeout_s: float) -> bytes:
        """
        Call a method with a stream of *count* messages to the peer and one message back.

        Stops sending, and making messages, as soon as the peer has answered or the time is over.

        Raises:
            PollerError: from *payloads*; the call is cancelled.
        """
        line, loop = self._begin(timeout_s)
        began_at = loop.time()
        cancels_before = _cancels()
        ended: asyncio.Future[None] = loop.create_future()
        line.calls += 1
        open_stream: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = line.channel.stream_unary(method)
        call = open_stream(timeout=min(timeout_s, TIMEOUT_S_MAX))
        call.add_done_callback(lambda _: None if ended.done() else ended.set_result(None))
        feed = Feed(payloads, lambda payload, _: _send(call, payload), call.done_writing)
        try:
            try:
                await asyncio.wait({feed.task, ended}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await feed.stop()
            feed.check()
            # Where the peer has ended the call early, its status is what this gives.
            answer: bytes = await call
        except grpc.aio.AioRpcError as error:
            raise self._failed(line, error, began_at, timeout_s) from error
        except asyncio.CancelledError as error:
            call.cancel()
            if self._closed and _cancels() == cancels_before:
                raise failures.closed(self._peer) from error
            raise
        except PollerError:
            call.cancel()
            raise
        finally:
            line.calls -= 1
            if line in self._dropped:
                await self._close_if_idle(line)
        line.heard_at = loop.time()
        if feed.sent_count < count:
            raise failures.early_answer(self._peer, feed.sent_count, count)
        return answer

    def receive_stream(self, method: str, payload: Callable[[], bytes], timeout_s: float) -> IncomingStream:
        """Return a call with one message to the peer and a stream of messages back, which begins when it is read."""
        return IncomingStream(self, method, payload, timeout_s)

    async def close(self) -> None:
        """Close for good; calls under way fail with reason ``closed``."""
        self._closed = True
        lines = [*self._dropped, *([self._line] if self._line is not None else [])]
        self._line = None
        self._dropped.clear()
        for line in lines:
            await line.channel.close()
        if lines:
            # Cancelled calls of grpc.aio end their own tasks in the loop's next rounds.
            await asyncio.sleep(0)

    def _begin(self, timeout_s: float) -> tuple[_Line, asyncio.AbstractEventLoop]:
        if self._closed:
            raise failures.closed(self._peer)
        if not timeout_s > 0:
            raise failures.deadline(self._peer, timeout_s)
        loop = asyncio.get_running_loop()
        line = self._line
        if line is not None and line.doubted:
            self._review(line, loop.time())
            line = self._line
        if line is None:
            line = self._line = self._open(loop.time())
        return line, loop

    def _open(self, now: float) -> _Line:
        self.opened += 1
        if self._credentials is None:
            channel = grpc.aio.insecure_channel(self._target, options=self._options)
        else:
            channel = grpc.aio.secure_channel(self._target, self._credentials, options=self._options)
        return _Line(channel, now)

    def _review(self, line: _Line, now: float) -> None:
        """Keep a channel that has connected since, or whose attempt is young; drop any other."""
        if line.channel.get_state() is _READY:
            line.doubted = False
        elif now - line.attempted_at > ATTEMPT_AGE_S_MAX:
            self._drop(line)

    def _drop(self, line: _Line) -> None:
        if self._line is line:
            self._line = None
        if not self._closed:
            self._dropped.add(line)

    async def _close_if_idle(self, line: _Line) -> None:
        if line.calls == 0:
            self._dropped.discard(line)
            await line.channel.close()

    def _failed(self, line: _Line, error: grpc.aio.AioRpcError, began_at: float, timeout_s: float) -> CallError:
        ready = line.channel.get_state() is _READY
        code: int = error.code().value[0]
        failure = grpcio_failures.from_status(
            code,
            error.details() or "",
            peer=self._peer,
            secure=self._credentials is not None,
            ready=ready,
            timeout_s=timeout_s,
        )
        if failure.layer is Layer.DEADLINE:
            if line.heard_at <= began_at:
                self._drop(line)
        elif failure.reason == "connect_timeout" and failure.code.name == "DEADLINE_EXCEEDED":
            if asyncio.get_running_loop().time() - line.attempted_at > ATTEMPT_AGE_S_MAX:
                self._drop(line)
            line.doubted = True
        elif failure.unreachable and failure.reason not in ("goaway", "refused_stream"):
            self._drop(line)
        else:
            line.heard_at = asyncio.get_running_loop().time()
        return failure


class IncomingStream:
    """
    A call that the peer answers with a stream, one message at a time.

    No message is asked for before its read: the library keeps at most the one under way, and what the peer may send
    ahead is bounded by the HTTP/2 window.

    Args:
        payload: Makes the request; what it raises ends the stream.
    """

    __slots__ = (
        "_began_at",
        "_call",
        "_cancelled",
        "_channel",
        "_ended",
        "_failure",
        "_line",
        "_method",
        "_payload",
        "_timeout_s",
        "_until_s",
    )

    def __init__(self, channel: PeerChannel, method: str, payload: Callable[[], bytes], timeout_s: float) -> None:
        self._channel = channel
        self._method = method
        self._payload = payload
        self._timeout_s = timeout_s
        self._until_s = asyncio.get_running_loop().time() + timeout_s
        self._began_at = 0.0
        self._line: _Line | None = None
        self._call: grpc.aio.UnaryStreamCall[bytes, bytes] | None = None
        self._cancelled = False
        self._ended = False
        self._failure: CallError | None = None

    async def read(self) -> bytes | None:
        """Return the next message, None at the end. Raises CallError, and what making the request raises."""
        if self._ended:
            if self._failure is not None:
                raise self._failure.with_traceback(None)
            return None
        cancels_before = _cancels()
        try:
            call = self._call if self._call is not None else self._begin()
            message = await call.read()
        except grpc.aio.AioRpcError as error:
            assert self._line is not None
            failure = self._channel._failed(self._line, error, self._began_at, self._timeout_s)
            await self._end(failure)
            raise failure from error
        except asyncio.CancelledError as error:
            if (self._cancelled or self._channel._closed) and _cancels() == cancels_before:
                peer = self._channel.peer
                failure = failures.cancelled(peer) if self._cancelled else failures.closed(peer)
                await self._end(failure)
                raise failure from error
            await self.cancel()
            raise
        except CallError as failure:
            await self._end(failure)
            raise
        if not isinstance(message, bytes):  # grpc.aio.EOF
            await self._end(None)
            return None
        assert self._line is not None
        self._line.heard_at = asyncio.get_running_loop().time()
        return message

    async def cancel(self, failure: CallError | None = None) -> None:
        """End the call, with *failure* for later reads; a read under way fails with reason ``cancelled``."""
        if self._ended:
            return
        self._cancelled = True
        call = self._call
        if call is not None:
            call.cancel()
            # The call's own task sends the request; nobody else waits for it.
            own_task = getattr(call, "_preparation", None)
            if own_task is not None:
                await asyncio.wait({own_task}, timeout=CANCEL_GRACE_S)
        await self._end(failure or failures.cancelled(self._channel.peer))

    def _begin(self) -> grpc.aio.UnaryStreamCall[bytes, bytes]:
        payload = self._payload()
        loop = asyncio.get_running_loop()
        line, _ = self._channel._begin(self._until_s - loop.time())
        self._began_at = loop.time()
        self._line = line
        line.calls += 1
        open_stream: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = line.channel.unary_stream(self._method)
        self._call = open_stream(payload, timeout=min(self._until_s - self._began_at, TIMEOUT_S_MAX))
        return self._call

    async def _end(self, failure: CallError | None) -> None:
        if self._ended:
            return
        self._ended, self._failure = True, failure
        line, self._line, self._call = self._line, None, None
        if line is not None:
            line.calls -= 1
            if line in self._channel._dropped:
                await self._channel._close_if_idle(line)


async def _send(call: grpc.aio.StreamUnaryCall[bytes, bytes], payload: bytes) -> bool:
    """
    Send one message of a stream; return False when the peer has ended the call.

    The public write() answers a send that failed by setting the call's status to INTERNAL. Where the peer's own
    status is not read yet, that hides why it refused. So the message goes to the call below it.
    """
    if call.done():
        return False
    inner = getattr(call, "_cython_call", None)
    try:
        if inner is None:
            await call.write(payload)
            return True
        await call.wait_for_connection()
        await inner.send_serialized_message(payload)
    except (grpc.aio.AioRpcError, grpc.aio.InternalError, asyncio.InvalidStateError):
        return False
    return True


def _cancels() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()
