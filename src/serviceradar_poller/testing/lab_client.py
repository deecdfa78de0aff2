"""Synchronous gRPC clients of simulated peers, and waiting for what a peer must come to say. For tests only."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import grpc
from grpc_health.v1 import health_pb2

from serviceradar_poller.env import SystemClock
from serviceradar_poller.wire.pb import monitoring_pb2 as pb

#: Every wait for something that must come.
PATIENCE_S = 20.0
#: A deadline for a call that must not be answered.
SHORT_S = 0.15


def credentials(folder: Path, stem: str = "poller", root: Path | None = None) -> grpc.ChannelCredentials:
    """Return the credentials of <stem>.pem in *folder*, trusting the root of *root* (default: the same folder)."""
    return grpc.ssl_channel_credentials(
        ((root or folder) / "root.pem").read_bytes(),
        (folder / f"{stem}-key.pem").read_bytes(),
        (folder / f"{stem}.pem").read_bytes(),
    )


@dataclass
class Client:
    """A gRPC client of one peer; every channel is its own connection and reconnects quickly."""

    channel: grpc.Channel

    def health(self, service: str = "AgentService", timeout: float = PATIENCE_S) -> int:
        """Return the health status as a number: 1 is SERVING."""
        call = self.channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        status: int = call(health_pb2.HealthCheckRequest(service=service), timeout=timeout).status
        return status

    def status(
        self,
        kind: str = "icmp",
        name: str = "ping",
        details: str = "10.0.0.1",
        timeout: float = PATIENCE_S,
        wait_for_ready: bool = False,
    ) -> pb.StatusResponse:
        """Call GetStatus."""
        call = self.channel.unary_unary(
            "/monitoring.AgentService/GetStatus",
            request_serializer=pb.StatusRequest.SerializeToString,
            response_deserializer=pb.StatusResponse.FromString,
        )
        request = pb.StatusRequest(
            service_name=name, service_type=kind, details=details, agent_id="asked", poller_id="p1"
        )
        return call(request, timeout=timeout, wait_for_ready=wait_for_ready)

    def results(self, request: pb.ResultsRequest, timeout: float = PATIENCE_S) -> pb.ResultsResponse:
        """Call GetResults."""
        call = self.channel.unary_unary(
            "/monitoring.AgentService/GetResults",
            request_serializer=pb.ResultsRequest.SerializeToString,
            response_deserializer=pb.ResultsResponse.FromString,
        )
        return call(request, timeout=timeout)

    def stream(self, request: pb.ResultsRequest, timeout: float = 20.0) -> list[pb.ResultsChunk]:
        """Call StreamResults and return every chunk."""
        call = self.channel.unary_stream(
            "/monitoring.AgentService/StreamResults",
            request_serializer=pb.ResultsRequest.SerializeToString,
            response_deserializer=pb.ResultsChunk.FromString,
        )
        return list(call(request, timeout=timeout))

    def report(self, request: pb.PollerStatusRequest, timeout: float = PATIENCE_S, ready: bool = False) -> bool:
        """Call ReportStatus and return ``received``."""
        call = self.channel.unary_unary(
            "/monitoring.PollerService/ReportStatus",
            request_serializer=pb.PollerStatusRequest.SerializeToString,
            response_deserializer=pb.PollerStatusResponse.FromString,
        )
        return bool(call(request, timeout=timeout, wait_for_ready=ready).received)

    def report_stream(self, chunks: list[pb.PollerStatusChunk], timeout: float = PATIENCE_S) -> bool:
        """Call StreamStatus and return ``received``."""
        call = self.channel.stream_unary(
            "/monitoring.PollerService/StreamStatus",
            request_serializer=pb.PollerStatusChunk.SerializeToString,
            response_deserializer=pb.PollerStatusResponse.FromString,
        )
        return bool(call(iter(chunks), timeout=timeout).received)


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Ask a peer again and again, each time over a socket, until it says so."""
    clock = SystemClock()
    deadline = clock.monotonic() + PATIENCE_S
    while not condition():
        assert clock.monotonic() < deadline, f"not in {PATIENCE_S} s: {what}"


def raw(port: int) -> socket.socket:
    """Return a TCP connection with a deadline on everything."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
    connection.settimeout(PATIENCE_S)
    return connection


def code_of(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    """Return the status and details of a call: ``(OK, "")`` when it succeeds."""
    try:
        call()
    except grpc.RpcError as error:
        failed = cast(grpc.Call, error)  # what grpcio raises is both
        return failed.code(), failed.details() or ""
    return grpc.StatusCode.OK, ""
