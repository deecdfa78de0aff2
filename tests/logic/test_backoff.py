from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serviceradar_poller.logic.backoff import (
    BackoffSettings,
    RetryBudgetSettings,
    delay_s,
    deposit,
    new_retry_budget,
    reconnect_delay_s,
    withdraw,
)

chance = st.floats(0, 1, exclude_max=True)
bounds = st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)).map(sorted)
backoffs = st.builds(
    lambda pair, factor, jitter: BackoffSettings(min_s=pair[0], max_s=pair[1], factor=factor, jitter=jitter),
    bounds,
    st.floats(1, 1e3),
    st.floats(0, 1),
)


@pytest.mark.slow
@given(backoffs, st.integers(0, 10**400), chance)
def test_a_delay_is_never_out_of_bounds(settings: BackoffSettings, attempt: int, u: float) -> None:
    """Whatever the settings and however many attempts: a number from 0 to max_s."""
    delay = delay_s(settings, attempt, u)
    assert 0.0 <= delay <= settings.max_s


@pytest.mark.slow
@given(backoffs, st.integers(0, 200), chance)
def test_delays_never_shrink_from_one_attempt_to_the_next(settings: BackoffSettings, attempt: int, u: float) -> None:
    """With the same chance, the next delay is at least as long."""
    now, then = delay_s(settings, attempt, u), delay_s(settings, attempt + 1, u)
    assert then >= now * (1 - 1e-9)


@given(st.integers(0, 8), chance)
def test_delays_double_and_spread(attempt: int, u: float) -> None:
    """Below the bound, a delay is within 20 % of the first one doubled so many times."""
    delay = delay_s(BackoffSettings(min_s=0.5, max_s=300.0), attempt, u)
    assert 0.8 <= delay / (0.5 * 2**attempt) <= 1.2 + 1e-12


def test_the_longest_delays_are_spread_too() -> None:
    """At the bound, callers do not fall into step: the spread goes downwards from it."""
    settings = BackoffSettings(min_s=1.0, max_s=60.0)
    assert delay_s(settings, 50, 0.0) == pytest.approx(40.0)
    assert delay_s(settings, 50, 0.999) == pytest.approx(60.0, rel=1e-3)


def test_delays_of_no_growth_or_no_length() -> None:
    """A factor of one stays at the first delay; a first delay of nothing stays nothing."""
    assert delay_s(BackoffSettings(min_s=2.0, max_s=60.0, factor=1.0, jitter=0.0), 10**9, 0.3) == 2.0
    assert delay_s(BackoffSettings(min_s=0.0, max_s=60.0), 7, 0.3) == 0.0


@given(st.lists(st.booleans(), max_size=300), st.floats(0, 2), st.floats(0, 20))
def test_retries_stay_a_fraction_of_calls(script: list[bool], ratio: float, saved: float) -> None:
    """After any sequence of calls (True) and wishes to retry, granted retries are within the ratio and the savings."""
    settings = RetryBudgetSettings(ratio=ratio, tokens_max=20.0, tokens_initial=saved)
    budget, calls, retries = new_retry_budget(settings), 0, 0
    for is_call in script:
        if is_call:
            calls += 1
            budget = deposit(budget, settings)
        else:
            before = budget
            budget, granted = withdraw(budget)
            retries += granted
            assert granted or budget == before
        assert 0.0 <= budget.tokens <= settings.tokens_max
        assert retries <= saved + ratio * calls + 1e-6


def test_ten_calls_earn_a_retry() -> None:
    """Ten tenths are one, although floating point says a little less."""
    settings = RetryBudgetSettings(tokens_initial=0.0)
    budget = new_retry_budget(settings)
    for _ in range(9):
        budget = deposit(budget, settings)
        assert withdraw(budget)[1] is False
    budget, granted = withdraw(deposit(budget, settings))
    assert granted
    assert withdraw(budget)[1] is False


outages = st.floats(0, 1e7)


@given(outages, chance, bounds, st.floats(0, 1))
def test_a_reconnect_delay_keeps_its_bounds(outage: float, u: float, pair: list[float], fraction: float) -> None:
    """It is never above the longest delay, nor above 3 s in a young outage unless the operator wants that."""
    low, high = pair
    delay = reconnect_delay_s(outage, u, min_s=low, max_s=high, fraction=fraction)
    assert 0.0 <= delay <= high
    if outage < 20.0:
        assert delay <= (3.0 if low <= 3.0 else 1.2 * low * (1 + 1e-12))


@given(outages, outages, chance)
def test_a_reconnect_delay_grows_with_the_outage(one: float, other: float, u: float) -> None:
    """A longer outage is looked at no more often."""
    shorter, longer = sorted((one, other))
    short, long = (reconnect_delay_s(at, u, min_s=0.5, max_s=30.0) for at in (shorter, longer))
    assert long >= short - 1e-9


@given(st.floats(0, 1e7), st.lists(chance, min_size=1, max_size=40))
def test_an_agent_back_within_20_s_is_noticed_within_3_6_s(back_s: float, draws: list[float]) -> None:
    """Whatever chance says, the first attempt after a return at up to 20 s comes less than 3.6 s later."""
    back_s = math.fmod(back_s, 20.0)
    now, index = 0.0, 0
    while now < back_s:
        now += reconnect_delay_s(now, draws[index % len(draws)], min_s=0.5, max_s=30.0)
        index += 1
    assert now - back_s < 3.6


@given(st.floats(0, 20, exclude_max=True), chance, st.floats(0, 3))
def test_a_young_outage_is_looked_at_every_three_seconds(outage: float, u: float, low: float) -> None:
    """Up to 20 s of outage there are never more than 3 s between attempts."""
    assert reconnect_delay_s(outage, u, min_s=low, max_s=30.0) <= 3.0


def test_an_operator_may_ask_for_longer_delays_from_the_start() -> None:
    """A shortest delay above 3 s is respected in a young outage too."""
    assert reconnect_delay_s(0.0, 0.5, min_s=5.0, max_s=60.0) == pytest.approx(5.0)
    assert reconnect_delay_s(0.0, 0.0, min_s=5.0, max_s=60.0) == pytest.approx(4.0)


def test_an_agent_that_is_gone_costs_little() -> None:
    """After a long outage there are two to three attempts a minute."""
    assert reconnect_delay_s(86_400, 0.0, min_s=0.5, max_s=30.0) == pytest.approx(20.0)
    assert reconnect_delay_s(86_400, 0.999, min_s=0.5, max_s=30.0) == pytest.approx(30.0, rel=1e-3)
    assert reconnect_delay_s(0.0, 0.5, min_s=0.5, max_s=30.0) == 0.5
    assert reconnect_delay_s(100.0, 0.5, min_s=0.5, max_s=30.0) == pytest.approx(15.0)
