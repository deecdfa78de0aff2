"""
How soon a store is full when it goes on filling as it did lately.

    rate = what came in less what left, since the backlog began or for WINDOW_S, whichever is shorter
    full in = what is left of the bound / rate

What was given up for want of room counts as still being there: a full store that drops the oldest for each new report
does not grow and is full all the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

#: The rate is taken over this time at most: a few cycles of every usual interval.
WINDOW_S = 600.0
#: No rate is taken from less: two reports within a second say nothing of the next hour.
SPAN_S_MIN = 30.0
#: Between two samples that are kept.
SAMPLE_S = 5.0
#: A report that is on its way is no backlog.
BACKLOG_REPORTS_MIN = 2


@dataclass(frozen=True, slots=True)
class Growth:
    """
    What a store grew by; at most WINDOW_S / SAMPLE_S + 2 samples.

    Attributes:
        samples: Monotonic seconds and net bytes, oldest first, SAMPLE_S apart; the first may lie before the window.
        newest: The latest one.
    """

    samples: tuple[tuple[float, int], ...] = ()
    newest: tuple[float, int] = (0.0, 0)


def observe(growth: Growth, now_s: float, *, net_bytes: int, reports: int) -> Growth:
    """
    Take a look at the store in.

    Args:
        now_s: Monotonic seconds, not before the previous look.
        net_bytes: All that came in less all that left for core, since the start of the program.
        reports: How many wait.
    """
    if reports < BACKLOG_REPORTS_MIN:
        return Growth()
    here = (now_s, net_bytes)
    samples = growth.samples
    if not samples or now_s - samples[-1][0] >= SAMPLE_S:
        samples = (*samples, here)
    first = 0
    while first + 1 < len(samples) and samples[first + 1][0] <= now_s - WINDOW_S:
        first += 1
    return Growth(samples[first:], here)


def bytes_per_s(growth: Growth) -> float:
    """Return the rate, negative while the store empties; 0 while too little is known."""
    if not growth.samples:
        return 0.0
    began_s, net = growth.samples[0]
    span_s = growth.newest[0] - began_s
    return (growth.newest[1] - net) / span_s if span_s >= SPAN_S_MIN else 0.0


def full_in_s(growth: Growth, room_bytes: int) -> float:
    """Return the seconds until *room_bytes* are used up, 0 and more; infinite while the store does not grow."""
    rate = bytes_per_s(growth)
    return max(room_bytes, 0) / rate if rate > 0 else math.inf
