from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serviceradar_poller.logic.schedule import (
    CHECKS_TOGETHER,
    EXPEDITED_COVERS_S,
    PLACE_STEP_S,
    CheckPlan,
    Due,
    Schedule,
    Timetable,
    due,
    expedite,
    finished,
    new_schedule,
    next_due_s,
    offset_s,
    place_of,
    running,
)

times = st.floats(0, 1e7, allow_nan=False)
intervals = st.floats(0.01, 1e5, allow_nan=False)


def plain(key: str = "ping", offset: float = 0.0) -> CheckPlan:
    return CheckPlan(key=key, interval_s=None, offset_s=offset)


def results(key: str = "sweep", interval: float = 600.0, offset: float = 0.0) -> CheckPlan:
    return CheckPlan(key=key, interval_s=interval, offset_s=offset)


def start(*plans: CheckPlan, interval: float = 30.0, epoch: float = 100.0, now: float = 100.0) -> Schedule:
    return new_schedule(Timetable(epoch_s=epoch, interval_s=interval), plans, now)


def only(taken: tuple[Due, ...]) -> Due:
    (run,) = taken
    return run


@given(times, intervals, times)
def test_tick_at_is_the_newest_tick_that_has_come(epoch: float, interval: float, now: float) -> None:
    """The tick at a time is the last one not after it, by the very times that tick_time gives; 0 before all."""
    timetable = Timetable(epoch_s=epoch, interval_s=interval)
    index = timetable.tick_at(now)
    assert index >= 0
    assert timetable.tick_time(index + 1) > now
    assert timetable.tick_time(index) <= now or index == 0


@given(times, intervals, st.integers(0, 10_000))
def test_the_time_of_a_tick_belongs_to_that_tick(epoch: float, interval: float, index: int) -> None:
    """tick_at undoes tick_time, whatever the rounding."""
    timetable = Timetable(epoch_s=epoch, interval_s=interval)
    assert timetable.tick_at(timetable.tick_time(index)) == index


@given(st.text(), st.text(), st.text(), st.floats(0, 1e6, allow_nan=False))
def test_an_offset_lies_in_its_window_and_never_changes(poller: str, agent: str, key: str, window: float) -> None:
    """An offset depends on its arguments only and lies in [0, window)."""
    offset = offset_s(poller, agent, key, window)
    assert offset == offset_s(poller, agent, key, window)
    assert 0 <= offset < window or (window == 0 == offset)


def test_offsets_are_the_same_in_every_process() -> None:
    """The place of a check is fixed for good: it is the one that the b2sum tool gives for its names."""
    digest = 0xA41CB9423A3FA2FC  # printf 6:site-a7:edge-019:icmp:ping | b2sum -l 64
    assert offset_s("site-a", "edge-01", "icmp:ping", 1.0) == pytest.approx(math.floor(digest / 2**64 * 50) / 50)
    assert offset_s("site-a", "edge-01", "icmp:ping", 1e6) == pytest.approx(digest / 2**64 * 1e6, abs=PLACE_STEP_S)


def test_offsets_spread_evenly() -> None:
    """A thousand agents' checks fill every tenth of the window with a tenth of them, within five sigma."""
    tenths = Counter(int(offset_s("p", f"agent-{i}", f"c{i % 3}", 10.0)) for i in range(3000))
    assert sorted(tenths) == list(range(10))
    assert all(abs(count - 300) < 5 * math.sqrt(3000 * 0.1 * 0.9) for count in tenths.values())


@given(st.floats(PLACE_STEP_S, 100.0))
def test_agents_share_places(window: float) -> None:
    """The window is cut into equal places of at least a fixed step, so that agents begin together."""
    offsets = sorted({offset_s("p", f"agent-{i}", "", window) for i in range(200)})
    steps = [after - before for before, after in itertools.pairwise(offsets)]
    assert all(step >= PLACE_STEP_S - 1e-9 for step in steps)
    width = window / math.floor(window / PLACE_STEP_S)
    assert all(offset / width == pytest.approx(round(offset / width), abs=1e-6) for offset in offsets)


