"""What a peer may ask of our TLS by itself: key updates, each of which has to be answered."""

from __future__ import annotations

import asyncio
import ctypes
import ssl
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from serviceradar_poller.errors import Layer
from serviceradar_poller.testing.contract import failure
from serviceradar_poller.testing.wires import ECHO, HANG, Answers, Wire, WireLoop
from serviceradar_poller.transport.native import connection as module
from serviceradar_poller.transport.native.channel import NativeChannel

Go = Callable[..., Answers]
Contexts = tuple[ssl.SSLContext | None, ssl.SSLContext | None]

UPDATE_REQUESTED = 1  # SSL_KEY_UPDATE_REQUESTED, openssl/ssl.h
TLS_1_3 = 0x304


@pytest.fixture
def openssl() -> ctypes.CDLL:
    """The library behind the ssl module, which has no key updates itself."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    paths = sorted({line.split()[-1] for line in lines if "libssl" in line})
    if not paths or sys.implementation.name != "cpython" or hasattr(sys, "gettotalrefcount"):
        pytest.skip("OpenSSL's shared library, or how Python holds its objects, is not known here")
    library = ctypes.CDLL(paths[0])
    for function in (library.SSL_key_update, library.SSL_do_handshake, library.SSL_version):
        function.argtypes = [ctypes.c_void_p]
    library.SSL_key_update.argtypes = [ctypes.c_void_p, ctypes.c_int]
    return library


def ask(openssl: ctypes.CDLL, wire: Wire, count: int) -> None:
    """Let the server ask so many times for new keys."""
    assert wire._tls is not None
    # struct PySSLSocket, Modules/_ssl.c: a head of two words, the socket, then OpenSSL's object.
    handle = ctypes.c_void_p.from_address(id(wire._tls._object._sslobj) + 3 * struct.calcsize("P")).value  # type: ignore[attr-defined]
    assert openssl.SSL_version(handle) == TLS_1_3
    for _ in range(count):
        assert openssl.SSL_key_update(handle, UPDATE_REQUESTED) == 1
        assert openssl.SSL_do_handshake(handle) == 1
        wire._to_client(wire._tls.take_output())


@pytest.mark.parametrize("contexts", ["tls"], indirect=True)
def test_a_flood_of_key_updates(go: Go, openssl: ctypes.CDLL) -> None:
    """Of the answers that a peer asks for and does not read a bounded amount is kept, then the connection ends."""

    async def program(channel: NativeChannel, loop: WireLoop) -> None:
        await channel.unary(ECHO, b"", 5.0)
        wire = loop.wires[0]
        connection = channel._connection
        assert connection is not None
        async with asyncio.TaskGroup() as group:
            call = group.create_task(failure(channel.unary(HANG, b"", 50.0)))
            await asyncio.sleep(0.1)
            wire.stall()
            asked = 0
            while not call.done() and asked < 20_000:
                ask(openssl, wire, 100)
                asked += 100
                await asyncio.sleep(0.001)
            assert (call.result().layer, call.result().reason) == (Layer.GRPC, "reset")
            assert "key updates" in call.result().detail
        assert wire.waiting_max <= 2 * module.WRITE_BUFFER_BYTES_MAX
        assert wire.lost
        assert await channel.unary(ECHO, b"next", 5.0) == b"next"
        assert channel.opened == 2

    go(program)


@pytest.mark.parametrize("contexts", ["tls"], indirect=True)
def test_key_updates_are_no_sign_of_life(go: Go, openssl: ctypes.CDLL) -> None:
    """A peer that does nothing but change keys, and reads, keeps its connection only until a call times out."""

    async def program(channel: NativeChannel, loop: WireLoop) -> None:
        await channel.unary(ECHO, b"", 5.0)
        wire = loop.wires[0]
        async with asyncio.TaskGroup() as group:
            call = group.create_task(failure(channel.unary(HANG, b"", 5.0)))
            for _ in range(8):
                await asyncio.sleep(0.5)
                ask(openssl, wire, 1)
            assert (await call).reason == "timeout"
        assert await channel.unary(ECHO, b"next", 5.0) == b"next"
        assert channel.opened == 2

    go(program)


@pytest.mark.parametrize("contexts", ["tls"], indirect=True)
def test_key_updates_while_the_socket_takes_nothing(go: Go, openssl: ctypes.CDLL) -> None:
    """Answers to some key updates wait as what else there is to send does, and all is read when the socket takes it."""

    async def program(channel: NativeChannel, loop: WireLoop) -> None:
        await channel.unary(ECHO, b"", 5.0)
        wire = loop.wires[0]
        wire.stall()
        async with asyncio.TaskGroup() as group:
            large = group.create_task(channel.unary(ECHO, bytes(400_000), 50.0))
            await asyncio.sleep(0.1)
            waiting = wire.get_write_buffer_size()
            ask(openssl, wire, 20)
            await asyncio.sleep(0.1)
            assert wire.get_write_buffer_size() == waiting
            wire.go_on()
            assert await large == bytes(400_000)
        ask(openssl, wire, 3)
        assert await channel.unary(ECHO, b"next", 5.0) == b"next"
        assert channel.opened == 1

    go(program)
