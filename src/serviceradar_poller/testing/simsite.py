"""A whole poller among fake peers on virtual time: what tests of agents, reporting and the tree set up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TypeVar

from serviceradar_poller.app.poller import Poller, memory_store, new_poller, start_poller
from serviceradar_poller.config.model import (
    AgentConfig,
    CheckConfig,
    PollerConfig,
    ReportingConfig,
    SchedulingConfig,
    SecurityConfig,
)
from serviceradar_poller.env import Event
from serviceradar_poller.reporting.spool import ReportStore
from serviceradar_poller.testing.fakes import FakeAgent, FakeTransport, fake_env

E = TypeVar("E")

PING = CheckConfig(service_type="icmp", service_name="ping", details="9.9.9.9")
UNIT = CheckConfig(service_type="process", service_name="unit", details="sshd")


def agent_config(name: str, *checks: CheckConfig, security: SecurityConfig | None = None) -> AgentConfig:
    """Return an agent with *checks*, two plain ones by default."""
    return AgentConfig(name=name, address=f"{name}:50051", checks=checks or (PING, UNIT), security=security)


def site_config(agents: Iterable[AgentConfig], *, interval_s: float = 10.0) -> PollerConfig:
    """Return a configuration of *agents* with short windows."""
    return PollerConfig(
        agents=tuple(agents),
        core_address="core:50052",
        poller_id="p1",
        poll_interval_s=interval_s,
        scheduling=SchedulingConfig(spread_window_s=1.0, check_timeout_s=interval_s),
        reporting=ReportingConfig(deadline_s=5.0, call_timeout_s=10.0),
    )


class SimSite:
    """
    A poller, its agents and its core.

    Attributes:
        events: Everything that was emitted, in order.
        source_ip: The poller's own address as it was found before the start.
    """

    def __init__(self, config: PollerConfig, *, seed: int = 0) -> None:
        self.config = config
        self.transport = FakeTransport()
        self.agents: dict[str, FakeAgent] = {
            agent.name: self.transport.add_agent(agent.name, agent.address) for agent in config.agents
        }
        self.core = self.transport.the_core
        self.events: list[Event] = []
        self.source_ip = "127.0.0.1"
        self.env = fake_env(self.transport, self.events, seed=seed)

    def with_environ(self, **variables: str) -> SimSite:
        """Set environment variables."""
        self.env = replace(self.env, environ=variables)
        return self

    def make_store(self) -> ReportStore:
        """Return where the poller keeps its reports."""
        return memory_store(self.config, self.env)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Poller]:
        """Run the poller; stop it in order at the end."""
        poller = new_poller(self.config, self.env, source_ip=self.source_ip, store=self.make_store())
        tree = await start_poller(poller)
        try:
            yield poller
        finally:
            await tree.stop()

    def told(self) -> dict[tuple[str, str], bool]:
        """Return the availability that core knows, by agent and service."""
        return {key: status.available for key, status in self.core.latest().items()}

    def of(self, kind: type[E]) -> list[E]:
        """Return the events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]


def now_s() -> float:
    """Return the loop's time."""
    return asyncio.get_running_loop().time()


async def until(condition: Callable[[], object], *, within_s: float = 600.0, step_s: float = 0.01) -> float:
    """Wait until *condition* holds and return how long that took; AssertionError when it takes too long."""
    begin_s = now_s()
    while not condition():
        assert now_s() - begin_s < within_s, f"not within {within_s} s"
        await asyncio.sleep(step_s)
    return now_s() - begin_s