@given(st.lists(st.text(), min_size=1, max_size=100, unique=True))
def test_the_checks_of_an_agent_share_few_places(keys: list[str]) -> None:
    """Up to eight checks share one place; more have about one for every eight, each for the same key the same."""
    places = Counter(place_of(key, len(keys)) for key in keys)
    assert len(places) <= math.ceil(len(keys) / CHECKS_TOGETHER)
    assert len(keys) > CHECKS_TOGETHER or list(places) == [""]
    assert all(place_of(key, len(keys)) in places for key in keys)


def test_the_checks_of_an_agent_with_many_are_spread() -> None:
    """Of 800 checks no place has far more than its share of eight."""
    places = Counter(place_of(f"icmp:ping-{i}", 800) for i in range(800))
    assert len(places) == 100
    assert max(places.values()) <= 20


def test_names_do_not_run_into_each_other() -> None:
    """Agent `ab` with check `c` is placed apart from agent `a` with check `bc`."""
    assert offset_s("p", "ab", "c", 1.0) != offset_s("p", "a", "bc", 1.0)


# -- the whole life of one schedule, against what must hold after every step

actions = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.floats(0, 200, allow_nan=False)),
        st.tuples(st.just("wake"), st.just(0.0)),
        st.tuples(st.just("finish"), st.floats(0, 1, exclude_max=True)),
        st.tuples(st.just("fail"), st.floats(0, 40, allow_nan=False)),
        st.tuples(st.just("expedite"), st.floats(0, 1, exclude_max=True)),
    ),
    max_size=60,
)
plan_lists = st.lists(
    st.tuples(st.one_of(st.none(), st.floats(0, 300, allow_nan=False)), st.floats(0, 20, allow_nan=False)),
    min_size=0,
    max_size=5,
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.floats(1, 60, allow_nan=False), plan_lists, actions, st.floats(-10, 100, allow_nan=False))
@example(1.0, [(None, 18.0)], [], -5.0)  # before the first tick
def test_no_check_overlaps_itself_is_forgotten_or_replayed(
    interval: float,
    shapes: list[tuple[float | None, float]],
    script: list[tuple[str, float]],
    created_after: float,
) -> None:
    """
    Whatever happens: no check is due while it runs, each is due again after it, late work runs once, and for a
    plain check every slot is either run, covered by an expedited run, or counted as missed.
    """
    plans = [CheckPlan(key=str(i), interval_s=s, offset_s=o) for i, (s, o) in enumerate(shapes)]
    now = 1000.0 + created_after
    timetable = Timetable(epoch_s=1000.0, interval_s=interval)
    schedule = new_schedule(timetable, plans, now)
    busy: set[str] = set()
    last_tick = {plan.key: -1 for plan in plans}
    accounted = {plan.key: timetable.tick_at(now) for plan in plans}
    by_key = {plan.key: plan for plan in plans}

    def wake() -> None:
        nonlocal schedule
        before = next_due_s(schedule)
        schedule, taken = due(schedule, now)
        assert bool(taken) == (before is not None and before <= now)
        assert [run.scheduled_s for run in taken] == sorted(run.scheduled_s for run in taken)
        for run in taken:
            assert run.key not in busy
            busy.add(run.key)
            assert run.missed >= 0
            assert run.lateness_s == pytest.approx(now - run.scheduled_s)
            assert run.lateness_s >= 0
            assert run.tick >= last_tick[run.key]
            last_tick[run.key] = run.tick
            if by_key[run.key].interval_s is None:
                grid = schedule.checks[run.key]
                # Between the last accounted slot and the next regular one lie the missed ones and at most this run.
                assert grid.accounted - accounted[run.key] - run.missed in (0, 1)
                accounted[run.key] = grid.accounted
        assert next_due_s(schedule) is None or next_due_s(schedule) > now  # type: ignore[operator]
        assert due(schedule, now) == (schedule, ())

    for verb, amount in script:
        if verb == "wait":
            now += amount
        elif verb == "wake":
            wake()
        elif verb == "expedite" and plans:
            key = plans[int(amount * len(plans))].key
            schedule = expedite(schedule, (key,), now)
            assert key in busy or next_due_s(schedule) <= now  # type: ignore[operator]
        elif verb in ("finish", "fail") and busy:
            key = sorted(busy)[int(amount * 7) % len(busy)]
            busy.remove(key)
            if verb == "finish":
                schedule = finished(schedule, key, now, ok=True)
            else:
                schedule = finished(schedule, key, now, ok=False, retry_delay_s=amount)
                if by_key[key].interval_s is not None:
                    assert next_due_s(schedule) <= now + amount  # type: ignore[operator]
            if by_key[key].interval_s is None:
                assert schedule.checks[key].next_s > now
        assert set(running(schedule)) == busy
        assert (next_due_s(schedule) is None) == (len(busy) == len(plans))
    for key in sorted(busy):  # liveness: all that ran is due again, within one interval and its offset
        schedule = finished(schedule, key, now, ok=True)
    busy.clear()
    now = max(now, timetable.epoch_s) + max([interval, *(shape[0] or 0 for shape in shapes)]) + 21
    wake()
    assert len(busy) == len(plans)


