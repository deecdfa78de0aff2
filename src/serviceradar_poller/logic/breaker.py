"""
Decide whether a peer is asked at all: CLOSED (yes), OPEN (no), HALF_OPEN (one trial).

                 failures or security failures reach their number
        CLOSED ────────────────────────────────────────────────────► OPEN ◄─────┐
           ▲                                                          │         │ the trial
           │ any success, from any state                       open_s │         │ fails
           └──────────────────────────────────────── HALF_OPEN ◄──────┘─────────┘

Source: Nygard, "Release It!", circuit breaker; the rolling window counts failures since the last success.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace


class BreakerState(enum.StrEnum):
    """What a breaker lets through."""

    CLOSED = "CLOSED"
    OPEN = "OPEN"
    HALF_OPEN = "HALF_OPEN"


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerSettings:
    """
    When a breaker opens and for how long.

    Attributes:
        failures: Failures of any kind within window_s that open it.
        security_failures: Security failures within window_s that open it.
        window_s: How long a failure counts.
        open_s: Time from opening to the trial.
    """

    failures: int = 10
    security_failures: int = 3
    window_s: float = 60.0
    open_s: float = 30.0

    def __post_init__(self) -> None:
        assert self.failures >= 1
        assert self.security_failures >= 1
        assert self.window_s >= 0
        assert self.open_s >= 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """
    A breaker's state.

    Attributes:
        failures: When the counted failures were, oldest first; shorter than the number that opens, and empty
        unless
            CLOSED.
        security: Likewise the security failures, which stand in failures too.
        since_s: When it came into this state.
        cause: What opened it last; empty once closed.
        openings: How often it opened in all.
    """

    state: BreakerState
    failures: tuple[float, ...] = ()
    security: tuple[float, ...] = ()
    since_s: float
    cause: str = ""
    openings: int = 0


def new_breaker(now: float) -> Breaker:
    """Return a breaker that has seen nothing."""
    return Breaker(state=BreakerState.CLOSED, since_s=now)


def allows(breaker: Breaker) -> bool:
    """Whether ordinary calls may be made; a trial is the caller's own exception."""
    return breaker.state is BreakerState.CLOSED


def on_success(breaker: Breaker, settings: BreakerSettings, now: float) -> Breaker:
    """Forget all failures and close: the first success ends an outage at once, whatever the state was."""
    if breaker.state is not BreakerState.CLOSED:
        return Breaker(state=BreakerState.CLOSED, since_s=now, openings=breaker.openings)
    if breaker.failures or breaker.security:
        return replace(breaker, failures=(), security=())
    return breaker


def on_failure(breaker: Breaker, settings: BreakerSettings, now: float, *, security: bool, cause: str) -> Breaker:
    """
    Count a failure, and open when it is one too many.

    While OPEN, failures are of calls that began before: they change nothing, nor do they put the trial off.

    Args:
        cause: Why the call failed, for an operator.
    """
    match breaker.state:
        case BreakerState.OPEN:
            return breaker
        case BreakerState.HALF_OPEN:
            return _opened(breaker, now, cause)
        case BreakerState.CLOSED:
            failures = _counted(breaker.failures, settings, now)
            suspicious = _counted(breaker.security, settings, now, add=security)
            if len(failures) >= settings.failures or len(suspicious) >= settings.security_failures:
                return _opened(breaker, now, cause)
            return replace(breaker, failures=failures, security=suspicious)


def on_timer(breaker: Breaker, settings: BreakerSettings, now: float) -> Breaker:
    """Turn HALF_OPEN when it has been OPEN for long enough: the caller now makes one trial."""
    trial_s = trial_at_s(breaker, settings)
    if trial_s is None or now < trial_s:
        return breaker
    return replace(breaker, state=BreakerState.HALF_OPEN, since_s=now)


def trial_at_s(breaker: Breaker, settings: BreakerSettings) -> float | None:
    """Return when `on_timer` is wanted, or None when no trial is to come."""
    return breaker.since_s + settings.open_s if breaker.state is BreakerState.OPEN else None


def _counted(times: tuple[float, ...], settings: BreakerSettings, now: float, *, add: bool = True) -> tuple[float, ...]:
    kept = tuple(time for time in times if now - time <= settings.window_s)
    return (*kept, now) if add else kept


def _opened(breaker: Breaker, now: float, cause: str) -> Breaker:
    return Breaker(state=BreakerState.OPEN, since_s=now, cause=cause, openings=breaker.openings + 1)
