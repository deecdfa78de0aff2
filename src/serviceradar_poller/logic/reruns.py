"""
Decide when an agent that is back is asked again what failed, where the asking may be what takes it away.

An agent that comes back is asked at once: an outage ends in core within a second. But a check may be what breaks the
connection, or kills the agent; asked at once whenever that is back, it would never let it be. So an agent that is lost
soon after such a rerun is given time, twice as much each time, until nothing is left to gain on the regular run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

#: An agent that is lost so soon after a rerun was lost by it, as far as anyone can tell.
BLAMED_S = 5.0
#: The first rerun that waits.
DELAY_S_MIN = 2.0
#: An agent that stayed for so many intervals has taken every check, and is asked at once the next time.
STEADY_INTERVALS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Reruns:
    """
    What is known of an agent's reruns; times are monotonic seconds.

    Attributes:
        blamed: Reruns that the agent did not outlast, less what steadiness has made good.
        reached_s: When it came within reach.
        rerun_s: When it was last asked again.
    """

    blamed: int = 0
    reached_s: float = -math.inf
    rerun_s: float = -math.inf


def on_reached(reruns: Reruns, now: float, interval_s: float) -> tuple[Reruns, float | None]:
    """Return after how long to ask again what failed; None: not before the regular run, at most *interval_s* away."""
    reruns = replace(reruns, reached_s=now)
    if not reruns.blamed:
        return reruns, 0.0
    # The power is bounded: beyond the longest interval it does not matter.
    delay_s = DELAY_S_MIN * 2.0 ** min(reruns.blamed - 1, 64)
    return reruns, delay_s if delay_s < interval_s else None


def on_rerun(reruns: Reruns, now: float) -> Reruns:
    """Take note that it is asked again now."""
    return replace(reruns, rerun_s=now)


def on_lost(reruns: Reruns, now: float, interval_s: float) -> Reruns:
    """Take note that it is out of reach."""
    if now - reruns.reached_s >= STEADY_INTERVALS * interval_s:
        return replace(reruns, blamed=0)
    if now - reruns.rerun_s < BLAMED_S:
        return replace(reruns, blamed=reruns.blamed + 1)
    return reruns
