"""What every transport has to do, whichever library does it; peers are real servers on real sockets."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from serviceradar_poller.config.model import SecurityConfig
from serviceradar_poller.env import AgentClient, Transport
from serviceradar_poller.errors import CallError, GrpcCode, Layer
from serviceradar_poller.testing.peers import (
    Context,
    Peer,
    TcpHandler,
    after_settings,
    frame,
    reset,
    serving,
    silence,
    tcp_peer,
    unused_port,
)
from serviceradar_poller.wire import codec
from serviceradar_poller.wire.messages import (
    PollerStatusChunk,
    PollerStatusRequest,
    PollerStatusResponse,
    ResultsRequest,
    ResultsResponse,
    ServiceStatus,
    StatusRequest,
    StatusResponse,
)

Block = Callable[..., SecurityConfig]
REQUEST = StatusRequest(
    service_name="ssh", service_type="port", agent_id="a", poller_id="p", details="10.0.0.1:22", port=22
)


async def failure(call: Awaitable[Any]) -> CallError:
    """Return the CallError that a call ends with."""
    with pytest.raises(CallError) as caught:
        await call
    error = caught.value
    assert error.detail == error.detail.strip()
    assert "\n" not in error.detail
    assert len(error.detail) <= 240
    assert error.reason == error.reason.lower()
    return error


async def status_failure(
    transport: Transport, address: str, security: SecurityConfig | None = None, *, timeout_s: float = 5.0
) -> CallError:
    client = transport.agent(address, security)
    try:
        return await failure(client.get_status(REQUEST, timeout_s=timeout_s))
    finally:
        await client.close()


def server_credentials(pki: Path, leaf: str = "agent", root: str = "root") -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials(
        [((pki / f"{leaf}-key.pem").read_bytes(), (pki / f"{leaf}.pem").read_bytes())],
        root_certificates=(pki / f"{root}.pem").read_bytes(),
        require_client_auth=True,
    )


def server_context(pki: Path, leaf: str = "agent") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki / f"{leaf}.pem", pki / f"{leaf}-key.pem")
    return context


# -- calls


def test_get_status(transport: Transport) -> None:
    """A status request and its response arrive as they were sent."""

    async def main() -> None:
        async with serving() as peer:
            client = transport.agent(peer.address, None)
            answer = await client.get_status(REQUEST, timeout_s=5.0)
            assert peer.requests == [REQUEST]
            assert answer == StatusResponse(
                available=True,
                message=b'{"status":"running"}',
                service_name="ssh",
                service_type="port",
                response_time=1_500_000,
                agent_id="agent-1",
                poller_id="p",
            )
            await client.close()

    asyncio.run(main())


def test_get_results(transport: Transport) -> None:
    """A results request and a response of several MiB arrive as they were sent."""
    request = ResultsRequest(service_name="s", service_type="sweep", last_sequence="7", details="d")
    response = ResultsResponse(
        available=True, data=b"x" * 6_000_000, current_sequence="8", has_new_data=True, timestamp=1_700_000_000
    )

    async def main() -> None:
        async with serving() as peer:
            peer.results_answer = response
            client = transport.agent(peer.address, None)
            assert await client.get_results(request, timeout_s=5.0) == response
            assert peer.requests == [request]
            await client.close()

    asyncio.run(main())


def test_health(transport: Transport) -> None:
    """Health is asked for the name AgentService, and each state is told; an unknown name is a state too."""
    states = health_pb2.HealthCheckResponse

    async def main() -> None:
        async with serving() as peer:
            client = transport.agent(peer.address, None)
            told = []
            for state in (
                states.SERVING,
                states.NOT_SERVING,
                states.UNKNOWN,
                states.SERVICE_UNKNOWN,
                grpc.StatusCode.NOT_FOUND,
            ):
                peer.health = state
                told.append(await client.check_health(timeout_s=5.0))
            assert told == ["SERVING", "NOT_SERVING", "UNKNOWN", "SERVICE_UNKNOWN", "SERVICE_UNKNOWN"]
            assert set(peer.requests) == {"AgentService"}
            peer.health = grpc.StatusCode.PERMISSION_DENIED
            assert (await failure(client.check_health(timeout_s=5.0))).reason == "permission_denied"
            await client.close()

    asyncio.run(main())


def report(size_bytes: int = 10) -> PollerStatusRequest:
    status = ServiceStatus(service_name="s", message=b"x" * size_bytes, agent_id="a", source="getStatus")
    return PollerStatusRequest(services=(status,), poller_id="p", timestamp=1_700_000_000, source_ip="10.0.0.2")


def chunks(count: int, size_bytes: int = 10) -> tuple[PollerStatusChunk, ...]:
    status = ServiceStatus(service_name="s", message=b"x" * size_bytes)
    return tuple(
        PollerStatusChunk(services=(status,), poller_id="p", chunk_index=i, total_chunks=count, is_final=i == count - 1)
        for i in range(count)
    )


@pytest.mark.parametrize("received", [True, False])
def test_report_status(transport: Transport, received: bool) -> None:
    """A report above gRPC's usual 4 MiB arrives whole, and core's answer is handed on."""

    async def main() -> None:
        async with serving() as peer:
            peer.received = received
            client = transport.core(peer.address, None)
            answer = await client.report_status(report(5_000_000), timeout_s=5.0)
            assert answer == PollerStatusResponse(received=received)
            assert peer.requests == [report(5_000_000)]
            await client.close()

    asyncio.run(main())


@pytest.mark.parametrize("count", [1, 3, 40])
def test_stream_status(transport: Transport, count: int) -> None:
    """Every chunk arrives once and in order, though together they exceed the flow control window."""

    async def main() -> None:
        async with serving() as peer:
            client = transport.core(peer.address, None)
            sent = chunks(count, 100_000)
            assert (await client.stream_status(sent, timeout_s=5.0)).received
            assert peer.requests == list(sent)
            await client.close()

    asyncio.run(main())


def test_stream_ends_early_with_an_error(transport: Transport) -> None:
    """When core refuses after the first chunk, sending stops and core's status is what the caller gets."""

    async def refuse(stream: AsyncIterator[bytes], context: Context) -> bytes:
        await anext(stream)
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "report too large")
        raise AssertionError

    async def main() -> None:
        async with serving() as peer:
            peer.stream_answer = refuse
            client = transport.core(peer.address, None)
            error = await failure(client.stream_status(chunks(200, 1_000_000), timeout_s=10.0))
            assert (error.reason, error.layer) == ("resource_exhausted", Layer.GRPC)
            assert error.detail == "report too large"
            await client.close()

    asyncio.run(main())


