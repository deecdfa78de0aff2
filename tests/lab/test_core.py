"""The simulated core, seen by a real gRPC client over real sockets."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from serviceradar_poller.lab.client import LabCore
from serviceradar_poller.lab.errors import LabError
from serviceradar_poller.testing.lab_client import PATIENCE_S, SHORT_S, Client, code_of, raw
from serviceradar_poller.wire.pb import monitoring_pb2 as pb

Connect = Callable[..., Client]
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def service(
    agent: str = "a1", name: str = "ping", kind: str = "icmp", message: bytes = b'{"x":1}', available: bool = True
) -> pb.ServiceStatus:
    return pb.ServiceStatus(
        service_name=name,
        service_type=kind,
        agent_id=agent,
        message=message,
        available=available,
        poller_id="p1",
        partition="default",
        source="getStatus",
    )


def report(*services: pb.ServiceStatus, poller: str = "p1", timestamp: int = 1000) -> pb.PollerStatusRequest:
    return pb.PollerStatusRequest(
        services=services, poller_id=poller, timestamp=timestamp, partition="default", source_ip="192.0.2.1"
    )


def chunk(*services: pb.ServiceStatus, final: bool = False, poller: str = "p1") -> pb.PollerStatusChunk:
    return pb.PollerStatusChunk(services=services, poller_id=poller, timestamp=1000, is_final=final)


@pytest.fixture
def client(core: LabCore, connect: Connect) -> Client:
    return connect(core.ports[0])


def test_unary_report_is_recorded(core: LabCore, client: Client) -> None:
    """A report is kept with its envelope, size and arrival; messages are decoded where they are JSON."""
    since = core.counts()["reports"]
    request = report(service(), service(agent="a2", message=b"plain text", available=False))
    assert client.report(request) is True
    (found,) = core.reports(since)
    assert (found["transport"], found["chunks"], found["size"]) == ("unary", 1, request.ByteSize())
    assert (found["poller_id"], found["timestamp"], found["source_ip"]) == ("p1", 1000, "192.0.2.1")
    assert (found["status_count"], found["available_count"], found["known"]) == (2, 1, True)
    assert found["monotonic_s"] > 0
    assert found["wall_s"] > 1_600_000_000
    first, second = found["services"]
    assert (first["agent_id"], first["message"], first["valid_json"]) == ("a1", {"x": 1}, True)
    assert (second["message"], second["text"], second["valid_json"]) == (None, "plain text", False)


def test_state_holds_the_latest(core: LabCore, client: Client) -> None:
    """The state is the newest status per agent and service, filtered by what is asked for."""
    client.report(report(service(), service(agent="a2")))
    client.report(report(service(available=False, message=b"{}")))
    latest = {status["agent_id"]: status for status in core.state()["latest"]}
    assert (latest["a1"]["available"], latest["a1"]["seen"], latest["a2"]["available"]) == (False, 2, True)
    assert [status["agent_id"] for status in core.state(agent="a2")["latest"]] == ["a2"]
    assert core.state(service="none")["latest"] == []
    assert [status["available"] for status in core.statuses(agent="a1", service="ping")] == [True, False]


def test_stream_is_put_together(core: LabCore, client: Client) -> None:
    """Parts of one name and type become one message; the envelope is the first chunk's."""
    since = core.counts()["reports"]
    big = json.dumps({"text": "y" * 5000}).encode()
    chunks = [
        chunk(service(message=big[:2000])),
        chunk(service(message=big[2000:4000])),
        chunk(service(message=big[4000:]), service(name="other"), final=True),
    ]
    assert client.report_stream(chunks) is True
    (found,) = core.reports(since)
    assert (found["transport"], found["chunks"], found["merged"]) == ("stream", 3, 0)
    assert [status["service_name"] for status in found["services"]] == ["ping", "other"]
    assert found["services"][0]["message"] == {"text": "y" * 5000}


def test_same_name_of_two_agents_is_merged_as_core_does(core: LabCore, client: Client) -> None:
    """Two agents' checks of one name and type in one stream become one, which is no JSON any more: it is counted."""
    since = core.counts()["reports"]
    client.report_stream([chunk(service(agent="a1")), chunk(service(agent="a2", available=False), final=True)])
    (found,) = core.reports(since)
    assert (found["status_count"], found["available_count"], found["merged"]) == (1, 1, 1)
    assert found["services"][0]["text"] == '{"x":1}{"x":1}'


def test_half_close_ends_a_stream(core: LabCore, client: Client) -> None:
    """A stream without a final chunk is complete when the client closes its side."""
    since = core.counts()["reports"]
    assert client.report_stream([chunk(service())]) is True
    assert len(core.reports(since)) == 1


