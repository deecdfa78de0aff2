"""The rules of the sections that this poller adds: workers, transport, scheduling, reporting, resilience, http."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from serviceradar_poller.config.addresses import AddressError, ListenAddress
from serviceradar_poller.config.decode import Findings, Node, describe
from serviceradar_poller.config.durations import NS_PER_MS, NS_PER_S, format_duration, nanoseconds, seconds
from serviceradar_poller.config.model import (
    CONNECTS_PER_S_DEFAULT,
    QUEUE_BYTES_ON_DISK,
    QUEUE_REPORTS_ON_DISK,
    HttpConfig,
    ReportingConfig,
    ReportMode,
    ResilienceConfig,
    SchedulingConfig,
    TransportBackend,
)

#: Go's own budget for the checks of one agent.
CHECK_TIMEOUT_NS_DEFAULT = 30 * NS_PER_S
DEADLINE_NS_DEFAULT = 5 * NS_PER_S
#: Starts per second that a cycle is spread to; one core does some thousands, so this leaves it mostly idle.
SPREAD_CHECKS_PER_S = 800
SPREAD_NS_MIN = 250 * NS_PER_MS
SPREAD_NS_MAX = 4 * NS_PER_S
#: What the last check of a cycle has left to answer before the report leaves.
SPREAD_BEFORE_DEADLINE_NS = 500 * NS_PER_MS
#: dns://server/host:port; with nothing between the slashes it is the system's resolver.
_OWN_DNS_SERVER: Final = re.compile(r"\s*dns://[^/]")


def check_workers(root: Node, findings: Findings) -> None:
    """Refuse every number of worker processes but none."""
    workers = root.integer("workers", 0)
    if workers:
        findings.problem(
            ("workers",),
            found=describe(workers, ("workers",)),
            accepted="0 (everything in one process; this version has no worker processes)",
        )


def build_transport(root: Node, findings: Findings, *, addresses: Iterable[str]) -> TransportBackend:
    """Return what makes calls; unless it is said, the one that can reach all of *addresses*."""
    own_server = any(_OWN_DNS_SERVER.match(address) for address in addresses)
    default = TransportBackend.GRPCIO if own_server else TransportBackend.NATIVE
    name = root.string("transport", default.value).lower()
    if name in tuple(TransportBackend):
        return TransportBackend(name)
    accepted = ", ".join(known.value for known in TransportBackend)
    findings.problem(("transport",), found=describe(root.string("transport"), ("transport",)), accepted=accepted)
    return default


def build_reporting(node: Node, interval_ns: int, findings: Findings, *, on_disk: bool) -> ReportingConfig:
    """
    Return how outcomes reach core; the report leaves before the next cycle begins.

    Args:
        on_disk: Reports wait in a state directory.
    """
    default = ReportingConfig()
    deadline_ns = node.integer("deadline", min(DEADLINE_NS_DEFAULT, interval_ns // 2))
    if node.has("deadline") and deadline_ns >= interval_ns:
        findings.problem(
            (*node.path, "deadline"),
            found=format_duration(deadline_ns),
            accepted=f"a duration below the poll interval of {format_duration(interval_ns)}",
        )
    mode = node.string("mode", default.mode.value).lower()
    if mode not in tuple(ReportMode):
        path = (*node.path, "mode")
        accepted = ", ".join(known.value for known in ReportMode)
        findings.problem(path, found=describe(node.string("mode"), path), accepted=accepted)
        mode = default.mode.value
    return ReportingConfig(
        mode=ReportMode(mode),
        deadline_s=seconds(deadline_ns),
        early_interval_s=_seconds(node, "early_interval", default.early_interval_s),
        batch_size=node.integer("batch_size", default.batch_size),
        batch_interval_s=_seconds(node, "batch_interval", default.batch_interval_s),
        call_timeout_s=_seconds(node, "call_timeout", default.call_timeout_s),
        queue_bytes_max=node.integer("queue_bytes", QUEUE_BYTES_ON_DISK if on_disk else default.queue_bytes_max),
        queue_reports_max=node.integer(
            "queue_reports", QUEUE_REPORTS_ON_DISK if on_disk else default.queue_reports_max
        ),
    )


def build_scheduling(
    node: Node, interval_ns: int, deadline_s: float, plain_checks: int, findings: Findings
) -> SchedulingConfig:
    """
    Return when checks run.

    Args:
        interval_ns: The poll interval.
        deadline_s: When the report leaves, after the tick.
        plain_checks: How many checks start in every cycle.
    """
    timeout_ns = node.integer("check_timeout", min(CHECK_TIMEOUT_NS_DEFAULT, interval_ns))
    if timeout_ns > interval_ns:
        text = f"{format_duration(timeout_ns)} is cut to the poll interval of {format_duration(interval_ns)}"
        findings.warn((*node.path, "check_timeout"), text)
        timeout_ns = interval_ns
    deadline_ns = nanoseconds(deadline_s)
    spread_path = (*node.path, "spread_window")
    spread_ns = node.integer("spread_window", default_spread_ns(plain_checks, interval_ns, deadline_ns))
    if spread_ns > interval_ns:
        findings.problem(
            spread_path,
            found=format_duration(spread_ns),
            accepted=f"a duration of at most the poll interval, {format_duration(interval_ns)}",
        )
    elif spread_ns > deadline_ns:
        text = f"{format_duration(spread_ns)} is beyond reporting.deadline ({format_duration(deadline_ns)}): "
        findings.warn(spread_path, text + "late checks miss their own cycle's report")
    return SchedulingConfig(
        spread_window_s=seconds(spread_ns),
        check_timeout_s=seconds(timeout_ns),
        connects_per_s=node.number("connects_per_s", CONNECTS_PER_S_DEFAULT),
    )


def default_spread_ns(plain_checks: int, interval_ns: int, deadline_ns: int) -> int:
    """
    Return the time over which the starts of one cycle's checks are spread, in nanoseconds.

    Grows with the number of checks, stays within half an interval, and ends early enough for the report.
    """
    ceiling_ns = min(SPREAD_NS_MAX, interval_ns // 2, deadline_ns)
    if deadline_ns > SPREAD_BEFORE_DEADLINE_NS:
        ceiling_ns = min(ceiling_ns, deadline_ns - SPREAD_BEFORE_DEADLINE_NS)
    wanted_ns = plain_checks * NS_PER_S // SPREAD_CHECKS_PER_S
    return min(max(SPREAD_NS_MIN, wanted_ns), ceiling_ns)


def build_resilience(node: Node, findings: Findings) -> ResilienceConfig:
    """Return how failures of peers are met."""
    default = ResilienceConfig()
    breaker, retry = node.node("breaker"), node.node("retry")
    reconnect_s = _bounds(node.node("reconnect"), default.reconnect_min_s, default.reconnect_max_s, findings)
    quarantine_s = _bounds(node.node("quarantine"), default.quarantine_min_s, default.quarantine_max_s, findings)
    return ResilienceConfig(
        breaker_failures=breaker.integer("failures", default.breaker_failures),
        breaker_security_failures=breaker.integer("security_failures", default.breaker_security_failures),
        breaker_window_s=_seconds(breaker, "window", default.breaker_window_s),
        breaker_open_s=_seconds(breaker, "open", default.breaker_open_s),
        retry_attempts=retry.integer("attempts", default.retry_attempts),
        retry_delay_s=_seconds(retry, "delay", default.retry_delay_s),
        retry_budget_ratio=retry.number("budget_ratio", default.retry_budget_ratio),
        reconnect_min_s=reconnect_s[0],
        reconnect_max_s=reconnect_s[1],
        quarantine_min_s=quarantine_s[0],
        quarantine_max_s=quarantine_s[1],
        shutdown_timeout_s=_seconds(node, "shutdown_timeout", default.shutdown_timeout_s),
    )


def build_http(node: Node, findings: Findings) -> HttpConfig:
    """Return where the poller is looked at; nothing guards that listener yet, so it belongs on loopback."""
    default = HttpConfig()
    address = node.string("listen_addr") if node.has("listen_addr") else default.listen_addr
    control = node.boolean("control", default=default.control)
    path = (*node.path, "listen_addr")
    if not address:
        if control:
            findings.warn((*node.path, "control"), "has no effect while listen_addr is empty")
        return HttpConfig(listen_addr=address, control=control)
    try:
        loopback = ListenAddress.parse(address).loopback
    except AddressError as error:
        findings.problem(path, found=describe(address, path), accepted=f'{error.accepted}, or "" for no listener')
        loopback = True
    if not loopback:
        if control:
            findings.problem(
                (*node.path, "control"),
                found=f"true while listen_addr is {describe(address, path)}",
                accepted="true only on a loopback address such as 127.0.0.1:9610, as nothing else guards it",
            )
        findings.warn(path, f"{describe(address, path)} is open to other machines and nothing guards it")
    return HttpConfig(listen_addr=address, control=control)


def _bounds(node: Node, low_s: float, high_s: float, findings: Findings) -> tuple[float, float]:
    low, high = _seconds(node, "min", low_s), _seconds(node, "max", high_s)
    if low > high:
        texts = [format_duration(nanoseconds(value)) for value in (low, high)]
        findings.problem(node.path, found=f"min {texts[0]}, max {texts[1]}", accepted="min not above max")
    return low, high


def _seconds(node: Node, key: str, default_s: float) -> float:
    return seconds(node.integer(key, 0)) if node.has(key) else default_s