def test_stream_answered_early_with_ok(transport: Transport) -> None:
    """An OK before everything was sent is not taken for an acceptance."""

    async def hasty(stream: AsyncIterator[bytes], context: Context) -> bytes:
        await anext(stream)
        return codec.encode_poller_status_response(PollerStatusResponse(received=True))

    async def main() -> None:
        async with serving() as peer:
            peer.stream_answer = hasty
            client = transport.core(peer.address, None)
            error = await failure(client.stream_status(chunks(200, 1_000_000), timeout_s=10.0))
            assert (error.reason, error.retryable) == ("early_answer", False)
            await client.close()

    asyncio.run(main())


def test_unencodable_requests(transport: Transport) -> None:
    """A request that fits no field fails by itself; the client stays usable."""

    async def main() -> None:
        async with serving() as peer:
            agent, core = transport.agent(peer.address, None), transport.core(peer.address, None)
            bad = (*chunks(2), PollerStatusChunk(poller_id="\ud800"))
            for call in (
                agent.get_status(StatusRequest(details="\ud800"), timeout_s=5.0),
                agent.get_results(ResultsRequest(details="\ud800"), timeout_s=5.0),
                core.report_status(PollerStatusRequest(poller_id="\ud800"), timeout_s=5.0),
                core.stream_status(bad, timeout_s=5.0),
            ):
                error = await failure(call)
                assert (error.layer, error.reason) == (Layer.APPLICATION, "encode")
            assert (await agent.get_status(REQUEST, timeout_s=5.0)).available
            assert (await core.stream_status(chunks(1), timeout_s=5.0)).received
            await agent.close()
            await core.close()

    asyncio.run(main())


