"""Whatever setting the configuration accepts, the poller runs with it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from serviceradar_poller.config.durations import format_duration
from serviceradar_poller.config.schema import INT64_MAX, Field, Kind, scalar_paths
from serviceradar_poller.errors import CallError, ConfigError, GrpcCode, Layer
from serviceradar_poller.events.kernel import ChildExited
from serviceradar_poller.events.polling import CheckFinished
from serviceradar_poller.testing.configs import build
from serviceradar_poller.testing.fakes import REFUSED
from serviceradar_poller.testing.simloop import run
from serviceradar_poller.testing.simsite import SimSite

#: Virtual; the shortest outage, window and delay have come and gone by then.
RUN_S = 20.0
CHECKS = [
    {"service_type": "icmp", "service_name": "ping", "details": "9.9.9.9"},
    {"service_type": "sync", "service_name": "sync", "results_interval": "1s"},
]


def _extremes() -> Iterator[tuple[str, object]]:
    for path, field in scalar_paths():
        if path[0] in ("scheduling", "reporting", "resilience", "poll_interval"):
            for value in _values(field):
                yield ".".join(path), value


def _values(field: Field) -> tuple[object, ...]:
    match field.kind:
        case Kind.DURATION:
            return format_duration(int(field.minimum or 0)), "6s", "100000h", format_duration(INT64_MAX)
        case Kind.INT | Kind.NUMBER:
            return field.minimum, field.maximum
        case _:
            return ()


@pytest.mark.parametrize(("key", "value"), [*_extremes()])
def test_every_accepted_setting_runs(key: str, value: object) -> None:
    """With agents that answer, fail and are away no child of the tree crashes, and those that answer are asked."""
    changes: dict[str, Any] = {"poll_interval": "5s", "agents": {}}
    for name in ("good", "failing", "away"):
        changes["agents"][name] = {"address": f"{name}:50051", "checks": CHECKS}
    section = changes
    *parents, last = key.split(".")
    for parent in parents:
        section = section.setdefault(parent, {})
    section[last] = value
    try:
        config = build(**changes).config
    except ConfigError:
        return

    async def main() -> None:
        site = SimSite(config)
        site.agents["failing"].error = CallError(
            layer=Layer.GRPC, code=GrpcCode.UNAVAILABLE, reason="unavailable", detail="busy"
        )
        site.agents["away"].error = REFUSED
        async with site.running():
            await asyncio.sleep(RUN_S)
        assert [event for event in site.of(ChildExited) if event.reason == "error"] == []
        asked = {event.agent for event in site.of(CheckFinished)}
        assert "good" in asked or config.poll_interval_s > RUN_S

    run(main())
