"""
Judge the whole from counters: is the process alive, ready, and is all well?

Liveness asks whether a restart of the process would help. It fails only when polling itself is stuck; agents
or a core that are down can't be mended by killing the poller that reports them.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

#: Polling is stuck when no cycle has finished for this many intervals …
STUCK_INTERVALS = 3
#: … and this long on top: the slowest check that is still within its deadline.
STUCK_GRACE_S = 30.0
#: A loop that is late by more makes checks late.
LOOP_LAG_S_MAX = 0.25


class HealthStatus(enum.StrEnum):
    """How the whole is."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"  # it does its work; something around it, or a part of it, doesn't
    UNHEALTHY = "unhealthy"  # it doesn't do its work


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthInput:
    """
    A snapshot of what the parts count.

    Attributes:
        polling: Whether cycles should be happening: not before the tree is up, and not while stopping.
        uptime_s: Since polling began.
        cycle_age_s: Since the last cycle was completed; None when none has been.
        core_outage_s: How long core has been out of reach; 0 while it is connected.
        reports_dropped: Reports lost within the time that the caller calls recent.
        reports_set_aside: Reports kept for the operator within that time, since core does not take them.
        spool_unwritable_s: How long reports can't be written to disk, and why; None while they can.
        gave_up: Tree paths of supervisors that gave up and have not been built again.
        loop_lag_s: How late the loop lately was.
    """

    config_loaded: bool
    tree_up: bool
    polling: bool
    interval_s: float
    uptime_s: float
    cycle_age_s: float | None
    agents_total: int = 0
    agents_up: int = 0
    agents_down: int = 0
    agents_misconfigured: int = 0
    breakers_open: int = 0
    core_connected: bool = True
    core_outage_s: float = 0.0
    reports_queued: int = 0
    reports_dropped: int = 0
    reports_set_aside: int = 0
    spool_unwritable_s: float | None = None
    spool_unwritable_reason: str = ""
    gave_up: tuple[str, ...] = ()
    loop_lag_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthVerdict:
    """
    How the whole is, and why.

    Attributes:
        reasons: Sentences for an operator, worst first; empty exactly when healthy.
        live: False asks for the process to be replaced.
        ready: Whether it has taken up its work.
    """

    status: HealthStatus
    reasons: tuple[str, ...]
    live: bool
    ready: bool


def stuck_after_s(interval_s: float) -> float:
    """Return how long no cycle may finish before polling counts as stuck."""
    return STUCK_INTERVALS * interval_s + STUCK_GRACE_S


def judge(snapshot: HealthInput) -> HealthVerdict:
    """Return the verdict on a snapshot."""
    cycle_age_s = snapshot.uptime_s if snapshot.cycle_age_s is None else snapshot.cycle_age_s
    live = not (snapshot.polling and cycle_age_s > stuck_after_s(snapshot.interval_s))
    ready = snapshot.config_loaded and snapshot.tree_up and snapshot.cycle_age_s is not None
    broken = _broken(snapshot, live, cycle_age_s)
    reasons = (*broken, *_complaints(snapshot, ready))
    if broken:
        status = HealthStatus.UNHEALTHY
    else:
        status = HealthStatus.DEGRADED if reasons else HealthStatus.HEALTHY
    return HealthVerdict(status=status, reasons=reasons, live=live, ready=ready)


def _broken(snapshot: HealthInput, live: bool, cycle_age_s: float) -> tuple[str, ...]:
    reasons = []
    if not live:
        reasons.append(f"no cycle finished for {cycle_age_s:.0f} s")
    if not snapshot.config_loaded:
        reasons.append("no configuration is loaded")
    if not snapshot.tree_up:
        reasons.append("the supervision tree is not up")
    return tuple(reasons)


def _complaints(snapshot: HealthInput, ready: bool) -> tuple[str, ...]:
    reasons = []
    if snapshot.config_loaded and snapshot.tree_up and not ready:
        reasons.append("the first cycle has not finished")
    if snapshot.gave_up:
        reasons.append(f"gave up restarting: {', '.join(snapshot.gave_up)}")
    if not snapshot.core_connected:
        wait = _several(snapshot.reports_queued, "report waits", "reports wait")
        reasons.append(f"core is out of reach for {snapshot.core_outage_s:.0f} s, {wait}")
    if snapshot.spool_unwritable_s is not None:
        reasons.append(
            f"the spool can't be written for {snapshot.spool_unwritable_s:.0f} s ({snapshot.spool_unwritable_reason}):"
            " new reports are in memory only"
        )
    if snapshot.reports_dropped:
        reasons.append(_several(snapshot.reports_dropped, "report was dropped", "reports were dropped"))
    if snapshot.reports_set_aside:
        set_aside = _several(snapshot.reports_set_aside, "report was set aside", "reports were set aside")
        reasons.append(f"{set_aside}, which core does not take: see serviceradar-poller spool STATE_DIR")
    if snapshot.agents_down:
        reasons.append(_some(snapshot.agents_down, snapshot.agents_total, "down"))
    if snapshot.agents_misconfigured:
        reasons.append(_some(snapshot.agents_misconfigured, snapshot.agents_total, "misconfigured"))
    if snapshot.breakers_open:
        reasons.append(_several(snapshot.breakers_open, "breaker is open", "breakers are open"))
    if snapshot.loop_lag_s > LOOP_LAG_S_MAX:
        reasons.append(f"the loop is late by {snapshot.loop_lag_s:.2f} s")
    return tuple(reasons)


def _several(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _some(number: int, total: int, state: str) -> str:
    return f"{number} of {total} {'agent' if total == 1 else 'agents'} {'is' if number == 1 else 'are'} {state}"
