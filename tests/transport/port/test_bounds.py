"""What strangers may take of the poller's own port: connections, calls, memory and time."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import ssl
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serviceradar_poller.config.model import SecurityConfig
from serviceradar_poller.testing.http2_frames import frame, prefixed, settings
from serviceradar_poller.testing.strangers import (
    CHECK,
    HELLO,
    WATCH,
    answer,
    answered,
    body,
    decoded,
    eventually,
    request,
    running,
    stranger,
    until_closed,
    works,
)
from serviceradar_poller.transport.http2.frames import (
    GOAWAY,
    PING,
    PREFACE,
    RST_STREAM,
    WINDOW_UPDATE,
)
from serviceradar_poller.transport.port import connection as connection_module
from serviceradar_poller.transport.port import listener as listener_module
from serviceradar_poller.transport.port.limits import PortLimits, Refusal
from serviceradar_poller.transport.server import ListenError, start


def trusted(pki: Path) -> ssl.SSLContext:
    """Return what a client with a certificate of the right CA connects with."""
    context = ssl.create_default_context(cafile=str(pki / "root.pem"))
    context.check_hostname = False
    context.load_cert_chain(pki / "agent.pem", pki / "agent-key.pem")
    context.set_alpn_protocols(["h2"])
    return context


def test_connections_are_bounded() -> None:
    """With all places taken by calls a new connection is closed; one without a call makes way."""

    async def main() -> None:
        limits = PortLimits(connections_max=2, evict_idle_s=0.0)
        async with contextlib.AsyncExitStack() as stack:
            server, refusals = await stack.enter_async_context(running(limits))
            for _ in range(2):
                reader, writer = await stack.enter_async_context(stranger(server))
                writer.write(HELLO + request(1, WATCH) + body(1))
                await answered(reader)
            refused, _ = await stack.enter_async_context(stranger(server))
            assert await until_closed(refused) is None
            assert refusals.by_reason == {Refusal.CONNECTIONS: 1}
            writer.write(frame(RST_STREAM, 0, 1, b"\0\0\0\x08"))
            await eventually(lambda: any(not each.has_calls for each in server._listener._connections))
            await works(server)
            assert refusals.by_reason[Refusal.EVICTED] == 1
            assert await until_closed(reader) == 0

    asyncio.run(main())


def test_a_long_call_makes_way() -> None:
    """Who holds calls open for long makes way where all places are taken, but not before who has none."""

    async def main() -> None:
        limits = PortLimits(connections_max=2, evict_idle_s=0.0, evict_busy_s=0.05)
        async with running(limits) as (server, refusals), contextlib.AsyncExitStack() as stack:
            watching, writer = await stack.enter_async_context(stranger(server))
            writer.write(HELLO + request(1, WATCH) + body(1))
            await answered(watching)
            idle, writer = await stack.enter_async_context(stranger(server))
            writer.write(HELLO)
            await eventually(lambda: all(each.may_go() for each in server._listener._connections))
            reader, writer = await stack.enter_async_context(stranger(server))
            writer.write(HELLO + request(1, WATCH) + body(1))
            await answered(reader)
            assert await until_closed(idle) == 0
            await eventually(lambda: all(each.may_go() for each in server._listener._connections))
            await works(server)
            assert await until_closed(watching) == 0
            assert refusals.by_reason == {Refusal.EVICTED: 2}

    asyncio.run(main())


def test_a_handshake_makes_way(block: Callable[..., SecurityConfig], pki: Path) -> None:
    """Strangers that connect and say nothing keep out nobody who has a certificate."""

    async def main() -> None:
        limits = PortLimits(connections_max=2, evict_idle_s=0.05, handshake_s=60.0)
        async with running(limits, block()) as (server, refusals), contextlib.AsyncExitStack() as stack:
            silent = [await stack.enter_async_context(stranger(server)) for _ in range(2)]
            await eventually(lambda: sum(each.may_go() for each in server._listener._connections) == 2)
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=trusted(pki))
            writer.write(HELLO + request(1) + body(1))
            assert decoded((await answer(reader, 1))[1]) == {b"grpc-status": b"0"}
            writer.transport.abort()
            assert await until_closed(silent[0][0]) is None
            assert refusals.by_reason == {Refusal.EVICTED: 1}

    asyncio.run(main())


def test_a_flood_of_connections() -> None:
    """Between two connections everything else gets its turn, and they are let in at a rate."""

    async def main() -> None:
        limits = PortLimits(connections_max=1, evict_idle_s=60.0)
        async with running(limits) as (server, refusals), contextlib.AsyncExitStack() as stack:
            for _ in range(100):
                client = stack.enter_context(socket.socket())
                client.setblocking(False)  # noqa: FBT003 - the socket module's signature
                with contextlib.suppress(BlockingIOError):
                    client.connect(("127.0.0.1", server.port))
            seen = 0
            while seen < 100:
                await asyncio.sleep(0)
                assert server.connections + refusals.total - seen <= 1
                seen = server.connections + refusals.total
        loop = asyncio.get_running_loop()
        async with (
            running(PortLimits(accepts_burst=1, accepts_per_s=20.0)) as (server, _),
            contextlib.AsyncExitStack() as s,
        ):
            begun_at = loop.time()
            for _ in range(5):
                await s.enter_async_context(stranger(server))
            await eventually(lambda: server.connections == 5)
            assert loop.time() - begun_at >= 0.14

    asyncio.run(main())


def test_a_stop_in_the_middle_of_an_accept(block: Callable[..., SecurityConfig]) -> None:
    """A connection that has been accepted, and no more than that, ends with its listener."""

    async def main() -> None:
        for security in (None, block()):
            for turns in range(6):
                async with running(security=security) as (server, _), stranger(server) as (reader, _):
                    async with asyncio.timeout(5.0):
                        while not server.connections:  # noqa: ASYNC110 - the very moment is meant
                            await asyncio.sleep(0)
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    await server.stop(0.0)
                    assert server.connections == 0
                    await until_closed(reader)

    asyncio.run(main())


def test_streams_are_bounded() -> None:
    """A call beyond those that a connection may have ends the connection."""

    async def main() -> None:
        async with running(PortLimits(streams_max=2)) as (server, refusals), stranger(server) as (reader, writer):
            writer.write(HELLO + request(1, WATCH) + body(1) + request(3, WATCH) + body(3))
            await answered(reader)
            writer.write(request(5, WATCH))
            await until_closed(reader)
            assert refusals.by_reason == {Refusal.PROTOCOL: 1}

    asyncio.run(main())


def test_nobody_takes_the_calls_of_others() -> None:
    """With every call of all other connections open for ever a probe is answered."""

    async def main() -> None:
        limits = PortLimits()
        async with running(limits) as (server, refusals), contextlib.AsyncExitStack() as stack:
            for _ in range(limits.connections_max - 1):
                reader, writer = await stack.enter_async_context(stranger(server))
                numbers = range(1, 2 * limits.streams_max, 2)
                writer.write(HELLO + b"".join(request(n, WATCH) + body(n) for n in numbers))
                await answered(reader)
            await works(server)
            assert refusals.total == 0

    asyncio.run(main())


def test_requests_ahead_of_their_reader() -> None:
    """A call that is sent more than its reader takes is refused, and what was sent is not kept."""

    async def main() -> None:
        limits = PortLimits(request_bytes_max=1000, frames_burst=1000)
        async with running(limits) as (server, refusals), stranger(server) as (reader, writer):
            writer.write(HELLO + request(1, WATCH) + body(1, end=False))
            await answered(reader)
            for _ in range(50):
                writer.write(body(1, bytes(10_000), end=False))
                await writer.drain()
            writer.write(request(3) + body(3, prefixed(bytes(1001))))
            _, trailers = await answer(reader, 3)
            assert decoded(trailers)[b"grpc-status"] == b"8"
            assert refusals.by_reason == {Refusal.REQUEST: 1}
            (held,) = server._listener._connections
            assert len(held._calls._open[1]._inbox) == 0

    asyncio.run(main())


def test_a_client_that_never_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output that nobody takes is bounded, by bytes and by time, and the client loses its connection."""
    monkeypatch.setattr(connection_module, "TICK_S", 0.02)
    file = b"\x1a" + bytes((len(b"google/protobuf/descriptor.proto"),)) + b"google/protobuf/descriptor.proto"
    reflect = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"

    async def main(limits: PortLimits) -> None:
        async with running(limits) as (server, refusals):
            loop = asyncio.get_running_loop()
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.setblocking(False)  # noqa: FBT003 - the socket module's signature
                await loop.sock_connect(client, ("127.0.0.1", server.port))
                credit = frame(WINDOW_UPDATE, 0, 0, (2**30).to_bytes(4, "big"))
                await loop.sock_sendall(client, PREFACE + settings((4, 2**30)) + credit + request(1, reflect))
                await eventually(lambda: server.connections == 1)
                (held,) = server._listener._connections
                await eventually(lambda: held.greeted)
                # The kernel's buffer on the server's side grows to megabytes on its own.
                held.connection.get_peer()._transport.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_SNDBUF, 4096
                )
                with contextlib.suppress(ConnectionError):
                    for _ in range(5_000):
                        await loop.sock_sendall(client, body(1, prefixed(file), end=False))
                        if refusals.by_reason[Refusal.NOT_READING]:
                            break
                        await asyncio.sleep(0)
                await eventually(lambda: refusals.by_reason[Refusal.NOT_READING] == 1)
                await eventually(lambda: server.connections == 0)

    asyncio.run(main(PortLimits(frames_burst=1_000_000, write_stall_s=0.1)))


