from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serviceradar_poller.events import kernel as k
from serviceradar_poller.events import polling as p
from serviceradar_poller.observe import metrics as metrics_module
from serviceradar_poller.observe.metrics import MetricsSink, child_kind

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(metrics: MetricsSink) -> Series:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.exposition().decode())
        for sample in family.samples
    }


def value(metrics: MetricsSink, name: str, **labels: str) -> float | None:
    return scrape(metrics).get((f"serviceradar_poller_{name}", tuple(sorted(labels.items()))))


def check(**fields: Any) -> p.CheckFinished:
    values: dict[str, Any] = {
        "agent": "edge-01", "service_name": "ping", "service_type": "icmp", "kind": "status",
        "outcome": "available", "lateness_s": 0.002, "latency_s": 0.03,
    }  # fmt: skip
    return p.CheckFinished(**(values | fields))


def test_whatever_was_counted_the_exposition_parses(
    event_types: tuple[type, ...], plain_event: Callable[[type], Any]
) -> None:
    """After an event of every type, Prometheus's own parser reads every family, each with a help sentence."""
    metrics = MetricsSink(version="1.0", poller_id='site "a"\\\n')
    metrics(p.AgentConnected(agent='x"\\\ny', address="", outage_s=1.0))
    for kind in event_types:
        metrics(plain_event(kind))
    families = list(text_string_to_metric_families(metrics.exposition().decode()))
    own = [family for family in families if family.name.startswith("serviceradar_poller_")]
    assert len(own) > 40
    assert all(family.documentation.endswith(".") and " " in family.documentation for family in own)
    assert len({family.name for family in families}) == len(families)
    assert not [family.name for family in families if family.name.endswith("_created")]
    assert value(metrics, "agent_up", agent='x"\\\ny') == 1.0
    assert {"process_resident_memory_bytes", "process_cpu_seconds", "process_open_fds"} <= {f.name for f in families}


def test_polls_are_counted_by_type_outcome_and_reason() -> None:
    """One poll adds one to its series and to the histograms, in seconds."""
    metrics = MetricsSink()
    metrics(check())
    metrics(check())
    metrics(check(outcome="failed", reason="refused", attempts=3))
    assert value(metrics, "polls_total", service_type="icmp", outcome="available", reason="") == 2
    assert value(metrics, "polls_total", service_type="icmp", outcome="failed", reason="refused") == 1
    assert value(metrics, "poll_duration_seconds_count", kind="status") == 3
    assert value(metrics, "poll_duration_seconds_sum", kind="status") == pytest.approx(0.09)
    assert value(metrics, "poll_lateness_seconds_bucket", le="0.0025") == 3
    assert value(metrics, "poll_retries_total") == 2


def test_no_series_is_made_for_a_check_or_without_bound() -> None:
    """A thousand different reasons, types and children make a bounded number of series."""
    metrics = MetricsSink()
    for i in range(1_000):
        metrics(check(agent=f"a{i}", service_name=f"s{i}", service_type=f"t{i}", reason=f"r{i}", outcome="failed"))
        metrics(k.ChildKilled(path=f"poller/odd/child-{i}", incarnation=1, grace_s=1.0))
    series = scrape(metrics)
    limit = metrics_module.LABEL_VALUES_MAX + 1
    assert sum(name == "serviceradar_poller_polls_total" for name, _ in series) == limit
    assert sum(name == "serviceradar_poller_child_kills_total" for name, _ in series) == limit
    assert value(metrics, "child_kills_total", child="other") == 1_000 - metrics_module.LABEL_VALUES_MAX
    assert not any("s1" in dict(labels).values() or "a1" in dict(labels).values() for _, labels in series)


def test_an_agents_series_come_and_go_with_it() -> None:
    """agent_up and breaker_state follow the agent's events and end when it is forgotten."""
    metrics = MetricsSink()
    metrics(p.AgentConnected(agent="edge-01", address="e:1", outage_s=0.0))
    metrics(p.AgentConnected(agent="edge-02", address="e:2", outage_s=0.0))
    assert value(metrics, "agents_connected") == 2
    metrics(p.AgentLost(agent="edge-01", address="e:1", layer="tcp", reason="refused", error=""))
    metrics(p.BreakerChanged(agent="edge-01", before="CLOSED", after="OPEN", cause=""))
    assert value(metrics, "agent_up", agent="edge-01") == 0
    assert value(metrics, "agents_connected") == 1
    states = {s: value(metrics, "breaker_state", agent="edge-01", state=s) for s in metrics_module.BREAKER_STATES}
    assert states == {"CLOSED": 0, "HALF_OPEN": 0, "OPEN": 1}
    metrics.forget_agent("edge-01")
    metrics.forget_agent("edge-02")
    assert value(metrics, "agents_connected") == 0
    assert not [labels for _, labels in scrape(metrics) if ("agent", "edge-01") in labels]


def test_reports_queue_and_core() -> None:
    """Deliveries, failures, drops and the queue are all there."""
    metrics = MetricsSink()
    metrics(p.CoreConnected(address="c", outage_s=0.0))
    metrics(p.ReportSent(kind="cycle", transport="unary", statuses=5, size=900, duration_s=0.1, age_s=0.2, tick_s=5.0))
    metrics(p.ReportSent(kind="early", transport="unary", statuses=1, size=100, duration_s=0.1, age_s=0.2))
    metrics(p.ReportFailed(kind="cycle", reason="refused", error="", attempt=1, retry_in_s=1.0, dropped=False))
    metrics(p.ReportDropped(kind="cycle", statuses=7, reason="full", queued=3))
    metrics(p.ReportQueue(reports=3, size=2_000))
    assert value(metrics, "core_up") == 1
    assert value(metrics, "reports_sent_total", kind="cycle", transport="unary") == 1
    assert value(metrics, "report_statuses_total") == 6
    assert value(metrics, "report_bytes_total") == 1_000
    assert value(metrics, "report_tick_to_accepted_seconds_count") == 1
    assert value(metrics, "report_failures_total", reason="refused") == 1
    assert value(metrics, "reports_dropped_total", reason="full") == 1
    assert value(metrics, "statuses_dropped_total") == 7
    assert (value(metrics, "queue_reports"), value(metrics, "queue_bytes")) == (3, 2_000)


def test_children_of_agents_are_counted_by_kind() -> None:
    """A thousand agents' children share a few series."""
    assert child_kind("poller/fleet/agents/edge-01") == "agent"
    assert child_kind("poller/fleet/agents/edge-01/connection") == "connection"
    assert child_kind("poller") == "poller"


def test_values_kept_elsewhere_are_read_at_the_scrape() -> None:
    """A pulled counter shows what its source says then."""
    metrics = MetricsSink()
    dropped = [0.0]
    metrics.pull_counter("log_lines_dropped", "Log lines that could not be written.", lambda: dropped[0])
    dropped[0] = 7.0
    assert value(metrics, "log_lines_dropped_total") == 7


def test_counting_a_check_is_cheap() -> None:
    """The most frequent event costs less than 10 µs, taken as the best of five runs."""
    metrics = MetricsSink()
    event = check()
    best = min(_time(lambda: metrics(event), 2_000) for _ in range(5))
    assert best < 10e-6


def _time(call: Callable[[], None], times: int) -> float:
    before = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - before) / times
