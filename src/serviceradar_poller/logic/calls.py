"""
How one report becomes calls to core: unary below the size limit, streams only where they must be.

Core joins the chunks of a stream by name and type alone, so each name:type pair stands in a stream once (or as the
slices of one message). Unary calls have no such rule; the fewer the better, since core's view shows the last one.

    statuses ──► fits into one call ──────────► UnaryCall(≤ 3 MiB) … one, or as many as size demands
             └─► message alone above 3 MiB ───► StreamCall: its slices of ≤ 3 MiB in consecutive chunks
    register ──► StreamCall of one agent's statuses before it: core registers a poller by a stream only
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from serviceradar_poller.wire.messages import PollerStatusChunk, PollerStatusRequest, ServiceStatus

#: Encoded bytes of one call or chunk: core refuses 4 MiB, the envelope and one status' fields need some room.
CALL_BYTES_MAX = 3 * 1024 * 1024
#: What a message adds to a status beyond its own bytes: a tag, its length, and a longer length of the status itself.
MESSAGE_HEADER_BYTES_MAX = 16
#: Slices of as much of a message as a call may hold, however much the other fields take: 64 KiB each.
SLICES_MAX = 48
#: What a registering stream may hold; it is followed by the full report, so it stays small.
REGISTER_STATUSES_MAX = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportHead:
    """What every report of this poller carries."""

    poller_id: str
    partition: str
    source_ip: str
    kv_store_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnaryCall:
    """One ReportStatus; ``size`` is the encoded bytes of its statuses."""

    report: PollerStatusRequest
    size: int

    @property
    def status_count(self) -> int:
        """How many statuses it holds."""
        return len(self.report.services)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamCall:
    """
    One StreamStatus.

    Attributes:
        size: Encoded bytes of its statuses.
        registers: It repeats statuses of the report that follows it, to make the poller known.
    """

    chunks: tuple[PollerStatusChunk, ...]
    size: int
    status_count: int
    registers: bool = False


Call = UnaryCall | StreamCall


def plan_calls(
    head: ReportHead,
    statuses: Sequence[ServiceStatus],
    *,
    timestamp: int,
    size: int,
    size_of: Callable[[ServiceStatus], int],
) -> tuple[Call, ...]:
    """
    Return the calls that carry *statuses* to core, in the order they must be made.

    Every call holds *timestamp* (unix seconds), every status is in exactly one call. Without statuses there is one
    empty call: a sign of life.

    Args:
        size: Encoded bytes of all statuses together.
        size_of: Encoded bytes of a status as a field of its report.
    """
    if size <= CALL_BYTES_MAX:
        return (_unary(head, statuses, timestamp, size),)
    calls: list[Call] = []
    batch: list[ServiceStatus] = []
    batch_size = 0
    oversized: list[ServiceStatus] = []
    for status in statuses:
        size = size_of(status)
        if size > CALL_BYTES_MAX:
            oversized.append(status)
            continue
        if batch and batch_size + size > CALL_BYTES_MAX:
            calls.append(_unary(head, batch, timestamp, batch_size))
            batch, batch_size = [], 0
        batch.append(status)
        batch_size += size
    # What doesn't fit goes first: core's service view then ends on the call that holds the checks.
    calls.extend(_sliced(head, status, timestamp, size_of) for status in oversized)
    if batch:
        calls.append(_unary(head, batch, timestamp, batch_size))
    return tuple(calls)


def split_call(call: UnaryCall, *, size_of: Callable[[ServiceStatus], int]) -> tuple[UnaryCall, UnaryCall]:
    """Return *call*, of at least two statuses, as two of half as many: core's limit is lower than it should be."""
    services = call.report.services
    assert len(services) > 1
    halves = services[: len(services) // 2], services[len(services) // 2 :]
    first, second = (
        UnaryCall(report=replace(call.report, services=half), size=sum(map(size_of, half))) for half in halves
    )
    return first, second


def first_agent(statuses: Sequence[ServiceStatus]) -> tuple[ServiceStatus, ...]:
    """Return the statuses of the first agent that has one: all that `register_call` takes of *statuses*."""
    agent_id = next((status.agent_id for status in statuses if status.agent_id), "")
    return tuple(status for status in statuses if status.agent_id == agent_id)


def register_call(
    head: ReportHead,
    statuses: Sequence[ServiceStatus],
    *,
    timestamp: int,
    size_of: Callable[[ServiceStatus], int],
) -> StreamCall:
    """
    Return a stream that makes the poller known to core, to be sent before the report that holds *statuses*.

    It shows the first agent's statuses, each name:type pair once, or none at all.
    """
    chosen: list[ServiceStatus] = []
    pairs: set[tuple[str, str]] = set()
    size = 0
    agent_id = ""
    for status in statuses:
        agent_id = agent_id or status.agent_id
        pair = (status.service_name, status.service_type)
        status_bytes = size_of(status)
        if status.agent_id != agent_id or pair in pairs or size + status_bytes > CALL_BYTES_MAX:
            continue
        pairs.add(pair)
        chosen.append(status)
        size += status_bytes
        if len(chosen) == REGISTER_STATUSES_MAX:
            break
    parts: list[tuple[ServiceStatus, ...]] = [(status,) for status in chosen] or [()]
    return StreamCall(
        chunks=_chunks(head, parts, timestamp, agent_id),
        size=size,
        status_count=len(chosen),
        registers=True,
    )


def _unary(head: ReportHead, statuses: Iterable[ServiceStatus], timestamp: int, size: int) -> UnaryCall:
    return UnaryCall(
        report=PollerStatusRequest(
            services=tuple(statuses),
            poller_id=head.poller_id,
            timestamp=timestamp,
            partition=head.partition,
            source_ip=head.source_ip,
            kv_store_id=head.kv_store_id,
        ),
        size=size,
    )


def _sliced(
    head: ReportHead, status: ServiceStatus, timestamp: int, size_of: Callable[[ServiceStatus], int]
) -> StreamCall:
    """Return a stream of *status* cut into slices; every slice keeps all fields but the message."""
    # Names beyond all bounds leave no room: core then refuses what is too large, and the other statuses reach it.
    room = CALL_BYTES_MAX - size_of(replace(status, message=b"")) - MESSAGE_HEADER_BYTES_MAX
    room = max(room, CALL_BYTES_MAX // SLICES_MAX)
    message = memoryview(status.message)
    starts = range(0, max(len(message), 1), room)
    parts = [(replace(status, message=bytes(message[start : start + room])),) for start in starts]
    return StreamCall(chunks=_chunks(head, parts, timestamp, status.agent_id), size=size_of(status), status_count=1)


def _chunks(
    head: ReportHead, parts: Sequence[tuple[ServiceStatus, ...]], timestamp: int, agent_id: str
) -> tuple[PollerStatusChunk, ...]:
    return tuple(
        PollerStatusChunk(
            services=part,
            poller_id=head.poller_id,
            agent_id=agent_id,
            timestamp=timestamp,
            partition=head.partition,
            source_ip=head.source_ip,
            is_final=index == len(parts) - 1,
            chunk_index=index,
            total_chunks=len(parts),
            kv_store_id=head.kv_store_id,
        )
        for index, part in enumerate(parts)
    )
