"""A store of sealed reports in memory, for pollers that have no place on disk: the same bounds, nothing survives."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from serviceradar_poller.env import Emit
from serviceradar_poller.errors import SpoolReadError, SpoolWriteError
from serviceradar_poller.events.polling import ReportSetAside
from serviceradar_poller.logic.waiting import Mark, look
from serviceradar_poller.reporting.spool.ledger import EXPIRED, FULL, Entry, Ledger, choose, told
from serviceradar_poller.reporting.spool.model import (
    Gone,
    NewCall,
    NewReport,
    PositionKey,
    SpoolSettings,
    SpoolStats,
    StoredCall,
    StoredReport,
)


@dataclass(slots=True, kw_only=True)
class _Held:
    entry: Entry
    report: NewReport
    sealed_wall_s: float
    accepted: set[int] = field(default_factory=set)
    attempts: int = 0


class MemoryStore:
    """
    Keeps reports until the process ends; its methods never wait.

    Args:
        settings: The directory and the reserve are of no use here.
        wall: Unix seconds.
    """

    def __init__(self, settings: SpoolSettings, *, emit: Emit, wall: Callable[[], float]) -> None:
        self._settings = settings
        self._emit = emit
        self._wall = wall
        self._ledger = Ledger(limit_bytes=settings.bytes_max)
        self._reports: dict[int, _Held] = {}
        self._lent: dict[int, _Held] = {}
        self._aside: dict[int, Entry] = {}
        self._positions: dict[PositionKey, str] = {}
        self._last_id = 0
        self._busy: int | None = None
        self._marks: tuple[Mark, ...] = ()
        self._closed = False

    async def seal(self, report: NewReport) -> int:
        """Store a report."""
        assert report.calls
        return self._seal(report, own=0)

    async def head(self) -> StoredReport | None:
        """Return the oldest report."""
        if self._closed:
            raise SpoolReadError(reason="closed", detail="the store is closed")
        if self._lent:
            return None  # what is lent is older than the others
        for report_id, held in self._reports.items():
            self._busy = report_id
            return _stored(held)
        return None

    async def second(self) -> StoredReport | None:
        """Return the oldest report but one."""
        if self._closed:
            raise SpoolReadError(reason="closed", detail="the store is closed")
        for report_id in itertools.islice(self._reports, 1, 2):
            self._busy = report_id
            return _stored(self._reports[report_id])
        return None

    async def part(self, report_id: int, call_index: int, part_index: int) -> bytes:
        """Return one part."""
        if self._closed:
            raise SpoolReadError(reason="closed", detail="the store is closed")
        held = self._reports.get(report_id)
        if held is None or call_index >= len(held.report.calls):
            raise SpoolReadError(reason="gone", detail=f"there is no call {call_index} of report {report_id}")
        parts = held.report.calls[call_index].parts
        if part_index >= len(parts):
            raise SpoolReadError(reason="gone", detail=f"there is no part {part_index} of report {report_id}")
        return parts[part_index]

    async def call_accepted(self, report_id: int, call_index: int) -> None:
        """Remember that core has this call."""
        self._check()
        if (held := self._reports.get(report_id)) is not None:
            held.accepted.add(call_index)

    async def accepted(self, report_id: int) -> None:
        """Delete a report and move its positions."""
        self._check()
        self._release(report_id)
        if (held := self._reports.pop(report_id, None)) is not None:
            for agent, key, sequence in held.report.positions:
                self._positions[agent, key] = sequence
            self._ledger.accept(held.entry, self._oldest())

    async def failed(self, report_id: int) -> int:
        """Count a failed attempt."""
        self._check()
        self._release(report_id)
        if (held := self._reports.get(report_id)) is None:
            return 0
        held.attempts += 1
        return held.attempts

    async def set_aside(self, report_id: int, reason: str, *, rejected: int | None = None) -> None:
        """Take a report out of the way; in memory only its figures are kept."""
        self._check()
        self._release(report_id)
        if (held := self._reports.pop(report_id, None)) is None:
            return
        entry = held.entry
        count = self._ledger.reject(entry, self._oldest(), rejected)
        self._aside[report_id] = entry
        while len(self._aside) > self._settings.set_aside_max:
            del self._aside[next(iter(self._aside))]
        self._ledger.set_aside = len(self._aside)
        self._emit(ReportSetAside(kind=entry.kind, statuses=count, reason=reason, report_id=report_id))

    async def begin_result(self, meta: NewReport) -> MemoryResult:
        """Begin a result."""
        self._check()
        assert not meta.calls
        return MemoryResult(self, meta)

    async def make_room(self, size: int) -> Gone:
        """Do nothing: memory has no disk that others fill."""
        self._check()
        return Gone()

    async def expire(self, now_s: float) -> Gone:
        """Give up what has waited for too long."""
        self._check()
        self._marks, too_old = look(self._marks, now_s=now_s, last_id=self._last_id, age_max_s=self._settings.age_max_s)
        if too_old is None:
            return Gone()
        gone = [held.entry for each, held in self._reports.items() if each <= too_old and each != self._busy]
        return self._give_up(gone, EXPIRED)

    def positions(self) -> Mapping[PositionKey, str]:
        """Return where each results check goes on."""
        return MappingProxyType(self._positions)

    def stats(self) -> SpoolStats:
        """Return the store at this instant."""
        return self._ledger.stats()

    async def close(self) -> None:
        """Refuse everything from now on."""
        self._closed = True

    # -- for who moves reports to another store

    def lend(self) -> tuple[int, NewReport] | None:
        """
        Return the oldest report, without the calls that core has; it is hidden until settle_loan, and goes on to count.

        None where there is none, or where core may be accepting it right now.
        """
        for report_id, held in self._reports.items():
            if report_id == self._busy:
                return None
            del self._reports[report_id]
            self._lent[report_id] = held
            calls = tuple(call for index, call in enumerate(held.report.calls) if index not in held.accepted)
            return report_id, replace(held.report, calls=calls)
        return None

    def settle_loan(self, report_id: int, *, taken: bool) -> None:
        """End a loan: the other store has the report, or it stands in its old place again."""
        held = self._lent.pop(report_id)
        if taken:
            self._ledger.hand_over(held.entry, self._oldest())
            return
        self._reports[report_id] = held
        self._reports = dict(sorted(self._reports.items()))

    def has_room(self, report: NewReport) -> bool:
        """Tell whether *report* fits in without another one's leaving."""
        ledger, settings = self._ledger, self._settings
        return (
            ledger.reports < settings.reports_max and ledger.size + ledger.writing + report.size <= settings.bytes_max
        )

    # -- for results

    def grow(self, meta: NewReport, size: int) -> None:
        """Make room for *size* more bytes of a result and take it."""
        self._check()
        self._make_room(meta, size, reports=0)
        self._ledger.writing += size

    def shrink(self, size: int) -> None:
        """Give back what a result took."""
        self._ledger.writing -= size

    def _seal(self, report: NewReport, *, own: int) -> int:
        """Seal; *own* bytes of it have their room already."""
        self._check()
        size = report.size
        self._make_room(report, size - own, reports=1)
        self._last_id += 1
        entry = Entry(self._last_id, report.kind, report.fresh, size, report.timestamp)
        self._reports[entry.id] = _Held(entry=entry, report=report, sealed_wall_s=self._wall())
        self._ledger.writing -= own
        self._ledger.enter(entry, took_s=0.0)
        return entry.id

    def _make_room(self, report: NewReport, size: int, *, reports: int) -> None:
        ledger, settings = self._ledger, self._settings
        if size > settings.bytes_max:
            self._refuse("too_large", f"{size} bytes are above the bound of {settings.bytes_max}")
        victims = choose(
            self._candidates(changes=report.change),
            bytes_over=ledger.size + ledger.writing + size - settings.bytes_max,
            reports_over=ledger.reports + reports - settings.reports_max,
        )
        if victims is None:
            self._refuse(FULL, f"no room for {size} bytes within the bound of {settings.bytes_max}")
        else:
            self._give_up(victims, FULL)

    def _refuse(self, reason: str, detail: str) -> None:
        self._ledger.write_errors += 1
        raise SpoolWriteError(reason=reason, detail=detail)

    def _candidates(self, *, changes: bool) -> Iterator[Entry]:
        for wanted in (False, True)[: 1 + changes]:
            for report_id, held in self._reports.items():
                if held.report.change is wanted and report_id != self._busy:
                    yield held.entry

    def _give_up(self, entries: list[Entry], reason: str) -> Gone:
        for entry in entries:
            del self._reports[entry.id]
        if not entries:
            return Gone()
        gone = self._ledger.give_up(entries, self._oldest(), reason)
        for event in told(entries, reason, self._ledger.reports):
            self._emit(event)
        return gone

    def _oldest(self) -> int | None:
        return next((held.entry.timestamp for held in self._reports.values()), None)

    def _release(self, report_id: int) -> None:
        if self._busy == report_id:
            self._busy = None

    def _check(self) -> None:
        if self._closed:
            raise SpoolWriteError(reason="closed", detail="the store is closed")


