"""The sections that this poller adds."""

from __future__ import annotations

import pytest

from serviceradar_poller.config.model import (
    QUEUE_BYTES_IN_MEMORY,
    QUEUE_BYTES_ON_DISK,
    QUEUE_REPORTS_IN_MEMORY,
    QUEUE_REPORTS_ON_DISK,
    ReportMode,
    TransportBackend,
)
from serviceradar_poller.testing.configs import build, build_agent, only_problem, warned_at


def test_sections_are_read() -> None:
    """Every key of our own sections reaches the model."""
    config = build(
        transport="Native",
        scheduling={"spread_window": "0s", "check_timeout": "7s", "connects_per_s": 3},
        reporting={
            "mode": "Batch",
            "deadline": "3s",
            "early_interval": "4s",
            "batch_size": 5,
            "batch_interval": "6s",
            "call_timeout": "8s",
            "queue_bytes": 9,
            "queue_reports": 10,
        },
        resilience={
            "breaker": {"failures": 11, "security_failures": 12, "window": "13s", "open": "14s"},
            "retry": {"attempts": 15, "delay": "16s", "budget_ratio": 1},
            "reconnect": {"min": "17s", "max": "18s"},
            "quarantine": {"min": "19s", "max": "20s"},
            "shutdown_timeout": "21s",
        },
        http={"listen_addr": "", "control": False},
    ).config
    assert (config.scheduling.spread_window_s, config.scheduling.check_timeout_s) == (0, 7)
    assert config.scheduling.connects_per_s == 3
    reporting = config.reporting
    assert reporting.mode is ReportMode.BATCH
    assert (reporting.deadline_s, reporting.early_interval_s, reporting.batch_size) == (3, 4, 5)
    assert (reporting.batch_interval_s, reporting.call_timeout_s) == (6, 8)
    assert (reporting.queue_bytes_max, reporting.queue_reports_max) == (9, 10)
    resilience = config.resilience
    assert (resilience.breaker_failures, resilience.breaker_security_failures) == (11, 12)
    assert (resilience.breaker_window_s, resilience.breaker_open_s) == (13, 14)
    assert (resilience.retry_attempts, resilience.retry_delay_s, resilience.retry_budget_ratio) == (15, 16, 1)
    assert (resilience.reconnect_min_s, resilience.reconnect_max_s) == (17, 18)
    assert (resilience.quarantine_min_s, resilience.quarantine_max_s) == (19, 20)
    assert resilience.shutdown_timeout_s == 21
    assert config.http.listen_addr == ""
    assert config.transport is TransportBackend.NATIVE


def test_unknown_transport() -> None:
    """Only what makes calls can be chosen, and the default is the poller's own."""
    assert build().config.transport is TransportBackend.NATIVE
    problem = only_problem(transport="carrier pigeon")
    assert (problem.path, problem.accepted) == ("transport", "grpcio, native")


def test_the_default_transport_reaches_every_address() -> None:
    """An address with a DNS server of its own, which only gRPC's library can ask, makes that the default."""
    assert build(core_address="dns://10.0.0.53/core:50052").config.transport is TransportBackend.GRPCIO
    assert build_agent(address="dns://10.0.0.53/edge:50051").config.transport is TransportBackend.GRPCIO
    assert build_agent(address="dns:///edge:50051").config.transport is TransportBackend.NATIVE
    said = build(core_address="dns://10.0.0.53/core:50052", transport="native")
    assert said.config.transport is TransportBackend.NATIVE


def test_a_disk_holds_more_than_memory() -> None:
    """The bounds of what waits for core depend on where it waits, unless they are given."""
    on_disk = build(state_dir="/somewhere").config.reporting
    assert (on_disk.queue_bytes_max, on_disk.queue_reports_max) == (QUEUE_BYTES_ON_DISK, QUEUE_REPORTS_ON_DISK)
    in_memory = build(state_dir="").config.reporting
    assert (in_memory.queue_bytes_max, in_memory.queue_reports_max) == (
        QUEUE_BYTES_IN_MEMORY,
        QUEUE_REPORTS_IN_MEMORY,
    )
    for state_dir in ("", "/somewhere"):
        given = build(state_dir=state_dir, reporting={"queue_bytes": 5, "queue_reports": 6}).config.reporting
        assert (given.queue_bytes_max, given.queue_reports_max) == (5, 6)


def test_check_timeout_is_cut_to_the_interval() -> None:
    """A check can't take longer than its interval."""
    parsed = build(poll_interval="10s", scheduling={"check_timeout": "1m"})
    assert parsed.config.scheduling.check_timeout_s == 10
    assert warned_at(parsed) == ["scheduling.check_timeout"]
    assert build(poll_interval="10s").config.scheduling.check_timeout_s == 10


@pytest.mark.parametrize(
    ("interval", "checks", "spread_s", "deadline_s"),
    [
        ("30s", 1, 0.25, 5),
        ("30s", 1600, 2, 5),
        ("30s", 8000, 4, 5),
        ("6s", 8000, 2.5, 3),
        ("100ms", 8000, 0.05, 0.05),
        ("600ms", 1, 0.25, 0.3),
    ],
)
def test_defaults_follow_interval_and_checks(interval: str, checks: int, spread_s: float, deadline_s: float) -> None:
    """More checks are spread wider, within half an interval and before the report leaves."""
    half = [{"service_type": "icmp", "service_name": f"n{i}"} for i in range(checks)]
    results = [{"service_type": "sync", "service_name": "s", "results_interval": "1m"}]
    config = build(poll_interval=interval, agents={"a": {"address": "a:1", "checks": half + results}}).config
    assert config.reporting.deadline_s == deadline_s
    assert config.scheduling.spread_window_s == spread_s


def test_default_spread_ends_by_the_deadline() -> None:
    """However early the report leaves, the default spread is not beyond it."""
    parsed = build(reporting={"deadline": "100ms"})
    assert parsed.config.scheduling.spread_window_s == 0.1
    assert parsed.warnings == ()


def test_spread_beyond_the_deadline_is_told() -> None:
    """Checks that start after the report has left are always a cycle late."""
    assert warned_at(build(scheduling={"spread_window": "6s"})) == ["scheduling.spread_window"]


@pytest.mark.parametrize("address", [":9610", "0.0.0.0:9610", "[::]:9610", "10.0.0.1:9610", "poller.local:9610"])
def test_http_beyond_loopback_is_told(address: str) -> None:
    """A listener that other machines reach is told, and can't be one that controls."""
    assert warned_at(build(http={"listen_addr": address})) == ["http.listen_addr"]
    assert only_problem(http={"listen_addr": address, "control": True}).path == "http.control"


@pytest.mark.parametrize("address", ["127.0.0.1:0", "localhost:9610", "[::1]:9610", "127.9.9.9:1"])
def test_control_on_loopback_is_fine(address: str) -> None:
    """On loopback an operator may be given control."""
    parsed = build(http={"listen_addr": address, "control": True})
    assert parsed.config.http.control
    assert parsed.warnings == ()


def test_control_without_a_listener_is_told() -> None:
    """Control needs a listener."""
    assert warned_at(build(http={"listen_addr": "", "control": True})) == ["http.control"]


@pytest.mark.parametrize(
    ("fields", "directory"),
    [({}, "/var/lib/serviceradar"), ({"state_dir": "/srv/poller"}, "/srv/poller"), ({"state_dir": ""}, "")],
)
def test_the_state_directory(fields: dict[str, object], directory: str) -> None:
    """Reports wait on disk unless an empty directory says that they wait in memory."""
    assert build(**fields).config.state_dir == directory
