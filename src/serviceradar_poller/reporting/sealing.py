"""
Bring cut reports into the store, whatever becomes of the actor that cut them, and account for every status.

    put() ─► waiting ─► store ◄───────────────────────────┐─► core
                          └ can't be written ─► fallback ─┘ when it can ─► core
                                                   └ no room ─► dropped, counted and told

A report that was cut stands in ``waiting`` until the store or the fallback has it. The task that moves it is owned by
this object, which outlives the reporter: a seal that has begun is neither lost nor done twice when the reporter dies.

The fallback is in memory and bounded. Its reports go into the store, oldest first, before any newer one does, as soon
as that can be written: the order of sealing stays that of cutting, and a restart loses them no longer. Where the disk
is full and the fallback too, the oldest repeats in the store make way for them: what is newest is worth most.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from serviceradar_poller.env import Env
from serviceradar_poller.errors import SpoolWriteError
from serviceradar_poller.events.polling import ReportDropped
from serviceradar_poller.reporting.filling import FillWatch
from serviceradar_poller.reporting.spool import (
    MemoryStore,
    NewReport,
    ReportStore,
    ResultWriter,
    SpoolSettings,
    StoredReport,
)

#: What memory holds while the store can't be written: some cycles of a large site.
FALLBACK_REPORTS_MAX = 100
FALLBACK_BYTES_MAX = 16 * 1024 * 1024
#: Stored reports whose tick is remembered; of the others the latency from tick to core is not measured.
TICKS_MAX = 1_000
#: The bound itself refuses the report: the fallback is no way round it.
_NO_ROOM = frozenset({"spool_full", "too_large"})
_DISK_FULL = "disk_full"
#: After room was made on a full disk and somebody else took it, no more reports are given up for it for this long.
MAKE_ROOM_AGAIN_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounts:
    """
    Where every status is that was cut into a report as core's news, at one instant.

    Attributes:
        polled: Since the start.
        recovered: Found in the store, from an earlier run.
        queued: Waits for core, on disk or in memory.
        rejected: Of reports set aside.
        dropped: By reason.
    """

    polled: int
    recovered: int
    delivered: int
    queued: int
    rejected: int
    expired: int
    dropped: Mapping[str, int]

    @property
    def balanced(self) -> bool:
        """Whether every status is in exactly one place."""
        gone = self.delivered + self.rejected + self.expired + sum(self.dropped.values())
        return self.polled + self.recovered == self.queued + gone

    def by_place(self) -> dict[str, object]:
        """Return the figures by name."""
        return {
            "polled": self.polled,
            "recovered": self.recovered,
            "delivered": self.delivered,
            "queued": self.queued,
            "rejected": self.rejected,
            "expired": self.expired,
            "dropped": dict(self.dropped),
        }


@dataclass(frozen=True, slots=True)
class _Waiting:
    report: NewReport
    tick_s: float | None


@dataclass(frozen=True, slots=True)
class _Written:
    """A result that waits for its seal; *done* tells what came of it."""

    writer: ResultWriter
    positions: tuple[tuple[str, str, str], ...]
    done: asyncio.Future[None]


class Sealer:
    """
    The way of reports into the store.

    Attributes:
        fallback: Takes what the store can't.
        ticks: Monotonic seconds of the tick that a stored report is about, by its id.
    """

    def __init__(self, store: ReportStore, env: Env) -> None:
        self.fallback = MemoryStore(
            SpoolSettings(directory=Path(), bytes_max=FALLBACK_BYTES_MAX, reports_max=FALLBACK_REPORTS_MAX),
            emit=env.emit,
            wall=env.clock.wall,
        )
        self.ticks: dict[int, float] = {}
        self._store = store
        self._env = env
        self._waiting: deque[_Waiting] = deque()
        self._written: deque[_Written] = deque()  # no more than results.WRITES_MAX
        self._sealing_result = False  # what the store seals now is no report of _waiting
        self._result_sealed = False  # since it was last asked
        self._notify: Callable[[], object] | None = None
        self._task: asyncio.Task[None] | None = None
        self._polled = 0
        self._sealed = 0  # of what the store has sealed, that which is not waiting any more
        self._dropped: dict[str, int] = {}
        self._filling = FillWatch(env)
        self._overtaken = False  # the store has something newer than the fallback, whose order is that of its times
        self._room_s = env.clock.monotonic()  # from when on room may be made on a full disk

    @property
    def reports(self) -> int:
        """Reports that wait for core."""
        return self._store.stats().reports + self.fallback.stats().reports + len(self._waiting)

    @property
    def size(self) -> int:
        """Their encoded bytes."""
        waiting = sum(each.report.size for each in self._waiting)
        return self._store.stats().bytes + self.fallback.stats().bytes + waiting

    @property
    def full_in_s(self) -> float:
        """Seconds until there is no room left, as of the last report; infinite while the backlog does not grow."""
        return self._filling.full_in_s

    def spool_figures(self) -> dict[str, object]:
        """Return what waits and its bounds, by name; ``full_in_s`` is None while the backlog does not grow."""
        stats, full_in_s = self._store.stats(), self.full_in_s
        return {
            "reports": self.reports,
            "bytes": self.size,
            "limit_bytes": stats.limit_bytes,
            "free_bytes": stats.free_bytes,
            "in_memory_only": self.fallback.stats().reports,
            "deletes_owed": stats.owed,
            "writable": stats.writable,
            "full_in_s": round(full_in_s, 1) if math.isfinite(full_in_s) else None,
        }

    def put(self, report: NewReport, *, tick_s: float | None = None) -> None:
        """Take a report; `settle` brings it into the store. Whoever puts settles before it puts many more."""
        self._polled += report.fresh
        self._waiting.append(_Waiting(report, tick_s))

    async def settle(self) -> None:
        """Return when nothing waits for its seal; may be cancelled and called again, nothing is lost by it."""
        while self._waiting or self._written:
            if self._task is None:
                self._task = asyncio.ensure_future(self._run())  # noqa: TID251 — its owner outlives the actor
            task = self._task
            await asyncio.wait({task})
            if self._task is task:
                self._task = None
            task.result()  # a bug is its caller's too

    async def seal_result(self, writer: ResultWriter, *, positions: tuple[tuple[str, str, str], ...]) -> None:
        """
        Seal a result that was written part by part, in its turn; once begun it goes on without its caller.

        Raises:
            SpoolWriteError: It was not sealed, and nothing is counted.
        """
        written = _Written(writer, positions, asyncio.get_running_loop().create_future())
        self._written.append(written)
        await self.settle()
        await written.done

    def is_older(self, kept: StoredReport, stored: StoredReport) -> bool:
        """Tell whether *kept*, the oldest in memory, goes to core before *stored*, the oldest in the store."""
        # Unless something newer got past memory, all that the store has was cut before, whatever clocks say.
        return self._overtaken and kept.timestamp < stored.timestamp

    def subscribe(self, notify: Callable[[], object]) -> None:
        """Call *notify* whenever a result was sealed, and now when nobody was told; replaces the last subscriber."""
        self._notify = notify
        if self._result_sealed:
            notify()

    def take_result_sealed(self) -> bool:
        """Tell whether a result was sealed since the last call."""
        taken, self._result_sealed = self._result_sealed, False
        return taken

    def accounts(self) -> Accounts:
        """Return where every status is."""
        store, memory = self._store.stats(), self.fallback.stats()
        # What the store has sealed just now may still stand in waiting; a result counts from its seal on.
        unnoted = store.sealed - self._sealed
        polled, waiting = self._polled, sum(each.report.fresh for each in self._waiting)
        if self._sealing_result:
            polled += unnoted
        else:
            waiting -= unnoted
        dropped = dict(self._dropped)
        for reason, count in (*store.dropped.items(), *memory.dropped.items()):
            dropped[reason] = dropped.get(reason, 0) + count
        return Accounts(
            polled=polled,
            recovered=store.recovered,
            delivered=store.accepted + memory.accepted,
            queued=store.fresh_queued + memory.fresh_queued + waiting,
            rejected=store.rejected + memory.rejected,
            expired=store.expired + memory.expired,
            dropped=MappingProxyType(dropped),
        )

    async def _run(self) -> None:
        while self._waiting or self._written:
            if self._written:
                await self._seal_result(self._written[0])
                self._written.popleft()
                self._look()
                continue
            first = self._waiting[0]
            reason = await self._move_back(first.report)
            if not reason:
                reason = await self._seal(first)
            if reason:
                await self._keep(first.report, reason)
            self._waiting.popleft()
            self._look()

    def _look(self) -> None:
        self._filling.look(self._store.stats(), self.fallback.stats(), reports=self.reports)

    async def _seal_result(self, written: _Written) -> None:
        self._sealing_result = True
        try:
            await written.writer.seal(fresh=1, positions=written.positions)
        except Exception as error:  # noqa: BLE001 — whatever it is, it concerns that result only
            if not written.done.done():
                written.done.set_exception(error)
                written.done.exception()  # known to be looked at, even if who asked is gone
            return
        finally:
            self._sealing_result = False
        self._sealed += 1
        self._polled += 1
        self._overtaken = self.fallback.stats().reports > 0
        self._result_sealed = True
        if self._notify is not None:
            self._notify()
        if not written.done.done():
            written.done.set_result(None)

    async def _seal(self, waiting: _Waiting) -> str:
        """Bring a report into the store; return why that failed, or nothing."""
        try:
            report_id = await self._store.seal(waiting.report)
        except SpoolWriteError as error:
            return error.reason
        self._sealed += waiting.report.fresh
        if waiting.tick_s is not None:
            self.ticks[report_id] = waiting.tick_s
            while len(self.ticks) > TICKS_MAX:
                del self.ticks[next(iter(self.ticks))]
        return ""

    async def _move_back(self, newer: NewReport) -> str:
        """Bring what memory keeps into the store; return why *newer* has to go the same way, or nothing."""
        self._overtaken = self._overtaken and self.fallback.stats().reports > 0
        while not self._overtaken:
            reason = await self._move_one()
            if reason is None:
                break
            if reason in _NO_ROOM:
                self._overtaken = True  # a change may still find room
            elif reason:
                return reason
        if self.fallback.stats().reports and not self._overtaken:
            # Core may be accepting the oldest of them right now.
            if self.fallback.has_room(newer):
                return "busy"
            self._overtaken = True
        return ""

    async def _move_one(self, *, by_force: bool = False) -> str | None:
        """
        Bring the oldest that memory keeps into the store; return why that failed; None where there is none.

        Args:
            by_force: The oldest repeats in the store make way for it.
        """
        loan = self.fallback.lend()
        if loan is None:
            return None
        report_id, report = loan
        taken = False
        try:
            if by_force and not (await self._store.make_room(report.size)).reports:
                return _DISK_FULL
            await self._store.seal(report)
            taken = True
            self._sealed += report.fresh
        except SpoolWriteError as error:
            if by_force:
                self._room_s = self._env.clock.monotonic() + MAKE_ROOM_AGAIN_S
            return error.reason
        finally:
            self.fallback.settle_loan(report_id, taken=taken)
        return ""

    async def _keep(self, report: NewReport, reason: str) -> None:
        """Keep in memory what the store can't be given."""
        while reason == _DISK_FULL and not self.fallback.has_room(report) and await self._make_way():
            continue
        if reason not in _NO_ROOM:
            try:
                # A result's position moves on disk or not at all: without it the result is asked for again.
                await self.fallback.seal(replace(report, positions=()))
            except SpoolWriteError as error:
                reason = error.reason
            else:
                return
        self._dropped[reason] = self._dropped.get(reason, 0) + report.fresh
        self._env.emit(ReportDropped(kind=report.kind, statuses=report.fresh, reason=reason, queued=self.reports - 1))

    async def _make_way(self) -> bool:
        """On a full disk, let the oldest repeats in the store make way for the oldest in memory; say whether it did."""
        if self._overtaken or self._env.clock.monotonic() < self._room_s:
            return False
        return await self._move_one(by_force=True) == ""
