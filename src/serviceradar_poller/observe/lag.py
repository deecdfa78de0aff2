"""The loop lag monitor: an actor that measures how late the event loop runs a timer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from serviceradar_poller.otp import Actor

#: One wake-up a second is enough to see a loop that is often late, and costs microseconds.
INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True)
class Tick:
    """Measure now; the timer was due at this loop time."""

    due_s: float


class LoopLagMonitor(Actor[Tick]):
    """
    Measure the loop's lateness every *interval_s* and hand it, in seconds, to *observers*.

    Observers are plain calls, not events: there is nothing to tell, only to measure.
    """

    mailbox_limit = 4

    def __init__(self, *observers: Callable[[float], None], interval_s: float = INTERVAL_S) -> None:
        self._observers = observers
        self._interval_s = interval_s

    async def init(self) -> None:
        """Set the first timer."""
        self._set_timer()

    async def handle(self, message: Tick) -> None:
        """Measure, and set the next timer."""
        lag_s = max(asyncio.get_running_loop().time() - message.due_s, 0.0)
        for observe in self._observers:
            observe(lag_s)
        self._set_timer()

    def _set_timer(self) -> None:
        due_s = asyncio.get_running_loop().time() + self._interval_s
        self.send_after(self._interval_s, Tick(due_s))
