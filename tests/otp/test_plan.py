"""The restart plan by itself: OTP's outcomes again without a loop, and properties of every decision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serviceradar_poller.otp import (
    AutoShutdown,
    Child,
    ChildSpec,
    ChildState,
    Quarantine,
    Restart,
    SpecError,
    Strategy,
)
from serviceradar_poller.otp.plan import Decision, Delay, GiveUp, Leave, Plan, Refusal, Round, TryAgain
from serviceradar_poller.otp.spec import SupervisorFlags

GOLDEN = Path(__file__).parents[1] / "data" / "supervisor-golden.jsonl"


async def _start(child: Child) -> None:
    child.ready()


def spec(id: str, restart: Restart = Restart.PERMANENT, **fields: Any) -> ChildSpec:
    return ChildSpec(id=id, start=_start, restart=restart, **fields)


class Instant:
    """A supervisor whose children start and stop in no time: it performs a plan, and that is all."""

    def __init__(self, flags: SupervisorFlags, children: list[ChildSpec]) -> None:
        self.plan = Plan(flags, children)
        self.alive = True
        self.fails: dict[str, int] = {}
        self.ignores: set[str] = set()
        for child in children:
            assert self.start(child.id)

    def start(self, id: str) -> bool:
        """Start *id* as ordered; False when it fails."""
        self.plan.mark_starting(id)
        if self.fails.get(id, 0) > 0:
            self.fails[id] -= 1
            return False
        if id in self.ignores:
            self.ignores.remove(id)
            self.plan.mark_ignored(id)
        else:
            self.plan.mark_up(id, 0.0)
        return True

    def up(self, id: str) -> bool:
        entry = self.plan.children.get(id)
        return entry is not None and entry.state is ChildState.UP

    def perform(self, decision: Decision | None) -> None:
        """Carry a decision out, down to the last retry."""
        while decision is not None:
            again: Decision | None = None
            match decision:
                case GiveUp() | Leave():
                    self.alive = False
                case TryAgain(id=id):
                    again = self.plan.retry(id, now_s=0.0)
                case Round():
                    for id in decision.stop:
                        self.plan.mark_stopped(id)
                    for id in decision.start:
                        if not self.start(id):
                            again = self.plan.start_failed(id, now_s=0.0, chance=0.5)
                            break
                case Delay():
                    raise AssertionError("no child here is quarantined")
            decision = again

    def operate(self, operation: str, child: Any, make: Any) -> str:
        """Do what start_child and its like do, and answer as OTP."""
        plan = self.plan
        if operation == "start_child":
            try:
                new = make(child)
                refusal = plan.add(new)
            except SpecError:
                return "badspec"
            if refusal is None and not self.start(new.id):
                plan.drop(new.id)
                return "bad"
        elif operation == "terminate_child":
            refusal = plan.refuse_terminate(child)
            plan.mark_stopped(child)
        else:
            refusal = plan.refuse_restart(child)
            if refusal is None and operation == "delete_child":
                plan.drop(child)
            elif refusal is None and not self.start(child):
                return "bad"
        return "ok" if refusal is None else refusal.name.lower()


def make_spec(child: dict[str, Any]) -> ChildSpec:
    return spec(child["id"], Restart(child["restart"]), significant=child["significant"])


def test_the_plan_alone_decides_as_otp_in_every_scenario() -> None:
    """Performed without loop or time, the plan gives OTP's answers, listings and ends in all 500 scenarios."""
    for line in GOLDEN.read_text().splitlines():
        scenario = json.loads(line)
        flags = SupervisorFlags(
            strategy=Strategy(scenario["strategy"]),
            intensity=scenario["intensity"],
            period_s=scenario["period"],
            auto_shutdown=AutoShutdown(scenario["auto_shutdown"]),
        )
        sup = Instant(flags, [make_spec(child) for child in scenario["children"]])
        for event, step in zip(scenario["events"], scenario["steps"], strict=False):
            child, result = event["child"], None
            match event["event"]:
                case "exit" | "kill":
                    if sup.up(child):
                        abnormal = event.get("reason", "kill") in ("boom", "kill")
                        sup.perform(sup.plan.exited(child, abnormal=abnormal, now_s=0.0, chance=0.5))
                case "next_inits_fail":
                    sup.fails[child] = event["times"]
                case "next_init_ignores":
                    sup.ignores.add(child)
                case operation:
                    result = sup.operate(operation, child, make_spec)
            listed = [[id, str(entry.state)] for id, entry in sup.plan.children.items()]
            shown = (result, sup.alive, listed if sup.alive else [])
            assert shown == (step["result"], step["alive"], step["children"]), (scenario["n"], event)


IDS = "abcdef"
specs = st.builds(
    lambda restarts, quarantined: [
        spec(
            id,
            restart,
            quarantine=Quarantine(min_s=1, max_s=30) if q and restart is not Restart.TEMPORARY else None,
        )
        for id, restart, q in zip(IDS, restarts, quarantined, strict=False)
    ],
    st.lists(st.sampled_from(list(Restart)), min_size=1, max_size=6),
    st.lists(st.booleans(), min_size=6, max_size=6),
)
histories = st.lists(
    st.tuples(st.integers(0, 5), st.booleans(), st.floats(0, 4), st.floats(0, 1), st.integers(0, 6)),
    max_size=40,
)


