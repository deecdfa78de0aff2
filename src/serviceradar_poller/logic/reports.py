"""
When outcomes leave for core, and which: one report a cycle (CycleBook), or batches (BatchBook).

A CycleBook holds the newest outcome of every status check. It cuts a report when every check has an outcome of the
current cycle or the deadline has come, whichever is first; a change of state between two reports cuts a full snapshot
early. A check that gave no outcome for longer than any run may take is told as failed, so that core never goes on
seeing an old "available" when the actors behind it are gone. Only time in which the program ran counts for that: after
it was stopped, or its machine was, every check is as old as the pause, and none had its turn yet. So a book wants to be
looked at every quarter of an interval, and of the time from one look to the next no more than that counts.

    tick k            complete or deadline        change, settled
      │ outcomes …           │                          │
      ├──────────────────────┼──────────────────────────┼──────────── tick k+1
                          cycle report              early report

A result set is told once, with the next report. One that is too large for that goes by itself; core's view then shows
nothing else, so a full snapshot is asked for, and likewise after a backlog.

A book is plain data without clock or loop: callers pass ``now_s`` (monotonic) and send what comes back. It is mutable,
since a cycle of 10,000 outcomes would otherwise copy itself 10,000 times; it belongs to one owner and outlives the
actor that sends.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from serviceradar_poller.errors import CallError, GrpcCode, Layer
from serviceradar_poller.logic.outcome import CheckSubject, Device, Outcome, Reporter, from_failure
from serviceradar_poller.logic.schedule import Timetable
from serviceradar_poller.wire.messages import ServiceStatus

CheckId = tuple[str, str]  # agent, check key

#: Several checks of one agent change within moments of each other: one early report for all of them.
EARLY_SETTLE_S = 0.25
#: Looks at a CycleBook in an interval, at least: it can't tell a pause shorter than the time between two from silence.
LOOKS_PER_INTERVAL = 4
#: Result sets held for the next report, and their bytes; what passes either limit cuts a report at once.
RESULTS_PENDING_MAX = 1_000
RESULTS_PENDING_BYTES_MAX = 8 * 1024 * 1024


class ReportKind(enum.StrEnum):
    """Why a report was cut."""

    CYCLE = "cycle"
    EARLY = "early"
    CURRENT = "current"  # all that is known, after something went to core that shows less
    BATCH = "batch"
    RESULT = "result"  # one large result set by itself, cut by no book
    HEARTBEAT = "heartbeat"  # nothing to tell yet, but alive
    FINAL = "final"  # what was left when the poller stopped


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a results check goes on, once core has what came before."""

    check: CheckId
    sequence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """
    A report to be sent.

    Attributes:
        tick: The cycle it closes; None when it closes none.
        fresh: Statuses that core has not seen yet; the others repeat what it knows.
        positions: To be remembered when core has accepted the report.
        change: It tells a change of state: the last to go when there is no room for all.
    """

    kind: ReportKind
    statuses: tuple[ServiceStatus, ...]
    tick: int | None = None
    fresh: int = 0
    positions: tuple[Position, ...] = ()
    change: bool = False


class ReportBook(Protocol):
    """
    What the reporter asks of either kind of book.

    Attributes:
        stale_total: Checks told as failed because they gave no outcome for too long, since the start.
    """

    stale_total: int

    def record(self, outcome: Outcome, now_s: float) -> None:
        """Take an outcome in."""
        ...

    def cut(self, now_s: float) -> Cut | None:
        """Return the report that is due, if one is."""
        ...

    def next_cut_s(self, now_s: float) -> float:
        """Return when cut() is worth calling again, should nothing be recorded before."""
        ...

    def final(self, now_s: float) -> Cut | None:
        """Return what core has not seen yet, regardless of any deadline; None when that is nothing."""
        ...

    def want_current(self, now_s: float, *, unless_newer: bool = False) -> None:
        """
        Ask for a report of all that is known, to be cut as soon as early reports may be.

        Args:
            unless_newer: Not where the last such report is newer than the interval between early reports.
        """
        ...

    def set_subjects(self, subjects: Mapping[CheckId, CheckSubject], now_s: float) -> None:
        """Replace the checks whose outcomes are expected; what is known of the others is forgotten."""
        ...