def test_checks_run_at_their_offset_after_every_tick() -> None:
    """A check that keeps up runs once a tick, at the same place, never late."""
    schedule = start(plain(offset=2.5))
    for tick in range(5):
        now = next_due_s(schedule)
        assert now == 100 + 30 * tick + 2.5
        schedule, taken = due(schedule, now)
        assert only(taken) == Due(key="ping", tick=tick, scheduled_s=now, lateness_s=0, missed=0)
        schedule = finished(schedule, "ping", now + 1, ok=True)


def test_a_run_past_later_ticks_makes_them_missed() -> None:
    """A run of 70 s in a 30 s grid costs two slots; the next is in the future, and says so."""
    schedule, _ = due(start(plain(offset=1)), 101)
    schedule = finished(schedule, "ping", 171, ok=False)
    assert next_due_s(schedule) == 191
    schedule, taken = due(schedule, 191)
    assert only(taken) == Due(key="ping", tick=3, scheduled_s=191, lateness_s=0, missed=2)


def test_a_slot_at_the_very_end_of_a_run_is_missed() -> None:
    """The next run lies strictly after the end of the last."""
    schedule, _ = due(start(plain()), 100)
    schedule = finished(schedule, "ping", 130, ok=True)
    assert next_due_s(schedule) == 160


def test_after_hours_of_sleep_each_check_runs_once() -> None:
    """A machine that was suspended for three hours runs each check once and counts what it missed."""
    schedule = start(plain("a", offset=1), plain("b", offset=2), results("c", interval=600))
    schedule, taken = due(schedule, 110)
    for run in taken:
        schedule = finished(schedule, run.key, 111, ok=True)
    schedule, taken = due(schedule, 111 + 3 * 3600)
    assert {run.key: run.missed for run in taken} == {"a": 359, "b": 359, "c": 17}
    assert all(run.lateness_s < 600 for run in taken)
    assert due(schedule, 111 + 3 * 3600)[1] == ()


def test_results_follow_their_own_interval_from_their_start() -> None:
    """A results check runs at first like the others, then one interval after each start."""
    schedule, taken = due(start(results(interval=45, offset=3)), 103)
    assert only(taken).tick == 0
    schedule = finished(schedule, "sweep", 110, ok=True, retry_delay_s=1)
    assert next_due_s(schedule) == 148
    schedule, taken = due(schedule, 150)
    assert only(taken) == Due(key="sweep", tick=1, scheduled_s=148, lateness_s=2, missed=0)
    assert next_due_s(finished(schedule, "sweep", 151, ok=True)) == 195


