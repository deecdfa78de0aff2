"""Sealed reports wait within bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serviceradar_poller.logic.reports import ReportKind
from serviceradar_poller.reporting.outbox import Outbox, SealedReport


def _report(size: int) -> SealedReport:
    return SealedReport(kind=ReportKind.CYCLE, statuses=(), timestamp=0, sealed_s=0.0, size=size)


@given(
    sizes=st.lists(st.integers(0, 50), min_size=1, max_size=40),
    bytes_max=st.integers(1, 100),
    reports_max=st.integers(1, 10),
    sending=st.booleans(),
)
def test_the_bound_holds_and_the_oldest_go_first(
    sizes: list[int], bytes_max: int, reports_max: int, sending: bool
) -> None:
    """What leaves is the oldest, what stays is in order; only the newest and the one in flight may exceed the bound."""
    box = Outbox(bytes_max=bytes_max, reports_max=reports_max)
    reports = [_report(size) for size in sizes]
    kept: list[SealedReport] = []
    for report in reports:
        in_flight = box.head if sending else None
        dropped = box.add(report, in_flight=in_flight)
        kept.append(report)
        for victim in dropped:
            assert victim is kept[1 if in_flight is not None and kept[0] is in_flight else 0]
            kept.remove(victim)
        assert len(box) == len(kept)
        assert box.size == sum(each.size for each in kept)
        assert box.head is kept[0]
        spared = 2 if in_flight is not None and kept[0] is in_flight else 1
        assert len(kept) <= spared or (box.size <= bytes_max and len(kept) <= reports_max)


def test_a_report_leaves_from_the_front() -> None:
    """Removing the oldest gives its bytes back."""
    box = Outbox(bytes_max=100, reports_max=10)
    first, second = _report(3), _report(4)
    box.add(first)
    box.add(second)
    box.remove(first)
    assert (len(box), box.size, box.head) == (1, 4, second)
