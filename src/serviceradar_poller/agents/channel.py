"""
The way every call to an agent takes: fault, breaker, rate limit, gate, then the client; what came of it is told on.

A channel is used by many tasks at once. It keeps nothing of its own: state stands in the slot, decisions are the
connection's and the breaker's, which hear of successes and failures by message. A call that was not made (breaker,
limits) is no failure of the agent, and is not told. One that finds no client, or loses it, has no outcome: the
connection's actor has ended, and whoever makes the call is about to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

from serviceradar_poller.agents.evidence import CallCut, shows_life
from serviceradar_poller.agents.messages import CallFailed, CallSucceeded
from serviceradar_poller.agents.slot import AgentSlot, Reach
from serviceradar_poller.env import AgentClient, ResultsStream
from serviceradar_poller.errors import CallError, GrpcCode, Layer
from serviceradar_poller.logic.breaker import BreakerState, allows
from serviceradar_poller.logic.bucket import take
from serviceradar_poller.wire.messages import (
    ResultsChunk,
    ResultsRequest,
    ResultsResponse,
    StatusRequest,
    StatusResponse,
)

#: The reason of a call that the breaker did not let through.
BREAKER_OPEN = "breaker_open"


class AgentChannel:
    """Calls to one agent."""

    __slots__ = ("_slot", "_tell")

    def __init__(self, slot: AgentSlot, *, tell: Callable[[CallSucceeded | CallFailed], object]) -> None:
        self._slot = slot
        self._tell = tell

    async def get_status(self, request: StatusRequest, *, timeout_s: float) -> StatusResponse:
        """Ask for the status of one check; raises CallError, CallCut."""
        permit = self._admit_now(timeout_s) or await self._admit(timeout_s)
        try:
            answer = await permit.client.get_status(request, timeout_s=permit.rest_s)
        except CallError as error:
            raise permit.failed(error) from None
        finally:
            permit.end()
        permit.answered()
        return answer

    async def get_results(self, request: ResultsRequest, *, timeout_s: float) -> ResultsResponse:
        """Ask for a result set in one message; raises CallError, CallCut."""
        permit = self._admit_now(timeout_s) or await self._admit(timeout_s)
        try:
            answer = await permit.client.get_results(request, timeout_s=permit.rest_s)
        except CallError as error:
            raise permit.failed(error) from None
        finally:
            permit.end()
        permit.answered()
        return answer

    async def stream_results(self, request: ResultsRequest, *, timeout_s: float) -> AgentStream:
        """
        Ask for a result set chunk by chunk, all of it within *timeout_s*; the first read makes the call.

        Raises:
            CallError: The agent is not to be asked now; what the call itself comes to is for the reader.
            CallCut: There is nobody to ask it by.
        """
        permit = await self._admit(timeout_s)
        return AgentStream(permit, permit.client.stream_results(request, timeout_s=permit.rest_s))

    def _admit_now(self, timeout_s: float) -> _Permit | None:
        """Let a call through where nothing is in its way: nearly every one; for None, `_admit` decides."""
        slot = self._slot
        client = slot.client
        if (
            slot.reach is not Reach.UP
            or slot.breaker.state is not BreakerState.CLOSED
            or client is None
            or slot.fault is not None
        ):
            return None
        now_s = slot.fleet.env.clock.monotonic()
        bucket, wait_s = take(slot.bucket, slot.rate, now_s)
        if wait_s > 0:
            return None
        slot.bucket = bucket
        return _Permit(slot, client, self._tell, now_s, now_s + timeout_s, trial=False)

    async def _admit(self, timeout_s: float) -> _Permit:
        """Let a call through breaker, rate limit and gate; raises CallError or CallCut where it is not to be made."""
        slot = self._slot
        begin_s = slot.fleet.env.clock.monotonic()
        if slot.fault is not None:
            raise slot.fault.with_traceback(None)
        trial = slot.breaker.state is BreakerState.HALF_OPEN and not slot.trial
        if not allows(slot.breaker) and not trial:
            raise _refused_by_breaker(slot)
        slot.trial = slot.trial or trial  # half open: this one call finds out
        try:
            if slot.making is not None:
                await self._wait_client(slot.making, timeout_s)
            await self._wait_turn(begin_s + timeout_s)
            if slot.client is None:
                raise CallCut
        except BaseException:
            slot.trial = slot.trial and not trial
            raise
        return _Permit(slot, slot.client, self._tell, begin_s, begin_s + timeout_s, trial)

    async def _wait_client(self, making: asyncio.Event, timeout_s: float) -> None:
        """Wait for the agent's first client; raises CallError where there can't be one, or not in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await making.wait()
        except TimeoutError:
            raise _not_made("no_connection", "certificate files are still being judged", GrpcCode.UNAVAILABLE) from None
        if self._slot.fault is not None:
            raise self._slot.fault.with_traceback(None)

    async def _wait_turn(self, until_s: float) -> None:
        now_s = self._slot.fleet.env.clock.monotonic()  # the client may have been waited for
        wait_s = self._turn_s(now_s, until_s)
        if self._slot.reach is not Reach.UP:
            wait_s = max(wait_s, self._admission_s(now_s, until_s))
        if wait_s > 0:
            await asyncio.sleep(wait_s)

    def _turn_s(self, now_s: float, until_s: float) -> float:
        """Return how long to wait for the rate limit; raises CallError when that is too long."""
        slot = self._slot
        bucket, wait_s = take(slot.bucket, slot.rate, now_s)
        if now_s + wait_s >= until_s:
            raise _not_made("rate_limited", f"more than {slot.rate.rate_per_s:g} requests per second to this agent")
        slot.bucket = bucket
        return wait_s

    def _admission_s(self, now_s: float, until_s: float) -> float:
        """Return how long to wait before a connection may be opened; raises CallError when that is too long."""
        slot = self._slot
        gate = slot.fleet.gate
        if slot.reach is Reach.DOWN:
            # The probes find out when it is back; a check tries as well when that takes nothing from the others.
            if gate.reserve(wait_s_max=0.0) is None:
                assert slot.lost is not None
                raise slot.lost.with_traceback(None)
            return 0.0
        if slot.admitted_s is None:
            wait_s = gate.reserve(wait_s_max=max(until_s - now_s, 0.0))
            if wait_s is None:
                raise _not_made("connect_limited", "too many new connections; this agent's turn did not come in time")
            slot.admitted_s = now_s + wait_s  # for all calls that wait for this connection
        if slot.admitted_s >= until_s:
            raise _not_made("connect_limited", "too many new connections; this agent's turn did not come in time")
        return max(slot.admitted_s - now_s, 0.0)


