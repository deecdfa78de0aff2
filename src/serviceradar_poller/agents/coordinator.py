"""
One agent as a supervised unit: its five children, and the lasting state they share.

    AgentCoordinator (rest_for_one, 5 restarts in 60 s, then quarantine)
    ├ security     the id it answers under
    ├ connection   client, reach, probes
    ├ scheduler    status checks
    ├ results      results checks
    └ breaker      transient

When the connection dies, what follows starts again with it; the breaker's state stands in the slot and survives.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping
from types import MappingProxyType

from serviceradar_poller.agents.breaker import SecureCircuitBreaker
from serviceradar_poller.agents.connection import ConnectionManager
from serviceradar_poller.agents.results import ResultsStreamer
from serviceradar_poller.agents.scheduler import CheckScheduler
from serviceradar_poller.agents.security import SecurityContext
from serviceradar_poller.agents.slot import AgentSlot, FleetSettings
from serviceradar_poller.config.model import AgentConfig, CheckConfig, ResilienceConfig
from serviceradar_poller.logic.backoff import RetryBudgetSettings, new_retry_budget
from serviceradar_poller.logic.breaker import new_breaker
from serviceradar_poller.logic.bucket import BucketSettings, new_bucket
from serviceradar_poller.logic.device import device_host, device_ip, ip_candidates, names_to_resolve
from serviceradar_poller.logic.outcome import CheckSubject, Device
from serviceradar_poller.otp import ChildSpec, Quarantine, Restart, Strategy, member, supervisor

#: Requests to one agent per second, checks and retries together, at least; a few checks stay far below it.
REQUESTS_PER_S_MIN = 100.0
#: Of an agent with many checks: what each may take in one interval, attempts and early runs included.
REQUESTS_PER_CHECK = 10.0


def check_subjects(config: AgentConfig) -> dict[str, tuple[CheckSubject, CheckConfig]]:
    """Return the agent's checks by key; checks of the same type and name are told apart by a number."""
    return {
        key: (
            CheckSubject(
                agent=config.name,
                key=key,
                service_name=check.service_name,
                service_type=check.service_type,
                details=check.details,
                is_results=check.is_results,
            ),
            check,
        )
        for key, check in _keyed(config.checks).items()
    }


@functools.lru_cache(maxsize=64)
def _keyed(checks: tuple[CheckConfig, ...]) -> Mapping[str, CheckConfig]:
    """Return *checks* by key; the agents that have the same ones share it."""
    keyed: dict[str, CheckConfig] = {}
    for check in checks:
        key = base = f"{check.service_type}:{check.service_name}"
        number = 2
        while key in keyed:
            key = f"{base}#{number}"
            number += 1
        keyed[key] = check
    return MappingProxyType(keyed)


def new_slot(config: AgentConfig, fleet: FleetSettings, *, override: str = "") -> AgentSlot:
    """
    Return the lasting state of an agent that was never asked.

    Args:
        override: The agent's address as an environment variable gives it; empty when none does.
    """
    now_s = fleet.env.clock.monotonic()
    subjects = check_subjects(config)
    candidates = ip_candidates(config.name, config.address, "", override)
    names = names_to_resolve(candidates)
    rate = _rate(len(subjects), fleet.timetable.interval_s)
    return AgentSlot(
        config=config,
        fleet=fleet,
        checks=_keyed(config.checks),
        subjects={key: subject for key, (subject, _) in subjects.items()},
        machine=Device(
            ip=device_ip(candidates, {}, ""),
            host=device_host(config.name, config.address, override=override),
        ),
        names=names,
        device_known=asyncio.Event() if names else None,
        breaker=new_breaker(now_s),
        rate=rate,
        bucket=new_bucket(rate, now_s),
        budget=new_retry_budget(RetryBudgetSettings(ratio=fleet.resilience.retry_budget_ratio)),
        override=override,
    )


def coordinator(resilience: ResilienceConfig) -> ChildSpec:
    """Return the spec of which `another` makes each agent's coordinator, with the slot as its context."""
    return supervisor(
        "agent",
        [
            member("security", SecurityContext, shutdown_s=1.0),
            member("connection", ConnectionManager, shutdown_s=2.0),
            member("scheduler", CheckScheduler, shutdown_s=2.0),
            member("results", ResultsStreamer, shutdown_s=2.0),
            member("breaker", SecureCircuitBreaker, restart=Restart.TRANSIENT, shutdown_s=1.0),
        ],
        strategy=Strategy.REST_FOR_ONE,
        intensity=5,
        period_s=60.0,
        quarantine=Quarantine(min_s=resilience.quarantine_min_s, max_s=resilience.quarantine_max_s),
    )


@functools.lru_cache(maxsize=64)
def _rate(checks: int, interval_s: float) -> BucketSettings:
    return BucketSettings(
        rate_per_s=max(REQUESTS_PER_S_MIN, REQUESTS_PER_CHECK * checks / interval_s),
        burst=max(2 * REQUESTS_PER_S_MIN, REQUESTS_PER_CHECK * checks),
    )
