"""The server's side of HTTP/2, fed byte by byte; h2 plays the client."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serviceradar_poller.errors import GrpcCode
from serviceradar_poller.lab.http2 import (
    OUTPUT_HIGH_BYTES,
    PREFACE,
    REQUEST_BYTES_MAX,
    STREAMS_MAX,
    Call,
    Http2Server,
)

HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/a.B/C"),
    (":authority", "x"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


class Pair:
    """A server under test and h2's client, joined by memory."""

    def __init__(self, on_call: Callable[[Call], None] | None = None) -> None:
        self.now = 0.0
        self.calls: list[Call] = []
        self.server = Http2Server(on_call=on_call or self.calls.append, wake=lambda: None, now=lambda: self.now)
        self.client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.client.initiate_connection()
        self.data: dict[int, bytearray] = {}
        self.trailers: dict[int, dict[str, str]] = {}
        self.events: list[h2.events.Event] = []

    def has_ended(self) -> bool:
        """Whether the server said goodbye."""
        return self.server.closing

    def request(self, message: bytes = b"m", path: str = "/a.B/C") -> int:
        stream = self.client.get_next_available_stream_id()
        headers = [(name, path if name == ":path" else value) for name, value in HEADERS]
        self.client.send_headers(stream, headers)
        body = b"\0" + len(message).to_bytes(4, "big") + message
        for begin in range(0, len(body), 16_384):
            self.client.send_data(stream, body[begin : begin + 16_384])
        self.client.end_stream(stream)
        return stream

    def exchange(self, *, acknowledge: bool = True, step: int = 0) -> None:
        """Carry bytes both ways until neither side has any; *step* splits what the server gets."""
        while True:
            sent = self.client.data_to_send()
            for begin in range(0, len(sent), step or len(sent) or 1):
                self.server.receive(sent[begin : begin + (step or len(sent))])
            received = bytes(self.server.out)
            self.server.out.clear()
            for event in self.client.receive_data(received):
                self.events.append(event)
                if isinstance(event, h2.events.DataReceived):
                    self.data.setdefault(event.stream_id, bytearray()).extend(event.data)
                    if acknowledge:
                        self.client.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.TrailersReceived | h2.events.ResponseReceived):
                    names = {str(name): str(value) for name, value in event.headers}
                    self.trailers.setdefault(event.stream_id, {}).update(names)
            self.server.resume()
            if not self.server.out and not self.client._data_to_send:
                return


def echo(call: Call) -> None:
    call.reply(call.message)


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=12), st.integers(1, 200))
@pytest.mark.slow
def test_answers_survive_any_split(messages: list[bytes], step: int) -> None:
    """However the bytes are cut, every request gets its own answer and a good status."""
    pair = Pair(echo)
    streams = [pair.request(message) for message in messages]
    pair.exchange(step=step)
    for stream, message in zip(streams, messages, strict=True):
        assert bytes(pair.data[stream]) == b"\0" + len(message).to_bytes(4, "big") + message
        assert pair.trailers[stream][":status"] == "200"
        assert pair.trailers[stream]["content-type"] == "application/grpc"
        assert pair.trailers[stream]["grpc-status"] == "0"


@given(st.lists(st.text("abc/", min_size=1, max_size=5), min_size=1, max_size=40), st.integers(0, 4096))
@pytest.mark.slow
def test_paths_survive_the_header_table(paths: list[str], table_size: int) -> None:
    """Remembered header blocks never give an old path, whatever the client's table does."""
    seen: list[str] = []

    def on_call(call: Call) -> None:
        seen.append(call.path)
        call.reply(b"")

    pair = Pair(on_call)
    pair.client.encoder.header_table_size = table_size
    for path in paths:
        pair.request(path=f"/{path}")
        pair.exchange()
    assert seen == [f"/{path}" for path in paths]


@pytest.mark.parametrize("size", [0, 64, 4096])
def test_the_clients_table_size_is_kept(size: int) -> None:
    """A client that allows no dynamic table gets answers that it can read, before and after it said so."""
    pair = Pair(echo)
    first = pair.request()
    pair.exchange()
    pair.client.update_settings({h2.settings.SettingCodes.HEADER_TABLE_SIZE: size})
    pair.exchange()
    rest = [pair.request() for _ in range(3)]
    pair.exchange()
    assert [pair.trailers[stream]["grpc-status"] for stream in (first, *rest)] == ["0"] * 4


