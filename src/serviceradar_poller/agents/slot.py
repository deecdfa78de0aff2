"""
What is known of one agent: the state that outlives the actors which use it, and the settings they work by.

Each field names the actor that writes it; the others only read. All of them run on one loop, so a read sees a whole
value.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from serviceradar_poller.agents.gate import ConnectGate
from serviceradar_poller.agents.sink import ResultSink
from serviceradar_poller.config.model import AgentConfig, CheckConfig, ResilienceConfig, SchedulingConfig
from serviceradar_poller.env import AgentClient, Env
from serviceradar_poller.errors import CallError
from serviceradar_poller.logic.backoff import RetryBudget
from serviceradar_poller.logic.breaker import Breaker
from serviceradar_poller.logic.bucket import Bucket, BucketSettings
from serviceradar_poller.logic.outcome import CheckSubject, Device, Outcome, Reporter
from serviceradar_poller.logic.reports import CheckId
from serviceradar_poller.logic.schedule import Schedule, Timetable


class Reach(enum.StrEnum):
    """Whether an agent can be reached."""

    UNKNOWN = "unknown"
    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSettings:
    """
    What all agents share.

    Attributes:
        source_ip: Returns the poller's own address as it is known by now; empty while there is none.
        deliver: Takes an outcome towards core; never waits.
        positions: Where results checks go on: what core has accepted.
        results: Takes large results towards core while they come in.
    """

    reporter: Reporter
    timetable: Timetable
    scheduling: SchedulingConfig
    resilience: ResilienceConfig
    source_ip: Callable[[], str]
    deliver: Callable[[Outcome], None]
    positions: Mapping[CheckId, str]
    results: ResultSink
    gate: ConnectGate
    env: Env


@dataclass(slots=True, kw_only=True)
class AgentSlot:
    """
    One agent's lasting state.

    Attributes:
        checks: Every check of the agent by its key.
        override: The agent's address as an environment variable gives it; empty when none does.
        machine: What the agent runs on; without an address until one is found (written by the connection).
        names: What is to be looked up for it; empty once one of them had an address (written by the connection).
        device_known: Set once the first look-up has ended, whatever it found; None when nothing had to be looked up.
        client: The connection under use; None while there is none (written by the connection).
        making: Set when the making of the first client has ended, whatever came of it; None while nobody makes one
            (written by the connection).
        fault: Why there can't be one: unusable settings (written by the connection).
        reach: Written by the connection.
        breaker: Written by the breaker.
        opened_wall_s: Unix seconds at which the breaker opened last (written by the breaker).
        forbidden: The agent refused who we are, and has answered no call since (written by the breaker).
        trial: The one call that a half-open breaker lets through is under way (written by the channel).
        rate: Requests per second to this agent; far above its schedule, it stops a runaway.
        bucket: Written by the channel, which every call passes.
        admitted_s: When calls may use the connection that is being opened; None before one asked for it.
        answered_s: When the agent last answered anything (written by the channel, for a renewal by the connection).
        calls: Calls under way by client (written by the channel).
        lost: Why the agent is DOWN (written by the connection).
        budget: Retries, written by whoever calls.
        schedules: By kind of runner, each written by its runner.
        failing: Keys of checks whose last outcome was a failure; each runner writes its own.
        refused: Keys of checks that were last refused by the breaker; each runner writes its own.
        denied: Keys of checks that the agent last answered with a denial; each runner writes its own.
        tried: The check that was a half-open breaker's trial last (written by the breaker).
        failures: Consecutive failures by key of a results check.
        unsupported: Keys of checks that this version can't run, once that was told.
    """

    config: AgentConfig
    fleet: FleetSettings
    checks: Mapping[str, CheckConfig]
    subjects: dict[str, CheckSubject]
    machine: Device
    breaker: Breaker
    rate: BucketSettings
    bucket: Bucket
    budget: RetryBudget
    override: str = ""
    names: tuple[str, ...] = ()
    device_known: asyncio.Event | None = None
    client: AgentClient | None = None
    making: asyncio.Event | None = None
    fault: CallError | None = None
    reach: Reach = Reach.UNKNOWN
    opened_wall_s: float = 0.0
    forbidden: bool = False
    trial: bool = False
    admitted_s: float | None = None
    answered_s: float = float("-inf")
    calls: dict[AgentClient, int] = field(default_factory=dict)
    lost: CallError | None = None
    schedules: dict[str, Schedule] = field(default_factory=dict)
    failing: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    denied: frozenset[str] = frozenset()
    tried: str = ""
    failures: dict[str, int] = field(default_factory=dict)
    unsupported: frozenset[str] = frozenset()

    @property
    def denied_all(self) -> bool:
        """Whether every check that is asked each cycle, or where there is none every check, was denied last."""
        plain = [key for key, subject in self.subjects.items() if not subject.is_results]
        return self.denied.issuperset(plain or self.subjects)

    @property
    def name(self) -> str:
        """The agent's key in the configuration."""
        return self.config.name

    @property
    def device(self) -> Device:
        """What core is told that the agent runs on, by now: the poller's own address stands for one not found."""
        machine = self.machine
        return machine if machine.ip else Device(ip=self.fleet.source_ip(), host=machine.host)
