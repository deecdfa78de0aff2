from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from serviceradar_poller.config.model import SecurityConfig
from serviceradar_poller.env import SystemClock
from serviceradar_poller.errors import CallError, GrpcCode, Layer
from serviceradar_poller.lab.client import LabAgents
from serviceradar_poller.testing.contract import REQUEST, failure, server_context
from serviceradar_poller.testing.leaks import no_leaks
from serviceradar_poller.testing.peers import frame, serving, silence, tcp_peer, unused_port
from serviceradar_poller.transport.native import channel as channel_module
from serviceradar_poller.transport.native.channel import NativeChannel
from serviceradar_poller.transport.native.connection import Connection
from serviceradar_poller.transport.native.tls import TlsClient
from serviceradar_poller.transport.native.transport import NativeTransport
from serviceradar_poller.transport.resolver import SystemResolver
from serviceradar_poller.wire import codec

Block = Callable[..., SecurityConfig]
STATUS = "/monitoring.AgentService/GetStatus"


class SlowNames:
    """A resolver that never answers."""

    async def resolve(self, host: str, *, timeout_s: float, urgent: bool = False) -> tuple[str, ...]:
        await asyncio.Event().wait()
        raise AssertionError


@pytest.fixture
def native() -> NativeTransport:
    return NativeTransport(clock=SystemClock(), resolver=SystemResolver())


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send settings, then read and never answer."""
    writer.write(frame(4))
    await silence(reader, writer)


async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send settings with a large window, then read nothing for a while."""
    writer.write(frame(4, (4).to_bytes(2, "big") + (2**31 - 1).to_bytes(4, "big")))
    writer.write(frame(8, (2**30).to_bytes(4, "big")))
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    await asyncio.sleep(0.2)
    writer.transport.resume_reading()  # type: ignore[attr-defined]
    await silence(reader, writer)


async def deaf_then_fin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Be deaf, and say after a while that nothing more is sent."""
    writer.write(frame(4, (4).to_bytes(2, "big") + (2**31 - 1).to_bytes(4, "big")))
    writer.write(frame(8, (2**30).to_bytes(4, "big")))
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    await asyncio.sleep(0.1)
    writer.write_eof()
    await reader.read()


@contextlib.asynccontextmanager
async def black_hole() -> AsyncIterator[str]:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0.0)
            filler.connect_ex(listener.getsockname())
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def sockets() -> int:
    """Count our own ends of connections: those without a listener's port."""
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            count += os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
    return count


async def closes_all(channel: NativeChannel, call: Awaitable[object], *, wait_s: float = 0.05) -> CallError:
    """Begin a call, close its channel, and require that nothing of either is left when close() returns."""
    loop = asyncio.get_running_loop()

    async def begun() -> object:
        return await call

    task = loop.create_task(begun())
    await asyncio.wait({task}, timeout=wait_s)
    assert not task.done()
    await channel.close()
    error = await failure(task)
    assert not [left for left in asyncio.all_tasks() if left.get_name().startswith("connect ")]
    assert channel._connection is None
    assert not (channel._dropped or channel._attempts or channel._waiting)
    return error


@pytest.mark.parametrize(
    "state", ["resolving", "connecting", "handshake", "settings", "tls_settings", "calling", "deaf"]
)
def test_close_in_every_state(native: NativeTransport, pki: Path, block: Block, state: str) -> None:
    """Whatever a channel waits for, closing it ends the call with ``closed`` and leaves no socket, task or timer."""

    async def main() -> None:
        h2 = server_context(pki)
        h2.set_alpn_protocols(["h2"])
        async with contextlib.AsyncExitStack() as stack:
            secure = block() if state in ("handshake", "tls_settings") else None
            payload = bytes(30_000_000) if state == "deaf" else b""
            transport = native
            match state:
                case "resolving":
                    address = "agent:1"
                    transport = NativeTransport(clock=SystemClock(), resolver=SlowNames())
                case "connecting":
                    address = await stack.enter_async_context(black_hole())
                case "tls_settings":
                    address = await stack.enter_async_context(tcp_peer(silence, h2))
                case "calling":
                    address = await stack.enter_async_context(tcp_peer(greet))
                case "deaf":
                    address = await stack.enter_async_context(tcp_peer(deaf))
                case _:
                    address = await stack.enter_async_context(tcp_peer(silence))
            channel = await transport.channel(address, secure)
            opened = sockets()
            error = await closes_all(channel, channel.unary(STATUS, payload, 30.0))
            assert (error.layer, error.reason) == (Layer.CONFIG, "closed")
            async with asyncio.timeout(5.0):
                while sockets() > opened:  # noqa: ASYNC110 (the server's ends, which follow)
                    await asyncio.sleep(0.005)

    asyncio.run(main())