class _Results:
    """Statuses that are told once, with the positions that go with them."""

    __slots__ = ("positions", "size", "statuses")

    def __init__(self) -> None:
        self.size = 0  # of the messages
        self.statuses: list[ServiceStatus] = []
        self.positions: list[Position] = []

    def __len__(self) -> int:
        return len(self.statuses)

    @property
    def full(self) -> bool:
        return len(self.statuses) >= RESULTS_PENDING_MAX or self.size >= RESULTS_PENDING_BYTES_MAX

    def add(self, outcome: Outcome) -> None:
        assert outcome.status is not None
        self.size += len(outcome.status.message)
        self.statuses.append(outcome.status)
        if outcome.sequence:
            subject = outcome.subject
            self.positions.append(Position(check=(subject.agent, subject.key), sequence=outcome.sequence))

    def take(self, count: int) -> tuple[tuple[ServiceStatus, ...], tuple[Position, ...]]:
        """Return the first *count* statuses; the positions go along with the last of them."""
        taken, self.statuses = tuple(self.statuses[:count]), self.statuses[count:]
        if self.statuses:
            return taken, ()
        positions, self.positions = tuple(self.positions), []
        return taken, positions


@dataclass(slots=True)
class _Entry:
    """What is known of one status check."""

    subject: CheckSubject
    known_s: float  # when the last outcome came, or the check became expected; in time that counts
    tick: int = -1
    status: ServiceStatus | None = None
    reported: bool | None = None  # the availability that core was told last
    fresh: bool = False  # core has not seen this status
    stale: bool = False


