"""The fuzz target: its corpus plays clean, a search finds nothing, and what fails or takes too long is kept."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from serviceradar_poller.testing import http2_search as module
from serviceradar_poller.testing.http2_fuzz import main
from serviceradar_poller.testing.http2_mutants import Mutator
from serviceradar_poller.testing.http2_play import Play, Step, load, parse
from serviceradar_poller.testing.http2_search import Search, TooSlowError, cpu_bound, features, traced
from serviceradar_poller.testing.http2_strategies import START

CORPUS = Path(__file__).parents[2] / "data" / "http2_corpus"


def test_the_corpus_keeps_the_invariants_and_reaches_the_code() -> None:
    """The saved sequences play clean, read back as they were written, and execute nearly every line."""
    corpus = load(CORPUS)
    assert len(corpus) >= 20
    assert all(parse("\n".join(map(str, steps))) == steps for steps in corpus)
    search = Search(corpus, random.Random(0))
    search.begin()
    assert len(search.lines) > 700


@pytest.mark.slow
def test_a_short_search_finds_no_failure() -> None:
    """Mutants of the corpus, drawn by one seed, keep the invariants, and some execute something new."""
    search = Search(load(CORPUS), random.Random(1))
    search.begin()
    for _ in range(400):
        search.once()
    assert search.found and search.runs == len(load(CORPUS)) + 400


@pytest.mark.slow
def test_mutants_are_written_as_they_are() -> None:
    """Whatever is drawn reads back as it was written, in few words even where a frame is repeated by the hundred."""
    mutator, corpus = Mutator(random.Random(2)), load(CORPUS)
    for _ in range(60):
        lines = [str(step) for step in mutator.mutant(corpus)]
        assert [str(step) for step in parse("\n".join(lines))] == lines
    flood = Step("bytes", payload=bytes.fromhex("000004080000000000") * 1000)
    assert str(flood) == "bytes 000004080000000000*1000"
    assert parse(str(flood)) == (flood,)


def test_a_failure_comes_with_its_sequence() -> None:
    """A sequence that breaks an invariant is told step by step, as a corpus file."""

    class Broken(Play):
        def check(self) -> None:
            assert not self.calls, "a call was opened"

    with pytest.raises(AssertionError, match="a call was opened"):
        Broken().run(START)
    search = Search([(Step("open", 0, 1), Step("nothing"))], random.Random(0))
    with pytest.raises(AssertionError) as caught:
        search.begin()
    assert caught.value.__notes__ == ["open 0 1\nnothing"]


def test_coverage_tells_runs_apart() -> None:
    """Two runs that differ in what they execute differ in their features; equal runs don't."""
    runs = [features(traced(lambda steps=steps: Play().run(steps))) for steps in (START, START, START[:1])]  # type: ignore[misc]
    assert runs[0] == runs[1] != runs[2]


def test_what_never_ends_is_cut_off() -> None:
    """A loop without end is broken by the CPU time that it takes."""

    def endless() -> None:
        with cpu_bound(0.02):
            while True:
                pass

    with pytest.raises(TooSlowError):
        endless()


@pytest.mark.parametrize("traced_max", [0.02, 60.0])
def test_a_run_that_takes_too_long_fails(monkeypatch: pytest.MonkeyPatch, traced_max: float) -> None:
    """A run is judged by the time that it takes untraced, whether or not it came to its end under trace."""
    monkeypatch.setattr(module, "RUN_CPU_S_MAX", 0.01)
    monkeypatch.setattr(module, "_TRACED_CPU_S_MAX", traced_max)
    rounds = 0

    def player(steps: Sequence[Step]) -> None:
        nonlocal rounds
        rounds += 1
        for _ in range(100_000_000 if rounds > 1 or traced_max < 1 else 1_000_000):
            pass

    search = Search([], random.Random(0), player=player)
    with pytest.raises(TooSlowError) as caught:
        search.once()
    assert rounds == 2 and caught.value.__notes__


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--channel"]])
def test_the_search_runs_as_a_program(tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]) -> None:
    """The program searches for its time and writes what it kept as readable sequences."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name in ("unary", "stream", "goaway"):
        (corpus / f"{name}.txt").write_bytes((CORPUS / f"{name}.txt").read_bytes())
    keep = tmp_path / "keep"
    assert main([str(corpus), "--seconds", "0.1", "--seed", "3", "--keep", str(keep), *more]) == 0
    assert "sequences" in capsys.readouterr().out
    assert all(parse(path.read_text(encoding="ascii")) for path in keep.glob("*.txt"))


def test_a_failure_and_what_was_found_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search that meets a failure says where its sequence is, writes its finds, and exits with 1."""
    check = Play.check

    def broken(self: Play) -> None:
        assert len(self.calls) < 3, "three calls — one too many"
        check(self)

    monkeypatch.setattr(Play, "check", broken)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "call.txt").write_text("frame 4 0 0\nopen 0 20\n", encoding="ascii")
    assert main([str(corpus), "--seconds", "60", "--seed", "1", "--keep", str(tmp_path)]) == 1
    (failed,) = tmp_path.glob("failed-*.txt")
    output = capsys.readouterr()
    assert str(failed) in output.out and "three calls" in output.err
    text = failed.read_text(encoding="ascii")
    assert text.startswith("# AssertionError: three calls ? one too many\n")
    with pytest.raises(AssertionError, match="three calls"):
        Play().run(parse(text))
    assert list(tmp_path.glob("found-*.txt"))
