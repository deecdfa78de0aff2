"""What RFC 9113 asks of a client, section by section, and the limits that guard it."""

from __future__ import annotations

import dataclasses

import pytest

from serviceradar_poller.testing.http2_frames import (
    HEADERS_OK,
    REQUEST,
    SETTINGS_ACK,
    TRAILERS_OK,
    Frame,
    answer,
    block,
    data,
    datas,
    frame,
    frames_of,
    goaway,
    headers,
    ping,
    prefixed,
    rst,
    settings,
    trailers,
    warm,
    window,
)
from serviceradar_poller.transport.http2 import Call, Cause, Limits, Session, SessionError
from serviceradar_poller.transport.http2.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ErrorCode,
)

MAX = 2**31 - 1


def opened(session: Session, *, streaming: bool = False) -> Call:
    call = session.open(REQUEST, timeout_s=None, message=b"", streaming=streaming)
    session.take_output()
    return call


def broken(session: Session, data_: bytes) -> tuple[str, ErrorCode]:
    """Feed what ends the session; return its error's reason and code, which the GOAWAY repeats."""
    active = list(session._calls.values())
    touched = session.receive(data_)
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
    (found,) = [one for one in frames_of(session.take_output()) if one.kind == RST_STREAM]
    assert found.stream_id == stream_id
    return ErrorCode(int.from_bytes(found.payload, "big"))


# 3: starting


def test_the_preface_comes_first() -> None:
    """3.4: the preface, then SETTINGS with no table and no push, then the connection's window."""
    output = Session(Limits()).take_output()
    assert output.startswith(PREFACE)
    first, second = frames_of(output)
    pairs = {first.payload[i + 1]: int.from_bytes(first.payload[i + 2 : i + 6], "big") for i in range(0, 30, 6)}
    assert first[:3] == (SETTINGS, 0, 0)
    assert pairs == {1: 0, 2: 0, 4: 256 * 1024, 5: 16_384, 6: 16_384}
    assert second == Frame(WINDOW_UPDATE, 0, 0, (1024 * 1024 - 65_535).to_bytes(4, "big"))


def test_calls_need_not_wait_for_settings() -> None:
    """3.4: requests may follow the preface at once, a hundred of them."""
    session = Session()
    assert (session.ready, session.room) == (False, 100)
    call = session.open(REQUEST, timeout_s=1, message=b"x")
    assert session.receive(settings() + answer(1)) == [call]
    assert (session.ready, session.room) == (True, 1000)


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "http1"),
        (b"\x15\x03\x03\x00\x02\x02\x46\x00\x00", "not_http2"),
        (b"220 mail.example ESMTP", "not_http2"),
        (SETTINGS_ACK, "not_http2"),
        (ping(), "not_http2"),
        (frame(SETTINGS, 0, 0, bytes(16_386)), "not_http2"),
    ],
)
def test_the_first_frame_is_settings(first: bytes, reason: str) -> None:
    """3.4: a peer whose first bytes are not SETTINGS does not speak HTTP/2."""
    assert broken(Session(), first) == (reason, ErrorCode.PROTOCOL_ERROR)


@pytest.mark.parametrize(
    ("sent", "words"),
    [(b"", "without HTTP/2 settings"), (b"\x15\x03\x03\x00\x02\x02\x46", "TLS alert"), (b"bye", "3 bytes")],
)
def test_an_end_before_settings_says_what_came(sent: bytes, words: str) -> None:
    """A connection that ends before SETTINGS tells what it brought instead; nothing is left to send."""
    session = Session()
    call = session.open(REQUEST, timeout_s=None, message=b"")
    assert session.receive(sent) == []
    assert session.eof() == [call]
    assert session.error is not None and session.error.reason == "eof" and words in session.error.detail
    assert call.outcome is not None and call.outcome.cause is Cause.CONNECTION and call.outcome.code == 14
    assert session.take_output() == b"" and session.eof() == []


# 4: frames


def test_large_frames_are_refused_by_their_header() -> None:
    """4.2: a frame above MAX_FRAME_SIZE is refused before its payload arrives."""
    session = warm()
    assert broken(session, (16_385).to_bytes(3, "big") + bytes(6)) == ("frame_size", ErrorCode.FRAME_SIZE_ERROR)


def test_unknown_frames_and_priorities_are_ignored() -> None:
    """4.1, 5.3, 5.5: unknown kinds and flags, and PRIORITY, change nothing."""
    session = warm()
    call = opened(session)
    noise = frame(0xBE, 0xFF, 1, b"x") + frame(PRIORITY, 0, 7, bytes(5)) + frame(PING, 0xFE, 0, bytes(8))
    assert session.receive(noise + answer(1)) == [call]
    assert call.outcome is not None and call.outcome.cause is Cause.STATUS


