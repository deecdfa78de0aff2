"""
What goes into a store of sealed reports and what comes out, and the Protocol that every such store keeps.

Every status that core has not seen (``fresh``) is in exactly one place, at any instant:

    recovered + sealed == accepted + fresh_queued + rejected + expired + sum(dropped)

The seven are read together from one SpoolStats. Before it is sealed a status is the caller's; a seal that raises
leaves it there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol

CallKind = Literal["unary", "stream"]
#: An agent and the key of one of its results checks.
PositionKey = tuple[str, str]

MIB = 1024 * 1024
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolSettings:
    """
    Where reports wait and how much of it.

    Attributes:
        directory: Exists and can be written; the spool makes a folder of its own in it.
        bytes_max: Payload of all reports, those being written included, set-aside ones apart.
        reports_max: However small they are: a report a second for eleven days.
        age_max_s: Reports that have waited for longer are given up: since they were sealed, or since the start that
            found them. Their timestamps are not asked, for clocks are set.
        reserve_bytes: Held back on the disk so that deletes work when it is full. Deleting a gigabyte writes some
            2.5 MiB, and folding the log back takes as much as the log may hold.
        set_aside_max, set_aside_bytes_max: Reports kept for the operator; the oldest goes.
    """

    directory: Path
    bytes_max: int = 1024 * MIB
    reports_max: int = 1_000_000
    age_max_s: float = 3 * DAY_S
    reserve_bytes: int = 16 * MIB
    set_aside_max: int = 100
    set_aside_bytes_max: int = 64 * MIB

    def __post_init__(self) -> None:
        assert min(self.bytes_max, self.reports_max, self.age_max_s) > 0
        assert min(self.reserve_bytes, self.set_aside_max, self.set_aside_bytes_max) >= 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCall:
    """One call to core: an encoded PollerStatusRequest (one part), or the encoded chunks of a stream."""

    kind: CallKind
    parts: tuple[bytes, ...]
    status_count: int

    def __post_init__(self) -> None:
        assert self.parts and (self.kind == "stream" or len(self.parts) == 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewReport:
    """
    A report to be sealed.

    Attributes:
        timestamp: Unix seconds.
        change: It holds a change of state: kept longest when space is short.
        fresh: Statuses that core has not seen, the unit of accounting.
        positions: Agent, key and sequence of each result set in it: they move when core has accepted the report.
    """

    kind: str
    timestamp: int
    change: bool
    fresh: int
    calls: tuple[NewCall, ...]
    positions: tuple[tuple[str, str, str], ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(len(part) for call in self.calls for part in call.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCall:
    """A call that core has not accepted yet; ``index`` counts from 0 within its report."""

    index: int
    kind: CallKind
    part_count: int
    size: int
    status_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredReport:
    """
    A sealed report without its bytes.

    Attributes:
        id: Grows with each seal.
        size: Bytes of all parts, accepted calls included.
        calls: Those not accepted yet, in order.
        attempts: Failed attempts.
        sealed_wall_s: Unix seconds.
    """

    id: int
    kind: str
    timestamp: int
    change: bool
    fresh: int
    size: int
    calls: tuple[StoredCall, ...]
    attempts: int
    sealed_wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Gone:
    """What left the store without reaching core."""

    reports: int = 0
    fresh: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolStats:
    """
    A store at one instant.

    Attributes:
        bytes: Payload of sealed reports; with ``writing_bytes`` never above ``limit_bytes``.
        writing_bytes: Payload of results that are not sealed yet.
        oldest_timestamp: Unix seconds; None when nothing waits.
        bytes_in, bytes_out: Payload that was sealed, and that left for core or was set aside, since the start: what
            was given up for want of room or for its age is not in the latter.
        fresh_queued, sealed, recovered, accepted, rejected, expired, dropped: Statuses; all but the first are totals
            since the start, ``dropped`` by reason. ``rejected`` are those of reports set aside.
        set_aside, set_aside_bytes: Reports kept for the operator.
        free_bytes: Of the file system; -1 where there is none or it can't be asked.
        file_bytes: What the spool's files take, the reserve included.
        owed: Reports that are done with and still stand in the file because it can't be written: counted where they
            belong, and deleted before anything else is written.
        seals, seal_latency_s, seal_latency_s_max: Successful ones, the last one's and the longest time they took.
        fsyncs: By what SQLite does: one for a commit, two for folding the log back.
        writable: The last attempt to write succeeded.
    """

    reports: int = 0
    bytes: int = 0
    writing_bytes: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    oldest_timestamp: int | None = None
    fresh_queued: int = 0
    sealed: int = 0
    recovered: int = 0
    accepted: int = 0
    rejected: int = 0
    expired: int = 0
    dropped: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    set_aside: int = 0
    set_aside_bytes: int = 0
    limit_bytes: int = 0
    free_bytes: int = -1
    file_bytes: int = 0
    owed: int = 0
    seals: int = 0
    seal_latency_s: float = 0.0
    seal_latency_s_max: float = 0.0
    fsyncs: int = 0
    write_errors: int = 0
    writable: bool = True

    @property
    def balanced(self) -> bool:
        """Whether every status that came in is in exactly one place."""
        gone = self.accepted + self.rejected + self.expired + sum(self.dropped.values())
        return self.recovered + self.sealed == self.fresh_queued + gone


class ResultWriter(Protocol):
    """
    Takes a large result as one call, part by part, so that memory holds one of them.

    Nothing of it is visible before its seal, and nothing is left of it without one.
    """

    @property
    def size(self) -> int:
        """Bytes added so far."""
        ...

    async def add(self, part: bytes) -> None:
        """
        Write the next part.

        Raises:
            SpoolWriteError: It was not written; the result can only be abandoned.
        """
        ...

    async def seal(
        self, *, fresh: int, positions: tuple[tuple[str, str, str], ...] = (), status_count: int | None = None
    ) -> int:
        """Make it visible as one report, durably, and return its id; raises as ReportStore.seal does."""
        ...

    async def abandon(self) -> None:
        """Leave nothing behind; may be called at any time, also after the seal, and never raises."""
        ...


class ReportStore(Protocol):
    """
    Sealed reports that wait for core, oldest first.

    A call that is cancelled may still take effect, and stats() says whether it did. The report that head() gave is
    spared by the bounds until it is accepted, failed or set aside, for core may be accepting it right now.
    """

    async def seal(self, report: NewReport) -> int:
        """
        Store a report and return its id; it is durable when this returns.

        When there is no room the oldest repeats go, and then, for the sake of a report with a change only, the oldest
        changes; they are counted as dropped for ``spool_full``.

        Raises:
            SpoolWriteError: ``disk_full``, ``io_error``, ``spool_full`` (no room that this report may take),
                ``too_large`` (above the bound by itself) or ``closed``. Nothing is stored or counted but the error.
        """
        ...

    async def head(self) -> StoredReport | None:
        """Return the oldest report; SpoolReadError where it can't be read."""
        ...

    async def second(self) -> StoredReport | None:
        """Return the oldest report but one, which is spared by the bounds in place of the head; raises as head()."""
        ...

    async def part(self, report_id: int, call_index: int, part_index: int) -> bytes:
        """
        Return one part.

        Raises:
            SpoolReadError: ``gone``, ``damaged`` (its checksum is wrong: set the report aside) or ``io_error``.
        """
        ...

    async def call_accepted(self, report_id: int, call_index: int) -> None:
        """Remember that core has this call of several; SpoolWriteError where it can't be."""
        ...

    async def accepted(self, report_id: int) -> None:
        """
        Delete a report and move its positions, both or neither; nothing happens where it is gone.

        Where that can't be written it is owed: the report is not given again and counts as accepted, its positions
        have moved for this process, and both is done on disk before anything else is written there.

        Raises:
            SpoolWriteError: It can't be owed either; ask again.
        """
        ...

    async def failed(self, report_id: int) -> int:
        """Count a failed attempt and return how many there were; SpoolWriteError where it can't be kept."""
        ...

    async def set_aside(self, report_id: int, reason: str, *, rejected: int | None = None) -> None:
        """
        Keep a report that core will never take for the operator, out of the way of the others; positions stay.

        Owed where it can't be written, as accepted() is.

        Args:
            rejected: How many of its fresh statuses core did not take, where it took the others; None: all of them.
        """
        ...

    async def begin_result(self, meta: NewReport) -> ResultWriter:
        """Begin a result whose parts come one by one; *meta* has no calls, its fresh and positions don't count."""
        ...

    async def make_room(self, size: int) -> Gone:
        """
        Give up the oldest repeats so that a report of *size* bytes can be sealed on a full disk.

        Nothing goes where there is room already, or where all repeats together are not enough; what goes is counted as
        dropped for ``disk_full``. Another program may take the room before the seal does.

        Raises:
            SpoolWriteError: Nothing could be deleted.
        """
        ...

    async def expire(self, now_s: float) -> Gone:
        """
        Give up what has waited for longer than the bound at *now_s*, monotonic seconds.

        To be called now and then, from the start on: a report has waited since the first call that found it there.
        """
        ...

    def positions(self) -> Mapping[PositionKey, str]:
        """Return where each results check goes on: a live view, moved by accepted()."""
        ...

    def stats(self) -> SpoolStats:
        """Return the store at this instant."""
        ...

    async def close(self) -> None:
        """Finish what was asked for and close; may be called twice."""
        ...
