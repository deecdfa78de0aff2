"""What grows is told from what only swings."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.flatness import Course, course, slope

TIMES_S = [10.0 * index for index in range(181)]
LENGTH_S = TIMES_S[-1]


def _course(values: list[float], *, allowed: float = 1.0, slope_allowed_per_h: float = math.inf) -> Course:
    return course(
        "x",
        "",
        TIMES_S[: len(values)],
        values,
        warm_up_s=0.1 * LENGTH_S,
        allowed=allowed,
        slope_allowed_per_h=slope_allowed_per_h,
    )


@given(st.floats(-50.0, 50.0), st.floats(0.0, 1000.0))
def test_a_line_is_measured_exactly(slope_per_h: float, base: float) -> None:
    """Growth of a straight line is its slope times the time between the middles of first and last third."""
    found = _course([base + slope_per_h * at_s / 3600.0 for at_s in TIMES_S])
    assert math.isclose(found.slope_per_h, slope_per_h, abs_tol=1e-6)
    assert math.isclose(found.growth, slope_per_h * 0.9 * LENGTH_S / 3600.0 * 2 / 3, rel_tol=0.02, abs_tol=1e-6)


@given(st.lists(st.floats(0.0, 1.0), min_size=181, max_size=181))
def test_what_stays_within_a_band_does_not_grow_beyond_it(values: list[float]) -> None:
    """Whatever a figure does within its bounds, it does not grow by more than they are apart."""
    assert _course(values, allowed=1.0).flat


@given(st.floats(1.01, 100.0))
def test_a_leak_is_told(leaked: float) -> None:
    """A figure that rises steadily by more than is allowed between the thirds grows."""
    assert not _course([1.5 * 1.15 * leaked * at_s / LENGTH_S for at_s in TIMES_S], allowed=1.0).flat


def test_a_peak_and_the_warm_up_are_no_growth() -> None:
    """Neither what was taken at the beginning nor one bad sample is held against a figure."""
    values = [0.0 if at_s < 0.1 * LENGTH_S else 100.0 for at_s in TIMES_S]
    values[150] = 10_000.0
    assert _course(values).growth == 0.0
    assert _course(values).flat


def test_a_slope_is_judged_where_it_is_asked_for() -> None:
    """A slow rise is flat by its thirds, and not by its slope."""
    values = [2.0 * at_s / 3600.0 for at_s in TIMES_S]
    assert _course(values).flat
    assert _course(values, slope_allowed_per_h=2.1).flat
    assert not _course(values, slope_allowed_per_h=1.9).flat


def test_too_few_samples_prove_nothing() -> None:
    """Without samples for both thirds, no figure is flat; without two times there is no slope."""
    assert not _course([1.0] * 20).flat
    assert not course("x", "", [], [], warm_up_s=0.0, allowed=9.0).flat
    assert math.isnan(slope([(1.0, 2.0), (1.0, 3.0)]))
