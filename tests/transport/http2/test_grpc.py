"""What gRPC's documents say of calls: framing, statuses, metadata, and what other answers are mapped to."""

from __future__ import annotations

from fractions import Fraction

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serviceradar_poller.errors import GrpcCode
from serviceradar_poller.testing.http2_frames import (
    HEADERS_OK,
    REQUEST,
    answer,
    block,
    data,
    frames_of,
    headers,
    prefixed,
    rst,
    trailers,
    warm,
)
from serviceradar_poller.transport.http2 import Call, Cause, Limits, Outcome, RequestHeaders, Session
from serviceradar_poller.transport.http2.frames import RST_STREAM, ErrorCode
from serviceradar_poller.transport.http2.requests import timeout_value
from serviceradar_poller.transport.http2.responses import interpret
from serviceradar_poller.transport.http2.status import of_http, of_reset

GRPC = (b"content-type", b"application/grpc")


def begin(limits: Limits | None = None, *, streaming: bool = False) -> tuple[Session, Call]:
    session = warm(limits)
    call = session.open(REQUEST, timeout_s=None, message=b"", streaming=streaming)
    session.take_output()
    return session, call


def outcome(data_: bytes, limits: Limits | None = None, *, streaming: bool = False) -> Outcome:
    """Return how a call ends that is answered so; the session must survive, and the next call succeed."""
    session, call = begin(limits, streaming=streaming)
    assert session.receive(data_) == [call]
    assert call.outcome is not None
    if call.outcome.http2_code is not None and call.outcome.cause not in (Cause.RESET, Cause.REFUSED):
        sent = [one for one in frames_of(session.take_output()) if one.kind == RST_STREAM]
        assert not sent or sent[0].payload == call.outcome.http2_code.to_bytes(4, "big")
    other = session.open(REQUEST, timeout_s=None, message=b"")
    assert session.receive(answer(3)) == [other] and other.take() == b"answer"
    return call.outcome


# requests


def fields_of(block_: bytes) -> list[tuple[bytes, bytes]]:
    return [(bytes(name), bytes(value)) for name, value in hpack.Decoder().decode(block_, raw=True)]


def test_request_headers_are_gRPCs() -> None:  # noqa: N802
    """Pseudo headers first; te, content type, user agent; identity is the only encoding accepted."""
    metadata: list[tuple[str, str | bytes]] = [("x-a", "b c"), ("x-bin", b"\0\xff")]
    request = RequestHeaders(path="/p.S/M", authority="h:1", secure=False, user_agent="u" * 200, metadata=metadata)
    session = warm()
    session.open(request, timeout_s=0.25, message=b"", metadata=[("y", "")])
    assert fields_of(frames_of(session.take_output())[0].payload) == [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/p.S/M"),
        (b":authority", b"h:1"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"user-agent", b"u" * 200),
        (b"grpc-accept-encoding", b"identity"),
        (b"x-a", b"b c"),
        (b"x-bin", b"AP8"),
        (b"grpc-timeout", b"250000u"),
        (b"y", b""),
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("X", "v"), ("", "v"), ("a b", "v"), (":path", "v"), ("a", "\n"), ("a", "é"), ("a", " v"), ("a", "v ")],
        *[(name, "v") for name in ("grpc-timeout", "te", "content-length", "upgrade", "keep-alive", "connection")],
    ],
)
def test_metadata_that_can_not_be_sent_is_refused(name: str, value: str) -> None:
    """Names and values outside gRPC's or HTTP/2's grammar raise, and no call was begun."""
    session = warm()
    with pytest.raises(ValueError, match=r"not |spaces"):
        session.open(REQUEST, timeout_s=None, message=b"", metadata=[(name, value)])
    assert session.active == 0 and session.take_output() == b""


