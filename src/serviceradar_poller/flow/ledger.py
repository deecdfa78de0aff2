"""The account of a pipeline: which events are open, what became of the others, where the source goes on."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from serviceradar_poller.flow.events import BadSource, Counts, Event


class Ledger:
    """
    Outlives every stage; holds no data, only offsets.

    An event is open from when the source gives it until it is settled: acknowledged, skipped, quarantined or
    dropped. Open events are bounded by the demand and the buffers of the stages, each of which is bounded.
    """

    __slots__ = ("_again", "_again_below", "_counts", "_next", "_open", "_poisoned", "_tries")

    def __init__(self) -> None:
        self._open: dict[int, int] = {}  # copies still to be settled, by offset, ascending
        self._tries: dict[int, int] = {}  # of open events that a handler raised on
        self._poisoned: set[int] = set()  # open events of which a copy was given up
        self._next = 0  # after the greatest offset seen
        self._counts = Counts()
        self._again: collections.deque[int] = collections.deque()  # open, and to be read again
        self._again_below = 0  # what is below was seen before the source was rewound

    @property
    def open_count(self) -> int:
        """Events that are not settled."""
        return len(self._open)

    @property
    def resume_offset(self) -> int:
        """Where the source goes on: every event before it is settled."""
        return next(iter(self._open), self._next)

    def counts(self) -> Counts:
        """Return a copy of the counts as they are now."""
        return dataclasses.replace(self._counts, open=len(self._open))

    # What the source gives

    def admit(self, items: Sequence[Any], offset_of: Callable[[Any], int | None]) -> list[Event[Any]]:
        """
        Open an event for each item that is not settled already.

        Raises:
            BadSource: An offset is not greater than the one before.
        """
        events: list[Event[Any]] = []
        for item in items:
            offset = offset_of(item)
            if offset is None:
                offset = self._next
            if offset < self._next:
                raise BadSource(f"offset {offset} where {self._next} is the least expected")
            self._next = offset + 1
            if offset < self._again_below:
                event = self._readmit(offset, item)
                if event is not None:
                    events.append(event)
                continue
            if self._again:
                self._drop_missing(offset)
            self._open[offset] = 1
            self._counts.produced += 1
            events.append(Event(offset, item))
        return events

    def rewind(self) -> int:
        """Prepare for a source that is read again; return where from."""
        offset = self.resume_offset
        self._again_below = max(self._next, self._again_below)
        self._again = collections.deque(self._open)
        self._next = offset
        self._open = dict.fromkeys(self._open, 1)
        self._poisoned.clear()
        return offset

    def ended(self) -> None:
        """Learn that nothing follows: what was to be read again and did not come is lost."""
        self._drop_missing(self._again_below)
        self._next = max(self._next, self._again_below)

    def _readmit(self, offset: int, item: Any) -> Event[Any] | None:
        self._drop_missing(offset)
        if not self._again or self._again[0] != offset:
            return None  # settled before the source was rewound
        self._again.popleft()
        self._counts.redelivered += 1
        return Event(offset, item, redelivered=True, tries=self._tries.get(offset, 0))

    def _drop_missing(self, below: int) -> None:
        while self._again and self._again[0] < below:
            self.dropped(self._again.popleft())

    # What becomes of it

    def copies(self, offset: int, count: int) -> None:
        """Say that *count* consumers get the event."""
        self._open[offset] = count

    def ack(self, offset: int) -> None:
        """Settle one copy as handled."""
        if self._last_copy(offset):
            if offset in self._poisoned:
                self._poisoned.discard(offset)
                self._counts.quarantined += 1
            else:
                self._counts.acked += 1

    def quarantined(self, offset: int) -> None:
        """Settle one copy as given up; the event counts as quarantined when its other copies are settled."""
        self._poisoned.add(offset)
        self.ack(offset)

    def skipped(self, offset: int) -> None:
        """Settle an event that goes no further."""
        self._settle(offset)
        self._counts.skipped += 1

    def dropped(self, offset: int) -> None:
        """Settle an event that there was no room for."""
        self._settle(offset)
        self._counts.dropped += 1

    def failed(self, event: Event[Any]) -> None:
        """Count a try that failed; the event learns how many."""
        self._counts.failures += 1
        event.tries += 1
        self._tries[event.offset] = max(self._tries.get(event.offset, 0), event.tries)

    def returned(self, count: int) -> None:
        """Count events that are given to a stage again."""
        self._counts.redelivered += count

    def _last_copy(self, offset: int) -> bool:
        left = self._open[offset] - 1
        if left:
            self._open[offset] = left
            return False
        self._settle(offset)
        return True

    def _settle(self, offset: int) -> None:
        del self._open[offset]
        if self._tries:
            self._tries.pop(offset, None)
