"""Putting events into batches, pure: a batch closes on size, bytes or age, whichever comes first."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from serviceradar_poller.flow.events import Batch, Event, Key


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSettings:
    """
    When a batch closes, and what belongs together.

    Attributes:
        size: Events in a batch, at most.
        timeout_s: From the first event of a batch until it closes; 0 closes it as soon as no more has come.
        bytes_max: Of a batch, as *size_of* counts them; a larger event makes a batch of its own.
        size_of: Bytes of an event's data; needed with *bytes_max*.
        key_of: What the events of a batch have in common; None puts all together.
    """

    size: int
    timeout_s: float
    bytes_max: int | None = None
    size_of: Callable[[Any], int] | None = None
    key_of: Callable[[Any], Key] | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"batch: size must be at least 1, not {self.size}")
        if not 0 <= self.timeout_s < math.inf:
            raise ValueError(f"batch: timeout_s must be finite and not negative, not {self.timeout_s}")
        if (self.bytes_max is None) != (self.size_of is None):
            raise ValueError("batch: bytes_max and size_of belong together")


class _Open:
    """A batch that is being filled."""

    __slots__ = ("close_s", "events", "size_bytes")

    def __init__(self, close_s: float) -> None:
        self.close_s = close_s
        self.events: list[Event[Any]] = []
        self.size_bytes = 0


class Batches:
    """The batches that are being filled, one for each key."""

    __slots__ = ("_open", "_settings")

    def __init__(self, settings: BatchSettings) -> None:
        self._settings = settings
        self._open: dict[Key | None, _Open] = {}  # in the order in which they close by age

    def add(self, event: Event[Any], now_s: float) -> list[Batch[Any]]:
        """Put *event* into its batch; return the batches that this closes, in order."""
        settings = self._settings
        key = settings.key_of(event.data) if settings.key_of is not None else None
        size_bytes = settings.size_of(event.data) if settings.size_of is not None else 0
        closed: list[Batch[Any]] = []
        batch = self._open.get(key)
        if settings.bytes_max is not None and batch is not None and batch.size_bytes + size_bytes > settings.bytes_max:
            closed.append(self._close(key))
            batch = None
        if batch is None:
            batch = self._open[key] = _Open(now_s + settings.timeout_s)
        batch.events.append(event)
        batch.size_bytes += size_bytes
        full = settings.bytes_max is not None and batch.size_bytes >= settings.bytes_max
        if full or len(batch.events) >= settings.size:
            closed.append(self._close(key))
        return closed

    def due(self, now_s: float) -> list[Batch[Any]]:
        """Close and return what is old enough."""
        return [self._close(key) for key in [key for key, batch in self._open.items() if batch.close_s <= now_s]]

    def flush(self) -> list[Batch[Any]]:
        """Close and return all."""
        return [self._close(key) for key in list(self._open)]

    @property
    def next_s(self) -> float | None:
        """When the next one closes by age; None when none is open."""
        batch = next(iter(self._open.values()), None)
        return None if batch is None else batch.close_s

    def _close(self, key: Key | None) -> Batch[Any]:
        events = tuple(self._open.pop(key).events)
        return Batch(events, key, redelivered=any(event.redelivered for event in events))