def test_undecodable_answer(transport: Transport) -> None:
    """An answer that can't be read is the application's failure, not retried and no security matter."""

    async def garbage(request: StatusRequest, context: Context) -> bytes:
        return b"\x0a\xff"

    async def main() -> None:
        async with serving() as peer:
            peer.status_answer = garbage
            error = await status_failure(transport, peer.address)
            assert (error.layer, error.reason) == (Layer.APPLICATION, "decode")
            assert not (error.retryable or error.security or error.unreachable)

    asyncio.run(main())


def test_user_agent(transport: Transport) -> None:
    """Peers see which program calls."""

    async def main() -> None:
        async with serving() as peer:
            client = transport.agent(peer.address, None)
            await client.get_status(REQUEST, timeout_s=5.0)
            assert str(peer.metadata["user-agent"]).startswith("serviceradar-poller/")
            await client.close()

    asyncio.run(main())


def test_many_calls_at_once(transport: Transport) -> None:
    """One client serves many tasks; every answer reaches its own caller."""

    async def main() -> None:
        async with serving() as peer:
            client = transport.agent(peer.address, None)
            names = [f"check-{i}" for i in range(200)]
            answers = await asyncio.gather(
                *(client.get_status(StatusRequest(service_name=n), timeout_s=10.0) for n in names)
            )
            assert [a.service_name for a in answers] == names
            await client.close()

    asyncio.run(main())


# -- the peer's own statuses


@pytest.mark.parametrize("code", [c for c in GrpcCode if c is not GrpcCode.OK])
def test_every_status_of_the_peer(transport: Transport, code: GrpcCode) -> None:
    """Each status keeps its code, has its name as reason, and its text becomes one line."""
    status = grpc.StatusCode[code.name]

    async def abort(request: StatusRequest, context: Context) -> bytes:
        await context.abort(status, "connection refused\nby the database")
        raise AssertionError

    async def main() -> None:
        async with serving() as peer:
            peer.status_answer = abort
            error = await status_failure(transport, peer.address)
            assert (error.layer, error.code, error.reason) == (Layer.GRPC, code, code.name.lower())
            assert error.detail == "connection refused by the database"
            assert error.security is (code in (GrpcCode.UNAUTHENTICATED, GrpcCode.PERMISSION_DENIED))
            assert not error.unreachable

    asyncio.run(main())


def test_unimplemented(transport: Transport) -> None:
    """A peer without the service is told from one that is down."""

    async def main() -> None:
        async with serving() as peer:
            peer.status_answer = peer.hang
            server = grpc.aio.server()
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            error = await status_failure(transport, f"127.0.0.1:{port}")
            assert (error.layer, error.reason, error.retryable) == (Layer.GRPC, "unimplemented", False)
            await server.stop(None)

    asyncio.run(main())


# -- below gRPC


def test_refused(transport: Transport) -> None:
    """A closed port is refused at once, and it is nobody's certificate."""

    async def main() -> None:
        port = unused_port()
        error = await status_failure(transport, f"127.0.0.1:{port}")
        assert (error.layer, error.code, error.reason) == (Layer.TCP, GrpcCode.UNAVAILABLE, "refused")
        assert error.unreachable
        assert error.retryable
        assert not error.security
        assert error.detail == f"127.0.0.1:{port}: connection refused"

    asyncio.run(main())


def test_unreachable(transport: Transport) -> None:
    """An address that no route leads to says so."""

    async def main() -> None:
        error = await status_failure(transport, "255.255.255.255:50051")
        assert (error.layer, error.reason) == (Layer.TCP, "unreachable")

    asyncio.run(main())


def test_unresolvable(transport: Transport) -> None:
    """A name without address is a matter of resolution."""

    async def main() -> None:
        error = await status_failure(transport, "no-such-host.invalid:50051")
        assert (error.layer, error.reason) == (Layer.RESOLVE, "resolve")
        assert "no-such-host.invalid:50051" in error.detail

    asyncio.run(main())


def test_syn_unanswered(transport: Transport) -> None:
    """A peer that drops packets costs the timeout and no more."""

    async def main() -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            fill = [socket.socket() for _ in range(4)]
            for sock in fill:
                sock.settimeout(0.0)
                sock.connect_ex(listener.getsockname())
            error = await status_failure(transport, f"127.0.0.1:{listener.getsockname()[1]}", timeout_s=0.2)
            assert (error.layer, error.reason) == (Layer.TCP, "connect_timeout")
            for sock in fill:
                sock.close()

    asyncio.run(main())


