"""
The way every call to an agent takes: fault, breaker, rate limit, gate, then the client; what came of it is told on.

A channel is used by many tasks at once. It keeps nothing of its own: state stands in the slot, decisions are the
connection's and the breaker's, which hear of successes and failures by message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, TypeVar

from serviceradar_poller.agents.messages import CallFailed, CallSucceeded
from serviceradar_poller.agents.slot import AgentSlot, Reach
from serviceradar_poller.env import AgentClient
from serviceradar_poller.errors import CallError, GrpcCode, Layer
from serviceradar_poller.logic.breaker import allows
from serviceradar_poller.logic.bucket import BucketSettings, take
from serviceradar_poller.wire.messages import ResultsRequest, ResultsResponse, StatusRequest, StatusResponse

#: Requests to one agent, checks and retries together; far above any schedule, it stops a runaway.
AGENT_RATE = BucketSettings(rate_per_s=100.0, burst=200.0)

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
        clock = slot.fleet.env.clock
        until_s = clock.monotonic() + timeout_s
        if slot.fault is not None:
            raise slot.fault.with_traceback(None)
        if not allows(slot.breaker):
            raise _refused_by_breaker(slot)
        await self._wait_turn(until_s)
        if slot.reach is not Reach.UP:
            await slot.fleet.gate.pass_through()
        client = slot.client
        if client is None:
            raise CallError(
                layer=Layer.TCP,
                code=GrpcCode.UNAVAILABLE,
                reason="no_connection",
                detail="the connection is being rebuilt",
            )
        try:
            answer = await ask(client, until_s - clock.monotonic())
        except CallError as error:
            if slot.client is not client and error.reason == "closed":
                error = CallError(
                    layer=Layer.DEADLINE,
                    code=GrpcCode.DEADLINE_EXCEEDED,
                    reason="timeout",
                    detail="the connection gave no sign of life and was replaced",
                )
            self._tell(CallFailed(error))
            raise error from None
        if slot.reach is not Reach.UP or slot.breaker.failures or slot.breaker.security:
            self._tell(CallSucceeded())
        return answer

    async def _wait_turn(self, until_s: float) -> None:
        slot = self._slot
        now_s = slot.fleet.env.clock.monotonic()
        bucket, wait_s = take(slot.bucket, AGENT_RATE, now_s)
        if now_s + wait_s > until_s:
            raise CallError(
                layer=Layer.BREAKER,
                code=GrpcCode.RESOURCE_EXHAUSTED,
                reason="rate_limited",
                detail=f"more than {AGENT_RATE.rate_per_s:g} requests per second to this agent",
            )
        slot.bucket = bucket
        if wait_s > 0:
            await asyncio.sleep(wait_s)


def _refused_by_breaker(slot: AgentSlot) -> CallError:
    since = datetime.fromtimestamp(slot.opened_wall_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return CallError(
        layer=Layer.BREAKER,
        code=GrpcCode.UNAVAILABLE,
        reason="breaker_open",
        detail=f"breaker open since {since}: {slot.breaker.cause}",
    )
