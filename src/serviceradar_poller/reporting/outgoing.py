"""One report on its way to core: which calls are left, what core refused, and the bytes of the next call."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass

from serviceradar_poller.logic.calls import Call, StreamCall, UnaryCall, split_call
from serviceradar_poller.reporting.spool import CallKind, NewCall, ReportStore, StoredCall, StoredReport
from serviceradar_poller.wire.codec import (
    decode_poller_status_request,
    encode_poller_status_chunk,
    encode_poller_status_request,
    status_size,
    total_chunks_field,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedCall:
    """
    A call to core whose parts are read when they are sent, one at a time.

    Attributes:
        read: Gives one part by its index. Raises SpoolReadError.
        size: Encoded bytes of all parts.
        registers: It repeats statuses of a report, to make the poller known.
    """

    kind: CallKind
    count: int
    read: Callable[[int], Awaitable[bytes]]
    size: int
    status_count: int
    registers: bool = False

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """Give all parts in order."""
        for index in range(self.count):
            yield await self.read(index)


def encode_call(call: Call) -> NewCall:
    """Return *call* as a store keeps it."""
    if isinstance(call, StreamCall):
        parts = tuple(map(encode_poller_status_chunk, call.chunks))
        return NewCall(kind="stream", parts=parts, status_count=call.status_count)
    parts = (encode_poller_status_request(call.report),)
    return NewCall(kind="unary", parts=parts, status_count=call.status_count)


def from_memory(call: NewCall, *, registers: bool = False) -> EncodedCall:
    """Return *call*, whose parts are at hand."""

    async def read(index: int) -> bytes:
        return call.parts[index]

    return EncodedCall(
        kind=call.kind,
        count=len(call.parts),
        read=read,
        size=sum(map(len, call.parts)),
        status_count=call.status_count,
        registers=registers,
    )


class Outgoing:
    """
    A stored report and how far it has come.

    Attributes:
        attempts: Failed attempts to send the call at the front; timeouts: those that ran into their deadline.
        refused: Statuses of calls that core will never take; refusal: why.
        last_chance: Core took the report behind this one: what it does with the call at the front decides.
    """

    def __init__(self, store: ReportStore, report: StoredReport) -> None:
        self.store = store
        self.report = report
        self.attempts = 0
        self.timeouts = 0
        self.refused = 0
        self.refusal = ""
        self.last_chance = False
        self._done: set[int] = set()
        self._pieces: tuple[NewCall, ...] = ()  # what is left of the front call, which was too large
        self._whole = True  # no piece of it was refused

    def is_of(self, store: ReportStore, report: StoredReport) -> bool:
        """Tell whether this is *report* of *store*."""
        return self.store is store and self.report.id == report.id

    @property
    def _calls(self) -> list[StoredCall]:
        return [call for call in self.report.calls if call.index not in self._done]

    def front(self) -> EncodedCall | None:
        """Return the next call; None when none is left."""
        if self._pieces:
            return from_memory(self._pieces[0])
        calls = self._calls
        if not calls:
            return None
        call = calls[0]

        # Whoever wrote a large result part by part did not know how many there would be.
        total = total_chunks_field(call.part_count) if call.kind == "stream" else b""

        async def read(index: int) -> bytes:
            return await self.store.part(self.report.id, call.index, index) + total

        return EncodedCall(
            kind=call.kind, count=call.part_count, read=read, size=call.size, status_count=call.status_count
        )

    def take(self) -> int | None:
        """Core has the call at the front; return the index of the stored call that it has all of by that."""
        self.attempts = self.timeouts = 0
        self.last_chance = False
        return self._next()

    def refuse(self, reason: str) -> None:
        """Give the call at the front up: core never takes it."""
        self.attempts = self.timeouts = 0
        self.refusal = reason
        self.refused += self._pieces[0].status_count if self._pieces else self._calls[0].status_count
        self._whole = False
        self._next()

    def _next(self) -> int | None:
        self._pieces = self._pieces[1:]
        if self._pieces:
            return None
        index, whole = self._calls[0].index, self._whole
        self._done.add(index)
        self._whole = True
        return index if whole else None

    def split(self, data: bytes) -> None:
        """Replace the call at the front, whose bytes are *data*, by its halves; one status stays as it is."""
        report = decode_poller_status_request(data)
        if len(report.services) > 1:
            halves = split_call(UnaryCall(report=report, size=len(data)), size_of=status_size)
            self._pieces = (*map(encode_call, halves), *self._pieces[1:])
