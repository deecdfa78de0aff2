"""The check that the numbered parts of a whole come complete and in order."""

from __future__ import annotations

from serviceradar_poller.flow.events import OutOfOrder


class InOrder:
    """
    Parts numbered from 0, of a total that the first part states.

    Args:
        what: Names a part in errors, such as ``chunk``.
    """

    __slots__ = ("_last", "_next", "_total", "_what")

    def __init__(self, what: str = "part") -> None:
        self._what = what
        self._next = 0
        self._total: int | None = None
        self._last = False

    def accept(self, index: int, *, total: int | None = None, last: bool = False) -> None:
        """
        Take the next part.

        Args:
            total: Parts in all, where a part says so; the same in every part that does.
            last: Whether the part says that it is the last.
        Raises:
            OutOfOrder: It is not the next one, or contradicts what the others said.
        """
        if self._last:
            raise OutOfOrder(f"{self._what} {index} after the last one")
        if index != self._next:
            how = "twice" if index < self._next else "too early"
            raise OutOfOrder(f"{self._what} {index} came {how}, {self._next} is due")
        if total is not None:
            if self._total is not None and total != self._total:
                raise OutOfOrder(f"{self._what} {index} says {total} in all, an earlier one said {self._total}")
            self._total = total
        if self._total is not None and (index >= self._total or last != (index == self._total - 1)):
            raise OutOfOrder(f"{self._what} {index} of {self._total} {'is' if last else 'is not'} marked as the last")
        self._next += 1
        self._last = last

    def end(self) -> None:
        """Raise OutOfOrder unless the last part has come."""
        if not self._last:
            raise OutOfOrder(f"ended before {self._what} {self._next}")
