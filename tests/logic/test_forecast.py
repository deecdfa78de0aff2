"""How soon a store is full."""

from __future__ import annotations

import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from serviceradar_poller.logic.forecast import (
    SAMPLE_S,
    SPAN_S_MIN,
    WINDOW_S,
    Growth,
    bytes_per_s,
    full_in_s,
    observe,
)

STEPS = st.lists(
    st.tuples(st.floats(0.0, 400.0), st.integers(-(10**7), 10**7), st.integers(0, 50)), min_size=1, max_size=200
)


def grown(steps: list[tuple[float, int, int]]) -> Growth:
    growth, now_s, net = Growth(), 0.0, 0
    for pause_s, change, reports in steps:
        now_s += pause_s
        net += change
        growth = observe(growth, now_s, net_bytes=net, reports=reports)
    return growth


@given(rate=st.floats(1.0, 1e8), every_s=st.floats(0.5, 300.0), room=st.integers(0, 10**12))
def test_a_steady_rate_is_found_exactly(rate: float, every_s: float, room: int) -> None:
    """A store that grows evenly is full when what is left divided by the rate has gone by."""
    growth = Growth()
    count = math.ceil(2 * SPAN_S_MIN / every_s) + 1
    for step in range(count):
        growth = observe(growth, step * every_s, net_bytes=round(step * every_s * rate), reports=2 + step)
    assert math.isclose(bytes_per_s(growth), rate, rel_tol=0.05)
    expected = room / rate
    assert math.isclose(full_in_s(growth, room), expected, rel_tol=0.06, abs_tol=1e-9)


@given(steps=STEPS, room=st.integers(-100, 10**12))
def test_it_is_never_negative_and_finite_only_while_the_store_grows(
    steps: list[tuple[float, int, int]], room: int
) -> None:
    """No sequence of looks gives anything but 0 and more, and what shrinks or stands is never full."""
    growth = grown(steps)
    found = full_in_s(growth, room)
    assert found >= 0.0
    assert math.isinf(found) == (bytes_per_s(growth) <= 0)
    if steps[-1][2] < 2:
        assert math.isinf(found)


@given(steps=STEPS)
def test_memory_is_bounded_and_nothing_older_than_the_window_counts(steps: list[tuple[float, int, int]]) -> None:
    """Of the samples at most one lies before the window, and all are in order and apart."""
    growth = grown(steps)
    times = [at_s for at_s, _ in growth.samples]
    assert len(times) <= WINDOW_S / SAMPLE_S + 2
    assert all(later - sooner >= SAMPLE_S for sooner, later in pairwise(times))
    assert sum(at_s < growth.newest[0] - WINDOW_S for at_s in times) <= 1


@given(room=st.integers(0, 10**9), more=st.integers(0, 10**9), rate=st.integers(1, 10**6))
def test_more_room_lasts_longer(room: int, more: int, rate: int) -> None:
    """At the same rate, more room is never used up sooner."""
    growth = Growth(((0.0, 0),), (60.0, 60 * rate))
    assert full_in_s(growth, room) <= full_in_s(growth, room + more)


def test_it_begins_anew_with_each_backlog() -> None:
    """The quiet hour before an outage does not hide how fast the store fills now."""
    growth = Growth()
    for second in range(0, 3_600, 10):
        growth = observe(growth, float(second), net_bytes=1_000, reports=1)
    for second in range(3_600, 3_661, 10):
        growth = observe(growth, float(second), net_bytes=1_000 + (second - 3_600) * 100, reports=second - 3_590)
    assert bytes_per_s(growth) == 100.0
    assert full_in_s(growth, 360_000) == 3_600.0
