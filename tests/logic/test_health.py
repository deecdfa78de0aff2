from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serviceradar_poller.logic.health import HealthInput, HealthStatus, judge, stuck_after_s

WELL = HealthInput(
    config_loaded=True, tree_up=True, polling=True, interval_s=30.0, uptime_s=1000.0, cycle_age_s=12.0, agents_total=5,
    agents_up=5,
)  # fmt: skip

seconds = st.floats(0, 1e6)
counts = st.integers(0, 10**6)
snapshots = st.builds(
    HealthInput,
    config_loaded=st.booleans(),
    tree_up=st.booleans(),
    polling=st.booleans(),
    interval_s=st.floats(1, 3600),
    uptime_s=seconds,
    cycle_age_s=st.none() | seconds,
    agents_total=counts,
    agents_up=counts,
    agents_down=counts,
    agents_misconfigured=counts,
    breakers_open=counts,
    core_connected=st.booleans(),
    core_outage_s=seconds,
    reports_queued=counts,
    reports_dropped=counts,
    reports_set_aside=counts,
    spool_unwritable_s=st.none() | seconds,
    gave_up=st.lists(st.text()).map(tuple),
    loop_lag_s=st.floats(0, 100),
)


@given(snapshots)
def test_a_verdict_agrees_with_itself(snapshot: HealthInput) -> None:
    """There is a reason exactly when it is not healthy; what is not live is unhealthy."""
    verdict = judge(snapshot)
    assert (verdict.status is HealthStatus.HEALTHY) == (verdict.reasons == ())
    if not verdict.live:
        assert verdict.status is HealthStatus.UNHEALTHY
    if verdict.status is HealthStatus.HEALTHY:
        assert verdict.live
        assert verdict.ready


@given(snapshots, snapshots)
def test_what_is_around_the_process_never_makes_it_look_dead(one: HealthInput, other: HealthInput) -> None:
    """Agents, breakers, core, reports, supervisors and lag change neither liveness nor readiness."""
    mixed = replace(
        other,
        config_loaded=one.config_loaded,
        tree_up=one.tree_up,
        polling=one.polling,
        interval_s=one.interval_s,
        uptime_s=one.uptime_s,
        cycle_age_s=one.cycle_age_s,
    )
    assert (judge(mixed).live, judge(mixed).ready) == (judge(one).live, judge(one).ready)


@given(snapshots)
def test_liveness_fails_only_when_polling_stands_still(snapshot: HealthInput) -> None:
    """It fails exactly when cycles should happen and none has for three intervals and half a minute."""
    age_s = snapshot.uptime_s if snapshot.cycle_age_s is None else snapshot.cycle_age_s
    assert judge(snapshot).live == (not snapshot.polling or age_s <= 3 * snapshot.interval_s + 30)


@given(snapshots)
def test_it_is_ready_after_the_first_cycle(snapshot: HealthInput) -> None:
    """Ready is: configuration, tree, and one cycle."""
    ready = snapshot.config_loaded and snapshot.tree_up and snapshot.cycle_age_s is not None
    assert judge(snapshot).ready == ready


def test_the_bound_of_liveness() -> None:
    """At an interval of 30 s, two minutes without a cycle are borne, and no moment more."""
    assert stuck_after_s(30.0) == 120.0
    assert judge(replace(WELL, cycle_age_s=120.0)).live
    assert not judge(replace(WELL, cycle_age_s=120.001)).live
    assert judge(replace(WELL, cycle_age_s=1e6, polling=False)).live


def test_all_is_well() -> None:
    """Without a complaint there is no reason to give."""
    verdict = judge(WELL)
    assert (verdict.status, verdict.reasons, verdict.live, verdict.ready) == ("healthy", (), True, True)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"agents_down": 2}, "2 of 5 agents are down"),
        ({"agents_misconfigured": 1}, "1 of 5 agents is misconfigured"),
        ({"agents_down": 1, "agents_total": 1}, "1 of 1 agent is down"),
        ({"breakers_open": 1}, "1 breaker is open"),
        ({"breakers_open": 3}, "3 breakers are open"),
        (
            {"core_connected": False, "core_outage_s": 61.0, "reports_queued": 4},
            "core is out of reach for 61 s, 4 reports wait",
        ),
        (
            {"core_connected": False, "core_outage_s": 61.0, "reports_queued": 1},
            "core is out of reach for 61 s, 1 report waits",
        ),
        ({"reports_dropped": 7}, "7 reports were dropped"),
        ({"reports_dropped": 1}, "1 report was dropped"),
        (
            {"reports_set_aside": 1},
            "1 report was set aside, which core does not take: see serviceradar-poller spool STATE_DIR",
        ),
        (
            {"spool_unwritable_s": 3.0, "spool_unwritable_reason": "disk_full"},
            "the spool can't be written for 3 s (disk_full): new reports are in memory only",
        ),
        ({"gave_up": ("a/b", "c")}, "gave up restarting: a/b, c"),
        ({"loop_lag_s": 0.5}, "the loop is late by 0.50 s"),
        ({"cycle_age_s": None, "uptime_s": 3.0}, "the first cycle has not finished"),
    ],
)  # fmt: skip
def test_one_thing_amiss_is_degraded_and_named(change: dict[str, object], reason: str) -> None:
    """Each complaint degrades, is live, and says what it is."""
    verdict = judge(replace(WELL, **change))  # type: ignore[arg-type]
    assert (verdict.status, verdict.reasons, verdict.live) == (HealthStatus.DEGRADED, (reason,), True)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cycle_age_s": stuck_after_s(30.0) + 1}, "no cycle finished for 121 s"),
        ({"cycle_age_s": None, "uptime_s": 500.0}, "no cycle finished for 500 s"),
        ({"config_loaded": False}, "no configuration is loaded"),
        ({"tree_up": False}, "the supervision tree is not up"),
    ],
)
def test_what_keeps_it_from_working_is_unhealthy_and_comes_first(change: dict[str, object], reason: str) -> None:
    """A process that can't do its work is unhealthy, with that as the first reason."""
    verdict = judge(replace(WELL, agents_down=1, **change))  # type: ignore[arg-type]
    assert verdict.status is HealthStatus.UNHEALTHY
    assert verdict.reasons[0] == reason
