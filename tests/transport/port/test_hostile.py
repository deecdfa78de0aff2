"""What strangers may send to the poller's own port."""

from __future__ import annotations

import asyncio

import pytest

from serviceradar_poller.testing.http2_frames import SETTINGS_ACK, block, frame, prefixed, settings
from serviceradar_poller.testing.strangers import (
    CHECK,
    HELLO,
    SERVING,
    WATCH,
    answer,
    answered,
    body,
    decoded,
    eventually,
    frames,
    request,
    running,
    stranger,
    until_closed,
    works,
)
from serviceradar_poller.transport.http2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
)
from serviceradar_poller.transport.port import connection as connection_module
from serviceradar_poller.transport.port.limits import PortLimits, Refusal

ENHANCE_YOUR_CALM = 11


def test_the_bytes_of_a_good_call() -> None:
    """What the other tests vary is a call that is answered."""

    async def main() -> None:
        async with running() as (server, refusals), stranger(server) as (reader, writer):
            writer.write(HELLO + request(1) + body(1))
            data, trailers = await answer(reader, 1)
            assert data == SERVING
            assert decoded(trailers) == {b"grpc-status": b"0"}
            assert refusals.total == 0

    asyncio.run(main())


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        bytes(range(256)) * 300,
        PREFACE + b"GET / HTTP/1.1\r\n\r\n",
        HELLO + frame(HEADERS, END_HEADERS, 1, b"\xff" * 50),
        HELLO + frame(HEADERS, END_HEADERS, 2, block([(b":method", b"POST")])),
        HELLO + frame(HEADERS, END_HEADERS, 1, block([(b"content-type", b"application/grpc")])),
        HELLO + frame(DATA, 0, 0, b"x"),
        HELLO + frame(DATA, 0, 5, b"x"),
        HELLO + frame(DATA, 8, 1, b"\xff"),
        HELLO + frame(CONTINUATION, 0, 1, b"x"),
        HELLO + frame(WINDOW_UPDATE, 0, 0, bytes(4)),
        HELLO + frame(SETTINGS, 0, 0, b"abc"),
        HELLO + settings((4, 2**31)),
        HELLO + frame(PING, 0, 0, b"short"),
        HELLO + (2**24 - 1).to_bytes(3, "big") + b"\xfa" + bytes(5),
        HELLO + (16_385).to_bytes(3, "big") + b"\0\0\0\0\0\1",
        HELLO + request(1) + request(1),
        HELLO + request(1, CHECK, (b"x", b"a" * 20_000)),
        HELLO + request(1, CHECK, *[(b"x", b"")] * 600),
    ],
)
def test_garbage(garbage: bytes) -> None:
    """Bytes that are no HTTP/2 end their connection, are counted, and disturb nobody."""

    async def main() -> None:
        async with running() as (server, refusals), stranger(server) as (reader, writer):
            writer.write(garbage)
            await until_closed(reader)
            assert refusals.by_reason == {Refusal.PROTOCOL: 1}
            await works(server)

    asyncio.run(main())


def test_unknown_frames_are_ignored() -> None:
    """A frame of a kind that nobody has defined is no error, nor are a priority and alternative services."""

    async def main() -> None:
        async with running() as (server, _), stranger(server) as (reader, writer):
            odd = frame(0xFA, 0, 0, b"?") + frame(0xFA, 0, 1, b"?") + frame(10, 0, 0, bytes(2))
            writer.write(HELLO + odd + frame(PRIORITY, 0, 3, bytes(4) + b"\1") + request(1) + body(1))
            assert (await answer(reader, 1))[0] == SERVING

    asyncio.run(main())


def test_unknown_settings_are_not_kept() -> None:
    """Settings that nobody has defined are ignored, however many a client has."""

    async def main() -> None:
        async with running() as (server, refusals), stranger(server) as (reader, writer):
            writer.write(HELLO)
            for first in range(0x100, 0x4000, 2000):
                writer.write(settings(*((number, 1) for number in range(first, first + 2000))))
            writer.write(request(1) + body(1))
            assert (await answer(reader, 1))[0] == SERVING
            (held,) = server._listener._connections
            assert len(held._http.remote_settings) < 10
            assert refusals.total == 0

    asyncio.run(main())


