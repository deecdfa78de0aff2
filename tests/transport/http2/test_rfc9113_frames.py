"""What RFC 9113 asks of a client: each kind of frame, and floods of them (its sections 6 and 10.5)."""

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
    broken,
    data,
    datas,
    frame,
    frames_of,
    goaway,
    headers,
    opened,
    ping,
    prefixed,
    reset_code,
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
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ErrorCode,
)

MAX = 2**31 - 1


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
        ping() * 2001,
        settings() * 2001,
        data(1) * 2001,
        data(1, padding=9) * 2001,
        rst(3, 8) * 2001,
        window(3, 1) * 2001,
        data(3, b"x") * 2001,
        headers(3) * 2001,
        frame(PRIORITY, 0, 1, bytes(5)) * 2001,
        frame(0xAA, 0, 0, b"x") * 2001,
        ping(ack=True) * 2001,
        SETTINGS_ACK * 2001,
        goaway(MAX) * 2002,
        window(0, 1) * 2001,
        window(1, 1) * 2001,
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


@pytest.mark.parametrize(
    ("asked", "calls", "rounds"),
    [
        (ping(), 1, 1000),
        (ping() + data(1, b"\0"), 1, 1000),
        (settings((4, 5)) + settings((4, 9)), 1, 500),
        (settings((4, 5)) + settings((4, 9)), 160, 45),
    ],
)
def test_answers_taken_are_a_flood_in_the_end(asked: bytes, calls: int, rounds: int) -> None:
    """10.5: however well PING and SETTINGS are paced, too many for the calls that are begun end the connection."""
    session = warm(Limits(asks_max=1000))
    for _ in range(calls):
        opened(session, streaming=True)
    session.receive(headers(1))
    for _ in range(rounds):
        assert session.error is None
        session.receive(asked)
        session.take_output()
    assert broken(session, asked)[1] is ErrorCode.ENHANCE_YOUR_CALM


def test_credit_byte_by_byte_is_a_flood() -> None:
    """A peer that lets a request out byte by byte makes a frame of each; unwritten, they are bounded."""
    session = warm(None, (4, 0))
    session.open(REQUEST, timeout_s=None, message=bytes(5000))
    assert session.receive(window(1, 1) * 1000) and session.error is None
    assert broken(session, window(1, 1))[1] is ErrorCode.ENHANCE_YOUR_CALM


def test_credit_looks_at_no_call_that_it_can_not_help(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection's credit costs by what it lets out, not by how many calls wait for windows of their own."""
    session = warm(None, (4, 0))
    calls = [session.open(REQUEST, timeout_s=None, message=bytes(100)) for _ in range(1000)]
    looked: list[Call] = []
    pump = Session._pump

    def noted(session: Session, call: Call) -> None:
        looked.append(call)
        pump(session, call)

    monkeypatch.setattr(Session, "_pump", noted)
    session.receive(window(0, 1) * 1000)
    assert looked == []
    session.receive(window(7, 60))
    assert looked == [calls[3]]
    assert session.error is None and calls[3].pending_bytes == 45


def test_one_setting_lets_all_calls_go_on() -> None:
    """As many calls as may be open wait for the same setting: that is no flood, and their order is kept."""
    session = warm(None, (4, 0))
    calls = [session.open(REQUEST, timeout_s=None, message=b"m") for _ in range(1000)]
    session.take_output()
    assert session.receive(settings((4, 10))) == calls
    sent = [one.stream_id for one in frames_of(session.take_output()) if one.kind == DATA]
    assert sent == [call.id for call in calls] and session.error is None


@pytest.mark.parametrize("late", ["answer", "trailers_only"])
def test_late_answers_of_many_calls_are_no_flood(late: str) -> None:
    """All calls of a connection end at once, as at a deadline, and are answered all the same: others go on."""
    session = warm()
    other = opened(session, streaming=True)
    calls = [opened(session) for _ in range(999)]
    for call in calls:
        call.cancel()
    session.take_output()
    for call in calls:
        session.receive(answer(call.id) if late == "answer" else trailers(call.id, 4) + rst(call.id, 8))
    assert session.error is None and other.outcome is None
    session.receive(headers(1) + data(1, prefixed(b"well")))
    assert other.take() == b"well"


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
