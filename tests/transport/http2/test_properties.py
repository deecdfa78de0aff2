"""Whatever arrives, however it is cut: the same outcome, bounded buffers, no exception."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
from hypothesis import given, settings, target
from hypothesis import strategies as st

from serviceradar_poller.testing import http2_frames as wire
from serviceradar_poller.testing.http2_fuzz import LIMITS, Play, Search, Step, features, load, main, parse, traced
from serviceradar_poller.transport.http2 import Limits, Session
from serviceradar_poller.transport.http2.responses import BlockReader, interpret

CORPUS = Path(__file__).parents[2] / "data" / "http2_corpus"

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


KINDS = st.integers(0, 11)
STREAMS = st.sampled_from([0, 1, 1, 3, 3, 5, 2, 99])
FLAGS = st.sampled_from([0, 1, 4, 4, 5, 5, 8, 0xC, 0x2C, 0xFF])
FIELDS = st.sampled_from(
    [
        (b":status", b"200"),
        (b":status", b"103"),
        (b":status", b"404"),
        (b"content-type", b"application/grpc"),
        (b"grpc-status", b"0"),
        (b"grpc-status", b"7"),
        (b"grpc-message", b"%20%zz"),
        (b"a-bin", b"AAE,A"),
        (b"A", b"b"),
        (b"a", b"b" * 500),
    ]
)
NUMBERS = st.sampled_from([0, 1, 5, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1]).map(lambda n: n.to_bytes(4, "big"))
PAYLOADS = st.one_of(
    st.binary(max_size=40),
    NUMBERS,
    st.builds(bytes.__add__, NUMBERS, NUMBERS),
    st.lists(FIELDS, max_size=5).map(wire.block),
    st.just(wire.HEADERS_OK),
    st.just(wire.TRAILERS_OK),
    st.binary(max_size=300).map(wire.prefixed),
    st.integers(0, 16_385).map(bytes),
    st.builds(lambda key, value: bytes((0, key)) + value, st.integers(1, 6), NUMBERS),
)
FRAMES = st.one_of(
    st.builds(
        lambda kind, flags, stream, payload: Step("frame", kind, flags, stream, payload),
        KINDS,
        FLAGS,
        STREAMS,
        PAYLOADS,
    ),
    st.builds(
        lambda whole: Step("bytes", payload=whole),
        st.one_of(
            st.sampled_from([1, 3, 5]).map(wire.headers),
            st.sampled_from([1, 3, 5]).map(wire.answer),
            st.sampled_from([1, 3, 5]).map(wire.trailers),
            st.builds(wire.data, st.sampled_from([1, 3, 5]), st.binary(max_size=99).map(wire.prefixed)),
            st.builds(
                wire.datas, st.sampled_from([1, 3]), st.integers(0, 99_000).map(lambda n: wire.prefixed(bytes(n)))
            ),
            st.builds(wire.window, st.sampled_from([0, 1, 3, 5]), st.integers(1, 100_000)),
            st.just(wire.ping()),
        ),
    ),
)
OWN = st.builds(
    Step,
    st.sampled_from(["open", "open", "want", "take", "cancel", "finish", "send", "output", "output", "ping"]),
    st.integers(0, 3),
    st.sampled_from([0, 1, 20, 16_380, 70_000]),
)
START = (
    Step("bytes", payload=wire.settings((3, 6), (4, 65_535)) + wire.SETTINGS_ACK),
    Step("open", 0, 20),
    Step("open", 1, 20),
    Step("open", 2, 70_000),
)


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


def test_the_corpus_keeps_the_invariants_and_reaches_the_code() -> None:
    """The saved sequences play clean, read back as they were written, and execute nearly every line."""
    corpus = load(CORPUS)
    assert len(corpus) >= 20
    assert all(parse("\n".join(map(str, steps))) == steps for steps in corpus)
    search = Search(corpus, random.Random(0))
    assert len(search.lines) > 700


@pytest.mark.slow
def test_a_short_search_finds_no_failure() -> None:
    """Mutants of the corpus, drawn by one seed, keep the invariants, and some execute something new."""
    search = Search(load(CORPUS), random.Random(1))
    for _ in range(400):
        search.once()
    assert search.found and search.runs == len(load(CORPUS)) + 400


def test_a_failure_comes_with_its_sequence() -> None:
    """A sequence that breaks an invariant is told step by step, as a corpus file."""

    class Broken(Play):
        def check(self) -> None:
            assert not self.calls, "a call was opened"

    with pytest.raises(AssertionError, match="a call was opened"):
        Broken().run(START)
    search = Search([], random.Random(0))
    with pytest.raises(AssertionError) as caught:
        search._run((Step("open", 0, 1), Step("nothing")))
    assert caught.value.__notes__ == ["open 0 1\nnothing"]


def test_coverage_tells_runs_apart() -> None:
    """Two runs that differ in what they execute differ in their features; equal runs don't."""
    runs = [features(traced(lambda steps=steps: Play().run(steps))) for steps in (START, START, START[:1])]  # type: ignore[misc]
    assert runs[0] == runs[1] != runs[2]


def test_the_search_runs_as_a_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The program searches for its time and writes what it kept as readable sequences."""
    assert main([str(CORPUS), "--seconds", "0.1", "--seed", "3", "--keep", str(tmp_path)]) == 0
    assert "sequences" in capsys.readouterr().out
    assert all(parse(path.read_text(encoding="ascii")) for path in tmp_path.glob("*.txt"))
