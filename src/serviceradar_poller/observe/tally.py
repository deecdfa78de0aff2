"""
Counters and histograms for what happens thousands of times a cycle: plain numbers until they are asked for.

The library takes a lock for every number that it adds, five of them for one check; all of ours are added on one thread.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class CounterTally(Collector):
    """A counter with labels; *counts* is for whoever counts, by the labels' values."""

    def __init__(self, name: str, help_text: str, labels: Sequence[str]) -> None:
        self._name = name
        self._help = help_text
        self._labels = tuple(labels)
        self.counts: dict[tuple[str, ...], int] = {}

    def collect(self) -> Iterable[Metric]:
        """Return one series for each combination of values."""
        family = CounterMetricFamily(self._name, self._help, labels=self._labels)
        for values, count in self.counts.items():
            family.add_metric(values, count)
        yield family


class Distribution:
    """How many values lie up to each bound, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count *value*."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, float]]:
        """Return the number of values up to each bound, and of all."""
        found: list[tuple[str, float]] = []
        below = 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            below += count
            found.append((floatToGoString(bound), below))  # type: ignore[no-untyped-call]
        return found


class HistogramTally(Collector):
    """A histogram with at most one label."""

    def __init__(self, name: str, help_text: str, bounds: tuple[float, ...], label: str = "") -> None:
        self._name = name
        self._help = help_text
        self._bounds = bounds
        self._label = label
        self._series: dict[str, Distribution] = {}
        if not label:
            self.of("")

    def of(self, value: str) -> Distribution:
        """Return the series of a label's *value*; of the empty text where there is no label."""
        series = self._series.get(value)
        if series is None:
            series = self._series[value] = Distribution(self._bounds)
        return series

    def collect(self) -> Iterable[Metric]:
        """Return all series."""
        family = HistogramMetricFamily(self._name, self._help, labels=[self._label] if self._label else None)
        for value, series in self._series.items():
            labels = [value] if self._label else []
            family.add_metric(labels, series.cumulative(), sum_value=series.total)
        yield family
