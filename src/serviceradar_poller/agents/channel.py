"""
The way every call to an agent takes: fault, breaker, rate limit, gate, then the client; what came of it is told on.

A channel is used by many tasks at once. It keeps nothing of its own: state stands in the slot, decisions are the
connection's and the breaker's, which hear of successes and failures by message. A call that was not made (breaker,
limits) is no failure of the agent, and is not told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, TypeVar

from serviceradar_poller.agents.evidence import shows_life
from serviceradar_poller.agents.messages import CallFailed, CallSucceeded
from serviceradar_poller.agents.slot import AgentSlot, Reach
from serviceradar_poller.env import AgentClient
from serviceradar_poller.errors import CallError, GrpcCode, Layer
from serviceradar_poller.logic.breaker import BreakerState
from serviceradar_poller.logic.bucket import take
from serviceradar_poller.wire.messages import ResultsRequest, ResultsResponse, StatusRequest, StatusResponse

T = TypeVar("T")


class AgentChannel:
    """Calls to one agent."""

    def __init__(self, slot: AgentSlot, *, tell: Callable[[CallSucceeded | CallFailed], object]) -> None:
        self._slot = slot
        self._tell = tell

    async def get_status(self, request: StatusRequest, *, timeout_s: float) -> StatusResponse:
        """Ask for the status of one check; raises CallError."""
        return await self._call(lambda client, rest_s: client.get_status(request, timeout_s=rest_s), timeout_s)

    async def get_results(self, request: ResultsRequest, *, timeout_s: float) -> ResultsResponse:
        """Ask for a result set in one message; raises CallError."""
        return await self._call(lambda client, rest_s: client.get_results(request, timeout_s=rest_s), timeout_s)

    async def _call(self, ask: Callable[[AgentClient, float], Coroutine[Any, Any, T]], timeout_s: float) -> T:
        slot = self._slot
        begin_s = slot.fleet.env.clock.monotonic()
        if slot.fault is not None:
            raise slot.fault.with_traceback(None)
        if slot.breaker.state is BreakerState.CLOSED:
            return await self._ask(ask, begin_s, begin_s + timeout_s)
        if slot.breaker.state is BreakerState.OPEN or slot.trial:
            raise _refused_by_breaker(slot)
        slot.trial = True  # half open: this one call finds out
        try:
            return await self._ask(ask, begin_s, begin_s + timeout_s)
        finally:
            slot.trial = False

    async def _ask(
        self, ask: Callable[[AgentClient, float], Coroutine[Any, Any, T]], begin_s: float, until_s: float
    ) -> T:
        slot = self._slot
        clock = slot.fleet.env.clock
        wait_s = self._turn_s(begin_s, until_s)
        if slot.reach is not Reach.UP:
            wait_s = max(wait_s, self._admission_s(begin_s, until_s))
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        client = slot.client
        if client is None:
            raise _not_made("no_connection", "the connection is being rebuilt", GrpcCode.UNAVAILABLE)
        slot.calls[client] = slot.calls.get(client, 0) + 1
        try:
            answer = await ask(client, until_s - clock.monotonic())
        except CallError as failure:
            error = _replaced() if failure.reason == "closed" and slot.client is not client else failure
            if shows_life(error):
                slot.answered_s = clock.monotonic()
            self._tell(CallFailed(error.with_traceback(None), begin_s))
            raise error from None
        finally:
            slot.calls[client] -= 1
            if not slot.calls[client]:
                del slot.calls[client]
        slot.answered_s = clock.monotonic()
        breaker = slot.breaker
        if slot.reach is not Reach.UP or breaker.failures or breaker.state is not BreakerState.CLOSED:
            self._tell(CallSucceeded())
        return answer

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


def _not_made(reason: str, detail: str, code: GrpcCode = GrpcCode.RESOURCE_EXHAUSTED) -> CallError:
    return CallError(layer=Layer.BREAKER, code=code, reason=reason, detail=detail)


def _replaced() -> CallError:
    return CallError(
        layer=Layer.DEADLINE,
        code=GrpcCode.DEADLINE_EXCEEDED,
        reason="timeout",
        detail="the connection gave no sign of life and was replaced",
    )


def _refused_by_breaker(slot: AgentSlot) -> CallError:
    since = datetime.fromtimestamp(slot.opened_wall_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return _not_made("breaker_open", f"breaker open since {since}: {slot.breaker.cause}", GrpcCode.UNAVAILABLE)
