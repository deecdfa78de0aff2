"""What is read from the kernel and from metrics is what is there."""

from __future__ import annotations

import math
import os
import time

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.exposition import generate_latest

from benchmarks.measure import Buckets, cpu_s, parse_histograms, percentile, rss_bytes

BOUNDS = (0.01, 0.1, 1.0)


def _scrape(*values: float) -> Buckets:
    registry = CollectorRegistry()
    histogram = Histogram("serviceradar_poller_x_seconds", "x", ("kind",), registry=registry, buckets=BOUNDS)
    for index, value in enumerate(values):
        histogram.labels(f"kind-{index % 2}").observe(value)
    return parse_histograms(generate_latest(registry).decode()).get("x_seconds", Buckets({}))


@given(st.lists(st.floats(min_value=0.0, max_value=0.99), min_size=1, max_size=50), st.floats(0.01, 1.0))
def test_a_quantile_lies_in_the_bucket_of_the_exact_one(values: list[float], share: float) -> None:
    """Whatever the values and the share, estimate and nearest-rank percentile have the same bucket."""
    exact = percentile(values, share)
    estimate = _scrape(*values).quantile(share)
    bucket = next(bound for bound in BOUNDS if exact <= bound)
    below = max([0.0, *(bound for bound in BOUNDS if bound < exact)])
    assert below <= estimate <= bucket + 1e-12


@given(st.lists(st.floats(0.0, 2.0), max_size=30), st.lists(st.floats(0.0, 2.0), min_size=1, max_size=30))
def test_what_came_between_two_scrapes_is_told_exactly(before: list[float], after: list[float]) -> None:
    """Total and shares at a bound are those of the new values only, over all labels."""
    added = _scrape(*before, *after).since(_scrape(*before))
    assert added.total == len(after)
    assert math.isclose(added.share_within(0.1), sum(value <= 0.1 for value in after) / len(after))
    assert added.bound_of_max() >= min(max(after), BOUNDS[-1])


def test_nothing_has_no_quantile() -> None:
    """Without values there is no figure, rather than a good one; beyond the last bound it is infinite."""
    assert math.isnan(Buckets({}).quantile(0.5))
    assert math.isnan(percentile([], 0.5))
    assert math.isinf(_scrape(5.0).quantile(0.5))
    assert _scrape(0.5).since(_scrape(0.5)).bound_of_max() == 0.0


def test_cpu_and_memory_are_those_of_the_process() -> None:
    """For this very process, they agree with what it knows of itself."""
    before_s = time.process_time()
    measured_s = cpu_s(os.getpid())
    assert before_s <= measured_s <= time.process_time()
    assert 2**22 < rss_bytes(os.getpid()) < 2**36
