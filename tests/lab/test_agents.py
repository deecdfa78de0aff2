"""Every fault and answer of simulated agents, seen by a real gRPC client over real sockets."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable

import grpc
import pytest

from serviceradar_poller.lab.client import LabAgents
from serviceradar_poller.lab.errors import LabError
from serviceradar_poller.lab.server import CONNECTIONS_MAX
from serviceradar_poller.testing.lab_client import PATIENCE_S, SHORT_S, Client, code_of, eventually, raw
from serviceradar_poller.wire.pb import monitoring_pb2 as pb

FIRST = "agent-0001"
OK, UNAVAILABLE = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE
DEADLINE = grpc.StatusCode.DEADLINE_EXCEEDED
Connect = Callable[..., Client]


def again(client: Client) -> None:
    """The client's own connection comes back by itself."""
    assert client.status(wait_for_ready=True, timeout=PATIENCE_S).available


def test_good_agent(agent: Client) -> None:
    """A good agent is healthy and answers under its own id, whatever id was asked for."""
    assert agent.health() == 1
    assert agent.health("") == 1
    response = agent.status()
    assert (response.available, response.agent_id, response.poller_id) == (True, FIRST, "p1")
    assert (response.service_name, response.service_type) == ("ping", "icmp")
    assert response.response_time > 0
    message = json.loads(response.message)
    assert message["host"] == "10.0.0.1"
    assert message["available"] is True


def test_unknown_names_and_methods(agent: Client) -> None:
    """Another health name is NOT_FOUND ``unknown service``; another method UNIMPLEMENTED."""
    assert code_of(lambda: agent.health("monitoring.AgentService")) == (
        grpc.StatusCode.NOT_FOUND,
        "unknown service",
    )
    other: grpc.UnaryUnaryMultiCallable[bytes, bytes] = agent.channel.unary_unary("/monitoring.AgentService/Other")
    assert code_of(lambda: other(b"", timeout=PATIENCE_S))[0] is grpc.StatusCode.UNIMPLEMENTED


def test_many_calls_on_one_connection(agents: LabAgents, agent: Client) -> None:
    """Calls share one connection, each gets its own answer, and the counters tell."""
    agent.health()
    before = agents.agent(FIRST)
    futures = [
        agent.channel.unary_unary(
            "/monitoring.AgentService/GetStatus",
            request_serializer=pb.StatusRequest.SerializeToString,
            response_deserializer=pb.StatusResponse.FromString,
        ).future(pb.StatusRequest(service_name=f"s{index}", service_type="process"), timeout=PATIENCE_S)
        for index in range(200)
    ]
    assert [future.result().service_name for future in futures] == [f"s{index}" for index in range(200)]
    after = agents.agent(FIRST)
    assert after["calls"]["status"] - before["calls"].get("status", 0) == 200
    assert after["counts"]["accepted"] == before["counts"]["accepted"]
    assert after["last_call_s"] > before["last_call_s"]


def test_large_request(agent: Client) -> None:
    """A request near the limit of 4 MiB passes; one above it is RESOURCE_EXHAUSTED, and the connection lives on."""
    details = "x" * (4 * 1024 * 1024 - 1000)
    assert json.loads(agent.status("process", details=details).message)["process_name"] == details
    assert code_of(lambda: agent.status("process", details=details * 2))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert agent.status().available


@pytest.mark.slow
def test_refuse(agents: LabAgents, agent: Client) -> None:
    """A refusing agent closes what is open and refuses what comes; its port stays its own, and it comes back."""
    agent.status()
    agents.set_fault(FIRST, "refuse")
    with pytest.raises(ConnectionRefusedError):
        raw(agents.ports[0])
    assert code_of(lambda: agent.status(timeout=PATIENCE_S))[0] is UNAVAILABLE
    with socket.socket() as thief, pytest.raises(OSError, match="in use"):
        thief.bind(("127.0.0.1", agents.ports[0]))
    assert agents.agent(FIRST)["listening"] is False
    agents.clear_fault(FIRST)
    again(agent)


@pytest.mark.slow
def test_mute(agents: LabAgents, connect: Connect, security: str) -> None:
    """A mute agent takes the connection and never sends a byte."""
    agents.set_fault(FIRST, "mute")
    client = connect(agents.ports[0], tls=security == "mtls")
    assert code_of(lambda: client.status(timeout=SHORT_S, wait_for_ready=True))[0] is DEADLINE
    with raw(agents.ports[0]) as plain:
        plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        plain.settimeout(SHORT_S)
        with pytest.raises(TimeoutError):
            plain.recv(1)
        agents.clear_fault(FIRST)
        plain.settimeout(PATIENCE_S)
        assert plain.recv(1) == b""
    again(client)


