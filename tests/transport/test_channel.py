from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from serviceradar_poller.config.addresses import parse_address
from serviceradar_poller.errors import CallError
from serviceradar_poller.testing.peers import Peer, serving, silence, tcp_peer, unused_port
from serviceradar_poller.transport import channel
from serviceradar_poller.transport.channel import PeerChannel, channel_options
from serviceradar_poller.transport.native import attempts as native_attempts
from serviceradar_poller.transport.native.channel import NativeChannel
from serviceradar_poller.transport.native.connection import READ_BUFFER_BYTES
from serviceradar_poller.transport.resolver import SystemResolver

STATUS = "/monitoring.AgentService/GetStatus"
HEALTH = "/grpc.health.v1.Health/Check"


def _grpcio(address: str) -> PeerChannel:
    return PeerChannel(parse_address(address), server_name="", credentials=None)


def _native(address: str) -> NativeChannel:
    return NativeChannel(
        parse_address(address),
        server_name="",
        context=None,
        resolver=SystemResolver(),
        buffer=memoryview(bytearray(READ_BUFFER_BYTES)),
    )


Plain = Callable[[str], PeerChannel | NativeChannel]
#: What makes a channel, and the module that holds the age at which attempts to connect are not joined any more.
BACKENDS: dict[str, tuple[Plain, ModuleType]] = {
    "grpcio": (_grpcio, channel),
    "native": (_native, native_attempts),
}


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """One backend at a time."""
    name: str = request.param
    return name


@pytest.fixture
def plain(backend: str) -> Plain:
    """Make a channel without TLS."""
    return BACKENDS[backend][0]


@pytest.mark.parametrize(
    ("server_name", "authority", "override"),
    [
        ("", "10.0.0.1:50051", None),
        ("10.0.0.1", "10.0.0.1", None),
        ("agent.example", "agent.example", "agent.example"),
        ("2001:db8::1", "[2001:db8::1]", "2001:db8::1"),
    ],
)
def test_names(server_name: str, authority: str, override: str | None) -> None:
    """server_name replaces the authority, and the name that is checked where it is another."""
    options = dict(channel_options(parse_address("10.0.0.1:50051"), server_name))
    assert options["grpc.default_authority"] == authority
    assert options.get("grpc.ssl_target_name_override") == override


def test_pings_suit_go_servers() -> None:
    """Pings are no more frequent than Go servers allow, and never without a call."""
    options = dict(channel_options(parse_address("a:1"), ""))
    assert int(options["grpc.keepalive_time_ms"]) >= 120_000
    assert options["grpc.keepalive_permit_without_calls"] == 0


def test_one_channel_for_many_calls(plain: Plain) -> None:
    """A working channel is kept; so is one whose peer answers with an error."""

    async def main() -> None:
        async with serving() as peer:
            peers = plain(peer.address)
            for _ in range(5):
                await peers.unary(HEALTH, b"", 5.0)
                with pytest.raises(CallError, match="unimplemented"):
                    await peers.unary("/no.such/Method", b"", 5.0)
            assert peers.opened == 1
            await peers.close()

    asyncio.run(main())


def test_failed_connect_is_dropped_at_once(plain: Plain) -> None:
    """Each call after a failed connect tries anew, and nothing tries in between."""

    async def main() -> None:
        peers = plain(f"127.0.0.1:{unused_port()}")
        for opened in range(1, 4):
            with pytest.raises(CallError, match="refused"):
                await peers.unary(STATUS, b"", 5.0)
            assert peers.opened == opened
        await peers.close()

    asyncio.run(main())


def test_calls_at_once_share_one_attempt(plain: Plain) -> None:
    """Many calls to a peer that is down make one attempt and fail together."""

    async def main() -> None:
        peers = plain(f"127.0.0.1:{unused_port()}")
        results = await asyncio.gather(*(peers.unary(STATUS, b"", 5.0) for _ in range(50)), return_exceptions=True)
        assert all(isinstance(r, CallError) and r.reason == "refused" for r in results)
        assert peers.opened == 1
        await peers.close()

    asyncio.run(main())


