from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serviceradar_poller.errors import GrpcCode
from serviceradar_poller.lab.answers import (
    Profile,
    RefusalError,
    answer_results,
    answer_status,
    stream_results,
)
from serviceradar_poller.lab.datasets import Dataset
from serviceradar_poller.wire.pb import monitoring_pb2 as pb

NOW = 1_700_000_000.0


def profile(*, sync: bool = False, devices: int | None = None, hosts: int | None = None) -> Profile:
    return Profile(
        agent_id="agent-0001",
        sync=sync,
        devices=Dataset(count=devices, sequence=int(NOW)) if devices is not None else None,
        sweep=Dataset(count=hosts, sequence=int(NOW)) if hosts is not None else None,
    )


def ask(kind: str, details: str = "", name: str = "n", hosts: int | None = None) -> pb.StatusResponse:
    request = pb.StatusRequest(service_type=kind, service_name=name, details=details, poller_id="p", agent_id="x")
    return answer_status(profile(hosts=hosts), request, NOW)


@pytest.mark.parametrize(
    ("kind", "details", "keys"),
    [
        ("icmp", "10.0.0.1", {"host", "response_time", "packet_loss", "available"}),
        ("port", "10.0.0.1:22", {"host", "port", "response_time"}),
        ("process", "nginx", {"status", "process_name", "active", "agent_id", "poller_id"}),
        ("process", "", {"status", "process_name", "active", "agent_id", "poller_id"}),
        ("snmp", "10.0.0.1:50080", {"router-1", "router-2"}),
        ("grpc", "10.0.0.1:50083", {"status", "service", "version", "load"}),
        ("mapper_discovery", "{}", {"devices", "interfaces", "topology", "agent_id", "poller_id"}),
        ("sweep", "", {"error"}),
    ],
)
def test_messages_by_type(kind: str, details: str, keys: set[str]) -> None:
    """Each check type has the message of its kind, under the agent's own id."""
    response = ask(kind, details)
    assert response.available
    assert response.agent_id == "agent-0001"
    assert set(json.loads(response.message)) == keys


@pytest.mark.parametrize(
    ("kind", "details"),
    [("dusk", "10.0.0.1"), ("icmp", ""), ("port", "10.0.0.1"), ("port", "10.0.0.1:ssh"), ("snmp", ""), ("grpc", "")],
)
def test_unknown_types_and_missing_details(kind: str, details: str) -> None:
    """What an agent can't check gets an empty response: no message, no id, not available."""
    assert ask(kind, details) == pb.StatusResponse()


def test_sysmon_and_sweep() -> None:
    """Sysmon tells its host's IP; a sweep its summary without hosts."""
    sysmon = json.loads(ask("grpc", "10.0.0.9:50083", name="sysmon").message)
    assert sysmon["status"]["host_ip"] == "10.0.0.9"
    sweep = json.loads(ask("sweep", hosts=100).message)
    assert (sweep["total_hosts"], sweep["sequence"], "hosts" in sweep) == (100, str(int(NOW)), False)


def results(kind: str, name: str = "n", last: str = "") -> pb.ResultsRequest:
    return pb.ResultsRequest(service_type=kind, service_name=name, details="10.0.0.1:50083", last_sequence=last)


@pytest.mark.parametrize("kind", ["icmp", "sync", "snmp", ""])
def test_agents_serve_only_sweep_and_grpc(kind: str) -> None:
    """Results of any other type are UNIMPLEMENTED, in both ways."""
    for answer in (answer_results, stream_results):
        with pytest.raises(RefusalError) as refused:
            answer(profile(devices=3), results(kind), NOW)
        assert refused.value.code is GrpcCode.UNIMPLEMENTED