@pytest.mark.parametrize(
    ("call", "status", "refused"),
    [
        (request(1, "/no/Such") + body(1), b"12", 0),
        (request(1) + body(1, b""), b"13", 1),
        (request(1) + body(1, b"\0\0\0"), b"13", 1),
        (request(1) + body(1, b"\0\0\0\0\x09half"), b"13", 1),
        (request(1) + body(1, prefixed(b"\xff\xff\xff")), b"13", 1),
        (request(1) + body(1, prefixed(b"x", flag=1)), b"12", 1),
        (request(1) + body(1, b"\0\xff\xff\xff\xff", end=False), b"8", 1),
        (request(1, CHECK, (b"grpc-timeout", b"1 day")) + body(1), b"13", 1),
        (request(1, CHECK, (b"grpc-timeout", b"0n")), b"4", 1),
        (request(1, CHECK, (b"grpc-timeout", b"1m")), b"4", 1),
        (request(1, WATCH, (b"grpc-timeout", b"20m")) + body(1), b"4", 1),
        (request(1, CHECK, (b"x-bin", b"!not base64!")) + body(1), b"0", 0),
        (request(1, CHECK, (b"x", b"\xff\xfe")) + body(1), b"0", 0),
        (request(1, CHECK, (b"grpc-timeout", b"99999999H")) + body(1), b"0", 0),
        (request(1, CHECK, kind=b"application/grpc+proto") + body(1), b"0", 0),
        (request(1) + body(1, b"", end=False) + body(1, b"\0\0", end=False) + body(1, b"\0\0\0"), b"0", 0),
    ],
)
def test_odd_calls(call: bytes, status: bytes, refused: int) -> None:
    """A call that is cut, unreadable, too large or late ends with its status; its connection goes on."""

    async def main() -> None:
        async with running() as (server, refusals), stranger(server) as (reader, writer):
            writer.write(HELLO + call)
            _, trailers = await answer(reader, 1)
            assert decoded(trailers)[b"grpc-status"] == status
            assert refusals.total == refused
            writer.write(request(3) + body(3))
            async with asyncio.timeout(5.0):
                async for kind, _, number, payload in frames(reader):
                    if (kind, number) == (DATA, 3):
                        assert payload == SERVING
                        break

    asyncio.run(main())


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (request(1, method=b"GET"), b"405"),
        (request(1, kind=b"text/html"), b"415"),
        (request(1, kind=b"application/grpcx"), b"415"),
    ],
)
def test_what_is_no_grpc(call: bytes, code: bytes) -> None:
    """A browser is answered in HTTP's terms."""

    async def main() -> None:
        async with running() as (server, refusals), stranger(server) as (reader, writer):
            writer.write(HELLO + call)
            _, fields = await answer(reader, 1)
            assert decoded(fields) == {b":status": code}
            assert refusals.by_reason == {Refusal.REQUEST: 1}

    asyncio.run(main())


