"""Clients that were replaced: each is closed when nobody needs it any more, and none is left open."""

from __future__ import annotations

import asyncio

from serviceradar_poller.agents.slot import AgentSlot
from serviceradar_poller.env import AgentClient

#: Between two looks at whether a retired client is idle.
RETIRE_LOOK_S = 0.5


class Retirement:
    """The clients that one agent's connection has put out of use and that are not closed yet."""

    __slots__ = ("_clients", "_slot")

    def __init__(self, slot: AgentSlot) -> None:
        self._slot = slot
        self._clients: set[AgentClient] | None = None  # most agents never have one

    def add(self, client: AgentClient) -> None:
        """Take *client* over: it is in use no more."""
        self._clients = (self._clients or set()) | {client}

    async def drain(self, client: AgentClient, *, within_s: float) -> None:
        """Close *client* once the calls that are under way on it have ended, after *within_s* in any case."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + within_s
        while self._slot.calls.get(client) and loop.time() < until_s:  # noqa: ASYNC110 — rare, and nothing tells
            await asyncio.sleep(RETIRE_LOOK_S)
        await self._close(client)

    async def close(self) -> None:
        """Close all that are left, whatever is under way on them."""
        for client in tuple(self._clients or ()):
            await self._close(client)

    async def _close(self, client: AgentClient) -> None:
        await client.close()
        if self._clients is not None:
            self._clients = (self._clients - {client}) or None
