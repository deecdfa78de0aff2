from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serviceradar_poller.logic.enrich import enrich
from serviceradar_poller.logic.jsontext import decode
from serviceradar_poller.logic.merge import MergeError, MergeLimits, feed, finish, new_merge
from serviceradar_poller.logic.outcome import CheckSubject, Device, Reporter, from_results
from serviceradar_poller.logic.streamed import StreamedResult, enrich_metadata, new_streamed
from serviceradar_poller.logic.streamed import feed as streamed_feed
from serviceradar_poller.logic.streamed import finish as streamed_finish
from serviceradar_poller.wire.messages import ResultsChunk, ResultsResponse

LIMITS = MergeLimits()
REPORTER = Reporter(poller_id="p1", partition="default", kv_store_id="kv")
DEVICE = Device(ip="10.1.1.1", host="edge-01")

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
said = st.sampled_from(["status", "status_text", "host_ip", "ip", "host_name", "hostname"])
about = values | st.sampled_from(["", "  ", "10.9.9.9", "name"])
metadata = st.dictionaries(said | text, about | st.dictionaries(said | text, about, max_size=4), max_size=6)
details = st.sampled_from(["", "9.9.9.9:22", "db.example:5432", "8.8.8.8"])
devices = st.builds(
    Device, ip=st.sampled_from(["", "10.1.1.1", "::1"]), host=st.sampled_from(["", "edge-01", "1.2.3.4"])
)


def subject(service_type: str = "sweep", name: str = "lan", details: str = "") -> CheckSubject:
    return CheckSubject(
        agent="agent-1", key="k", service_name=name, service_type=service_type, details=details, is_results=True
    )


def streamed(
    chunks: list[ResultsChunk], about: CheckSubject, device: Device = DEVICE, last_sequence: str = ""
) -> tuple[bytes, StreamedResult]:
    state = new_streamed(about, REPORTER, device, last_sequence=last_sequence, limits=LIMITS)
    pieces = []
    for chunk in chunks:
        state, piece = streamed_feed(state, chunk)
        pieces.append(piece)
    end, result = streamed_finish(state)
    message = b"".join([*pieces, end])
    assert result.message_bytes == len(message)
    return message, result


def merged(chunks: list[ResultsChunk], service_type: str) -> bytes:
    merge = new_merge(service_type, limits=LIMITS)
    pieces = []
    for chunk in chunks:
        merge, piece = feed(merge, chunk)
        pieces.append(piece)
    return b"".join([*pieces, finish(merge)[0]])


def exact(document: bytes) -> object:
    return json.loads(document, parse_float=lambda digits: ("float", float(digits)))


def chunks_of(first: dict[str, Any], *rest: list[Any]) -> list[ResultsChunk]:
    data = [json.dumps(first).encode(), *(json.dumps(items).encode() for items in rest)]
    return [ResultsChunk(data=each, is_final=index == len(rest)) for index, each in enumerate(data)]


@given(metadata, details, devices)
def test_metadata_is_enriched_as_the_whole_would_be(members: dict[str, Any], details: str, device: Device) -> None:
    """Enriching only what concerns the host gives what enriching the whole object gives."""
    text = json.dumps(members).encode()
    whole = enrich(text, details=details, device_ip=device.ip, device_host=device.host)
    parts = enrich_metadata(text, details=details, device_ip=device.ip, device_host=device.host)
    assert decode(parts) == decode(whole)


@given(
    metadata,
    st.lists(values, max_size=3),
    st.lists(st.lists(values, max_size=3), max_size=3),
    details,
    devices,
    st.sampled_from(["sweep", "grpc", "sync", "snmp"]),
    st.sampled_from(["lan", "netbox-sync"]),
)
def test_the_pieces_are_the_whole(
    members: dict[str, Any],
    hosts: list[Any],
    rest: list[list[Any]],
    details: str,
    device: Device,
    service_type: str,
    name: str,
) -> None:
    """The pieces of a stream together are the message that the merged result would get as one response."""
    about = subject(service_type, name, details)
    chunks = chunks_of({**members, "hosts": hosts}, *rest)
    message, result = streamed(chunks, about, device)
    response = ResultsResponse(available=True, data=merged(chunks, result.status.service_type), has_new_data=True)
    expected = from_results(response, about, REPORTER, device, tick=0).status
    assert expected is not None
    assert exact(message) == exact(expected.message)
    assert result.status.message == b""
    for field in ("service_name", "available", "service_type", "agent_id", "poller_id", "partition", "source"):
        assert getattr(result.status, field) == getattr(expected, field)
    assert result.status.kv_store_id == "kv"


def test_a_sweep() -> None:
    """A sweep goes in core's envelope with its keys in order, the host beside the metadata, the hosts untouched."""
    message, result = streamed(
        chunks_of({"network": "10.0.0.0/8", "sequence": 7, "hosts": [{"host": "a"}]}, [{"host": "b"}]), subject()
    )
    assert message.startswith(
        b'{"poller_id":"p1","agent_id":"agent-1","partition":"default","service_type":"sweep","service_name":"lan",'
        b'"data":{"network":"10.0.0.0/8","sequence":7,'
    )
    assert message.endswith(b'"hosts":[{"host": "a"},{"host": "b"}]}}')
    data = json.loads(message)["data"]
    assert data["host_ip"] == data["ip"] == data["status"]["ip"] == "10.1.1.1"
    assert data["host_name"] == data["status"]["hostname"] == "edge-01"
    assert result.merged.items == 2


def test_device_updates_go_bare() -> None:
    """A check called sync reports a bare array, whatever its type, and whatever form its chunks have."""
    message, result = streamed(chunks_of({"network": "x", "hosts": [1]}, [2]), subject("sweep", "netbox-sync"))
    assert (message, result.status.service_type) == (b"[1,2]", "sync")


def test_nothing_new() -> None:
    """An unchanged sweep is told from one without hosts."""
    unchanged = [ResultsChunk(data=b"{}", is_final=True, total_chunks=1, current_sequence="7")]
    assert not streamed(unchanged, subject(), last_sequence="7")[1].merged.has_new_data
    assert streamed(unchanged, subject(), last_sequence="6")[1].merged.has_new_data


def test_a_broken_stream_has_no_result() -> None:
    """Pieces of a stream without an end are never completed."""
    state = new_streamed(subject(), REPORTER, DEVICE, last_sequence="", limits=LIMITS)
    state, _ = streamed_feed(state, ResultsChunk(data=b"[1]"))
    with pytest.raises(MergeError, match="without a final chunk"):
        streamed_finish(state)
