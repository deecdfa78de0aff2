"""A thread that notices an event loop that does not turn, and says what it is doing instead."""

from __future__ import annotations

import asyncio
import selectors
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Final

from serviceradar_poller.events.kernel import LoopBlocked
from serviceradar_poller.otp.exits import TRACEBACK_CHARS_MAX

#: A turn of asyncio's loop; what it calls "select" itself is a wait for events.
_TURN: Final = asyncio.BaseEventLoop._run_once.__code__  # type: ignore[attr-defined]


class LoopWatchdog:
    """
    Reports a blocked loop, once per episode, at most ``threshold_s + 2 * interval_s`` after it stopped.

    The thread looks every *interval_s*. A loop that is found asleep, waiting for something to happen, is well and left
    alone: waking it ten times a second would cost an idle program more than all else that it does. One that is found
    at work is asked for a sign of life, and its stack is looked at when none has come for *threshold_s*. Code that
    holds the GIL throughout (a long C call) also holds the watchdog: then it reports late.

    Args:
        emit: Called **from the watchdog's thread**: it must be thread-safe.
        threshold_s: A turn longer than this is a block.
        interval_s: Between two looks.
    """

    def __init__(
        self, *, emit: Callable[[LoopBlocked], None], threshold_s: float = 0.5, interval_s: float = 0.1
    ) -> None:
        if not 0 < interval_s <= threshold_s:
            raise ValueError(f"0 < interval_s <= threshold_s must hold, not {interval_s}, {threshold_s}")
        self._emit = emit
        self._threshold_s = threshold_s
        self._interval_s = interval_s
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._seen_s = 0.0  # written by the loop, read by the thread: one float, whole at any time
        self._asked = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to watch *loop*; to be called in its thread."""
        if self._thread is not None:
            raise RuntimeError("the watchdog runs already")
        self._stopped.clear()
        self._seen_s = loop.time()
        self._asked = False
        self._thread = threading.Thread(
            target=self._watch, args=(loop, threading.get_ident()), name="loop-watchdog", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End the thread; returns when it is gone. May be called twice."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stopped.set()
            thread.join()

    def _watch(self, loop: asyncio.AbstractEventLoop, thread_id: int) -> None:
        reported = False
        while not self._stopped.wait(self._interval_s):
            if not self._asked:
                reported = False
                if _is_asleep(thread_id):
                    continue
                self._seen_s = loop.time()  # nothing was asked since: what it does now began after the last look
                self._asked = True
                try:
                    loop.call_soon_threadsafe(self._sign, loop)
                except RuntimeError:  # the loop is closed
                    return
                continue
            blocked_s = loop.time() - self._seen_s
            if blocked_s >= self._threshold_s and not reported:
                reported = True
                self._emit(LoopBlocked(blocked_s=blocked_s, stack=_stack_of_thread(thread_id)))

    def _sign(self, loop: asyncio.AbstractEventLoop) -> None:
        self._seen_s = loop.time()
        self._asked = False


def _is_asleep(thread_id: int) -> bool:
    """Tell whether asyncio's own loop waits for the next event; any other loop is taken to be at work."""
    frame = sys._current_frames().get(thread_id)
    caller = frame.f_back if frame is not None else None
    return (
        frame is not None
        and caller is not None
        and frame.f_code is selectors.DefaultSelector.select.__code__
        and caller.f_code is _TURN
    )


def _stack_of_thread(thread_id: int) -> str:
    frame = sys._current_frames().get(thread_id)
    if frame is None:
        return ""
    return "".join(traceback.format_stack(frame))[-TRACEBACK_CHARS_MAX:]
