"""
Keep what a simulated core was told, within bounds: reports, statuses, the latest state, and what was dropped.

Streams are put together as the real core does it: the key is service_name:service_type without the agent, bytes are
concatenated in arrival order, every other field comes from the first part. Pure but for the times it is handed.
"""

from __future__ import annotations

import contextlib
import enum
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec

from serviceradar_poller.wire.pb import monitoring_pb2 as pb

#: Reports kept, oldest dropped first.
REPORTS_KEPT_MAX = 10_000
#: Statuses kept by ``full``, oldest dropped first, and the bytes of their messages.
STATUSES_KEPT_MAX = 50_000
STATUS_BYTES_KEPT_MAX = 256 * 1024 * 1024
#: A longer message is kept as its length and beginning only.
MESSAGE_KEPT_BYTES_MAX = 1024 * 1024
#: (agent, service, type) triples whose latest status is kept; new ones beyond that are counted, not kept.
STATES_KEPT_MAX = 100_000
_EXCERPT_BYTES = 4096
#: Chunks of one stream that are described.
CHUNKS_KEPT_MAX = 64
_SHOWN = (
    "report",
    "agent_id",
    "service_name",
    "service_type",
    "available",
    "size",
    "response_time",
    "poller_id",
    "partition",
    "source",
    "kv_store_id",
)


class Record(enum.StrEnum):
    """How much is kept of every status."""

    SUMMARY = "summary"  # the latest per service
    FULL = "full"  # every one, in order


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusRecord:
    """One status as it arrived; ``report`` is the index of its report, ``size`` that of its whole message."""

    report: int
    agent_id: str
    service_name: str
    service_type: str
    available: bool
    message: bytes
    size: int
    cut_json: bool  # the whole was JSON, of which only the beginning is kept
    response_time: int
    poller_id: str
    partition: str
    source: str
    kv_store_id: str

    def as_json(self, report: ReportRecord | None = None) -> dict[str, object]:
        """
        Return the status with its message decoded.

        ``message`` is the JSON value; where it is none, null, and the text stands in ``text``.
        ``truncated``: it was too long to keep, ``text`` is its beginning, ``valid_json`` says it of the whole.
        """
        body: dict[str, object] = {key: getattr(self, key) for key in _SHOWN}
        body["truncated"] = self.size > len(self.message)
        body["message"] = None
        body["valid_json"] = self.cut_json
        if not body["truncated"]:
            with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
                body["message"] = msgspec.json.decode(self.message)
                body["valid_json"] = True
        if body["truncated"] or not body["valid_json"]:
            body["text"] = self.message.decode("utf-8", "replace")
        if report is not None:
            body["timestamp"] = report.timestamp
            body["received_wall_s"] = report.wall_s
        return body


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRecord:
    """
    One report.

    Attributes:
        index: Counts from 0, over all reports of this core.
        monotonic_s, wall_s: Arrival, when it was complete.
        transport: ``unary`` or ``stream``.
        size: Encoded bytes, all chunks together.
        chunks: 1 for unary.
        parts: Stream only: fields of its chunks and of the statuses' parts in them; of CHUNKS_KEPT_MAX at most.
        known: Whether core knew the poller; otherwise the report was silently thrown away.
        merged: Stream only: statuses that were appended to another agent's of the same name and type, hence lost.
        duplicates: (agent, service, type) triples that the report holds more than once.
    """

    index: int
    monotonic_s: float
    wall_s: float
    transport: str
    poller_id: str
    agent_id: str
    timestamp: int
    partition: str
    source_ip: str
    kv_store_id: str
    size: int
    chunks: int
    status_count: int
    available_count: int
    known: bool
    merged: int
    duplicates: int
    parts: tuple[dict[str, object], ...] = ()


@dataclass(slots=True, kw_only=True)
class Latest:
    """The newest status of one service, how many there were, and when its availability last changed."""

    status: StatusRecord
    seen: int = 1
    changed_wall_s: float


