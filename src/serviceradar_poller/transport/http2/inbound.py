"""Apply each frame that arrives to the session, and refuse what a server must not send."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from serviceradar_poller.errors import GrpcCode
from serviceradar_poller.transport.http2 import frames
from serviceradar_poller.transport.http2.frames import BrokenSessionError, ErrorCode
from serviceradar_poller.transport.http2.limits import FRAME_BYTES_DEFAULT, FRAME_BYTES_MAX, WINDOW_MAX
from serviceradar_poller.transport.http2.status import (
    BrokenCallError,
    Cause,
    GoAway,
    Metadata,
    Outcome,
    error_name,
    of_http,
    of_reset,
)

if TYPE_CHECKING:
    from serviceradar_poller.transport.http2.call import Call
    from serviceradar_poller.transport.http2.responses import Block
    from serviceradar_poller.transport.http2.session import Session

_UNTRAILED: Final = Outcome(
    cause=Cause.PROTOCOL, code=GrpcCode.INTERNAL.value, message="the answer ended without trailers"
)
#: Calls whose windows are moved for what answering a ping costs.
CALLS_PER_ASK: Final = 16


class OpenBlock:
    """A header block whose CONTINUATION frames have not all arrived."""

    __slots__ = ("continuations", "data", "ends", "stream_id")

    def __init__(self, stream_id: int, ends: bool, data: bytearray) -> None:
        self.stream_id = stream_id
        self.ends = ends
        self.data = data
        self.continuations = 0


def check_frame(session: Session, kind: int, flags: int, data: bytes, position: int, size: int) -> None:
    """
    Check that the first frame of all is the peer's SETTINGS; any later one is here because it is too large.

    Source: RFC 9113, 3.4 and 4.2.

    Raises:
        BrokenSessionError: The peer speaks something else, or its frame is too large.
    """
    if session.ready:
        raise BrokenSessionError(ErrorCode.FRAME_SIZE_ERROR, "frame_size", f"a frame of {size} bytes")
    begin = data[position : position + frames.FRAME_HEADER_BYTES]
    if begin.startswith(b"HTTP/"):
        raise BrokenSessionError(ErrorCode.PROTOCOL_ERROR, "http1", "the peer speaks HTTP/1")
    if kind != frames.SETTINGS or flags & frames.ACK or size > session.limits.frame_bytes_max:
        raise BrokenSessionError(ErrorCode.PROTOCOL_ERROR, "not_http2", f"the peer does not speak HTTP/2: {begin!r}")


def hollow(session: Session) -> None:
    """Count a frame that carries nothing."""
    session._hollow += 1
    if session._hollow > session.limits.hollow_frames_max:
        raise BrokenSessionError(ErrorCode.ENHANCE_YOUR_CALM, "flood", "too many frames that carry nothing")


def _reply(session: Session) -> None:
    """Count a frame that makes this side write."""
    session._replies += 1
    if session._replies > session.limits.replies_max:
        raise BrokenSessionError(ErrorCode.ENHANCE_YOUR_CALM, "flood", "too many frames that ask for an answer")


def _ask(session: Session, cost: int = 1) -> None:
    """Count a frame that has to be answered, and is for no call; one may cost as much as several."""
    session._asked += cost
    if session._asked > session.limits.asks_max:
        raise BrokenSessionError(ErrorCode.ENHANCE_YOUR_CALM, "flood", "too many PING and SETTINGS")
    _reply(session)


def _protocol(text: str) -> BrokenSessionError:
    return BrokenSessionError(ErrorCode.PROTOCOL_ERROR, "protocol", text)


def _size_wrong(name: str, size: int) -> BrokenSessionError:
    return BrokenSessionError(ErrorCode.FRAME_SIZE_ERROR, "frame_size", f"{name} of {size} bytes")


def _check_opened(session: Session, name: str, stream_id: int) -> None:
    """Refuse a frame on a stream that this side has not opened. [RFC 9113, 5.1]"""
    if stream_id == 0 or not stream_id & 1 or stream_id >= session._next_id:
        raise _protocol(f"{name} on stream {stream_id}, which is idle")


def _fault(text: str, code: ErrorCode = ErrorCode.PROTOCOL_ERROR) -> Outcome:
    return Outcome(cause=Cause.PROTOCOL, code=GrpcCode.INTERNAL.value, message=text, http2_code=code.value)


def _on_data(session: Session, flags: int, stream_id: int, data: bytes, begin: int, end: int) -> None:
    size = end - begin
    session._receive_window -= size
    if session._receive_window < 0:
        raise BrokenSessionError(ErrorCode.FLOW_CONTROL_ERROR, "flow_control", "more data than the connection's window")
    session._owed += size
    if session._owed * 2 >= session.limits.connection_window_bytes:
        session._receive_window += session._owed
        session._out.append(frames.window_update(0, session._owed))
        session._owed = 0
    if flags & frames.PADDED:
        begin, end = frames.unpadded(flags, data, begin, end)
    call = session._calls.get(stream_id)
    if call is None:
        _on_late_data(session, stream_id, size, flags)
        return
    call._receive_window -= size
    if call._receive_window < 0:
        session._reset(call, _fault("more data than the call's window", ErrorCode.FLOW_CONTROL_ERROR))
        return
    if call._block is None:
        session._reset(call, _fault("data before the answer's headers"))
        return
    call._owed += size - (end - begin)  # padding
    if begin == end and not flags & frames.END_STREAM:
        hollow(session)
    else:
        session._hollow = 0
    arrived = call._arrived
    try:
        call._feed(data, begin, end, session.limits.message_bytes_max)
    except BrokenCallError as fault:
        session._reset(call, fault.outcome)
        return
    if flags & frames.END_STREAM:
        session._finish(call, _UNTRAILED)
    else:
        session._credit(call)
        if call._arrived != arrived:
            session._touch(call)


def _on_late_data(session: Session, stream_id: int, size: int, flags: int) -> None:
    """Take data of a call that is over: expected within its window after our reset, hollow otherwise."""
    _check_opened(session, "DATA", stream_id)
    expected = session._late
    if expected is None or stream_id not in expected:
        hollow(session)
        return
    headers, window = expected[stream_id]
    window -= size
    if window < 0:
        raise BrokenSessionError(ErrorCode.FLOW_CONTROL_ERROR, "flow_control", "more data than a reset call's window")
    if size == 0:
        hollow(session)
    expected[stream_id] = (headers, window)
    if flags & frames.END_STREAM:
        del expected[stream_id]


def _on_late_headers(session: Session, stream_id: int, *, ends: bool) -> None:
    """Take headers of a call that is over: after our reset, those of its answer are expected; hollow otherwise."""
    _check_opened(session, "HEADERS", stream_id)
    expected = session._late
    if expected is None or stream_id not in expected:
        hollow(session)
        return
    headers, window = expected[stream_id]
    if ends:
        del expected[stream_id]
    elif headers:
        expected[stream_id] = (False, window)
    else:
        hollow(session)


def _on_headers(session: Session, flags: int, stream_id: int, data: bytes, begin: int, end: int) -> None:
    if flags & (frames.PADDED | frames.HAS_PRIORITY):
        begin, end = frames.unpadded(flags, data, begin, end)
        if flags & frames.HAS_PRIORITY:
            begin += 5
        if begin > end:
            raise _size_wrong("HEADERS", end - begin + 5)
    if flags & frames.END_HEADERS:
        _on_block(session, stream_id, bool(flags & frames.END_STREAM), data[begin:end])
    else:
        _check_opened(session, "HEADERS", stream_id)
        session._block = OpenBlock(stream_id, bool(flags & frames.END_STREAM), bytearray(memoryview(data)[begin:end]))


def _on_continuation(session: Session, flags: int, stream_id: int, data: bytes, begin: int, end: int) -> None:
    block = session._block
    if block is None:
        raise _protocol(f"CONTINUATION of nothing on stream {stream_id}")
    block.continuations += 1
    if (
        block.continuations > session.limits.continuations_max
        or len(block.data) + end - begin > session.limits.header_block_bytes_max
    ):
        raise BrokenSessionError(ErrorCode.ENHANCE_YOUR_CALM, "header_block", "a header block that is too long")
    block.data += memoryview(data)[begin:end]
    if flags & frames.END_HEADERS:
        session._block = None
        _on_block(session, stream_id, block.ends, bytes(block.data))


def _on_block(session: Session, stream_id: int, ends: bool, data: bytes) -> None:
    call = session._calls.get(stream_id)
    block = session._reader.known.get(data)
    if block is None and (call is not None or not session._reader.stateless):
        block = session._reader.read(data)
    if call is None:
        _on_late_headers(session, stream_id, ends=ends)
        return
    assert block is not None
    if block.fault is not None:
        session._reset(call, block.fault)
    elif call._block is None:
        _on_first_block(session, call, block, ends)
    elif not ends or block.http_status is not None:
        session._reset(call, _fault("malformed headers: a second header block that is not trailers"))
    else:
        outcome = block.outcome or _status_missing("the trailers have no grpc-status", block.metadata)
        session._finish(call, call._conclude(outcome))


def _on_first_block(session: Session, call: Call, block: Block, ends: bool) -> None:
    status = block.http_status
    if status is None:
        session._reset(call, _fault("malformed headers: no :status"))
    elif status < 200:
        call.informational += 1
        if ends or status == 101:
            session._reset(call, _fault(f"malformed headers: HTTP status {status}"))
        elif call.informational > session.limits.informational_max:
            session._reset(call, _fault("too many interim answers", ErrorCode.ENHANCE_YOUR_CALM))
    elif block.outcome is not None and ends:
        session._finish(call, call._conclude(block.outcome))
    elif status == 200 and block.is_grpc and not ends:
        call._block = block
        session._hollow = 0
    else:
        if status != 200:
            text = f"HTTP status {status} without a gRPC status"
        elif not block.is_grpc:
            text = f"HTTP status 200 with content-type {block.content_type!r}, not gRPC"
        else:
            text = "the answer ended without a gRPC status"
        outcome = Outcome(
            cause=Cause.PROTOCOL, code=of_http(status).value, message=text, http2_code=ErrorCode.CANCEL.value
        )
        if ends:
            session._finish(call, outcome)
        else:
            session._reset(call, outcome)


def _status_missing(text: str, metadata: Metadata) -> Outcome:
    return Outcome(cause=Cause.PROTOCOL, code=GrpcCode.UNKNOWN.value, message=text, metadata=metadata)


def _on_priority(session: Session, flags: int, stream_id: int, data: bytes, begin: int, end: int) -> None:
    """Ignore it, as RFC 9113 does, but for its form."""
    del flags, data
    if stream_id == 0:
        raise _protocol("PRIORITY on stream 0")
    call = session._calls.get(stream_id)
    if end - begin != 5 and call is not None:
        session._reset(call, _fault(f"PRIORITY of {end - begin} bytes", ErrorCode.FRAME_SIZE_ERROR))
        return
    hollow(session)


def _on_rst_stream(session: Session, flags: int, stream_id: int, data: bytes, begin: int, end: int) -> None:
    del flags
    if end - begin != 4:
        raise _size_wrong("RST_STREAM", end - begin)
    call = session._calls.get(stream_id)
    if call is not None:
        session._drop(call, of_reset(int.from_bytes(data[begin:end], "big")))
        return
    _check_opened(session, "RST_STREAM", stream_id)
    if session._late is not None:
        session._late.pop(stream_id, None)
    hollow(session)


def _on_settings(session: Session, flags: int, stream_id: int, data: bytes, begin: int, end: int) -> None:
    size = end - begin
    if stream_id:
        raise _protocol(f"SETTINGS on stream {stream_id}")
    if flags & frames.ACK:
        if size:
            raise _size_wrong("an acknowledgement of SETTINGS", size)
        if session._settings_acked:
            hollow(session)
        else:
            session._settings_acked = True
            session._reader.table_refused()
        return
    if size % 6:
        raise _size_wrong("SETTINGS", size)
    if size // 6 > session.limits.settings_max:
        raise BrokenSessionError(ErrorCode.ENHANCE_YOUR_CALM, "flood", f"SETTINGS with {size // 6} entries")
    initial_window = session._initial_window
    if not session.ready:
        session.ready = True
        session._peer_calls_max = session.limits.calls_max
    for key, value in frames.iter_settings(memoryview(data)[begin:end]):
        if key == frames.SETTING_MAX_CONCURRENT_STREAMS:
            session._peer_calls_max = min(value, session.limits.calls_max)
        elif key == frames.SETTING_INITIAL_WINDOW_SIZE:
            if value > WINDOW_MAX:
                raise BrokenSessionError(ErrorCode.FLOW_CONTROL_ERROR, "settings", f"an initial window of {value}")
            initial_window = value
        elif key == frames.SETTING_HEADER_TABLE_SIZE:
            session._limit_table(value)
        elif key == frames.SETTING_MAX_FRAME_SIZE:
            if not FRAME_BYTES_DEFAULT <= value <= FRAME_BYTES_MAX:
                raise BrokenSessionError(ErrorCode.PROTOCOL_ERROR, "settings", f"a frame size of {value}")
            session._peer_frame = value
        elif key == frames.SETTING_ENABLE_PUSH and value:
            raise BrokenSessionError(ErrorCode.PROTOCOL_ERROR, "settings", "a server that enables push")
    delta = initial_window - session._initial_window
    _ask(session, 1 + len(session._calls) // CALLS_PER_ASK if delta else 1)
    session._out.append(frames.frame(frames.SETTINGS, frames.ACK, 0))
    if delta:
        session._initial_window = initial_window
        for call in session._calls.values():
            call._send_window += delta
            if call._send_window > WINDOW_MAX:
                raise BrokenSessionError(ErrorCode.FLOW_CONTROL_ERROR, "flow_control", "SETTINGS overflow a window")
        if delta > 0:
            for call in session._calls.values():
                if call.pending_bytes:
                    _pump(session, call)


def _pump(session: Session, call: Call) -> bool:
    """Let out what the windows allow of a call's request; return whether that was anything."""
    before = call.pending_bytes
    session._pump(call)
    if call.pending_bytes == before:
        return False
    session._touch(call)
    return True


