"""Whatever arrives, however it is cut: the same outcome, bounded buffers, no exception."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings, target
from hypothesis import strategies as st

from serviceradar_poller.testing import http2_frames as wire
from serviceradar_poller.testing.http2_play import LIMITS, Play, Step
from serviceradar_poller.testing.http2_strategies import FRAMES, OWN, START
from serviceradar_poller.transport.http2 import Limits, Session
from serviceradar_poller.transport.http2.responses import BlockReader, interpret

RECORDED = b"".join(
    (
        wire.settings((3, 10), (4, 100)),
        wire.SETTINGS_ACK,
        wire.ping(),
        wire.answer(1),
        wire.headers(3),
        wire.data(3, wire.prefixed(b"a" * 300)[:100], padding=3),
        wire.window(3, 1000),
        wire.data(3, wire.prefixed(b"a" * 300)[100:] + wire.prefixed(b"")),
        wire.rst(5, 8),
        wire.frame(1, 0, 7, wire.HEADERS_OK[:4]),
        wire.frame(9, 4, 7, wire.HEADERS_OK[4:]),
        wire.data(7, wire.prefixed(b"", 1)),
        wire.data(7, b"late"),
        wire.trailers(3, 9, b"why%20not", (b"k-bin", b"AA")),
        wire.goaway(9, 0, b"bye"),
        wire.answer(9),
    )
)


def replay(cuts: list[int]) -> tuple[object, ...]:
    session = Session()
    calls = [session.open(wire.REQUEST, timeout_s=None, message=bytes(200), streaming=index == 1) for index in range(6)]
    output = session.take_output()
    touched: list[int] = []
    for begin, end in itertools.pairwise([0, *sorted(cuts), len(RECORDED)]):
        touched += [call.id for call in session.receive(RECORDED[begin:end])]
        output += session.take_output()
    assert session.error is None
    found: list[object] = [
        (call.outcome, call.take(), call.take(), call.take(), call.initial_metadata) for call in calls
    ]
    return (*found, output, set(touched), session.going_away, session.buffered_bytes)


WHOLE = replay([])


@given(st.lists(st.integers(0, len(RECORDED)), max_size=20))
def test_any_cut_gives_the_same(cuts: list[int]) -> None:
    """A recorded exchange cut anywhere ends every call the same, with the same output."""
    assert replay(cuts) == WHOLE


def test_single_bytes_give_the_same() -> None:
    """The same exchange byte by byte."""
    assert replay(list(range(len(RECORDED)))) == WHOLE


def test_any_end_of_the_bytes_ends_every_call() -> None:
    """A connection that ends at any byte leaves no call open and keeps nothing."""
    for end in range(len(RECORDED)):
        session = Session()
        calls = [session.open(wire.REQUEST, timeout_s=None, message=b"") for _ in range(6)]
        ended = session.receive(RECORDED[:end])
        ended += session.eof()
        assert all(call.outcome is not None for call in calls) and set(calls) == set(ended)
        assert session.buffered_bytes == 0 and session.active == session.room == 0


@given(st.lists(st.binary(max_size=200), max_size=8), st.booleans())
def test_any_bytes_are_survived(parts: list[bytes], greeted: bool) -> None:
    """Bytes that mean nothing end in an error or wait for more, and are not kept beyond one frame."""
    play = Play()
    if greeted:
        play.step(Step("bytes", payload=wire.settings() + wire.SETTINGS_ACK))
        play.step(Step("open", 0, 5))
    play.run(Step("bytes", payload=part) for part in parts)


@given(st.lists(FRAMES | OWN, max_size=25))
@settings(max_examples=400)
@pytest.mark.slow
def test_any_frames_keep_the_invariants(steps: list[Step]) -> None:
    """Frames of any kind and sense, among the client's own steps, never break what Play.check() asserts."""
    play = Play()
    play.run([*START, *steps])
    target(float(len(play.outcomes)), label="calls ended")
    target(float(play.received_bytes), label="bytes taken")


@given(st.binary(max_size=300))
def test_any_header_block_is_survived(data: bytes) -> None:
    """A block decodes, breaks its call, or breaks the session; both ways of decoding are one."""
    for acknowledged in (False, True):
        session = Session(LIMITS)
        session.receive(wire.settings() + (wire.SETTINGS_ACK if acknowledged else b""))
        session.open(wire.REQUEST, timeout_s=None, message=b"")
        session.receive(wire.headers(1, data))
        session.receive(wire.headers(1, data, end=True))
        assert session.buffered_bytes < 10_000


@given(st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=50)), max_size=20))
def test_any_fields_are_interpreted(fields: list[tuple[bytes, bytes]]) -> None:
    """Any header list gets a meaning or a fault, never both a fault and a status."""
    found = interpret(fields, Limits())
    assert found.fault is None or (found.outcome is None and found.http_status is None)
    again = interpret([(b":status", b"200"), *fields], Limits())
    assert again.fault is not None or again.http_status == 200


def test_remembered_blocks_mean_what_decoding_gives() -> None:
    """A block found by its bytes equals the block decoded anew."""
    first, second = BlockReader(Limits()), BlockReader(Limits())
    first.table_refused()
    for block in (wire.HEADERS_OK, wire.TRAILERS_OK, b"\x88\x5f\x10application/grpc"):
        read = first.read(block)
        assert first.known[block] is read and read == second.read(block)