@given(st.binary(max_size=400))
def test_garbage_never_escapes(data: bytes) -> None:
    """Whatever follows the preface ends in frames or a GOAWAY, never in an exception."""
    pair = Pair(echo)
    pair.server.receive(PREFACE + data)
    pair.server.receive(data)


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 1),
        (PREFACE + frame(0, 0, 1, b"x"), 1),  # DATA on an idle stream
        (PREFACE + frame(5, 4, 1), 1),  # a client's PUSH_PROMISE
        (PREFACE + frame(9, 4, 1), 1),  # CONTINUATION of nothing
        (PREFACE + frame(1, 0, 1, b"\x82") + frame(6, 0, 0, b"8" * 8), 1),  # a block that is not continued
        (PREFACE + frame(1, 4, 2, b"\x82"), 1),  # a server's stream number
        (PREFACE + frame(1, 4, 1, b"\xff\xff\xff\xff\x7f"), 9),  # an index beyond the table
        (PREFACE + frame(8, 0, 0, b"\0\0\0\0"), 1),  # a window update of nothing
        (PREFACE + frame(8, 0, 0, b"\x7f\xff\xff\xff"), 3),  # beyond the largest window
        (PREFACE + frame(4, 0, 0, b"12345"), 6),
        (PREFACE + frame(6, 0, 0, b"short"), 6),
        (PREFACE + b"\x00\xff\xff\x00\x00\x00\x00\x00\x01", 6),  # a frame above the limit
        (PREFACE + frame(1, 0, 1, b"") + frame(9, 0, 1, b"x" * 16_000) * 5, 11),  # an endless header block
    ],
)
def test_protocol_errors(bad: bytes, code: int) -> None:
    """What a client must not send ends the connection with a GOAWAY of the right code."""
    pair = Pair()
    pair.server.receive(bad)
    assert pair.has_ended()
    out = bytes(pair.server.out)
    goaway = out.rindex(b"\x07\x00\x00\x00\x00\x00")
    assert int.from_bytes(out[goaway + 10 : goaway + 14], "big") == code


def test_requests_that_are_no_message() -> None:
    """A broken length prefix and compression fail that call alone."""
    pair = Pair(echo)
    for body in (b"", b"\0\0\0\0\5ab", b"\1\0\0\0\1a"):
        stream = pair.client.get_next_available_stream_id()
        pair.client.send_headers(stream, HEADERS)
        pair.client.send_data(stream, body, end_stream=True)
    good = pair.request()
    pair.exchange()
    assert [pair.trailers[stream]["grpc-status"] for stream in (1, 3, 5, good)] == ["13", "13", "12", "0"]


def test_request_limit() -> None:
    """A request above the limit is refused before it is complete."""
    pair = Pair(echo)
    stream = pair.client.get_next_available_stream_id()
    pair.client.send_headers(stream, HEADERS)
    pair.exchange()
    sent = 0
    while sent <= REQUEST_BYTES_MAX + 5 and stream not in pair.trailers:
        part = min(16_384, pair.client.local_flow_control_window(stream))
        pair.client.send_data(stream, b"\0" * part)
        sent += part
        pair.exchange()
    assert pair.trailers[stream]["grpc-status"] == "8"


def test_stream_limit() -> None:
    """Streams above the announced limit are refused, and the connection goes on."""
    pair = Pair()
    pair.exchange()
    pair.client.remote_settings[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS] = 2**31 - 1
    pair.client.remote_settings.acknowledge()
    for _ in range(STREAMS_MAX + 1):
        pair.request()
    pair.exchange()
    assert len(pair.calls) == STREAMS_MAX
    assert [event.error_code for event in pair.events if isinstance(event, h2.events.StreamReset)] == [7]
    pair.calls[0].reply(b"x")
    pair.exchange()
    assert pair.trailers[1]["grpc-status"] == "0"


def test_many_large_requests_pass() -> None:
    """Received bytes are given back to the connection's window: fifty megabytes pass through it."""
    pair = Pair(lambda call: call.reply(b""))
    pair.exchange()
    done = []
    for _ in range(14):
        stream = pair.request(b"x" * 3_500_000)
        pair.exchange()
        done.append(pair.trailers[stream]["grpc-status"])
    assert done == ["0"] * 14


