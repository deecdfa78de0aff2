"""What an agent's answer, or the lack of one, tells core."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serviceradar_poller.errors import CallError, GrpcCode, Layer
from serviceradar_poller.logic.outcome import (
    CheckSubject,
    Device,
    Reporter,
    Verdict,
    from_failure,
    from_results,
    from_status,
)
from serviceradar_poller.wire.messages import ResultsResponse, StatusResponse

REPORTER = Reporter(poller_id="p1", partition="site", kv_store_id="hub")
DEVICE = Device(ip="10.0.0.9", host="edge")
CHECK = CheckSubject(
    agent="edge-01", key="icmp:ping", service_name="ping", service_type="icmp", details="9.9.9.9", is_results=False
)
SWEEP = replace(CHECK, service_type="sweep", service_name="network_sweep", is_results=True)


def _data(message: bytes) -> dict[str, object]:
    envelope = json.loads(message)
    assert list(envelope) == ["poller_id", "agent_id", "partition", "service_type", "service_name", "data"]
    data = envelope["data"]
    assert isinstance(data, dict)
    return data


def test_an_answer_is_copied_enriched_and_wrapped() -> None:
    """A status check's answer reaches core with device fields, in the envelope, under the agent's own id."""
    response = StatusResponse(available=True, message=b'{"packet_loss":0}', response_time=5, agent_id="other")
    outcome = from_status(response, CHECK, REPORTER, DEVICE, tick=3)
    status = outcome.status
    assert status is not None
    assert outcome.verdict is Verdict.AVAILABLE
    assert (status.agent_id, status.source, status.response_time, status.partition) == ("other", "getStatus", 5, "site")
    assert status.kv_store_id == "hub"
    assert _data(status.message)["host_ip"] == "9.9.9.9"
    assert outcome.claimed_agent_id == "other"


def test_w6_the_message_null_is_an_answer() -> None:
    """W6: the message ``null`` counts as empty."""
    outcome = from_status(StatusResponse(available=True, message=b"null"), CHECK, REPORTER, DEVICE, tick=0)
    assert outcome.status is not None
    assert _data(outcome.status.message)["ip"] == "9.9.9.9"


def test_w7_a_message_that_is_not_json_is_kept() -> None:
    """W7: a plain text reaches core under ``status_text``."""
    outcome = from_status(StatusResponse(available=True, message=b"all fine"), CHECK, REPORTER, DEVICE, tick=0)
    assert outcome.status is not None
    assert _data(outcome.status.message)["status_text"] == "all fine"


def test_w8_snmp_payloads_are_left_alone() -> None:
    """W8: an SNMP payload is a map of targets and gets no string keys."""
    snmp = replace(CHECK, service_type="snmp")
    message = b'{"router":{"available":true}}'
    outcome = from_status(StatusResponse(available=True, message=message), snmp, REPORTER, DEVICE, tick=0)
    assert outcome.status is not None
    assert _data(outcome.status.message) == {"router": {"available": True}}


@pytest.mark.parametrize("claimed", ["", "edge-01", "x"])
def test_w11_results_always_name_an_agent(claimed: str) -> None:
    """W11: unary results without an agent id are filed under the configured one."""
    response = ResultsResponse(available=True, data=b"{}", agent_id=claimed, has_new_data=True, current_sequence="7")
    outcome = from_results(response, SWEEP, REPORTER, DEVICE, tick=0)
    assert outcome.status is not None
    assert outcome.status.agent_id == (claimed or "edge-01")
    assert outcome.status.source == "results"
    assert outcome.sequence == "7"


def test_a_sweep_without_news_is_not_told() -> None:
    """A sweep that has nothing new has no status; any other kind of result has."""
    response = ResultsResponse(available=True, has_new_data=False)
    assert from_results(response, SWEEP, REPORTER, DEVICE, tick=0).verdict is Verdict.UNCHANGED
    grpc = replace(SWEEP, service_type="grpc")
    assert from_results(response, grpc, REPORTER, DEVICE, tick=0).status is not None


def test_a_name_with_sync_makes_the_type_sync_and_goes_unwrapped() -> None:
    """Core takes device updates as a bare array under the type ``sync``."""
    named = replace(SWEEP, service_type="grpc", service_name="netbox-sync")
    response = ResultsResponse(available=True, data=b'[{"ip":"1.2.3.4"}]', has_new_data=True)
    outcome = from_results(response, named, REPORTER, DEVICE, tick=0)
    assert outcome.status is not None
    assert outcome.status.service_type == "sync"
    assert json.loads(outcome.status.message) == [{"ip": "1.2.3.4"}]


def _error(layer: Layer = Layer.TCP, code: GrpcCode = GrpcCode.UNAVAILABLE, detail: str = "refused by x") -> CallError:
    return CallError(layer=layer, code=code, detail=detail, reason="refused")


def test_a_failed_check_says_why() -> None:
    """An unreachable agent's check is unavailable, with the sentence core knows and the cause beside it."""
    outcome = from_failure(_error(), CHECK, REPORTER, DEVICE, tick=0)
    assert outcome.status is not None
    data = _data(outcome.status.message)
    assert data["error"] == "Service check failed"
    assert (data["reason"], data["detail"]) == ("refused", "refused by x")
    assert data["host_ip"] == "9.9.9.9"
    assert (outcome.status.available, outcome.status.response_time) == (False, 0)


@given(st.text())
def test_a_failed_results_check_is_valid_json(detail: str) -> None:
    """Whatever the error's text, the message is JSON and begins with the sentence core knows."""
    outcome = from_failure(_error(detail=detail), SWEEP, REPORTER, DEVICE, tick=0)
    assert outcome.status is not None
    assert str(_data(outcome.status.message)["error"]).startswith("GetResults failed: ")


def test_results_that_the_agent_does_not_offer_are_not_told() -> None:
    """UNIMPLEMENTED from a results check is no outcome for core, and no failure."""
    error = _error(layer=Layer.GRPC, code=GrpcCode.UNIMPLEMENTED)
    outcome = from_failure(error, SWEEP, REPORTER, DEVICE, tick=0)
    assert (outcome.verdict, outcome.status, outcome.ok) == (Verdict.UNSUPPORTED, None, True)
    assert from_failure(error, CHECK, REPORTER, DEVICE, tick=0).verdict is Verdict.FAILED
