"""
What the log has told already, so that it tells changes and not states.

A check that goes on failing, an agent that goes on being unwell and a check that goes on missing its time
are told once, at the level of the table, from then on at debug level; the return to normal is an info line.
Only what is not normal is remembered, at most STATES_MAX entries; beyond it the oldest is forgotten and
counted, which costs a repeated line, never a missing one.
"""

from __future__ import annotations

from serviceradar_poller.events.polling import AgentConnected, AgentHealth, CheckFinished, CheckMissed
from serviceradar_poller.observe.levels import Level

#: One entry is one troubled check: more than a poller of 10,000 agents with 5 checks each has.
STATES_MAX = 65_536

_Key = tuple[str, ...]


class Changes:
    """Remember what is not normal, by agent and check."""

    def __init__(self, *, states_max: int = STATES_MAX) -> None:
        self._states_max = states_max
        self._states: dict[_Key, str] = {}
        self._forgotten = 0

    @property
    def forgotten(self) -> int:
        """Entries given up because there were too many."""
        return self._forgotten

    def __len__(self) -> int:
        return len(self._states)

    def check(self, event: CheckFinished) -> tuple[Level, str] | None:
        """Return the level and message where *event* is a change; None where the check goes on as before."""
        states = self._states
        if not states and event.outcome == "available":
            return None
        key = ("check", event.agent, event.service_type, event.service_name, event.kind)
        if event.outcome == "available":
            states.pop(("missed", *key[1:4]), None)
            before = states.pop(key, None)
            return None if before is None else (Level.INFO, "check recovered")
        if states.get(key) == event.outcome:
            return None
        self._remember(key, event.outcome)
        if event.outcome == "failed":
            return Level.WARN, "check failed"
        return Level.INFO, "check is unavailable"

    def missed(self, event: CheckMissed) -> bool:
        """Say whether the check has had no good outcome since it was last told."""
        key = ("missed", event.agent, event.service_type, event.service_name)
        if key in self._states:
            return False
        self._remember(key, "missed")
        return True

    def health(self, event: AgentHealth) -> bool:
        """Say whether the agent's health is another than the one told last."""
        key = ("health", event.agent)
        if self._states.get(key) == event.status:
            return False
        self._remember(key, event.status)
        return True

    def connected(self, event: AgentConnected) -> None:
        """Forget the health of an agent that was away: the next answer is told again."""
        self._states.pop(("health", event.agent), None)

    def forget_agent(self, agent: str) -> None:
        """Forget all of an agent that is no longer configured."""
        for key in [key for key in self._states if key[1] == agent]:
            del self._states[key]

    def _remember(self, key: _Key, state: str) -> None:
        if key not in self._states and len(self._states) >= self._states_max:
            del self._states[next(iter(self._states))]
            self._forgotten += 1
        self._states[key] = state
