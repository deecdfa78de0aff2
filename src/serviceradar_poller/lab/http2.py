"""
Speak the server's side of HTTP/2 as gRPC needs it, without a socket: bytes in, calls out, bytes out.

Why not a library: a poller's requests are one small message each on a warm connection, and a general state
machine spends several times the work of the answer on them. Here a request whose header block was seen before
costs one dictionary look-up, and an answer is one concatenation:

    HEADERS :status 200, content-type   |  DATA  5 bytes prefix + message  |  HEADERS grpc-status, grpc-message
    0x88, indexed after the first time  |  within the peer's windows       |  indexed after the first time

Kept from RFC 9113: framing, SETTINGS, flow control in both directions, PING, RST_STREAM, GOAWAY, CONTINUATION;
refused as protocol errors: what a client must not send. Requests hold exactly one uncompressed message.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator

from serviceradar_poller.errors import GrpcCode
from serviceradar_poller.lab.http2_headers import BLOCK_BYTES_MAX, HeaderError, HeaderReader, HeaderWriter

#: Like Go's servers.
REQUEST_BYTES_MAX = 4 * 1024 * 1024
#: Streams that one connection may have open at a time.
STREAMS_MAX = 250
#: No more is taken from a streamed answer while this much waits for the socket.
OUTPUT_HIGH_BYTES = 256 * 1024
#: Pings faster than this, with no answer of ours in between, are strikes, as grpc-go's http2_server.go counts them.
PING_INTERVAL_MIN_S = 120.0
#: The same while no call is under way.
PING_IDLE_INTERVAL_MIN_S = 7200.0
PING_STRIKES_MAX = 2

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _PRIORITY, _RST, _SETTINGS, _PUSH, _PING, _GOAWAY, _WINDOW, _CONTINUATION = range(10)
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _HAS_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
_NO_ERROR, _PROTOCOL_ERROR, _INTERNAL_ERROR, _FLOW_ERROR, _FRAME_SIZE_ERROR = 0x0, 0x1, 0x2, 0x3, 0x6
_REFUSED_STREAM, _COMPRESSION_ERROR, _ENHANCE_YOUR_CALM = 0x7, 0x9, 0xB
_FRAME_BYTES_MAX = 16_384  # what we accept; the protocol's default
_SEND_FRAME_BYTES_MAX = 65_536
_WINDOW_DEFAULT = 65_535
_WINDOW_MAX = 2**31 - 1
#: Receive window of the whole connection: a large request must not stall on round trips.
_CONNECTION_WINDOW = 8 * 1024 * 1024
_STREAM_WINDOW = REQUEST_BYTES_MAX + 1024


class StreamEnd(enum.Enum):
    """How a stream ends, other than by its end."""

    RESET = enum.auto()


#: A message, seconds to wait before what follows, or an end.
StreamItem = bytes | float | StreamEnd


class Http2Error(Exception):
    """The peer broke the protocol; the connection ends with a GOAWAY that says so."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class Call:
    """One request, complete, and the way to answer it; answers to a call that is gone are dropped."""

    __slots__ = ("_connection", "_stream", "message", "path")

    def __init__(self, connection: Http2Server, stream: _Stream, message: bytes) -> None:
        self._connection = connection
        self._stream = stream
        self.path = stream.path
        self.message = message

    @property
    def done(self) -> bool:
        """Whether it is answered, reset by the client, or its connection is gone."""
        return self._stream.done

    def reply(self, message: bytes) -> None:
        """Answer with one message."""
        self._connection._reply(self._stream, message)

    def fail(self, code: GrpcCode, detail: str) -> None:
        """Answer with an error."""
        self._connection._fail(self._stream, code, detail)

    def stream(self, messages: Iterator[StreamItem]) -> None:
        """Answer with many messages, each taken only when there is room for it; between them it may wait."""
        self._connection._start_stream(self._stream, messages)


class _Stream:
    __slots__ = ("body", "done", "id", "path", "paused", "pending", "source", "window")

    def __init__(self, stream_id: int, path: str, window: int) -> None:
        self.id = stream_id
        self.path = path
        self.window = window  # what the peer still takes
        self.body = bytearray()
        self.pending = memoryview(b"")  # framed, waiting for window
        self.source: Iterator[StreamItem] | None = None
        self.paused = False  # its source asked for time
        self.done = False


