"""
Where outcomes wait for the reporter: a bounded queue that outlives both ends.

Agents put outcomes in without waiting; whoever reads is told once when the queue stops being empty. When it is full the
oldest outcome goes and is counted: of two outcomes of a check the newer one is what core needs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from serviceradar_poller.logic.outcome import Outcome


class OutcomeInbox:
    """
    A bounded queue of outcomes.

    Attributes:
        limit: Outcomes held at most.
        dropped_total: Outcomes that had to go since the start.
    """

    def __init__(self, *, limit: int) -> None:
        assert limit > 0
        self.limit = limit
        self.dropped_total = 0
        self._queue: deque[Outcome] = deque()
        self._notify: Callable[[], object] | None = None

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, outcome: Outcome) -> None:
        """Add an outcome; never waits."""
        if len(self._queue) >= self.limit:
            self._queue.popleft()
            self.dropped_total += 1
        self._queue.append(outcome)
        if len(self._queue) == 1 and self._notify is not None:
            self._notify()

    def take_all(self) -> deque[Outcome]:
        """Return everything that waits, oldest first, and leave the queue empty."""
        taken, self._queue = self._queue, deque()
        return taken

    def subscribe(self, notify: Callable[[], object]) -> None:
        """Call *notify* whenever the queue stops being empty, and now when it is not; replaces the last subscriber."""
        self._notify = notify
        if self._queue:
            notify()