def test_time_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who says nothing, or has no call for long, loses the connection; one that watches keeps it."""
    monkeypatch.setattr(connection_module, "TICK_S", 0.02)

    async def main() -> None:
        limits = PortLimits(handshake_s=0.4, idle_s=0.8, call_s_max=0.4)
        async with contextlib.AsyncExitStack() as stack:
            server, refusals = await stack.enter_async_context(running(limits))
            watching, writer = await stack.enter_async_context(stranger(server))
            writer.write(HELLO + request(1, WATCH) + body(1))
            silent, _ = await stack.enter_async_context(stranger(server))
            idle, writer = await stack.enter_async_context(stranger(server))
            writer.write(HELLO)
            slow, writer = await stack.enter_async_context(stranger(server))
            writer.write(HELLO + request(1))
            assert decoded((await answer(slow, 1))[1])[b"grpc-status"] == b"4"
            assert await until_closed(silent) is None
            assert await until_closed(idle) == 0
            assert await until_closed(slow) == 0
            assert refusals.by_reason == {Refusal.SILENT: 1, Refusal.DEADLINE: 1}
            assert server.connections == 1
            await answered(watching)

    asyncio.run(main())


def test_tls(block: Callable[..., SecurityConfig], pki: Path) -> None:
    """Garbage instead of TLS, a client without certificate, without ALPN or of TLS 1.2, and one that hangs: counted."""

    async def main() -> None:
        limits = PortLimits(handshake_s=0.3)
        async with running(limits, block()) as (server, refusals):
            for count, data in enumerate((b"GET / HTTP/1.1\r\n\r\n", bytes(1000), HELLO), 1):
                async with stranger(server) as (reader, writer):
                    writer.write(data)
                    await until_closed(reader)
                await eventually(lambda: refusals.by_reason[Refusal.TLS] == count)  # noqa: B023
            for certificate, alpn, newest in (
                (False, True, ssl.TLSVersion.TLSv1_3),
                (True, False, ssl.TLSVersion.TLSv1_3),
                (True, True, ssl.TLSVersion.TLSv1_2),
            ):
                context = ssl.create_default_context(cafile=str(pki / "root.pem"))
                context.check_hostname = False
                context.maximum_version = newest
                if certificate:
                    context.load_cert_chain(pki / "agent.pem", pki / "agent-key.pem")
                if alpn:
                    context.set_alpn_protocols(["h2"])
                count += 1
                with contextlib.suppress(OSError):
                    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=context)
                    await until_closed(reader)
                    writer.transport.abort()
                await eventually(lambda: refusals.by_reason[Refusal.TLS] == count)  # noqa: B023
            async with stranger(server) as (reader, _):
                assert server.connections <= 1
                await until_closed(reader)
            await eventually(lambda: refusals.by_reason[Refusal.TLS] == 7 and server.connections == 0)

    asyncio.run(main())


@pytest.mark.parametrize("abrupt", [False, True])
def test_a_tls_client_that_dies(
    block: Callable[..., SecurityConfig], pki: Path, abrupt: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that ends without TLS's goodbye, with calls under way and much unread, leaves no line in the log."""
    monkeypatch.setattr(connection_module, "LINGER_S", 0.05)

    async def main() -> None:
        limits = PortLimits(frames_burst=10_000, slice_bytes=256)
        async with running(limits, block()) as (server, refusals):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=trusted(pki))
            writer.write(HELLO + b"".join(request(n, WATCH) + body(n) for n in range(1, 32, 2)))
            await answered(reader)
            for _ in range(4):
                writer.write(frame(PING, 0, 0, bytes(8)) * 800)
            if abrupt:
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
            else:
                with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as same:
                    same.shutdown(socket.SHUT_WR)
            for turn in range(4):
                server.set_serving(turn % 2 == 1)
                await asyncio.sleep(0)
            await eventually(lambda: server.connections == 0)
            writer.transport.abort()
            assert refusals.total == 0

    asyncio.run(main())


