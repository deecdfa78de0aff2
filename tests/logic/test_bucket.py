from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serviceradar_poller.logic.bucket import BucketSettings, new_bucket, take

settings_ = st.builds(
    BucketSettings, rate_per_s=st.floats(0.1, 1000, allow_nan=False), burst=st.floats(1, 100, allow_nan=False)
)
asks = st.lists(st.tuples(st.floats(0, 10, allow_nan=False), st.floats(0, 20, allow_nan=False)), max_size=80)


@given(settings_, asks)
def test_no_stretch_of_time_gets_more_than_its_share(
    settings: BucketSettings, script: list[tuple[float, float]]
) -> None:
    """What is let through up to any moment is at most a burst and what has come in since, in order of asking."""
    bucket, now, taken, last_served = new_bucket(settings, 0.0), 0.0, 0.0, 0.0
    for pause, amount in script:
        now += pause
        bucket, wait_s = take(bucket, settings, now, amount)
        taken += amount
        served = now + wait_s
        assert wait_s >= 0
        assert taken <= settings.burst + settings.rate_per_s * served + 1e-6 * (1 + taken)
        assert served >= last_served - 1e-6 * (1 + last_served)
        last_served = served
        assert bucket.tokens <= settings.burst


@given(settings_, asks)
def test_a_wait_is_no_longer_than_it_must_be(settings: BucketSettings, script: list[tuple[float, float]]) -> None:
    """One who waits is served at the very moment at which the last of the tokens comes in."""
    bucket, now = new_bucket(settings, 0.0), 0.0
    for pause, amount in script:
        now += pause
        bucket, wait_s = take(bucket, settings, now, amount)
        if wait_s:
            later, none = take(bucket, settings, now + wait_s, 0.0)
            assert none == pytest.approx(0.0, abs=1e-6)
            assert later.tokens == pytest.approx(0.0, abs=1e-6 * (1 + settings.rate_per_s))


def test_a_burst_goes_at_once_and_then_one_by_one() -> None:
    """Three at once, then one each half second."""
    settings = BucketSettings(rate_per_s=2.0, burst=3.0)
    bucket, waits = new_bucket(settings, 10.0), []
    for _ in range(6):
        bucket, wait_s = take(bucket, settings, 10.0)
        waits.append(wait_s)
    assert waits == [0, 0, 0, 0.5, 1.0, 1.5]


def test_a_rest_refills_no_more_than_a_burst() -> None:
    """A year without a call saves up a burst, not a year."""
    settings = BucketSettings(rate_per_s=2.0, burst=3.0)
    _, wait_s = take(new_bucket(settings, 0.0), settings, 3e7, 4.0)
    assert wait_s == 0.5


def test_time_does_not_go_back() -> None:
    """A caller whose clock runs backwards is a bug."""
    settings = BucketSettings(rate_per_s=2.0, burst=3.0)
    with pytest.raises(AssertionError, match="backwards"):
        take(new_bucket(settings, 5.0), settings, 4.9)
