"""Name every limit that keeps a client of the poller's own port from costing more than it should."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

#: Ended calls of a connection whose end is remembered, to tell late frames from wrong ones. h2's own is 65,536.
CLOSED_STREAMS_MAX: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class PortLimits:
    """What the clients of one port are allowed."""

    connections_max: int = 32
    """Sockets, those in a TLS handshake included: one with asyncio's TLS holds up to half a megabyte. Beyond them
    a connection without a call makes way, or else one that has had calls all the time, the oldest of them first;
    when there is none that may be made to go, the new one is closed."""

    accepts_burst: int = 64
    """Connections that are let in at once: each may send frames_burst frames, and TLS has its price too."""

    accepts_per_s: float = 20.0
    """Connections that are let in in the long run; the others wait in the kernel."""

    evict_idle_s: float = 1.0
    """A connection is not made to go before it had so long for its handshake, or for its first or next call."""

    evict_busy_s: float = 30.0
    """Nor before it had calls for so long without a pause: else those who hold calls open keep every probe out."""

    handshake_s: float = 5.0
    """For TLS, and again for the client's SETTINGS."""

    idle_s: float = 600.0
    """A connection without a call ends after this; gRPC's clients connect again when they want something."""

    streams_max: int = 16
    """Calls at the same time, advertised as MAX_CONCURRENT_STREAMS, for each connection. There is no smaller number
    for all connections together: a few clients would take all of it, and probes would fail."""

    call_s_max: float = 60.0
    """A call's time; a health watch alone lasts as long as its client wants, once its request is there."""

    request_bytes_max: int = 16 * 1024
    """Of one request, checked at its length prefix. Also what one call may send ahead of its reader."""

    frame_bytes_max: int = 16_384
    """Of one frame, checked at its header: the protocol's default, of which nobody is told anything else."""

    header_list_bytes_max: int = 16 * 1024
    """Advertised as MAX_HEADER_LIST_SIZE and checked while decoding; grpc-core's value."""

    continuations_max: int = 4
    """CONTINUATION frames in a row: a header block is kept until it is whole."""

    frames_burst: int = 300
    """Frames of any kind that a connection may send at once, and requests in them; a health check takes about five.
    A frame of some KiB counts as several. It bounds floods of PING, SETTINGS, WINDOW_UPDATE, empty DATA, of tiny
    requests in one frame, and of calls that are reset as soon as they are begun."""

    frames_per_s: float = 100.0
    """Frames that a connection may send in the long run."""

    slice_bytes: int = 4 * 1024
    """What is read of one connection before everything else on the loop gets its turn; some 450 frames at most."""

    output_bytes_max: int = 256 * 1024
    """Output that the client has not taken; beyond it the connection ends."""

    write_stall_s: float = 20.0
    """A client that takes nothing for so long, while there is something for it, loses its connection."""

    faults_told_max: int = 10
    """Exceptions in the code of the port that are written to the log, of each listener; all are counted."""


class Refusal(StrEnum):
    """Why a client did not get what it asked for."""

    CONNECTIONS = "connections"
    """There were connections_max, none of which may be made to go yet."""
    EVICTED = "evicted"
    """It had no call, or had calls for long, and another client wanted its place."""
    TLS = "tls"
    """No TLS, no acceptable certificate, no HTTP/2 in it, or too slow."""
    SILENT = "silent"
    """No SETTINGS in time."""
    PROTOCOL = "protocol"
    """What it sent is not HTTP/2."""
    FLOOD = "flood"
    """More frames than it may send."""
    NOT_READING = "not_reading"
    """It took none of its answers."""
    DEADLINE = "deadline"
    """A call beyond its time."""
    REQUEST = "request"
    """A call that is no gRPC, or whose request is too large, cut or unreadable."""
    STOPPING = "stopping"
    """A call while the server stops."""
    FAULT = "fault"
    """Our own code raised."""


@dataclass(slots=True)
class Refusals:
    """
    Counts of what was refused, by reason.

    One object may outlive the servers that count in it.
    """

    by_reason: Counter[Refusal] = field(default_factory=Counter)

    def count(self, reason: Refusal) -> None:
        """Add one."""
        self.by_reason[reason] += 1

    @property
    def total(self) -> int:
        """All of them."""
        return self.by_reason.total()
