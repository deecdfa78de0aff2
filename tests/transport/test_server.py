from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from serviceradar_poller.config.model import SecurityConfig
from serviceradar_poller.env import SystemClock
from serviceradar_poller.testing.peers import unused_port
from serviceradar_poller.transport import server
from serviceradar_poller.transport.certificates import load_material
from serviceradar_poller.transport.credentials import server_context
from serviceradar_poller.transport.server import ListenError, PollerServer, start

Block = Callable[..., SecurityConfig]
STATES = health_pb2.HealthCheckResponse
NOW = SystemClock().wall() + 3600  # certificates are made when the first test runs


@asynccontextmanager
async def running(
    listen_addr: str = "127.0.0.1:0", security: SecurityConfig | None = None
) -> AsyncIterator[PollerServer]:
    context = None if security is None else server_context(load_material(security, now=NOW))
    server = await start(listen_addr, service_name="PollerService", context=context)
    try:
        yield server
    finally:
        await server.stop(0.1)


def ask(channel: grpc.aio.Channel, name: str) -> Awaitable[Any]:
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=STATES.FromString,
    )
    return check(health_pb2.HealthCheckRequest(service=name), timeout=5.0)


def watch(channel: grpc.aio.Channel, name: str) -> Any:
    return channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=STATES.FromString,
    )(health_pb2.HealthCheckRequest(service=name), timeout=10.0)


def test_health() -> None:
    """The empty name and the poller's own are served; another name is NOT_FOUND ``unknown service``."""

    async def main() -> None:
        async with running() as server, grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            for name in ("", "PollerService"):
                assert (await ask(channel, name)).status == STATES.SERVING
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask(channel, "Other")
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            assert caught.value.details() == "unknown service"
            server.set_serving(False)
            assert (await ask(channel, "")).status == STATES.NOT_SERVING

    asyncio.run(main())


def test_watch() -> None:
    """A watcher gets the state and each change, the one of a stop too; an unknown name is told as SERVICE_UNKNOWN."""

    async def main() -> None:
        async with running() as server, grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            call = watch(channel, "PollerService")
            assert (await call.read()).status == STATES.SERVING
            for serving, state in ((False, STATES.NOT_SERVING), (True, STATES.SERVING)):
                server.set_serving(serving)
                assert (await call.read()).status == state
            assert (await watch(channel, "Other").read()).status == STATES.SERVICE_UNKNOWN
            server.set_serving(False)
            await server.stop(5.0)
            assert (await call.read()).status == STATES.NOT_SERVING
            assert await call.read() is grpc.aio.EOF

    asyncio.run(main())


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection(version: str) -> None:
    """Both versions of reflection list the services, and describe health."""
    ask_type, answer_type = reflection_pb2.ServerReflectionRequest, reflection_pb2.ServerReflectionResponse

    async def main() -> None:
        async with running() as server, grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            call: Any = channel.stream_stream(
                f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
                request_serializer=ask_type.SerializeToString,
                response_deserializer=answer_type.FromString,
            )(timeout=5.0)
            await call.write(ask_type(list_services=""))
            listed = {s.name for s in (await call.read()).list_services_response.service}
            assert listed == {
                "grpc.health.v1.Health",
                "grpc.reflection.v1.ServerReflection",
                "grpc.reflection.v1alpha.ServerReflection",
            }
            await call.write(ask_type(file_containing_symbol="grpc.health.v1.Health"))
            assert (await call.read()).file_descriptor_response.file_descriptor_proto
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF

    asyncio.run(main())


def test_mtls(pki: Path, block: Block) -> None:
    """With an mtls block a client needs a certificate of the right CA."""
    root = (pki / "root.pem").read_bytes()

    def credentials(leaf: str | None) -> grpc.ChannelCredentials:
        if leaf is None:
            return grpc.ssl_channel_credentials(root)
        key, chain = (pki / f"{leaf}-key.pem").read_bytes(), (pki / f"{leaf}.pem").read_bytes()
        return grpc.ssl_channel_credentials(root, key, chain)

    async def main() -> None:
        async with running(security=block()) as server:
            where = f"127.0.0.1:{server.port}"
            async with grpc.aio.secure_channel(where, credentials("agent")) as channel:
                assert (await ask(channel, "")).status == STATES.SERVING
            for leaf in (None, "other/agent"):
                async with grpc.aio.secure_channel(where, credentials(leaf)) as channel:
                    with pytest.raises(grpc.aio.AioRpcError):
                        await ask(channel, "")
            async with grpc.aio.insecure_channel(where) as channel:
                with pytest.raises(grpc.aio.AioRpcError):
                    await ask(channel, "")

    asyncio.run(main())


