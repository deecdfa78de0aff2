"""
Run the poller under a sampler: at each tick of CPU time, where its main thread is.

    python -m benchmarks.sampled FILE --config poller.json

SIGUSR1 turns the sampler on and off; at the end FILE has every stack that was seen and the CPU seconds it stands for.

ITIMER_PROF runs with the CPU time of the whole process, and its signal finds the main thread wherever that is, so
each sample weighs as much CPU as the main thread has used since the last: those that other threads caused weigh
nothing. The loop's own way of handling signals must not be used: through `signal.set_wakeup_fd` every tick would
write a byte that wakes the loop, which would measure itself being woken.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from serviceradar_poller import cli

#: CPU time between two ticks; the kernel rounds it up to its own.
TICK_S = 0.002
#: Frames that are kept of a stack, from the innermost on: enough to get out of a library.
FRAMES_MAX = 8
#: Different stacks that are kept; the rest is counted in one.
STACKS_MAX = 50_000

Stack = tuple[tuple[CodeType, int | None], ...]


class Sampler:
    """Adds up the main thread's CPU seconds by stack while it is on."""

    def __init__(self) -> None:
        self._seconds: dict[Stack, float] = {}
        self._on = False
        self._last_s = 0.0
        self._samples = 0

    def toggle(self, *_: object) -> None:
        """Turn it on, or off."""
        self._on = not self._on
        self._last_s = time.thread_time()
        interval_s = TICK_S if self._on else 0.0
        signal.setitimer(signal.ITIMER_PROF, interval_s, interval_s)

    def sample(self, number: int, frame: FrameType | None) -> None:
        """Take one sample."""
        used_s = time.thread_time() - self._last_s
        if not self._on:
            return  # a tick that was under way
        stack: list[tuple[CodeType, int | None]] = []
        while frame is not None and len(stack) < FRAMES_MAX:
            stack.append((frame.f_code, frame.f_lineno))
            frame = frame.f_back
        key: Stack = tuple(stack)
        if key not in self._seconds and len(self._seconds) >= STACKS_MAX:
            key = ()
        self._seconds[key] = self._seconds.get(key, 0.0) + used_s
        self._samples += 1
        self._last_s = time.thread_time()  # what this function costs is nobody's

    def write(self, path: Path) -> None:
        """Write what was found."""
        stacks = [
            {"frames": [[code.co_filename, code.co_qualname, line] for code, line in stack], "seconds": seconds}
            for stack, seconds in self._seconds.items()
        ]
        path.write_text(json.dumps({"samples": self._samples, "stacks": stacks}), "utf-8")


def main() -> int:
    """Run the poller with the arguments after the first."""
    sampler = Sampler()
    _handle_signals_without_wakeups()
    signal.signal(signal.SIGPROF, sampler.sample)
    signal.siginterrupt(signal.SIGPROF, False)  # noqa: FBT003  system calls go on, where the kernel lets them
    signal.signal(signal.SIGUSR1, sampler.toggle)
    try:
        return cli.main(sys.argv[2:])
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        sampler.write(Path(sys.argv[1]))


def _handle_signals_without_wakeups() -> None:
    """Have loops take signals by Python's handlers, which run in the main thread between two instructions."""

    def add(loop: asyncio.AbstractEventLoop, number: int, callback: Callable[..., object], *args: Any) -> None:
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(callback, *args))

    def remove(loop: asyncio.AbstractEventLoop, number: int) -> bool:
        signal.signal(number, signal.SIG_DFL)
        return True

    loops: Any = asyncio.SelectorEventLoop
    loops.add_signal_handler, loops.remove_signal_handler = add, remove


if __name__ == "__main__":
    sys.exit(main())
