"""
What is shown of a running poller: plain values that travel as JSON between the poller and a view.

Durations are seconds, sizes bytes, times unix seconds; ages count back from the snapshot's own time.
Everything has a default, so that a view can show a poller of another version.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from serviceradar_poller.observe.text import json_bytes

#: An agent's states, the ones that need attention first.
AGENT_STATES = ("down", "misconfigured", "unknown", "up")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckView:
    """
    A check's last outcome.

    Attributes:
        failures: How often in a row it was not available.
    """

    service_name: str
    service_type: str = ""
    kind: str = "status"
    outcome: str = ""
    reason: str = ""
    error: str = ""
    latency_s: float = 0.0
    age_s: float = 0.0
    failures: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentView:
    """
    An agent.

    Attributes:
        state: One of AGENT_STATES.
        reason, error: Why it is not up.
        breaker: CLOSED, OPEN or HALF_OPEN.
        failures: Outcomes ``failed`` since the start.
        latency_p50_s, latency_last_s: Of its latest checks; negative when there is none.
    """

    name: str
    address: str = ""
    state: str = "unknown"
    reason: str = ""
    error: str = ""
    outage_s: float = 0.0
    breaker: str = "CLOSED"
    failures: int = 0
    latency_p50_s: float = -1.0
    latency_last_s: float = -1.0
    checks: tuple[CheckView, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreView:
    """
    The way to core.

    Attributes:
        connected: None before the first report.
        since_s: How long it has been so.
        reports_dropped: Lost; reports_set_aside: kept for the operator, since core does not take them.
        last_report_age_s, last_tick_s: Negative before the first (cycle's) report.
    """

    address: str = ""
    connected: bool | None = None
    since_s: float = 0.0
    reason: str = ""
    error: str = ""
    reports_sent: int = 0
    statuses_sent: int = 0
    bytes_sent: int = 0
    report_failures: int = 0
    reports_dropped: int = 0
    statuses_dropped: int = 0
    reports_set_aside: int = 0
    statuses_set_aside: int = 0
    queue_reports: int = 0
    queue_bytes: int = 0
    last_report_age_s: float = -1.0
    last_report_statuses: int = 0
    last_tick_s: float = -1.0
    cycles: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PollsView:
    """All checks since the start; the percentiles are of the latest ones, negative when there is none."""

    available: int = 0
    unavailable: int = 0
    failed: int = 0
    missed: int = 0
    unsupported: int = 0
    latency_p50_s: float = -1.0
    latency_p99_s: float = -1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisionView:
    """What the supervision kernel had to do since the start."""

    process_count: int = 0
    crashes: int = 0
    restarts: int = 0
    quarantines: int = 0
    give_ups: int = 0
    kills: int = 0
    zombies: int = 0
    last_restart: str = ""
    last_restart_age_s: float = -1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something notable that happened."""

    time: float
    level: str
    text: str
    subject: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewSnapshot:
    """
    The poller at one moment.

    Attributes:
        agent_counts: Agents by state, all of them.
        agents: The ones that need attention first; maybe not all.
        notes: The newest last.
        checks_*: Checks by their last outcome.
        loop_lag_s: The worst of the last minute.
    """

    time: float
    poller_id: str = ""
    version: str = ""
    uptime_s: float = 0.0
    poll_interval_s: float = 0.0
    stopping: bool = False
    checks_available: int = 0
    checks_unavailable: int = 0
    checks_failed: int = 0
    rss_bytes: int = -1
    cpu_s: float = 0.0
    open_fds: int = -1
    loop_lag_s: float = 0.0
    loop_blocked: int = 0
    log_lines_dropped: int = 0
    core: CoreView = field(default_factory=CoreView)
    polls: PollsView = field(default_factory=PollsView)
    supervision: SupervisionView = field(default_factory=SupervisionView)
    agent_counts: dict[str, int] = field(default_factory=dict)
    agents: tuple[AgentView, ...] = ()
    notes: tuple[Note, ...] = ()

    @property
    def agents_total(self) -> int:
        """How many agents there are."""
        return sum(self.agent_counts.values())


def encode_snapshot(snapshot: ViewSnapshot) -> bytes:
    """Return *snapshot* as JSON."""
    return json_bytes(snapshot)


def decode_snapshot(data: bytes) -> ViewSnapshot:
    """
    Return the snapshot that *data* holds.

    Raises:
        ValueError: it holds none.
    """
    return msgspec.json.decode(data, type=ViewSnapshot)
