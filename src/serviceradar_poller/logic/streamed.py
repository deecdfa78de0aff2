"""
Make the status of a streamed result piece by piece: merged, enriched and wrapped as its chunks come in.

    ┌ head of the envelope ┬ merged chunks, enriched metadata first ┬ end of the document ┬ end of the envelope ┐
    {"poller_id":…,"data":   {"network":…,"status":{…},"hosts":[ … ,  ]}                    }

The pieces are the message that ``outcome.from_results`` would make of the whole result, and what comes in is one chunk
at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec

from serviceradar_poller.logic.enrich import enrich, should_enrich
from serviceradar_poller.logic.merge import Merge, MergeLimits, MergeResult, new_merge
from serviceradar_poller.logic.merge import feed as merge_feed
from serviceradar_poller.logic.merge import finish as merge_finish
from serviceradar_poller.logic.outcome import CheckSubject, Device, Outcome, Reporter, Verdict
from serviceradar_poller.logic.wrap import needs_wrap, wrap
from serviceradar_poller.wire.messages import SOURCE_RESULTS, ResultsChunk, ServiceStatus

#: All that enriching looks at and writes.
_HOST_FIELDS = ("status", "status_text", "host_ip", "ip", "host_name", "hostname")
_SYNC = "sync"

_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedStatus:
    """
    A status whose message is under way.

    Attributes:
        status: Everything but the message.
        head, tail: The envelope around the merged document; empty where there is none.
        begun: The head was given out.
    """

    status: ServiceStatus
    merge: Merge
    head: bytes
    tail: bytes
    begun: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedResult:
    """
    A status whose message is complete.

    Attributes:
        status: Everything but the message.
        message_bytes: Size of all pieces together.
        merged: What the chunks came to; without new data there is nothing for core.
    """

    status: ServiceStatus
    message_bytes: int
    merged: MergeResult


def new_streamed(
    subject: CheckSubject, reporter: Reporter, device: Device, *, last_sequence: str, limits: MergeLimits
) -> StreamedStatus:
    """
    Return the status of a streamed result that has no chunk yet.

    A check whose name holds ``sync`` reports device updates, a bare array in any case.
    """
    service_type = _SYNC if _SYNC in subject.service_name else subject.service_type
    status = ServiceStatus(
        service_name=subject.service_name,
        available=True,
        service_type=service_type,
        agent_id=subject.agent,
        poller_id=reporter.poller_id,
        partition=reporter.partition,
        source=SOURCE_RESULTS,
        kv_store_id=reporter.kv_store_id,
    )
    head, tail = _envelope(status)

    def on_metadata(metadata: bytes) -> bytes:
        return enrich_metadata(metadata, details=subject.details, device_ip=device.ip, device_host=device.host)

    merge = new_merge(
        service_type,
        limits=limits,
        last_sequence=last_sequence,
        on_metadata=on_metadata if should_enrich(subject.service_type) else None,
    )
    return StreamedStatus(status=status, merge=merge, head=head, tail=tail)


def feed(streamed: StreamedStatus, chunk: ResultsChunk) -> tuple[StreamedStatus, bytes]:
    """
    Return the status with *chunk*, and the next piece of its message.

    Raises:
        MergeError: There is no result; the pieces so far must not be used.
    """
    merge, piece = merge_feed(streamed.merge, chunk)
    if not streamed.begun:
        piece = streamed.head + piece
    return replace(streamed, merge=merge, begun=True), piece


def finish(streamed: StreamedStatus) -> tuple[bytes, StreamedResult]:
    """
    Return the last piece of the message, and the result.

    Raises:
        MergeError: The stream ended before its final chunk.
    """
    end, merged = merge_finish(streamed.merge)
    return end + streamed.tail, StreamedResult(
        status=streamed.status,
        message_bytes=len(streamed.head) + merged.bytes + len(streamed.tail),
        merged=merged,
    )


def to_outcome(
    result: StreamedResult, message: bytes, subject: CheckSubject, *, tick: int, response_time: int
) -> Outcome:
    """
    Return the outcome of a streamed result; one without new data has nothing for core.

    Args:
        message: All pieces together, of a result that is told with the next report.
        response_time: From the request to the last chunk, nanoseconds.
    """
    if not result.merged.has_new_data:
        return Outcome(
            subject=subject,
            tick=tick,
            verdict=Verdict.UNCHANGED,
            status=None,
            sequence=result.merged.sequence,
        )
    return Outcome(
        subject=subject,
        tick=tick,
        verdict=Verdict.AVAILABLE,
        status=replace(result.status, message=message, response_time=response_time),
        sequence=result.merged.sequence,
    )


def stored_outcome(result: StreamedResult, subject: CheckSubject, *, tick: int) -> Outcome:
    """Return the outcome of a streamed result that has gone to core by itself: there is nothing left to tell."""
    return Outcome(
        subject=subject,
        tick=tick,
        verdict=Verdict.AVAILABLE,
        status=None,
        sequence=result.merged.sequence,
    )


def missing_service(subject: CheckSubject, reporter: Reporter, *, tick: int) -> Outcome:
    """
    Return the outcome of a stream that the agent answers with NOT_FOUND: it has no such service.

    A sweep that is not configured has nothing for core; a sync that is missing is told as unavailable.
    """
    if subject.service_type == "sweep" and _SYNC not in subject.service_name:
        return Outcome(subject=subject, tick=tick, verdict=Verdict.UNCHANGED, status=None)
    service_type = _SYNC if _SYNC in subject.service_name else subject.service_type
    status = ServiceStatus(
        service_name=subject.service_name,
        message=b'{"error":"No sweep service configured"}',
        service_type=service_type,
        agent_id=subject.agent,
        poller_id=reporter.poller_id,
        partition=reporter.partition,
        source=SOURCE_RESULTS,
        kv_store_id=reporter.kv_store_id,
    )
    head, tail = _envelope(status)
    return Outcome(
        subject=subject,
        tick=tick,
        verdict=Verdict.UNAVAILABLE,
        status=replace(status, message=head + status.message + tail),
    )


def enrich_metadata(metadata: bytes, *, details: str, device_ip: str, device_host: str) -> bytes:
    """
    Return the JSON object *metadata* with the host's fields, as enriching the object with all its members would.

    Members that have nothing to do with the host stay as they are.
    """
    members = _members(metadata)
    host = {field: members[field] for field in _HOST_FIELDS if field in members}
    enriched = enrich(_encode(host), details=details, device_ip=device_ip, device_host=device_host)
    return _encode({**members, **_members(enriched)})


def _envelope(status: ServiceStatus) -> tuple[bytes, bytes]:
    """Return what stands before and after the data."""
    if not needs_wrap(status.service_type):
        return b"", b""
    around = wrap(
        b"0",
        poller_id=status.poller_id,
        agent_id=status.agent_id,
        partition=status.partition,
        service_type=status.service_type,
        service_name=status.service_name,
    )
    return around[:-2], around[-1:]