def test_attempt_is_joined_while_young(plain: Plain, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short timeouts add up on one attempt to connect; an old attempt is given up for a new one."""

    async def main() -> None:
        async with tcp_peer(silence) as address:
            peers = plain(address)
            for _ in range(3):
                with pytest.raises(CallError, match="connect_timeout"):
                    await peers.unary(STATUS, b"", 0.02)
            assert peers.opened == 1
            monkeypatch.setattr(BACKENDS[backend][1], "ATTEMPT_AGE_S_MAX", 0.0)
            for opened in (1, 2):
                with pytest.raises(CallError, match="connect_timeout"):
                    await peers.unary(STATUS, b"", 0.02)
                assert peers.opened == opened + 1
            await peers.close()

    asyncio.run(main())


def test_calls_on_a_dropped_channel_go_on(plain: Plain) -> None:
    """A timeout that makes the next call use a new connection leaves older calls on the old one."""

    async def main() -> None:
        async with serving() as peer:
            peers = plain(peer.address)
            await peers.unary(HEALTH, b"", 5.0)
            peer.status_answer = peer.hang
            patient = asyncio.create_task(peers.unary(STATUS, b"", 30.0))
            await peer.started.wait()
            async with asyncio.timeout(30.0):
                # What the peer has yet to say of earlier calls is a sign of life within the first of these.
                while peers.opened == 1:
                    with pytest.raises(CallError, match="timeout"):
                        await peers.unary(STATUS, b"", 0.05)
                    await peers.unary(HEALTH, b"", 5.0)
            assert peers.opened == 2
            assert not patient.done()
            await peers.close()
            with pytest.raises(CallError, match="closed"):
                await patient

    asyncio.run(main())


@pytest.mark.slow
def test_silent_peers_keep_no_sockets(plain: Plain, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that never got HTTP/2 settings is gone when its time to connect is over."""
    monkeypatch.setattr(channel, "CONNECT_TIMEOUT_MS", 2_000)  # all thirty are there at once, also on a busy machine

    def fds() -> int:
        return len(os.listdir("/proc/self/fd"))

    async def main() -> None:
        async with serving() as peer, tcp_peer(silence) as silent:
            idle = plain(peer.address)
            await idle.unary(HEALTH, b"", 5.0)  # what the library opens once
            before = fds()
            for _ in range(30):
                peers = plain(silent)
                with pytest.raises(CallError, match="connect_timeout"):
                    await peers.unary(STATUS, b"", 0.01)
                await peers.close()
            if backend == "native":
                # Better: closing a channel closes the socket of its attempt to connect; the server's side follows.
                assert fds() <= before + 30 + 2
            else:
                assert fds() >= before + 20
            async with asyncio.timeout(30.0):
                while fds() > before + 8:  # noqa: ASYNC110 (the library tells nobody)
                    await asyncio.sleep(0.05)
            await idle.close()

    asyncio.run(main())


def test_many_threads_of_calls_after_restart(plain: Plain) -> None:
    """A peer that restarts under load costs failures, never a client that stays broken."""

    async def main() -> None:
        peer = Peer()
        await peer.start(port=unused_port())  # one that nobody takes in between
        peers = plain(peer.address)
        outcomes: set[str] = set()

        async def caller() -> None:
            for _ in range(30):
                try:
                    await peers.unary(HEALTH, b"", 5.0)
                except CallError as error:
                    outcomes.add(error.reason)
                    await asyncio.sleep(0.001)

        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(caller())
            await asyncio.sleep(0.01)
            await peer.stop()
            again = Peer()
            await again.start(port=peer.port)
        await peers.unary(HEALTH, b"", 5.0)
        assert outcomes <= {"refused", "reset", "goaway", "refused_stream", "unavailable", "cancelled"}
        await peers.close()
        await again.stop()

    asyncio.run(main())


@pytest.mark.slow
def test_tls_1_2_is_refused(pki: Path) -> None:
    """A peer that has only TLS 1.2 gets no connection: 1.3 is the minimum."""
    program = f"""
import asyncio, ssl
import serviceradar_poller.transport as transport
from serviceradar_poller.config.model import SecurityConfig, SecurityMode, TlsConfig
from serviceradar_poller.env import SystemClock
from serviceradar_poller.errors import CallError
from serviceradar_poller.testing.peers import silence, tcp_peer
from serviceradar_poller.transport.grpcio_client import GrpcioTransport

async def reason(highest, timeout_s):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("{pki}/agent.pem", "{pki}/agent-key.pem")
    context.set_alpn_protocols(["h2"])
    context.maximum_version = highest
    block = SecurityConfig(mode=SecurityMode.MTLS, tls=TlsConfig(
        cert_file="{pki}/poller.pem", key_file="{pki}/poller-key.pem", ca_file="{pki}/root.pem"))
    async with tcp_peer(silence, context) as address:
        client = await GrpcioTransport(clock=SystemClock()).agent(address, block)
        try:
            await client.check_health(timeout_s=timeout_s)
        except CallError as error:
            return error.reason
        finally:
            await client.close()

async def main():
    assert transport.TLS13_ENFORCED
    print(await reason(ssl.TLSVersion.TLSv1_2, 15.0), await reason(ssl.TLSVersion.TLSv1_3, 0.5))

asyncio.run(main())
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=90)
    # Over 1.3 the handshake succeeds and the peer then keeps silent.
    assert run.stdout.split() == ["tls", "connect_timeout"], run.stderr
