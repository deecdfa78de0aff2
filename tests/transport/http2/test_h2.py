"""Against another implementation: h2 plays the server, in memory, with small windows and awkward habits."""

from __future__ import annotations

from collections.abc import Callable

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import pytest
from h2.settings import SettingCodes
from hypothesis import given
from hypothesis import strategies as st

from serviceradar_poller.testing.http2_frames import REQUEST, prefixed
from serviceradar_poller.transport.http2 import Call, Cause, Limits, Session

HEADERS = [(":status", "200"), ("content-type", "application/grpc"), ("x-table", "remembered")]
TRAILERS = [("grpc-status", "0"), ("x-table", "remembered")]


class Server:
    """h2's server: collects whole requests and lets answers out as the client's windows allow."""

    def __init__(
        self,
        session: Session,
        settings: dict[SettingCodes, int] | None = None,
        *,
        step: int = 0,
        acknowledge: bool = True,
    ) -> None:
        self.session = session
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        if settings:
            self.h2.local_settings = h2.settings.Settings(client=False, initial_values=settings)
        self.h2.initiate_connection()
        self.step = step
        self.acknowledge = acknowledge
        self.requests: dict[int, bytearray] = {}
        self.whole: list[int] = []
        self.pending: dict[int, tuple[bytearray, list[tuple[str, str]] | None, int | None]] = {}
        self.resets: list[int] = []
        self.touched: list[Call] = []
        self.most_open = 0

    def exchange(self, on_request: Callable[[int], None] | None = None) -> None:
        """Carry bytes both ways until neither side has any."""
        while True:
            sent = self.session.take_output()
            for event in self.h2.receive_data(sent):
                self._on_event(event, on_request)
            self._pump()
            received = self.h2.data_to_send()
            if not sent and not received:
                return
            for begin in range(0, len(received), self.step or len(received) or 1):
                self.touched += self.session.receive(received[begin : begin + (self.step or len(received))])

    def answer(
        self, stream: int, payload: bytes, *, padding: int | None = None, trailers: list[tuple[str, str]] | None = None
    ) -> None:
        self.h2.send_headers(stream, HEADERS)
        self.pending[stream] = (bytearray(payload), TRAILERS if trailers is None else trailers, padding)
        self._pump()

    def _on_event(self, event: h2.events.Event, on_request: Callable[[int], None] | None) -> None:
        self.most_open = max(self.most_open, self.h2.open_inbound_streams)
        if isinstance(event, h2.events.RequestReceived):
            assert event.stream_id is not None
            self.requests[event.stream_id] = bytearray()
        elif isinstance(event, h2.events.DataReceived):
            assert event.stream_id is not None
            assert event.flow_controlled_length is not None
            self.requests[event.stream_id] += event.data or b""
            if self.acknowledge:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            assert event.stream_id is not None
            self.whole.append(event.stream_id)
            if on_request is not None:
                on_request(event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            assert event.stream_id is not None
            self.resets.append(event.stream_id)
            self.pending.pop(event.stream_id, None)

    def _pump(self) -> None:
        for stream, (rest, trailers, padding) in list(self.pending.items()):
            while rest:
                room = self.h2.local_flow_control_window(stream) - (0 if padding is None else padding + 1)
                room = min(room, self.h2.max_outbound_frame_size - 256)
                if room <= 0:
                    break
                self.h2.send_data(stream, bytes(rest[:room]), pad_length=padding)
                del rest[:room]
            if not rest:
                del self.pending[stream]
                if trailers is not None:
                    self.h2.send_headers(stream, trailers, end_stream=True)


def pair(
    settings: dict[SettingCodes, int] | None = None,
    *,
    limits: Limits | None = None,
    step: int = 0,
    acknowledge: bool = True,
) -> Server:
    server = Server(Session(limits or Limits()), settings, step=step, acknowledge=acknowledge)
    server.exchange()
    assert server.session.ready
    return server


def echo(server: Server, *, padding: int | None = None) -> Callable[[int], None]:
    return lambda stream: server.answer(stream, bytes(server.requests[stream]), padding=padding)


@given(
    messages=st.lists(st.binary(max_size=300), min_size=1, max_size=8),
    sizes=st.sampled_from([0, 1, 20_000]),
    window=st.sampled_from([1, 100, 65_535]),
    step=st.sampled_from([0, 1, 9, 1000]),
    padding=st.sampled_from([None, 0, 255]),
)
@pytest.mark.slow
def test_calls_are_answered(messages: list[bytes], sizes: int, window: int, step: int, padding: int | None) -> None:
    """Whatever the windows, cuts and padding, each call gets its own answer, and h2 finds nothing wrong."""
    if window == 1:
        sizes = 0
    server = pair({SettingCodes.INITIAL_WINDOW_SIZE: window}, step=0 if sizes > 1 else step)
    messages = [message + bytes(sizes) for message in messages]
    calls = [server.session.open(REQUEST, timeout_s=5, message=message) for message in messages]
    server.exchange(echo(server, padding=padding))
    assert [call.take() for call in calls] == messages
    assert all(call.outcome is not None and call.outcome.code == 0 for call in calls)
    assert all(call.outcome.metadata == (("x-table", "remembered"),) for call in calls if call.outcome is not None)
    assert server.session.active == 0 and server.session.buffered_bytes == 0


def test_one_call_at_a_time() -> None:
    """A server that allows one stream gets one at a time, over and over."""
    server = pair({SettingCodes.MAX_CONCURRENT_STREAMS: 1})
    for index in range(50):
        assert server.session.room == 1
        call = server.session.open(REQUEST, timeout_s=1, message=b"%d" % index)
        assert server.session.room == 0
        server.exchange(echo(server))
        assert call.take() == b"%d" % index
    assert server.most_open == 1


def test_none_at_all() -> None:
    """A server that allows no stream leaves no room until it changes its mind."""
    server = pair({SettingCodes.MAX_CONCURRENT_STREAMS: 0})
    assert server.session.room == 0
    server.h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 3})
    server.exchange()
    assert server.session.room == 3