def test_stop_ends_everybody(block: Callable[..., SecurityConfig]) -> None:
    """A stop ends handshakes, idle connections and watches within its grace."""

    async def main() -> None:
        for security in (None, block()):
            async with contextlib.AsyncExitStack() as stack:
                server, _ = await stack.enter_async_context(running(security=security))
                readers = []
                for data in (b"", HELLO, HELLO + request(1, WATCH) + body(1, end=False)):
                    reader, writer = await stack.enter_async_context(stranger(server))
                    writer.write(data)
                    readers.append(reader)
                await eventually(lambda: server.connections == 3 or security is not None)  # noqa: B023
                async with asyncio.timeout(10.0):
                    await server.stop(0.1)
                    for reader in readers:
                        await until_closed(reader)
                assert server.connections == 0

    asyncio.run(main())


def test_a_client_that_says_goodbye() -> None:
    """The client's own GOAWAY ends its calls and its connection."""

    async def main() -> None:
        async with running() as (server, refusals), stranger(server) as (reader, writer):
            writer.write(HELLO + request(1, WATCH) + body(1))
            await answered(reader)
            writer.write(frame(GOAWAY, 0, 0, bytes(8)))
            await until_closed(reader)
            await eventually(lambda: server.connections == 0)
            assert refusals.total == 0

    asyncio.run(main())


