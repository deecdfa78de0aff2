"""Flow control in both directions: what is let out, what is credited, and who asked for it."""

from __future__ import annotations

import gc
import tracemalloc

import pytest

from serviceradar_poller.testing.http2_frames import (
    REQUEST,
    data,
    datas,
    frames_of,
    headers,
    prefixed,
    settings,
    trailers,
    warm,
    window,
)
from serviceradar_poller.transport.http2 import Cause, Limits, Session
from serviceradar_poller.transport.http2.frames import DATA, END_STREAM, HEADERS, RST_STREAM, WINDOW_UPDATE

KIB = 1024
LIMITS = Limits(stream_window_bytes=64 * KIB, connection_window_bytes=256 * KIB)


def body(output: bytes, stream_id: int = 1) -> bytes:
    return b"".join(one.payload for one in frames_of(output) if one.kind == DATA and one.stream_id == stream_id)


def credits(output: bytes, stream_id: int = 1) -> int:
    return sum(
        int.from_bytes(one.payload, "big")
        for one in frames_of(output)
        if one.kind == WINDOW_UPDATE and one.stream_id == stream_id
    )


# out


def test_a_small_request_is_one_output() -> None:
    """HEADERS and the DATA that ends the request leave together."""
    session = warm()
    call = session.open(REQUEST, timeout_s=2.5, message=b"hello")
    first, second = frames_of(session.take_output())
    assert (first.kind, first.flags, first.stream_id) == (HEADERS, 4, 1)
    assert second == (DATA, END_STREAM, 1, prefixed(b"hello"))
    assert call.sent_all and call.pending_bytes == 0


def test_a_large_request_waits_for_both_windows() -> None:
    """The request leaves as the connection and the stream allow, in frames the peer accepts, and loses nothing."""
    session = warm()
    message = bytes(range(256)) * 1000
    call = session.open(REQUEST, timeout_s=None, message=message)
    sent = body(session.take_output())
    assert len(sent) == 65_535 and call.pending_bytes == len(message) + 5 - 65_535
    assert session.receive(window(1, 100_000)) == [], "the connection's window is empty still"
    assert session.receive(window(0, 50_000)) == [call]
    sent += body(session.take_output())
    assert len(sent) == 115_535
    assert session.receive(window(0, 500_000)) == [call]
    assert session.receive(window(1, 500_000)) == [call]
    output = session.take_output()
    assert sent + body(output) == prefixed(message)
    assert frames_of(output)[-1].flags == END_STREAM and call.sent_all
    assert all(len(one.payload) <= 16_384 for one in frames_of(output))


def test_a_new_initial_window_moves_open_calls() -> None:
    """6.9.2: a smaller initial window may leave a call in debt, which credit has to pay first."""
    session = warm(None, (4, 100))
    call = session.open(REQUEST, timeout_s=None, message=bytes(495))
    assert len(body(session.take_output())) == 100
    session.receive(settings((4, 0)))
    assert call._send_window == -100
    assert session.receive(window(1, 100)) == []
    assert session.receive(window(1, 1)) == [call]
    assert session.receive(settings((4, 1000))) == [call]
    assert len(body(session.take_output())) == 400 and call.sent_all


def test_waiting_calls_take_turns() -> None:
    """One large request does not keep the connection's window from another that waits."""
    session = warm(None, (4, 2**20))
    large = session.open(REQUEST, timeout_s=None, message=bytes(2**19))
    other = session.open(REQUEST, timeout_s=None, message=bytes(1000))
    session.take_output()
    shares = {1: 0, 3: 0}
    for _ in range(3):
        session.receive(window(0, 1000))
        for one in frames_of(session.take_output()):
            shares[one.stream_id] += len(one.payload)
    assert shares[3] >= 1000 and large.pending_bytes and other.pending_bytes <= 5


def test_a_streamed_request_is_packed() -> None:
    """Queued messages share frames; the end goes with the last of them, or alone."""
    session = warm(None, (4, 0))
    call = session.open(REQUEST, timeout_s=None, end=False)
    for index in range(5):
        call.send(bytes((index,)), end=False)
    session.take_output()
    assert call.pending_bytes == 30
    session.receive(window(1, 1000))
    (only,) = frames_of(session.take_output())
    assert only.payload == b"".join(prefixed(bytes((index,))) for index in range(5))
    before = call.sent_all
    call.finish_sending()
    call.finish_sending()
    assert frames_of(session.take_output()) == [(DATA, END_STREAM, 1, b"")]
    assert (before, call.sent_all) == (False, True)
    with pytest.raises(AssertionError):
        call.send(b"", end=True)


