"""What has waited too long, whatever the clock on the wall says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serviceradar_poller.logic.waiting import MARKS_MAX, Mark, look

AGE_S = 7_200.0


@given(st.lists(st.tuples(st.floats(0.1, 500.0), st.integers(0, 20)), min_size=1, max_size=300))
def test_everything_waits_as_long_as_it_may_and_little_longer(steps: list[tuple[float, int]]) -> None:
    """No report is given up early, none waits for longer than it may but by one mark and one look."""
    marks: tuple[Mark, ...] = ()
    now_s, last_id, given_up = 0.0, 0, 0
    born: list[float] = []
    longest_s = 0.0
    for step_s, count in steps:
        now_s += step_s
        longest_s = max(longest_s, step_s)
        last_id += count
        born += [now_s] * count
        marks, too_old = look(marks, now_s=now_s, last_id=last_id, age_max_s=AGE_S)
        given_up = max(given_up, too_old or 0)
        assert all(now_s - at_s >= AGE_S for at_s in born[:given_up])
        assert all(now_s - at_s <= AGE_S + AGE_S / MARKS_MAX + 2 * longest_s for at_s in born[given_up:])
        assert len(marks) <= MARKS_MAX + 2


def test_what_could_not_be_given_up_is_asked_for_again() -> None:
    """The store may fail: until there is a newer answer the last one is repeated."""
    marks, too_old = look((), now_s=0.0, last_id=5, age_max_s=AGE_S)
    assert too_old is None
    for now_s in (AGE_S, AGE_S + 1.0, AGE_S + 2.0):
        marks, too_old = look(marks, now_s=now_s, last_id=9, age_max_s=AGE_S)
        assert too_old == 5