@given(children=specs, strategy=st.sampled_from(list(Strategy)), intensity=st.integers(0, 4), history=histories)
@settings(max_examples=300, deadline=None)
def test_every_round_is_well_formed_and_the_budget_is_kept(
    children: list[ChildSpec],
    strategy: Strategy,
    intensity: int,
    history: list[tuple[int, bool, float, float, int]],
) -> None:
    """
    In any history: stops are backwards, starts forwards, one_for_one stops nobody, rest_for_one nobody before the
    trigger; no more rounds within a period than the intensity; a quarantine never counts and stays within its cap.
    """
    plan = Plan(SupervisorFlags(strategy=strategy, intensity=intensity, period_s=5.0), children)
    for child in children:
        plan.mark_starting(child.id)
        plan.mark_up(child.id, 0.0)
    now_s, rounds = 0.0, []
    for index, abnormal, pause_s, chance, failing in history:
        now_s += pause_s
        order = list(plan.children)
        up = [id for id in order if plan.children[id].state is ChildState.UP]
        waiting = [id for id in order if plan.children[id].state is ChildState.RESTARTING]
        decision: Decision | None
        if waiting and index % 2:
            trigger = waiting[index % len(waiting)]
            decision = plan.rebuild(trigger, plan.children[trigger].failures)
            if decision is None:
                decision = plan.retry(trigger, now_s=now_s)
                counted = True
            else:
                counted = False
        elif up:
            trigger = up[index % len(up)]
            decision = plan.exited(trigger, abnormal=abnormal, now_s=now_s, chance=chance)
            counted = True
        else:
            continue
        if isinstance(decision, Delay):
            assert plan.children[trigger].spec.quarantine is not None
            assert 0.8 <= decision.delay_s <= 30
            continue
        if counted and isinstance(decision, Round | GiveUp):
            rounds.append(now_s)
            within = sum(1 for time_s in rounds if now_s - time_s <= 5.0)
            assert (within > intensity) == isinstance(decision, GiveUp)
        if not isinstance(decision, Round):
            if isinstance(decision, GiveUp):
                return
            continue
        positions = {id: place for place, id in enumerate(order)}
        assert [positions[id] for id in decision.stop] == sorted((positions[id] for id in decision.stop), reverse=True)
        assert [positions[id] for id in decision.start] == sorted(positions[id] for id in decision.start)
        assert trigger not in decision.stop
        assert trigger in decision.start
        if strategy is Strategy.ONE_FOR_ONE or not counted:
            assert (decision.stop, decision.start) == ((), (trigger,))
        elif strategy is Strategy.REST_FOR_ONE:
            assert all(positions[id] > positions[trigger] for id in decision.stop)
        else:
            assert set(decision.stop) | {trigger} == set(order)
        for id in decision.stop:
            plan.mark_stopped(id)
        for place, id in enumerate(decision.start):
            plan.mark_starting(id)
            if place == failing:
                failed = plan.start_failed(id, now_s=now_s, chance=chance)
                if isinstance(failed, TryAgain):
                    break
            else:
                plan.mark_up(id, now_s)


@given(attempt=st.integers(1, 5_000), chance=st.floats(0, 1), jitter=st.floats(0, 1), factor=st.floats(1, 100))
def test_a_quarantine_never_shrinks_but_by_its_jitter(
    attempt: int, chance: float, jitter: float, factor: float
) -> None:
    """At any attempt the delay is finite, within the cap, and without jitter not below the one before."""
    quarantine = Quarantine(min_s=0.5, max_s=300, factor=factor, jitter=jitter)
    delay_s = quarantine.delay_s(attempt, chance)
    assert 0 <= delay_s <= 300
    assert quarantine.delay_s(attempt + 1, 0.5) >= quarantine.delay_s(attempt, 0.5)
    assert abs(delay_s - quarantine.delay_s(attempt, 0.5)) <= jitter * quarantine.delay_s(attempt, 0.5) + 1e-9


@pytest.mark.parametrize(("age_s", "kept"), [(5.0, False), (5.001, True)])
def test_the_window_includes_its_edge(age_s: float, kept: bool) -> None:
    """A restart exactly one period ago still counts, as in OTP."""
    plan = Plan(SupervisorFlags(intensity=1, period_s=5.0), [spec("a")])
    plan.mark_up("a", 0.0)
    assert isinstance(plan.exited("a", abnormal=True, now_s=0.0, chance=0.5), Round)
    plan.mark_up("a", 0.0)
    decision = plan.exited("a", abnormal=True, now_s=age_s, chance=0.5)
    assert isinstance(decision, Round) == kept


def test_a_stale_rebuild_is_ignored() -> None:
    """A Delay that is over for a child that was stopped, started or dropped meanwhile does nothing."""
    child = spec("a", quarantine=Quarantine(min_s=1, max_s=2))
    plan = Plan(SupervisorFlags(), [child])
    plan.mark_up("a", 0.0)
    delay = plan.exited("a", abnormal=True, now_s=0.0, chance=0.5)
    assert isinstance(delay, Delay)
    assert plan.retry("a", now_s=0.0) is None, "a quarantined child is not retried before its time"
    assert plan.refuse_restart("a") is Refusal.RESTARTING
    plan.mark_stopped("a")
    assert plan.rebuild("a", delay.attempt) is None
    plan.drop("a")
    assert plan.rebuild("a", delay.attempt) is None
    assert plan.retry("a", now_s=0.0) is None