def test_windows_hold_answers_back() -> None:
    """No more is sent than the client's windows allow; the rest follows as they open, whole."""
    message = bytes(range(256)) * 1000
    pair = Pair(lambda call: call.reply(message))
    stream = pair.request()
    pair.exchange(acknowledge=False)
    assert len(pair.data[stream]) == 65_535
    pair.client.increment_flow_control_window(1_000_000)
    pair.exchange(acknowledge=False)
    assert len(pair.data[stream]) == 65_535
    pair.client.increment_flow_control_window(1_000_000, stream)
    pair.exchange(acknowledge=False)
    assert bytes(pair.data[stream][5:]) == message
    assert pair.trailers[stream]["grpc-status"] == "0"


def test_initial_window_change_opens_streams() -> None:
    """A larger initial window counts for streams that are open already."""
    message = b"x" * 100_000
    pair = Pair(lambda call: call.reply(message))
    pair.client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 10})
    stream = pair.request()
    pair.exchange(acknowledge=False)
    assert len(pair.data[stream]) == 10
    pair.client.increment_flow_control_window(1_000_000)
    pair.client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1_000_000})
    pair.exchange(acknowledge=False)
    assert len(pair.data[stream]) == 100_005


def test_streams_are_pulled_by_room() -> None:
    """Messages of a streamed answer are made only when socket and windows have room."""
    made = 0

    def messages() -> Iterator[bytes]:
        nonlocal made
        for _ in range(100):
            made += 1
            yield b"x" * 100_000

    pair = Pair(lambda call: call.stream(messages()))
    pair.client.increment_flow_control_window(2**30)
    pair.client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 2**30})
    stream = pair.request()
    pair.server.receive(pair.client.data_to_send())
    assert made <= OUTPUT_HIGH_BYTES // 100_000 + 2
    pair.exchange()
    assert made == 100
    assert len(pair.data[stream]) == 100 * 100_005


def test_reset_calls_are_done() -> None:
    """A call that its client reset is done, its source is dropped, and late answers go nowhere."""
    pair = Pair()
    stream = pair.request()
    pair.exchange()
    before = pair.calls[0].done
    pair.client.reset_stream(stream)
    pair.exchange()
    assert (before, pair.calls[0].done) == (False, True)
    pair.calls[0].reply(b"late")
    pair.calls[0].fail(GrpcCode.INTERNAL, "late")
    pair.calls[0].stream(iter([b"late"]))
    assert not pair.server.out


def test_pings_are_answered_and_policed() -> None:
    """Pings come back; too many without an answer in between end the connection, as at a Go server."""
    pair = Pair(echo)
    for _ in range(3):
        pair.client.ping(b"12345678")
        pair.exchange()
        pair.request()
        pair.exchange()
    assert not pair.has_ended()
    assert sum(isinstance(event, h2.events.PingAckReceived) for event in pair.events) == 3
    for _ in range(4):
        pair.client.ping(b"12345678")
    pair.exchange()
    assert pair.has_ended()
    ends = [event for event in pair.events if isinstance(event, h2.events.ConnectionTerminated)]
    assert (ends[0].error_code, ends[0].additional_data) == (11, b"too_many_pings")


def test_rare_pings_are_welcome() -> None:
    """With a call under way, a ping every two minutes is allowed for ever."""
    pair = Pair()
    pair.request()
    pair.exchange()
    for _ in range(10):
        pair.now += 120.0
        pair.client.ping(b"12345678")
        pair.exchange()
    assert not pair.has_ended()


def test_padding_priority_and_continuation() -> None:
    """Header blocks padded, with priority and in pieces are read as the plain ones."""
    pair = Pair(echo)
    block = pair.client.encoder.encode(HEADERS)
    padded = bytes((3,)) + b"\0\0\0\0\x10" + block[:4] + b"\0\0\0"
    pair.server.receive(
        PREFACE
        + frame(1, 0x8 | 0x20, 1, padded)
        + frame(9, 0, 1, block[4:9])
        + frame(9, 0x4, 1, block[9:])
        + frame(2, 0, 1, b"\0\0\0\0\x10")
        + frame(0, 0x8 | 0x1, 1, b"\2" + b"\0\0\0\0\1z" + b"\0\0")
    )
    assert not pair.has_ended()
    assert b"\0\0\0\0\1z" in pair.server.out


def test_long_error_texts_are_cut_between_escapes() -> None:
    """An error's text is cut to a kibibyte, never within a percent escape, and stays decodable."""
    pair = Pair(lambda call: call.fail(GrpcCode.INTERNAL, "é" * 5000))
    stream = pair.request()
    pair.exchange()
    text = pair.trailers[stream]["grpc-message"]
    assert 1000 < len(text) <= 1024
    assert set(text.split("%")) == {"", "C3", "A9"}
