"""Results that come as a stream reach core whole, and a stream that misbehaves harms nobody."""

from __future__ import annotations

from typing import Any

import pytest

from serviceradar_poller.testing.process import eventually
from serviceradar_poller.testing.site import MakeSite, Site

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SYNC = {"service_type": "sync", "service_name": "sync", "results_interval": "1m"}
SWEEP = {"service_type": "sweep", "service_name": "network_sweep", "results_interval": "2s"}
PING = {"service_type": "icmp", "service_name": "ping", "details": "192.0.2.1"}


def _sync_site(site: MakeSite, devices: int, **lab: Any) -> Site:
    def change(config: dict[str, Any]) -> None:
        config["agents"]["agent-0001"]["checks"] = [SYNC]

    return site(8, checks=[PING], change=change, sync=["agent-0001"], devices=devices, **lab)


def test_a_sync_of_many_megabytes_reaches_core_whole(site: MakeSite) -> None:
    """20,000 devices come in chunks and leave in slices; core joins them to one document, and nobody else is late."""
    made = _sync_site(site, 20_000)
    mark = made.poller.mark()
    status = made.await_status("agent-0001", "sync", lambda status: status["available"])
    assert status["valid_json"]
    assert status["size"] > 6_000_000
    made.await_reports(3)
    made.assert_nobody_late(since=mark, without=["agent-0001"])
    made.assert_no_crash()


def test_w9_a_sweep_is_told_again_only_with_news(site: MakeSite) -> None:
    """W9 and W10: an unchanged sweep is not sent; after a change the next result is asked for from what core has."""
    made = site(1, checks=[PING, SWEEP], sweep_hosts=50)
    made.await_status("agent-0001", "network_sweep", lambda status: status["available"])
    eventually(
        lambda: made.agents.agent("agent-0001")["calls"].get("chunks", 0) >= 4,
        "several sweeps asked for",
        timeout_s=30.0,
    )
    told = len(made.statuses("agent-0001", "network_sweep"))
    made.agents.change_results("agent-0001", hosts=60)
    eventually(
        lambda: len(made.statuses("agent-0001", "network_sweep")) == told + 1, "the changed sweep", timeout_s=15.0
    )


@pytest.mark.parametrize("fault", ["stream_garbage", "stream_gap", "stream_stop", "stream_reset", "stream_endless"])
def test_a_broken_stream_is_told_with_its_reason_and_mended_soon(site: MakeSite, fault: str) -> None:
    """Nothing half-received reaches core; the agent's other neighbours go on; the next try comes within seconds."""
    made = _sync_site(site, 3_000, faults={"agent-0001": fault})
    made.await_reports(2)
    if fault != "stream_endless":  # that one goes on until the limit
        status = made.await_status("agent-0001", "sync", lambda status: not status["available"])
        assert "GetResults failed" in status["message"]["error"]
    assert not [status for status in made.statuses("agent-0001", "sync") if status["available"]]
    made.assert_nobody_late(without=["agent-0001"])
    made.agents.clear_fault("agent-0001")
    made.await_status("agent-0001", "sync", lambda status: status["available"], timeout_s=40.0)
    made.assert_no_crash()
