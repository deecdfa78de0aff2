from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serviceradar_poller.lab import recording
from serviceradar_poller.lab.recording import Record, Recorder, reassemble
from serviceradar_poller.wire.pb import monitoring_pb2 as pb

services = st.builds(
    pb.ServiceStatus,
    service_name=st.sampled_from("ab"),
    service_type=st.sampled_from("xy"),
    agent_id=st.sampled_from("12"),
    message=st.binary(max_size=20),
    available=st.booleans(),
)


@given(st.lists(st.lists(services, max_size=4), max_size=6))
def test_reassembly(parts: list[list[pb.ServiceStatus]]) -> None:
    """Bytes are concatenated per name and type in arrival order, all else is the first part's; input stays."""
    chunks = [pb.PollerStatusChunk(services=part) for part in parts]
    copies = [pb.PollerStatusChunk.FromString(chunk.SerializeToString()) for chunk in chunks]
    flat = [service for part in parts for service in part]
    whole, merged = reassemble(chunks)
    assert chunks == copies
    for found in whole:
        same = [s for s in flat if (s.service_name, s.service_type) == (found.service_name, found.service_type)]
        assert found.message == b"".join(service.message for service in same)
        assert (found.agent_id, found.available) == (same[0].agent_id, same[0].available)
    assert len(whole) == len({(s.service_name, s.service_type) for s in flat})
    if not merged:
        assert {s.agent_id for s in flat} == {s.agent_id for s in whole}


def request(*names: str, message: bytes = b"{}") -> pb.PollerStatusRequest:
    found = [pb.ServiceStatus(service_name=name, agent_id="a", message=message) for name in names]
    return pb.PollerStatusRequest(poller_id="p", services=found)


def test_duplicates_are_counted() -> None:
    """The same agent, name and type twice in a report is counted; the later one is the state."""
    recorder = Recorder()
    report = recorder.unary(request("s", "s", "t"), size=1, monotonic_s=0.0, wall_s=0.0)
    assert (report.duplicates, report.status_count) == (1, 3)
    assert recorder.latest[("a", "s", "")].seen == 2


def test_long_messages_are_cut() -> None:
    """Of a message above the limit only the beginning and the size are kept, and it says so."""
    recorder = Recorder()
    text = b'"' + b"x" * recording.MESSAGE_KEPT_BYTES_MAX + b'"'
    recorder.unary(request("s", message=text), size=1, monotonic_s=0.0, wall_s=0.0)
    (shown,) = [status.as_json(report) for status, report in recorder.statuses_of()]
    assert (shown["truncated"], shown["size"], shown["message"]) == (True, len(text), None)
    assert len(str(shown["text"])) < 10_000
    assert recorder.summary()["status_bytes_kept"] == len(str(shown["text"]))


def test_summary_mode_keeps_no_list() -> None:
    """Without the list there is still the state, and clearing forgets it but not the count."""
    recorder = Recorder(record=Record.SUMMARY)
    recorder.unary(request("s"), size=1, monotonic_s=0.0, wall_s=0.0)
    assert (len(recorder.statuses), len(recorder.latest), recorder.index) == (0, 1, 1)
    recorder.clear()
    assert (len(recorder.latest), recorder.index) == (0, 1)


def test_change_of_availability_is_dated() -> None:
    """The state says since when a service is as it is."""
    recorder = Recorder()
    for wall_s, available in ((1.0, True), (2.0, True), (3.0, False), (4.0, False)):
        report = request("s")
        report.services[0].available = available
        recorder.unary(report, size=1, monotonic_s=wall_s, wall_s=wall_s)
    assert recorder.latest[("a", "s", "")].changed_wall_s == 3.0
