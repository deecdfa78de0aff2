"""
Guard one client's connection: grpclib's HTTP/2 protocol, with what a stranger may make it do bounded.

On top of grpclib: frames are metered before h2 sees them, large reads are taken in slices, a client that neither asks
nor reads is let go, the unknown is ignored as RFC 9113 says, and no bytes of a client can raise into the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

from grpclib.config import Configuration
from grpclib.protocol import AbstractHandler, EventsProcessor, H2Protocol, Stream
from grpclib.protocol import Connection as HttpConnection
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, Event, RemoteSettingsChanged, StreamEnded
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings

from serviceradar_poller.logic.bucket import BucketSettings, new_bucket, take
from serviceradar_poller.transport.port import call as calls
from serviceradar_poller.transport.port.frames import FrameMeter
from serviceradar_poller.transport.port.limits import CLOSED_STREAMS_MAX, Refusal

#: Between looks at a connection's time limits.
TICK_S: Final = 1.0
#: What a client has for taking the last bytes of a connection that is closed.
LINGER_S: Final = 1.0

#: grpclib's own settings are for its way of starting a connection; ours is below.
_CONFIG: Final = Configuration().__for_server__()
_H2_CONFIG: Final = H2Configuration(client_side=False, header_encoding=None)
_KNOWN_SETTINGS: Final = frozenset(SettingCodes)


class Port(calls.Desk, Protocol):
    """What a connection needs of its server."""

    def ended(self) -> None:
        """Take note that a call has ended, with all that was to be told to its client."""

    def left(self, connection: GuardedConnection) -> None:
        """Take note that the connection is gone."""


class GuardedConnection(H2Protocol):
    """
    One connection, from the accepted socket on.

    Attributes:
        since: When its first call after a time without any began, or its last one ended, by the loop's clock.
        has_calls: Whether it has calls; not in a handshake.
    """

    def __init__(self, port: Port) -> None:
        self._calls = _Calls(port, self)
        super().__init__(self._calls, _CONFIG, _H2_CONFIG)
        self._port = port
        self._limits = port.limits
        self._loop = asyncio.get_running_loop()
        self._meter = FrameMeter()
        self._rate = BucketSettings(rate_per_s=self._limits.frames_per_s, burst=self._limits.frames_burst)
        self._bucket = new_bucket(self._rate, self._loop.time())
        self._rest = memoryview(b"")
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stalled_since: float | None = None
        self._over = False
        self._reading = True
        self.since = self._loop.time()
        self.has_calls = False
        self.greeted = False

    # what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say hello, with our limits in it."""
        self._transport = cast("asyncio.Transport", transport)
        if self._over:  # it was cut while TLS was on its way
            self._transport.abort()
            return
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() != "h2":
            self.cut(Refusal.TLS)
            return
        self._http = http = _Http2(config=_H2_CONFIG)
        http.limit(streams=self._limits.streams_max, header_bytes=self._limits.header_list_bytes_max)
        http.initiate_connection()
        wire = cast("asyncio.Transport", _Wire(self._transport))
        self.connection = HttpConnection(http, wire, config=_CONFIG)
        self.processor = _Events(self._calls, self.connection, self._greet)
        self.connection.flush()
        self._made_at = self.since = self._loop.time()
        self._timer = self._loop.call_later(TICK_S, self._tick)

    def data_received(self, data: bytes) -> None:
        """Take what came, in slices, so that a full read of tiny frames holds up nobody else."""
        if self._over:
            return
        if self._rest:
            self._rest = memoryview(bytes(self._rest) + data)
            return
        self._rest = memoryview(data)
        self._turn()

    def eof_received(self) -> bool:
        """Let the transport close: gRPC knows no half-closed connections."""
        return False

    def pause_writing(self) -> None:
        """Make calls wait, and begin to count the client's time."""
        if self._stalled_since is None:
            self._stalled_since = self._loop.time()
        if not self._over:
            self.connection.pause_writing()

    def resume_writing(self) -> None:
        """Let calls go on."""
        self._stalled_since = None
        if not self._over:
            self.connection.resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        """End what is left of its calls."""
        self._end()
        if self._timer is not None:
            self._timer.cancel()
        self._port.left(self)

    # what the server uses

    def say_goodbye(self, code: ErrorCodes = ErrorCodes.NO_ERROR) -> None:
        """Send GOAWAY and close; its calls are cancelled."""
        if self._over or self._transport is None:
            return
        self._http.close_connection(code)
        self.connection.flush()
        self._end()

    def cut(self, reason: Refusal | None) -> None:
        """End it now, whatever the client has not taken yet."""
        if reason is not None:
            self._port.refused(reason)
        if self._transport is not None:
            self._transport.abort()
        self._end()

    def evict(self, reason: Refusal, code: ErrorCodes = ErrorCodes.NO_ERROR) -> None:
        """Say goodbye for a reason that is counted."""
        self._port.refused(reason)
        self.say_goodbye(code)

    @property
    def tasks(self) -> set[asyncio.Task[None]]:
        """The calls under way."""
        return set(self._calls.tasks.values())

    def busy(self, *, has_calls: bool) -> None:
        """Take note of whether it has calls."""
        if has_calls is not self.has_calls:
            self.has_calls = has_calls
            self.since = self._loop.time()

    def may_go(self) -> bool:
        """Return whether it has had its time, where another client wants its place."""
        least_s = self._limits.evict_busy_s if self.has_calls else self._limits.evict_idle_s
        return not self._over and self._loop.time() - self.since >= least_s

    def charge(self, cost: float) -> bool:
        """Count work that its client causes; False when that was too much, and it is let go."""
        self._bucket, wait_s = take(self._bucket, self._rate, self._loop.time(), cost)
        if wait_s > 0:
            self.evict(Refusal.FLOOD, ErrorCodes.ENHANCE_YOUR_CALM)
        return wait_s == 0

    # inside

    def _turn(self) -> None:
        """Work off one slice of what came; the rest follows in later iterations of the loop."""
        if self._over:
            return
        assert self._transport is not None, "bytes come after the connection"
        size = self._limits.slice_bytes
        piece, self._rest = bytes(self._rest[:size]), self._rest[size:]
        try:
            self._work_off(piece)
        except H2Error:
            self._port.refused(Refusal.PROTOCOL)
            if not self._ended():
                self.connection.flush()  # h2 has put a GOAWAY there
                self._end()
        except Exception as error:  # noqa: BLE001 - whatever bytes can do to h2 or grpclib stays with their sender
            self._port.fault(error, "a connection to the gRPC port")
            self.cut(None)
        if self._ended():
            self._rest = memoryview(b"")
        elif self._rest:
            if self._reading:
                self._reading = False
                self._transport.pause_reading()
            self._loop.call_soon(self._turn)
        elif not self._reading:
            self._reading = True
            self._transport.resume_reading()

    def _work_off(self, piece: bytes) -> None:
        assert self._transport is not None, "bytes come after the connection"
        cost = self._meter.feed(piece)
        if self._meter.largest > self._limits.frame_bytes_max:
            self.evict(Refusal.PROTOCOL, ErrorCodes.FRAME_SIZE_ERROR)
            return
        if self._meter.continuations > self._limits.continuations_max:
            self.evict(Refusal.FLOOD, ErrorCodes.ENHANCE_YOUR_CALM)
            return
        if not self.charge(cost):
            return
        for event in self.connection.feed(piece):
            self.processor.process(event)
            if self.connection.is_closing():
                self._end()
                return
        self.connection.flush()
        if self._transport.get_write_buffer_size() > self._limits.output_bytes_max:
            self.cut(Refusal.NOT_READING)

    def _greet(self) -> None:
        self.greeted = True

    def _tick(self) -> None:
        """Look at the time limits."""
        now, limits = self._loop.time(), self._limits
        if not self.greeted and now - self._made_at >= limits.handshake_s:
            self.cut(Refusal.SILENT)
        elif self._stalled_since is not None and now - self._stalled_since >= limits.write_stall_s:
            self.cut(Refusal.NOT_READING)
        elif not self.has_calls and now - self.since >= limits.idle_s:
            self.say_goodbye()
        else:
            self._timer = self._loop.call_later(TICK_S, self._tick)

    def _end(self) -> None:
        """Close, and cancel its calls; may be called again."""
        if self._over:
            return
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            # A client that takes nothing more would keep a closed transport for ever.
            self._timer = self._loop.call_later(LINGER_S, self._transport.abort)
        if hasattr(self, "processor"):
            self.processor.close()  # closes the transport too; asyncio's TLS can't be aborted after a second close
        elif self._transport is not None:
            self._transport.close()

    def _ended(self) -> bool:
        return self._over


