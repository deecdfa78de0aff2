"""What the contract tests of transports share: requests, failures and servers."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc

from serviceradar_poller.config.model import SecurityConfig
from serviceradar_poller.env import CoreClient, Transport
from serviceradar_poller.errors import CallError
from serviceradar_poller.wire import codec
from serviceradar_poller.wire.messages import (
    PollerStatusChunk,
    PollerStatusRequest,
    PollerStatusResponse,
    ServiceStatus,
    StatusRequest,
)

Block = Callable[..., SecurityConfig]
REQUEST = StatusRequest(
    service_name="ssh", service_type="port", agent_id="a", poller_id="p", details="10.0.0.1:22", port=22
)


async def failure(call: Awaitable[Any]) -> CallError:
    """Return the CallError that a call ends with."""
    try:
        await call
    except CallError as caught:
        error = caught
    else:
        raise AssertionError("the call did not fail")
    assert error.detail == error.detail.strip()
    assert "\n" not in error.detail
    assert len(error.detail) <= 240
    assert error.reason == error.reason.lower()
    return error


async def status_failure(
    transport: Transport, address: str, security: SecurityConfig | None = None, *, timeout_s: float = 5.0
) -> CallError:
    """Return the CallError that asking for a status at *address* ends with."""
    client = await transport.agent(address, security)
    try:
        return await failure(client.get_status(REQUEST, timeout_s=timeout_s))
    finally:
        await client.close()


def server_credentials(pki: Path, leaf: str = "agent", root: str = "root") -> grpc.ServerCredentials:
    """Return credentials that demand a client certificate."""
    return grpc.ssl_server_credentials(
        [((pki / f"{leaf}-key.pem").read_bytes(), (pki / f"{leaf}.pem").read_bytes())],
        root_certificates=(pki / f"{root}.pem").read_bytes(),
        require_client_auth=True,
    )


def server_context(pki: Path, leaf: str = "agent") -> ssl.SSLContext:
    """Return a server's TLS context without ALPN."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki / f"{leaf}.pem", pki / f"{leaf}-key.pem")
    return context


def report(size_bytes: int = 10) -> PollerStatusRequest:
    """Return a report of about *size_bytes*."""
    status = ServiceStatus(service_name="s", message=b"x" * size_bytes, agent_id="a", source="getStatus")
    return PollerStatusRequest(services=(status,), poller_id="p", timestamp=1_700_000_000, source_ip="10.0.0.2")


def chunks(count: int, size_bytes: int = 10) -> tuple[PollerStatusChunk, ...]:
    """Return the chunks of a streamed report."""
    status = ServiceStatus(service_name="s", message=b"x" * size_bytes)
    return tuple(
        PollerStatusChunk(services=(status,), poller_id="p", chunk_index=i, total_chunks=count, is_final=i == count - 1)
        for i in range(count)
    )


async def send_report(client: CoreClient, sent: PollerStatusRequest, *, timeout_s: float) -> PollerStatusResponse:
    """Send a report as the bytes that it is on the wire."""
    return await client.report_status_raw(codec.encode_poller_status_request(sent), timeout_s=timeout_s)


async def send_stream(
    client: CoreClient, sent: Sequence[PollerStatusChunk], *, timeout_s: float
) -> PollerStatusResponse:
    """Send a streamed report as the bytes that its chunks are on the wire."""

    async def parts() -> AsyncIterator[bytes]:
        for chunk in sent:
            yield codec.encode_poller_status_chunk(chunk)

    return await client.stream_status_raw(parts(), len(sent), timeout_s=timeout_s)
