from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serviceradar_poller.logic.breaker import (
    Breaker,
    BreakerSettings,
    BreakerState,
    allows,
    new_breaker,
    on_failure,
    on_success,
    on_timer,
    trial_at_s,
)

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN

settings_ = st.builds(
    BreakerSettings,
    failures=st.integers(1, 6),
    security_failures=st.integers(1, 4),
    window_s=st.integers(0, 20).map(float),
    open_s=st.integers(0, 10).map(float),
)
steps = st.lists(
    st.tuples(st.integers(0, 8).map(float), st.sampled_from(["success", "failure", "security", "timer"])),
    max_size=60,
)


class NaiveBreaker:
    """The same breaker, told as a history that is searched anew at every question."""

    def __init__(self, settings: BreakerSettings) -> None:
        self.settings = settings
        self.state = CLOSED
        self.history: list[tuple[float, str]] = []
        self.opened_s = 0.0
        self.openings = 0

    def step(self, now: float, event: str) -> None:
        if event == "success":
            self.state = CLOSED
            self.history.clear()
        elif event == "timer":
            if self.state is OPEN and now >= self.opened_s + self.settings.open_s:
                self.state = HALF_OPEN
        elif self.state is HALF_OPEN:
            self._open(now)
        elif self.state is CLOSED:
            self.history.append((now, event))
            recent = [kind for at, kind in self.history if at >= now - self.settings.window_s]
            if len(recent) >= self.settings.failures or recent.count("security") >= self.settings.security_failures:
                self._open(now)

    def _open(self, now: float) -> None:
        self.state = OPEN
        self.opened_s = now
        self.openings += 1
        self.history.clear()


def apply(breaker: Breaker, settings: BreakerSettings, now: float, event: str) -> Breaker:
    if event == "success":
        return on_success(breaker, settings, now)
    if event == "timer":
        return on_timer(breaker, settings, now)
    return on_failure(breaker, settings, now, security=event == "security", cause=event)


@given(settings_, steps)
def test_it_does_what_the_naive_breaker_does(settings: BreakerSettings, script: list[tuple[float, str]]) -> None:
    """Over every sequence of events it is in the state that a search through the whole history gives."""
    breaker, naive, now = new_breaker(0.0), NaiveBreaker(settings), 0.0
    for wait, event in script:
        now += wait
        before = breaker
        breaker = apply(breaker, settings, now, event)
        naive.step(now, event)
        assert breaker.state is naive.state
        assert breaker.openings == naive.openings
        assert allows(breaker) == (naive.state is CLOSED)
        assert trial_at_s(breaker, settings) == (naive.opened_s + settings.open_s if naive.state is OPEN else None)
        assert (breaker.since_s == now) if breaker.state is not before.state else (breaker.since_s <= now)
        assert len(breaker.failures) < settings.failures
        assert len(breaker.security) < settings.security_failures
        assert bool(breaker.cause) == (breaker.state is not CLOSED)


@given(settings_, steps, st.integers(0, 1000).map(float))
def test_the_first_success_ends_an_outage_from_any_state(
    settings: BreakerSettings, script: list[tuple[float, str]], wait: float
) -> None:
    """One success closes it and forgets every failure, whatever came before."""
    breaker, now = new_breaker(0.0), 0.0
    for pause, event in script:
        now += pause
        breaker = apply(breaker, settings, now, event)
    breaker = on_success(breaker, settings, now + wait)
    assert (breaker.state, breaker.failures, breaker.security) == (CLOSED, (), ())


@given(settings_, steps)
def test_an_open_breaker_always_comes_to_a_trial(settings: BreakerSettings, script: list[tuple[float, str]]) -> None:
    """The time that trial_at_s names is the first at which the timer brings a trial."""
    breaker, now = new_breaker(0.0), 0.0
    for pause, event in script:
        now += pause
        breaker = apply(breaker, settings, now, event)
    trial_s = trial_at_s(breaker, settings)
    assert (trial_s is None) == (breaker.state is not OPEN)
    if trial_s is not None:
        assert on_timer(breaker, settings, trial_s - 0.001) is breaker
        assert on_timer(breaker, settings, trial_s).state is HALF_OPEN


def fail(breaker: Breaker, now: float, *, security: bool = False, count: int = 1) -> Breaker:
    for _ in range(count):
        breaker = on_failure(breaker, BreakerSettings(), now, security=security, cause="refused")
    return breaker


@pytest.mark.parametrize(("security", "enough"), [(False, 10), (True, 3)])
def test_defaults(security: bool, enough: int) -> None:
    """Ten failures open it, or three security failures."""
    assert fail(new_breaker(0), 1, security=security, count=enough - 1).state is CLOSED
    opened = fail(new_breaker(0), 1, security=security, count=enough)
    assert (opened.state, opened.since_s, opened.cause, opened.openings) == (OPEN, 1, "refused", 1)


def test_failures_before_a_success_do_not_count() -> None:
    """Nine failures, a success and nine more leave it closed."""
    breaker = on_success(fail(new_breaker(0), 1, count=9), BreakerSettings(), 2)
    assert fail(breaker, 3, count=9).state is CLOSED


def test_failures_of_long_ago_do_not_count() -> None:
    """A failure counts for a minute."""
    breaker = fail(new_breaker(0), 0, count=9)
    assert fail(breaker, 60.0).state is OPEN
    assert fail(breaker, 60.1).state is CLOSED


def test_late_failures_do_not_put_the_trial_off() -> None:
    """Calls that were under way when it opened fail without effect."""
    opened = fail(new_breaker(0), 1, count=10)
    assert fail(opened, 20) is opened


def test_a_failed_trial_opens_it_again_for_the_full_time() -> None:
    """One failure is enough in HALF_OPEN, and the wait begins anew."""
    trial = on_timer(fail(new_breaker(0), 1, count=10), BreakerSettings(), 31)
    assert trial.state is HALF_OPEN
    assert not allows(trial)
    again = fail(trial, 32)
    assert (again.state, again.openings, trial_at_s(again, BreakerSettings())) == (OPEN, 2, 62)


def test_nothing_new_is_the_same_value() -> None:
    """A success on a quiet breaker makes no new state: it happens at every check."""
    quiet = new_breaker(0)
    assert on_success(quiet, BreakerSettings(), 5) is quiet
    assert on_timer(quiet, BreakerSettings(), 5) is quiet
