"""
Decide how long to wait before trying again, and whether to try at all.

Three rules: exponential delay between the attempts of one call; a budget that keeps retries a fraction of all
calls when everything fails at once; and a delay between attempts to reach a peer that grows with its outage,
so that a short outage is noticed to be over soon and a long one costs little.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

#: An outage younger than this is looked at again …
YOUNG_OUTAGE_S = 20.0
#: … within this, so that an agent back after 20 s is seen in less than 3.6 s, the time to connect included.
YOUNG_DELAY_S_MAX = 3.0
#: A first delay below this is none, and grows to none.
SHORTEST_S = 1e-9
#: Spread of the delay between attempts to reach a peer, each way.
RECONNECT_JITTER = 0.2
#: What a budget lacks by adding up fractions is not a lack.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class BackoffSettings:
    """
    Bounds of an exponential delay.

    Attributes:
        min_s: The first delay, before jitter.
        max_s: No delay is longer, jitter included.
        factor: Growth from one attempt to the next.
        jitter: Spread each way, as a share of the delay.
    """

    min_s: float
    max_s: float
    factor: float = 2.0
    jitter: float = 0.2

    def __post_init__(self) -> None:
        assert 0 <= self.min_s <= self.max_s < math.inf
        assert 1.0 <= self.factor < math.inf
        assert 0.0 <= self.jitter <= 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryBudgetSettings:
    """
    How many retries are allowed.

    Attributes:
        ratio: Retries per call in the long run.
        tokens_max: Retries that may be saved up.
        tokens_initial: Retries that a new budget holds, so that the first failures may be retried.
    """

    ratio: float = 0.1
    tokens_max: float = 10.0
    tokens_initial: float = 10.0

    def __post_init__(self) -> None:
        assert self.ratio >= 0
        assert 0 <= self.tokens_initial <= self.tokens_max


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryBudget:
    """Retries that may be made now."""

    tokens: float


def delay_s(settings: BackoffSettings, attempt: int, u: float) -> float:
    """
    Return how long to wait after failed attempt number *attempt*.

    The spread is never cut off at the top: the longest delays too differ from caller to caller.

    Args:
        attempt: From 0, any size.
        u: Chance, in [0, 1).
    """
    assert attempt >= 0
    assert 0.0 <= u <= 1.0
    top_s = settings.max_s / (1.0 + settings.jitter)
    if settings.min_s >= top_s or settings.factor == 1.0:
        base_s = min(settings.min_s, top_s)
    elif settings.min_s < SHORTEST_S:
        base_s = 0.0
    elif attempt >= (math.log(top_s) - math.log(settings.min_s)) / math.log(settings.factor):
        base_s = top_s
    else:
        half = attempt // 2  # the whole power may be beyond a double although the product is not
        grown_s = settings.min_s * settings.factor**half * settings.factor ** (attempt - half)
        base_s = min(grown_s, top_s)
    return min(settings.max_s, max(0.0, base_s * _spread(settings.jitter, u)))


def new_retry_budget(settings: RetryBudgetSettings) -> RetryBudget:
    """Return a budget that has seen no call."""
    return RetryBudget(tokens=settings.tokens_initial)


def deposit(budget: RetryBudget, settings: RetryBudgetSettings) -> RetryBudget:
    """Count a first attempt: it earns a fraction of a retry. [Source: Finagle's RetryBudget, linkerd.]"""
    if budget.tokens >= settings.tokens_max:
        return budget
    return RetryBudget(tokens=min(settings.tokens_max, budget.tokens + settings.ratio))


def withdraw(budget: RetryBudget) -> tuple[RetryBudget, bool]:
    """Ask for a retry, and pay for it when it is granted."""
    if budget.tokens < 1.0 - _ROUNDING:
        return budget, False
    return RetryBudget(tokens=max(0.0, budget.tokens - 1.0)), True


def reconnect_delay_s(outage_s: float, u: float, *, min_s: float, max_s: float, fraction: float = 0.15) -> float:
    """
    Return how long to wait before the next attempt to reach a peer.

    A *fraction* of the outage so far, within [min_s, max_s], spread by ±20 %, and never above max_s. While
    the outage is young it is never above 3 s either, unless min_s is.

    Args:
        outage_s: How long the peer has been out of reach; may be 0.
        u: Chance, in [0, 1).
    """
    assert outage_s >= 0
    assert 0.0 <= u <= 1.0
    assert 0 <= min_s <= max_s < math.inf
    top_s = max_s
    if outage_s < YOUNG_OUTAGE_S:
        wanted_s = min_s * (1.0 + RECONNECT_JITTER)
        top_s = min(max_s, wanted_s if min_s > YOUNG_DELAY_S_MAX else YOUNG_DELAY_S_MAX)
    base_s = min(max(fraction * outage_s, min_s), top_s / (1.0 + RECONNECT_JITTER))
    return min(top_s, base_s * _spread(RECONNECT_JITTER, u))


def _spread(jitter: float, u: float) -> float:
    return 1.0 + jitter * (2.0 * u - 1.0)
