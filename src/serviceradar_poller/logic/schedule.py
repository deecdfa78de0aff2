"""
Decide when each check of one agent runs.

    time      |--------------|--------------|--------------|---->   tick k = epoch + k * interval
    plain       ^run           ^run (long)................ ^run     slot k = tick k + the check's offset;
                                              ^missed               what a run outlasts is not replayed
    results     ^run         <- its interval ->^run                 next = start + interval, off the ticks

A check never overlaps itself: between `due` and `finished` it is not due again. Whatever made it late (a long
run, a blocked loop, a suspended machine), it then runs once, and the slots that went by are counted with that
run.

Offsets are hashed, not drawn: a restart keeps every check at its place, and no cycle is a burst. [Prometheus
scrape/target.go `offset`; refused: jitter per run, which makes every interval uneven.]
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

#: A regular run this soon after an expedited one would tell nothing new.
EXPEDITED_COVERS_S = 1.0
#: Plain checks of an agent that begin together: a wake-up and a TLS record for all of them, and no burst.
CHECKS_TOGETHER = 8
#: Places in the spread window lie at least this far apart. What is alone at its place wakes the program for itself,
#: and a sleeping program begins with cold caches: with a place for every agent a cycle of 1,000 costs 40 % more CPU.
PLACE_STEP_S = 0.02
#: Results are never asked for more often, whatever the configuration says.
RESULTS_INTERVAL_S_MIN = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Timetable:
    """The ticks of the poller: ``epoch_s + k * interval_s`` for k = 0, 1, …, in monotonic seconds."""

    epoch_s: float
    interval_s: float

    def __post_init__(self) -> None:
        assert 0 < self.interval_s < math.inf
        assert math.isfinite(self.epoch_s)

    def tick_at(self, now: float) -> int:
        """Return the index of the newest tick at or before *now*; 0 before the first."""
        return max(0, self._newest(now, 0.0))

    def tick_time(self, index: int) -> float:
        """Return when the tick *index* is."""
        return self.epoch_s + index * self.interval_s

    def _newest(self, now: float, offset_s: float) -> int:
        """Return the newest k with tick_time(k) + offset_s <= now, which may be negative."""
        epoch_s, interval_s = self.epoch_s, self.interval_s
        index = math.floor((now - offset_s - epoch_s) / interval_s)
        # The division rounds; the comparison that counts is the one with the slot's own time.
        while epoch_s + index * interval_s + offset_s > now:
            index -= 1
        while epoch_s + (index + 1) * interval_s + offset_s <= now:
            index += 1
        return index


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckPlan:
    """
    How one check wants to run.

    Attributes:
        key: Its identity within the agent.
        interval_s: None for a plain check, which runs once a tick; a results check has an interval of its
        own,
            0 meaning the tick's.
        offset_s: Place after the tick, from `offset_s`.
    """

    key: str
    interval_s: float | None
    offset_s: float

    def __post_init__(self) -> None:
        assert 0 <= self.offset_s < math.inf
        assert self.interval_s is None or 0 <= self.interval_s < math.inf


class Due(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """
    One run that begins now.

    Attributes:
        tick: The cycle that the run's outcome belongs to. An expedited run that makes the next slot needless
            carries that slot's tick, which then begins within a second.
        scheduled_s: When it should have begun; of several missed slots the newest.
        lateness_s: How long ago that was, never negative.
        missed: Slots that went by without a run since the last one.
    """

    key: str
    tick: int
    scheduled_s: float
    lateness_s: float
    missed: int


class _Check(msgspec.Struct, frozen=True, gc=False):
    """
    One check's state. Two of these are made in every run of a check: a dataclass takes five times as long to make.

    Attributes:
        next_s: When its next regular run is due. While it runs: the earliest that the next one can be.
        slot: For a plain check, the slot of next_s.
        accounted: For a plain check, the first slot that has neither run, nor been covered, nor been counted.
        expedited_s: When an extra run was asked for that has not begun.
    """

    plan: CheckPlan
    next_s: float
    slot: int = 0
    accounted: int = 0
    running: bool = False
    expedited_s: float | None = None

    @property
    def wanted_s(self) -> float | None:
        if self.running:
            return None
        return self.next_s if self.expedited_s is None else min(self.expedited_s, self.next_s)


class Schedule(msgspec.Struct, frozen=True):
    """The checks of one agent and where they stand; opaque."""

    timetable: Timetable
    checks: Mapping[str, _Check]
    now_s: float
    wake_s: float | None


def offset_s(poller_id: str, agent: str, check_key: str, window_s: float) -> float:
    """
    Return the check's place after each tick: stable, evenly spread over [0, *window_s*), anywhere the same.

    The window has one place for every PLACE_STEP_S, at least one.

    Args:
        window_s: 0 puts every check on the tick itself.
    """
    assert window_s >= 0
    places = max(1, math.floor(window_s / PLACE_STEP_S))
    # The hash as a fraction of 2**64, times the places, rounded down; in integers, so that it never reaches `places`.
    return (_hashed(poller_id, agent, check_key) * places >> 64) * (window_s / places)


def place_of(check_key: str, checks: int) -> str:
    """
    Return the name of the place that a plain check shares with some of its agent's others, to give to `offset_s`.

    Args:
        checks: Plain checks of the agent. Up to CHECKS_TOGETHER share one place; of more, about so many each.
    """
    places = math.ceil(checks / CHECKS_TOGETHER)
    return str(_hashed(check_key) % places) if places > 1 else ""


def new_schedule(timetable: Timetable, plans: Sequence[CheckPlan], now: float) -> Schedule:
    """
    Return a schedule where nothing has run yet: every check is first due at the newest tick + its offset.

    A check whose place in the current interval has gone by does not wait for the next tick: its first run is
    its offset from *now*, so that a thousand agents that are set up at once still don't burst.
    """
    tick = timetable.tick_at(now)
    checks: dict[str, _Check] = {}
    for plan in plans:
        assert plan.key not in checks, f"two checks with the key {plan.key!r}"
        first_s = timetable.tick_time(tick) + plan.offset_s
        if first_s < now:
            first_s = now + plan.offset_s
        checks[plan.key] = _Check(plan, next_s=first_s, slot=tick, accounted=tick)
    return _schedule(timetable, checks, now)


def due(schedule: Schedule, now: float) -> tuple[Schedule, tuple[Due, ...]]:
    """
    Take every check that is due at *now*, at most once each and earliest first, and mark it as running.

    Raises:
        AssertionError: Time went backwards (a bug in the caller); so in the other functions.
    """
    assert now >= schedule.now_s, "time went backwards"
    if schedule.wake_s is None or now < schedule.wake_s:
        return schedule, ()
    checks = dict(schedule.checks)
    taken: list[Due] = []
    for key, check in schedule.checks.items():
        if check.running:
            continue
        if check.next_s <= now or (check.expedited_s is not None and check.expedited_s <= now):
            start = _start_plain if check.plan.interval_s is None else _start_results
            checks[key], run = start(schedule.timetable, check, now)
            taken.append(run)
    if len(taken) > 1:
        taken.sort(key=lambda run: run.scheduled_s)
    return _schedule(schedule.timetable, checks, now), tuple(taken)


def finished(schedule: Schedule, key: str, now: float, *, ok: bool, retry_delay_s: float | None = None) -> Schedule:
    """
    Mark the run of *key* as over, and place the next one.

    A plain check goes on at its next slot after *now*. A results check goes on one interval after its start,
    or at once when it took longer; when it failed, after *retry_delay_s*, if that is given and sooner.

    Raises:
        AssertionError: It was not running.
    """
    assert now >= schedule.now_s, "time went backwards"
    check = schedule.checks[key]
    assert check.running, f"{key!r} finished without running"
    plan, slot, next_s = check.plan, check.slot, check.next_s
    if plan.interval_s is None:
        timetable = schedule.timetable
        if next_s <= now or next_s != timetable.tick_time(slot) + plan.offset_s:
            slot = max(slot, timetable._newest(now, plan.offset_s) + 1)
            next_s = timetable.tick_time(slot) + plan.offset_s
    else:
        if not ok and retry_delay_s is not None:
            assert retry_delay_s >= 0
            next_s = min(now + retry_delay_s, max(next_s, now))
    check = _Check(plan, next_s, slot, check.accounted, expedited_s=check.expedited_s)
    return _schedule(schedule.timetable, {**schedule.checks, key: check}, now)


def expedite(schedule: Schedule, keys: Iterable[str], now: float) -> Schedule:
    """
    Ask for one extra run of *keys*, as soon as possible; those that are running are left alone.

    The regular runs stay where they are, but one within EXPEDITED_COVERS_S after the extra run's start is
    left out, and is not missed.

    Raises:
        KeyError: A key is not of this schedule.
    """
    assert now >= schedule.now_s, "time went backwards"
    checks = dict(schedule.checks)
    for key in keys:
        check = checks[key]
        if not check.running and check.expedited_s is None:
            checks[key] = msgspec.structs.replace(check, expedited_s=now)
    return _schedule(schedule.timetable, checks, now)


def next_due_s(schedule: Schedule) -> float | None:
    """Return when `due` has something to give; None while everything runs or there is nothing."""
    return schedule.wake_s


def running(schedule: Schedule) -> tuple[str, ...]:
    """Return the checks that `due` gave and that have not `finished`."""
    return tuple(key for key, check in schedule.checks.items() if check.running)


def _hashed(*parts: str) -> int:
    """Return 64 bits of *parts*, which don't run into each other."""
    text = "".join(f"{len(part)}:{part}" for part in parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def _start_plain(timetable: Timetable, check: _Check, now: float) -> tuple[_Check, Due]:
    offset = check.plan.offset_s
    expedited = check.next_s > now
    if not expedited:
        slot = max(check.slot, timetable._newest(now, offset))
        # A first run that was put off has its own time, not its slot's.
        scheduled_s = check.next_s if slot == check.slot else timetable.tick_time(slot) + offset
    else:
        assert check.expedited_s is not None
        scheduled_s = check.expedited_s
        if check.next_s - now < EXPEDITED_COVERS_S:
            slot = check.slot  # this run stands in for it
        else:
            slot = check.slot - 1
    run = Due(
        key=check.plan.key,
        tick=max(slot, timetable.tick_at(now)) if expedited else slot,
        scheduled_s=scheduled_s,
        lateness_s=max(0.0, now - scheduled_s),
        missed=(check.slot if expedited else slot) - check.accounted,
    )
    following = slot + 1
    next_s = check.next_s if following == check.slot else timetable.tick_time(following) + offset
    return _Check(check.plan, next_s=next_s, slot=following, accounted=following, running=True), run


def _start_results(timetable: Timetable, check: _Check, now: float) -> tuple[_Check, Due]:
    interval_s = _interval_s(timetable, check.plan)
    if check.next_s <= now:
        missed = math.floor((now - check.next_s) / interval_s)
        scheduled_s = min(now, check.next_s + missed * interval_s)
        next_s = now + interval_s
    else:
        assert check.expedited_s is not None
        missed = 0
        scheduled_s = check.expedited_s
        covered = check.next_s - now < EXPEDITED_COVERS_S
        next_s = check.next_s + interval_s if covered else check.next_s
    run = Due(
        key=check.plan.key,
        tick=timetable.tick_at(now),
        scheduled_s=scheduled_s,
        lateness_s=now - scheduled_s,
        missed=missed,
    )
    return _Check(check.plan, next_s=next_s, running=True), run


def _interval_s(timetable: Timetable, plan: CheckPlan) -> float:
    assert plan.interval_s is not None
    return max(plan.interval_s, RESULTS_INTERVAL_S_MIN) if plan.interval_s > 0 else timetable.interval_s


def _schedule(timetable: Timetable, checks: Mapping[str, _Check], now: float) -> Schedule:
    wake_s: float | None = None
    for check in checks.values():
        wanted_s = check.wanted_s
        if wanted_s is not None and (wake_s is None or wanted_s < wake_s):
            wake_s = wanted_s
    return Schedule(timetable, checks, now, wake_s)
