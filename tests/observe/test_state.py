from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serviceradar_poller.config.model import AgentConfig, CheckConfig
from serviceradar_poller.errors import ConfigProblem
from serviceradar_poller.events import kernel as k
from serviceradar_poller.events import polling as p
from serviceradar_poller.logic.health import HealthStatus, judge, stuck_after_s
from serviceradar_poller.observe.health import health_input
from serviceradar_poller.observe.notes import NOTES_MAX
from serviceradar_poller.observe.ring import Ring
from serviceradar_poller.observe.snapshot import decode_snapshot, encode_snapshot
from serviceradar_poller.observe.state import PollerState
from serviceradar_poller.observe.view import summary_line

PING = CheckConfig(service_type="icmp", service_name="ping")


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def started(*agents: AgentConfig, time: Time | None = None) -> PollerState:
    state = PollerState(clock=time or Time(), wall=lambda: 1_763_900_000.0)
    state.expect_agents(agents)
    state(
        p.PollerStarted(
            version="1.0", poller_id="site-a", agents=len(agents), checks=1, core_address="c:1", poll_interval_s=30.0
        )
    )
    return state


def agent(name: str, *, checks: tuple[CheckConfig, ...] = (PING,), broken: bool = False) -> AgentConfig:
    problem = ConfigProblem(source="f", path="p", found="x", accepted="y")
    return AgentConfig(name=name, address=f"{name}:50051", checks=checks, problems=(problem,) if broken else ())


def check(name: str = "edge-01", **fields: Any) -> p.CheckFinished:
    values: dict[str, Any] = {
        "agent": name, "service_name": "ping", "service_type": "icmp", "kind": "status",
        "outcome": "available", "lateness_s": 0.0, "latency_s": 0.03,
    }  # fmt: skip
    return p.CheckFinished(**(values | fields))


def test_an_agents_life_is_followed() -> None:
    """Unknown, up, down with reason and outage, up again; its checks with their failures in a row."""
    time = Time()
    state = started(agent("edge-01"), time=time)

    def now() -> Any:
        return state.snapshot().agents[0]

    assert (now().state, now().address) == ("unknown", "edge-01:50051")
    state(p.AgentConnected(agent="edge-01", address="edge-01:50051", outage_s=0.0))
    state(check())
    assert now().state == "up"
    state(p.AgentLost(agent="edge-01", address="edge-01:50051", layer="tcp", reason="refused", error="refused!"))
    state(check(outcome="failed", reason="refused"))
    state(check(outcome="failed", reason="refused"))
    state(p.BreakerChanged(agent="edge-01", before="CLOSED", after="OPEN", cause=""))
    time.now += 12
    down = now()
    assert (down.state, down.reason, down.error, down.outage_s) == ("down", "refused", "refused!", 12.0)
    assert (down.failures, down.checks[0].failures, down.breaker) == (2, 2, "OPEN")
    state(p.AgentConnected(agent="edge-01", address="edge-01:50051", outage_s=12.0))
    state(check())
    assert (now().state, now().reason, now().checks[0].failures) == ("up", "", 0)


def test_agents_that_need_attention_come_first() -> None:
    """The order is: down or misconfigured, breaker open, failing checks, unknown, healthy; then by name."""
    names = ("a-well", "b-well", "c-unknown", "d-failing", "e-breaker", "f-down")
    state = started(*map(agent, names), agent("g-broken", broken=True))
    for name in names:
        if name != "c-unknown":
            state(p.AgentConnected(agent=name, address="", outage_s=0.0))
    state(check("d-failing", outcome="unavailable"))
    state(p.BreakerChanged(agent="e-breaker", before="CLOSED", after="OPEN", cause=""))
    state(p.AgentLost(agent="f-down", address="", layer="tcp", reason="refused", error=""))
    snapshot = state.snapshot(agents_max=6)
    assert [a.name for a in snapshot.agents] == [
        "f-down", "g-broken", "e-breaker", "d-failing", "c-unknown", "a-well",
    ]  # fmt: skip
    assert snapshot.agent_counts == {"down": 1, "misconfigured": 1, "unknown": 1, "up": 4}


def test_a_new_configuration_replaces_the_agents() -> None:
    """Agents that are gone are forgotten, those that stay keep what is known of them."""
    state = started(agent("old"), agent("stays"))
    state(check("stays"))
    state.expect_agents([agent("stays"), agent("new")])
    assert {a.name: a.state for a in state.snapshot().agents} == {"stays": "up", "new": "unknown"}


def test_a_snapshot_survives_the_way_to_another_process(
    event_types: tuple[type, ...], plain_event: Callable[[type], Any]
) -> None:
    """After an event of every type, JSON and back gives the same snapshot."""
    state = started(agent("edge-01"))
    for kind in event_types:
        state(plain_event(kind))
    snapshot = state.snapshot(process_count=5)
    assert decode_snapshot(encode_snapshot(snapshot)) == snapshot


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(data=st.data())
def test_whatever_events_hold_the_notes_are_bounded_and_nothing_breaks(
    any_event: st.SearchStrategy[Any], data: st.DataObject
) -> None:
    """Arbitrary values, such as an outcome that does not exist, don't break the state."""
    state = started()
    for event in data.draw(st.lists(any_event, max_size=5)):
        state(event)
    encode_snapshot(state.snapshot())