def test_failed_results_do_not_wait_a_whole_interval() -> None:
    """A results check that failed runs after the retry delay, but never later than its interval."""
    schedule, _ = due(start(results(interval=600)), 100)
    assert next_due_s(finished(schedule, "sweep", 110, ok=False, retry_delay_s=5)) == 115
    assert next_due_s(finished(schedule, "sweep", 110, ok=False)) == 700
    assert next_due_s(finished(schedule, "sweep", 695, ok=False, retry_delay_s=60)) == 700
    assert next_due_s(finished(schedule, "sweep", 800, ok=False, retry_delay_s=60)) == 800


def test_a_results_interval_of_nothing_is_the_tick() -> None:
    """`0s` means with every tick, not without pause; and a tiny interval has a floor."""
    schedule, _ = due(start(results(interval=0)), 100)
    assert next_due_s(finished(schedule, "sweep", 101, ok=True)) == 130
    schedule, _ = due(start(results(interval=1e-9)), 100)
    assert next_due_s(finished(schedule, "sweep", 100, ok=True)) == pytest.approx(100.1)


def test_an_expedited_run_leaves_the_grid_where_it_is() -> None:
    """An extra run comes at once, belongs to the cycle under way, and the next regular one stays."""
    schedule, _ = due(start(plain(offset=1)), 101)
    schedule = expedite(finished(schedule, "ping", 102, ok=False), ["ping"], 110)
    assert next_due_s(schedule) == 110
    schedule, taken = due(schedule, 110.5)
    assert only(taken) == Due(key="ping", tick=0, scheduled_s=110, lateness_s=0.5, missed=0)
    schedule = finished(schedule, "ping", 112, ok=True)
    schedule, taken = due(schedule, 131)
    assert only(taken) == Due(key="ping", tick=1, scheduled_s=131, lateness_s=0, missed=0)


def test_an_expedited_run_covers_a_slot_that_is_near() -> None:
    """A regular run less than a second after the extra one is left out, is not missed, and its cycle is served."""
    schedule, _ = due(start(plain(offset=1)), 101)
    schedule = expedite(finished(schedule, "ping", 102, ok=False), ["ping"], 130.5)
    schedule, taken = due(schedule, 130.5)
    assert only(taken) == Due(key="ping", tick=1, scheduled_s=130.5, lateness_s=0, missed=0)
    schedule = finished(schedule, "ping", 132, ok=True)
    schedule, taken = due(schedule, 161)
    assert only(taken) == Due(key="ping", tick=2, scheduled_s=161, lateness_s=0, missed=0)


def test_a_run_belongs_to_the_tick_of_its_slot() -> None:
    """A run that is so late that the next tick has begun is still the last tick's; the next slot stays its own."""
    schedule, taken = due(start(plain(offset=5)), 131)
    assert only(taken) == Due(key="ping", tick=0, scheduled_s=105, lateness_s=26, missed=0)
    assert next_due_s(finished(schedule, "ping", 132, ok=True)) == 135


def test_an_expedited_run_just_before_a_tick_serves_that_tick() -> None:
    """A run that makes the next slot needless carries its tick, so that no cycle waits for it in vain."""
    schedule, _ = due(start(plain()), 100)
    schedule, taken = due(expedite(finished(schedule, "ping", 102, ok=False), ["ping"], 129.5), 129.5)
    assert only(taken).tick == 1
    # Asked for again before that tick has come: ticks never go back.
    schedule = expedite(finished(schedule, "ping", 129.6, ok=False), ["ping"], 129.7)
    schedule, taken = due(schedule, 129.7)
    assert (only(taken).tick, next_due_s(finished(schedule, "ping", 129.8, ok=True))) == (1, 160)


def test_a_slot_exactly_a_second_away_is_not_covered() -> None:
    """The bound belongs to the regular run."""
    schedule, _ = due(start(plain()), 100)
    schedule = expedite(finished(schedule, "ping", 102, ok=False), ["ping"], 130 - EXPEDITED_COVERS_S)
    schedule, _ = due(schedule, 130 - EXPEDITED_COVERS_S)
    assert next_due_s(finished(schedule, "ping", 129.5, ok=True)) == 130


