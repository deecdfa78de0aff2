"""
Agents and a core without sockets, for tests on a virtual clock.

They keep the contract of the Protocols in ``env``: lazy, every failure a CallError, every call within its timeout.
What a peer does is set by attributes at any time, also while calls wait.
"""

from __future__ import annotations

import asyncio
import random  # noqa: TID251 — its seed is the caller's
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Iterator
from typing import TypeVar

from serviceradar_poller.config.model import SecurityConfig
from serviceradar_poller.env import Env, Event
from serviceradar_poller.errors import CallError, GrpcCode, Layer, ResolveError
from serviceradar_poller.wire import codec
from serviceradar_poller.wire.messages import (
    PollerStatusChunk,
    PollerStatusResponse,
    ResultsChunk,
    ResultsRequest,
    ResultsResponse,
    ServiceStatus,
    StatusRequest,
    StatusResponse,
)

T = TypeVar("T")

REFUSED = CallError(layer=Layer.TCP, code=GrpcCode.UNAVAILABLE, reason="refused", detail="connection refused")
CLOSED = CallError(layer=Layer.GRPC, code=GrpcCode.CANCELLED, reason="closed", detail="closed by this side")
CANCELLED = CallError(
    layer=Layer.CONFIG, code=GrpcCode.CANCELLED, reason="cancelled", detail="the stream was cancelled"
)
TIMEOUT = CallError(layer=Layer.DEADLINE, code=GrpcCode.DEADLINE_EXCEEDED, reason="timeout", detail="no answer")


class LoopClock:
    """The running loop's time, virtual or not; wall time is the same counted from a fixed day."""

    WALL_EPOCH_S = 1_800_000_000.0

    def monotonic(self) -> float:
        """Seconds of the running loop."""
        return asyncio.get_running_loop().time()

    def wall(self) -> float:
        """Unix seconds."""
        return self.WALL_EPOCH_S + self.monotonic()


class Peer:
    """
    What agents and core have in common.

    Attributes:
        error: Every call fails with it.
        hang: Calls wait until their timeout, or until this is cleared.
        latency_s: Before every answer.
        generation: Bumped by kill_connections(): calls that wait then fail as a reset connection does.
    """

    def __init__(self) -> None:
        self.error: CallError | None = None
        self.latency_s = 0.001
        self._released = asyncio.Event()
        self._released.set()
        self.calls: list[tuple[float, str]] = []

    @property
    def released(self) -> asyncio.Event:
        """Set while calls need not wait."""
        return self._released

    @property
    def hang(self) -> bool:
        """Whether calls wait."""
        return not self._released.is_set()

    @hang.setter
    def hang(self, value: bool) -> None:
        if value:
            self._released.clear()
        else:
            self._released.set()

    async def answer(self, name: str, make: Callable[[], T], timeout_s: float, closed: asyncio.Event) -> T:
        """Return what *make* makes, as this peer behaves now; raises CallError."""
        self.calls.append((asyncio.get_running_loop().time(), name))
        if closed.is_set():
            raise CLOSED
        if timeout_s <= 0:
            raise TIMEOUT
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.sleep(self.latency_s)
                await _first(self._released.wait(), closed.wait())
        except TimeoutError:
            raise TIMEOUT from None
        if closed.is_set():
            raise CLOSED
        if self.error is not None:
            raise self.error.with_traceback(None)
        return make()


class FakeAgent(Peer):
    """
    An agent.

    Attributes:
        status: Makes the answer to a status request.
        results: Makes the answer to a results request.
        stream: Makes what a streamed result holds, each taken when it is read: a chunk, seconds to wait, or the error
            that ends it.
        streamed: How much of all streams has been taken.
        streams_cancelled: Streams that their reader cancelled before their end.
        health: What it says of itself.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.health = "SERVING"
        self.status: Callable[[StatusRequest], StatusResponse] = lambda request: StatusResponse(
            available=True, message=b'{"ok":true}', response_time=1_000, agent_id=self.name
        )
        self.results: Callable[[ResultsRequest], ResultsResponse] = lambda request: ResultsResponse(
            available=True, data=b"{}", agent_id=self.name, has_new_data=True, current_sequence="1"
        )
        self.stream: Callable[[ResultsRequest], Iterable[ResultsChunk | CallError | float]] = lambda request: (
            ResultsChunk(data=b"[]", is_final=True, total_chunks=1, current_sequence="1"),
        )
        self.streamed = 0
        self.streams_cancelled = 0
        self.requests: list[StatusRequest | ResultsRequest] = []
        self.hang_methods: set[str] = set()


class FakeAgentClient:
    """A client for a FakeAgent."""

    def __init__(self, agent: FakeAgent) -> None:
        self._agent = agent
        self._closed = asyncio.Event()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed.is_set()

    async def check_health(self, *, timeout_s: float) -> str:
        """Return the agent's health."""
        return await self._ask("health", lambda: self._agent.health, timeout_s)

    async def get_status(self, request: StatusRequest, *, timeout_s: float) -> StatusResponse:
        """Ask for a status."""
        self._agent.requests.append(request)
        return await self._ask("status", lambda: self._agent.status(request), timeout_s)

    async def get_results(self, request: ResultsRequest, *, timeout_s: float) -> ResultsResponse:
        """Ask for results."""
        self._agent.requests.append(request)
        return await self._ask("results", lambda: self._agent.results(request), timeout_s)

    def stream_results(self, request: ResultsRequest, *, timeout_s: float) -> FakeResultsStream:
        """Ask for results chunk by chunk."""
        return FakeResultsStream(self._agent, request, timeout_s, self._closed)

    async def close(self) -> None:
        """Close."""
        self._closed.set()

    async def _ask(self, name: str, make: Callable[[], T], timeout_s: float) -> T:
        if name in self._agent.hang_methods:
            self._agent.calls.append((asyncio.get_running_loop().time(), name))
            try:
                async with asyncio.timeout(max(timeout_s, 0)):
                    await self._closed.wait()
            except TimeoutError:
                raise TIMEOUT from None
            raise CLOSED
        return await self._agent.answer(name, make, timeout_s, self._closed)