@pytest.mark.parametrize(("name", "value"), [("a-bin", "text"), ("a", b"bytes")])
def test_binary_values_have_binary_names(name: str, value: str | bytes) -> None:
    """Bytes need a name that ends with -bin, and text one that doesn't."""
    with pytest.raises(ValueError, match="-bin"):
        RequestHeaders(path="/", authority="", secure=True, user_agent="", metadata=[(name, value)])


def test_a_path_begins_with_a_slash() -> None:
    """A path without its slash is refused where it is made."""
    with pytest.raises(ValueError, match="slash"):
        RequestHeaders(path="a", authority="", secure=True, user_agent="")


@given(st.lists(st.tuples(st.from_regex(r"x[a-z0-9_.-]{0,200}(-bin)?", fullmatch=True), st.binary(max_size=400))))
def test_metadata_survives_the_wire(items: list[tuple[str, bytes]]) -> None:
    """What is sent as metadata is what a reader of HPACK and base64 gets."""
    metadata: list[tuple[str, str | bytes]] = [
        (name, value) if name.endswith("-bin") else (name, value.hex()) for name, value in items
    ]
    request = RequestHeaders(path="/", authority="a", secure=True, user_agent="u", metadata=metadata)
    sent = fields_of(request.block)[8:]
    _, call = begin(Limits(header_list_bytes_max=2**20), streaming=True)
    session = call._session
    assert session is not None
    session.receive(headers(1))
    parts = headers(1, block([(b"grpc-status", b"0"), *sent]), end=True)
    if len(parts) < 16_384 and len(sent) < 200:
        session.receive(parts)
        assert call.outcome is not None and list(call.outcome.metadata) == metadata


_UNITS = {
    b"n": Fraction(1, 10**9),
    b"u": Fraction(1, 10**6),
    b"m": Fraction(1, 1000),
    b"S": Fraction(1),
    b"M": Fraction(60),
    b"H": Fraction(3600),
}


@given(st.floats(min_value=0, max_value=1e13, exclude_min=True) | st.integers(1, 10**15))
def test_timeouts_are_never_longer_than_asked(timeout_s: float) -> None:
    """Eight digits and a unit, never zero, never above what was asked, and close to it."""
    value = timeout_value(timeout_s)
    digits, unit = value[:-1], value[-1:]
    assert 1 <= len(digits) <= 8 and digits.isdigit() and int(digits) > 0
    told, asked = int(digits) * _UNITS[unit], Fraction(timeout_s)
    if asked >= Fraction(1, 10**9):
        assert told <= asked
    else:
        assert value == b"1n"
    if asked < 99_999_999 * 3600:
        assert asked - told <= max(asked / 10**5, Fraction(1, 10**9))


@pytest.mark.parametrize(
    ("timeout_s", "value"),
    [
        (30, b"30000000u"),
        (0.05, b"50000000n"),
        (1e-12, b"1n"),
        (0.0, b"1n"),
        (-1.0, b"1n"),
        (86400, b"86400000m"),
        (1e15, b"99999999H"),
    ],
)
def test_timeouts(timeout_s: float, value: bytes) -> None:
    """Examples; a deadline that has passed is the shortest timeout."""
    assert timeout_value(timeout_s) == value


# answers


def test_a_good_answer() -> None:
    """Headers, one message, and trailers that say OK."""
    session, call = begin()
    fields = [(b":status", b"200"), (b"content-type", b"application/grpc+proto"), (b"a", b"b")]
    assert session.receive(headers(1, block(fields))) == []
    assert call.has_headers and call.initial_metadata == (("a", "b"),) and call.take() is None
    assert session.receive(data(1, prefixed(b"m"))) == [call]
    assert call.outcome is None
    assert session.receive(trailers(1, 0, b"", (b"t-bin", b"AQI=,AQ"))) == [call]
    assert (call.take(), call.take()) == (b"m", None)
    assert call.outcome == Outcome(cause=Cause.STATUS, code=0, metadata=(("t-bin", b"\1\2"), ("t-bin", b"\1")))