class Recorder:
    """Everything that one core was told."""

    def __init__(
        self,
        *,
        record: Record = Record.FULL,
        reports_max: int = REPORTS_KEPT_MAX,
        statuses_max: int = STATUSES_KEPT_MAX,
        strict: bool = False,
        known_pollers: Iterable[str] = (),
    ) -> None:
        self.record = record
        self.strict = strict
        self.pollers: set[str] = set(known_pollers)
        self.reports: deque[ReportRecord] = deque()
        self.statuses: deque[StatusRecord] = deque()
        self.latest: dict[tuple[str, str, str], Latest] = {}
        self.counts: Counter[str] = Counter()
        self._reports_max = reports_max
        self._statuses_max = statuses_max
        self._status_bytes = 0
        self._index = 0

    def unary(self, request: pb.PollerStatusRequest, *, size: int, monotonic_s: float, wall_s: float) -> ReportRecord:
        """Record a report that came in one call; *size* is its encoded length."""
        return self._add(
            request, request.services, size=size, chunks=1, merged=0, transport="unary", at=(monotonic_s, wall_s)
        )

    def stream(
        self, chunks: list[pb.PollerStatusChunk], *, size: int, monotonic_s: float, wall_s: float
    ) -> ReportRecord:
        """Record a report that came as a stream; its poller is known from now on. *chunks* is not empty."""
        if len(self.pollers) < REPORTS_KEPT_MAX:
            self.pollers.add(chunks[0].poller_id)
        services, merged = reassemble(chunks)
        return self._add(
            chunks[0],
            services,
            size=size,
            chunks=len(chunks),
            merged=merged,
            transport="stream",
            at=(monotonic_s, wall_s),
            parts=tuple(_part(chunk) for chunk in chunks[:CHUNKS_KEPT_MAX]) if self.record is Record.FULL else (),
        )

    @property
    def index(self) -> int:
        """How many reports there were."""
        return self._index

    def reports_since(self, index: int) -> list[ReportRecord]:
        """Return the kept reports from *index* on."""
        return [report for report in self.reports if report.index >= index]

    def statuses_of(
        self, *, agent: str | None = None, service: str | None = None, since: int = 0
    ) -> Iterator[tuple[StatusRecord, ReportRecord | None]]:
        """Yield the kept statuses, oldest first, each with its report where that is kept."""
        reports = {report.index: report for report in self.reports}
        for status in self.statuses:
            if status.report >= since and agent in (None, status.agent_id) and service in (None, status.service_name):
                yield status, reports.get(status.report)

    def summary(self) -> dict[str, object]:
        """Return the counters."""
        return {
            "reports": self._index,
            "reports_kept": len(self.reports),
            "statuses_kept": len(self.statuses),
            "status_bytes_kept": self._status_bytes,
            "services": len(self.latest),
            "pollers": sorted(self.pollers),
            "counts": dict(self.counts),
        }

    def clear(self) -> None:
        """Forget reports, statuses and state; the index and the counters go on."""
        self.reports.clear()
        self.statuses.clear()
        self.latest.clear()
        self._status_bytes = 0

    def _add(
        self,
        envelope: pb.PollerStatusRequest | pb.PollerStatusChunk,
        services: Iterable[pb.ServiceStatus],
        *,
        size: int,
        chunks: int,
        merged: int,
        transport: str,
        at: tuple[float, float],
        parts: tuple[dict[str, object], ...] = (),
    ) -> ReportRecord:
        index, self._index = self._index, self._index + 1
        known = not self.strict or envelope.poller_id in self.pollers
        statuses = available = duplicates = 0
        seen: set[tuple[str, str, str]] = set()
        for service in services:
            statuses += 1
            available += service.available
            key = (service.agent_id, service.service_name, service.service_type)
            duplicates += key in seen
            seen.add(key)
            if known:
                self._keep(key, service, index, at[1])
        report = ReportRecord(
            index=index,
            monotonic_s=at[0],
            wall_s=at[1],
            transport=transport,
            poller_id=envelope.poller_id,
            agent_id=envelope.agent_id,
            timestamp=envelope.timestamp,
            partition=envelope.partition,
            source_ip=envelope.source_ip,
            kv_store_id=envelope.kv_store_id,
            size=size,
            chunks=chunks,
            status_count=statuses,
            available_count=available,
            known=known,
            merged=merged,
            duplicates=duplicates,
            parts=parts,
        )
        self.reports.append(report)
        self.counts[f"reports_{transport}"] += 1
        self.counts["statuses"] += statuses
        self.counts["statuses_unavailable"] += statuses - available
        self.counts["bytes"] += size
        self.counts["merged"] += merged
        self.counts["duplicates"] += duplicates
        self.counts["reports_unknown_poller"] += not known
        if len(self.reports) > self._reports_max:
            self.reports.popleft()
            self.counts["reports_dropped"] += 1
        return report

    def _keep(self, key: tuple[str, str, str], service: pb.ServiceStatus, index: int, wall_s: float) -> None:
        message = service.message
        size = len(message)
        status = StatusRecord(
            report=index,
            agent_id=key[0],
            service_name=key[1],
            service_type=key[2],
            available=service.available,
            message=message if size <= MESSAGE_KEPT_BYTES_MAX else message[:_EXCERPT_BYTES],
            size=size,
            cut_json=size > MESSAGE_KEPT_BYTES_MAX and _is_json(message),
            response_time=service.response_time,
            poller_id=service.poller_id,
            partition=service.partition,
            source=service.source,
            kv_store_id=service.kv_store_id,
        )
        latest = self.latest.get(key)
        if latest is not None:
            if latest.status.available != status.available:
                latest.changed_wall_s = wall_s
            latest.status = status
            latest.seen += 1
        elif len(self.latest) < STATES_KEPT_MAX:
            self.latest[key] = Latest(status=status, changed_wall_s=wall_s)
        else:
            self.counts["states_dropped"] += 1
        if self.record is Record.FULL:
            self.statuses.append(status)
            self._status_bytes += len(status.message)
            while len(self.statuses) > self._statuses_max or self._status_bytes > STATUS_BYTES_KEPT_MAX:
                self._status_bytes -= len(self.statuses.popleft().message)
                self.counts["statuses_dropped"] += 1


