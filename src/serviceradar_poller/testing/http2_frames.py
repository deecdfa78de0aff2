"""Write what an HTTP/2 server sends, right or wrong, frame by frame, and take apart what a client sent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from serviceradar_poller.transport.http2 import Call, Limits, RequestHeaders, Session
from serviceradar_poller.transport.http2.frames import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_HEADER_BYTES,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ErrorCode,
    unpack_header,
)

REQUEST = RequestHeaders(path="/monitoring.AgentService/GetStatus", authority="a:1", secure=True, user_agent="t/1")


class Frame(NamedTuple):
    """One frame, as it stands on the wire."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes


def frame(kind: int, flags: int = 0, stream_id: int = 0, payload: bytes = b"") -> bytes:
    """Write any frame."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream_id.to_bytes(4, "big") + payload


def block(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Encode fields as literals without indexing; names and values below 127 bytes each, or else in two more."""
    return b"".join(b"\x00" + _string(name) + _string(value) for name, value in fields)


def _string(value: bytes) -> bytes:
    size = len(value)
    if size < 127:
        return bytes((size,)) + value
    size -= 127
    out = b"\x7f"
    while size >= 128:
        out += bytes((size & 127 | 128,))
        size >>= 7
    return out + bytes((size,)) + value


HEADERS_OK = block([(b":status", b"200"), (b"content-type", b"application/grpc")])
TRAILERS_OK = block([(b"grpc-status", b"0")])


def settings(*pairs: tuple[int, int]) -> bytes:
    """Write SETTINGS."""
    return frame(SETTINGS, 0, 0, b"".join(key.to_bytes(2, "big") + value.to_bytes(4, "big") for key, value in pairs))


SETTINGS_ACK = frame(SETTINGS, ACK)


def headers(stream_id: int, data: bytes = HEADERS_OK, *, end: bool = False) -> bytes:
    """Write a header block in one frame."""
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream_id, data)


def trailers(stream_id: int, code: int = 0, message: bytes = b"", *more: tuple[bytes, bytes]) -> bytes:
    """Write the trailers that end an answer."""
    fields = [(b"grpc-status", b"%d" % code)]
    if message:
        fields.append((b"grpc-message", message))
    return headers(stream_id, block([*fields, *more]), end=True)


def prefixed(message: bytes, flag: int = 0) -> bytes:
    """Put gRPC's prefix before a message."""
    return bytes((flag,)) + len(message).to_bytes(4, "big") + message


def data(stream_id: int, payload: bytes = b"", *, end: bool = False, padding: int | None = None) -> bytes:
    """Write a DATA frame."""
    flags = END_STREAM if end else 0
    if padding is not None:
        return frame(DATA, flags | PADDED, stream_id, bytes((padding,)) + payload + bytes(padding))
    return frame(DATA, flags, stream_id, payload)


def datas(stream_id: int, payload: bytes, size: int = 16_384) -> bytes:
    """Write as many DATA frames as a payload needs."""
    return b"".join(data(stream_id, payload[begin : begin + size]) for begin in range(0, len(payload), size))


def answer(stream_id: int, message: bytes = b"answer") -> bytes:
    """Write a whole good answer to a unary call."""
    return headers(stream_id) + data(stream_id, prefixed(message)) + trailers(stream_id)


def rst(stream_id: int, code: int) -> bytes:
    """Write RST_STREAM."""
    return frame(RST_STREAM, 0, stream_id, code.to_bytes(4, "big"))


def goaway(last_id: int, code: int = 0, text: bytes = b"") -> bytes:
    """Write GOAWAY."""
    return frame(GOAWAY, 0, 0, last_id.to_bytes(4, "big") + code.to_bytes(4, "big") + text)


def window(stream_id: int, increment: int) -> bytes:
    """Write WINDOW_UPDATE."""
    return frame(WINDOW_UPDATE, 0, stream_id, increment.to_bytes(4, "big"))


def ping(payload: bytes = b"12345678", *, ack: bool = False) -> bytes:
    """Write PING."""
    return frame(PING, ACK if ack else 0, 0, payload)


def warm(limits: Limits | None = None, *pairs: tuple[int, int]) -> Session:
    """Return a session whose settings are exchanged, its output taken."""
    session = Session() if limits is None else Session(limits)
    session.take_output()
    assert session.receive(settings(*pairs) + SETTINGS_ACK) == []
    assert session.error is None
    assert session.take_output() == SETTINGS_ACK
    return session


def frames_of(output: bytes) -> list[Frame]:
    """Take apart what a client wrote; asserts that it is whole frames, after the preface if that is there."""
    position = len(PREFACE) if output.startswith(PREFACE) else 0
    found = []
    while position < len(output):
        high, low, kind, flags, stream_id = unpack_header(output, position)
        begin = position + FRAME_HEADER_BYTES
        position = begin + (high << 8 | low)
        assert position <= len(output), "the output ends within a frame"
        found.append(Frame(kind, flags, stream_id, output[begin:position]))
    return found


def opened(session: Session, *, streaming: bool = False) -> Call:
    """Open a call with an empty request, its output taken."""
    call = session.open(REQUEST, timeout_s=None, message=b"", streaming=streaming)
    session.take_output()
    return call


def broken(session: Session, sent: bytes) -> tuple[str, ErrorCode]:
    """Feed what ends the session; return its error's reason and code, having checked that its GOAWAY repeats it."""
    active = list(session._calls.values())
    touched = session.receive(sent)
    error = session.error
    assert error is not None and error.http2_code is not None
    assert set(active) <= set(touched)
    assert all(call.outcome is not None for call in active)
    last = frames_of(session.take_output())[-1]
    assert last.kind == GOAWAY and last.payload[:8] == bytes(4) + error.http2_code.to_bytes(4, "big")
    assert session.room == 0 and session.active == 0
    assert session.receive(answer(1)) == [] and session.take_output() == b""
    return error.reason, ErrorCode(error.http2_code)


def reset_code(session: Session, stream_id: int) -> ErrorCode:
    """Return the code of the one RST_STREAM in the output."""
    (found,) = [one for one in frames_of(session.take_output()) if one.kind == RST_STREAM]
    assert found.stream_id == stream_id
    return ErrorCode(int.from_bytes(found.payload, "big"))