def test_credit_for_an_upload_that_never_waits_is_no_flood() -> None:
    """A peer may credit each frame of a long request though no window is near its end."""
    session = warm(None, (4, 1 << 30))
    session.receive(window(0, 1 << 30))
    call = session.open(REQUEST, timeout_s=None, message=b"", end=False)
    for _ in range(3000):
        call.send(bytes(16_000), end=False)
        session.take_output()
        session.receive(window(0, 16_005) + window(1, 16_005))
    assert session.error is None and call.pending_bytes == 0


def test_the_end_needs_no_window() -> None:
    """6.9: an empty DATA frame ends the request even when the window is used up."""
    session = warm(None, (4, 6))
    call = session.open(REQUEST, timeout_s=None, message=b"x", end=False)
    session.take_output()
    call.finish_sending()
    assert frames_of(session.take_output()) == [(DATA, END_STREAM, 1, b"")]


def test_large_headers_continue() -> None:
    """6.10: a block beyond the peer's frame size goes on in CONTINUATION frames."""
    session = warm()
    metadata = [(f"x-{index}", "v" * 4000) for index in range(10)]
    session.open(REQUEST, timeout_s=None, message=b"m", metadata=metadata)
    found = frames_of(session.take_output())
    assert [(one.kind, one.flags) for one in found] == [(1, 0), (9, 0), (9, 4), (0, 1)]
    assert max(len(one.payload) for one in found) == 16_384


# early answers


@pytest.mark.parametrize("reset_too", [False, True])
def test_an_early_answer_ends_the_request(reset_too: bool) -> None:
    """8.1: a peer may answer before it has the whole request; the rest is dropped and the stream freed."""
    session = warm()
    call = session.open(REQUEST, timeout_s=None, message=bytes(200_000), end=False)
    session.take_output()
    after = b"\x00\x00\x04\x03\x00\x00\x00\x00\x01" + bytes(4) if reset_too else b""
    assert session.receive(headers(1) + data(1, prefixed(b"ok")) + trailers(1) + after) == [call]
    assert call.take() == b"ok" and call.outcome is not None and call.outcome.code == 0
    assert not call.sent_all
    assert frames_of(session.take_output()) == [(RST_STREAM, 0, 1, bytes(4))]
    call.send(b"more", end=True)
    call.finish_sending()
    assert session.take_output() == b"" and session.error is None and session.active == 0


def test_trailers_after_a_reset_come_too_late() -> None:
    """RST_STREAM closes the stream: trailers behind it are ignored, and the connection goes on."""
    session = warm()
    call = session.open(REQUEST, timeout_s=None, message=b"", end=False)
    reset = b"\x00\x00\x04\x03\x00\x00\x00\x00\x01" + bytes(4)
    assert session.receive(headers(1) + data(1, prefixed(b"ok")) + reset + trailers(1)) == [call]
    assert call.outcome is not None and (call.outcome.cause, call.outcome.code) == (Cause.RESET, 13)
    assert session.error is None


# in


def test_nothing_is_credited_without_demand() -> None:
    """A streamed answer that nobody reads gets no credit: the peer stops after one window."""
    session = warm(LIMITS)
    call = session.open(REQUEST, timeout_s=None, message=b"", streaming=True)
    session.take_output()
    session.receive(headers(1) + datas(1, prefixed(bytes(30 * KIB)) * 2))
    assert credits(session.take_output()) == 0
    assert call.buffered_bytes == 60 * KIB
    call.want()
    assert credits(session.take_output()) == 30 * KIB + 5
    assert call.take() is not None
    assert credits(session.take_output()) == 0
    assert call.take() is not None, "taking asks as well"
    assert credits(session.take_output()) == 30 * KIB + 5


def test_a_wanted_message_never_stalls() -> None:
    """While a large message is wanted, the peer always has three quarters of the window."""
    session = warm(LIMITS)
    call = session.open(REQUEST, timeout_s=None, message=b"", streaming=True)
    session.take_output()
    session.receive(headers(1))
    call.want()
    stream = prefixed(bytes(range(250)) * 4000)
    room, position = LIMITS.stream_window_bytes, 0
    while position < len(stream):
        part = stream[position : position + min(room, 10_000)]
        assert part, "the peer has nothing left to send with"
        touched = session.receive(data(1, part))
        position += len(part)
        room += credits(session.take_output()) - len(part)
        assert room * 4 >= LIMITS.stream_window_bytes * 3
        assert bool(touched) == (position == len(stream))
    assert call.take() == stream[5:]


def test_demand_that_comes_late_pays_what_is_held() -> None:
    """Bytes of a message that came before it was wanted are credited when it is."""
    session = warm(LIMITS)
    call = session.open(REQUEST, timeout_s=None, message=b"", streaming=True)
    session.take_output()
    session.receive(headers(1) + datas(1, prefixed(bytes(100 * KIB))[: 64 * KIB]))
    assert credits(session.take_output()) == 0
    call.want()
    assert credits(session.take_output()) == 64 * KIB


