"""
Pull one streamed result: a small one into memory, a large one on into the sink, in memory that its size does not touch.

    stream ─► merged until it is whole ─────────────────────────► message
                    └ larger than SMALL_BYTES_MAX ─► sink ◄── pipeline: read ─► merge ─► write
                                                      └ whole ─► sealed; anything else ─► abandoned

The pipeline stands under the agent's coordinator, last in order, and asks for a chunk only when there is room for what
comes of it: one chunk is merged while the piece before it is written. What goes wrong in it, a bug included, ends it
and is told as the failure of this result. Small results do without: most are one chunk, which is read at less than the
0.25 ms of CPU and 24 KiB that a pipeline takes to start and end, and nothing of them is written here.

Merging a chunk takes 2.5 ms a MiB where it holds device updates, and up to 160 ms where each of its values has to be
rewritten. So all but small chunks are merged in a thread: it is pure, so one that nobody waits for any more does no
harm, and the loop waits for a turn of the interpreter instead of for the whole chunk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from serviceradar_poller.agents.channel import AgentStream
from serviceradar_poller.agents.evidence import CallCut
from serviceradar_poller.agents.sink import ResultSink, ResultWriter
from serviceradar_poller.errors import CallError, GrpcCode, Layer, SpoolWriteError
from serviceradar_poller.flow import END, Abort, End, Event, Poison, Source, flow
from serviceradar_poller.logic.merge import MergeError
from serviceradar_poller.logic.reports import CheckId
from serviceradar_poller.logic.streamed import StreamedResult, StreamedStatus, feed, finish
from serviceradar_poller.otp import KernelError, StartFailed, SupervisorRef, System
from serviceradar_poller.wire.messages import ResultsChunk

#: A message up to this size is told with the next report, as all others are.
SMALL_BYTES_MAX = 256 * 1024
#: A chunk up to this size is merged on the loop: 10 ms at most, and 0.2 ms as a rule.
LOOP_BYTES_MAX = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """
    A whole result.

    Attributes:
        message: None where the sink has it.
    """

    result: StreamedResult
    message: bytes | None


class Pull:
    """One streamed result on its way."""

    def __init__(
        self, stream: AgentStream, streamed: StreamedStatus, sink: ResultSink, *, check: CheckId, begin_s: float
    ) -> None:
        """
        Args:
            begin_s: When it was asked for, seconds of the running loop.
        """
        self._stream = stream
        self._streamed = streamed
        self._sink = sink
        self._check = check
        self._begin_s = begin_s
        self._writer: ResultWriter | None = None

    async def run(self, system: System, *, under: str, id: str, timeout_s: float) -> Pulled:
        """
        Pull it, within *timeout_s*; nothing of one that breaks or makes no sense is used.

        Args:
            under, id: Tree path of the supervisor that a pipeline would stand under, and its place there.
        Raises:
            CallError: There is no result, and why; nothing is left of it.
            CallCut: The agent's actors are being stopped; nothing is left of it.
        """
        try:
            message = await self._begin()
            if len(message) <= SMALL_BYTES_MAX:
                end, result = finish(self._streamed)
                return Pulled(result=result, message=bytes(message + end))
            async with asyncio.timeout(timeout_s - (_now_s() - self._begin_s)):
                return await self._store(message, system, under, id)
        except MergeError as error:
            raise error.as_call_error() from None
        except SpoolWriteError as error:
            raise _not_kept(error) from None
        except TimeoutError:
            raise _too_slow(timeout_s) from None
        finally:
            await self._stream.cancel()

    async def _begin(self) -> bytearray:
        """Merge chunks until the message is whole or too large to be held. Raises CallError, MergeError."""
        message = bytearray()
        while not self._streamed.merge.final and len(message) <= SMALL_BYTES_MAX:
            chunk = await self._stream.read()
            if chunk is None:
                break
            message += await self._feed(chunk)
        return message

    async def _store(self, message: bytearray, system: System, under: str, id: str) -> Pulled:
        # The time that core is told goes into every slice, so it can't be that of the last chunk.
        response_time = int((_now_s() - self._begin_s) * 1e9)
        status = replace(self._streamed.status, response_time=response_time)
        writer = self._writer = await self._sink.begin(self._check, status)
        try:
            await writer.add(bytes(message))
            message.clear()
            if not self._streamed.merge.final:
                await self._rest(system, under, id)
            end, result = finish(self._streamed)
            await writer.add(end)
            await writer.seal(sequence=result.merged.sequence)
        finally:
            await writer.abandon()
        return Pulled(result=result, message=None)

    async def _rest(self, system: System, under: str, id: str) -> None:
        """Run the pipeline that reads, merges and writes all chunks that follow. Raises CallError, CallCut."""
        pipeline = (
            flow(
                _Chunks(self._stream),
                id=id,
                tries=1,
                on_poison=_crash,
                drain_s=0.0,
                intensity=0,
            )
            .process(self._merge, id="merge", max_demand=1)
            .consume(self._write, id="write", max_demand=1)
        )
        supervisor = system.whereis(under)
        if not isinstance(supervisor, SupervisorRef):
            raise CallCut
        try:
            outcome = await pipeline.run(under=supervisor)
        except KernelError as error:
            if isinstance(error, StartFailed) and not isinstance(error.cause, KernelError):
                raise _crashed(error) from error
            raise CallCut from None
        if outcome.complete:
            return
        match outcome.error:
            case None | CallCut():
                raise CallCut
            case _Failed(failure=failure) | (CallError() as failure):
                raise failure.with_traceback(None)
            case bug:
                raise _crashed(bug) from bug

    async def _merge(self, chunk: Event[ResultsChunk]) -> bytes:
        try:
            return await self._feed(chunk.data)
        except MergeError as error:
            raise _Failed(error.as_call_error()) from None

    async def _write(self, piece: Event[bytes]) -> None:
        assert self._writer is not None
        try:
            await self._writer.add(piece.data)
        except SpoolWriteError as error:
            raise _Failed(_not_kept(error)) from None

    async def _feed(self, chunk: ResultsChunk) -> bytes:
        if len(chunk.data) <= LOOP_BYTES_MAX:
            self._streamed, piece = feed(self._streamed, chunk)
        else:
            self._streamed, piece = await asyncio.to_thread(feed, self._streamed, chunk)
        return piece


class _Chunks(Source[ResultsChunk]):
    """The rest of a stream, one chunk for one unit of demand; it can't be read again."""

    def __init__(self, stream: AgentStream) -> None:
        self._stream = stream
        self._ended = False

    async def produce(self, demand: int) -> Sequence[ResultsChunk] | End:
        """Read one chunk; what comes after the final one is not asked for."""
        chunk = None if self._ended else await self._stream.read()
        if chunk is None:
            return END
        self._ended = chunk.is_final
        return (chunk,)


class _Failed(Abort):
    """There will be no result, for a reason that an operator knows."""

    def __init__(self, failure: CallError) -> None:
        super().__init__(str(failure))
        self.failure = failure


async def _crash(poison: Poison) -> None:
    """Make a bug in a handler a crash of its stage: another try, or the next chunk, would hide it."""
    raise poison.error


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _not_kept(error: SpoolWriteError) -> CallError:
    return CallError(
        layer=Layer.APPLICATION,
        code=GrpcCode.RESOURCE_EXHAUSTED,
        reason=error.reason,
        detail=f"the result can't be kept for core: {error.detail}",
    )


def _too_slow(timeout_s: float) -> CallError:
    return CallError(
        layer=Layer.APPLICATION,
        code=GrpcCode.DEADLINE_EXCEEDED,
        reason="timeout",
        detail=f"the result was not whole and written within {timeout_s:g} s",
    )


def _crashed(error: Exception) -> CallError:
    return CallError(
        layer=Layer.APPLICATION,
        code=GrpcCode.INTERNAL,
        reason="crashed",
        detail=f"the result could not be taken in: {type(error).__name__}: {error}",
    )