def _pump_blocked(session: Session) -> bool:
    """Share the connection's credit among the calls that wait for it; return whether anything was let out."""
    let_out = False
    while session._send_window > 0 and session._blocked:
        # Either it uses the credit up, or it is no longer among them.
        let_out |= _pump(session, next(iter(session._blocked.values())))
    return let_out


def _on_credit(session: Session, let_out: bool) -> None:
    """Count credit: byte by byte it would make a frame of each, and where nothing waits it is for nothing."""
    if let_out:
        _reply(session)
    else:
        hollow(session)


def _on_push(session: Session, flags: int, stream_id: int, data: bytes, begin: int, end: int) -> None:
    del session, flags, data, begin, end
    raise _protocol(f"PUSH_PROMISE on stream {stream_id}, though push is off")


def _on_ping(session: Session, flags: int, stream_id: int, data: bytes, begin: int, end: int) -> None:
    if stream_id:
        raise _protocol(f"PING on stream {stream_id}")
    if end - begin != 8:
        raise _size_wrong("PING", end - begin)
    payload = data[begin:end]
    if not flags & frames.ACK:
        _ask(session)
        session._out.append(frames.frame(frames.PING, frames.ACK, 0, payload))
    elif session.ping_pending and payload == session._ping_payload():
        session.ping_pending = False
    else:
        hollow(session)