class FakeResultsStream:
    """A streamed result of a FakeAgent; ``stream`` in its hang_methods holds back every chunk."""

    def __init__(self, agent: FakeAgent, request: ResultsRequest, timeout_s: float, closed: asyncio.Event) -> None:
        self._agent = agent
        self._request = request
        self._until_s = asyncio.get_running_loop().time() + timeout_s
        self._closed = closed
        self._cancelled = asyncio.Event()
        self._source: Iterator[ResultsChunk | CallError | float] | None = None
        self._ended = False
        self._failure: CallError | None = None

    async def read(self) -> ResultsChunk | None:
        """Return the next chunk."""
        if self._ended:
            if self._failure is not None:
                raise self._failure.with_traceback(None)
            return None
        try:
            chunk = await self._next()
        except CallError as error:
            self._ended, self._failure = True, error
            raise
        except asyncio.CancelledError:
            await self.cancel()
            raise
        self._ended = chunk is None
        return chunk

    async def cancel(self) -> None:
        """End the stream."""
        if not self._ended:
            self._ended, self._failure = True, CANCELLED
            self._agent.streams_cancelled += 1
            self._cancelled.set()

    async def _next(self) -> ResultsChunk | None:
        agent = self._agent
        if self._source is None:
            agent.calls.append((asyncio.get_running_loop().time(), "stream"))
            agent.requests.append(self._request)
            self._source = iter(agent.stream(self._request))
        wait_s = agent.latency_s
        while True:
            await self._pause(wait_s)
            item = next(self._source, None)
            match item:
                case ResultsChunk():
                    agent.streamed += 1
                    return item
                case CallError():
                    raise item.with_traceback(None)
                case None:
                    return None
            wait_s = float(item)

    async def _pause(self, wait_s: float) -> None:
        """Let time pass as the agent behaves now. Raises CallError."""
        agent = self._agent
        rest_s = self._until_s - asyncio.get_running_loop().time()
        if rest_s <= 0:
            raise TIMEOUT.with_traceback(None)
        try:
            async with asyncio.timeout(rest_s):
                await _first(asyncio.sleep(wait_s), self._closed.wait(), self._cancelled.wait())
                if "stream" in agent.hang_methods:
                    await _first(self._closed.wait(), self._cancelled.wait())
                await _first(agent.released.wait(), self._closed.wait(), self._cancelled.wait())
        except TimeoutError:
            raise TIMEOUT.with_traceback(None) from None
        if self._cancelled.is_set():
            raise CANCELLED.with_traceback(None)
        if self._closed.is_set():
            raise CLOSED.with_traceback(None)
        if agent.error is not None:
            raise agent.error.with_traceback(None)


