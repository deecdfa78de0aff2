"""All of observation put together: one bus with the log, the metrics and the state behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any

from serviceradar_poller.config.model import AgentConfig, LoggingConfig
from serviceradar_poller.env import Clock
from serviceradar_poller.observe.bridge import LoggingBridge
from serviceradar_poller.observe.bus import EventBus
from serviceradar_poller.observe.endpoints import Sources
from serviceradar_poller.observe.levels import Level
from serviceradar_poller.observe.log import LogSink
from serviceradar_poller.observe.metrics import MetricsSink
from serviceradar_poller.observe.own_events import ObservedEvent
from serviceradar_poller.observe.state import PollerState
from serviceradar_poller.otp import Tree


class Observation:
    """
    Wire the sinks; ``emit`` works from the first moment, on every thread.

    Args:
        stream: Where log lines go.
        human: Words instead of JSON; ``colour`` only matters then.
    Raises:
        ValueError: the log level has no meaning.
    """

    def __init__(
        self,
        stream: IO[Any],
        *,
        logging: LoggingConfig,
        clock: Clock,
        version: str,
        poller_id: str = "",
        component: str = "poller",
        human: bool = False,
        colour: bool = True,
    ) -> None:
        self.log = LogSink(
            stream,
            level=Level.parse(logging.level, debug=logging.debug),
            component=component,
            poller_id=poller_id,
            human=human,
            colour=colour,
            time=clock.wall,
            time_format=logging.time_format,
        )
        self.metrics = MetricsSink(version=version, poller_id=poller_id)
        self.state = PollerState(clock=clock.monotonic, wall=clock.wall, version=version, poller_id=poller_id)
        self.bus = EventBus()
        # The log is safe on every thread: what the watchdog sees of a stuck loop is written while it is stuck.
        self.bus.add(self.log, name="log", any_thread=True)
        self.bus.add(self.metrics, name="metrics")
        self.bus.add(self.state, name="state")
        self.bridge = LoggingBridge(self.bus.emit)
        self.metrics.pull_counter(
            "log_lines_dropped", "Log lines that could not be written.", lambda: float(self.log.dropped)
        )
        self.metrics.pull_counter(
            "event_sink_failures", "Failures to log, count or remember an event.", lambda: float(self.bus.failures)
        )

    def emit(self, event: ObservedEvent) -> None:
        """Take an event; never blocks, never raises."""
        self.bus.emit(event)

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Make *loop*, which runs on this thread, the home of the sinks, and take in what libraries log."""
        self.bus.bind(loop)
        self.bridge.install()

    def expect_agents(self, agents: Iterable[AgentConfig]) -> None:
        """Show exactly *agents*; what is known of others is forgotten, in metrics and log too."""
        configured = tuple(agents)
        for name in self.state.agent_names() - {agent.name for agent in configured}:
            self.forget_agent(name)
        self.state.expect_agents(configured)

    def forget_agent(self, agent: str) -> None:
        """Forget an agent that is no longer configured."""
        self.state.forget_agent(agent)
        self.metrics.forget_agent(agent)
        self.log.forget_agent(agent)

    def observe_lag(self, lag_s: float) -> None:
        """Record how late the event loop ran a timer; for LoopLagMonitor."""
        self.metrics.observe_lag(lag_s)
        self.state.observe_lag(lag_s)

    def sources(
        self,
        tree: Callable[[], Tree | None],
        *,
        statuses: Callable[[], Mapping[str, object]] = dict,
        spool: Callable[[], Mapping[str, object]] = dict,
    ) -> Sources:
        """Return what HttpServer answers from."""
        return Sources(
            state=self.state,
            metrics=self.metrics,
            tree=tree,
            log_lines_dropped=lambda: self.log.dropped,
            statuses=statuses,
            spool=spool,
        )

    def close(self) -> int:
        """Flush the log, within a second, and let go of loop and logging; return how many lines were lost."""
        self.bridge.remove()
        self.bus.unbind()
        return self.log.close()