def test_no_sweep_service() -> None:
    """Without a sweep service results are NOT_FOUND, in the agent's words."""
    for answer in (answer_results, stream_results):
        with pytest.raises(RefusalError, match=r"^No sweep service configured$") as refused:
            answer(profile(), results("sweep"), NOW)
        assert refused.value.code is GrpcCode.NOT_FOUND


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 5000))
def test_sweep_is_whole_however_split(count: int) -> None:
    """Every host is in exactly one chunk, each chunk is an object with the summary, and unary says the same."""
    subject = profile(hosts=count)
    chunks = list(stream_results(subject, results("sweep"), NOW))
    documents = [json.loads(chunk.data) for chunk in chunks]
    hosts = [host["host"] for document in documents for host in document["hosts"]]
    assert len(hosts) == len(set(hosts)) == count
    assert all(document["total_hosts"] == count for document in documents)
    assert [chunk.is_final for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert [chunk.chunk_index for chunk in chunks] == list(range(chunks[0].total_chunks))
    whole = json.loads(answer_results(subject, results("sweep"), NOW).data)
    assert [host["host"] for host in whole["hosts"]] == hosts


def test_large_sweep_is_split_by_a_thousand() -> None:
    """Above a mebibyte a sweep is split, a thousand hosts a chunk; the estimate of its size is not below it."""
    chunks = list(stream_results(profile(hosts=4500), results("sweep"), NOW))
    assert [len(json.loads(chunk.data)["hosts"]) for chunk in chunks] == [1000] * 4 + [500]
    (largest_unsplit,) = stream_results(profile(hosts=4000), results("sweep"), NOW)
    assert 0.8 * 2**20 < len(largest_unsplit.data) <= 2**20


def test_sequences() -> None:
    """The sequence of the last result means no new data; a change or a due period makes new data."""
    subject = profile(hosts=3)
    first = answer_results(subject, results("sweep"), NOW)
    assert first.has_new_data
    again = answer_results(subject, results("sweep", last=first.current_sequence), NOW)
    assert (again.has_new_data, again.data, again.available) == (False, b"", True)
    (unchanged,) = stream_results(subject, results("sweep", last=first.current_sequence), NOW)
    assert (unchanged.data, unchanged.is_final) == (b"{}", True)
    assert subject.sweep is not None
    assert int(subject.sweep.touch(NOW)) > int(first.current_sequence)
    assert answer_results(subject, results("sweep", last=first.current_sequence), NOW).has_new_data


@given(st.floats(1.0, 1000.0), st.lists(st.floats(0.0, 5000.0), max_size=20))
def test_periods_only_move_forward(period: float, steps: list[float]) -> None:
    """A sequence that changes by itself never goes back, and changes whenever a period went by."""
    dataset = Dataset(count=1, sequence=1000, period_s=period)
    now, last = 1000.0, 1000
    for step in steps:
        now += step
        sequence = int(dataset.sequence_at(now))
        assert sequence >= last
        assert now - sequence < period + 1
        last = sequence


def test_sync_devices_are_plain_json() -> None:
    """A sync service has arrays of devices with distinct ids, an empty one is ``[]``, and unary holds all of them."""
    subject = profile(sync=True, devices=3000)
    chunks = list(stream_results(subject, results("sync", "sync"), NOW))
    devices = [device for chunk in chunks for device in json.loads(chunk.data)]
    assert len({device["device_id"] for device in devices}) == 3000
    assert json.loads(answer_results(subject, results("sync", "sync"), NOW).data) == devices
    (empty,) = stream_results(profile(sync=True, devices=0), results("sync", "sync"), NOW)
    assert (empty.data, empty.is_final, empty.current_sequence) == (b"[]", True, str(int(NOW)))


def test_sync_behind_an_agent() -> None:
    """A grpc check whose name holds sync streams the devices; another gives the checker's own words."""
    (chunk,) = stream_results(profile(devices=2), results("grpc", "netbox-sync"), NOW)
    assert len(json.loads(chunk.data)) == 2
    (other,) = stream_results(profile(devices=2), results("grpc", "sysmon"), NOW)
    assert json.loads(other.data)["status"]["host_id"] == "agent-0001"


@pytest.mark.parametrize("count", [-1, 16_000_001])
def test_dataset_limits(count: int) -> None:
    """A result set has a size that fits the address space it is made of."""
    with pytest.raises(ValueError, match="between 0 and"):
        Dataset(count=count, sequence=1)
    with pytest.raises(ValueError, match="between 0 and"):
        Dataset(count=1, sequence=1).touch(NOW, count=count)