@pytest.mark.slow
def test_freeze(agents: LabAgents, agent: Client, connect: Connect, security: str) -> None:
    """Freezing silences open connections without closing them, and new ones; thawed, they go on where they were."""
    agent.status()
    agents.set_fault(FIRST, "freeze")
    accepted = agents.agent(FIRST)["counts"]["accepted"]
    assert code_of(lambda: agent.health(timeout=SHORT_S))[0] is DEADLINE
    late = agent.channel.unary_unary(
        "/monitoring.AgentService/GetStatus",
        request_serializer=pb.StatusRequest.SerializeToString,
        response_deserializer=pb.StatusResponse.FromString,
    ).future(pb.StatusRequest(service_type="process", service_name="s"), timeout=PATIENCE_S)
    newcomer = connect(agents.ports[0], tls=security == "mtls", patient=True)
    assert code_of(lambda: newcomer.status(timeout=SHORT_S, wait_for_ready=True))[0] is DEADLINE
    assert not late.done()
    agents.clear_fault(FIRST)
    assert late.result().available
    again(newcomer)
    assert agent.status().available
    # Neither had to connect again.
    assert agents.agent(FIRST)["counts"]["accepted"] == accepted + 1


@pytest.mark.slow
def test_freeze_answers_no_ping(plain_agents: LabAgents) -> None:
    """On a frozen connection not even an HTTP/2 ping is answered; it is afterwards."""
    with raw(plain_agents.ports[0]) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000"))
        received = b""
        while not received.endswith(bytes.fromhex("000000040100000000")):
            received += connection.recv(1000)
        plain_agents.set_fault(FIRST, "freeze")
        try:
            connection.sendall(bytes.fromhex("000008060000000000") + b"abcdefgh")
            connection.settimeout(SHORT_S)
            with pytest.raises(TimeoutError):
                connection.recv(1)
        finally:
            plain_agents.clear_fault(FIRST)
        connection.settimeout(PATIENCE_S)
        assert connection.recv(1000) == bytes.fromhex("000008060100000000") + b"abcdefgh"


@pytest.mark.slow
def test_reset(agents: LabAgents, agent: Client) -> None:
    """A resetting agent answers a connect with RST, open connections too."""
    agent.status()
    agents.set_fault(FIRST, "reset")
    with pytest.raises(ConnectionResetError), raw(agents.ports[0]) as connection:
        connection.recv(1)
    assert code_of(lambda: agent.status(timeout=PATIENCE_S))[0] is UNAVAILABLE
    assert agents.agent(FIRST)["counts"]["resets"] >= 2
    agents.clear_fault(FIRST)
    again(agent)


@pytest.mark.slow
def test_tls_garbage(agents: LabAgents, connect: Connect, security: str) -> None:
    """Something else listens there: the first bytes are answered with another protocol's."""
    agents.set_fault(FIRST, "tls_garbage")
    with raw(agents.ports[0]) as connection:
        connection.sendall(b"hello")
        assert connection.recv(100).startswith(b"SSH-2.0")
    client = connect(agents.ports[0], tls=security == "mtls")
    # grpcio waits for SETTINGS that never come in plaintext, and fails at once in TLS.
    assert code_of(lambda: client.status(timeout=SHORT_S))[0] in (UNAVAILABLE, DEADLINE)
    agents.clear_fault(FIRST)
    again(client)


@pytest.mark.slow
def test_flap(agents: LabAgents) -> None:
    """A flapping agent is gone, there and gone again, by itself."""
    agents.set_fault(FIRST, "flap", up_s=0.05, down_s=0.05)

    def up() -> bool:
        try:
            raw(agents.ports[0]).close()
        except (ConnectionRefusedError, ConnectionResetError):
            return False
        return True

    eventually(lambda: not up(), "down")
    eventually(up, "up")
    eventually(lambda: not up(), "down again")
    agents.clear_fault(FIRST)
    assert up()