def _is_json(message: bytes) -> bool:
    """Tell whether it is JSON; nothing is built of it, which may be hundreds of megabytes."""
    try:
        msgspec.json.decode(message, type=msgspec.Raw)
        return message.isascii() or bool(message.decode())
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False


_CHUNK_FIELDS = (
    "poller_id", "agent_id", "timestamp", "partition", "source_ip", "is_final", "chunk_index", "total_chunks",
    "kv_store_id",
)  # fmt: skip
_PART_FIELDS = ("service_name", "service_type", "agent_id", "poller_id", "partition", "source", "kv_store_id")


def _part(chunk: pb.PollerStatusChunk) -> dict[str, object]:
    services = [
        {name: getattr(service, name) for name in _PART_FIELDS} | {"size": len(service.message)}
        for service in chunk.services
    ]
    return {name: getattr(chunk, name) for name in _CHUNK_FIELDS} | {"services": services}


def reassemble(chunks: Iterable[pb.PollerStatusChunk]) -> tuple[list[pb.ServiceStatus], int]:
    """
    Put a stream together as core does; chunks are not changed.

    Returns:
        The services, in order of first arrival, and how many parts of another agent's were appended to one.
    """
    whole: dict[str, pb.ServiceStatus] = {}
    parts: dict[str, list[bytes]] = {}
    merged = 0
    for chunk in chunks:
        for service in chunk.services:
            key = f"{service.service_name}:{service.service_type}"
            first = whole.setdefault(key, service)
            merged += first.agent_id != service.agent_id
            parts.setdefault(key, []).append(service.message)
    services = []
    for key, first in whole.items():
        if len(parts[key]) > 1:
            copy = pb.ServiceStatus()
            copy.CopyFrom(first)
            copy.message = b"".join(parts[key])
            first = copy
        services.append(first)
    return services, merged