class FakeCore(Peer):
    """
    A core that keeps what it was told.

    Attributes:
        received: What it answers.
        refuse: Gives the error that a report of such statuses is answered with.
        reports: Every accepted report: arrival, transport, unix timestamp, statuses.
        streams: The chunks of every stream that came to its end, accepted or not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.received = True
        self.stream_error: CallError | None = None
        self.refuse: Callable[[tuple[ServiceStatus, ...]], CallError | None] = lambda statuses: None
        self.reports: list[tuple[float, str, int, tuple[ServiceStatus, ...]]] = []
        self.streams: list[tuple[PollerStatusChunk, ...]] = []

    def accept(self, transport: str, timestamp: int, statuses: tuple[ServiceStatus, ...]) -> PollerStatusResponse:
        """Take a report in."""
        if transport == "stream" and self.stream_error is not None:
            raise self.stream_error.with_traceback(None)
        refusal = self.refuse(statuses)
        if refusal is not None:
            raise refusal.with_traceback(None)
        if self.received:
            self.reports.append((asyncio.get_running_loop().time(), transport, timestamp, statuses))
        return PollerStatusResponse(received=self.received)

    def latest(self) -> dict[tuple[str, str], ServiceStatus]:
        """Return the newest status by agent and service."""
        newest: dict[tuple[str, str], ServiceStatus] = {}
        for _, _, _, statuses in self.reports:
            for status in statuses:
                newest[status.agent_id, status.service_name] = status
        return newest


class FakeCoreClient:
    """A client for a FakeCore."""

    def __init__(self, core: FakeCore) -> None:
        self._core = core
        self._closed = asyncio.Event()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed.is_set()

    async def report_status_raw(self, report: bytes, *, timeout_s: float) -> PollerStatusResponse:
        """Send a report."""
        decoded = codec.decode_poller_status_request(report)
        return await self._core.answer(
            "unary",
            lambda: self._core.accept("unary", decoded.timestamp, decoded.services),
            timeout_s,
            self._closed,
        )

    async def stream_status_raw(
        self, chunks: AsyncIterable[bytes], count: int, *, timeout_s: float
    ) -> PollerStatusResponse:
        """Send a stream."""
        decoded = [codec.decode_poller_status_chunk(chunk) async for chunk in chunks]
        assert len(decoded) == count
        self._core.streams.append(tuple(decoded))
        statuses = tuple(status for chunk in decoded for status in chunk.services)
        return await self._core.answer(
            "stream",
            lambda: self._core.accept("stream", decoded[0].timestamp, statuses),
            timeout_s,
            self._closed,
        )

    async def close(self) -> None:
        """Close."""
        self._closed.set()


class FakeTransport:
    """
    Hands out clients for fakes by address.

    Attributes:
        agents: By address; one that is not there refuses.
        unusable: Settings that can't be used, by address.
        latency_s: How long the making of a client takes, by address.
        making: Clients that are being made, by address.
        clients: Every client made, in order.
        opened: Clients made, by address.
    """

    def __init__(self) -> None:
        self.agents: dict[str, FakeAgent] = {}
        self.the_core = FakeCore()
        self.unusable: dict[str, CallError] = {}
        self.opened: dict[str, int] = {}
        self.latency_s: dict[str, float] = {}
        self.making: dict[str, int] = {}
        self.clients: list[FakeAgentClient | FakeCoreClient] = []

    def add_agent(self, name: str, address: str = "") -> FakeAgent:
        """Make an agent reachable."""
        agent = FakeAgent(name)
        self.agents[address or f"{name}:50051"] = agent
        return agent

    async def agent(self, address: str, security: SecurityConfig | None, *, fresh: bool = False) -> FakeAgentClient:
        """Return a client for the agent at *address*."""
        await self._make(address)
        agent = self.agents.get(address)
        if agent is None:
            agent = FakeAgent("nobody")
            agent.error = REFUSED
        client = FakeAgentClient(agent)
        self.clients.append(client)
        return client

    async def core(self, address: str, security: SecurityConfig | None, *, fresh: bool = False) -> FakeCoreClient:
        """Return a client for the core."""
        await self._make(address)
        client = FakeCoreClient(self.the_core)
        self.clients.append(client)
        return client

    async def _make(self, address: str) -> None:
        unusable = self.unusable.get(address)
        if latency_s := self.latency_s.get(address):
            self.making[address] = self.making.get(address, 0) + 1
            try:
                await asyncio.sleep(latency_s)
            finally:
                self.making[address] -= 1
        self.opened[address] = self.opened.get(address, 0) + 1
        if unusable is not None:
            raise unusable.with_traceback(None)


class FakeResolver:
    """Names that resolve to what ``names`` says, after ``latency_s``."""

    def __init__(self) -> None:
        self.names: dict[str, tuple[str, ...]] = {}
        self.latency_s = 0.0

    async def resolve(self, host: str, *, timeout_s: float, urgent: bool = False) -> tuple[str, ...]:
        """Return the addresses of *host*. Raises ResolveError."""
        await asyncio.sleep(min(self.latency_s, timeout_s))
        if self.latency_s > timeout_s or not self.names.get(host):
            raise ResolveError("no such name, or no answer")
        return self.names[host]


def fake_env(transport: FakeTransport, events: list[Event], *, seed: int = 0) -> Env:
    """Return an environment of fakes on the running loop's time; events are appended to *events*."""
    return Env(
        transport=transport,
        resolver=FakeResolver(),
        emit=events.append,
        clock=LoopClock(),
        rng=random.Random(seed),
    )


async def _first(*waits: Awaitable[object]) -> None:
    """Return when the first of *waits* is over."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]  # noqa: TID251 — ended below, in every path
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