def test_trailers_only() -> None:
    """A refusal in one header block."""
    fields = [
        (b":status", b"200"),
        GRPC,
        (b"grpc-status", b"5"),
        (b"grpc-message", b"no such%3A%20%C3%A9"),
        (b"k", b"v"),
    ]
    assert outcome(headers(1, block(fields), end=True)) == Outcome(
        cause=Cause.STATUS, code=5, message="no such: é", metadata=(("k", "v"),)
    )


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"a%zzb%4", "a%zzb%4"),
        (b"%", "%"),
        (b"%41%", "A%"),
        (b"%ff", "\ufffd"),
        (b"trailing ", "trailing "),
        (b"\xc3\xa9", "é"),
        (b"x" * 5000, "x" * 1024),
        (b"%F0%9F%98%80" * 1030, "😀" * 1024),
    ],
)
def test_messages_are_decoded_and_bounded(raw: bytes, text: str) -> None:
    """Broken escapes stay as they are, text that is not UTF-8 is marked, and long texts are cut."""
    assert outcome(headers(1) + trailers(1, 13, raw)).message == text


@pytest.mark.parametrize("status", [b"", b"x", b"-1", b"17", b"99999", "²".encode(), b"1 "])
def test_an_undefined_status_is_unknown(status: bytes) -> None:
    """A status that gRPC does not define is UNKNOWN, and the text tells what came."""
    found = outcome(headers(1) + headers(1, block([(b"grpc-status", status)]), end=True))
    assert (found.cause, found.code) == (Cause.STATUS, 2) and "not defined" in found.message


@pytest.mark.parametrize(
    ("http", "code"),
    [
        (400, 13),
        (401, 16),
        (403, 7),
        (404, 12),
        (429, 14),
        (431, 13),
        (502, 14),
        (503, 14),
        (504, 14),
        (200, 2),
        (302, 2),
        (500, 2),
    ],
)
@pytest.mark.parametrize("ends", [False, True])
def test_http_answers_are_mapped(http: int, code: int, ends: bool) -> None:
    """http-grpc-status-mapping.md: an answer without a gRPC status gets the one of its HTTP status."""
    found = outcome(headers(1, block([(b":status", b"%d" % http), (b"content-type", b"text/html")]), end=ends))
    assert (found.cause, found.code) == (Cause.PROTOCOL, code) and str(http) in found.message
    assert of_http(http).value == code


def test_a_grpc_status_goes_before_the_http_status() -> None:
    """http-grpc-status-mapping.md: where both are there, gRPC's is used."""
    fields = [(b":status", b"503"), (b"grpc-status", b"8")]
    assert outcome(headers(1, block(fields), end=True)) == Outcome(cause=Cause.STATUS, code=8)


@pytest.mark.parametrize("kind", [b"application/grpc-web", b"application/json", b""])
def test_other_content_types_are_not_grpc(kind: bytes) -> None:
    """A 200 of another content type is not an answer."""
    found = outcome(headers(1, block([(b":status", b"200"), (b"content-type", kind)])))
    assert (found.cause, found.code) == (Cause.PROTOCOL, 2) and "content-type" in found.message


@pytest.mark.parametrize(
    "kind", [b"application/grpc", b"application/grpc+proto", b"application/grpc;charset=x", b"Application/gRPC"]
)
def test_grpcs_content_types(kind: bytes) -> None:
    """The content type may name a codec or parameters."""
    good = headers(1, block([(b":status", b"200"), (b"content-type", kind)])) + data(1, prefixed(b""))
    assert outcome(good + trailers(1)).code == 0