def test_reserved_bits_are_ignored() -> None:
    """4.1, 6.9: the highest bit of a stream id and of an increment means nothing."""
    session = warm()
    call = opened(session)
    assert session.receive(answer(0x8000_0001) + window(0x8000_0000, 0x8000_0001)) == [call]
    assert session.error is None


def test_a_broken_block_ends_the_connection() -> None:
    """4.3: a header block that can't be decoded loses the meaning of all later ones."""
    session = warm()
    opened(session)
    assert broken(session, headers(1, b"\xff\xff\xff\xff\xff\xff")) == ("compression", ErrorCode.COMPRESSION_ERROR)


@pytest.mark.parametrize("resize", [b"\x20", b"\x3f\xe1\x1f", b"\x25"])
def test_a_block_resizes_the_table_twice_at_most(resize: bytes) -> None:
    """RFC 7541, 4.2: a block begins with two changes of the table's size at most; each costs as much as a field."""
    session = Session()
    call = session.open(REQUEST, timeout_s=None, message=b"")
    session.receive(settings() + headers(1, resize * 2 + HEADERS_OK))
    assert call.has_headers
    assert broken(session, headers(1, resize * 3 + TRAILERS_OK, end=True))[0] == "compression"


def test_a_table_must_be_emptied_after_the_acknowledgement() -> None:
    """4.3.1: a peer that filled its table has to begin its next block with an update; then blocks are stateless."""
    filled = headers(1, HEADERS_OK) + headers(1, b"\x40\x0bgrpc-status\x010", end=True)
    session = Session()
    call = session.open(REQUEST, timeout_s=None, message=b"", streaming=True)
    assert session.receive(settings() + filled) == [call]
    opened(session)
    assert broken(session, SETTINGS_ACK + headers(3)) == ("compression", ErrorCode.COMPRESSION_ERROR)

    session = Session()
    session.open(REQUEST, timeout_s=None, message=b"", streaming=True)
    session.receive(settings() + filled + SETTINGS_ACK)
    second = opened(session)
    assert session.receive(headers(3, b"\x20" + HEADERS_OK) + data(3, prefixed(b"m")) + trailers(3)) == [second]
    assert second.outcome is not None and second.outcome.code == 0
    assert session._reader.known


def test_a_table_is_used_until_the_acknowledgement() -> None:
    """4.3.1: entries made before our table size is acknowledged may be named until then."""
    session = Session()
    first = session.open(REQUEST, timeout_s=None, message=b"")
    second = session.open(REQUEST, timeout_s=None, message=b"")
    session.receive(settings() + headers(1, b"\x88\x5f\x10application/grpc") + data(1, prefixed(b"1")))
    session.receive(headers(1, b"\x40\x0bgrpc-status\x010", end=True))
    session.receive(headers(3, b"\x88\xbf") + data(3, prefixed(b"2")) + headers(3, b"\xbe", end=True))
    assert (first.take(), second.take()) == (b"1", b"2")
    assert first.outcome is not None and first.outcome == second.outcome and first.outcome.code == 0


# 5: streams


@pytest.mark.parametrize(
    "bad",
    [
        data(3, b"x"),
        data(2, b"x"),
        data(0, b"x"),
        headers(3),
        headers(2),
        headers(0),
        frame(HEADERS, 0, 5, HEADERS_OK),
        rst(3, 8),
        rst(0, 8),
        window(3, 1),
        frame(PRIORITY, 0, 0, bytes(5)),
    ],
)
def test_idle_streams_hear_nothing(bad: bytes) -> None:
    """5.1: a frame on a stream that this side never opened ends the connection."""
    session = warm()
    opened(session)
    assert broken(session, bad) == ("protocol", ErrorCode.PROTOCOL_ERROR)


def test_late_frames_of_a_reset_call_are_ignored_and_credited() -> None:
    """5.1: what was on its way when this side reset is ignored; the connection's window gets it back."""
    session = warm()
    call = opened(session, streaming=True)
    call.cancel()
    assert reset_code(session, 1) is ErrorCode.CANCEL
    assert session.receive(headers(1) + datas(1, bytes(256 * 1024)) + window(1, 5) + rst(1, 0)) == []
    assert session.error is None
    other = opened(session, streaming=True)
    before = session._receive_window + session._owed
    assert before == session.limits.connection_window_bytes
    assert other.outcome is None


