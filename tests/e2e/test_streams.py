"""Results that come as a stream reach core whole, and a stream that misbehaves harms nobody."""

from __future__ import annotations

from typing import Any

import pytest

from serviceradar_poller.testing.process import PollerProcess, eventually
from serviceradar_poller.testing.site import MakeSite, Site

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SYNC = {"service_type": "sync", "service_name": "sync", "results_interval": "1m"}
SWEEP = {"service_type": "sweep", "service_name": "network_sweep", "results_interval": "2s"}
PING = {"service_type": "icmp", "service_name": "ping", "details": "192.0.2.1"}


def _sync_site(
    site: MakeSite, devices: int, *, interval: str = "1m", core_fault: str | None = None, **lab: Any
) -> Site:
    def change(config: dict[str, Any]) -> None:
        config["agents"]["agent-0001"]["checks"] = [SYNC | {"results_interval": interval}]

    return site(8, checks=[PING], change=change, sync=["agent-0001"], devices=devices, core_fault=core_fault, **lab)


def _result_parts(made: Site) -> list[list[dict[str, Any]]]:
    """Return the parts of every result that core was sent, as far as its recording keeps them."""
    parts: list[list[dict[str, Any]]] = [report["parts"] for report in made.core.reports() if report["parts"]]
    return [each for each in parts if each[0]["services"] and each[0]["services"][0]["source"] == "results"]


def _delivered_in_full(made: Site) -> bool:
    accounts = made.poller.json("/health")["statuses"]
    gone = accounts["delivered"] + accounts["rejected"] + accounts["expired"] + sum(accounts["dropped"].values())
    assert accounts["polled"] + accounts["recovered"] == accounts["queued"] + gone, accounts
    return bool(accounts["queued"] == 0 and accounts["delivered"])


def test_a_sync_of_many_megabytes_reaches_core_whole(site: MakeSite) -> None:
    """20,000 devices come in chunks and leave in slices; core joins them to one document, and nobody else is late."""
    made = _sync_site(site, 20_000)
    mark = made.poller.mark()
    status = made.await_status("agent-0001", "sync", lambda status: status["available"])
    assert status["valid_json"]
    assert status["size"] > 6_000_000
    for parts in _result_parts(made):
        assert [part["chunk_index"] for part in parts] == list(range(len(parts)))
        assert {part["total_chunks"] for part in parts} == {len(parts)}
        assert [part["is_final"] for part in parts] == [False] * (len(parts) - 1) + [True]
        assert {part["timestamp"] for part in parts} == {parts[0]["timestamp"]}
    made.await_reports(3)
    sent = [line["kind"] for line in made.poller.events("report_sent", since=mark) if line["kind"] != "register"]
    assert sent[sent.index("result") + 1] in ("current", "cycle")
    eventually(lambda: _delivered_in_full(made), "every status is delivered and accounted for")
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


@pytest.mark.parametrize(
    "fault",
    [
        "stream_garbage",
        "stream_gap",
        "stream_reorder:chunk=2",
        "stream_duplicate",
        "stream_stop:chunk=2",
        "stream_reset:chunk=2",
        "stream_endless",
    ],
)
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


def test_a_slow_stream_has_its_interval_and_delays_nobody(site: MakeSite) -> None:
    """At 10 chunks a minute a result takes far longer than a check may, and still arrives."""
    made = _sync_site(site, 3_500, faults={"agent-0001": "stream_drip:per_minute=10"})
    mark = made.poller.mark()
    status = made.await_status("agent-0001", "sync", lambda status: status["available"], timeout_s=40.0)
    assert status["valid_json"] and status["size"] > 1_000_000
    (finished,) = made.poller.events("check_finished", since=mark, agent="agent-0001", outcome="available")
    assert finished["latency_s"] > 15.0
    made.assert_nobody_late(since=mark, without=["agent-0001"])
    made.assert_no_crash()


def test_half_a_gigabyte_passes_in_bounded_memory(site: MakeSite) -> None:
    """500 MB from one agent arrive whole; the poller's memory does not see their size, and nobody is late."""
    made = _sync_site(site, 10, faults={"agent-0001": "stream_huge:size_bytes=500000000"})
    pid = made.poller.process.pid

    peak_kib = before_kib = _rss_kib(pid)

    def look() -> bool:
        nonlocal peak_kib
        peak_kib = max(peak_kib, _rss_kib(pid))
        return bool(made.poller.events("report_sent", kind="result"))

    eventually(look, "the result is in core", timeout_s=75.0)
    (sent,) = made.poller.events("report_sent", kind="result")
    assert sent["size_bytes"] > 450_000_000
    assert peak_kib - before_kib < 64 * 1024
    made.assert_nobody_late(without=["agent-0001"])
    made.assert_no_crash()


def test_core_restarted_amid_the_parts_gets_all_of_them_again(site: MakeSite) -> None:
    """Nothing of a stream that core did not accept counts: it is sent again from its first part."""
    made = _sync_site(site, 100_000, core_fault="disappear")
    made.poller.await_event("check_finished", agent="agent-0001", outcome="available", timeout_s=30.0)
    made.core.clear_fault()
    eventually(lambda: made.core.counts()["calls"]["stream"] > 1, "the result is being sent", timeout_s=20.0)
    made.core.set_fault("disappear")
    made.core.clear_fault()
    status = made.await_status("agent-0001", "sync", lambda status: status["available"], timeout_s=30.0)
    assert status["valid_json"] and status["size"] > 30_000_000
    eventually(lambda: _delivered_in_full(made), "every status is delivered and accounted for", timeout_s=20.0)
    made.assert_nobody_late(without=["agent-0001"])
    made.assert_no_crash()


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_poller_that_ends_while_a_result_comes_in_keeps_nothing_of_it(site: MakeSite, how: str) -> None:
    """After kill -9 or a stop no half of a result is in the spool; it is pulled again, and core gets it whole, once."""
    made = _sync_site(site, 100_000, faults={"agent-0001": "stream_drip:per_minute=600"})
    eventually(lambda: made.poller.metric("results_writing") == 1, "a result is being written", timeout_s=20.0)
    if how == "stop":
        assert made.poller.stop() == 0
    made.poller.end()
    http_port = int(made.poller.url.rsplit(":", 1)[1])
    made.agents.clear_fault("agent-0001")
    made.poller = PollerProcess(made.poller.config_file, http_port=http_port)
    try:
        made.poller.ready()
        made.await_status("agent-0001", "sync", lambda status: status["available"], timeout_s=30.0)
        eventually(lambda: _delivered_in_full(made), "every status is delivered and accounted for", timeout_s=20.0)
        assert len(_result_parts(made)) == 1
        (recovered,) = made.poller.events("spool_recovered")
        assert recovered["size_bytes"] < 1_000_000, "half a result was found in the spool"
        made.assert_no_crash()
    finally:
        made.poller.end()


def _rss_kib(pid: int) -> int:
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4
