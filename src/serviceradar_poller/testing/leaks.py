"""A check that code leaves no task, timer or file descriptor behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from typing import Final

_FD_DIRECTORY: Final = "/proc/self/fd"


@contextlib.contextmanager
def no_leaks() -> Iterator[None]:
    """
    Assert that the block, run within a task, leaves the tasks, timers and file descriptors as they were.

    What was there before may end inside the block; what began there must have ended.

    Raises:
        AssertionError: Something is left; the text names it.
    """
    loop = asyncio.get_running_loop()
    tasks, timers, descriptors = asyncio.all_tasks(loop), _timers(loop), _descriptors()
    yield
    left = sorted(task.get_name() for task in asyncio.all_tasks(loop) - tasks)
    assert not left, f"tasks left: {left}"
    running = [timer for timer in _timers(loop) if timer not in timers]
    assert not running, f"timers left: {running}"
    opened = _descriptors() - descriptors
    assert not opened, f"file descriptors left: {sorted(opened)}"


def _timers(loop: asyncio.AbstractEventLoop) -> list[asyncio.TimerHandle]:
    return [handle for handle in getattr(loop, "_scheduled", ()) if not handle.cancelled()]


def _descriptors() -> set[str]:
    if not os.path.isdir(_FD_DIRECTORY):
        return set()
    names = set()
    for name in os.listdir(_FD_DIRECTORY):
        with contextlib.suppress(OSError):  # the descriptor of the listing itself is gone by now
            names.add(f"{name} {os.readlink(f'{_FD_DIRECTORY}/{name}')}")
    return names