def test_late_data_beyond_the_window_is_an_error() -> None:
    """6.9: a reset call's window still bounds what the peer sends on it."""
    session = warm()
    opened(session).cancel()
    assert broken(session, datas(1, bytes(256 * 1024 + 1)))[1] is ErrorCode.FLOW_CONTROL_ERROR


def test_few_reset_calls_are_remembered() -> None:
    """Calls reset here are remembered up to a limit, the oldest going first, and forgotten with their end."""
    session = warm(Limits(reset_streams_max=2))
    for _ in range(4):
        opened(session).cancel()
    assert session._reset_windows is not None
    assert list(session._reset_windows) == [5, 7]
    session.receive(data(5, b"", end=True) + headers(7, TRAILERS_OK, end=True))
    assert session._reset_windows == {}


def test_stream_ids_are_used_up() -> None:
    """5.1.1: after the last id there is no room; the session needs a successor."""
    session = warm()
    session._next_id = MAX - 2
    assert session.room == 2
    assert opened(session).id == MAX - 2
    assert (opened(session).id, session.room) == (MAX, 0)
    with pytest.raises(AssertionError):
        session.open(REQUEST, timeout_s=None, message=b"")


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_the_peers_limit_of_streams_is_kept(allowed: int) -> None:
    """5.1.2: MAX_CONCURRENT_STREAMS bounds the calls open at a time, and may shrink below them."""
    session = warm(None, (3, allowed))
    for count in range(allowed):
        assert session.room == allowed - count
        opened(session)
    assert session.room == 0 and session.active == allowed
    session.receive(settings((3, 0)))
    assert session.room == 0 and session.error is None
    session.receive(settings((3, 2**32 - 1)))
    assert session.room == session.limits.calls_max - allowed


