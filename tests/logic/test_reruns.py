"""When an agent that is back is asked again what failed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serviceradar_poller.logic.reruns import BLAMED_S, DELAY_S_MIN, Reruns, on_lost, on_reached, on_rerun

times = st.floats(0.0, 1e6)
intervals = st.floats(0.01, 86_400.0)


@given(now=times, interval_s=intervals)
def test_an_agent_without_a_record_is_asked_at_once(now: float, interval_s: float) -> None:
    """An outage ends in core as soon as the agent is back."""
    assert on_reached(Reruns(), now, interval_s)[1] == 0.0


@given(now=times, interval_s=intervals, lived_s=st.floats(0.001, BLAMED_S * 0.9))
def test_an_agent_that_dies_of_being_asked_is_left_to_its_regular_runs(
    now: float, interval_s: float, lived_s: float
) -> None:
    """Reruns get rarer, and stop before they come as often as the regular runs."""
    reruns, waits = Reruns(), []
    for _ in range(40):
        reruns, wait_s = on_reached(reruns, now, interval_s)
        if wait_s is None:
            break
        waits.append(wait_s)
        now += wait_s
        reruns = on_rerun(reruns, now)
        now += min(lived_s, interval_s)
        reruns = on_lost(reruns, now, interval_s)
    if 2 * interval_s > lived_s + DELAY_S_MIN + interval_s:
        assert wait_s is None
    assert all(wait_s < interval_s for wait_s in waits[1:])
    assert waits == sorted(waits)


@given(interval_s=st.floats(BLAMED_S, 3_600.0), blamed=st.integers(1, 1_000))
def test_steadiness_makes_it_good(interval_s: float, blamed: int) -> None:
    """An agent that took every check twice is asked at once after its next outage."""
    reruns, _ = on_reached(Reruns(blamed=blamed), 100.0, interval_s)
    assert on_lost(reruns, 100.0 + 2.1 * interval_s, interval_s).blamed == 0
    assert on_lost(reruns, 100.0 + 1.9 * interval_s, interval_s).blamed == blamed
    assert on_lost(on_rerun(reruns, 100.0), 100.0 + BLAMED_S / 2, interval_s).blamed == blamed + 1
