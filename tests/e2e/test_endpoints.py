"""What the program shows of itself: over HTTP, and as a gRPC server."""

from __future__ import annotations

import socket
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from serviceradar_poller.lab.ports import free_port
from serviceradar_poller.testing.lab_client import Client, code_of, credentials
from serviceradar_poller.testing.process import eventually
from serviceradar_poller.testing.site import POLLER_ID, MakeSite

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_health_endpoints(site: MakeSite) -> None:
    """/healthz, /readyz, /health, /tree, /metrics and /view tell of a healthy poller, and of a degraded one."""
    made = site(3)
    made.await_reports(1)
    poller = made.poller
    eventually(lambda: poller.json("/health")["agents"]["up"] == 3, "all agents are up")
    assert poller.http("/healthz") == (200, b"healthy\n")
    assert poller.http("/readyz")[0] == 200
    health = poller.json("/health")
    assert health["status"] == "healthy" and health["reasons"] == []
    assert health["agents"]["total"] == 3
    assert health["core_connection"] == "connected"
    assert health["poller_id"] == POLLER_ID
    assert health["uptime"] > 0
    assert health["memory_usage"] > 10 * 1024 * 1024
    assert health["process_count"] > 3 * 6
    assert poller.metric("agents_connected") == 3
    eventually(lambda: poller.metric("polls_total", outcome="available") >= 6, "each check has had its answer")
    view = poller.json("/view")
    assert view["core"]["connected"] is True and len(view["agents"]) == 3

    root = poller.json("/tree")
    assert root["path"] == "poller" and root["state"] == "up"
    assert {child["id"] for child in root["children"]} == {
        "security",
        "reporting",
        "fleet",
        "service",
        "observe",
    }
    agent = poller.json("/tree?path=poller/fleet/agents/agent-0002")
    assert {child["id"] for child in agent["children"]} == {
        "security",
        "connection",
        "scheduler",
        "results",
        "breaker",
    }
    assert poller.http("/tree?path=poller/nobody")[0] == 404

    made.agents.set_fault("agent-0001", "refuse")
    made.core.set_fault("disappear")
    eventually(
        lambda: (
            poller.json("/health")["core_connection"] == "disconnected" and poller.json("/health")["agents"]["down"]
        ),
        "the trouble shows",
    )
    health = poller.json("/health")
    assert health["status"] == "degraded" and len(health["reasons"]) == 2
    assert poller.http("/healthz")[0] == 200, "trouble of peers is no reason to replace the process"


def await_served(port: int) -> None:
    """Wait until somebody listens: the gRPC port opens once its certificate files are judged, beside the polling."""

    def listening() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
        except OSError:
            return False
        return True

    eventually(listening, "the port is served")


def test_grpc_health_and_reflection(site: MakeSite, pki: Path) -> None:
    """The poller's own port answers SERVING for ``""`` and its service name, NOT_FOUND otherwise, and lists itself."""
    port = free_port()
    made = site(1, config={"listen_addr": f"127.0.0.1:{port}"})
    assert made.poller.alive
    await_served(port)
    options = [("grpc.ssl_target_name_override", "poller.serviceradar")]
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials(pki), options) as channel:
        client = Client(channel)
        assert client.health("") == health_pb2.HealthCheckResponse.SERVING
        assert client.health("PollerService") == health_pb2.HealthCheckResponse.SERVING
        assert code_of(lambda: client.health("nobody"))[0] is grpc.StatusCode.NOT_FOUND
        for version in ("v1", "v1alpha"):
            listing = channel.stream_stream(
                f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
                request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
            )
            (answer,) = listing(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=5.0)
            assert "grpc.health.v1.Health" in {each.name for each in answer.list_services_response.service}


def test_the_grpc_port_wants_a_client_certificate(site: MakeSite, pki: Path) -> None:
    """Under mutual TLS a client without a certificate gets nothing."""
    port = free_port()
    site(1, config={"listen_addr": f"127.0.0.1:{port}"})
    await_served(port)
    options = [("grpc.ssl_target_name_override", "poller.serviceradar")]
    trusting = grpc.ssl_channel_credentials((pki / "root.pem").read_bytes())
    with grpc.secure_channel(f"127.0.0.1:{port}", trusting, options) as channel:
        assert code_of(lambda: Client(channel).health(""))[0] is grpc.StatusCode.UNAVAILABLE


def test_ports_that_are_taken_do_not_stop_polling(site: MakeSite) -> None:
    """With its gRPC port taken the poller says so, polls, and serves as soon as the port is free."""
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        port = taken.getsockname()[1]
        made = site(1, config={"listen_addr": f"127.0.0.1:{port}"})
        failed = made.poller.await_event("server_failed", name="grpc")[0]
        assert str(port) in failed["address"]
        made.await_reports(2)
    await_served(port)
