"""Count what a store holds and where everything went; the same for every store."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from types import MappingProxyType

from serviceradar_poller.events.polling import ReportDropped
from serviceradar_poller.reporting.spool.model import Gone, SpoolStats

FULL = "spool_full"
DISK_FULL = "disk_full"
EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Entry:
    """A sealed report as the bounds see it."""

    id: int
    kind: str
    fresh: int
    size: int
    timestamp: int


@dataclass(slots=True, kw_only=True)
class Ledger:
    """The figures of SpoolStats, as they change; every method takes one step that keeps them balanced."""

    limit_bytes: int
    reports: int = 0
    size: int = 0
    writing: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    oldest: int | None = None
    queued: int = 0
    sealed: int = 0
    recovered: int = 0
    accepted: int = 0
    rejected: int = 0
    expired: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    set_aside: int = 0
    set_aside_size: int = 0
    seals: int = 0
    seal_s: float = 0.0
    seal_s_max: float = 0.0
    fsyncs: int = 0
    write_errors: int = 0
    writable: bool = True

    def enter(self, entry: Entry, *, took_s: float) -> None:
        """A report was sealed."""
        self.reports += 1
        self.size += entry.size
        self.bytes_in += entry.size
        self.queued += entry.fresh
        self.sealed += entry.fresh
        if self.oldest is None:
            self.oldest = entry.timestamp
        self.seals += 1
        self.seal_s = took_s
        self.seal_s_max = max(self.seal_s_max, took_s)

    def hand_over(self, entry: Entry, oldest: int | None) -> None:
        """A report goes to another store, as if it had never been in this one."""
        self._leave((entry,), oldest)
        self.bytes_out += entry.size
        self.sealed -= entry.fresh

    def recover(self, *, reports: int, size: int, fresh: int, oldest: int | None) -> None:
        """Reports of an earlier run were found."""
        self.reports, self.size, self.oldest = reports, size, oldest
        self.queued += fresh
        self.recovered += fresh

    def accept(self, entry: Entry, oldest: int | None) -> None:
        """Core has a report; *oldest* is the timestamp of the first that is left."""
        self._leave((entry,), oldest)
        self.bytes_out += entry.size
        self.accepted += entry.fresh

    def reject(self, entry: Entry, oldest: int | None, rejected: int | None = None) -> int:
        """A report was set aside; core has all but *rejected* of its fresh statuses, or none. Return how many."""
        self._leave((entry,), oldest)
        self.bytes_out += entry.size
        count = entry.fresh if rejected is None else min(rejected, entry.fresh)
        self.rejected += count
        self.accepted += entry.fresh - count
        return count

    def give_up(self, entries: Iterable[Entry], oldest: int | None, reason: str) -> Gone:
        """Reports went that core will never see."""
        gone = self._leave(entries, oldest)
        if reason == EXPIRED:
            self.expired += gone.fresh
        elif gone.reports:
            self.dropped[reason] = self.dropped.get(reason, 0) + gone.fresh
        return gone

    def lose_all(self, reason: str) -> Gone:
        """Everything is lost, set-aside reports too."""
        gone = Gone(reports=self.reports, fresh=self.queued)
        if gone.reports:
            self.dropped[reason] = self.dropped.get(reason, 0) + gone.fresh
        self.reports = self.size = self.writing = self.queued = self.set_aside = self.set_aside_size = 0
        self.oldest = None
        return gone

    def stats(self, *, free_bytes: int = -1, file_bytes: int = 0, owed: int = 0) -> SpoolStats:
        """Return the figures as they are now."""
        return SpoolStats(
            reports=self.reports,
            bytes=self.size,
            writing_bytes=self.writing,
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
            oldest_timestamp=self.oldest,
            fresh_queued=self.queued,
            sealed=self.sealed,
            recovered=self.recovered,
            accepted=self.accepted,
            rejected=self.rejected,
            expired=self.expired,
            dropped=MappingProxyType(dict(self.dropped)),
            set_aside=self.set_aside,
            set_aside_bytes=self.set_aside_size,
            limit_bytes=self.limit_bytes,
            free_bytes=free_bytes,
            file_bytes=file_bytes,
            owed=owed,
            seals=self.seals,
            seal_latency_s=self.seal_s,
            seal_latency_s_max=self.seal_s_max,
            fsyncs=self.fsyncs,
            write_errors=self.write_errors,
            writable=self.writable,
        )

    def _leave(self, entries: Iterable[Entry], oldest: int | None) -> Gone:
        reports = fresh = 0
        for entry in entries:
            reports += 1
            fresh += entry.fresh
            self.size -= entry.size
        self.reports -= reports
        self.queued -= fresh
        self.oldest = oldest
        assert self.reports >= 0 and self.size >= 0 and self.queued >= 0
        return Gone(reports=reports, fresh=fresh)


def choose(candidates: Iterable[Entry], *, bytes_over: int, reports_over: int) -> list[Entry] | None:
    """Return the first of *candidates* whose leaving makes enough room; None when all of them don't."""
    chosen: list[Entry] = []
    if bytes_over <= 0 and reports_over <= 0:
        return chosen
    for entry in candidates:
        chosen.append(entry)
        bytes_over -= entry.size
        if bytes_over <= 0 and len(chosen) >= reports_over:
            return chosen
    return None


def told(entries: Iterable[Entry], reason: str, queued: int) -> list[ReportDropped]:
    """Return one event for each kind of report that went."""
    by_kind: dict[str, list[int]] = {}
    for entry in entries:
        by_kind.setdefault(entry.kind, []).append(entry.fresh)
    return [
        ReportDropped(kind=kind, statuses=sum(fresh), reason=reason, queued=queued, reports=len(fresh))
        for kind, fresh in by_kind.items()
    ]