class CycleBook:
    """
    One full report per cycle, early ones on a change of state.

    Silence longer than ``stale_after_s`` is a failure; half an interval of it should be to spare, see `_count_time`.

    Args:
        device_of: Returns what an agent's machine is known as by now.
    """

    def __init__(
        self,
        *,
        timetable: Timetable,
        reporter: Reporter,
        device_of: Callable[[str], Device],
        deadline_s: float,
        early_interval_s: float,
        stale_after_s: float,
    ) -> None:
        self._timetable = timetable
        self._reporter = reporter
        self._device_of = device_of
        self._deadline_s = deadline_s
        self._early_interval_s = early_interval_s
        self._stale_after_s = stale_after_s
        self._entries: dict[CheckId, _Entry] = {}
        self._results = _Results()
        self._look_s = timetable.interval_s / LOOKS_PER_INTERVAL
        self._looked_s = timetable.epoch_s
        self._ran_s = 0.0  # the time that counts
        self._tick = 0
        self._tick_reported = -1
        self._missing = 0  # entries without an outcome of the current tick
        self._changed: set[CheckId] = set()
        self._changed_s = 0.0
        self._early_s = -early_interval_s
        self._snapshot_s = float("-inf")
        self._wanted = False  # a snapshot, whether or not anything changed
        self.stale_total = 0

    def set_subjects(self, subjects: Mapping[CheckId, CheckSubject], now_s: float) -> None:
        """Replace the checks whose outcomes are expected; what is known of those that stay is kept."""
        self._advance(now_s)
        entries: dict[CheckId, _Entry] = {}
        for check, subject in subjects.items():
            if subject.is_results:
                continue
            entry = self._entries.get(check)
            if entry is None or entry.subject != subject:
                entry = _Entry(subject=subject, known_s=self._ran_s)
            entries[check] = entry
        self._entries = entries
        self._changed &= entries.keys()
        self._count_missing()

    def record(self, outcome: Outcome, now_s: float) -> None:
        """Take an outcome in; one of a check that is not expected any more is ignored, unless it is a result set."""
        self._advance(now_s)
        subject = outcome.subject
        if outcome.status is None:
            return
        if subject.is_results:
            self._results.add(outcome)
            return
        check = (subject.agent, subject.key)
        entry = self._entries.get(check)
        if entry is None:
            return
        if entry.tick < self._tick <= outcome.tick:
            self._missing -= 1
        entry.tick = max(entry.tick, outcome.tick)
        entry.status = outcome.status
        entry.known_s = self._ran_s
        entry.fresh = True
        entry.stale = False
        self._note_change(check, entry, now_s)

    def cut(self, now_s: float) -> Cut | None:
        """Return the cycle's report when it is complete or late, or an early one when a change asks for it."""
        self._advance(now_s)
        if self._tick > self._tick_reported:
            complete = self._missing == 0 and bool(self._entries)
            if complete or now_s >= self._timetable.tick_time(self._tick) + self._deadline_s:
                self._tick_reported = self._tick
                self._mark_stale()
                return self._snapshot(ReportKind.CYCLE, now_s, tick=self._tick)
        if self._changed and now_s >= self._early_at_s():
            self._early_s = now_s
            return self._snapshot(ReportKind.EARLY, now_s)
        if self._wanted and now_s >= self._current_at_s():
            self._early_s = now_s
            if any(entry.status is not None for entry in self._entries.values()):
                return self._snapshot(ReportKind.CURRENT, now_s)
            self._wanted = False  # nothing is known yet that core could show
        if self._results.full:
            return self._snapshot(ReportKind.EARLY, now_s)
        return None

    def next_cut_s(self, now_s: float) -> float:
        """Return the next deadline, the next tick, the early report or the next mere look, whichever is first."""
        self._advance(now_s)
        if self._tick > self._tick_reported:
            wake_s = self._timetable.tick_time(self._tick) + self._deadline_s
        else:
            wake_s = self._timetable.tick_time(self._tick + 1) + self._deadline_s
        wake_s = min(wake_s, now_s + self._look_s)
        if self._wanted:
            wake_s = min(wake_s, self._current_at_s())
        return min(wake_s, self._early_at_s()) if self._changed else wake_s

    def want_current(self, now_s: float, *, unless_newer: bool = False) -> None:
        """Ask for a snapshot; the next one, of whatever kind, will do."""
        if not unless_newer or now_s - self._snapshot_s >= self._early_interval_s:
            self._wanted = True

    def final(self, now_s: float) -> Cut | None:
        """Return a full snapshot when it holds anything that core has not seen."""
        self._advance(now_s)
        if not len(self._results) and not any(entry.fresh for entry in self._entries.values()):
            return None
        return self._snapshot(ReportKind.FINAL, now_s)

    def _early_at_s(self) -> float:
        return max(self._changed_s + EARLY_SETTLE_S, self._current_at_s())

    def _current_at_s(self) -> float:
        return self._early_s + self._early_interval_s

    def _advance(self, now_s: float) -> None:
        self._count_time(now_s)
        tick = self._timetable.tick_at(now_s)
        if tick > self._tick:
            self._tick = tick
            self._count_missing()

    def _count_time(self, now_s: float) -> None:
        """
        Let time count in which the program ran.

        Of a pause, what is left of the time to the next look counts all the same. A check can meet two pauses from one
        outcome to the next, one before its run begins and one while it goes on, so half an interval is to spare.
        """
        self._ran_s += min(max(now_s - self._looked_s, 0.0), self._look_s)
        self._looked_s = max(now_s, self._looked_s)

    def _count_missing(self) -> None:
        self._missing = sum(entry.tick < self._tick for entry in self._entries.values())

    def _note_change(self, check: CheckId, entry: _Entry, now_s: float) -> None:
        assert entry.status is not None
        if entry.reported is None or entry.status.available == entry.reported:
            self._changed.discard(check)
        elif check not in self._changed:
            if not self._changed:
                self._changed_s = now_s
            self._changed.add(check)

    def _mark_stale(self) -> None:
        for check, entry in self._entries.items():
            age_s = self._ran_s - entry.known_s
            if age_s <= self._stale_after_s:
                continue
            if not entry.stale:
                entry.stale = True
                self.stale_total += 1
            silence = CallError(
                layer=Layer.APPLICATION,
                code=GrpcCode.UNAVAILABLE,
                reason="stale",
                detail=f"no outcome of this check for {age_s:.0f} s: its agent's actors are being rebuilt",
            )
            device = self._device_of(entry.subject.agent)
            entry.status = from_failure(silence, entry.subject, self._reporter, device, tick=self._tick).status
            entry.fresh = True
            self._changed.discard(check)  # it is told with this very report

    def _snapshot(self, kind: ReportKind, now_s: float, *, tick: int | None = None) -> Cut:
        self._snapshot_s = now_s
        self._wanted = False
        statuses: list[ServiceStatus] = []
        fresh = len(self._results)
        change = False
        for entry in self._entries.values():
            if entry.status is None:
                continue
            statuses.append(entry.status)
            change = change or entry.reported not in (None, entry.status.available)
            fresh += entry.fresh
            entry.fresh = False
            entry.reported = entry.status.available
        results, self._results = self._results, _Results()
        statuses.extend(results.statuses)
        self._changed.clear()
        if not statuses:
            kind = ReportKind.HEARTBEAT
        return Cut(
            kind=kind,
            statuses=tuple(statuses),
            tick=tick,
            fresh=fresh,
            positions=tuple(results.positions),
            change=change,
        )


