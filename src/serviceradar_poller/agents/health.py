"""Ask an agent for its health: the evidence that a failed call alone is not."""

from __future__ import annotations

from serviceradar_poller.agents.evidence import shows_life
from serviceradar_poller.env import AgentClient
from serviceradar_poller.errors import CallError


async def health_of(client: AgentClient, timeout_s: float) -> tuple[str, CallError | None]:
    """Ask for health; an answer of any other kind than 'not there' shows an agent that is alive."""
    try:
        return await client.check_health(timeout_s=timeout_s), None
    except CallError as error:
        if shows_life(error):
            return "SERVICE_UNKNOWN", None
        return "", error
