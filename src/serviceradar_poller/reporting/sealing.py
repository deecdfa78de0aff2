"""
Bring cut reports into the store, whatever becomes of the actor that cut them, and account for every status.

    put() ─► waiting ─► store ──────────────► core
                          └ can't be written ─► fallback, in memory, bounded ─► core
                                                   └ no room ─► dropped, counted and told

A report that was cut stands in ``waiting`` until the store or the fallback has it. The task that moves it is owned by
this object, which outlives the reporter: a seal that has begun is neither lost nor done twice when the reporter dies.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from serviceradar_poller.env import Env
from serviceradar_poller.errors import SpoolWriteError
from serviceradar_poller.events.polling import ReportDropped
from serviceradar_poller.reporting.spool import MemoryStore, NewReport, ReportStore, SpoolSettings

#: What memory holds while the store can't be written: some cycles of a large site.
FALLBACK_REPORTS_MAX = 100
FALLBACK_BYTES_MAX = 16 * 1024 * 1024
#: Stored reports whose tick is remembered; of the others the latency from tick to core is not measured.
TICKS_MAX = 1_000
#: The bound itself refuses the report: the fallback is no way round it.
_NO_ROOM = frozenset({"spool_full", "too_large"})


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
        self._task: asyncio.Task[None] | None = None
        self._polled = 0
        self._sealed = 0  # of what the store has sealed, that which is not waiting any more
        self._dropped: dict[str, int] = {}

    @property
    def reports(self) -> int:
        """Reports that wait for core."""
        return self._store.stats().reports + self.fallback.stats().reports + len(self._waiting)

    @property
    def size(self) -> int:
        """Their encoded bytes."""
        waiting = sum(each.report.size for each in self._waiting)
        return self._store.stats().bytes + self.fallback.stats().bytes + waiting

    def put(self, report: NewReport, *, tick_s: float | None = None) -> None:
        """Take a report; `settle` brings it into the store. Whoever puts settles before it puts many more."""
        self._polled += report.fresh
        self._waiting.append(_Waiting(report, tick_s))

    async def settle(self) -> None:
        """Return when nothing waits for its seal; may be cancelled and called again, nothing is lost by it."""
        while self._waiting:
            if self._task is None:
                self._task = asyncio.ensure_future(self._run())  # noqa: TID251 — its owner outlives the actor
            task = self._task
            await asyncio.wait({task})
            if self._task is task:
                self._task = None
            task.result()  # a bug is its caller's too

    def accounts(self) -> Accounts:
        """Return where every status is."""
        store, memory = self._store.stats(), self.fallback.stats()
        # What the store has sealed just now may still stand in waiting.
        waiting = sum(each.report.fresh for each in self._waiting) - (store.sealed - self._sealed)
        dropped = dict(self._dropped)
        for reason, count in (*store.dropped.items(), *memory.dropped.items()):
            dropped[reason] = dropped.get(reason, 0) + count
        return Accounts(
            polled=self._polled,
            recovered=store.recovered,
            delivered=store.accepted + memory.accepted,
            queued=store.fresh_queued + memory.fresh_queued + waiting,
            rejected=store.rejected + memory.rejected,
            expired=store.expired + memory.expired,
            dropped=MappingProxyType(dropped),
        )

    async def _run(self) -> None:
        while self._waiting:
            first = self._waiting[0]
            try:
                report_id = await self._store.seal(first.report)
            except SpoolWriteError as error:
                await self._keep(first.report, error.reason)
            else:
                self._sealed += first.report.fresh
                if first.tick_s is not None:
                    self.ticks[report_id] = first.tick_s
                    while len(self.ticks) > TICKS_MAX:
                        del self.ticks[next(iter(self.ticks))]
            self._waiting.popleft()

    async def _keep(self, report: NewReport, reason: str) -> None:
        """Keep in memory what the store can't be given; nothing here ever waits."""
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
