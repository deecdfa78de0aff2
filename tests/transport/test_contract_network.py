"""What every transport makes of a network and of peers that fail below gRPC."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable

import pytest

from serviceradar_poller.env import Transport
from serviceradar_poller.errors import GrpcCode, Layer
from serviceradar_poller.testing.contract import (
    REQUEST,
    Block,
    chunks,
    failure,
    report,
    send_report,
    send_stream,
    status_failure,
)
from serviceradar_poller.testing.peers import (
    TcpHandler,
    after_settings,
    frame,
    reset,
    serving,
    silence,
    tcp_peer,
    unused_port,
)
from serviceradar_poller.wire.messages import (
    ResultsRequest,
)


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
    """A peer that accepts and keeps silent costs the timeout and no more; with TLS it is no matter of security."""

    async def main() -> None:
        async with tcp_peer(silence) as address, asyncio.timeout(10.0):
            error = await status_failure(transport, address, block() if secure else None, timeout_s=0.2)
            assert error.reason == "connect_timeout"
            # Without TLS not every library can tell a SYN without an answer from a silent peer.
            assert error.layer is Layer.TCP or (not secure and error.layer is Layer.HTTP2)
            assert not error.security
            assert error.code is GrpcCode.DEADLINE_EXCEEDED
            assert error.unreachable

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
            agent, core = await transport.agent(peer.address, None), await transport.core(peer.address, None)
            for call in (
                agent.check_health(timeout_s=timeout_s),
                agent.get_status(REQUEST, timeout_s=timeout_s),
                agent.get_results(ResultsRequest(), timeout_s=timeout_s),
                send_report(core, report(), timeout_s=timeout_s),
                send_stream(core, chunks(2), timeout_s=timeout_s),
            ):
                error = await failure(call)
                assert (error.layer, error.reason) == (Layer.DEADLINE, "timeout")
            await agent.get_status(REQUEST, timeout_s=5.0)
            assert peer.requests == [REQUEST]
            await agent.close()
            await core.close()

    asyncio.run(main())
