"""
Sealed reports that wait for core, oldest first, within a bound of bytes and reports.

A report is sealed when its statuses and its timestamp are fixed. It leaves the outbox when core has accepted every call
of it, when it is given up, or when the bound is reached: then the oldest goes first and is handed back to be counted.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from serviceradar_poller.logic.calls import Call, StreamCall
from serviceradar_poller.logic.reports import Position, ReportKind
from serviceradar_poller.wire.messages import ServiceStatus


@dataclass(slots=True, kw_only=True, eq=False)  # a report is itself, whatever another one holds
class SealedReport:
    """
    A report on its way to core.

    Attributes:
        statuses: Fixed at sealing.
        timestamp: Unix seconds at sealing; core is told this time however late the report arrives.
        sealed_s: Monotonic seconds at sealing.
        tick_s: Monotonic seconds of the tick it reports on; None when it belongs to none.
        size: Encoded bytes of its statuses.
        calls: Planned when it is first sent; those accepted are taken off the front.
        attempts: Failed attempts to send the call at the front; timeouts: those that ran into their deadline.
        positions: Of the result sets it holds: where to go on once core has accepted it.
    """

    kind: ReportKind
    statuses: tuple[ServiceStatus, ...]
    timestamp: int
    sealed_s: float
    size: int
    tick_s: float | None = None
    calls: tuple[Call, ...] | None = None
    attempts: int = 0
    timeouts: int = 0
    positions: tuple[Position, ...] = ()

    @property
    def status_count(self) -> int:
        """How many statuses core has not accepted yet."""
        if self.calls is None:
            return len(self.statuses)
        return sum(c.status_count for c in self.calls if not (isinstance(c, StreamCall) and c.registers))


class Outbox:
    """
    A bounded queue of sealed reports.

    Attributes:
        size: Encoded bytes of all that waits.
    """

    def __init__(self, *, bytes_max: int, reports_max: int) -> None:
        assert bytes_max > 0 and reports_max > 0
        self._bytes_max = bytes_max
        self._reports_max = reports_max
        self._queue: deque[SealedReport] = deque()
        self.size = 0

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def head(self) -> SealedReport | None:
        """The oldest report."""
        return self._queue[0] if self._queue else None

    @property
    def second(self) -> SealedReport | None:
        """The oldest but one."""
        return self._queue[1] if len(self._queue) > 1 else None

    def add(self, report: SealedReport, *, in_flight: SealedReport | None = None) -> list[SealedReport]:
        """
        Add a report and return those that had to go for it, oldest first.

        The newest report always stays, even when it alone is above the bound, and so does the one *in_flight*: core may
        be accepting it right now.
        """
        self._queue.append(report)
        self.size += report.size
        dropped: list[SealedReport] = []
        while self.size > self._bytes_max or len(self._queue) > self._reports_max:
            victim = next((old for old in self._queue if old is not in_flight and old is not report), None)
            if victim is None:
                break
            self.remove(victim)
            dropped.append(victim)
        return dropped

    def remove(self, report: SealedReport) -> None:
        """Take *report* out."""
        self._queue.remove(report)
        self.size -= report.size
