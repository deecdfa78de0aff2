"""Make of a good streamed result what a fault makes of it. Pure: the waiting is left to whoever sends it."""

from __future__ import annotations

from collections.abc import Iterator

from serviceradar_poller.lab.datasets import ITEMS_MAX, device_chunks
from serviceradar_poller.lab.faults import Fault, FaultKind
from serviceradar_poller.lab.http2 import StreamEnd, StreamItem
from serviceradar_poller.wire.pb import monitoring_pb2 as pb

#: Encoded size of a device update, near enough.
DEVICE_BYTES = 370
_CUT_OFF = b'[{"ip":"10.0.0.1","hostname":"host-'


def distort_stream(
    chunks: Iterator[pb.ResultsChunk], request: pb.ResultsRequest, fault: Fault, *, agent_id: str, now: float
) -> Iterator[StreamItem]:
    """Yield what *fault* makes of *chunks*."""
    match fault.kind:
        case FaultKind.STREAM_UNCHANGED:
            yield pb.ResultsChunk(
                data=b"{}", is_final=True, total_chunks=1, current_sequence=request.last_sequence, timestamp=int(now)
            ).SerializeToString()
        case FaultKind.STREAM_HUGE:
            yield from _huge(request, fault.size_bytes, agent_id, now)
        case FaultKind.STREAM_ENDLESS:
            yield from _endless(chunks)
        case FaultKind.STREAM_DRIP:
            for chunk in chunks:
                yield 60.0 / fault.per_minute
                yield chunk.SerializeToString()
        case _:
            yield from _with_one_bad(chunks, fault)


def _with_one_bad(chunks: Iterator[pb.ResultsChunk], fault: Fault) -> Iterator[StreamItem]:
    for chunk in chunks:
        if chunk.chunk_index != fault.chunk and not (chunk.is_final and chunk.chunk_index < fault.chunk):
            yield chunk.SerializeToString()
            continue
        match fault.kind:
            case FaultKind.STREAM_GARBAGE:
                chunk.data = _CUT_OFF
                yield chunk.SerializeToString()
            case FaultKind.STREAM_GAP:
                pass
            case FaultKind.STREAM_DUPLICATE:
                final, chunk.is_final = chunk.is_final, False
                yield chunk.SerializeToString()
                chunk.is_final = final
                yield chunk.SerializeToString()
            case FaultKind.STREAM_REORDER:
                following = next(chunks, None)
                if following is not None:
                    yield following.SerializeToString()
                else:
                    chunk.chunk_index += 1
                yield chunk.SerializeToString()
            case FaultKind.STREAM_STOP:
                return
            case FaultKind.STREAM_RESET:
                yield StreamEnd.RESET
                return
            case _:
                raise AssertionError(f"{fault.kind} is no fault of a stream")


def _endless(chunks: Iterator[pb.ResultsChunk]) -> Iterator[bytes]:
    last = pb.ResultsChunk(data=b"[]")
    for chunk in chunks:
        chunk.is_final, chunk.total_chunks = False, 0
        yield chunk.SerializeToString()
        last = chunk
    while True:
        last.chunk_index = (last.chunk_index + 1) % (2**31)
        yield last.SerializeToString()


def _huge(request: pb.ResultsRequest, size_bytes: int, agent_id: str, now: float) -> Iterator[bytes]:
    count = min(size_bytes // DEVICE_BYTES + 1, ITEMS_MAX)
    sequence = str(int(now))
    for chunk in device_chunks(count, agent_id=agent_id, poller_id=request.poller_id, timestamp=sequence):
        yield pb.ResultsChunk(
            data=chunk.data,
            is_final=chunk.is_final,
            chunk_index=chunk.index,
            total_chunks=chunk.total,
            current_sequence=sequence,
            timestamp=int(now),
        ).SerializeToString()