class _Wire:
    """
    What grpclib needs of a transport.

    asyncio writes a warning to the log for each write to a socket that the client has just reset, and many calls may
    write before they are told. Under TLS its transport does not even say that it is closing: neither when the socket
    below it is gone, nor from a client's end without TLS's own goodbye until what came before it is worked off.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._tls = getattr(transport, "_ssl_protocol", None)
        self.close = transport.close
        self.get_extra_info = transport.get_extra_info

    def is_closing(self) -> bool:
        """Return whether nothing that is written goes out."""
        if self._transport.is_closing():
            return True
        # Counted for each write that is refused; the first one is not told.
        return self._tls is not None and (self._tls._conn_lost > 0 or self._tls._transport.is_closing())

    def write(self, data: bytes) -> None:
        """Send, if there is still somebody."""
        if not self.is_closing():
            self._transport.write(data)


class _Http2(H2Connection):
    """h2's state of a connection, with our limits from its first byte on."""

    MAX_CLOSED_STREAMS = CLOSED_STREAMS_MAX

    def limit(self, *, streams: int, header_bytes: int) -> None:
        """Replace the settings that initiate_connection() sends, and what keeps those of the client."""
        self.remote_settings = _KnownSettings(client=True)
        values = {SettingCodes.MAX_CONCURRENT_STREAMS: streams, SettingCodes.MAX_HEADER_LIST_SIZE: header_bytes}
        self.local_settings = Settings(client=False, initial_values=values)
        self.decoder.max_header_list_size = header_bytes