class _Permit:
    """One call that was let through, from its admission to its end; what came of it is told once."""

    __slots__ = ("_begin_s", "_ended", "_slot", "_tell", "_trial", "_until_s", "client")

    def __init__(
        self,
        slot: AgentSlot,
        client: AgentClient,
        tell: Callable[[CallSucceeded | CallFailed], object],
        begin_s: float,
        until_s: float,
        trial: bool,
    ) -> None:
        self.client = client
        self._slot = slot
        self._tell = tell
        self._begin_s = begin_s
        self._until_s = until_s
        self._trial = trial
        self._ended = False
        slot.calls[client] = slot.calls.get(client, 0) + 1

    @property
    def rest_s(self) -> float:
        """What is left of the call's time."""
        return self._until_s - self._slot.fleet.env.clock.monotonic()

    def answered(self) -> None:
        """Take note of an answer; one over a connection that was replaced says nothing of the one in use."""
        slot = self._slot
        if slot.client is not self.client:
            return
        slot.answered_s = slot.fleet.env.clock.monotonic()
        breaker = slot.breaker
        if slot.reach is not Reach.UP or breaker.failures or breaker.state is not BreakerState.CLOSED:
            self._tell(CallSucceeded())

    def failed(self, failure: CallError) -> CallError:
        """
        Tell of a failure, and return it as the caller shall see it.

        Raises:
            CallCut: It is none.
        """
        slot = self._slot
        if slot.client is not self.client:
            if failure.reason != "closed":
                return failure.with_traceback(None)  # nor does a failure
            if slot.client is None:
                raise CallCut
            return _replaced(slot, begun=failure.begun)
        if shows_life(failure):
            slot.answered_s = slot.fleet.env.clock.monotonic()
        error = failure.with_traceback(None)
        self._tell(CallFailed(error, self._begin_s))
        return error

    def end(self) -> None:
        """Give the place back. May be called twice."""
        if self._ended:
            return
        self._ended = True
        calls = self._slot.calls
        calls[self.client] -= 1
        if not calls[self.client]:
            del calls[self.client]
            if not calls:
                calls.clear()  # and with them the table that they were in
        if self._trial:
            self._slot.trial = False


class AgentStream:
    """
    A streamed result of one agent. Each chunk is an answer, and shows that the agent lives; a failure is told once.

    A failure after the first chunk says that the answer had begun: all of it would be read again.

    A stream that is cancelled says nothing of the agent, and neither does one that began and took too long: an agent
    that answers slowly is there.

    Implements env.ResultsStream, with the same duty: read it to its end or to a failure, or cancel it.
    """

    def __init__(self, permit: _Permit, stream: ResultsStream) -> None:
        self._permit = permit
        self._stream = stream
        self._answered = False
        self._failure: CallError | None = None
        self._cancelled = False

    async def read(self) -> ResultsChunk | None:
        """Return the next chunk, None at the end. Raises CallError, CallCut."""
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        try:
            chunk = await self._stream.read()
        except CallError as error:
            self._permit.end()
            failure = _once_begun(error) if self._answered else error
            if not self._cancelled and not (self._answered and error.layer is Layer.DEADLINE):
                failure = self._permit.failed(failure)
            self._failure = failure
            raise self._failure from None
        if chunk is not None or not self._answered:
            self._answered = True
            self._permit.answered()
        if chunk is None:
            self._permit.end()
        return chunk

    async def cancel(self) -> None:
        """End the call; it says nothing of the agent. May be called twice."""
        self._cancelled = True
        self._permit.end()
        await self._stream.cancel()


def _not_made(reason: str, detail: str, code: GrpcCode = GrpcCode.RESOURCE_EXHAUSTED) -> CallError:
    return CallError(layer=Layer.BREAKER, code=code, reason=reason, detail=detail)


def _replaced(slot: AgentSlot, *, begun: bool) -> CallError:
    """Return the failure of a call whose client this side closed for another one: as a rule, why the agent is lost."""
    lost = slot.lost
    if lost is not None:
        detail = f"{lost.detail}; the connection was replaced"
        return CallError(layer=lost.layer, code=lost.code, reason=lost.reason, detail=detail, begun=begun)
    return CallError(
        layer=Layer.GRPC,
        code=GrpcCode.UNAVAILABLE,
        reason="replaced",
        detail="the connection was replaced while the call was under way",
        begun=begun,
    )


def _once_begun(failure: CallError) -> CallError:
    return CallError(layer=failure.layer, code=failure.code, reason=failure.reason, detail=failure.detail, begun=True)


def _refused_by_breaker(slot: AgentSlot) -> CallError:
    since = datetime.fromtimestamp(slot.opened_wall_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return _not_made(BREAKER_OPEN, f"breaker open since {since}: {slot.breaker.cause}", GrpcCode.UNAVAILABLE)
