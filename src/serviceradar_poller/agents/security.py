"""
The actor that holds what an agent is trusted with: so far, the id it answers under.

Agents overwrite the id they are asked for with their own configured one. That is legal, yet an operator wants to hear
of it once: core files the answers under the agent's word.
"""

from __future__ import annotations

from serviceradar_poller.agents.messages import AnsweredAs
from serviceradar_poller.agents.slot import AgentSlot
from serviceradar_poller.events.polling import AgentIdMismatch
from serviceradar_poller.otp import Actor

#: Different ids remembered of one agent; one that makes up more is told about anew each time it does.
CLAIMS_MAX = 16


_NONE: frozenset[str] = frozenset()


class SecurityContext(Actor[AnsweredAs]):
    """One agent's security context."""

    __slots__ = ("_claims", "_slot")
    rests = True

    def __init__(self, slot: AgentSlot) -> None:
        self._slot = slot
        self._claims = _NONE

    async def handle(self, message: AnsweredAs) -> None:
        """Tell of an id that was not asked for, once."""
        claimed = message.claimed
        if claimed == self._slot.name or claimed in self._claims:
            return
        if len(self._claims) < CLAIMS_MAX:
            self._claims |= {claimed}
        self._slot.fleet.env.emit(AgentIdMismatch(agent=self._slot.name, claimed=claimed))