PATIENT = 400  # frames; what the floods below exceed by far
FLOODS = {
    "ping": lambda n: frame(PING, 0, 0, bytes(8)),
    "ping answers": lambda n: frame(PING, ACK, 0, bytes(8)),
    "settings": lambda n: settings((3, n + 1)),
    "many settings": lambda n: settings(*((number, n) for number in range(1000, 3000))) if n < 50 else b"",
    "settings acks": lambda n: SETTINGS_ACK if n == 0 else settings(),
    "credit": lambda n: frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1"),
    "priority": lambda n: frame(PRIORITY, 0, 2 * n + 1, bytes(4) + b"\1"),
    "unknown": lambda n: frame(0xFA, 0, 0),
    "empty data": lambda n: (request(1, WATCH) if n == 0 else b"") + body(1, b"", end=False),
    "rapid reset": lambda n: request(2 * n + 1) + frame(RST_STREAM, 0, 2 * n + 1, b"\0\0\0\x08"),
    "resets of one call": lambda n: (request(1) if n == 0 else b"") + frame(RST_STREAM, 0, 1, b"\0\0\0\x08"),
    "continuations": lambda n: frame(HEADERS, 0, 1, b"") if n == 0 else frame(CONTINUATION, 0, 1, b""),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_floods(kind: str) -> None:
    """Frames that cost more than they say end their connection with ENHANCE_YOUR_CALM, and leave nothing behind."""

    async def main() -> None:
        limits = PortLimits(frames_burst=PATIENT, frames_per_s=1.0)
        async with running(limits) as (server, refusals), stranger(server) as (reader, writer):
            before = len(asyncio.all_tasks())
            writer.write(HELLO + b"".join(FLOODS[kind](n) for n in range(PATIENT + 100)))
            assert await until_closed(reader) == ENHANCE_YOUR_CALM
            assert refusals.by_reason[Refusal.FLOOD] == 1
            assert refusals.by_reason[Refusal.FAULT] == 0
            await works(server)
            await eventually(lambda: len(asyncio.all_tasks()) <= before)

    asyncio.run(main())


def test_a_frame_full_of_requests() -> None:
    """Tiny requests count as frames, however many come in one, and everything else has its turn between two answers."""

    async def main() -> None:
        reflect = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
        ask = prefixed(b"\x3a\0")
        async with running() as (server, refusals), stranger(server) as (reader, writer):
            credit = settings((4, 2**31 - 1)) + frame(WINDOW_UPDATE, 0, 0, (2**30).to_bytes(4, "big"))
            writer.write(PREFACE + credit + request(1, reflect) + body(1, ask, end=False))
            await answered(reader)
            (held,) = server._listener._connections
            sent = held.connection.data_sent
            writer.write(body(1, ask * 1000, end=False))
            while not refusals.total:
                await asyncio.sleep(0)
                assert held.connection.data_sent - sent <= 1000  # one answer
                sent = held.connection.data_sent
            assert await until_closed(reader) == ENHANCE_YOUR_CALM
            assert refusals.by_reason == {Refusal.FLOOD: 1}

    asyncio.run(main())


def test_rapid_reset_forgets_its_calls() -> None:
    """A call that is reset in the same read in which it came leaves nothing on its connection, however many do."""

    async def main() -> None:
        async with running() as (server, _), stranger(server) as (reader, writer):
            for n in range(100):
                writer.write((HELLO if n == 0 else b"") + FLOODS["rapid reset"](n))
            writer.write(request(1001) + body(1001))
            assert (await answer(reader, 1001))[0] == SERVING
            (held,) = server._listener._connections
            await eventually(lambda: not held.tasks)
            assert not held.processor.streams and not held._calls._open

    asyncio.run(main())


def test_a_full_read_gives_others_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large read is worked off in slices: between two of them the loop runs everything else."""
    sizes: list[int] = []
    work_off = connection_module.GuardedConnection._work_off

    def noted(self: connection_module.GuardedConnection, piece: bytes) -> None:
        sizes.append(len(piece))
        work_off(self, piece)

    monkeypatch.setattr(connection_module.GuardedConnection, "_work_off", noted)

    async def main() -> None:
        limits = PortLimits(slice_bytes=64, frames_burst=1000)
        async with running(limits) as (server, _), stranger(server) as (reader, writer):
            writer.write(HELLO + frame(PING, 0, 0, bytes(8)) * 200 + request(1) + body(1))
            assert (await answer(reader, 1))[0] == SERVING
            assert max(sizes) == 64 and len(sizes) > 50

    asyncio.run(main())


def test_answers_to_a_client_that_has_left() -> None:
    """Calls that write before they are told of a reset leave no line in the log, however many they are."""

    async def main() -> None:
        async with running() as (server, _), stranger(server) as (reader, writer):
            writer.write(HELLO + request(1, WATCH) + body(1))
            await answered(reader)
            (held,) = server._listener._connections
            assert held._transport is not None
            held._transport.abort()  # what asyncio does when the socket refuses a write
            for _ in range(10):
                held.connection._connection.ping(bytes(8))
                held.connection.flush()
            await eventually(lambda: server.connections == 0)

    asyncio.run(main())
