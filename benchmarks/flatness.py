"""
Decide whether a figure grows in the course of a run. Pure.

Two measures that miss different things: the medians of the first and the last third, which peaks don't move, and the
line through the later samples, whose slope says what a day would come to. What fills up to a bound rises by the first
and is level by the second; a leak goes on.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

S_PER_H = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """
    How a figure went.

    Attributes:
        first, last: Medians of the first and last third after the warm-up.
        allowed: Growth from first to last that is none.
        slope_per_h: Of the line of least squares through the later samples.
        slope_allowed_per_h: Infinite where the slope is not judged.
    """

    name: str
    unit: str
    first: float
    last: float
    allowed: float
    slope_per_h: float
    slope_allowed_per_h: float = math.inf

    @property
    def growth(self) -> float:
        """From the first third to the last; negative when it shrank."""
        return self.last - self.first

    @property
    def flat(self) -> bool:
        """Whether it does not grow; without samples, nothing says so."""
        return self.growth <= self.allowed and (
            math.isinf(self.slope_allowed_per_h) or self.slope_per_h <= self.slope_allowed_per_h
        )


def course(
    name: str,
    unit: str,
    times_s: Sequence[float],
    values: Sequence[float],
    *,
    warm_up_s: float,
    slope_from_s: float = 0.0,
    allowed: float,
    slope_allowed_per_h: float = math.inf,
) -> Course:
    """
    Return how *values* went, one at each of *times_s*; what was before *warm_up_s* is left out.

    The slope is that of what was from *slope_from_s* on. NaN where fewer than three samples remain.
    """
    kept = [(at_s, value) for at_s, value in zip(times_s, values, strict=True) if at_s >= warm_up_s]
    third = len(kept) // 3
    return Course(
        name=name,
        unit=unit,
        first=_median([value for _, value in kept[:third]]),
        last=_median([value for _, value in kept[len(kept) - third :]]),
        allowed=allowed,
        slope_per_h=S_PER_H * slope([point for point in kept if point[0] >= slope_from_s]),
        slope_allowed_per_h=slope_allowed_per_h,
    )


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the slope of the line of least squares; NaN where there is none."""
    if len({x for x, _ in points}) < 2:
        return math.nan
    return statistics.linear_regression([x for x, _ in points], [y for _, y in points]).slope


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else math.nan
