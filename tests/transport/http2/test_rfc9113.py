"""What RFC 9113 asks of a client: starting, frames, streams (its sections 3 to 5)."""

from __future__ import annotations

import pytest

from serviceradar_poller.testing.http2_frames import (
    HEADERS_OK,
    REQUEST,
    SETTINGS_ACK,
    TRAILERS_OK,
    Frame,
    answer,
    broken,
    data,
    datas,
    frame,
    frames_of,
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
from serviceradar_poller.transport.http2 import Cause, Limits, Session
from serviceradar_poller.transport.http2.frames import (
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    SETTINGS,
    WINDOW_UPDATE,
    ErrorCode,
)

MAX = 2**31 - 1


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


@pytest.mark.parametrize("long", [b"\x00" + b"\xff" * 16_000, b"\xff" * 2100 + b"\x01", b"\x3f" + b"\xff" * 16_000])
def test_the_words_for_a_broken_block_are_ours(long: bytes) -> None:
    """The decoder's own text quotes what the peer sent, which may be long; neither error nor outcome repeats it."""
    session = warm()
    call = opened(session)
    assert broken(session, headers(1, long)) == ("compression", ErrorCode.COMPRESSION_ERROR)
    assert session.error is not None and call.outcome is not None
    assert len(session.error.detail) < 100 and call.outcome.message == session.error.detail


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


def test_a_smaller_table_is_acknowledged_in_one_block() -> None:
    """4.3.1: after the peer's HEADER_TABLE_SIZE fell, the next block begins with its change to 0, and no other does."""
    session = warm(None, (1, 4096))
    blocks = []
    for change in (b"", settings((1, 100)), settings((1, 5000), (1, 50)), settings((1, 0))):
        session.receive(change)
        session.take_output()
        session.open(REQUEST, timeout_s=None, message=b"")
        blocks += [one.payload for one in frames_of(session.take_output()) if one.kind == HEADERS]
    assert blocks == [REQUEST.block, b"\x20" + REQUEST.block, REQUEST.block, REQUEST.block]


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
    assert session._late is not None
    assert list(session._late) == [5, 7]
    session.receive(data(5, b"", end=True) + headers(7, TRAILERS_OK, end=True))
    assert session._late == {}


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
