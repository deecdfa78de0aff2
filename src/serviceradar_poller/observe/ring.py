"""The latest few numbers, for percentile estimates in bounded memory."""

from __future__ import annotations

from array import array


class Ring:
    """The latest *size* numbers, as single-precision floats."""

    __slots__ = ("_next", "_size", "_values")

    def __init__(self, size: int) -> None:
        self._size = size
        self._values = array("f")
        self._next = 0

    def add(self, value: float) -> None:
        """Add *value*; beyond the size it replaces the oldest."""
        if len(self._values) < self._size:
            self._values.append(value)
            return
        self._values[self._next] = value
        self._next = (self._next + 1) % self._size

    def quantile(self, share: float) -> float:
        """Return the nearest-rank quantile, such as 0.5 for the median; -1 when there is no value."""
        if not self._values:
            return -1.0
        ordered = sorted(self._values)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]

    def max(self) -> float:
        """Return the greatest value; 0 when there is none."""
        return max(self._values, default=0.0)