class MemoryResult:
    """A result that is being written to a MemoryStore, which is all in memory, within the store's bound."""

    def __init__(self, store: MemoryStore, meta: NewReport) -> None:
        self._store = store
        self._meta = meta
        self._parts: list[bytes] = []
        self._size = 0
        self._ended = False

    @property
    def size(self) -> int:
        """Bytes added so far."""
        return self._size

    async def add(self, part: bytes) -> None:
        """Keep the next part."""
        assert not self._ended
        self._store.grow(self._meta, len(part))
        self._parts.append(part)
        self._size += len(part)

    async def seal(
        self, *, fresh: int, positions: tuple[tuple[str, str, str], ...] = (), status_count: int | None = None
    ) -> int:
        """Make it visible."""
        assert not self._ended and self._parts
        call = NewCall(
            kind="stream", parts=tuple(self._parts), status_count=fresh if status_count is None else status_count
        )
        report = replace(self._meta, fresh=fresh, positions=positions, calls=(call,))
        report_id = self._store._seal(report, own=self._size)
        self._ended = True
        return report_id

    async def abandon(self) -> None:
        """Leave nothing behind."""
        if not self._ended:
            self._ended = True
            self._store.shrink(self._size)
            self._parts.clear()


def _stored(held: _Held) -> StoredReport:
    calls = tuple(
        StoredCall(
            index=index,
            kind=call.kind,
            part_count=len(call.parts),
            size=sum(map(len, call.parts)),
            status_count=call.status_count,
        )
        for index, call in enumerate(held.report.calls)
        if index not in held.accepted
    )
    return StoredReport(
        id=held.entry.id,
        kind=held.report.kind,
        timestamp=held.report.timestamp,
        change=held.report.change,
        fresh=held.report.fresh,
        size=held.entry.size,
        calls=calls,
        attempts=held.attempts,
        sealed_wall_s=held.sealed_wall_s,
    )