class BatchBook:
    """A report for every ``batch_size`` outcomes, or for what has come within ``batch_interval_s``."""

    def __init__(self, *, batch_size: int, batch_interval_s: float, heartbeat_interval_s: float, now_s: float) -> None:
        self._batch_size = batch_size
        self._batch_interval_s = batch_interval_s
        self._heartbeat_interval_s = heartbeat_interval_s
        self.stale_total = 0  # a batch expects no check, so it misses none
        self._pending = _Results()
        self._since_s = now_s  # when the batch under way began
        self._cut_s = now_s

    def set_subjects(self, subjects: Mapping[CheckId, CheckSubject], now_s: float) -> None:
        """Do nothing: a batch expects no particular check."""

    def record(self, outcome: Outcome, now_s: float) -> None:
        """Take an outcome in; the interval runs from the first of a batch."""
        if outcome.status is None:
            return
        if not self._pending:
            self._since_s = now_s
        self._pending.add(outcome)

    def cut(self, now_s: float) -> Cut | None:
        """Return a full batch, or what there is when its time has come; a sign of life after a long silence."""
        if len(self._pending) >= self._batch_size or (self._pending and now_s >= self.next_cut_s(now_s)):
            return self._take(now_s, ReportKind.BATCH)
        if not self._pending and now_s >= self.next_cut_s(now_s):
            return self._take(now_s, ReportKind.HEARTBEAT)
        return None

    def next_cut_s(self, now_s: float) -> float:
        """Return when the current batch's time has come, or that of a sign of life."""
        if self._pending:
            return self._since_s + self._batch_interval_s
        return self._cut_s + self._heartbeat_interval_s

    def want_current(self, now_s: float, *, unless_newer: bool = False) -> None:
        """Do nothing: a batch never shows all that is known."""

    def final(self, now_s: float) -> Cut | None:
        """Return the batch begun, if it holds anything."""
        if not self._pending:
            return None
        return self._take(now_s, ReportKind.FINAL, limit=len(self._pending))

    def _take(self, now_s: float, kind: ReportKind, *, limit: int | None = None) -> Cut:
        taken, positions = self._pending.take(self._batch_size if limit is None else limit)
        self._since_s = self._cut_s = now_s
        return Cut(kind=kind, statuses=taken, fresh=len(taken), positions=positions)
