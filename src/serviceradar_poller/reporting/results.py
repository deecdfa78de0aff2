"""
Write large results into the store while they come in, part by part, as the stream that core will be sent.

    piece ─► slice, up to PART_BYTES ─► PollerStatusChunk(status + slice) ─► store ─► … ─► seal ─► own report
                                                                             └ anything goes wrong ─► abandoned

Every slice holds all fields of the status, the last one says that it is; how many there are is put behind each when it
is sent (reporting/outgoing.py). What is asked of the store for a result happens in tasks that belong to this object,
one after the other: an asker that is cancelled in the midst of a write leaves it to end, and then nothing behind.

A result never pushes out what waits for core: without room it fails, is told as failed, and is pulled again later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from serviceradar_poller.env import Env
from serviceradar_poller.errors import SpoolWriteError
from serviceradar_poller.logic.calls import ReportHead
from serviceradar_poller.logic.reports import CheckId, ReportKind
from serviceradar_poller.reporting.sealing import Sealer
from serviceradar_poller.reporting.spool import NewReport, ReportStore, ResultWriter
from serviceradar_poller.wire.codec import encode_poller_status_chunk
from serviceradar_poller.wire.messages import PollerStatusChunk, ServiceStatus

T = TypeVar("T")

#: The message's share of one part: a sync for each is cheap beside writing so much, and core takes up to 4 MiB.
PART_BYTES = 1024 * 1024
#: Results that are being written at the same time, of all agents: each holds a chunk, a piece and a part of its own.
WRITES_MAX = 32
#: Of the store's bound, what results may take while they are written: the rest stays for what every cycle tells.
STORE_SHARE_MAX = 0.75


class StoredResults:
    """
    The way of large results into the store; implements agents.sink.ResultSink.

    Attributes:
        writing: Results that are being written.
        waits_total: Results that had to wait until another was written.
        stored_total: Results that were sealed.
    """

    def __init__(
        self, store: ReportStore, sealer: Sealer, env: Env, *, head: Callable[[], ReportHead], advice: str = ""
    ) -> None:
        """
        Args:
            head: What every report carries, as it is known by now.
            advice: What an operator may do about a result for which there is no room.
        """
        self.store = store
        self.sealer = sealer
        self.writing = 0
        self.waits_total = 0
        self.stored_total = 0
        self._env = env
        self._head = head
        self._advice = advice
        self._places = asyncio.Semaphore(WRITES_MAX)
        self._tasks: set[asyncio.Task[Any]] = set()  # two for each place at most

    async def begin(self, check: CheckId, status: ServiceStatus) -> StoredResult:
        """Begin a result as soon as there is a place; SpoolWriteError where the store can't take it."""
        head, timestamp = self._head(), int(self._env.clock.wall())
        envelope = PollerStatusChunk(
            poller_id=head.poller_id,
            agent_id=status.agent_id,
            timestamp=timestamp,
            partition=head.partition,
            source_ip=head.source_ip,
            kv_store_id=head.kv_store_id,
        )
        self.waits_total += self._places.locked()
        await self._places.acquire()
        self.writing += 1
        meta = NewReport(kind=ReportKind.RESULT.value, timestamp=timestamp, change=False, fresh=1, calls=())
        beginning = self.own(self.store.begin_result(meta))
        try:
            await asyncio.wait({beginning})
            writer = beginning.result()
        except BaseException:
            self.own(self._take_back(beginning))
            raise
        return StoredResult(self, writer, check, status, envelope)

    def check_room(self, size: int, part_bytes: int) -> None:
        """Raise SpoolWriteError where a result of *size* bytes may not grow by *part_bytes*."""
        stats = self.store.stats()
        share = int(STORE_SHARE_MAX * stats.limit_bytes)
        if size + part_bytes > share:
            detail = f"the result is larger than {share} bytes, {STORE_SHARE_MAX:.0%} of what may wait for core"
            raise SpoolWriteError(reason="too_large", detail=f"{detail}{self._advice}")
        if stats.bytes + stats.writing_bytes + part_bytes > stats.limit_bytes:
            detail = f"{stats.bytes + stats.writing_bytes} of {stats.limit_bytes} bytes that may wait for core are used"
            raise SpoolWriteError(reason="spool_full", detail=f"{detail}{self._advice}")

    def own(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run *work* to its end, whatever becomes of who asked for it."""
        task = asyncio.ensure_future(work)  # noqa: TID251 — its owner outlives the actor that asks
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def leave(self) -> None:
        """Give a place back."""
        self.writing -= 1
        self._places.release()

    async def _take_back(self, beginning: asyncio.Task[ResultWriter]) -> None:
        """End what was begun for an asker that is gone."""
        await asyncio.wait({beginning})
        if not beginning.cancelled() and beginning.exception() is None:
            await beginning.result().abandon()
        self.leave()

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # for whoever asked, if he is still there


class StoredResult:
    """One result that is being written; implements agents.sink.ResultWriter."""

    def __init__(
        self,
        results: StoredResults,
        writer: ResultWriter,
        check: CheckId,
        status: ServiceStatus,
        envelope: PollerStatusChunk,
    ) -> None:
        self._results = results
        self._writer = writer
        self._check = check
        self._status = status
        self._envelope = envelope
        self._slice = bytearray()
        self._index = 0
        self._size = 0
        self._under_way: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None

    async def add(self, piece: bytes) -> None:
        """Take the next piece; what fills a part is written."""
        rest = memoryview(piece)
        while rest:
            if len(self._slice) == PART_BYTES:
                # Not before more of it comes: the last part says that it is the last.
                await self._write(is_final=False)
            room = PART_BYTES - len(self._slice)
            self._slice += rest[:room]
            rest = rest[room:]

    async def seal(self, *, sequence: str) -> None:
        """Write the rest and make the result a report."""
        assert self._slice
        await self._write(is_final=True)
        await self._run(self._seal(((*self._check, sequence),) if sequence else ()))
        await self.abandon()  # which only gives the place back

    async def abandon(self) -> None:
        """Wait for what is under way, and leave nothing behind."""
        if self._leaving is None:
            self._leaving = self._results.own(self._leave())
        await asyncio.wait({self._leaving})

    async def _seal(self, positions: tuple[tuple[str, str, str], ...]) -> None:
        await self._results.sealer.seal_result(self._writer, positions=positions)
        self._results.stored_total += 1

    async def _write(self, *, is_final: bool) -> None:
        chunk = replace(
            self._envelope,
            services=(replace(self._status, message=bytes(self._slice)),),
            is_final=is_final,
            chunk_index=self._index,
        )
        part = encode_poller_status_chunk(chunk)
        self._results.check_room(self._size, len(part))
        self._slice.clear()
        await self._run(self._writer.add(part))
        self._index += 1
        self._size += len(part)
        await asyncio.sleep(0)  # a store in memory never waits: others get their turn here

    async def _run(self, work: Coroutine[Any, Any, None]) -> None:
        assert self._leaving is None, "it was abandoned"
        task = self._under_way = self._results.own(work)
        await asyncio.wait({task})
        self._under_way = None
        task.result()

    async def _leave(self) -> None:
        if self._under_way is not None:
            await asyncio.wait({self._under_way})
        try:
            await self._writer.abandon()
        finally:
            self._results.leave()
