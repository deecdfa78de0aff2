"""What is read from the kernel and from metrics is what is there."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
import time

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge, Histogram
from prometheus_client.exposition import generate_latest

from benchmarks.measure import (
    Buckets,
    cpu_s,
    main_thread_cpu_s,
    open_fds,
    parse_histograms,
    parse_plain,
    percentile,
    rss_bytes,
    threads,
)

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


def test_the_first_threads_cpu_is_told_apart() -> None:
    """What another thread uses is the process's and not the first thread's."""

    def burn() -> None:
        while time.thread_time() < 0.03:
            pass

    before_s, before_all_s = main_thread_cpu_s(os.getpid()), cpu_s(os.getpid())
    thread = threading.Thread(target=burn)
    thread.start()
    thread.join()
    burn()
    own_s, all_s = main_thread_cpu_s(os.getpid()) - before_s, cpu_s(os.getpid()) - before_all_s
    assert all_s > 0.03 and own_s < all_s - 0.02
    assert main_thread_cpu_s(os.getpid()) > 0


ONE_MORE = """
import os, sys, threading
print("as it begins", flush=True)
sys.stdin.readline()
thread = threading.Thread(target=sys.stdin.readline)
thread.start()
file = open(os.devnull)
print("with one more of each", flush=True)
thread.join()
"""


def test_descriptors_and_threads_are_counted_one_by_one() -> None:
    """One more of either is one more; in a process of its own, for the kernel keeps a thread longer than Python."""
    with subprocess.Popen(
        [sys.executable, "-c", ONE_MORE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline()
        fds, before = open_fds(process.pid), threads(process.pid)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline()
        assert (open_fds(process.pid), threads(process.pid)) == (fds + 1, before + 1)
        process.communicate("\n")
    assert process.returncode == 0


def test_series_without_labels_are_read_by_name() -> None:
    """Each has its value; those with labels, of histograms and of others are left out."""
    registry = CollectorRegistry()
    Gauge("serviceradar_poller_a", "a", registry=registry).set(2.5)
    Gauge("serviceradar_poller_b_total", "b", registry=registry).set(1e9)
    Gauge("serviceradar_poller_c", "c", registry=registry).set(math.inf)
    Gauge("serviceradar_poller_d", "d", ("kind",), registry=registry).labels("x").set(1.0)
    Gauge("process_e", "e", registry=registry).set(1.0)
    assert parse_plain(generate_latest(registry).decode()) == {"a": 2.5, "b_total": 1e9, "c": math.inf}