def test_every_byte_is_credited_once() -> None:
    """However messages, cuts and demand interleave, credit given plus credit owed is what was wanted and received."""
    session = warm(LIMITS)
    call = session.open(REQUEST, timeout_s=None, message=b"", streaming=True)
    session.take_output()
    session.receive(headers(1))
    sizes = [0, 1, 5, 20_000, 0, 7, 30_000, 300]
    stream = b"".join(prefixed(bytes(size)) for size in sizes)
    given, position, room = 0, 0, LIMITS.stream_window_bytes
    for step in range(200):
        if step % 3 == 0 and call._wanted < len(sizes):
            call.want()
        part = stream[position : position + min(997, room)]
        position += len(part)
        session.receive(data(1, part) if part else b"")
        credit = credits(session.take_output())
        given += credit
        room += credit - len(part)
        wanted = sum(size + 5 for size in sizes[: call._wanted])
        assert given + call._owed == min(wanted, position)
        assert call._receive_window == room
    taken = [call.take() for _ in sizes]
    assert [len(message or b"") for message in taken] == sizes and None not in taken


def test_a_unary_answer_needs_no_credit_when_it_fits() -> None:
    """Credit for the only message's bytes is given only where its rest exceeds the window."""
    session = warm(LIMITS)
    session.open(REQUEST, timeout_s=None, message=b"")
    session.take_output()
    session.receive(headers(1) + datas(1, prefixed(bytes(60 * KIB))[:-1]))
    assert credits(session.take_output()) == 0
    session.open(REQUEST, timeout_s=None, message=b"")
    session.take_output()
    session.receive(headers(3) + datas(3, prefixed(bytes(128 * KIB))[: 64 * KIB]))
    assert credits(session.take_output(), 3) == 64 * KIB


def test_the_connections_credit_comes_in_halves() -> None:
    """The connection's window is given back as bytes arrive, half a window at a time, wanted or not."""
    session = warm(LIMITS)
    for _ in range(4):
        session.open(REQUEST, timeout_s=None, message=b"", streaming=True)
    session.take_output()
    for call_id in (1, 3, 5, 7):
        session.receive(headers(call_id) + datas(call_id, prefixed(bytes(60 * KIB))))
    given = [int.from_bytes(one.payload, "big") for one in frames_of(session.take_output())]
    assert len(given) == 1 and given[0] >= 128 * KIB
    assert session._receive_window >= LIMITS.connection_window_bytes // 2


@pytest.mark.parametrize("size", [1, 2, 1023, 1024, 5000])
def test_a_message_in_pieces_keeps_hardly_more_than_its_bytes(size: int) -> None:
    """However small the frames that a message comes in, what is kept of it is less than a third larger; it is whole."""
    message = bytes(range(256)) * (60 * KIB // 256)
    wire = datas(1, prefixed(message), size)
    session = warm(Limits())
    call = session.open(REQUEST, timeout_s=1, message=b"m")
    session.receive(headers(1))
    last = 9 + (len(message) + 5) % size or 9 + size  # the last frame
    gc.collect()
    tracemalloc.start()
    try:
        for begin in range(0, len(wire) - last, 16 * KIB):
            session.receive(wire[begin : min(begin + 16 * KIB, len(wire) - last)])
        traced_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert call.buffered_bytes > len(message) - size and traced_bytes < 4 / 3 * len(message)
    assert session.receive(wire[-last:]) == [call]
    assert call.take() == message and call.buffered_bytes == 0


def test_an_idle_session_is_small() -> None:
    """A thousand warm, idle sessions take less than a kilobyte each."""

    def used() -> Session:
        session = warm()
        session.open(REQUEST, timeout_s=1, message=b"m")
        session.take_output()
        session.receive(headers(1) + data(1, prefixed(b"r")) + trailers(1))
        return session

    used()
    gc.collect()
    tracemalloc.start()
    try:
        sessions = [used() for _ in range(1000)]
        gc.collect()
        traced_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert traced_bytes / len(sessions) < KIB


def test_an_idle_session_keeps_little() -> None:
    """A session without calls, warm, holds no buffer, no decoder and no output."""
    session = warm()
    session.open(REQUEST, timeout_s=1, message=b"m")
    session.take_output()
    session.receive(headers(1) + data(1, prefixed(b"r")) + trailers(1))
    assert session.buffered_bytes == 0
    assert session._in is None and session._reader._decoder is None and session._blocked is None
    assert isinstance(session, Session)