def test_an_expedited_results_run_leaves_its_interval_where_it_is() -> None:
    """The extra run of a results check does not move the next regular one, unless that is near."""
    schedule, _ = due(start(results(interval=600)), 100)
    schedule = finished(schedule, "sweep", 101, ok=True)
    extra, _ = due(expedite(schedule, ["sweep"], 200), 200)
    assert next_due_s(finished(extra, "sweep", 201, ok=True)) == 700
    assert next_due_s(finished(extra, "sweep", 201, ok=False, retry_delay_s=7)) == 208
    near, _ = due(expedite(schedule, ["sweep"], 699.5), 699.5)
    assert next_due_s(finished(near, "sweep", 699.6, ok=True)) == 1300


def test_what_runs_is_not_expedited() -> None:
    """An extra run of a check that is running is not remembered for later."""
    schedule, _ = due(start(plain()), 100)
    schedule = expedite(schedule, ["ping"], 105)
    assert next_due_s(schedule) is None
    assert next_due_s(finished(schedule, "ping", 106, ok=True)) == 130


def test_expediting_again_does_not_make_it_look_younger() -> None:
    """The lateness of an extra run counts from the first request."""
    schedule, _ = due(start(plain()), 100)
    schedule = finished(schedule, "ping", 101, ok=False)
    schedule = expedite(expedite(schedule, ["ping"], 105), ["ping"], 109)
    assert only(due(schedule, 110)[1]).lateness_s == 5


def test_checks_that_come_in_the_middle_of_an_interval_are_spread_too() -> None:
    """Agents set up late run their first checks at their offsets from then, and count nothing as missed or late."""
    schedule = start(plain("a", offset=0), plain("b", offset=3), plain("c", offset=25), now=3710.0)
    assert next_due_s(schedule) == 3710
    first = [(run.key, run.scheduled_s, run.tick, run.missed) for run in due(schedule, 3726.0)[1]]
    assert first == [("a", 3710, 120, 0), ("b", 3713, 120, 0), ("c", 3725, 120, 0)]


def test_a_schedule_without_checks_never_wakes() -> None:
    """No checks, no wake."""
    assert next_due_s(start()) is None
    assert due(start(), 1e6)[1] == ()


@pytest.mark.parametrize(
    "step",
    [
        lambda schedule: due(schedule, 99.0),
        lambda schedule: finished(schedule, "ping", 99.0, ok=True),
        lambda schedule: expedite(schedule, [], 99.0),
    ],
)
def test_time_does_not_go_back(step: Callable[[Schedule], object]) -> None:
    """A caller whose clock runs backwards is a bug."""
    schedule, _ = due(start(plain()), 100)
    with pytest.raises(AssertionError, match="backwards"):
        step(schedule)


def test_finishing_what_does_not_run_is_a_bug() -> None:
    """A check can finish only once for each time that it was due."""
    with pytest.raises(AssertionError, match="without running"):
        finished(start(plain()), "ping", 100, ok=True)


def test_two_checks_with_one_key_are_a_bug() -> None:
    """Keys are what runs are told apart by."""
    with pytest.raises(AssertionError, match="two checks"):
        start(plain(), plain())


def test_a_step_leaves_the_state_that_it_was_given() -> None:
    """Schedules are values: a step on one can be taken again from the same state, with the same result."""
    before = start(plain("a"), plain("b", offset=5))
    keep = dict(before.checks)
    after = [due(before, 107) for _ in range(2)]
    assert after[0] == after[1]
    expedite(before, ["b"], 107)
    assert dict(before.checks) == keep


def test_many_agents_wake_seldom() -> None:
    """The schedule says exactly when to look: each wake has work, so a cycle costs one wake a check."""
    schedule = start(*(plain(str(i), offset=i / 20) for i in range(20)))
    wakes = 0
    for _ in itertools.repeat(None, 100):
        now = next_due_s(schedule)
        assert now is not None
        if now >= 130:
            break
        schedule, taken = due(schedule, now)
        assert taken
        wakes += 1
        for run in taken:
            schedule = finished(schedule, run.key, now, ok=True)
    assert wakes == 20