def _on_goaway(session: Session, flags: int, stream_id: int, data: bytes, begin: int, end: int) -> None:
    del flags
    if stream_id:
        raise _protocol(f"GOAWAY on stream {stream_id}")
    if end - begin < 8:
        raise _size_wrong("GOAWAY", end - begin)
    last_id = int.from_bytes(data[begin : begin + 4], "big") & 0x7FFF_FFFF
    code = int.from_bytes(data[begin + 4 : begin + 8], "big")
    chars_max = session.limits.status_text_chars_max
    text = data[begin + 8 : min(end, begin + 8 + chars_max * 4)].decode("utf-8", "replace")[:chars_max]
    known = session.going_away
    if known is not None:
        hollow(session)
        last_id = min(last_id, known.last_stream_id)
    session.going_away = GoAway(last_stream_id=last_id, code=code, text=text)
    if known is not None and last_id == known.last_stream_id:
        return
    detail = f"the peer is closing the connection: {error_name(code)}{f', {text}' if text else ''}"
    outcome = Outcome(cause=Cause.REFUSED, code=GrpcCode.UNAVAILABLE.value, message=detail, http2_code=code)
    for call in [call for call in session._calls.values() if call.id > last_id]:
        session._drop(call, outcome)


def _on_window_update(session: Session, flags: int, stream_id: int, data: bytes, begin: int, end: int) -> None:
    del flags
    if end - begin != 4:
        raise _size_wrong("WINDOW_UPDATE", end - begin)
    increment = int.from_bytes(data[begin:end], "big") & 0x7FFF_FFFF
    if stream_id == 0:
        if not increment:
            raise _protocol("a WINDOW_UPDATE of 0")
        session._send_window += increment
        if session._send_window > WINDOW_MAX:
            raise BrokenSessionError(ErrorCode.FLOW_CONTROL_ERROR, "flow_control", "the connection's window overflows")
        _on_credit(session, _pump_blocked(session))
        return
    call = session._calls.get(stream_id)
    if call is None:
        _check_opened(session, "WINDOW_UPDATE", stream_id)
        hollow(session)
        return
    if not increment:
        session._reset(call, _fault("a WINDOW_UPDATE of 0"))
        return
    call._send_window += increment
    if call._send_window > WINDOW_MAX:
        session._reset(call, _fault("the call's window overflows", ErrorCode.FLOW_CONTROL_ERROR))
    else:
        _on_credit(session, bool(call.pending_bytes) and _pump(session, call))


#: By the frame's kind.
HANDLERS: Final[tuple[Callable[[Session, int, int, bytes, int, int], None], ...]] = (
    _on_data,
    _on_headers,
    _on_priority,
    _on_rst_stream,
    _on_settings,
    _on_push,
    _on_ping,
    _on_goaway,
    _on_window_update,
    _on_continuation,
)
KINDS: Final = len(HANDLERS)
