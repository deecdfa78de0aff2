"""
The spool: sealed reports in SQLite, used from an event loop that it never blocks.

    caller ─► gate (bounded) ─► one thread: Engine ─► reply ─► figures, positions, events and answer in one step

One thread owns the database, so operations happen in the order in which they were asked for. Figures and positions
are the loop's own copies, changed in the step that gives the answer: whoever reads them sees no operation half done.
What may wait (folding the log back, giving space back) runs after the answer, in small steps between operations.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeVar

from serviceradar_poller.env import Emit, Event
from serviceradar_poller.errors import SpoolReadError, SpoolWriteError
from serviceradar_poller.reporting.spool.engine import Engine
from serviceradar_poller.reporting.spool.model import (
    CallKind,
    Gone,
    NewReport,
    PositionKey,
    SpoolSettings,
    SpoolStats,
    StoredReport,
)
from serviceradar_poller.reporting.spool.owed import Moved, move

T = TypeVar("T")

#: Operations that wait for the thread; further callers wait for their turn.
REQUESTS_MAX = 64
#: Payload that waits for the thread; one operation may be larger when it is alone.
REQUEST_BYTES_MAX = 8 * 1024 * 1024


@dataclass(slots=True)
class _Reply:
    """What came of an operation."""

    value: Any
    error: BaseException | None
    stats: SpoolStats
    moved: Moved
    events: list[Event]
    maintain: bool


class _Gate:
    """Lets callers in, first come first served, within both limits."""

    def __init__(self) -> None:
        self._inside = 0
        self._size = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def enter(self, size: int) -> None:
        if not self._waiting and self._fits(size):
            self._take(size)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave(size)
            raise

    def leave(self, size: int) -> None:
        self._inside -= 1
        self._size -= size
        while self._waiting:
            size, turn = self._waiting[0]
            if turn.done():  # cancelled
                self._waiting.popleft()
            elif self._fits(size):
                self._waiting.popleft()
                self._take(size)
                turn.set_result(None)
            else:
                return

    def _fits(self, size: int) -> bool:
        return self._inside < REQUESTS_MAX and (not self._inside or self._size + size <= REQUEST_BYTES_MAX)

    def _take(self, size: int) -> None:
        self._inside += 1
        self._size += size


class Spool:
    """A ReportStore on disk; made by open()."""

    def __init__(self, engine: Engine, executor: ThreadPoolExecutor, *, emit: Emit) -> None:
        self._engine = engine
        self._executor = executor
        self._emit = emit
        self._gate = _Gate()
        self._stats = SpoolStats()
        self._positions: dict[PositionKey, str] = {}
        self._maintaining = False
        self._closing: asyncio.Future[None] | None = None

    @staticmethod
    async def open(settings: SpoolSettings, *, emit: Emit, wall: Callable[[], float]) -> Spool:
        """
        Open the spool in ``settings.directory``, with what an earlier run left there.

        A database that is damaged, unreadable, of another kind or of a newer version is set aside, with an event, and
        a new one begins. When even that fails (a full disk) the spool opens all the same, and every write tries again.

        Args:
            wall: Unix seconds; called in the spool's thread.
        Raises:
            SpoolError: The directory is missing, can't be written, or belongs to another poller that runs.
        """
        engine = Engine(settings, wall=wall, monotonic=asyncio.get_running_loop().time)
        return await Spool.open_engine(engine, emit=emit)

    @staticmethod
    async def open_engine(engine: Engine, *, emit: Emit) -> Spool:
        """Open the spool of *engine*, which is not open yet."""
        executor = ThreadPoolExecutor(1, thread_name_prefix="spool")
        spool = Spool(engine, executor, emit=emit)
        try:
            spool._positions = await spool._run(_open)
        except BaseException:
            executor.shutdown(wait=False)
            raise
        return spool

    async def seal(self, report: NewReport) -> int:
        """Store a report durably and return its id."""
        return await self._run(lambda engine: engine.seal(report), size=report.size)

    async def head(self) -> StoredReport | None:
        """Return the oldest report."""
        return await self._read(lambda engine: engine.head())

    async def second(self) -> StoredReport | None:
        """Return the oldest report but one."""
        return await self._read(lambda engine: engine.second())

    async def part(self, report_id: int, call_index: int, part_index: int) -> bytes:
        """Return one part."""
        return await self._read(lambda engine: engine.part(report_id, call_index, part_index))

    async def call_accepted(self, report_id: int, call_index: int) -> None:
        """Remember that core has this call of several."""
        await self._run(lambda engine: engine.call_accepted(report_id, call_index))

    async def accepted(self, report_id: int) -> None:
        """Delete a report and move its positions, both or neither."""
        await self._run(lambda engine: engine.accepted(report_id))

    async def failed(self, report_id: int) -> int:
        """Count a failed attempt and return how many there were."""
        return await self._run(lambda engine: engine.failed(report_id))

    async def set_aside(self, report_id: int, reason: str, *, rejected: int | None = None) -> None:
        """Keep a report that core will never take for the operator."""
        await self._run(lambda engine: engine.set_aside(report_id, reason, rejected=rejected))

    async def begin_result(self, meta: NewReport, *, kind: CallKind = "stream") -> SpoolResult:
        """Begin a result whose parts come one by one."""
        assert not meta.calls
        body, epoch = await self._run(lambda engine: engine.begin_result())
        return SpoolResult(self, meta, kind=kind, body=body, epoch=epoch)

    async def make_room(self, size: int) -> Gone:
        """Give up the oldest repeats so that a report of *size* bytes can be sealed on a full disk."""
        return await self._run(lambda engine: engine.make_room(size))

    async def expire(self, now_s: float) -> Gone:
        """Give up what has waited for longer than the bound at *now_s*, monotonic seconds."""
        return await self._run(lambda engine: engine.expire(now_s))

    def positions(self) -> Mapping[PositionKey, str]:
        """Return where each results check goes on; a live view."""
        return MappingProxyType(self._positions)

    def stats(self) -> SpoolStats:
        """Return the spool at this instant."""
        return self._stats

    async def close(self) -> None:
        """Finish what was asked for, close the files and end the thread."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_future()
            try:
                await self._submit(lambda engine: engine.close())
            finally:
                self._executor.shutdown(wait=False)
                self._closing.set_result(None)
        else:
            await asyncio.wait({self._closing})

    async def _read(self, action: Callable[[Engine], T]) -> T:
        if self._closing is not None:
            raise SpoolReadError(reason="closed", detail="the spool is closed")
        return await self._run(action)

    async def _run(self, action: Callable[[Engine], T], *, size: int = 0) -> T:
        self._check_open()
        await self._gate.enter(size)
        try:
            self._check_open()
        except SpoolWriteError:
            self._gate.leave(size)
            raise
        done = self._submit(action)
        # Whoever waits may be cancelled: what was asked for takes its place and gives it back all the same.
        done.add_done_callback(lambda _: self._gate.leave(size))
        return await asyncio.shield(done)

    def _check_open(self) -> None:
        if self._closing is not None:
            raise SpoolWriteError(reason="closed", detail="the spool is closed")

    def _submit(self, action: Callable[[Engine], T]) -> asyncio.Future[T]:
        """Give *action* to the thread; the future is done in the step that takes its reply in."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        running = loop.run_in_executor(self._executor, self._perform, action)
        running.add_done_callback(lambda ended: self._deliver(ended.result(), done))
        return done

    def _perform(self, action: Callable[[Engine], Any]) -> _Reply:
        """Run *action* in the thread."""
        engine = self._engine
        value: Any = None
        error: BaseException | None = None
        try:
            value = action(engine)
        except BaseException as caught:  # noqa: BLE001 — handed to whoever asked
            error = caught
        return _Reply(
            value, error, engine.stats(), engine.take_moved(), [*engine.take_events()], engine.wants_maintenance
        )

    def _deliver(self, reply: _Reply, done: asyncio.Future[Any]) -> None:
        self._stats = reply.stats
        move(self._positions, reply.moved)
        for event in reply.events:
            self._emit(event)
        if not done.done():
            if reply.error is None:
                done.set_result(reply.value)
            else:
                done.set_exception(reply.error)
                done.exception()  # known to be looked at, even if who asked was cancelled
        if reply.maintain and not self._maintaining and self._closing is None:
            self._maintain()

    def _maintain(self) -> None:
        self._maintaining = True
        self._submit(lambda engine: engine.maintain()).add_done_callback(self._maintained)

    def _maintained(self, ended: asyncio.Future[bool]) -> None:
        self._maintaining = False
        if ended.result() and self._closing is None:
            self._maintain()


class SpoolResult:
    """A result that is being written to a Spool, part by part."""

    def __init__(self, spool: Spool, meta: NewReport, *, kind: CallKind, body: int, epoch: int) -> None:
        self._spool = spool
        self._meta = meta
        self._kind: CallKind = kind
        self._body = body
        self._epoch = epoch
        self._count = 0
        self._size = 0
        self._ended = False

    @property
    def size(self) -> int:
        """Bytes added so far."""
        return self._size

    async def add(self, part: bytes) -> None:
        """Write the next part."""
        assert not self._ended
        index = self._count
        await self._spool._run(
            lambda engine: engine.add(self._body, self._epoch, index, part, self._meta), size=len(part)
        )
        self._count += 1
        self._size += len(part)

    async def seal(
        self, *, fresh: int, positions: tuple[tuple[str, str, str], ...] = (), status_count: int | None = None
    ) -> int:
        """Make it visible as one report, durably, and return its id."""
        assert not self._ended and self._count
        report = replace(self._meta, fresh=fresh, positions=positions)
        figures = (self._count, self._size, fresh if status_count is None else status_count)
        report_id = await self._spool._run(
            lambda engine: engine.seal_result(self._body, self._epoch, report, self._kind, figures)
        )
        self._ended = True
        return report_id

    async def abandon(self) -> None:
        """Leave nothing behind."""
        if self._ended:
            return
        self._ended = True
        try:
            await self._spool._run(lambda engine: engine.abandon(self._body, self._epoch, self._size))
        except SpoolWriteError:
            return  # closed: what was written goes at the next open


def _open(engine: Engine) -> dict[PositionKey, str]:
    engine.open()
    return engine.positions()