@pytest.mark.parametrize(
    ("sent", "code", "words"),
    [
        (headers(1) + data(1, prefixed(b"x"), end=True), 13, "without trailers"),
        (headers(1) + data(1, b"", end=True), 13, "without trailers"),
        (headers(1) + data(1, prefixed(b"x")) + headers(1, block([(b"a", b"b")]), end=True), 2, "no grpc-status"),
        (headers(1, HEADERS_OK, end=True), 2, "without a gRPC status"),
        (headers(1) + trailers(1), 12, "no message"),
        (headers(1, block([(b":status", b"200"), GRPC, (b"grpc-status", b"0")]), end=True), 12, "no message"),
        (headers(1) + data(1, prefixed(b"x") * 2), 12, "more than one"),
        (headers(1) + data(1, prefixed(b"x")) + data(1, b"\0"), 12, "more than one"),
        (headers(1) + data(1, prefixed(b"xyz")[:-1]) + trailers(1), 13, "within a message"),
        (headers(1) + data(1, b"\0\0") + trailers(1), 13, "within a message"),
        (headers(1) + data(1, prefixed(b"x", 1)), 13, "compressed"),
        (headers(1) + data(1, b"\1\0\0") + data(1, b"\0\0"), 13, "compressed"),
        (headers(1) + data(1, prefixed(b"x", 7)), 13, "flag 7"),
        (headers(1, block([(b":status", b"200"), (b"X", b"y")])), 13, "malformed"),
        (headers(1, block([(b"a", b"b"), (b":status", b"200")])), 13, "malformed"),
        (headers(1, block([(b":status", b"200"), (b":status", b"200")])), 13, "malformed"),
        (headers(1, block([(b":status", b"20")])), 13, "malformed"),
        (headers(1, block([(b":status", b"999")])), 13, "malformed"),
        (headers(1, block([(b":path", b"/")])), 13, "malformed"),
        (headers(1, block([(b":status", b"200"), (b"", b"y")])), 13, "malformed"),
        (headers(1, block([(b":status", b"200"), (b"a", b"b\nc")])), 13, "malformed"),
        (headers(1, block([(b":status", b"200"), (b"connection", b"close")])), 13, "malformed"),
        (headers(1, b""), 13, "no :status"),
        (headers(1) + trailers(1, 0, b"", (b"a-bin", b"*")), 13, "base64"),
        (headers(1, HEADERS_OK + block([(b"a", b"b" * 60)] * 200)), 8, "header list"),
        (headers(1, HEADERS_OK + block([(b"", b"")] * 300)), 13, "malformed"),
        (headers(1, HEADERS_OK + block([(b"a", b"")] * 300)), 8, "fields"),
    ],
)
def test_answers_that_are_not_grpc(sent: bytes, code: int, words: str) -> None:
    """Each hurts its own call alone, with the code that gRPC's documents name and a text that says why."""
    found = outcome(sent)
    assert (found.cause, found.code) == (Cause.PROTOCOL, code) and words in found.message


def test_a_failure_needs_no_whole_message() -> None:
    """The peer's own failure is told even when it broke off within a message, or sent none."""
    assert outcome(headers(1) + data(1, prefixed(b"xyz")[:-1]) + trailers(1, 14, b"bye")).code == 14
    assert outcome(headers(1) + trailers(1, 14)).cause is Cause.STATUS


def test_large_messages_are_refused_by_their_prefix() -> None:
    """A message above the limit ends the call before a byte of it is kept."""
    limits = Limits(message_bytes_max=1000)
    found = outcome(headers(1) + data(1, b"\0" + (1001).to_bytes(4, "big")), limits)
    assert (found.cause, found.code, found.http2_code) == (Cause.TOO_LARGE, 8, ErrorCode.CANCEL)
    session, call = begin(limits)
    session.receive(headers(1) + data(1, b"\0\0") + data(1, b"\0\xff"))
    assert call.buffered_bytes == 4
    session.receive(data(1, b"\xff" + bytes(5000)))
    assert call.outcome is not None and call.outcome.cause is Cause.TOO_LARGE and call.buffered_bytes == 0
    assert outcome(headers(1) + data(1, prefixed(bytes(1000))) + trailers(1), limits).code == 0