def test_empty_poller_id_is_refused(core: LabCore, client: Client) -> None:
    """A report without a poller's id is refused in the real core's words, in both ways, and not recorded."""
    before = core.counts()["reports"]
    expected = (grpc.StatusCode.UNKNOWN, "empty poller ID")
    assert code_of(lambda: client.report(report(poller=""))) == expected
    assert code_of(lambda: client.report_stream([chunk(poller="")])) == expected
    assert code_of(lambda: client.report_stream([])) == expected
    assert core.counts()["reports"] == before


@pytest.mark.slow
def test_strict_registration(connect: Connect) -> None:
    """A strict core says received to a stranger's report and throws it away, until a stream registers him."""
    with LabCore.start(strict_registration=True, known_pollers=["old"]) as core:
        client = connect(core.ports[0])
        assert client.report(report(service())) is True
        assert core.state()["latest"] == []
        assert core.counts()["counts"]["reports_unknown_poller"] == 1
        client.report_stream([chunk(service(), final=True)])
        client.report(report(service(agent="a2")))
        client.report(report(service(agent="a3"), poller="old"))
        assert sorted(status["agent_id"] for status in core.state()["latest"]) == ["a1", "a2", "a3"]
        assert [found["known"] for found in core.reports()] == [False, True, True, True]


def test_reject_counts_down(core: LabCore, client: Client) -> None:
    """A rejecting core gives the code asked for, as often as asked for, and records nothing meanwhile."""
    before = core.counts()["reports"]
    core.set_fault("reject", code="RESOURCE_EXHAUSTED", message="full", count=2)
    for _ in range(2):
        assert code_of(lambda: client.report(report())) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
    assert core.counts()["reports"] == before
    assert client.report(report()) is True
    assert core.counts()["fault"] is None


def test_not_received(core: LabCore, client: Client) -> None:
    """A core may answer received=false, in both ways, and records nothing."""
    before = core.counts()["reports"]
    core.set_fault("not_received")
    assert client.report(report()) is False
    assert client.report_stream([chunk(final=True)]) is False
    assert core.counts()["reports"] == before
    assert core.counts()["calls"]["faulty"] >= 2


def test_ack_lost(core: LabCore, client: Client) -> None:
    """The worst case of at-least-once: core has the report, and the poller an error."""
    before = core.counts()["reports"]
    core.set_fault("ack_lost", code="UNAVAILABLE")
    assert code_of(lambda: client.report(report(service())))[0] is UNAVAILABLE
    assert core.counts()["reports"] == before + 1


@pytest.mark.slow
def test_hang(core: LabCore, client: Client) -> None:
    """A hanging core takes the call and never answers; it records nothing and serves again when cleared."""
    before = core.counts()["reports"]
    core.set_fault("hang")
    code, _ = code_of(lambda: client.report(report(), timeout=SHORT_S))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    core.clear_fault()
    assert client.report(report()) is True
    assert core.counts()["reports"] == before + 1


@pytest.mark.slow
def test_slow(core: LabCore, client: Client) -> None:
    """A slow core misses a short deadline and keeps a long one."""
    core.set_fault("slow", seconds=0.3)
    code, _ = code_of(lambda: client.report(report(), timeout=0.05))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert client.report(report()) is True


@pytest.mark.slow
def test_disappear(core: LabCore, client: Client) -> None:
    """A core that disappeared refuses connections; cleared, it is back on its port with all it knew."""
    client.report(report(service()))
    core.set_fault("disappear")
    with pytest.raises(ConnectionRefusedError):
        raw(core.ports[0])
    assert code_of(lambda: client.report(report(), timeout=PATIENCE_S))[0] is UNAVAILABLE
    assert core.counts()["listening"] is False
    core.clear_fault()
    assert client.report(report(service(agent="a2")), ready=True) is True
    assert len(core.state()["latest"]) == 2


def test_half_of_the_calls_is_missing(core: LabCore, client: Client) -> None:
    """A core without streams, or without reports in one call, says UNIMPLEMENTED to these and takes the others."""
    since = core.counts()["reports"]
    core.set_fault("unary_only")
    assert code_of(lambda: client.report_stream([chunk(service(), final=True)]))[0] is grpc.StatusCode.UNIMPLEMENTED
    assert client.report(report(service())) is True
    core.set_fault("stream_only")
    assert code_of(lambda: client.report(report(service())))[0] is grpc.StatusCode.UNIMPLEMENTED
    assert client.report_stream([chunk(service(), final=True)]) is True
    core.clear_fault()
    assert [found["transport"] for found in core.reports(since)] == ["unary", "stream"]


