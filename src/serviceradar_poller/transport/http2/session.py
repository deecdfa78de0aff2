"""Keep one connection's state: which calls are open, what the windows allow, and what is to be written."""

from __future__ import annotations

from collections.abc import Sequence

from serviceradar_poller.errors import GrpcCode
from serviceradar_poller.transport.http2 import frames, inbound
from serviceradar_poller.transport.http2.call import Call
from serviceradar_poller.transport.http2.frames import BrokenSessionError, ErrorCode
from serviceradar_poller.transport.http2.limits import (
    FRAME_BYTES_DEFAULT,
    STREAM_ID_MAX,
    TABLE_BYTES_DEFAULT,
    WINDOW_DEFAULT,
    Limits,
)
from serviceradar_poller.transport.http2.requests import TABLE_EMPTIED, RequestHeaders, metadata_fields, timeout_field
from serviceradar_poller.transport.http2.responses import BlockReader
from serviceradar_poller.transport.http2.status import Cause, GoAway, Outcome, SessionError

_DEFAULTS = Limits()
#: Of our own text in a GOAWAY.
_GOAWAY_TEXT_BYTES_MAX = 256


class Session:
    """
    The client's side of one HTTP/2 connection.

    Its owner feeds receive(), and writes what take_output() gives after every use of the session or of a call.

    Attributes:
        limits: What the peer is held to.
        ready: The peer's SETTINGS have arrived.
        ping_pending: A ping of ours is not answered.
        going_away: The peer's GOAWAY; of several the one that allows least.
        error: What ended the session; after that receive() does nothing and no call can be opened.
    """

    __slots__ = (
        "_asked",
        "_block",
        "_blocked",
        "_calls",
        "_hollow",
        "_in",
        "_initial_window",
        "_late",
        "_need",
        "_next_id",
        "_out",
        "_owed",
        "_peer_calls_max",
        "_peer_frame",
        "_pings",
        "_reader",
        "_receive_window",
        "_replies",
        "_send_window",
        "_settings_acked",
        "_table_notice",
        "_table_size",
        "_touched",
        "error",
        "going_away",
        "limits",
        "ping_pending",
        "ready",
    )

    def __init__(self, limits: Limits = _DEFAULTS) -> None:
        self.limits = limits
        self.ready = False
        self.ping_pending = False
        self.going_away: GoAway | None = None
        self.error: SessionError | None = None
        self._calls: dict[int, Call] = {}
        self._next_id = 1
        self._touched: list[Call] | None = None  # by what is being received now
        # in
        self._in: bytearray | None = None  # the begin of a frame
        self._need = 0  # its size, or what has to be there to know it
        self._block: inbound.OpenBlock | None = None  # a header block that is being continued
        self._reader = BlockReader(limits)
        self._receive_window = limits.connection_window_bytes  # what the peer may send
        self._owed = 0  # received: credit to give
        # What may still come on calls that were reset here: whether headers, and how much data.
        self._late: dict[int, tuple[bool, int]] | None = None
        self._hollow = 0
        self._asked = 0
        self._settings_acked = False
        self._pings = 0
        # out
        self._send_window = WINDOW_DEFAULT
        self._initial_window = WINDOW_DEFAULT
        self._peer_frame = FRAME_BYTES_DEFAULT
        self._peer_calls_max = limits.calls_before_settings_max
        self._table_size = TABLE_BYTES_DEFAULT  # of the table that our blocks could use, and don't
        self._table_notice = b""  # what the next block begins with
        self._blocked: dict[int, Call] | None = None  # calls that wait for the connection's window, longest first
        self._replies = 0
        self._out: list[bytes | memoryview] = [_greeting(limits)]

    @property
    def room(self) -> int:
        """How many more calls may be opened now."""
        if self.error is not None or self.going_away is not None or self._next_id > STREAM_ID_MAX:
            return 0
        left = (STREAM_ID_MAX - self._next_id) // 2 + 1
        return max(min(self._peer_calls_max - len(self._calls), left), 0)

    @property
    def active(self) -> int:
        """How many calls are open."""
        return len(self._calls)

    @property
    def buffered_bytes(self) -> int:
        """What is kept of bytes from the peer and for it, by the session and its open calls together."""
        own = len(self._in or b"") + sum(map(len, self._out)) + self._reader.buffered_bytes
        own += len(self._block.data) if self._block is not None else 0
        return own + sum(call.buffered_bytes for call in self._calls.values())

    def open(
        self,
        headers: RequestHeaders,
        *,
        timeout_s: float | None,
        message: bytes | None = None,
        end: bool = True,
        metadata: Sequence[tuple[str, str | bytes]] = (),
        streaming: bool = False,
    ) -> Call:
        """
        Begin a call.

        Args:
            timeout_s: What the peer is told; None for no limit.
            message: First message of the request.
            end: Whether the request ends with it.
            metadata: Sent with this call alone.
            streaming: Whether the answer may have any number of messages; see Call.want().

        Raises:
            AssertionError: There is no room.
            ValueError: The metadata can't be sent; no call was begun.
        """
        assert self.room > 0, "no room for a call"
        block = headers.block
        if timeout_s is not None:
            block += timeout_field(timeout_s)
        if metadata:
            block += metadata_fields(metadata)
        if self._table_notice:
            block = self._table_notice + block
            self._table_notice = b""
        call_id = self._next_id
        self._next_id = call_id + 2
        call = Call(
            self,
            call_id,
            streaming=streaming,
            receive_window=self.limits.stream_window_bytes,
            send_window=self._initial_window,
        )
        self._calls[call_id] = call
        self._hollow = self._asked = 0
        frame_max = self._peer_frame
        if message is not None and end and len(block) <= frame_max:
            size = len(message) + 5
            if size <= frame_max and size <= self._send_window and size <= self._initial_window:
                self._send_window -= size
                call._send_window -= size
                call._ending = call.sent_all = True
                self._out += (
                    frames.frame_header(len(block), frames.HEADERS, frames.END_HEADERS, call_id),
                    block,
                    frames.data_header(len(message), frames.END_STREAM, call_id),
                    message,
                )
                return call
        ends_here = message is None and end
        self._out.append(frames.headers_frames(call_id, block, frames.END_STREAM if ends_here else 0, frame_max))
        if ends_here:
            call._ending = call.sent_all = True
        elif message is not None:
            call.send(message, end=end)
        return call

    def receive(self, data: bytes) -> list[Call]:
        """
        Take bytes from the peer.

        Returns:
            The calls that have a new message, an end, or bytes let out; each once. Never raises: what the peer must
            not do ends a call, or sets ``error`` and leaves a GOAWAY in the output.
        """
        if self.error is not None:
            return []
        touched = self._touched = []
        try:
            self._parse(data)
        except BrokenSessionError as fault:
            self._fail(SessionError(reason=fault.reason, detail=str(fault), http2_code=fault.code.value))
        self._touched = None
        for call in touched:
            call._touched = False
        return touched

    def take_output(self) -> bytes:
        """Return everything that is to be written now, empty when there is nothing."""
        out = self._out
        if not out:
            return b""
        data = b"".join(out)
        out.clear()
        self._replies = 0
        return data

    def ping(self) -> None:
        """Ask the peer for a sign of life; only the answer to the latest ping clears ``ping_pending``."""
        if self.error is None:
            self._pings += 1
            self.ping_pending = True
            self._out.append(frames.frame(frames.PING, 0, 0, self._ping_payload()))

    def close(self) -> None:
        """Say goodbye: calls under way end with CONNECTION. May be called twice."""
        if self.error is None:
            error = SessionError(reason="closed", detail="closed by this side", http2_code=ErrorCode.NO_ERROR.value)
            self._fail(error)

    def eof(self) -> list[Call]:
        """
        Take note that no more bytes come.

        Returns:
            The calls that it ended.
        """
        if self.error is not None:
            return []
        touched = list(self._calls.values())
        self._fail(SessionError(reason="eof", detail=self._eof_detail()))
        self._out.clear()
        return touched

    def _parse(self, data: bytes) -> None:
        position = 0 if self._in is None else self._complete(data)
        frame_max = self.limits.frame_bytes_max
        handlers = inbound.HANDLERS
        size = len(data)
        need = frames.FRAME_HEADER_BYTES
        while size - position >= frames.FRAME_HEADER_BYTES:
            high, low, kind, flags, stream_id = frames.unpack_header(data, position)
            begin = position + frames.FRAME_HEADER_BYTES
            end = begin + (high << 8 | low)
            if end - begin > frame_max or not self.ready:
                inbound.check_frame(self, kind, flags, data, position, end - begin)
            if end > size:
                need = end - position
                break
            stream_id &= 0x7FFF_FFFF
            if self._block is not None and (kind != frames.CONTINUATION or stream_id != self._block.stream_id):
                raise BrokenSessionError(ErrorCode.PROTOCOL_ERROR, "continuation", "a header block was not continued")
            if kind < inbound.KINDS:
                handlers[kind](self, flags, stream_id, data, begin, end)
            else:
                inbound.hollow(self)
            position = end
        if position < size:
            self._in = bytearray(memoryview(data)[position:])
            self._need = need

    def _complete(self, data: bytes) -> int:
        """Put the frame that was begun together and apply it; return where in *data* the next one begins."""
        position, size = 0, len(data)
        # What follows the frame is not copied for it. Twice at most: for the frame's header, then for the rest.
        while (buffer := self._in) is not None and position < size:
            lacking = self._need - len(buffer)
            buffer += memoryview(data)[position : position + lacking]
            position += lacking
            if position <= size:
                self._in = None
                self._parse(bytes(buffer))
        return min(position, size)

    def _eof_detail(self) -> str:
        if self.ready:
            return "the peer closed the connection"
        begin = bytes(self._in or b"")
        if begin[:2] == b"\x15\x03":
            return "the peer answered with a TLS alert and closed the connection"
        if begin:
            return f"the peer closed the connection after {len(begin)} bytes that are not HTTP/2"
        return "the peer closed the connection without HTTP/2 settings"

    def _fail(self, error: SessionError) -> None:
        """End the session and every call."""
        self.error = error
        if error.http2_code is not None:
            text = error.detail.encode()[:_GOAWAY_TEXT_BYTES_MAX]
            payload = bytes(4) + error.http2_code.to_bytes(4, "big") + text
            self._out.append(frames.frame(frames.GOAWAY, 0, 0, payload))
        outcome = Outcome(cause=Cause.CONNECTION, code=GrpcCode.UNAVAILABLE.value, message=error.detail)
        for call in list(self._calls.values()):
            self._drop(call, outcome)
        self._in = self._block = self._late = None
        self.ping_pending = False

    def _ping_payload(self) -> bytes:
        return self._pings.to_bytes(8, "big")

    # for calls and for what arrives

    def _touch(self, call: Call) -> None:
        if self._touched is not None and not call._touched:
            call._touched = True
            self._touched.append(call)

    def _drop(self, call: Call, outcome: Outcome) -> None:
        """End a call."""
        del self._calls[call.id]
        self._unblock(call)
        call._end(outcome)
        self._touch(call)

    def _finish(self, call: Call, outcome: Outcome) -> None:
        """End a call whose answer is complete."""
        if not call.sent_all:
            # The peer has its reasons to answer before it has the whole request; this frees the stream on its side.
            self._out.append(frames.rst_stream(call.id, ErrorCode.NO_ERROR))
        self._drop(call, outcome)

    def _reset(self, call: Call, outcome: Outcome) -> None:
        """End a call from this side, with the code that the outcome names."""
        assert outcome.http2_code is not None
        self._out.append(frames.rst_stream(call.id, ErrorCode(outcome.http2_code)))
        if self._late is None:
            self._late = {}
        elif len(self._late) >= self.limits.reset_streams_max:
            del self._late[next(iter(self._late))]
        self._late[call.id] = (call._block is None, max(call._receive_window, 0))
        self._drop(call, outcome)

    def _credit(self, call: Call) -> None:
        """Let the peer send more on a call, once that is worth a frame."""
        owed = call._owed
        if owed * 4 < self.limits.stream_window_bytes:
            return
        if not call.streaming and call._have and call._need - call._have <= call._receive_window:
            return  # the rest of the only message fits already
        call._owed = 0
        call._receive_window += owed
        self._out.append(frames.window_update(call.id, owed))

    def _limit_table(self, size: int) -> None:
        """
        Take note of the largest table that the peer keeps for our header blocks.

        They use none. A peer that lowers it below what it began with wants to read that all the same, at the begin of
        the next block, and some end the connection without. [RFC 7541, 4.2; RFC 9113, 4.3.1]
        """
        if size < self._table_size:
            self._table_size = 0
            self._table_notice = TABLE_EMPTIED

    def _pump(self, call: Call) -> None:
        """
        Let out what the windows allow of a call's request.

        A call that waits for its own window alone is not among those that the connection's credit looks at.
        """
        pending = call._pending
        let_out = False
        while pending:
            room = min(self._send_window, call._send_window, self._peer_frame)
            if room <= 0:
                if call._send_window <= 0:
                    self._unblock(call)
                    return
                if self._blocked is None:
                    self._blocked = {}
                if let_out:  # behind those that wait longer: one large request must not starve the others
                    self._blocked.pop(call.id, None)
                self._blocked.setdefault(call.id, call)
                return
            parts: list[bytes | memoryview] = []
            size = 0
            while pending and size < room:
                piece = pending[0]
                if len(piece) <= room - size:
                    pending.popleft()
                else:
                    rest = memoryview(piece)
                    pending[0] = rest[room - size :]
                    piece = rest[: room - size]
                parts.append(piece)
                size += len(piece)
            last = call._ending and not pending
            self._out.append(frames.frame_header(size, frames.DATA, frames.END_STREAM if last else 0, call.id))
            self._out += parts
            self._send_window -= size
            call._send_window -= size
            call.pending_bytes -= size
            call.sent_all = last
            let_out = True
            self._hollow = 0  # credit for it may come at any time, also when nothing waits for it
        if call._ending and not call.sent_all:
            call.sent_all = True
            self._out.append(frames.frame_header(0, frames.DATA, frames.END_STREAM, call.id))
        self._unblock(call)

    def _unblock(self, call: Call) -> None:
        if self._blocked is not None and self._blocked.pop(call.id, None) is not None and not self._blocked:
            self._blocked = None


def _greeting(limits: Limits) -> bytes:
    """Write what a client sends first. No table: answers may be remembered by their bytes. No pushes."""
    return b"".join(
        (
            frames.PREFACE,
            frames.settings(
                (frames.SETTING_HEADER_TABLE_SIZE, 0),
                (frames.SETTING_ENABLE_PUSH, 0),
                (frames.SETTING_INITIAL_WINDOW_SIZE, limits.stream_window_bytes),
                (frames.SETTING_MAX_FRAME_SIZE, limits.frame_bytes_max),
                (frames.SETTING_MAX_HEADER_LIST_SIZE, limits.header_list_bytes_max),
            ),
            frames.window_update(0, limits.connection_window_bytes - WINDOW_DEFAULT)
            if limits.connection_window_bytes > WINDOW_DEFAULT
            else b"",
        )
    )
