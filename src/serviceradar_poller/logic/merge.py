"""
Merge the chunks of a streamed result, one at a time, into the bytes of one JSON document.

Nothing is built of the items and nothing is kept of a chunk that was fed: what comes out can be written at once, and
memory is that of one chunk.

    chunk 0   {"network": "10.0.0.0/8", "hosts": [a, b]}    →   {"network":"10.0.0.0/8","hosts":[a, b
    chunk 1   {"network": "10.0.0.0/8", "hosts": [c]}       →   ,c
    end                                                     →   ]}

An error at any chunk makes everything before it worthless: a result is whole or it is not there.

Agents need not number their chunks; what is not set reads as 0. Chunks count as numbered as soon as one says a total or
an index other than 0, and the ones before are then held to it. Two chunks that both say index 0 and no total are
therefore not numbered, unless a later one is. A total is checked wherever it is said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec

from serviceradar_poller.errors import CallError, GrpcCode, Layer, PollerError
from serviceradar_poller.logic.jsonparts import (
    WHITE,
    DenseJson,
    Raws,
    array_items,
    inside,
    joined,
    may_hold_whole_doubles,
    object_members,
    sound,
    with_integers,
)
from serviceradar_poller.logic.jsontext import UnreadableJson
from serviceradar_poller.logic.sequence import is_kept, why_not_kept
from serviceradar_poller.wire.messages import ResultsChunk

#: Where a chunk that is an object holds its items: the first of these that is usable.
ITEM_KEYS = ("hosts", "devices", "results", "entries", "data")

PARSE_FAILED = "failed to parse chunk data"
NO_FINAL = "stream completed without a final chunk"

#: ``{}`` with white space.
EMPTY_OBJECT_BYTES_MAX = 64

_OBJECT_TYPE = "sweep"
_HOSTS = "hosts"
_encode = msgspec.json.Encoder().encode


class MergeError(PollerError):
    """
    The chunks are no result; what was merged of them must not be used.

    Attributes:
        reason: parse, gap, duplicate, order, total, no_final, too_large or too_many.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail

    def as_call_error(self) -> CallError:
        """Return the failure of the call whose chunks these were."""
        return CallError(
            layer=Layer.APPLICATION,
            code=GrpcCode.DATA_LOSS,
            reason=f"stream_{self.reason}",
            detail=self.detail,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeLimits:
    """
    What one result may be; beyond it, it is refused.

    Attributes:
        chunk_bytes_max: The data of one chunk. Merging holds some two copies of it; of a chunk with nothing but tiny
            values up to seven times its size, or 56 MB if that is more.
        items_max: All chunks together.
        total_bytes_max: Data of all chunks together, empty ones counted as one byte.
        chunks_max: Also ends a stream of empty chunks.
    """

    chunk_bytes_max: int = 16 * 1024 * 1024
    items_max: int = 10_000_000
    total_bytes_max: int = 4 * 1024 * 1024 * 1024
    chunks_max: int = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeResult:
    """
    What was merged.

    Attributes:
        bytes: Size of the merged document.
        sequence: The position that the chunks gave last; empty when they gave none.
        has_new_data: False for the one empty object by which an agent says that nothing changed since the position
            that it was asked about.
    """

    items: int
    bytes: int
    sequence: str
    has_new_data: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """
    A merge under way.

    Attributes:
        asked_sequence: The position that the agent was asked about.
        on_metadata: Rewrites the metadata object, as JSON, before it is written.
        chunks, items, bytes_in, bytes_out: So far.
        numbered: Whether a chunk gave its index or a total.
        total: What chunks gave; 0: nothing yet.
        end: What closes the document.
        final: The last chunk was fed.
    """

    service_type: str
    limits: MergeLimits
    asked_sequence: str
    on_metadata: Callable[[bytes], bytes] | None
    chunks: int = 0
    items: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    numbered: bool = False
    total: int = 0
    sequence: str = ""
    end: bytes = b"]"
    final: bool = False
    unchanged: bool = False


def new_merge(
    service_type: str,
    *,
    limits: MergeLimits,
    last_sequence: str = "",
    on_metadata: Callable[[bytes], bytes] | None = None,
) -> Merge:
    """
    Return a merge that has nothing yet.

    Args:
        service_type: ``sweep`` results keep the metadata of their first chunk, all others are a bare array.
        last_sequence: The position that the agent was asked about.
        on_metadata: Given the metadata object of a sweep, JSON without ``hosts``, returns what to write instead.
    """
    return Merge(service_type=service_type, limits=limits, asked_sequence=last_sequence, on_metadata=on_metadata)


def feed(merge: Merge, chunk: ResultsChunk) -> tuple[Merge, bytes]:
    """
    Return the merge with *chunk*, and what of the document can be written now.

    The caller stops reading at the chunk that says it is final.

    Raises:
        MergeError: The chunk is out of place, too much, or not what chunks hold.
        AssertionError: The final chunk was fed before.
    """
    assert not merge.final, "a chunk after the final one"
    numbered, total = _check_place(merge, chunk)
    _check_size(merge, chunk)
    data = chunk.data
    try:
        items, metadata = _open(data)
        body = items.text()
    except UnreadableJson as error:
        raise MergeError("parse", f"{PARSE_FAILED}: {error} (chunk {merge.chunks})") from error
    except DenseJson as error:
        raise MergeError("too_large", f"chunk {merge.chunks}: {error}") from error
    if merge.items + items.count > merge.limits.items_max:
        raise MergeError("too_many", f"more than {merge.limits.items_max} items")
    end = merge.end
    if merge.chunks > 0:
        out = b"," + body if body and merge.items else body
    elif metadata is not None and merge.service_type == _OBJECT_TYPE:
        end = b"]}"
        out = _head(metadata, merge.on_metadata) + body
    else:
        out = b"[" + body
    sequence = chunk.current_sequence or merge.sequence
    merged = replace(
        merge,
        chunks=merge.chunks + 1,
        items=merge.items + items.count,
        bytes_in=merge.bytes_in + (len(data) or 1),
        bytes_out=merge.bytes_out + len(out),
        numbered=numbered,
        total=total,
        sequence=sequence,
        end=end,
        final=chunk.is_final,
        unchanged=merge.chunks == 0 and _says_nothing(data) and sequence == merge.asked_sequence,
    )
    return merged, out


def finish(merge: Merge) -> tuple[bytes, MergeResult]:
    """
    Return the end of the document, and what it came to.

    Raises:
        MergeError: The stream ended before its final chunk.
    """
    if not merge.final:
        raise MergeError("no_final", NO_FINAL)
    return merge.end, MergeResult(
        items=merge.items,
        bytes=merge.bytes_out + len(merge.end),
        sequence=merge.sequence,
        has_new_data=not merge.unchanged,
    )


# -- order and size


def _check_place(merge: Merge, chunk: ResultsChunk) -> tuple[bool, int]:
    """Return whether chunks are numbered, and their total, as far as is known with *chunk*."""
    index, position, said = chunk.chunk_index, merge.chunks, chunk.total_chunks
    if said < 0 or (said and merge.total and said != merge.total):
        raise MergeError("total", f"chunk {position} says {said} chunks in all, before it was {merge.total}")
    total = said or merge.total
    numbered = merge.numbered or index != 0 or total != 0
    if numbered:
        if not merge.numbered and position > 1:
            raise MergeError("duplicate", f"chunk 0 came {position} times")
        if index > position:
            raise MergeError("gap", f"chunk {index} came where {position} was due")
        if index < 0 or index < position - 1:
            raise MergeError("order", f"chunk {index} came where {position} was due")
        if index < position:
            raise MergeError("duplicate", f"chunk {index} came twice")
    if total:
        if position >= total:
            raise MergeError("total", f"more than {total} chunks")
        if chunk.is_final != (position == total - 1):
            ends = "ends" if chunk.is_final else "goes on"
            raise MergeError("total", f"the stream {ends} after chunk {position} of {total}")
    return numbered, total


def _check_size(merge: Merge, chunk: ResultsChunk) -> None:
    limits, size = merge.limits, len(chunk.data)
    if merge.chunks >= limits.chunks_max:
        raise MergeError("too_many", f"more than {limits.chunks_max} chunks")
    if not is_kept(chunk.current_sequence):
        raise MergeError("too_large", f"chunk {merge.chunks}: {why_not_kept(chunk.current_sequence)}")
    if size > limits.chunk_bytes_max:
        raise MergeError("too_large", f"chunk {merge.chunks} has {size} bytes, more than {limits.chunk_bytes_max}")
    if merge.bytes_in + (size or 1) > limits.total_bytes_max:
        raise MergeError("too_large", f"more than {limits.total_bytes_max} bytes in all")


# -- one chunk


@dataclass(frozen=True, slots=True, kw_only=True)
class _Items:
    """
    A chunk's items.

    Attributes:
        parts: Each by itself.
        array: The same as they came, where they came as an array.
        rewrite: Numbers may have to be written as integers.
    """

    parts: Raws = ()
    array: bytes | None = None
    rewrite: bool = False

    @property
    def count(self) -> int:
        return len(self.parts)

    def text(self) -> bytes:
        """Return the items with commas between them. Raises UnreadableJson."""
        if not self.parts:
            return b""
        if self.rewrite:
            return joined(map(with_integers, self.parts))
        return inside(self.array) if self.array is not None else joined(self.parts)


_NONE = _Items()


def _open(data: bytes) -> tuple[_Items, dict[str, msgspec.Raw] | None]:
    """Return a chunk's items and, when it is an object, its metadata. Raises UnreadableJson, DenseJson."""
    if not data:
        return _NONE, None
    if not data.isascii():
        data = sound(data)
    try:
        return _split(data)
    except UnreadableJson as error:
        try:
            repaired = sound(data)
        except UnreadableJson:
            raise error from None
        if repaired == data:
            raise
        return _split(repaired)


def _split(data: bytes) -> tuple[_Items, dict[str, msgspec.Raw] | None]:
    first = data[:1] if data[0] not in WHITE else data.lstrip(WHITE)[:1]
    match first:
        case b"[":
            return _array(data), None
        case b"{":
            return _from_object(data)
        case b"n" if data.strip(WHITE) == b"null":
            return _NONE, None
        case b"":
            raise UnreadableJson("unexpected end of JSON input")
        case _:
            raise UnreadableJson("neither an array nor an object")


def _array(text: bytes) -> _Items:
    return _Items(parts=array_items(text), array=text, rewrite=may_hold_whole_doubles(text))


def _from_object(data: bytes) -> tuple[_Items, dict[str, msgspec.Raw]]:
    members = object_members(data)
    rewrite = may_hold_whole_doubles(data)
    items = _NONE
    for key in ITEM_KEYS:
        value = members.get(key)
        if value is None:
            continue
        found = _usable(bytes(value), rewrite=rewrite)
        if found is not None:
            items = found
            del members[key]
            break
    if rewrite:
        members = {key: with_integers(value) for key, value in members.items()}
    return items, members


def _usable(value: bytes, *, rewrite: bool) -> _Items | None:
    """Return the items that a value of an item key holds; None when it is not of that kind."""
    match value[:1]:
        case b"[":
            return _Items(parts=array_items(value), array=value, rewrite=rewrite)
        case b"{":
            return _Items(parts=tuple(object_members(value).values()), rewrite=rewrite)
        case b"n":
            return _NONE
        case b'"':
            return _quoted(value)
        case _:
            return None


def _quoted(value: bytes) -> _Items | None:
    """Return the items of an array within a string."""
    try:
        inner = sound(_TEXT.decode(value).encode())
        return _array(inner) if inner.lstrip(WHITE)[:1] == b"[" else None
    except UnreadableJson:
        return None


def _says_nothing(data: bytes) -> bool:
    """Whether a chunk is an object without members."""
    return len(data) <= EMPTY_OBJECT_BYTES_MAX and data.translate(None, WHITE) == b"{}"


def _head(metadata: dict[str, msgspec.Raw], on_metadata: Callable[[bytes], bytes] | None) -> bytes:
    """Return the document up to its first item."""
    text = _encode({key: value for key, value in metadata.items() if key != _HOSTS})
    if on_metadata is not None:
        text = on_metadata(text)
    assert text.startswith(b"{") and text.endswith(b"}"), "metadata is an object"
    return text[:-1] + (b"," if len(text) > 2 else b"") + b'"hosts":['


_TEXT = msgspec.json.Decoder(str)