@pytest.mark.parametrize(
    ("fault", "hanging"), [("hang_health", "health"), ("hang_status", "status"), ("hang_results", "results")]
)
@pytest.mark.slow
def test_hangs(agents: LabAgents, agent: Client, fault: str, hanging: str) -> None:
    """One kind of call hangs, the others are answered on the same connection; it ends with the fault."""
    agents.set_fault(FIRST, fault)
    grpc_results = pb.ResultsRequest(service_type="grpc", service_name="sysmon", details="10.0.0.1:50083")
    calls: dict[str, Callable[[float], object]] = {
        "health": lambda timeout: agent.health(timeout=timeout),
        "status": lambda timeout: agent.status(timeout=timeout),
        "results": lambda timeout: agent.results(grpc_results, timeout=timeout),
        "stream": lambda timeout: agent.stream(grpc_results, timeout=timeout),
    }
    silent = {hanging, "stream"} if hanging == "results" else {hanging}
    for name, call in calls.items():
        timeout = SHORT_S if name in silent else PATIENCE_S
        code, _ = code_of(lambda call=call, timeout=timeout: call(timeout))  # type: ignore[misc]
        assert code is (DEADLINE if name in silent else OK), name
    agents.clear_fault(FIRST)
    for call in calls.values():
        call(PATIENCE_S)


@pytest.mark.slow
def test_slow(agents: LabAgents, agent: Client) -> None:
    """A slow agent misses a short deadline and keeps a long one."""
    agent.status()
    agents.set_fault(FIRST, "slow", seconds=0.2)
    assert code_of(lambda: agent.status(timeout=0.05))[0] is DEADLINE
    assert agent.status(timeout=PATIENCE_S).available
    assert code_of(lambda: agent.health(timeout=0.05))[0] is DEADLINE


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_error_codes(plain_agents: LabAgents, connect: Connect, code: grpc.StatusCode) -> None:
    """Any gRPC code, with any text, while health stays good."""
    text = "100% broken: é ✓ \n end"
    plain_agents.set_fault(FIRST, "error", code=code.name, message=text)
    client = connect(plain_agents.ports[0])
    try:
        assert code_of(client.status) == (code, text)
        assert code_of(lambda: client.stream(pb.ResultsRequest(service_type="grpc"))) == (code, text)
        assert client.health() == 1
    finally:
        plain_agents.clear_fault(FIRST)


@pytest.mark.parametrize(
    ("fault", "values", "message"),
    [
        ("null", {}, b"null"),
        ("non_json", {"message": "OK - fine"}, b"OK - fine"),
        ("check_failed", {"message": "no route"}, b'{"error":"no route"}'),
    ],
)
def test_odd_messages(agents: LabAgents, agent: Client, fault: str, values: dict[str, object], message: bytes) -> None:
    """The message is what the fault says, in results too; the rest of the answer stays."""
    agents.set_fault(FIRST, fault, **values)
    response = agent.status()
    assert (response.available, response.agent_id, response.message) == (True, FIRST, message)
    request = pb.ResultsRequest(service_type="grpc", service_name="sysmon")
    assert agent.results(request).data == message
    assert [(chunk.data, chunk.is_final) for chunk in agent.stream(request)] == [(message, True)]


def test_identity_and_emptiness(agents: LabAgents, agent: Client) -> None:
    """An impostor claims another id; an empty answer has no field set; an unavailable one keeps its message."""
    agents.set_fault(FIRST, "wrong_agent_id", agent_id="agent-0666")
    assert agent.status().agent_id == "agent-0666"
    agents.set_fault(FIRST, "empty")
    assert agent.status() == pb.StatusResponse()
    assert agent.stream(pb.ResultsRequest(service_type="grpc")) == []
    agents.set_fault(FIRST, "unavailable")
    response = agent.status()
    assert not response.available
    assert json.loads(response.message)["host"] == "10.0.0.1"


@pytest.mark.slow
def test_huge_message(agents: LabAgents, agent: Client) -> None:
    """A message has exactly the size asked for, is JSON, and comes whole through windows and frames."""
    agents.set_fault(FIRST, "huge", size_bytes=6_000_000)
    message = agent.status(timeout=20).message
    assert len(message) == 6_000_000
    assert json.loads(message)["blob"].strip("x") == ""
    assert len(agent.status(timeout=20).message) == 6_000_000


@pytest.mark.slow
def test_a_huge_answer_nobody_reads_blocks_nobody(agents: LabAgents, agent: Client) -> None:
    """A client that leaves in the middle of a large answer leaves the agent in order."""
    agents.set_fault(FIRST, "huge", size_bytes=50_000_000)
    assert code_of(lambda: agent.status(timeout=0.02))[0] is DEADLINE
    agents.clear_fault(FIRST)
    assert agent.status().available


