from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2

from serviceradar_poller.config.model import SecurityConfig
from serviceradar_poller.env import SystemClock
from serviceradar_poller.testing.peers import TcpHandler, frame, reset, serving, silence, tcp_peer, unused_port
from serviceradar_poller.transport.grpcio_client import GrpcioTransport
from serviceradar_poller.transport.probe import ProbeStep, probe
from serviceradar_poller.transport.resolver import SystemResolver

Block = Callable[..., SecurityConfig]


async def walk(address: str, security: SecurityConfig | None, timeout_s: float = 5.0) -> dict[str, ProbeStep]:
    clock = SystemClock()
    steps = await probe(
        address,
        security,
        timeout_s=timeout_s,
        resolver=SystemResolver(),
        transport=GrpcioTransport(clock=clock),
        clock=clock,
    )
    for step in steps:
        assert step.duration_s >= 0.0
        assert step.detail
        assert "\n" not in step.detail
    assert len({step.name for step in steps}) == len(steps)
    return {step.name: step for step in steps}


def states(steps: dict[str, ProbeStep]) -> str:
    return " ".join(f"{step.name}={step.state}" for step in steps.values())


@asynccontextmanager
async def secure_peer(pki: Path, leaf: str = "agent", root: str = "root") -> AsyncIterator[str]:
    key, chain = (pki / f"{leaf}-key.pem").read_bytes(), (pki / f"{leaf}.pem").read_bytes()
    roots = (pki / f"{root}.pem").read_bytes()
    async with serving(grpc.ssl_server_credentials([(key, chain)], roots, require_client_auth=True)) as peer:
        yield peer.address


def context(pki: Path, *, alpn: bool = True, old: bool = False) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(pki / "agent.pem", pki / "agent-key.pem")
    if alpn:
        made.set_alpn_protocols(["h2"])
    if old:
        made.maximum_version = ssl.TLSVersion.TLSv1_2
    return made


def test_all_well(pki: Path, block: Block) -> None:
    """A healthy agent passes every layer, and its certificate is shown."""

    async def main() -> None:
        async with secure_peer(pki) as address:
            steps = await walk(f"localhost:{address.rpartition(':')[2]}", block())
            assert states(steps) == "resolve=ok tcp=ok tls=ok http2=ok grpc=ok"
            assert "127.0.0.1" in steps["resolve"].detail
            assert "connected in" in steps["tcp"].detail
            for words in ("TLSv1.3", "h2", "agent.serviceradar", "DNS:localhost", "issued by", "valid"):
                assert words in steps["tls"].detail
            assert steps["grpc"].detail == "health SERVING"

    asyncio.run(main())


def test_plaintext() -> None:
    """Without a security block TLS is skipped."""

    async def main() -> None:
        async with serving() as peer:
            steps = await walk(peer.address, None)
            assert states(steps) == "resolve=ok tcp=ok tls=skipped http2=ok grpc=ok"
            peer.health = health_pb2.HealthCheckResponse.NOT_SERVING
            assert (await walk(peer.address, None))["grpc"].state == "failed"
            peer.health = grpc.StatusCode.NOT_FOUND
            assert (await walk(peer.address, None))["grpc"].state == "ok"

    asyncio.run(main())


def test_bad_address() -> None:
    """An address that can't be read ends the walk."""
    steps = asyncio.run(walk("nowhere", None))
    assert states(steps).startswith("address=failed resolve=skipped")


def test_bad_files(block: Block) -> None:
    """Our own unusable files end the walk before anything is sent."""
    steps = asyncio.run(walk("127.0.0.1:1", block(leaf="expired")))
    assert states(steps).startswith("credentials=failed resolve=skipped")
    assert "expired.pem" in steps["credentials"].detail


def test_no_name() -> None:
    """A name without address ends the walk."""
    steps = asyncio.run(walk("no-such-host.invalid:1", None))
    assert states(steps) == "resolve=failed tcp=skipped tls=skipped http2=skipped grpc=skipped"


