"""
Look for sequences of steps that execute something new, by coverage.

The search keeps a mutant when it executes a line of the package that no kept sequence executed, or one line many more
times: what libFuzzer calls counters. A run that takes too much time fails like one that breaks an invariant.
"""

from __future__ import annotations

import contextlib
import random  # noqa: TID251 — seeded by the caller
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final

from serviceradar_poller.testing.http2_mutants import Mutator
from serviceradar_poller.testing.http2_play import Play, Step
from serviceradar_poller.transport import http2

#: What is traced.
PACKAGE: Final = Path(http2.__file__).parent
#: CPU time of one run, untraced: what takes longer grows with the square of something, or never ends.
RUN_CPU_S_MAX: Final = 2.0
#: The same under trace, after which the run is repeated without.
_TRACED_CPU_S_MAX: Final = 30.0

Player = Callable[[Sequence[Step]], None]
Lines = Counter[tuple[str, int]]


class TooSlowError(AssertionError):
    """A run took more CPU time than any should."""


def play(steps: Sequence[Step]) -> None:
    """Play a sequence against a session; asserts its invariants."""
    Play().run(steps)


@contextlib.contextmanager
def cpu_bound(seconds: float) -> Iterator[None]:
    """Raise TooSlowError out of what takes more CPU time, even if it would never end; for the main thread."""

    def on_alarm(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise TooSlowError(f"more than {seconds:g} s of CPU time")

    previous = signal.signal(signal.SIGVTALRM, on_alarm)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)


def traced(run: Callable[[], None], folder: Path = PACKAGE) -> Lines:
    """Run something and count how often each line of the package is executed."""
    prefix = str(folder)
    lines: Lines = Counter()

    def in_frame(current: FrameType, event: str, argument: Any) -> Any:
        del argument
        if event == "line":
            lines[current.f_code.co_filename, current.f_lineno] += 1
        return in_frame

    def on_call(current: FrameType, event: str, argument: Any) -> Any:
        del event, argument
        return in_frame if current.f_code.co_filename.startswith(prefix) else None

    previous = sys.gettrace()
    sys.settrace(on_call)
    try:
        run()
    finally:
        sys.settrace(previous)
    return lines


def features(lines: Lines) -> set[tuple[str, int, int]]:
    """Reduce counts to what tells two runs apart: the line and the magnitude of its count."""
    return {(name, line, count.bit_length()) for (name, line), count in lines.items()}


class Search:
    """
    Look for sequences that execute something new.

    Args:
        player: Plays a sequence; raises when something is wrong.
        folder: The package whose lines count.

    Attributes:
        kept: Sequences that did, the given ones first.
        seen: What they execute.
        found: Sequences of *kept* that were not given.
    """

    def __init__(
        self,
        corpus: Sequence[tuple[Step, ...]],
        chance: random.Random,
        *,
        player: Player = play,
        folder: Path = PACKAGE,
    ) -> None:
        self.kept: list[tuple[Step, ...]] = []
        self.found: list[tuple[Step, ...]] = []
        self.seen: set[tuple[str, int, int]] = set()
        self.runs = 0
        self._corpus = corpus
        self._mutator = Mutator(chance)
        self._player = player
        self._folder = folder

    def begin(self) -> None:
        """Play the given sequences; raises what fails, with the sequence as a note."""
        for steps in self._corpus:
            self._run(steps)
            self.kept.append(steps)

    def once(self) -> None:
        """Play one mutant; raises what it makes fail, with the sequence as a note."""
        steps = self._mutator.mutant(self.kept)
        if self._run(steps):
            self.kept.append(steps)
            self.found.append(steps)

    @property
    def lines(self) -> set[tuple[str, int]]:
        """Lines of the package that some sequence executed."""
        return {(name, line) for name, line, _ in self.seen}

    def _run(self, steps: tuple[Step, ...]) -> bool:
        self.runs += 1
        try:
            new = self._features(steps) - self.seen
        except BaseException as error:
            error.add_note("\n".join(map(str, steps)))
            raise
        self.seen |= new
        return bool(new)

    def _features(self, steps: tuple[Step, ...]) -> set[tuple[str, int, int]]:
        began_at = time.thread_time()
        lines: Lines = Counter()
        try:
            with cpu_bound(_TRACED_CPU_S_MAX):
                lines = traced(lambda: self._player(steps), self._folder)
        except TooSlowError:
            pass  # tracing is slow too
        if time.thread_time() - began_at > RUN_CPU_S_MAX:
            with cpu_bound(RUN_CPU_S_MAX):
                self._player(steps)
        return features(lines)