@pytest.mark.slow
def test_sync_stream(agents: LabAgents, connect: Connect, security: str) -> None:
    """A sync service streams 1365 devices a chunk with order and sequence; unchanged, one final ``{}``."""
    sync = connect(agents.ports[2], tls=security == "mtls")
    assert sync.health("sync") == 1
    assert code_of(sync.health)[0] is grpc.StatusCode.NOT_FOUND
    request = pb.ResultsRequest(service_type="sync", service_name="sync", poller_id="p1")
    chunks = sync.stream(request)
    assert [len(json.loads(chunk.data)) for chunk in chunks] == [1365, 1365, 270]
    assert [(c.chunk_index, c.total_chunks, c.is_final) for c in chunks] == [
        (0, 3, False),
        (1, 3, False),
        (2, 3, True),
    ]
    assert len({chunk.current_sequence for chunk in chunks}) == 1
    request.last_sequence = chunks[0].current_sequence
    unchanged = sync.stream(request)
    assert [(c.data, c.is_final, c.current_sequence) for c in unchanged] == [(b"{}", True, request.last_sequence)]
    changed = agents.change_results("agent-0003", devices=2)
    chunk = sync.stream(request)[0]
    assert chunk.current_sequence == changed["devices"]
    assert len(json.loads(chunk.data)) == 2
    agents.change_results("agent-0003", devices=3000)


@pytest.mark.slow
def test_large_stream_is_whole(agents: LabAgents, connect: Connect, security: str) -> None:
    """Twenty thousand devices arrive once each, in order."""
    agents.change_results("agent-0003", devices=20_000)
    sync = connect(agents.ports[2], tls=security == "mtls")
    chunks = sync.stream(pb.ResultsRequest(service_type="sync", service_name="sync"))
    found = [device["metadata"]["integration_id"] for chunk in chunks for device in json.loads(chunk.data)]
    assert found == [str(index) for index in range(20_000)]
    agents.change_results("agent-0003", devices=3000)


def test_control_refusals(plain_agents: LabAgents) -> None:
    """The control endpoint names what is wrong with a request and changes nothing."""
    for method, path, body, expected in [
        ("GET", "/agents/nobody", None, "404"),
        ("POST", f"/agents/{FIRST}/fault", {"fault": "odd"}, "unknown fault"),
        ("POST", "/agents/fault", {"agents": ["nobody"], "fault": "refuse"}, "no agent is called"),
        ("POST", "/agents/fault", {"agents": 3, "fault": "refuse"}, "list of targets"),
        ("POST", f"/agents/{FIRST}/results", {"devices": "many"}, "numbers"),
        ("POST", f"/agents/{FIRST}/results", {"devices": -1}, "between 0 and"),
        ("DELETE", "/agents/fault?agents=nobody", None, "no agent is called"),
        ("POST", f"/agents/{FIRST}/fault", {"fault": "x" * 1_100_000}, "413"),
    ]:
        with pytest.raises(LabError, match=expected):
            plain_agents.request(method, path, body)
    assert [agent["fault"] for agent in plain_agents.agents()] == [None] * 3


def test_control_sets_shows_and_clears(plain_agents: LabAgents) -> None:
    """A fault is shown as it was set, for one, for a range, for all, until it is cleared."""
    plain_agents.request("POST", f"/agents/{FIRST}/fault", {"fault": "slow", "seconds": 2})
    shown = plain_agents.agent(FIRST)["fault"]
    assert (shown["fault"], shown["seconds"]) == ("slow", 2.0)
    assert plain_agents.set_fault(["agent-0002..agent-0003", FIRST], "hang_health") == 3
    plain_agents.request("DELETE", f"/agents/{FIRST}/fault")
    brief = plain_agents.request("GET", "/agents?fields=brief")
    assert [agent["fault"] for agent in brief] == [None, "hang_health", "hang_health"]
    assert plain_agents.clear_fault() == 3
    assert [agent["port"] for agent in brief] == plain_agents.ports
    stats = plain_agents.stats()
    assert stats["rss_bytes"] > 1_000_000
    assert stats["calls"]["status"] >= 0


def test_connections_are_limited(plain_agents: LabAgents) -> None:
    """An agent holds so many connections and closes the next one at once, counted; when one ends there is room."""
    with contextlib.ExitStack() as stack:
        before = plain_agents.agent("agent-0002")["connections"]
        held = [stack.enter_context(raw(plain_agents.ports[1])) for _ in range(CONNECTIONS_MAX - before)]
        with raw(plain_agents.ports[1]) as surplus:
            assert surplus.recv(1) == b""
        assert plain_agents.agent("agent-0002")["counts"]["over_limit"] == 1
        held[0].close()
        eventually(lambda: plain_agents.agent("agent-0002")["connections"] < CONNECTIONS_MAX, "room")