def test_a_peer_that_is_deaf_and_sends_no_more(native: NativeTransport) -> None:
    """A FIN while bytes wait for the socket ends the call at once; the next one dials anew, and nothing is left."""

    async def main() -> None:
        async with tcp_peer(deaf_then_fin) as address:
            channel = await native.channel(address, None)
            opened = sockets()
            async with asyncio.timeout(5.0):
                error = await failure(channel.unary(STATUS, bytes(30_000_000), 30.0))
            assert (error.layer, error.reason) == (Layer.GRPC, "reset")
            assert channel._connection is None
            error = await closes_all(channel, channel.unary(STATUS, b"", 30.0))
            assert (error.reason, channel.opened) == ("closed", 2)
            assert sockets() <= opened + 2  # the server's ends

    asyncio.run(main())


def test_idle_channels_leave_nothing(native: NativeTransport, pki: Path, block: Block) -> None:
    """After a call over mTLS and a close there is nothing left, and later calls are told ``closed``."""

    async def main() -> None:
        with LabAgents.start(1, cert_dir=pki) as agents, no_leaks():
            for _ in range(5):
                channel = await native.channel(f"127.0.0.1:{agents.ports[0]}", block())
                await channel.unary(STATUS, codec.encode_status_request(REQUEST), 5.0)
                certificate = channel.peer_certificate
                assert certificate is not None
                assert certificate[:1] == b"\x30"  # DER
                await channel.close()
                assert (await failure(channel.unary(STATUS, b"", 5.0))).reason == "closed"
                assert channel.peer_certificate is None

    asyncio.run(main())


@pytest.mark.parametrize("secure", [False, True])
def test_failed_connects_leave_nothing(native: NativeTransport, pki: Path, block: Block, secure: bool) -> None:
    """Every failed attempt has closed what it opened by the time its call is told."""

    async def main() -> None:
        # A server in a process of its own: its descriptors are not looked at.
        unused = unused_port()
        with LabAgents.start(1, cert_dir=pki) as agents, no_leaks():
            for port in (unused, agents.ports[0]):
                channel = await native.channel(f"127.0.0.1:{port}", block(server_name="wrong") if secure else None)
                for _ in range(5):
                    error = await failure(channel.unary(STATUS, b"", 5.0))
                    assert error.unreachable
                assert channel.opened == 5
                await channel.close()

    asyncio.run(main())


