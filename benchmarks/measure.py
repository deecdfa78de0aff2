"""Read what a process costs from the kernel, and what the poller tells from its /metrics and /view."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serviceradar_poller.testing.process import PollerProcess

#: Names of the poller's histograms, without the prefix that all its metrics have.
POLL_DURATION = "poll_duration_seconds"
POLL_LATENESS = "poll_lateness_seconds"
LOOP_LAG = "loop_lag_seconds"

_PLAIN = re.compile(r"^serviceradar_poller_(\w+) (\S+)$", re.MULTILINE)
_BUCKET = re.compile(r'^serviceradar_poller_(\w+)_bucket\{(?:.*,)?le="([^"]+)".*\} (\S+)$', re.MULTILINE)


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that all threads of a process have used, exact to the nanosecond. [clock_getcpuclockid]"""
    return time.clock_gettime(~pid << 3 | 2)


def main_thread_cpu_s(pid: int) -> float:
    """Return the CPU seconds that the first thread of a process has used. [proc(5), schedstat]"""
    with open(f"/proc/{pid}/task/{pid}/schedstat", encoding="ascii") as file:
        return int(file.read().split()[0]) / 1e9


def rss_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


def open_fds(pid: int) -> int:
    """Return the number of open file descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid: int) -> int:
    """Return the number of threads of a process."""
    return len(os.listdir(f"/proc/{pid}/task"))


def process_age_s(pid: int) -> float:
    """Return the seconds since a process began, to a hundredth. [proc(5)]"""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        started_ticks = int(file.read().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK")


def percentile(values: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile: the value that *share* of the values don't exceed; NaN for no values."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


@dataclass(frozen=True, slots=True)
class Buckets:
    """A histogram between two scrapes: cumulative counts by upper bound, the last bound being infinite."""

    counts: Mapping[float, float]

    @property
    def total(self) -> float:
        """How many values there were."""
        return max(self.counts.values(), default=0.0)

    def since(self, before: Buckets) -> Buckets:
        """Return what was added after *before*."""
        return Buckets({bound: count - before.counts.get(bound, 0.0) for bound, count in self.counts.items()})

    def quantile(self, share: float) -> float:
        """Estimate a quantile, linear within its bucket; infinite beyond the last bound, NaN when there is nothing."""
        wanted = share * self.total
        low = below = 0.0
        for bound, count in sorted(self.counts.items()):
            if count > 0 and count >= wanted:
                if math.isinf(bound):
                    return bound
                inside = count - below
                return low + (bound - low) * ((wanted - below) / inside if inside else 1.0)
            low, below = bound, count
        return math.nan

    def share_within(self, bound: float) -> float:
        """Return the exact share of values up to *bound*, which has to be the bound of a bucket."""
        return self.counts[bound] / self.total if self.total else math.nan

    def bound_of_max(self) -> float:
        """Return the upper bound of the bucket that holds the greatest value; 0.0 when there is none."""
        total = self.total
        return min((bound for bound, count in self.counts.items() if total and count >= total), default=0.0)


def histograms(poller: PollerProcess) -> dict[str, Buckets]:
    """Scrape /metrics once; return every histogram, summed over its labels."""
    return parse_histograms(poller.http("/metrics")[1].decode())


def parse_histograms(text: str) -> dict[str, Buckets]:
    """Return the histograms of an exposition in Prometheus's text format."""
    found: dict[str, dict[float, float]] = {}
    for name, bound, count in _BUCKET.findall(text):
        counts = found.setdefault(name, {})
        counts[float(bound)] = counts.get(float(bound), 0.0) + float(count)
    return {name: Buckets(counts) for name, counts in found.items()}


def plain_metrics(poller: PollerProcess) -> dict[str, float]:
    """Scrape /metrics once; return every series without labels by its name without the prefix, all of one moment."""
    return parse_plain(poller.http("/metrics")[1].decode())


def parse_plain(text: str) -> dict[str, float]:
    """Return the series without labels of an exposition in Prometheus's text format."""
    return {name: float(value) for name, value in _PLAIN.findall(text)}