def test_a_fault_of_ours_is_told_a_few_times(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """An exception in a method ends its call, is written with its traceback a few times, and counted."""

    async def main() -> None:
        async with running(PortLimits(faults_told_max=2)) as (server, refusals), stranger(server) as (reader, writer):

            async def broken(call: Any) -> None:
                raise ValueError("a bug")

            server._listener.methods = {CHECK: broken}
            writer.write(HELLO)
            for stream in (1, 3, 5):
                writer.write(request(stream) + body(stream))
                await answer(reader, stream)
            assert refusals.by_reason == {Refusal.FAULT: 3}

    asyncio.run(main())
    told = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert len(told) == 2 and all(each.exc_info is not None for each in told)
    caplog.clear()


def test_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where IPv6 is switched off every interface is those of IPv4."""
    create = socket.create_server

    def create_server(address: Any, *, family: int, **rest: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EADDRNOTAVAIL, "no IPv6")
        return create(address, family=family, **rest)

    monkeypatch.setattr(socket, "create_server", create_server)

    async def main() -> None:
        for where in (":0", "localhost:0"):
            server = await start(where, service_name="P", context=None)
            await works(server)
            await server.stop(0.1)
        with pytest.raises(ListenError, match=r"\[::1\]:0"):
            await start("[::1]:0", service_name="P", context=None)

    asyncio.run(main())


def test_without_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has run out of descriptors accepts again when it has some, and is not busy meanwhile."""
    monkeypatch.setattr(listener_module, "ACCEPT_PAUSE_S", 0.05)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        accept, tries = loop.sock_accept, 0

        async def sock_accept(listener: socket.socket) -> Any:
            nonlocal tries
            tries += 1
            if tries <= 2:
                raise OSError(errno.EMFILE, "too many open files")
            return await accept(listener)

        monkeypatch.setattr(loop, "sock_accept", sock_accept)
        async with running() as (server, refusals):
            await works(server)
            assert refusals.by_reason == {Refusal.CONNECTIONS: 2}

    asyncio.run(main())
