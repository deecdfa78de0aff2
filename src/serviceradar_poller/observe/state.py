"""
The poller's state as its events tell it, kept in memory for /health, /view and the terminal.

Bounded: by the agents and their checks (AGENTS_MAX, CHECKS_PER_AGENT_MAX), rings of latencies and of notes.
Used on the loop's thread only.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any

from serviceradar_poller.config.model import AGENTS_MAX, AgentConfig
from serviceradar_poller.events import kernel as k
from serviceradar_poller.events import polling as p
from serviceradar_poller.observe.agent_state import AgentState, CheckState
from serviceradar_poller.observe.notes import Notes
from serviceradar_poller.observe.own_events import ObservedEvent
from serviceradar_poller.observe.process import ProcessFigures
from serviceradar_poller.observe.ring import Ring
from serviceradar_poller.observe.snapshot import (
    AGENT_STATES,
    CoreView,
    PollsView,
    SupervisionView,
    ViewSnapshot,
)

CHECKS_PER_AGENT_MAX = 1_000
#: Names of checks that are kept once for all agents; beyond it, once more.
KEYS_SHARED_MAX = 4_096
#: Supervisors that gave up and are remembered until they are back.
GAVE_UP_MAX = 100
#: Reports that were dropped or set aside count as recent for this long; at most so many times are remembered.
RECENT_S = 600.0
RECENT_DROPS_MAX = 10_000
#: Latencies that percentiles of all checks are taken from.
ALL_LATENCIES = 1_024
#: Lag samples kept: a minute, at one per second.
LAGS = 60


class PollerState:
    """
    Remember what events tell.

    Args:
        clock: Monotonic seconds.
        wall: Unix seconds.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
        version: str = "",
        poller_id: str = "",
        poll_interval_s: float = 0.0,
    ) -> None:
        self._clock = clock
        self._wall = wall
        self._version = version
        self._poller_id = poller_id
        self._poll_interval_s = poll_interval_s
        self._started_at = clock()
        self._polling_since: float | None = None
        self._stopping = False
        self._last_poll_at: float | None = None
        self._plain_checks: int | None = None
        self._gave_up: dict[str, None] = {}
        self._drops = _Recent(clock)
        self._set_aside = _Recent(clock)
        self._unwritable: tuple[float, str] | None = None  # since when the spool can't be written, and why
        self._agents: dict[str, AgentState] = {}
        #: Names of checks that agents have in common, each once.
        self._keys: dict[tuple[str, str, str], tuple[str, str, str]] = {}
        self._overflow = 0
        self._latencies = Ring(ALL_LATENCIES)
        self._lags = Ring(LAGS)
        self._notes = Notes()
        self._polls = dict.fromkeys(("available", "unavailable", "failed", "missed", "unsupported"), 0)
        self._tree = dict.fromkeys(("crashes", "restarts", "quarantines", "give_ups", "kills", "zombies"), 0)
        self._last_restart: tuple[str, float] | None = None
        self._core: dict[str, Any] = {"address": ""}
        self._core_since = self._started_at
        self._last_report_at: float | None = None
        self._loop_blocked = 0
        self._handlers: dict[type, Callable[[Any], None]] = {
            p.PollerStarted: self._poller_started,
            p.PollerStopping: self._poller_stopping,
            p.AgentMisconfigured: self._agent_misconfigured,
            p.AgentLost: self._agent_lost,
            p.AgentConnected: self._agent_connected,
            p.BreakerChanged: self._breaker_changed,
            p.CheckMissed: lambda e: self._count(self._polls, "missed", e.count),
            p.CheckUnsupported: self._check_unsupported,
            p.ReportSent: self._report_sent,
            p.ReportFailed: lambda e: self._count(self._core, "report_failures"),
            p.ReportDropped: self._report_dropped,
            p.ReportSetAside: self._report_set_aside,
            p.SpoolWriteFailed: self._spool_write_failed,
            p.SpoolWritable: self._spool_writable,
            p.ReportQueue: lambda e: self._core.update(queue_reports=e.reports, queue_bytes=e.size),
            p.CoreLost: lambda e: self._core_changed(e.address, connected=False, reason=e.reason, error=e.error),
            p.CoreConnected: lambda e: self._core_changed(e.address, connected=True, reason="", error=""),
            k.ChildExited: self._child_exited,
            k.ChildRestarting: self._child_restarting,
            k.ChildQuarantined: lambda e: self._count(self._tree, "quarantines"),
            k.SupervisorGaveUp: self._supervisor_gave_up,
            k.ChildStarted: lambda e: self._gave_up.pop(e.path, None),
            k.ChildKilled: lambda e: self._count(self._tree, "kills"),
            k.ChildZombie: lambda e: self._count(self._tree, "zombies"),
            k.LoopBlocked: self._blocked,
        }

    def __call__(self, event: ObservedEvent) -> None:
        """Take *event* into account."""
        if type(event) is p.CheckFinished:
            self._check_finished(event)
            return
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)
        self._notes.add(event, self._wall())

    def expect_agents(self, agents: Iterable[AgentConfig]) -> None:
        """Show exactly *agents*: new ones as unknown (or misconfigured), and no others any more."""
        configured = {agent.name: agent for agent in agents}
        for name in self._agents.keys() - configured.keys():
            del self._agents[name]
        self._plain_checks = sum(
            not check.is_results for agent in configured.values() if not agent.problems for check in agent.checks
        )
        for name, agent in configured.items():
            known = self._agent(name)
            known.address = agent.address
            if agent.problems and known.state == "unknown":
                known.state, known.reason, known.error = "misconfigured", "config", str(agent.problems[0])

    def forget_agent(self, agent: str) -> None:
        """Forget an agent that is no longer configured."""
        self._agents.pop(agent, None)

    def agent_names(self) -> set[str]:
        """Return the agents that are known."""
        return set(self._agents)

    def observe_lag(self, lag_s: float) -> None:
        """Record how late the event loop ran a timer."""
        self._lags.add(lag_s)

    def agent_counts(self) -> dict[str, int]:
        """Return how many agents are in each state."""
        counts = dict.fromkeys(AGENT_STATES, 0)
        for agent in self._agents.values():
            counts[agent.state] += 1
        return counts

    @property
    def uptime_s(self) -> float:
        """Seconds since this state was made, which is when the program started."""
        return self._clock() - self._started_at

    @property
    def version(self) -> str:
        """The program's version."""
        return self._version

    @property
    def poller_id(self) -> str:
        """The poller's id."""
        return self._poller_id

    @property
    def poll_interval_s(self) -> float:
        """Seconds between polls."""
        return self._poll_interval_s

    @property
    def stopping(self) -> bool:
        """Whether the stop began."""
        return self._stopping

    @property
    def polling_s(self) -> float | None:
        """Seconds since polling began; None before."""
        return None if self._polling_since is None else self._clock() - self._polling_since

    @property
    def poll_age_s(self) -> float | None:
        """
        Seconds since a check had its outcome; None before the first one.

        A poller without plain checks has nothing to wait for: 0 from the start of polling.
        """
        if self._plain_checks == 0 and self._polling_since is not None:
            return 0.0
        return None if self._last_poll_at is None else self._clock() - self._last_poll_at

    @property
    def gave_up(self) -> tuple[str, ...]:
        """Paths of supervisors that gave up and are not back."""
        return tuple(self._gave_up)

    @property
    def loop_lag_s(self) -> float:
        """The worst lag of the last minute."""
        return self._lags.max()

    def breakers_open(self) -> int:
        """Return how many agents' breakers are open."""
        return sum(agent.breaker == "OPEN" for agent in self._agents.values())

    def recent_drops(self) -> int:
        """Return how many reports were dropped in the last RECENT_S seconds."""
        return self._drops.count()

    def recent_set_aside(self) -> int:
        """Return how many reports were set aside in the last RECENT_S seconds."""
        return self._set_aside.count()

    @property
    def spool_unwritable(self) -> tuple[float, str] | None:
        """For how many seconds the spool can't be written, and why; None while it can."""
        if self._unwritable is None:
            return None
        since, reason = self._unwritable
        return self._clock() - since, reason

    @property
    def core(self) -> CoreView:
        """The way to core."""
        now = self._clock()
        at = self._last_report_at
        return CoreView(
            **self._core, since_s=now - self._core_since, last_report_age_s=-1.0 if at is None else now - at
        )

    def snapshot(
        self,
        *,
        process: ProcessFigures | None = None,
        process_count: int = 0,
        log_lines_dropped: int = 0,
        agents_max: int = AGENTS_MAX,
    ) -> ViewSnapshot:
        """Return everything, with at most *agents_max* agents, the ones that need attention first."""
        now = self._clock()
        figures = process or ProcessFigures()
        ordered = sorted(self._agents.items(), key=lambda item: (item[1].rank, item[0]))
        outcomes = Counter(check.outcome for agent in self._agents.values() for check in agent.checks.values())
        restart = self._last_restart
        return ViewSnapshot(
            time=self._wall(),
            poller_id=self._poller_id,
            version=self._version,
            uptime_s=now - self._started_at,
            poll_interval_s=self._poll_interval_s,
            stopping=self._stopping,
            checks_available=outcomes["available"],
            checks_unavailable=outcomes["unavailable"],
            checks_failed=outcomes["failed"],
            rss_bytes=figures.rss_bytes,
            cpu_s=figures.cpu_s,
            open_fds=figures.open_fds,
            loop_lag_s=self._lags.max(),
            loop_blocked=self._loop_blocked,
            log_lines_dropped=log_lines_dropped,
            core=self.core,
            polls=PollsView(
                **self._polls,
                latency_p50_s=self._latencies.quantile(0.5),
                latency_p99_s=self._latencies.quantile(0.99),
            ),
            supervision=SupervisionView(
                **self._tree,
                process_count=process_count,
                last_restart="" if restart is None else restart[0],
                last_restart_age_s=-1.0 if restart is None else now - restart[1],
            ),
            agent_counts=self.agent_counts(),
            agents=tuple(agent.view(name, now) for name, agent in ordered[:agents_max]),
            notes=self._notes.latest(),
        )

    def _agent(self, name: str) -> AgentState:
        agent = self._agents.get(name)
        if agent is None:
            agent = AgentState()
            agent.since = self._clock()
            if len(self._agents) < AGENTS_MAX:
                self._agents[name] = agent
            else:
                self._overflow += 1
        return agent

    def _check_finished(self, event: p.CheckFinished) -> None:
        self._polls[event.outcome if event.outcome in self._polls else "failed"] += 1
        agent = self._agents.get(event.agent) or self._agent(event.agent)
        key = (event.service_name, event.service_type, event.kind)
        check = agent.checks.get(key)
        if check is None:
            if len(agent.checks) >= CHECKS_PER_AGENT_MAX:
                self._overflow += 1
                return
            if len(self._keys) >= KEYS_SHARED_MAX:
                self._keys.clear()
            check = agent.checks[self._keys.setdefault(key, key)] = CheckState()
        check.outcome = event.outcome
        check.reason = event.reason
        check.error = event.error
        check.latency_s = event.latency_s
        self._last_poll_at = check.at = self._clock()
        if event.outcome == "available":
            check.failures = 0
        else:
            check.failures += 1
        if event.outcome == "failed":
            agent.failures += 1
            return
        # Only answers say how fast the agent is.
        agent.last_s = event.latency_s
        agent.latencies.add(event.latency_s)
        self._latencies.add(event.latency_s)
        if agent.state == "unknown":
            self._set_state(agent, "up")

    def _set_state(self, agent: AgentState, state: str, *, reason: str = "", error: str = "") -> None:
        agent.state, agent.reason, agent.error = state, reason, error
        agent.since = self._clock()

    def _check_unsupported(self, event: p.CheckUnsupported) -> None:
        self._count(self._polls, "unsupported")
        # It was its turn, which shows that polling goes on.
        self._last_poll_at = self._clock()

    def _supervisor_gave_up(self, event: k.SupervisorGaveUp) -> None:
        self._count(self._tree, "give_ups")
        if len(self._gave_up) < GAVE_UP_MAX:
            self._gave_up[event.path] = None

    def _poller_started(self, event: p.PollerStarted) -> None:
        self._polling_since = self._clock()
        self._version = event.version
        self._poller_id = event.poller_id
        self._poll_interval_s = event.poll_interval_s
        self._core["address"] = event.core_address

    def _poller_stopping(self, event: p.PollerStopping) -> None:
        self._stopping = True

    def _agent_misconfigured(self, event: p.AgentMisconfigured) -> None:
        self._set_state(self._agent(event.agent), "misconfigured", reason="config", error=event.problem)

    def _agent_lost(self, event: p.AgentLost) -> None:
        agent = self._agent(event.agent)
        agent.address = event.address
        self._set_state(agent, "down", reason=event.reason, error=event.error)

    def _agent_connected(self, event: p.AgentConnected) -> None:
        agent = self._agent(event.agent)
        agent.address = event.address
        self._set_state(agent, "up")

    def _breaker_changed(self, event: p.BreakerChanged) -> None:
        self._agent(event.agent).breaker = event.after

    def _report_sent(self, event: p.ReportSent) -> None:
        core = self._core
        self._last_report_at = self._clock()
        self._count(core, "reports_sent")
        self._count(core, "statuses_sent", event.statuses)
        self._count(core, "bytes_sent", event.size)
        core["last_report_statuses"] = event.statuses
        if event.tick_s >= 0:
            core["last_tick_s"] = event.tick_s
        if event.kind == "cycle":
            self._count(core, "cycles")

    def _report_dropped(self, event: p.ReportDropped) -> None:
        self._count(self._core, "reports_dropped", event.reports)
        self._drops.add(event.reports)
        self._count(self._core, "statuses_dropped", event.statuses)

    def _report_set_aside(self, event: p.ReportSetAside) -> None:
        self._count(self._core, "reports_set_aside")
        self._set_aside.add(1)
        self._count(self._core, "statuses_set_aside", event.statuses)

    def _spool_write_failed(self, event: p.SpoolWriteFailed) -> None:
        self._unwritable = self._clock(), event.reason

    def _spool_writable(self, event: p.SpoolWritable) -> None:
        self._unwritable = None

    def _core_changed(self, address: str, *, connected: bool, reason: str, error: str) -> None:
        self._core.update(address=address, connected=connected, reason=reason, error=error)
        self._core_since = self._clock()

    def _child_exited(self, event: k.ChildExited) -> None:
        if event.reason == "error":
            self._count(self._tree, "crashes")

    def _child_restarting(self, event: k.ChildRestarting) -> None:
        self._count(self._tree, "restarts")
        self._last_restart = (event.path, self._clock())

    def _blocked(self, event: k.LoopBlocked) -> None:
        self._loop_blocked += 1

    @staticmethod
    def _count(counts: dict[str, Any], key: str, by: int = 1) -> None:
        counts[key] = counts.get(key, 0) + by


class _Recent:
    """Counts what happened in the last RECENT_S seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._times: deque[tuple[float, int]] = deque(maxlen=RECENT_DROPS_MAX)

    def add(self, count: int) -> None:
        self._times.append((self._clock(), count))

    def count(self) -> int:
        since = self._clock() - RECENT_S
        while self._times and self._times[0][0] < since:
            self._times.popleft()
        return sum(count for _, count in self._times)