def test_busy_port() -> None:
    """A port in use is an error that names the address; a second poller never shares it."""

    async def main() -> None:
        async with running() as server:
            where = f"127.0.0.1:{server.port}"
            with pytest.raises(ListenError, match=where):
                await start(where, service_name="", context=None)

    asyncio.run(main())


@pytest.mark.parametrize("listen_addr", ["host", "localhost:99999", "1.2.3.4", "[::1]"])
def test_bad_address(listen_addr: str) -> None:
    """An address that can't be read is an error that names it."""
    with pytest.raises(ListenError, match="accepted"):
        asyncio.run(start(listen_addr, service_name="", context=None))


@pytest.mark.parametrize("listen_addr", ["*:21060", "日本:21060", "999.1.1.1:21060"])
def test_every_interface_is_told(listen_addr: str) -> None:
    """Where an address is none, the error says how every interface is written."""
    with pytest.raises(ListenError, match=r"that is no address; accepted: .*, or :port for every interface"):
        asyncio.run(start(listen_addr, service_name="", context=None))


@pytest.mark.parametrize(
    ("listen_addr", "error", "words"),
    [
        (
            "h:0",
            socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
            "the name 'h' has no address: Name",
        ),
        ("h:0", UnicodeError("label too long"), "the name 'h' has no address: a part of it is empty or too long"),
        ("h:0", TimeoutError(), "the name 'h' was not resolved within 5 s"),
        (":443", PermissionError(errno.EACCES, "x"), "Permission denied: a port below 1024 takes root"),
        (":8443", PermissionError(errno.EACCES, "x"), "Permission denied"),
        ("h:0", OSError(errno.EMFILE, "x"), "Too many open files"),
        ("h:0", OSError(errno.EADDRINUSE, "x"), "Address already in use: another program listens there"),
        ("h:0", OSError(errno.EADDRNOTAVAIL, "x"), "Cannot assign requested address: this machine does not have the"),
    ],
)
def test_a_failure_has_the_systems_words(
    listen_addr: str, error: Exception, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the system says is told, and a hint where it applies and nowhere else."""

    async def open_sockets(host: str, port: int) -> Any:
        raise error

    monkeypatch.setattr(server, "open_sockets", open_sockets)
    with pytest.raises(ListenError) as caught:
        asyncio.run(start(listen_addr, service_name="", context=None))
    assert str(caught.value).startswith(f"can't listen on {listen_addr}: {words}")
    assert (":" in str(caught.value).partition(f"{listen_addr}: ")[2]) is (":" in words)


@pytest.mark.parametrize(
    ("listen_addr", "words"),
    [("no-such-host.invalid:0", "has no address|not resolved"), ("192.0.2.1:0", "does not have the address")],
)
def test_addresses_of_others(listen_addr: str, words: str) -> None:
    """A name without address and an address of another machine are told as what they are."""
    with pytest.raises(ListenError, match=words):
        asyncio.run(start(listen_addr, service_name="", context=None))


@pytest.mark.parametrize("form", ["", ":0", ":port", "localhost:0"])
def test_addresses(form: str) -> None:
    """An empty address is a random port, a port alone is every interface."""
    listen_addr = form.replace("port", str(unused_port()))

    host = "localhost" if listen_addr.startswith("localhost") else "127.0.0.1"

    async def main() -> None:
        async with running(listen_addr) as server:
            assert server.port > 0
            if listen_addr not in ("", ":0", "localhost:0"):
                assert listen_addr == f":{server.port}"
            async with grpc.aio.insecure_channel(f"{host}:{server.port}") as channel:
                assert (await ask(channel, "")).status == STATES.SERVING

    asyncio.run(main())


def test_stop_twice() -> None:
    """Stopping again does nothing, and the port is free afterwards."""

    async def main() -> None:
        where = f"127.0.0.1:{unused_port()}"  # one that nobody takes in between
        async with running(where) as server:
            await server.stop(1.0)
            await server.stop(1.0)
            async with running(where) as again:
                assert again.port == server.port

    asyncio.run(main())