# 6: frames by kind


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (frame(DATA, PADDED, 1, b""), ErrorCode.PROTOCOL_ERROR),
        (frame(DATA, PADDED, 1, b"\x02xx"[:2]), ErrorCode.PROTOCOL_ERROR),
        (frame(HEADERS, END_HEADERS | PADDED, 1, b"\x09abc"), ErrorCode.PROTOCOL_ERROR),
        (frame(HEADERS, END_HEADERS | 0x20, 1, b"1234"), ErrorCode.FRAME_SIZE_ERROR),
        (frame(RST_STREAM, 0, 1, b"123"), ErrorCode.FRAME_SIZE_ERROR),
        (frame(SETTINGS, 0, 1), ErrorCode.PROTOCOL_ERROR),
        (frame(SETTINGS, 0, 0, b"12345"), ErrorCode.FRAME_SIZE_ERROR),
        (frame(SETTINGS, 1, 0, bytes(6)), ErrorCode.FRAME_SIZE_ERROR),
        (settings((2, 1)), ErrorCode.PROTOCOL_ERROR),
        (settings((4, 2**31)), ErrorCode.FLOW_CONTROL_ERROR),
        (settings((5, 16_383)), ErrorCode.PROTOCOL_ERROR),
        (settings((5, 2**24)), ErrorCode.PROTOCOL_ERROR),
        (frame(PUSH_PROMISE, END_HEADERS, 1, bytes(4) + HEADERS_OK), ErrorCode.PROTOCOL_ERROR),
        (frame(PING, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (frame(PING, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(GOAWAY, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (frame(GOAWAY, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(WINDOW_UPDATE, 0, 0, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
        (window(0, 0), ErrorCode.PROTOCOL_ERROR),
        (window(0, MAX), ErrorCode.FLOW_CONTROL_ERROR),
        (window(1, MAX - 65_535) + settings((4, 65_536)), ErrorCode.FLOW_CONTROL_ERROR),
        (frame(CONTINUATION, END_HEADERS, 1, b""), ErrorCode.PROTOCOL_ERROR),
        (frame(HEADERS, 0, 1, HEADERS_OK) + ping(), ErrorCode.PROTOCOL_ERROR),
        (frame(HEADERS, 0, 1, HEADERS_OK) + frame(CONTINUATION, 4, 3), ErrorCode.PROTOCOL_ERROR),
    ],
)
def test_frames_that_break_the_connection(bad: bytes, code: ErrorCode) -> None:
    """6: each of these is a connection error with the code that its section names."""
    session = warm()
    session.open(REQUEST, timeout_s=None, streaming=True, end=False)
    assert broken(session, bad)[1] is code


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (window(1, 0), ErrorCode.PROTOCOL_ERROR),
        (window(1, MAX), ErrorCode.FLOW_CONTROL_ERROR),
        (frame(PRIORITY, 0, 1, bytes(4)), ErrorCode.FRAME_SIZE_ERROR),
        (data(1, b"x"), ErrorCode.PROTOCOL_ERROR),
        (headers(1) + datas(1, prefixed(bytes(2**18))), ErrorCode.FLOW_CONTROL_ERROR),
        (headers(1) + headers(1), ErrorCode.PROTOCOL_ERROR),
        (headers(1) + headers(1, HEADERS_OK, end=True), ErrorCode.PROTOCOL_ERROR),
        (headers(1, TRAILERS_OK), ErrorCode.PROTOCOL_ERROR),
        (headers(1, block([(b":status", b"101")])), ErrorCode.PROTOCOL_ERROR),
        (headers(1, block([(b":status", b"103")]), end=True), ErrorCode.PROTOCOL_ERROR),
        (headers(1, block([(b":status", b"103")])) * 9, ErrorCode.ENHANCE_YOUR_CALM),
    ],
)
def test_frames_that_break_one_call(bad: bytes, code: ErrorCode) -> None:
    """5.4.2: each of these resets its stream alone; the next call is answered."""
    session = warm()
    call = opened(session, streaming=True)
    assert session.receive(bad) == [call]
    assert reset_code(session, 1) is code
    assert call.outcome is not None
    assert (call.outcome.cause, call.outcome.code, call.outcome.http2_code) == (Cause.PROTOCOL, 13, code)
    second = opened(session)
    assert session.receive(answer(3)) == [second] and second.take() == b"answer"


def test_more_than_the_connections_window_is_an_error() -> None:
    """6.9.1: with frames as large as the window, a peer can send beyond it."""
    session = warm(Limits(frame_bytes_max=2**17, connection_window_bytes=65_535))
    opened(session)
    assert broken(session, data(1, bytes(65_536)))[1] is ErrorCode.FLOW_CONTROL_ERROR


def test_padding_is_taken_off_and_counted() -> None:
    """6.1: padding is not content; its bytes count for both windows and come back to them."""
    session = warm()
    call = opened(session, streaming=True)
    assert session.receive(headers(1) + data(1, prefixed(b"abc"), padding=200)) == [call]
    assert call.take() == b"abc"
    assert call._receive_window + 8 + 201 == session.limits.stream_window_bytes
    assert call._owed == 8 + 201
    padded = frame(HEADERS, END_HEADERS | END_STREAM | PADDED, 1, b"\x03" + TRAILERS_OK + bytes(3))
    assert session.receive(padded) == [call]
    assert call.outcome is not None and call.outcome.code == 0


def test_headers_may_carry_a_priority() -> None:
    """6.2: the deprecated priority fields are skipped."""
    session = warm()
    call = opened(session, streaming=True)
    session.receive(frame(HEADERS, END_HEADERS | 0x20, 1, bytes(5) + HEADERS_OK))
    assert call.has_headers


def test_settings_are_acknowledged_and_applied() -> None:
    """6.5.3: every SETTINGS gets its own acknowledgement."""
    session = warm()
    session.receive(settings((4, 10), (99, 5)) + settings((5, 20_000)))
    assert session.take_output() == SETTINGS_ACK * 2
    assert (session._initial_window, session._peer_frame) == (10, 20_000)


def test_pings_are_answered_and_ours_is_awaited() -> None:
    """6.7: a PING comes back with its payload; only the answer to the latest of ours counts."""
    session = warm()
    session.receive(ping(b"abcdefgh"))
    assert session.take_output() == ping(b"abcdefgh", ack=True)
    session.ping()
    first = frames_of(session.take_output())[0]
    session.ping()
    second = frames_of(session.take_output())[0]
    session.receive(ping(first.payload, ack=True) + ping(b"whatever", ack=True))
    assert session.ping_pending
    session.receive(ping(second.payload, ack=True))
    assert not session.ping_pending


def test_goaway_divides_the_calls() -> None:
    """6.8: calls up to the last stream may finish, those above were not taken, and no new ones begin."""
    session = warm()
    first, second, third = (opened(session) for _ in range(3))
    assert session.receive(goaway(3, 0xB, b"too_many_pings")) == [third]
    assert session.room == 0 and session.active == 2
    assert session.going_away is not None
    assert (session.going_away.last_stream_id, session.going_away.code) == (3, 0xB)
    assert third.outcome is not None
    assert (third.outcome.cause, third.outcome.code, third.outcome.http2_code) == (Cause.REFUSED, 14, 0xB)
    assert "too_many_pings" in third.outcome.message
    assert session.receive(answer(1)) == [first]
    assert session.receive(goaway(MAX)) == []
    assert session.going_away.last_stream_id == 3, "a later GOAWAY can't take back what was refused"
    assert session.receive(goaway(1)) == [second]
    assert session.error is None


def test_goaways_text_is_bounded() -> None:
    """A GOAWAY's debug data is cut, and bytes that are no text don't hurt."""
    session = warm()
    session.receive(goaway(0, 2, b"\xff" + b"x" * 9000))
    assert session.going_away is not None
    assert len(session.going_away.text) == session.limits.status_text_chars_max


def test_close_says_goodbye() -> None:
    """This side's GOAWAY names no error, calls end with the connection, and closing twice is once."""
    session = warm()
    call = opened(session)
    session.close()
    session.close()
    session.ping()
    assert frames_of(session.take_output()) == [Frame(GOAWAY, 0, 0, bytes(8) + b"closed by this side")]
    assert session.error == SessionError(reason="closed", detail="closed by this side", http2_code=0)
    assert call.outcome is not None and call.outcome.cause is Cause.CONNECTION
    call.cancel()
    assert session.take_output() == b"" and session.eof() == []


def test_header_blocks_continue() -> None:
    """6.10: CONTINUATION frames make one block, whatever the cuts."""
    session = warm()
    call = opened(session, streaming=True)
    cut = [HEADERS_OK[i : i + 9] for i in range(0, len(HEADERS_OK), 9)]
    session.receive(frame(HEADERS, 0, 1, cut[0]) + b"".join(frame(CONTINUATION, 0, 1, part) for part in cut[1:-1]))
    assert session.buffered_bytes >= sum(map(len, cut[:-1])) and not call.has_headers
    session.receive(frame(CONTINUATION, END_HEADERS, 1, cut[-1]))
    assert call.has_headers


# 10.5: denial of service


@pytest.mark.parametrize(
    "flood",
    [
        ping() * 1001,
        settings() * 1001,
        data(1) * 1001,
        data(1, padding=9) * 1001,
        rst(3, 8) * 1001,
        window(3, 1) * 1001,
        data(3, b"x") * 1001,
        headers(3) * 1001,
        frame(PRIORITY, 0, 1, bytes(5)) * 1001,
        frame(0xAA, 0, 0, b"x") * 1001,
        ping(ack=True) * 1001,
        SETTINGS_ACK * 1001,
        goaway(MAX) * 1002,
        settings(*[(99, 1)] * 65),
        frame(HEADERS, 0, 1) + frame(CONTINUATION, 0, 1) * 17,
        frame(HEADERS, 0, 1) + frame(CONTINUATION, 0, 1, bytes(16_384)) * 5,
    ],
)
def test_floods_end_the_connection(flood: bytes) -> None:
    """10.5: frames that cost and bring nothing end the connection, with little kept meanwhile."""
    session = warm()
    opened(session, streaming=True)
    second = opened(session)
    session.receive(headers(1) + answer(3))
    assert second.outcome is not None
    assert broken(session, flood)[1] is ErrorCode.ENHANCE_YOUR_CALM


def test_answers_taken_are_no_flood() -> None:
    """Pings whose answers are written, and idle frames between calls, go on for ever."""
    session = warm()
    for _ in range(20):
        session.receive(ping() * 900)
        assert session.take_output().count(ping(ack=True)) == 900
        session.receive(frame(0xAA, 0, 0, b"x") * 900)
        opened(session).cancel()
    assert session.error is None


def test_credit_byte_by_byte_is_a_flood() -> None:
    """A peer that lets a request out byte by byte makes a frame of each; unwritten, they are bounded."""
    session = warm(None, (4, 0))
    session.open(REQUEST, timeout_s=None, message=bytes(5000))
    assert session.receive(window(1, 1) * 1000) and session.error is None
    assert broken(session, window(1, 1))[1] is ErrorCode.ENHANCE_YOUR_CALM


def test_limits_refuse_what_the_protocol_refuses() -> None:
    """Limits outside the protocol's ranges can't be built."""
    for name, value in [
        ("frame_bytes_max", 16_383),
        ("frame_bytes_max", 2**24),
        ("stream_window_bytes", 65_534),
        ("connection_window_bytes", 2**31),
        ("message_bytes_max", 2**32),
    ]:
        with pytest.raises(AssertionError):
            dataclasses.replace(Limits(), **{name: value})