def test_large_messages_both_ways() -> None:
    """Megabytes pass in both directions through windows of a few kilobytes, at larger frames as well."""
    settings = {SettingCodes.INITIAL_WINDOW_SIZE: 5000, SettingCodes.MAX_FRAME_SIZE: 50_000}
    server = pair(settings, limits=Limits(stream_window_bytes=65_535, connection_window_bytes=65_535))
    message = bytes(range(256)) * 8192
    call = server.session.open(REQUEST, timeout_s=None, message=message)
    server.exchange(echo(server))
    assert call.take() == message and call.outcome is not None and call.outcome.code == 0


def test_a_streamed_request() -> None:
    """Messages sent one after the other arrive in order, as far as the server lets them."""
    server = pair({SettingCodes.INITIAL_WINDOW_SIZE: 10_000}, acknowledge=False)
    call = server.session.open(REQUEST, timeout_s=None, end=False)
    for index in range(10):
        call.send(bytes((index,)) * 3000, end=index == 9)
    server.exchange()
    assert len(server.requests[1]) == 10_000 and call.pending_bytes == 10 * 3005 - 10_000
    server.h2.increment_flow_control_window(50_000, 1)
    server.exchange(echo_first(server))
    assert bytes(server.requests[1]) == b"".join(prefixed(bytes((index,)) * 3000) for index in range(10))
    assert call.outcome is not None and call.outcome.code == 0 and server.whole == [1]


def echo_first(server: Server) -> Callable[[int], None]:
    return lambda stream: server.answer(stream, prefixed(b"got it"))


def test_a_streamed_answer_by_demand() -> None:
    """A reader that takes its time holds the server back; nothing is lost."""
    server = pair(limits=Limits(stream_window_bytes=65_535))
    call = server.session.open(REQUEST, timeout_s=None, message=b"", streaming=True)
    messages = [bytes((index,)) * 30_000 for index in range(20)]
    server.exchange(lambda stream: server.answer(stream, b"".join(map(prefixed, messages))))
    for message in messages:
        assert call.buffered_bytes <= 65_535
        call.want()
        server.exchange()
        assert call.take() == message
    server.exchange()
    assert call.outcome is not None and call.outcome.code == 0


def test_huge_headers_are_continued() -> None:
    """Headers of several frames are read, and those above the limit hurt their own call alone."""
    server = pair(limits=Limits(header_list_bytes_max=60_000))
    call = server.session.open(REQUEST, timeout_s=None, message=b"")
    other = server.session.open(REQUEST, timeout_s=None, message=b"")
    server.exchange()
    # h2 checks its peer's limit of the header list as well; this test is about ours.
    large = [*TRAILERS, ("x-large", "ü" * 8000), ("x-random", "~" * 4000)]
    server.answer(1, prefixed(b"m"), trailers=large)
    server.exchange()
    assert call.outcome is not None and call.outcome.code == 0
    assert ("x-random", "~" * 4000) in call.outcome.metadata
    server.answer(3, prefixed(b"m"), trailers=[*TRAILERS, *((f"x-{index}", "a" * 800) for index in range(80))])
    server.exchange()
    assert other.outcome is not None and (other.outcome.cause, other.outcome.code) == (Cause.PROTOCOL, 8)
    assert server.session.error is None


