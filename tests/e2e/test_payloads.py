"""What agents say arrives in core unharmed, however odd or large it is."""

from __future__ import annotations

import pytest

from serviceradar_poller.testing.site import KV_STORE_ID, PARTITION, POLLER_ID, MakeSite

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

MIB = 1024 * 1024


def test_w6_a_null_message_is_an_empty_one(site: MakeSite) -> None:
    """W6: an agent that answers ``null`` crashes nothing; core gets an object in an envelope."""
    made = site(2, faults={"agent-0001": "null"})
    made.await_reports(3)
    status = made.latest("agent-0001", "ping")
    assert status["valid_json"]
    assert status["message"]["data"]["host_ip"]
    assert status["message"]["agent_id"] == "agent-0001"
    assert made.poller.alive
    made.assert_no_crash()


def test_w7_text_that_is_no_json_is_kept(site: MakeSite) -> None:
    """W7: a message in plain text arrives under ``status_text`` in a valid JSON document."""
    made = site(2, faults={"agent-0001": "non_json:message=disk is 93% full <&>"})
    status = made.await_status("agent-0001", "ping", lambda status: status["available"])
    assert status["valid_json"]
    assert status["message"]["data"]["status_text"] == "disk is 93% full <&>"


def test_w8_snmp_payloads_are_not_enriched(site: MakeSite) -> None:
    """W8: a map of SNMP targets reaches core with its targets as the only keys, since core rejects any other."""
    checks = [{"service_type": "snmp", "service_name": "snmp", "details": "192.0.2.7:161"}]
    made = site(1, checks=checks)
    status = made.await_status("agent-0001", "snmp", lambda status: status["available"])
    data = status["message"]["data"]
    assert set(data) == {"router-1", "router-2"}
    assert all(set(target) >= {"available", "oid_status"} for target in data.values())


def test_w11_results_without_an_agent_id_get_the_configured_one(site: MakeSite) -> None:
    """W11: unary results that name no agent are told under the agent's key, in status and envelope."""
    checks = [
        {
            "service_type": "grpc",
            "service_name": "sysmon",
            "details": "192.0.2.7:50083",
            "results_interval": "1s",
        }
    ]
    made = site(1, checks=checks, faults={"agent-0001": "wrong_agent_id:agent_id="})
    status = made.await_status("agent-0001", "sysmon", lambda status: status["available"])
    assert status["source"] == "results"
    assert status["message"]["agent_id"] == "agent-0001"
    assert status["message"]["data"]["status"]["host_id"] == "agent-0001"
    assert made.core.state(agent="")["latest"] == []


@pytest.mark.parametrize("results", [False, True], ids=["status", "results"])
def test_w12_a_split_message_keeps_its_fields_in_every_chunk(site: MakeSite, results: bool) -> None:
    """W12: a message above 3 MiB comes in chunks that all have source, kv_store_id and ids; core puts it together."""
    check: dict[str, object] = {"service_type": "grpc", "service_name": "big", "details": "192.0.2.7:1"}
    if results:
        check["results_interval"] = "1s"
    made = site(2, checks=[check], faults={"agent-0001": f"huge:size_bytes={7 * MIB}"})
    status = made.await_status("agent-0001", "big", lambda status: status["available"] and status["size"] > 7 * MIB)
    assert status["truncated"] and status["valid_json"]
    assert status["text"].startswith(f'{{"poller_id":"{POLLER_ID}","agent_id":"agent-0001","partition":"{PARTITION}"')
    assert status["size"] < 7 * MIB + 1000

    report = next(r for r in made.core.reports() if r["transport"] == "stream" and r["size"] > 7 * MIB)
    assert report["merged"] == 0
    assert report["kv_store_id"] == KV_STORE_ID and report["agent_id"] == "agent-0001"
    parts = report["parts"]
    assert [part["chunk_index"] for part in parts] == list(range(len(parts)))
    assert {part["total_chunks"] for part in parts} == {len(parts)}
    assert [part["is_final"] for part in parts] == [False] * (len(parts) - 1) + [True]
    big = [part for part in parts if part["services"][0]["agent_id"] == "agent-0001"]
    assert len(big) == 3
    for part in big:
        assert part["kv_store_id"] == KV_STORE_ID
        assert part["timestamp"] == report["timestamp"]
        (service,) = part["services"]
        assert service["source"] == ("results" if results else "getStatus")
        assert service["kv_store_id"] == KV_STORE_ID
        assert (service["poller_id"], service["partition"]) == (POLLER_ID, PARTITION)
        assert service["size"] <= 3 * MIB

    small = made.await_status("agent-0002", "big", lambda status: status["available"])
    assert small["valid_json"] and small["size"] < 1000
    made.assert_nobody_late(without=["agent-0001"])