@pytest.mark.parametrize("secure", [False, True])
def test_silent_peer(transport: Transport, block: Block, secure: bool) -> None:
    """A peer that accepts and keeps silent costs the timeout and no more, with TLS and without."""

    async def main() -> None:
        async with tcp_peer(silence) as address:
            began_at = asyncio.get_running_loop().time()
            error = await status_failure(transport, address, block() if secure else None, timeout_s=0.2)
            assert error.reason == "connect_timeout"
            assert error.code is GrpcCode.DEADLINE_EXCEEDED
            assert error.unreachable
            assert asyncio.get_running_loop().time() - began_at < 1.0

    asyncio.run(main())


async def _reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    reset(writer)


async def _http1(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(10)
    writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    await writer.drain()
    writer.close()


async def _ssh(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
    await silence(reader, writer)


@pytest.mark.parametrize(
    ("handler", "secure", "layer", "reason"),
    [
        (_reset, False, Layer.TCP, "reset"),
        (_reset, True, Layer.TCP, "reset"),
        (_http1, False, Layer.HTTP2, "protocol"),
        (_http1, True, Layer.TLS, "tls"),
        (_ssh, False, Layer.HTTP2, "protocol"),
        (_ssh, True, Layer.TLS, "tls"),
    ],
)
def test_peer_that_speaks_something_else(
    transport: Transport, block: Block, handler: TcpHandler, secure: bool, layer: Layer, reason: str
) -> None:
    """What answers on the port is not gRPC: the layer and reason say which."""

    async def main() -> None:
        async with tcp_peer(handler) as address:
            error = await status_failure(transport, address, block() if secure else None)
            assert (error.layer, error.reason) == (layer, reason)
            assert error.unreachable

    asyncio.run(main())


@pytest.mark.parametrize(
    ("answer", "layer", "reason", "unreachable"),
    [
        (lambda w: w.write(frame(7, struct.pack(">II", 0, 11) + b"too_many_pings")), Layer.HTTP2, "goaway", True),
        (lambda w: w.write(frame(7, struct.pack(">II", 0, 0) + b"max_age")), Layer.HTTP2, "goaway", True),
        (lambda w: w.write(frame(3, struct.pack(">I", 7), stream=1)), Layer.HTTP2, "refused_stream", True),
        (lambda w: w.write(frame(3, struct.pack(">I", 8), stream=1)), Layer.GRPC, "stream_reset", False),
        (lambda w: w.write(frame(3, struct.pack(">I", 2), stream=1)), Layer.GRPC, "stream_reset", False),
        (lambda w: w.close(), Layer.GRPC, "reset", False),
        (reset, Layer.GRPC, "reset", False),
        (lambda w: w.write(b"garbage" * 100), Layer.HTTP2, "protocol", True),
    ],
    ids=["too_many_pings", "max_age", "refused_stream", "cancel", "internal", "close", "rst", "garbage"],
)
def test_connection_breaks_during_a_call(
    transport: Transport,
    answer: Callable[[asyncio.StreamWriter], None],
    layer: Layer,
    reason: str,
    unreachable: bool,
) -> None:
    """A call that breaks says whether its request may have arrived."""

    async def main() -> None:
        async with tcp_peer(after_settings(answer)) as address:
            error = await status_failure(transport, address)
            assert (error.layer, error.reason) == (layer, reason)
            assert error.unreachable is unreachable

    asyncio.run(main())


def test_no_answer_in_time(transport: Transport) -> None:
    """Connected but silent is a timeout, and the peer sees its call cancelled."""

    async def main() -> None:
        async with serving() as peer:
            peer.status_answer = peer.hang
            error = await status_failure(transport, peer.address, timeout_s=0.2)
            assert (error.layer, error.code) == (Layer.DEADLINE, GrpcCode.DEADLINE_EXCEEDED)
            assert (error.reason, error.unreachable) == ("timeout", False)
            async with asyncio.timeout(5.0):
                await peer.cancelled.wait()

    asyncio.run(main())


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan")])
def test_no_time_at_all(transport: Transport, timeout_s: float) -> None:
    """Without time left nothing is sent, not even a connection."""

    async def main() -> None:
        async with serving() as peer:
            agent, core = transport.agent(peer.address, None), transport.core(peer.address, None)
            for call in (
                agent.check_health(timeout_s=timeout_s),
                agent.get_status(REQUEST, timeout_s=timeout_s),
                agent.get_results(ResultsRequest(), timeout_s=timeout_s),
                core.report_status(report(), timeout_s=timeout_s),
                core.stream_status(chunks(2), timeout_s=timeout_s),
            ):
                error = await failure(call)
                assert (error.layer, error.reason) == (Layer.DEADLINE, "timeout")
            await agent.get_status(REQUEST, timeout_s=5.0)
            assert peer.requests == [REQUEST]
            await agent.close()
            await core.close()

    asyncio.run(main())


# -- TLS


@pytest.mark.parametrize("server_name", ["", "127.0.0.1", "localhost", "::1", "agent.serviceradar"])
def test_mtls(transport: Transport, pki: Path, block: Block, server_name: str) -> None:
    """Both certificates are checked, the peer's against server_name: a DNS name, an IP literal, or the host."""

    async def main() -> None:
        async with serving(server_credentials(pki)) as peer:
            client = transport.agent(peer.address, block(server_name=server_name))
            assert (await client.get_status(REQUEST, timeout_s=5.0)).available
            await client.close()

    asyncio.run(main())


@pytest.mark.parametrize("server_name", ["agent", "10.0.0.1", "::2", "core.serviceradar"])
def test_mtls_wrong_name(transport: Transport, pki: Path, block: Block, server_name: str) -> None:
    """A certificate for someone else is refused; the common name does not count."""

    async def main() -> None:
        async with serving(server_credentials(pki)) as peer:
            error = await status_failure(transport, peer.address, block(server_name=server_name))
            assert (error.layer, error.reason) == (Layer.TLS, "tls")
            assert "name" in error.detail
            assert error.security
            assert not error.retryable
            assert peer.requests == []

    asyncio.run(main())


@pytest.mark.parametrize(
    ("leaf", "words"),
    [
        ("expired", "expired"),
        ("not_yet_valid", "not yet valid"),
        ("other_ca", "refused"),
        ("wrong_names", "name"),
    ],
)
def test_mtls_bad_peer_certificate(transport: Transport, pki: Path, block: Block, leaf: str, words: str) -> None:
    """A peer's certificate that is out of date, of another CA or of another host is refused, and why is told."""

    async def main() -> None:
        async with serving(server_credentials(pki, leaf)) as peer:
            error = await status_failure(transport, peer.address, block())
            assert (error.layer, error.reason) == (Layer.TLS, "tls")
            assert words in error.detail

    asyncio.run(main())


def test_mtls_our_certificate_refused(transport: Transport, pki: Path, block: Block) -> None:
    """When the peer refuses our certificate, that is a matter of security and no request arrived."""

    async def main() -> None:
        async with serving(server_credentials(pki, root="other/root")) as peer:
            error = await status_failure(transport, peer.address, block())
            assert (error.layer, error.reason) == (Layer.TLS, "tls")
            assert "our certificate" in error.detail

    asyncio.run(main())


def test_tls_to_a_plaintext_peer(transport: Transport, block: Block) -> None:
    """A peer without TLS is told from one with a bad certificate."""

    async def main() -> None:
        async with serving() as peer:
            error = await status_failure(transport, peer.address, block())
            assert (error.layer, error.reason) == (Layer.TLS, "tls")
            assert "does not speak TLS" in error.detail

    asyncio.run(main())


def test_plaintext_to_a_tls_peer(transport: Transport, pki: Path) -> None:
    """A missing security block is suspected where the peer drops plaintext."""

    async def main() -> None:
        async with serving(server_credentials(pki)) as peer:
            error = await status_failure(transport, peer.address)
            assert error.reason in ("protocol", "reset")
            assert error.unreachable

    asyncio.run(main())


def test_tls_without_http2(transport: Transport, pki: Path, block: Block) -> None:
    """A TLS peer that does not offer h2 is named as that."""

    async def main() -> None:
        async with tcp_peer(silence, server_context(pki)) as address:
            error = await status_failure(transport, address, block())
            assert (error.layer, error.reason) == (Layer.TLS, "tls")
            assert "HTTP/2" in error.detail

    asyncio.run(main())


@pytest.mark.parametrize(
    ("leaf", "words"),
    [
        ("missing", "No such file"),
        ("expired", "expired"),
        ("not_yet_valid", "not valid before"),
        ("key_mismatch", "not the key"),
        ("no_client_auth", "clientAuth"),
    ],
)
def test_own_bad_certificate(transport: Transport, block: Block, leaf: str, words: str) -> None:
    """Our own unusable files fail the construction, naming the file and what is wrong with it."""
    for make in (transport.agent, transport.core):
        with pytest.raises(CallError) as caught:
            make("127.0.0.1:1", block(leaf=leaf))
        assert (caught.value.layer, caught.value.reason) == (Layer.CONFIG, "credentials")
        assert f"{leaf}" in caught.value.detail
        assert words in caught.value.detail
        assert not caught.value.retryable


@pytest.mark.parametrize("address", ["", "localhost", "localhost:", "localhost:99999", "a:b:c", "::1:5", "x y:1"])
def test_bad_address(transport: Transport, address: str) -> None:
    """An address that can't be read fails the construction."""
    for make in (transport.agent, transport.core):
        with pytest.raises(CallError) as caught:
            make(address, None)
        assert (caught.value.layer, caught.value.reason) == (Layer.CONFIG, "address")


# -- life cycle


def test_lazy_and_back_at_once(transport: Transport) -> None:
    """Making a client connects nothing; a call right after the peer's start, or restart, succeeds at once."""

    async def main() -> None:
        port = unused_port()
        client = transport.agent(f"127.0.0.1:{port}", None)
        loop = asyncio.get_running_loop()
        for _ in range(3):
            # The first call after a stop may still meet the old connection's end.
            reasons = [(await failure(client.get_status(REQUEST, timeout_s=5.0))).reason for _ in range(4)]
            assert reasons[1:] == ["refused"] * 3
            peer = Peer()
            await peer.start(port=port)
            began_at = loop.time()
            assert (await client.get_status(REQUEST, timeout_s=5.0)).available
            assert loop.time() - began_at < 1.0
            await peer.stop()
        await client.close()

    asyncio.run(main())


def test_dead_connection_is_replaced(transport: Transport) -> None:
    """After a timeout on a connection that went silent, the next call uses a new connection."""
    connections = 0

    async def first_is_dead(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        if connections == 1:
            await after_settings(lambda w: None)(reader, writer)
        else:
            writer.close()

    async def main() -> None:
        async with tcp_peer(first_is_dead) as address:
            client = transport.agent(address, None)
            assert (await failure(client.get_status(REQUEST, timeout_s=0.2))).reason == "timeout"
            await failure(client.get_status(REQUEST, timeout_s=5.0))
            assert connections == 2
            await client.close()

    asyncio.run(main())


def test_slow_call_spares_the_connection(transport: Transport) -> None:
    """A timeout on a connection that answered others meanwhile keeps the connection."""

    async def main() -> None:
        async with serving() as peer:
            client = transport.agent(peer.address, None)
            await client.check_health(timeout_s=5.0)
            peer.status_answer = peer.hang
            slow = asyncio.create_task(failure(client.get_status(REQUEST, timeout_s=0.2)))
            await peer.started.wait()
            await client.check_health(timeout_s=5.0)
            assert (await slow).reason == "timeout"
            before = _sockets()
            await client.check_health(timeout_s=5.0)
            assert _sockets() == before
            await client.close()

    asyncio.run(main())


def test_cancel(transport: Transport) -> None:
    """Cancelling the caller ends its call at the peer, and other calls go on."""

    async def main() -> None:
        async with serving() as peer:
            client = transport.agent(peer.address, None)
            peer.status_answer = peer.hang
            task = asyncio.create_task(client.get_status(REQUEST, timeout_s=30.0))
            await peer.started.wait()
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled()
            async with asyncio.timeout(5.0):
                await peer.cancelled.wait()
            assert await client.check_health(timeout_s=5.0) == "SERVING"
            await client.close()

    asyncio.run(main())


def test_cancel_of_a_stream(transport: Transport) -> None:
    """Cancelling a stream that waits for the peer to read ends it."""
    began = asyncio.Event()

    async def never_reads(stream: AsyncIterator[bytes], context: Context) -> bytes:
        began.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def main() -> None:
        async with serving() as peer:
            peer.stream_answer = never_reads
            client = transport.core(peer.address, None)
            task = asyncio.create_task(client.stream_status(chunks(50, 1_000_000), timeout_s=30.0))
            await began.wait()
            task.cancel()
            await asyncio.wait({task}, timeout=5.0)
            assert task.cancelled()
            await client.close()

    asyncio.run(main())


def test_close(transport: Transport) -> None:
    """Closing fails the calls under way and all later ones with ``closed``; closing again does nothing."""

    async def main() -> None:
        async with serving() as peer:
            client: AgentClient = transport.agent(peer.address, None)
            peer.status_answer = peer.hang
            calls = [asyncio.create_task(client.get_status(REQUEST, timeout_s=30.0)) for _ in range(5)]
            await peer.started.wait()
            await client.close()
            for call in calls:
                assert (await failure(call)).reason == "closed"
            await client.close()
            assert (await failure(client.get_status(REQUEST, timeout_s=1.0))).reason == "closed"
            unused = transport.core(peer.address, None)
            await unused.close()
            assert (await failure(unused.report_status(report(), timeout_s=1.0))).reason == "closed"

    asyncio.run(main())


def test_cancel_wins_over_close(transport: Transport) -> None:
    """A caller that is cancelled while its client is closed is cancelled, not told ``closed``."""

    async def main() -> None:
        async with serving() as peer:
            client = transport.agent(peer.address, None)
            peer.status_answer = peer.hang
            task = asyncio.create_task(client.get_status(REQUEST, timeout_s=30.0))
            await peer.started.wait()
            task.cancel()
            await client.close()
            await asyncio.wait({task})
            assert task.cancelled()

    asyncio.run(main())


def test_close_during_a_stream(transport: Transport) -> None:
    """Closing ends a stream that waits for the peer to read."""
    began = asyncio.Event()

    async def never_reads(stream: AsyncIterator[bytes], context: Context) -> bytes:
        began.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def main() -> None:
        async with serving() as peer:
            peer.stream_answer = never_reads
            client = transport.core(peer.address, None)
            task = asyncio.create_task(client.stream_status(chunks(50, 1_000_000), timeout_s=30.0))
            await began.wait()
            await client.close()
            assert (await failure(task)).reason == "closed"

    asyncio.run(main())


def _sockets() -> int:
    return sum(os.path.exists(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))


@pytest.mark.slow
def test_soak(transport: Transport, pki: Path, block: Block) -> None:
    """Two hundred clients that call, fail, and close leave no task and no file descriptor."""

    async def cycle(address: str, security: SecurityConfig | None, expect_s: float) -> None:
        client = transport.agent(address, security)
        try:
            await client.get_status(REQUEST, timeout_s=expect_s)
        except CallError:
            pass
        await client.close()

    async def main() -> None:
        refused = f"127.0.0.1:{unused_port()}"
        async with serving(server_credentials(pki)) as peer:

            async def cycles(count: int) -> tuple[int, int]:
                for _ in range(count):
                    await cycle(peer.address, block(), 5.0)
                    await cycle(refused, None, 5.0)
                    await cycle(peer.address, block(server_name="wrong"), 5.0)
                return await settled()

            async def settled() -> tuple[int, int]:
                """Count once the library's threads have closed what they hold."""
                counts, quiet = (-1, -1), 0
                while quiet < 5:
                    await asyncio.sleep(0.05)
                    now = (len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd")))
                    quiet = quiet + 1 if now == counts else 0
                    counts = now
                return counts

            tasks_before, fds_before = await cycles(10)
            tasks_after, fds_after = await cycles(60)
            assert tasks_after <= tasks_before + 2  # the server's own
            assert fds_after <= fds_before + 8  # threads of the library come and go with an fd or two

    asyncio.run(main())
