"""A thread that notices an event loop that does not turn, and says what it is doing instead."""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from collections.abc import Callable

from serviceradar_poller.events.kernel import LoopBlocked
from serviceradar_poller.otp.exits import TRACEBACK_CHARS_MAX


class LoopWatchdog:
    """
    Reports a blocked loop, once per episode, at most ``threshold_s + 2 * interval_s`` after it stopped.

    The thread asks the loop for a sign of life every *interval_s* and looks at the loop's stack when none has
    come for *threshold_s*. Code that holds the GIL throughout (a long C call) also holds the watchdog: then it
    reports late.

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
                # The loop wakes once per interval for this: the price of knowing, some 50 µs each time.
                self._asked = True
                reported = False
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


def _stack_of_thread(thread_id: int) -> str:
    frame = sys._current_frames().get(thread_id)
    if frame is None:
        return ""
    return "".join(traceback.format_stack(frame))[-TRACEBACK_CHARS_MAX:]
