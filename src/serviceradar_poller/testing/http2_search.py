"""
Look for sequences of steps that execute something new, by coverage.

The search keeps a mutant when it executes a line of the package that no kept sequence executed, or one line many
more times: what libFuzzer calls counters.
"""

from __future__ import annotations

import random  # noqa: TID251 — seeded by the caller
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from serviceradar_poller.testing.http2_mutants import Mutator
from serviceradar_poller.testing.http2_play import Play, Step
from serviceradar_poller.transport import http2

Lines = Counter[tuple[str, int]]


def traced(run: Callable[[], None]) -> Lines:
    """Run something and count how often each line of the package is executed."""
    folder = str(Path(http2.__file__).parent)
    lines: Lines = Counter()

    def in_frame(current: FrameType, event: str, argument: Any) -> Any:
        del argument
        if event == "line":
            lines[current.f_code.co_filename, current.f_lineno] += 1
        return in_frame

    def on_call(current: FrameType, event: str, argument: Any) -> Any:
        del event, argument
        return in_frame if current.f_code.co_filename.startswith(folder) else None

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

    Attributes:
        kept: Sequences that did, the given ones first.
        seen: What they execute.
        found: Sequences of *kept* that were not given.
    """

    def __init__(self, corpus: Sequence[tuple[Step, ...]], chance: random.Random) -> None:
        self.kept: list[tuple[Step, ...]] = []
        self.found: list[tuple[Step, ...]] = []
        self.seen: set[tuple[str, int, int]] = set()
        self.runs = 0
        self._mutator = Mutator(chance)
        for steps in corpus:
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
            new = features(traced(lambda: Play().run(steps))) - self.seen
        except BaseException as error:
            error.add_note("\n".join(map(str, steps)))
            raise
        self.seen |= new
        return bool(new)
