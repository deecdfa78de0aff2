"""
The actor that knows which agents there are and sees to it that each has its coordinator.

It stands after the agents' supervisor in a rest_for_one group: when that supervisor dies with all its children, the
roster starts again too and puts every agent back, each with the state that its slot kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from serviceradar_poller.agents.coordinator import coordinator
from serviceradar_poller.agents.messages import RenewConnection
from serviceradar_poller.agents.slot import AgentSlot
from serviceradar_poller.logic.backoff import BackoffSettings, delay_s
from serviceradar_poller.otp import (
    Actor,
    AlreadyPresent,
    AlreadyStarted,
    Ref,
    StartFailed,
    SupervisorRef,
    another,
    quote_id,
)

#: Agents started between two looks at the mailbox, so that a large fleet does not block the loop while it starts.
START_SLICE = 50
#: Delay before a coordinator that could not start is tried again.
START_RETRY = BackoffSettings(min_s=1.0, max_s=60.0)


@dataclass(frozen=True, slots=True)
class StartAgents:
    """Start the coordinators of these agents."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StartAgain:
    """A coordinator could not start: try once more."""

    name: str
    attempt: int


@dataclass(frozen=True, slots=True)
class RenewConnections:
    """Certificates changed on disk: every agent that uses one of these files builds its connection anew."""

    files: frozenset[str]


RosterMessage = StartAgents | StartAgain | RenewConnections


class Roster(Actor[RosterMessage]):
    """Keeps every configured agent under its supervisor."""

    def __init__(self, slots: Mapping[str, AgentSlot], *, agents: str, started: Callable[[], object]) -> None:
        """
        Args:
            agents: Tree path of the agents' supervisor.
            started: Called when every coordinator was started once.
        """
        self._slots = slots
        self._agents_path = agents
        self._started = started
        #: What all agents' coordinators have in common.
        self._coordinator = coordinator(next(iter(slots.values())).fleet.resilience) if slots else None

    async def init(self) -> None:
        """Begin to start all agents."""
        self.ref.cast(StartAgents(tuple(self._slots)))

    async def handle(self, message: RosterMessage) -> None:
        """Start agents, and pass on what concerns them."""
        match message:
            case StartAgents(names):
                for name in names[:START_SLICE]:
                    await self._start(name, attempt=0)
                if rest := names[START_SLICE:]:
                    self.ref.cast(StartAgents(rest))
                else:
                    self._started()
            case StartAgain(name, attempt):
                await self._start(name, attempt)
            case RenewConnections(files):
                self._renew(files)

    async def _start(self, name: str, attempt: int) -> None:
        supervisor = self.system.whereis(self._agents_path)
        assert isinstance(supervisor, SupervisorRef)
        slot = self._slots[name]
        assert self._coordinator is not None
        try:
            await supervisor.start_child(another(self._coordinator, quote_id(name), slot))
        except (AlreadyStarted, AlreadyPresent):
            return  # it outlived the last roster, running or waiting in quarantine
        except StartFailed:
            # The kernel has told of the failure; the other agents must not wait for this one.
            wait_s = delay_s(START_RETRY, attempt, slot.fleet.env.rng.random())
            self.send_after(wait_s, StartAgain(name, attempt + 1))

    def _renew(self, files: frozenset[str]) -> None:
        for slot in self._slots.values():
            security = slot.config.security
            if security is None or files.isdisjoint(
                (security.tls.cert_file, security.tls.key_file, security.tls.ca_file)
            ):
                continue
            connection = self.system.whereis(f"{self._agents_path}/{quote_id(slot.name)}/connection")
            if isinstance(connection, Ref):
                connection.cast(RenewConnection())