def test_die(core: LabCore, client: Client) -> None:
    """Core breaks off in the middle of a call, records nothing of it, and is back at the same port by itself."""
    since = core.counts()["reports"]
    for send in (
        lambda: client.report_stream([chunk(service()), chunk(service(), final=True)]),
        lambda: client.report(report(service())),
    ):
        core.set_fault("die", count=1, seconds=0.1)
        assert code_of(send)[0] in (UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert client.report(report(service()), ready=True) is True
    assert len(core.reports(since)) == 2


def test_wait(core: LabCore, client: Client) -> None:
    """A wait ends when the status comes that it describes, and fails in time when it does not."""
    since = core.counts()["reports"]
    with pytest.raises(LabError, match="did not see"):
        core.wait(agent="a1", available=False, timeout_s=0.05)
    client.report(report(service()))
    core.wait(agent="a1", service="ping", available=True, since=since)
    sender = threading.Thread(target=lambda: client.report(report(service(available=False))))
    waiter_done: list[int] = []
    waiter = threading.Thread(
        target=lambda: waiter_done.append(core.wait(reports=since + 2, agent="a1", available=False)["reports"])
    )
    waiter.start()
    sender.start()
    sender.join(PATIENCE_S)
    waiter.join(PATIENCE_S)
    assert waiter_done == [since + 2]


def test_receive_limit(core: LabCore, client: Client) -> None:
    """A call above 4 MiB is RESOURCE_EXHAUSTED, as at the Go core."""
    huge = report(service(message=b"x" * 4_200_000))
    assert code_of(lambda: client.report(huge))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.slow
def test_memory_is_bounded(connect: Connect) -> None:
    """Only the newest reports and statuses are kept; what was dropped is counted, the index goes on."""
    with LabCore.start(keep_reports=3, keep_statuses=4) as core:
        client = connect(core.ports[0])
        for index in range(5):
            client.report(report(service(name=f"s{index}"), service(name=f"t{index}")))
        counts = core.counts()
        assert (counts["reports"], counts["reports_kept"], counts["statuses_kept"]) == (5, 3, 4)
        assert counts["counts"]["reports_dropped"] == 2
        assert counts["counts"]["statuses_dropped"] == 6
        assert [found["index"] for found in core.reports()] == [2, 3, 4]
        assert [len(found["services"]) for found in core.reports()] == [0, 2, 2]


@pytest.mark.slow
def test_summary_keeps_only_the_latest(connect: Connect) -> None:
    """With --record summary every report is counted and the latest state known, single statuses are not kept."""
    with LabCore.start(record="summary") as core:
        client = connect(core.ports[0])
        services = [service(agent=f"a{index}") for index in range(4000)]
        for _ in range(2):
            client.report(report(*services))
        counts = core.counts()
        assert (counts["services"], counts["statuses_kept"]) == (4000, 0)
        assert counts["counts"]["statuses"] == 8000


@pytest.mark.slow
def test_mtls(pki: Path, connect: Connect) -> None:
    """Over mTLS core takes a poller with a certificate and nobody without."""
    with LabCore.start(cert_dir=pki) as core:
        assert connect(core.ports[0], tls=True).report(report(service())) is True
        anonymous = grpc.ssl_channel_credentials((pki / "root.pem").read_bytes())
        stranger = connect(core.ports[0], with_credentials=anonymous)
        assert code_of(lambda: stranger.report(report()))[0] is UNAVAILABLE
        assert code_of(lambda: connect(core.ports[0]).report(report()))[0] is UNAVAILABLE
        assert core.counts()["reports"] == 1


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("POST", "/fault", {"fault": "odd"}, "unknown fault"),
        ("POST", "/fault", {"fault": "reject", "code": "OK"}, "must be an error"),
        ("POST", "/fault", {"fault": "slow", "seconds": -1}, "seconds must be"),
        ("POST", "/fault", {"fault": "reject", "count": -1}, "count must be"),
        ("POST", "/fault", {"fault": "reject", "colour": 1}, "unknown key"),
        ("POST", "/wait", {}, "wait for"),
        ("POST", "/wait", {"reports": 1, "timeout_s": 1e9}, "timeout_s"),
        ("GET", "/reports?since=x", None, "must be a number"),
    ],
)
def test_control_refusals(core: LabCore, method: str, path: str, body: dict[str, object] | None, expected: str) -> None:
    """The control endpoint names what is wrong and changes nothing."""
    with pytest.raises(LabError, match=expected):
        core.request(method, path, body)
    assert core.counts()["fault"] is None