class Http2Server:
    """
    One connection's protocol state.

    The owner feeds receive(), sends what ``out`` holds, clears it, and calls resume() when it has been sent.

    Args:
        on_call: Gets every complete request.
        wake: Called when ``out`` grew outside receive().
        now: Monotonic seconds, for the ping policy.
        later: Calls back after so many seconds, for streams that pause.
    """

    __slots__ = (
        "_continued",
        "_in",
        "_initial_window",
        "_last_id",
        "_last_ping",
        "_later",
        "_now",
        "_on_call",
        "_peer_frame",
        "_ping_pardon",
        "_ping_strikes",
        "_preface",
        "_reader",
        "_received",
        "_streams",
        "_wake",
        "_window",
        "_writer",
        "closing",
        "out",
        "pings",
    )

    def __init__(
        self,
        *,
        on_call: Callable[[Call], None],
        wake: Callable[[], None],
        now: Callable[[], float],
        later: Callable[[float, Callable[[], None]], object] | None = None,
    ) -> None:
        self._on_call = on_call
        self._later = later
        self._wake = wake
        self._now = now
        self.out = bytearray()
        self.closing = False  # nothing more is read: send what is left and close
        self.pings = 0
        self._in = bytearray()
        self._preface = False
        self._reader = HeaderReader()
        self._writer = HeaderWriter()
        self._continued: tuple[int, int, bytearray] | None = None  # stream, flags, block so far
        self._streams: dict[int, _Stream] = {}
        self._last_id = 0
        self._window = _WINDOW_DEFAULT
        self._initial_window = _WINDOW_DEFAULT
        self._peer_frame = _FRAME_BYTES_MAX
        self._received = 0  # DATA bytes not yet given back to the peer's window
        self._last_ping = float("-inf")
        self._ping_strikes = 0
        self._ping_pardon = False  # we sent something since the last ping
        settings = (
            (0x3, STREAMS_MAX),
            (0x4, _STREAM_WINDOW),
        )
        payload = b"".join(key.to_bytes(2, "big") + value.to_bytes(4, "big") for key, value in settings)
        self._frame(_SETTINGS, 0, 0, payload)
        self._frame(_WINDOW, 0, 0, (_CONNECTION_WINDOW - _WINDOW_DEFAULT).to_bytes(4, "big"))

    # in

    def receive(self, data: bytes) -> None:
        """
        Take bytes from the peer; calls and output follow from them.

        After a protocol error ``out`` ends with a GOAWAY and ``closing`` is set.
        """
        if self.closing:
            return
        try:
            self._receive(data)
        except Http2Error as error:
            self.goaway(error.code, str(error))

    def goaway(self, code: int, detail: str) -> None:
        """Say goodbye; the owner sends what is left and closes."""
        payload = self._last_id.to_bytes(4, "big") + code.to_bytes(4, "big") + detail.encode()[:256]
        self._frame(_GOAWAY, 0, 0, payload)
        self.close()

    def close(self) -> None:
        """End every call: answers to them are dropped."""
        self.closing = True
        for stream in self._streams.values():
            stream.done = True
            stream.source = None
        self._streams.clear()

    def resume(self) -> None:
        """Go on with streamed answers that waited for the socket."""
        for stream in [s for s in self._streams.values() if s.source is not None or s.pending]:
            self._pump(stream)

    def _receive(self, data: bytes) -> None:
        buffer = self._in
        buffer += data
        position = 0
        if not self._preface:
            if not PREFACE.startswith(buffer[: len(PREFACE)]):
                raise Http2Error(_PROTOCOL_ERROR, "no HTTP/2 preface")
            if len(buffer) < len(PREFACE):
                return
            self._preface = True
            position = len(PREFACE)
        size = len(buffer)
        while size - position >= 9 and not self.closing:
            length = int.from_bytes(buffer[position : position + 3], "big")
            if length > _FRAME_BYTES_MAX:
                raise Http2Error(_FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            end = position + 9 + length
            if size < end:
                break
            stream_id = int.from_bytes(buffer[position + 5 : position + 9], "big") & 0x7FFFFFFF
            self._dispatch(buffer[position + 3], buffer[position + 4], stream_id, bytes(buffer[position + 9 : end]))
            position = end
        del buffer[:position]

    def _dispatch(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if self._continued is not None and (kind != _CONTINUATION or stream_id != self._continued[0]):
            raise Http2Error(_PROTOCOL_ERROR, "a header block was not continued")
        match kind:
            case 0:
                self._on_data(flags, stream_id, payload)
            case 1:
                block = _unpad(flags, payload)
                self._on_block(flags, stream_id, block[5:] if flags & _HAS_PRIORITY else block)
            case 3:
                stream = self._streams.pop(stream_id, None)
                if stream is not None:
                    stream.done = True
                    stream.source = None
            case 4:
                self._on_settings(flags, payload)
            case 5:
                raise Http2Error(_PROTOCOL_ERROR, "a client can't push")
            case 6:
                self._on_ping(flags, payload)
            case 8:
                self._on_window(stream_id, payload)
            case 9:
                if self._continued is None:
                    raise Http2Error(_PROTOCOL_ERROR, "CONTINUATION of nothing")
                first, first_flags, whole = self._continued
                whole += payload
                if len(whole) > BLOCK_BYTES_MAX:
                    raise Http2Error(_ENHANCE_YOUR_CALM, "the header block is too long")
                if flags & _END_HEADERS:
                    self._continued = None
                    self._on_headers(first_flags, first, bytes(whole))
            case _:
                pass  # PRIORITY, the client's GOAWAY, and frames of later protocols

    def _on_block(self, flags: int, stream_id: int, block: bytes) -> None:
        if flags & _END_HEADERS:
            self._on_headers(flags, stream_id, block)
        else:
            self._continued = (stream_id, flags, bytearray(block))

    def _on_headers(self, flags: int, stream_id: int, block: bytes) -> None:
        try:
            path = self._reader.path(block)
        except HeaderError as error:
            raise Http2Error(_COMPRESSION_ERROR, str(error)) from error
        if stream_id in self._streams:  # trailers of a request
            if not flags & _END_STREAM:
                raise Http2Error(_PROTOCOL_ERROR, "a second header block within a request")
            self._complete(self._streams[stream_id])
            return
        if stream_id <= self._last_id or stream_id % 2 == 0:
            if stream_id % 2 and not flags & ~(_END_STREAM | _END_HEADERS):
                return  # trailers of a request that we answered early
            raise Http2Error(_PROTOCOL_ERROR, f"stream {stream_id} after {self._last_id}")
        self._last_id = stream_id
        if len(self._streams) >= STREAMS_MAX:
            self._frame(_RST, 0, stream_id, _REFUSED_STREAM.to_bytes(4, "big"))
            return
        stream = self._streams[stream_id] = _Stream(stream_id, path, self._initial_window)
        if flags & _END_STREAM:
            self._complete(stream)

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        self._received += len(payload)
        if self._received >= _CONNECTION_WINDOW // 2:
            self._frame(_WINDOW, 0, 0, self._received.to_bytes(4, "big"))
            self._received = 0
        stream = self._streams.get(stream_id)
        if stream is None:
            if stream_id > self._last_id or stream_id == 0:
                raise Http2Error(_PROTOCOL_ERROR, f"DATA on idle stream {stream_id}")
            return  # the rest of a request that was reset or answered early
        stream.body += _unpad(flags, payload)
        if len(stream.body) > REQUEST_BYTES_MAX + 5:
            self._fail(stream, GrpcCode.RESOURCE_EXHAUSTED, f"the request is larger than {REQUEST_BYTES_MAX}")
        elif flags & _END_STREAM:
            self._complete(stream)

    def _complete(self, stream: _Stream) -> None:
        body = stream.body
        if len(body) < 5 or int.from_bytes(body[1:5], "big") != len(body) - 5:
            self._fail(stream, GrpcCode.INTERNAL, "the request is not one whole message")
        elif body[0]:
            self._fail(stream, GrpcCode.UNIMPLEMENTED, "compression is not supported")
        else:
            message = bytes(body[5:])
            stream.body = bytearray()
            self._on_call(Call(self, stream, message))

    def _on_settings(self, flags: int, payload: bytes) -> None:
        if flags & _ACK:
            return
        if len(payload) % 6:
            raise Http2Error(_FRAME_SIZE_ERROR, "SETTINGS of a broken length")
        for offset in range(0, len(payload), 6):
            key = int.from_bytes(payload[offset : offset + 2], "big")
            value = int.from_bytes(payload[offset + 2 : offset + 6], "big")
            if key == 0x1:
                self._writer.limit_table(value)
            elif key == 0x4:
                if value > _WINDOW_MAX:
                    raise Http2Error(_FLOW_ERROR, f"an initial window of {value}")
                for stream in self._streams.values():
                    stream.window += value - self._initial_window
                self._initial_window = value
            elif key == 0x5:
                self._peer_frame = min(value, _SEND_FRAME_BYTES_MAX)
        self._frame(_SETTINGS, _ACK, 0, b"")
        self.resume()

    def _on_window(self, stream_id: int, payload: bytes) -> None:
        increment = int.from_bytes(payload, "big") & 0x7FFFFFFF
        if len(payload) != 4 or not increment:
            raise Http2Error(_PROTOCOL_ERROR, "an empty WINDOW_UPDATE")
        if stream_id == 0:
            self._window += increment
            if self._window > _WINDOW_MAX:
                raise Http2Error(_FLOW_ERROR, "the connection's window overflows")
            self.resume()
        elif (stream := self._streams.get(stream_id)) is not None:
            stream.window += increment
            self._pump(stream)

    def _on_ping(self, flags: int, payload: bytes) -> None:
        if flags & _ACK:
            return
        if len(payload) != 8:
            raise Http2Error(_FRAME_SIZE_ERROR, "PING of a broken length")
        self.pings += 1
        self._frame(_PING, _ACK, 0, payload)
        now = self._now()
        if self._ping_pardon:
            self._ping_pardon, self._ping_strikes = False, 0
        elif now - self._last_ping < (PING_INTERVAL_MIN_S if self._streams else PING_IDLE_INTERVAL_MIN_S):
            self._ping_strikes += 1
            if self._ping_strikes > PING_STRIKES_MAX:
                self.goaway(_ENHANCE_YOUR_CALM, "too_many_pings")
        self._last_ping = now

    # out

    def _frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        self.out += len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream_id.to_bytes(4, "big") + payload

    def _reply(self, stream: _Stream, message: bytes) -> None:
        if stream.done:
            return
        size = len(message) + 5
        if size > min(self._window, stream.window, self._peer_frame):
            self._start_stream(stream, iter((message,)))
            return
        self._window -= size
        self._ping_pardon = True
        stream_id = stream.id.to_bytes(4, "big")
        headers, trailers = self._writer.headers(), self._writer.trailers()
        self.out += b"".join(
            (
                len(headers).to_bytes(3, "big") + b"\x01\x04" + stream_id + headers,
                size.to_bytes(3, "big") + b"\x00\x00" + stream_id + b"\x00" + len(message).to_bytes(4, "big"),
                message,
                len(trailers).to_bytes(3, "big") + b"\x01\x05" + stream_id + trailers,
            )
        )
        self._end(stream)

    def _fail(self, stream: _Stream, code: GrpcCode, detail: str) -> None:
        if stream.done:
            return
        block = self._writer.error(code, detail, begun=stream.source is not None)
        self._frame(_HEADERS, _END_HEADERS | _END_STREAM, stream.id, block)
        self._ping_pardon = True
        self._end(stream)

    def _start_stream(self, stream: _Stream, messages: Iterator[StreamItem]) -> None:
        if stream.done:
            return
        self._frame(_HEADERS, _END_HEADERS, stream.id, self._writer.headers())
        stream.source = messages
        self._pump(stream)
        self._wake()

    def _pump(self, stream: _Stream) -> None:
        """Send as much of a streamed answer as the windows and the socket take."""
        while not stream.done:
            if not stream.pending:
                if stream.source is None or stream.paused or len(self.out) > OUTPUT_HIGH_BYTES:
                    return
                message = next(stream.source, None)
                if isinstance(message, float):
                    self._pause(stream, message)
                    return
                if message is StreamEnd.RESET:
                    self._frame(_RST, 0, stream.id, _INTERNAL_ERROR.to_bytes(4, "big"))
                    self._end(stream)
                    return
                if message is None:
                    self._frame(_HEADERS, _END_HEADERS | _END_STREAM, stream.id, self._writer.trailers())
                    self._end(stream)
                    return
                stream.pending = memoryview(b"\x00" + len(message).to_bytes(4, "big") + message)
            room = min(self._window, stream.window, self._peer_frame)
            if room <= 0 or len(self.out) > OUTPUT_HIGH_BYTES:
                return
            part = stream.pending[:room]
            stream.pending = stream.pending[len(part) :]
            self._window -= len(part)
            stream.window -= len(part)
            self._ping_pardon = True
            self.out += len(part).to_bytes(3, "big") + b"\x00\x00" + stream.id.to_bytes(4, "big")
            self.out += part

    def _pause(self, stream: _Stream, seconds: float) -> None:
        assert self._later is not None, "a stream that pauses needs a timer"
        stream.paused = True
        self._later(seconds, lambda: self._go_on(stream))

    def _go_on(self, stream: _Stream) -> None:
        stream.paused = False
        self._pump(stream)
        self._wake()

    def _end(self, stream: _Stream) -> None:
        stream.done = True
        stream.source = None
        self._streams.pop(stream.id, None)
        self._wake()


def _unpad(flags: int, payload: bytes) -> bytes:
    if not flags & _PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise Http2Error(_PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]