def test_goaway_within_calls() -> None:
    """A server that leaves lets the calls that it took finish."""
    server = pair()
    calls = [server.session.open(REQUEST, timeout_s=None, message=b"%d" % index) for index in range(3)]
    server.exchange()
    server.h2.close_connection(last_stream_id=3)
    goodbye = server.h2.data_to_send()
    assert server.session.receive(goodbye) == [calls[2]]
    assert calls[2].outcome is not None and calls[2].outcome.cause is Cause.REFUSED
    assert server.session.room == 0 and server.session.active == 2
    assert server.session.eof() == calls[:2]


def test_cancelled_calls_leave_the_others_alone() -> None:
    """A reset on this side reaches the server, which goes on with the rest."""
    server = pair()
    first, second = (server.session.open(REQUEST, timeout_s=None, message=b"m" * 9) for _ in range(2))
    server.exchange()
    server.answer(1, prefixed(bytes(300_000)))
    first.cancel()
    server.exchange()
    server.answer(3, prefixed(b"well"))
    server.exchange()
    assert server.resets == [1] and second.take() == b"well"
    assert first.outcome is not None and first.outcome.cause is Cause.CANCELLED and first.take() is None


def test_tables_before_the_settings_are_known() -> None:
    """h2 fills its table until it has read our SETTINGS; both its encodings are understood."""
    session = Session()
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
    server.initiate_connection()
    calls = [session.open(REQUEST, timeout_s=None, message=b"") for _ in range(4)]
    output = session.take_output()
    # The preface and empty settings instead of ours: h2 keeps its table until it hears of it.
    end_of_settings = output.index(b"\x00\x00\x04\x08")
    ours, rest = output[24:end_of_settings], output[end_of_settings:]
    server.receive_data(output[:24] + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)) + rest)
    sent = server.data_to_send()
    assert sent.endswith(b"\x00\x00\x00\x04\x01\x00\x00\x00\x00")
    session.receive(sent[:-9])  # the acknowledgement belongs to the settings that were never ours
    for call in calls[:2]:
        server.send_headers(call.id, HEADERS)
        server.send_data(call.id, prefixed(b"%d" % call.id))
        server.send_headers(call.id, TRAILERS, end_stream=True)
    session.receive(server.data_to_send())
    assert session._reader.buffered_bytes > 0 and not session._reader.known
    server.receive_data(ours + session.take_output())
    for call in calls[2:]:
        server.send_headers(call.id, HEADERS)
        server.send_data(call.id, prefixed(b"%d" % call.id))
        server.send_headers(call.id, TRAILERS, end_stream=True)
    session.receive(server.data_to_send())
    assert [call.take() for call in calls] == [b"1", b"3", b"5", b"7"]
    assert len({call.outcome for call in calls}) == 1 and session.error is None
    assert session._reader.buffered_bytes == 0 and session._reader.known


@pytest.mark.parametrize("sizes", [(0,), (1024,), (4095,), (8192,), (4096, 100, 8192, 0)])
def test_a_peer_may_want_a_smaller_table(sizes: tuple[int, ...]) -> None:
    """A server that lowers HEADER_TABLE_SIZE is told that the table is empty, once, in the next block."""
    server = pair()
    for size in sizes:
        server.h2.update_settings({SettingCodes.HEADER_TABLE_SIZE: size})
        server.exchange()
        calls = [server.session.open(REQUEST, timeout_s=1.0, message=b"m") for _ in range(2)]
        server.exchange(echo(server))
        assert [call.take() for call in calls] == [b"m", b"m"]
    assert server.session.error is None


def test_a_ping_each_way() -> None:
    """h2 answers our ping and gets its own back."""
    server = pair()
    server.session.ping()
    was_pending = server.session.ping_pending
    server.h2.ping(b"12345678")
    server.exchange()
    assert (was_pending, server.session.ping_pending) == (True, False)
    assert server.session.error is None