@pytest.mark.parametrize(
    ("http2", "cause", "code"),
    [
        (0, Cause.RESET, 13),
        (1, Cause.RESET, 13),
        (2, Cause.RESET, 13),
        (3, Cause.RESET, 13),
        (5, Cause.RESET, 13),
        (7, Cause.REFUSED, 14),
        (8, Cause.RESET, 1),
        (0xB, Cause.RESET, 8),
        (0xC, Cause.RESET, 7),
        (0xD, Cause.RESET, 13),
        (0xFFFF_FFFF, Cause.RESET, 13),
    ],
)
def test_resets_are_mapped(http2: int, cause: Cause, code: int) -> None:
    """PROTOCOL-HTTP2.md, Errors: each code of a reset has its gRPC status."""
    found = outcome(headers(1) + rst(1, http2))
    assert (found.cause, found.code, found.http2_code) == (cause, code, http2)
    assert found == of_reset(http2) and found.message


def test_messages_before_the_end_can_be_taken_after_it() -> None:
    """A streamed answer's messages stay when the call has ended."""
    session, call = begin(streaming=True)
    session.receive(headers(1) + data(1, prefixed(b"1") + prefixed(b"") + prefixed(b"3")) + trailers(1, 4, b"late"))
    assert call.outcome is not None and call.outcome.code == 4
    call.want()
    assert [call.take() for _ in range(4)] == [b"1", b"", b"3", None]
    assert session.take_output() == b""


def test_an_empty_stream_is_a_good_answer() -> None:
    """A streamed answer may have no message."""
    assert outcome(headers(1) + trailers(1), streaming=True) == Outcome(cause=Cause.STATUS, code=0)


def test_cancelling_is_once() -> None:
    """A cancelled call resets its stream once, and whatever follows changes nothing."""
    session, call = begin()
    call.cancel()
    call.cancel()
    assert frames_of(session.take_output()) == [(RST_STREAM, 0, 1, (8).to_bytes(4, "big"))]
    assert call.outcome is not None and (call.outcome.cause, call.outcome.code) == (Cause.CANCELLED, 1)
    assert session.receive(answer(1)) == [] and call.take() is None


@pytest.mark.parametrize(("values", "code"), [(256, 13), (257, 8)])
def test_values_of_a_list_are_counted(values: int, code: int) -> None:
    """Each value between the commas of a binary field is a field of the list, of which there is a greatest number."""
    found = interpret([(b"a-bin", b"," * (values - 1))], Limits())
    if code == 8:
        assert found.fault is not None and found.fault.code == code and "256 fields" in found.fault.message
    else:
        assert found.fault is None and found.metadata == (("a-bin", b""),) * values


def test_a_status_stands_once() -> None:
    """Of two statuses nobody knows which is meant."""
    assert outcome(headers(1) + trailers(1, 0, b"", (b"grpc-status", b"13"))).code == GrpcCode.INTERNAL.value


def test_trailers_without_a_status_keep_their_metadata() -> None:
    """What the peer said besides is there for whoever looks."""
    found = outcome(headers(1) + data(1, prefixed(b"m")) + headers(1, block([(b"why", b"so")]), end=True))
    assert (found.code, found.metadata) == (GrpcCode.UNKNOWN.value, (("why", "so"),))


def test_interim_answers_are_skipped() -> None:
    """http-grpc-status-mapping.md: 1xx headers are passed over."""
    early = headers(1, block([(b":status", b"100")])) + headers(1, block([(b":status", b"103"), (b"link", b"x")]))
    assert outcome(early + answer(1)).code == 0


def test_blocks_are_remembered_within_bounds() -> None:
    """Answers that vary don't grow the memory of blocks without end."""
    session, _ = begin()
    for index in range(600):
        session.receive(headers(1, block([(b"a", b"%d" % index)]) * 2))
        session.open(REQUEST, timeout_s=None, message=b"")
        session.receive(trailers(session._next_id - 2, 5, b"%d" % index))
    assert 0 < len(session._reader.known) <= 256
