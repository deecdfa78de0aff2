"""From the observed state to the verdict of ``logic.health``, and the answer that /health gives."""

from __future__ import annotations

from collections.abc import Mapping

from serviceradar_poller.logic.health import HealthInput, HealthVerdict
from serviceradar_poller.observe.process import ProcessFigures
from serviceradar_poller.observe.state import PollerState


def health_input(state: PollerState, *, tree_up: bool) -> HealthInput:
    """
    Return what the verdict is made from.

    A cycle is taken as completed when a check has its outcome; a poller that has no plain checks, whose results
    checks may be hours apart, can't be stuck by this measure.
    """
    counts = state.agent_counts()
    core = state.core
    polling_s = state.polling_s
    unwritable_s, unwritable_reason = state.spool_unwritable or (None, "")
    return HealthInput(
        config_loaded=polling_s is not None,
        tree_up=tree_up,
        polling=polling_s is not None and not state.stopping,
        interval_s=state.poll_interval_s,
        uptime_s=polling_s or 0.0,
        cycle_age_s=state.poll_age_s,
        agents_total=sum(counts.values()),
        agents_up=counts["up"],
        agents_down=counts["down"],
        agents_misconfigured=counts["misconfigured"],
        breakers_open=state.breakers_open(),
        core_connected=core.connected is not False,
        core_outage_s=core.since_s if core.connected is False else 0.0,
        reports_queued=core.queue_reports,
        reports_dropped=state.recent_drops(),
        reports_set_aside=state.recent_set_aside(),
        spool_unwritable_s=unwritable_s,
        spool_unwritable_reason=unwritable_reason,
        gave_up=state.gave_up,
        loop_lag_s=state.loop_lag_s,
    )


def health_answer(
    state: PollerState,
    verdict: HealthVerdict,
    *,
    process: ProcessFigures,
    process_count: int,
    statuses: Mapping[str, object],
    spool: Mapping[str, object],
) -> dict[str, object]:
    """
    Return the body of /health.

    ``uptime`` in seconds, ``memory_usage`` resident bytes, ``statuses`` by place, ``spool``: what waits and its bounds.
    """
    counts = state.agent_counts()
    core = state.core
    return {
        "status": verdict.status.value,
        "reasons": list(verdict.reasons),
        "live": verdict.live,
        "ready": verdict.ready,
        "agents": {"total": sum(counts.values())} | counts,
        "core_connection": {None: "unknown", True: "connected", False: "disconnected"}[core.connected],
        "reports_queued": core.queue_reports,
        "statuses": dict(statuses),
        "spool": dict(spool),
        "uptime": round(state.uptime_s, 3),
        "memory_usage": process.rss_bytes,
        "process_count": process_count,
        "version": state.version,
        "poller_id": state.poller_id,
    }
