"""Every fault of a streamed result, as it is made and as a real gRPC client sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import grpc
import pytest

from serviceradar_poller.lab.client import LabAgents
from serviceradar_poller.lab.faults import parse_fault
from serviceradar_poller.lab.http2 import StreamItem
from serviceradar_poller.lab.streams import distort_stream
from serviceradar_poller.logic.merge import MergeError, MergeLimits, feed, finish, new_merge
from serviceradar_poller.testing.lab_client import Client, code_of, eventually
from serviceradar_poller.wire import codec
from serviceradar_poller.wire.messages import ResultsChunk
from serviceradar_poller.wire.pb import monitoring_pb2 as pb

SYNC = "agent-0003"
REQUEST = pb.ResultsRequest(service_name="sync", service_type="sync", poller_id="p1", last_sequence="7")
OK = grpc.StatusCode.OK
Connect = Callable[..., Client]


def good(count: int) -> Iterator[pb.ResultsChunk]:
    for index in range(count):
        yield pb.ResultsChunk(
            data=b"[%d]" % index,
            chunk_index=index,
            total_chunks=count,
            is_final=index == count - 1,
            current_sequence="8",
        )


def items(fault: str, count: int = 4) -> Iterator[StreamItem]:
    return distort_stream(good(count), REQUEST, parse_fault(fault), agent_id="a", now=1_700_000_000.0)


def places(sent: Iterator[StreamItem]) -> list[int | str]:
    return [pb.ResultsChunk.FromString(item).chunk_index if isinstance(item, bytes) else str(item) for item in sent]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("stream_gap", [0, 2, 3]),
        ("stream_gap:chunk=0", [1, 2, 3]),
        ("stream_gap:chunk=9", [0, 1, 2]),
        ("stream_duplicate:chunk=2", [0, 1, 2, 2, 3]),
        ("stream_duplicate:chunk=3", [0, 1, 2, 3, 3]),
        ("stream_reorder", [0, 2, 1, 3]),
        ("stream_reorder:chunk=3", [0, 1, 2, 4]),
        ("stream_stop", [0]),
        ("stream_stop:chunk=3", [0, 1, 2]),
        ("stream_reset:chunk=2", [0, 1, "StreamEnd.RESET"]),
        ("stream_garbage", [0, 1, 2, 3]),
        ("stream_drip:per_minute=600", ["0.1", 0, "0.1", 1, "0.1", 2, "0.1", 3]),
        ("stream_unchanged", [0]),
    ],
)
def test_what_is_sent(fault: str, expected: list[int | str]) -> None:
    """A fault of one chunk leaves the others alone; where there are fewer chunks it is the last."""
    assert places(items(fault)) == expected


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("stream_garbage", "parse"),
        ("stream_garbage:chunk=9", "parse"),
        ("stream_gap", "gap"),
        ("stream_gap:chunk=3", "no_final"),
        ("stream_duplicate", "duplicate"),
        ("stream_reorder", "gap"),
        ("stream_stop", "no_final"),
        ("stream_endless", "too_many"),
    ],
)
@pytest.mark.parametrize("count", [1, 4])
def test_no_faulty_stream_is_a_result(fault: str, reason: str, count: int) -> None:
    """What a fault leaves of a stream is refused when it is merged, with the reason that fits."""

    def merge() -> None:
        state = new_merge("sync", limits=MergeLimits(chunks_max=50))
        for item in items(fault, count):
            assert isinstance(item, bytes)
            state, _ = feed(state, codec.decode_results_chunk(item))
            if state.final:
                break
        finish(state)

    with pytest.raises(MergeError) as caught:
        merge()
    if count == 4:
        assert caught.value.reason == reason


def test_an_endless_stream_never_ends() -> None:
    """Chunks go on being numbered and are never final, whatever there was before."""
    for count in (0, 2):
        sent = [codec.decode_results_chunk(item) for item in islice(items("stream_endless", count), 100) if item]  # type: ignore[arg-type]
        assert len(sent) == 100
        assert not any(chunk.is_final or chunk.total_chunks for chunk in sent)


def test_unchanged() -> None:
    """An unchanged result is one final empty object at the sequence that was asked about."""
    (item,) = items("stream_unchanged")
    assert isinstance(item, bytes)
    assert codec.decode_results_chunk(item) == ResultsChunk(
        data=b"{}", is_final=True, total_chunks=1, current_sequence="7", timestamp=1_700_000_000
    )


@pytest.mark.slow
def test_huge() -> None:
    """A huge result has about the size that was asked for, in chunks of half a MiB."""
    sizes = [len(item) for item in items("stream_huge:size_bytes=20000000") if isinstance(item, bytes)]
    assert 0.9 < sum(sizes) / 20_000_000 < 1.1
    assert max(sizes) < 600_000


# -- over the wire


@pytest.fixture
def sync(agents: LabAgents, security: str, connect: Connect) -> Client:
    """A client of the sync service, which has three chunks."""
    return connect(agents.ports[2], tls=security == "mtls")


def indices(client: Client) -> list[int]:
    return [chunk.chunk_index for chunk in client.stream(REQUEST)]


def test_over_the_wire(agents: LabAgents, sync: Client) -> None:
    """Faults are set and cleared while the agent runs; a reset breaks off the call, not the connection."""
    assert indices(sync) == [0, 1, 2]
    accepted = agents.agent(SYNC)["counts"]["accepted"]
    for fault, expected in (
        ("stream_gap", [0, 2]),
        ("stream_duplicate", [0, 1, 1, 2]),
        ("stream_reorder", [0, 2, 1]),
        ("stream_stop", [0]),
    ):
        agents.set_fault(SYNC, fault)
        assert indices(sync) == expected
    agents.set_fault(SYNC, "stream_garbage", chunk=2)
    assert sync.stream(REQUEST)[2].data.startswith(b'[{"ip":')
    agents.set_fault(SYNC, "stream_unchanged")
    assert [chunk.data for chunk in sync.stream(REQUEST)] == [b"{}"]
    agents.set_fault(SYNC, "stream_reset")
    assert code_of(lambda: sync.stream(REQUEST))[0] is grpc.StatusCode.INTERNAL
    assert sync.status("sync").available
    agents.clear_fault(SYNC)
    assert indices(sync) == [0, 1, 2]
    assert agents.agent(SYNC)["counts"]["accepted"] == accepted


@pytest.mark.slow
def test_drip(agents: LabAgents, sync: Client) -> None:
    """Chunks come at the pace that was asked for, and other calls are answered meanwhile."""
    agents.set_fault(SYNC, "stream_drip", per_minute=600)
    stream = sync.channel.unary_stream(
        "/monitoring.AgentService/StreamResults",
        request_serializer=pb.ResultsRequest.SerializeToString,
        response_deserializer=pb.ResultsChunk.FromString,
    )
    chunks = stream(REQUEST, timeout=10.0)
    assert next(chunks).chunk_index == 0
    assert sync.status("sync").available
    assert [chunk.chunk_index for chunk in chunks] == [1, 2]
    agents.set_fault(SYNC, "stream_drip", per_minute=1)
    assert code_of(lambda: sync.stream(REQUEST, timeout=0.3))[0] is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.slow
def test_endless_waits_for_its_reader(agents: LabAgents, sync: Client) -> None:
    """An endless stream stands still while nobody reads, and ends where its reader cancels."""
    agents.set_fault(SYNC, "stream_endless")
    stream = sync.channel.unary_stream(
        "/monitoring.AgentService/StreamResults",
        request_serializer=pb.ResultsRequest.SerializeToString,
        response_deserializer=pb.ResultsChunk.FromString,
    )
    chunks = stream(REQUEST, timeout=10.0)
    assert [next(chunks).chunk_index for _ in range(20)] == list(range(20))
    sent: list[int] = []

    def stands_still() -> bool:
        sent.append(agents.agent(SYNC)["calls"]["chunks"])
        return len(sent) > 20 and len(set(sent[-20:])) == 1

    eventually(stands_still, "the stream stands still")
    chunks.cancel()
    assert sync.status("sync").available


@pytest.mark.slow
def test_huge_costs_the_lab_nothing() -> None:
    """An agent streams a hundred MB at the cost of a few chunks."""
    with LabAgents.start(1, faults={"*": "stream_huge:size_bytes=100000000"}) as agents:
        before = agents.stats()["rss_bytes"]
        with grpc.insecure_channel(agents.address("agent-0001")) as channel:
            stream: grpc.UnaryStreamMultiCallable[pb.ResultsRequest, bytes] = channel.unary_stream(
                "/monitoring.AgentService/StreamResults",
                request_serializer=pb.ResultsRequest.SerializeToString,
            )
            request = pb.ResultsRequest(service_name="netbox-sync", service_type="grpc")
            assert 90_000_000 < sum(map(len, stream(request, timeout=30.0))) < 110_000_000
        assert agents.stats()["rss_bytes_max"] - before < 32 * 1024 * 1024
