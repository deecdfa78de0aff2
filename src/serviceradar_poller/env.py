"""Every source of nondeterminism and every outside thing that the program uses, as Protocols."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from serviceradar_poller.config.model import SecurityConfig
from serviceradar_poller.events.kernel import KernelEvent
from serviceradar_poller.events.polling import PollingEvent
from serviceradar_poller.wire.messages import (
    PollerStatusResponse,
    ResultsChunk,
    ResultsRequest,
    ResultsResponse,
    StatusRequest,
    StatusResponse,
)

Event = KernelEvent | PollingEvent
#: Takes an event; never blocks, never raises.
Emit = Callable[[Event], None]


class ResultsStream(Protocol):
    """
    One streamed result, pulled: nothing is asked for before the first read, and no chunk before its own.

    For one task at a time. Read it to its end or to a failure, or else cancel it: until then it holds its call.
    """

    async def read(self) -> ResultsChunk | None:
        """
        Return the next chunk, None at the end of the stream, whether or not a chunk said that it is final.

        Raises:
            CallError: The call failed, took longer than its time, or was cancelled; every later read raises it again.
        """
        ...

    async def cancel(self) -> None:
        """End the call and return when nothing of it is left; a read under way fails. May be called at any time."""
        ...


class AgentClient(Protocol):
    """
    One agent, reached lazily: nothing connects before the first call.

    Every call raises CallError, and nothing else, when it fails; timeouts are seconds.
    A client may be used by many tasks at once and stays usable after every failure.
    """

    async def check_health(self, *, timeout_s: float) -> str:
        """Return the agent's health: ``SERVING``, ``NOT_SERVING``, ``UNKNOWN`` or ``SERVICE_UNKNOWN``."""
        ...

    async def get_status(self, request: StatusRequest, *, timeout_s: float) -> StatusResponse:
        """Ask for the status of one check."""
        ...

    async def get_results(self, request: ResultsRequest, *, timeout_s: float) -> ResultsResponse:
        """Ask for a result set in one message."""
        ...

    def stream_results(self, request: ResultsRequest, *, timeout_s: float) -> ResultsStream:
        """Ask for a result set chunk by chunk; all of it within *timeout_s* from now."""
        ...

    async def close(self) -> None:
        """Close the connection; calls under way fail with CallError. May be called twice."""
        ...


class CoreClient(Protocol):
    """Core, reached lazily; the same rules as for AgentClient."""

    async def report_status_raw(self, report: bytes, *, timeout_s: float) -> PollerStatusResponse:
        """Send an encoded PollerStatusRequest in one call."""
        ...

    async def stream_status_raw(
        self, chunks: AsyncIterable[bytes], count: int, *, timeout_s: float
    ) -> PollerStatusResponse:
        """
        Send *count* encoded PollerStatusChunks as a stream, each taken when there is room for it.

        A PollerError that *chunks* raises ends the call and is raised.
        """
        ...

    async def close(self) -> None:
        """Close the connection; calls under way fail with CallError. May be called twice."""
        ...


class Transport(Protocol):
    """
    Makes clients. Unusable settings (a missing file, a bad certificate) raise CallError(layer=CONFIG).

    Making one may take as long as judging certificate files does; nothing is left of one whose making is cancelled.
    """

    async def agent(self, address: str, security: SecurityConfig | None, *, fresh: bool = False) -> AgentClient:
        """
        Return a client for the agent at *address* (``host:port``; ``:port`` means localhost).

        Args:
            fresh: With the certificate files as they are now, or not at all; else those that were found good before
                may serve while changed ones can't be judged.
        """
        ...

    async def core(self, address: str, security: SecurityConfig | None, *, fresh: bool = False) -> CoreClient:
        """Return a client for the core at *address*; *fresh* as for an agent."""
        ...


class Resolver(Protocol):
    """Name resolution."""

    async def resolve(self, host: str, *, timeout_s: float, urgent: bool = False) -> tuple[str, ...]:
        """
        Return the addresses of *host* in the resolver's order, at least one.

        Args:
            timeout_s: For all of it, waiting for other look-ups included.
            urgent: Waits for no look-up that is not urgent; for core alone.
        Raises:
            ResolveError: It has none, or nobody could tell in time.
        """
        ...


class Clock(Protocol):
    """Time."""

    def monotonic(self) -> float:
        """Seconds that never go backwards; the running loop's own time."""
        ...

    def wall(self) -> float:
        """Unix seconds, which may jump."""
        ...


class SystemClock:
    """The machine's clock."""

    #: Seconds that never go backwards.
    monotonic = staticmethod(time.monotonic)
    #: Unix seconds.
    wall = staticmethod(time.time)


@dataclass(frozen=True, slots=True, kw_only=True)
class Env:
    """
    The outside world, handed down from the composition root.

    Attributes:
        rng: Seedable chance; used for jitter only, never for secrets.
        environ: Environment variables.
        interface_address: The first up, non-loopback interface's IPv4, or empty.
    """

    transport: Transport
    resolver: Resolver
    emit: Emit
    clock: Clock = field(default_factory=SystemClock)
    rng: random.Random = field(default_factory=random.Random)
    environ: Mapping[str, str] = field(default_factory=dict)
    interface_address: Callable[[], str] = lambda: ""