class _KnownSettings(Settings):
    """What the client says of itself. The unknown is ignored [RFC 9113, 6.5.2]; h2 keeps 800 bytes for each."""

    def __setitem__(self, key: SettingCodes | int, value: int) -> None:
        if key in _KNOWN_SETTINGS:
            super().__setitem__(key, value)


class _Events(EventsProcessor):
    """Hands on what h2 found in the client's bytes."""

    handler: _Calls

    def __init__(self, handler: _Calls, connection: HttpConnection, on_settings: Callable[[], None]) -> None:
        super().__init__(handler, connection)
        self._on_settings = on_settings

    def process(self, event: Event) -> None:
        """Act on an event; frames of unknown kinds are none of ours. [RFC 9113, 5.5]"""
        if type(event) in getattr(self, "processors", {}):
            super().process(event)

    def process_remote_settings_changed(self, event: RemoteSettingsChanged) -> None:
        """The client has introduced itself."""
        self._on_settings()
        super().process_remote_settings_changed(event)

    def process_data_received(self, event: DataReceived) -> None:
        """Give credit at once: what a call may send ahead of its reader is bounded in Call."""
        self.connection.ack(event.stream_id, event.flow_controlled_length)
        self.handler.feed(event.stream_id, event.data)

    def process_stream_ended(self, event: StreamEnded) -> None:
        """No more requests in a call."""
        self.handler.end(event.stream_id)


class _Calls(AbstractHandler):
    """The calls of one connection; owns their tasks."""

    def __init__(self, port: Port, owner: GuardedConnection) -> None:
        self._port = port
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._open: dict[int, calls.Call] = {}
        self.tasks: dict[int, asyncio.Task[None]] = {}

    def accept(self, stream: Stream, headers: Any, release_stream: Callable[[], None]) -> None:
        """Serve a new call."""
        number = stream.id
        assert number is not None, "a request has come on it"
        call = calls.Call(stream, self._port.limits, self._owner.charge)
        task = self._loop.create_task(call.serve(headers, self._port))
        self._open[number] = call
        self.tasks[number] = task
        self._owner.busy(has_calls=True)

        # Not within the task: one that is cancelled before it began runs no line of its own.
        def done(_: asyncio.Task[None]) -> None:
            del self.tasks[number], self._open[number]
            release_stream()
            if not self.tasks:
                self._owner.busy(has_calls=False)
            self._port.ended()

        task.add_done_callback(done)

    def feed(self, stream_id: int, data: bytes) -> None:
        """Hand on bytes of requests."""
        call = self._open.get(stream_id)
        if call is not None:
            call.feed(data)

    def end(self, stream_id: int) -> None:
        """Hand on the end of the requests."""
        call = self._open.get(stream_id)
        if call is not None:
            call.end()

    def cancel(self, stream: Stream) -> None:
        """The client has reset the call."""
        task = self.tasks.get(stream.id) if stream.id is not None else None
        if task is not None:
            task.cancel()

    def close(self) -> None:
        """Cancel all calls."""
        for task in self.tasks.values():
            task.cancel()