def test_notes_are_bounded_and_tell_changes_only() -> None:
    """First connections and polls are no news; of news the latest NOTES_MAX stay."""
    state = started()
    state(p.AgentConnected(agent="a", address="", outage_s=0.0))
    state(check("a"))
    assert [note.text for note in state.snapshot().notes] == ["poller started"]
    for _ in range(NOTES_MAX + 5):
        state(p.AgentConnected(agent="a", address="", outage_s=2.0))
    notes = state.snapshot().notes
    assert len(notes) == NOTES_MAX
    assert (notes[-1].text, notes[-1].subject, notes[-1].detail) == ("agent is back", "a", "after 2.0 s")


@given(st.lists(st.floats(0, 1e6, width=32), min_size=1), st.floats(0, 1))
def test_a_ring_knows_the_latest_values(values: list[float], share: float) -> None:
    """Quantiles are values that were added among the latest, and lie in their order."""
    ring = Ring(8)
    for number in values:
        ring.add(number)
    latest = values[-8:]
    assert ring.quantile(share) in latest
    assert ring.quantile(0.0) == min(latest)
    assert ring.quantile(1.0) == max(latest) == ring.max()


def test_supervision_core_and_reports_add_up() -> None:
    """Restarts, crashes, reports and the queue are what the events said."""
    state = started()
    state(k.ChildExited(path="poller/x", incarnation=1, reason="error", error="E"))
    state(k.ChildRestarting(path="poller/x", attempt=1))
    state(p.CoreLost(address="c:1", reason="refused", error=""))
    state(p.ReportQueue(reports=2, size=10))
    lost = state.snapshot()
    assert (lost.supervision.crashes, lost.supervision.restarts, lost.supervision.last_restart) == (1, 1, "poller/x")
    assert (lost.core.connected, lost.core.queue_reports) == (False, 2)
    state(p.CoreConnected(address="c:1", outage_s=2.0))
    state(p.ReportSent(kind="cycle", transport="unary", statuses=4, size=9, duration_s=0.1, age_s=0.1, tick_s=5.0))
    core = state.snapshot().core
    assert (core.connected, core.reports_sent, core.statuses_sent, core.last_tick_s, core.cycles) == (
        True,
        1,
        4,
        5.0,
        1,
    )


def test_health_follows_the_state() -> None:
    """Not ready before the first outcome, healthy after it, degraded by a lost agent, not live when polling stops."""
    time = Time()
    state = started(agent("edge-01"), time=time)

    def verdict() -> Any:
        return judge(health_input(state, tree_up=True))

    assert (verdict().live, verdict().ready) == (True, False)
    state(check())
    assert (verdict().status, verdict().ready, verdict().reasons) == (HealthStatus.HEALTHY, True, ())
    state(p.AgentLost(agent="edge-01", address="", layer="tcp", reason="refused", error=""))
    assert verdict().status is HealthStatus.DEGRADED
    assert verdict().live
    time.now += stuck_after_s(30.0) + 1
    assert not verdict().live
    state(check(outcome="failed", reason="refused"))
    assert verdict().live
    state(k.SupervisorGaveUp(path="poller/x", child="c", error="", intensity=1, period_s=5.0))
    assert any("poller/x" in reason for reason in verdict().reasons)
    state(k.ChildStarted(path="poller/x", incarnation=2))
    assert not any("poller/x" in reason for reason in verdict().reasons)


def test_a_poller_with_results_checks_only_is_not_stuck_between_them() -> None:
    """Where nothing is due for half an hour, silence is no reason to be restarted."""
    time = Time()
    results = CheckConfig(service_type="grpc", service_name="inventory", results_interval_s=1_800.0)
    state = started(agent("edge-01", checks=(results,)), time=time)
    time.now += 1_700
    assert judge(health_input(state, tree_up=True)).live


def test_dropped_reports_are_a_complaint_for_ten_minutes() -> None:
    """A loss stays visible for a while, then health recovers."""
    time = Time()
    state = started(time=time)
    state(p.ReportDropped(kind="cycle", statuses=7, reason="full", queued=3))
    time.now += 300
    state(p.ReportDropped(kind="cycle", statuses=42, reason="full", queued=3, reports=6))
    assert health_input(state, tree_up=True).reports_dropped == 7
    time.now += 301
    assert health_input(state, tree_up=True).reports_dropped == 6
    time.now += 300
    assert health_input(state, tree_up=True).reports_dropped == 0


def test_a_report_set_aside_is_not_lost() -> None:
    """It has a word and a count of its own, in health and in the view, and a place where it can be looked at."""
    time = Time()
    state = started(time=time)
    state(p.ReportSetAside(kind="cycle", statuses=7, reason="invalid_argument", report_id=3))
    given = health_input(state, tree_up=True)
    assert (given.reports_dropped, given.reports_set_aside) == (0, 1)
    core = state.core
    assert (core.reports_dropped, core.statuses_dropped) == (0, 0)
    assert (core.reports_set_aside, core.statuses_set_aside) == (1, 7)
    assert "1 set aside" in summary_line(state.snapshot())
    time.now += 601
    assert health_input(state, tree_up=True).reports_set_aside == 0


def test_a_spool_that_can_not_be_written_is_a_complaint_until_it_can() -> None:
    """A restart would lose what waits in memory: whoever looks at the health is told, and since when."""
    time = Time()
    state = started(time=time)
    state(p.SpoolWriteFailed(reason="io_error", error="disk I/O error"))
    time.now += 12
    (reason,) = (each for each in judge(health_input(state, tree_up=True)).reasons if "spool" in each)
    assert reason == "the spool can't be written for 12 s (io_error): new reports are in memory only"
    state(p.SpoolWritable(outage_s=12.0, errors=3))
    assert not [each for each in judge(health_input(state, tree_up=True)).reasons if "spool" in each]