def test_refused() -> None:
    """A closed port is told per address."""
    steps = asyncio.run(walk(f"127.0.0.1:{unused_port()}", None))
    assert states(steps) == "resolve=ok tcp=failed tls=skipped http2=skipped grpc=skipped"
    assert "refused" in steps["tcp"].detail


@pytest.mark.parametrize(
    ("leaf", "server_name", "words"),
    [
        ("expired", "", "expired"),
        ("wrong_names", "", "127.0.0.1"),
        ("agent", "other.example", "other.example"),
        ("other_ca", "", "certificate"),
    ],
)
def test_refused_certificate(pki: Path, block: Block, leaf: str, server_name: str, words: str) -> None:
    """A certificate that we refuse is shown all the same, with why."""

    async def main() -> None:
        async with secure_peer(pki, leaf) as address:
            steps = await walk(address, block(server_name=server_name))
            assert states(steps) == "resolve=ok tcp=ok tls=failed http2=skipped grpc=skipped"
            assert words in steps["tls"].detail
            assert "certificate CN=" in steps["tls"].detail

    asyncio.run(main())


def test_our_certificate_refused(pki: Path, block: Block) -> None:
    """A peer that refuses our certificate after the handshake is told as a failure of TLS."""

    async def main() -> None:
        async with secure_peer(pki, root="other/root") as address:
            steps = await walk(address, block())
            assert steps["grpc"].state == "skipped"
            assert "our certificate" in steps["tls"].detail + steps["http2"].detail

    asyncio.run(main())


def test_peer_without_tls(block: Block) -> None:
    """Plaintext where TLS is expected is named."""

    async def main() -> None:
        async with serving() as peer:
            steps = await walk(peer.address, block())
            assert states(steps) == "resolve=ok tcp=ok tls=failed http2=skipped grpc=skipped"

    asyncio.run(main())


def test_peer_without_http2(pki: Path, block: Block) -> None:
    """TLS without h2 is named."""

    async def main() -> None:
        async with tcp_peer(silence, context(pki, alpn=False)) as address:
            steps = await walk(address, block())
            assert steps["tls"].state == "failed"
            assert "h2" in steps["tls"].detail

    asyncio.run(main())


def test_old_tls(pki: Path, block: Block) -> None:
    """A peer with only TLS 1.2 is refused, and its version told."""

    async def main() -> None:
        async with tcp_peer(silence, context(pki, old=True)) as address:
            steps = await walk(address, block())
            assert steps["tls"].state == "failed"
            assert "the peer speaks TLSv1.2" in steps["tls"].detail

    asyncio.run(main())


async def _http1(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await silence(reader, writer)


async def _ssh(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
    await silence(reader, writer)


async def _close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(100)


async def _reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    reset(writer)


async def _goaway(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(100)
    writer.write(frame(7, struct.pack(">II", 0, 0) + b"shutting down"))
    await silence(reader, writer)


async def _cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(100)
    writer.write(frame(7, bytes(20))[:-4])


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (_http1, "HTTP/1"),
        (_ssh, "SSH"),
        (_close, "does it expect TLS?"),
        (_reset, "connection lost"),
        (_goaway, "shutting down"),
        (_cut, "connection lost"),
        (silence, "in time"),
    ],
)
def test_not_http2(handler: TcpHandler, words: str) -> None:
    """What the peer says instead of HTTP/2 is told."""

    async def main() -> None:
        async with tcp_peer(handler) as address:
            steps = await walk(address, None, timeout_s=0.4)
            assert states(steps) == "resolve=ok tcp=ok tls=skipped http2=failed grpc=skipped"
            assert words in steps["http2"].detail

    asyncio.run(main())


def test_silent_tls(block: Block) -> None:
    """A peer that never answers the handshake costs no more than the whole time."""

    async def main() -> None:
        async with tcp_peer(silence) as address:
            async with asyncio.timeout(10.0):
                steps = await walk(address, block(), timeout_s=0.4)
            assert steps["tls"].state == "failed"
            assert "in time" in steps["tls"].detail

    asyncio.run(main())