def test_connections_leave_no_garbage(
    native: NativeTransport, pki: Path, block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Agents that are away, or come and go, for weeks give the garbage collector nothing to find."""
    monkeypatch.setattr(channel_module, "CONNECT_TIMEOUT_S", 0.02)

    def ours(*ports: int) -> list[object]:
        """Find what the transport made, alive or not, and what asyncio made for it: transports that lead to *ports*."""
        found = gc.get_objects()
        kinds = (NativeChannel, Connection, TlsClient, CallError)
        sides = [each for each in found if isinstance(each, asyncio.Transport)]
        return [each for each in found if isinstance(each, kinds)] + [
            side for side in sides if (side.get_extra_info("peername") or ("", 0))[1] in ports
        ]

    async def fail(address: str, secure: SecurityConfig | None, reason: str) -> None:
        channel = await native.channel(address, secure)
        for _ in range(3):
            try:
                await channel.unary(STATUS, b"", 5.0)
            except CallError as error:
                assert error.reason == reason  # noqa: PT017 (what pytest.raises keeps is a cycle itself)
        assert channel.opened == 3
        await channel.close()

    async def main() -> None:
        with LabAgents.start(1, cert_dir=pki) as agents:
            async with tcp_peer(silence) as silent:
                gc.collect()
                gc.disable()
                before = ours()  # of other tests, whose failures pytest keeps
                await fail(f"127.0.0.1:{unused_port()}", None, "refused")
                await fail(silent, None, "connect_timeout")
                await fail(silent, block(), "connect_timeout")
                monkeypatch.setattr(channel_module, "CONNECT_TIMEOUT_S", 20.0)
                await fail(f"127.0.0.1:{agents.ports[0]}", block(server_name="wrong"), "tls")
                channel = await native.channel(f"127.0.0.1:{agents.ports[0]}", block())
                await channel.unary(STATUS, codec.encode_status_request(REQUEST), 5.0)
                await channel.close()
                del channel
                left = ours(agents.ports[0], int(silent.rpartition(":")[2]))
                assert [each for each in left if not any(each is one for one in before)] == []

    try:
        asyncio.run(main())
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("secure", "layer", "words"),
    [
        (False, Layer.HTTP2, "sends no HTTP/2 settings"),
        (True, Layer.TCP, "does not answer the TLS handshake"),
    ],
)
def test_the_attempt_has_a_limit_of_its_own(
    native: NativeTransport, block: Block, secure: bool, layer: Layer, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long a call may take, connecting may not, and the failure says what was waited for."""
    monkeypatch.setattr(channel_module, "CONNECT_TIMEOUT_S", 0.3)

    async def main() -> None:
        async with tcp_peer(silence) as address:
            channel = await native.channel(address, block() if secure else None)
            error = await failure(channel.unary(STATUS, b"", 30.0))
            assert (error.layer, error.code, error.reason) == (layer, GrpcCode.UNAVAILABLE, "connect_timeout")
            assert words in error.detail
            await channel.close()

    asyncio.run(main())


def test_a_call_that_runs_out_of_time_says_what_it_waited_for(native: NativeTransport, pki: Path, block: Block) -> None:
    """Name, TCP, TLS and settings are told apart also when it is the call's own time that was too short."""

    async def main() -> None:
        slow = await NativeTransport(clock=SystemClock(), resolver=SlowNames()).channel("agent:1", None)
        error = await failure(slow.unary(STATUS, b"", 0.02))
        assert (error.layer, error.reason) == (Layer.RESOLVE, "connect_timeout")
        await slow.close()
        async with black_hole() as address:
            channel = await native.channel(address, None)
            error = await failure(channel.unary(STATUS, b"", 0.02))
            assert (error.layer, error.code) == (Layer.TCP, GrpcCode.DEADLINE_EXCEEDED)
            assert "no answer to the TCP connect within 0.02 s" in error.detail
            await channel.close()
        async with tcp_peer(silence) as address:
            channel = await native.channel(address, block())
            error = await failure(channel.unary(STATUS, b"", 0.2))
            assert (error.layer, error.reason) == (Layer.TCP, "connect_timeout")
            assert "does not answer the TLS handshake within 0.2 s" in error.detail
            await channel.close()
        context = server_context(pki)
        context.set_alpn_protocols(["h2"])
        async with tcp_peer(silence, context) as address:
            channel = await native.channel(address, block())
            error = await failure(channel.unary(STATUS, b"", 1.0))
            assert (error.layer, error.reason) == (Layer.HTTP2, "connect_timeout")
            assert "sends no HTTP/2 settings" in error.detail
            await channel.close()

    asyncio.run(main())


def test_names_are_dialled(native: NativeTransport) -> None:
    """A name goes through the resolver; a DNS server of its own can't be honoured and is refused."""

    async def main() -> None:
        async with serving() as peer:
            channel = await native.channel(f"localhost:{peer.port}", None)
            assert await channel.unary(STATUS, codec.encode_status_request(REQUEST), 5.0)
            await channel.close()
        with pytest.raises(CallError) as caught:
            await native.channel("dns://10.0.0.53/agent:1", None)
        assert (caught.value.layer, caught.value.reason) == (Layer.CONFIG, "address")

    asyncio.run(main())


@pytest.mark.parametrize("name", ["ä.example", "a\nb", "a\x00b"])
def test_a_server_name_that_cannot_be_sent(native: NativeTransport, block: Block, name: str) -> None:
    """It fails the construction, not the first call."""
    with pytest.raises(CallError) as caught:
        asyncio.run(native.channel("127.0.0.1:1", block(server_name=name)))
    assert caught.value.layer is Layer.CONFIG


@pytest.mark.slow
def test_grpcs_library_is_not_loaded() -> None:
    """Whoever calls over our own HTTP/2 does not pay for gRPC's library."""
    program = """
import sys
from serviceradar_poller.app.backend import new_transport
from serviceradar_poller.config.model import TransportBackend
from serviceradar_poller.env import SystemClock
from serviceradar_poller.transport.resolver import SystemResolver
new_transport(TransportBackend.NATIVE, clock=SystemClock(), resolver=SystemResolver())
print([name for name in sys.modules if name.partition(".")[0] == "grpc"])
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert run.stdout.strip() == "[]"
