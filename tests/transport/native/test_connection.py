from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import AsyncIterator, Callable

import pytest

from serviceradar_poller.errors import CallError, Layer
from serviceradar_poller.testing.contract import failure
from serviceradar_poller.testing.peers import frame
from serviceradar_poller.testing.wires import ECHO, FAIL, HANG, STREAM, Answers, WireLoop
from serviceradar_poller.transport.native import channel as channel_module
from serviceradar_poller.transport.native import connection as module
from serviceradar_poller.transport.native.channel import NativeChannel
from serviceradar_poller.transport.native.tls import RECORD_BYTES_MAX


async def everything(channel: NativeChannel) -> list[object]:
    """Make a call of each kind; return what they came to."""
    found: list[object] = [await channel.unary(ECHO, b"x" * 300, 5.0)]
    stream = channel.receive_stream(STREAM, lambda: b"", 5.0)
    while (message := await stream.read()) is not None:
        found.append(message)
    error = await failure(channel.unary(FAIL, b"", 5.0))
    if error.reason != "not_found":
        raise error
    return [*found, error.detail]


EVERYTHING = [b"x" * 300, b"one", b"two", b"three", "no such thing"]


@pytest.mark.parametrize("piece", [0, 1, 2, 7, 1000])
def test_any_pieces(go: Callable[..., Answers], piece: int) -> None:
    """However the network cuts what the peer sends, down to single bytes, the calls come to the same."""

    async def program(channel: NativeChannel, loop: WireLoop) -> None:
        assert await everything(channel) == EVERYTHING
        assert channel.opened == 1

    go(program, piece=piece)


def recorded(go: Callable[..., Answers]) -> int:
    """Return how many bytes the server sends for a unary call and a stream."""
    sizes: list[int] = []

    async def program(channel: NativeChannel, loop: WireLoop) -> None:
        await everything(channel)
        sizes.append(len(loop.wires[0].received))

    go(program)
    return sizes[0]


@pytest.mark.slow
def test_reset_at_every_byte(
    go: Callable[..., Answers], contexts: tuple[ssl.SSLContext | None, ssl.SSLContext | None]
) -> None:
    """Wherever the connection breaks, calls succeed or fail with a layer that fits, and nothing is left."""
    reasons: set[tuple[Layer, str]] = set()

    async def program(channel: NativeChannel, loop: WireLoop) -> None:
        try:
            assert await everything(channel) == EVERYTHING
        except CallError as error:
            reasons.add((error.layer, error.reason))
        assert all(not wire.http2.closing for wire in loop.wires)  # we broke no rule

    size = recorded(go)
    # A handshake costs a millisecond and most of its bytes are one certificate.
    step = 1 if contexts[0] is None else 29
    for offset in range(1, size, step):
        go(program, cut_after=offset)
    expected = {(Layer.GRPC, "reset"), (Layer.TCP, "reset") if contexts[0] is None else (Layer.TLS, "tls")}
    assert expected <= reasons <= expected | {(Layer.TCP, "reset")}


def test_calls_of_one_iteration_leave_together(go: Callable[..., Answers]) -> None:
    """Calls that begin in one iteration of the loop are one write; a later one is another."""

    async def program(channel: NativeChannel, loop: WireLoop) -> None:
        await channel.unary(ECHO, b"", 5.0)
        wire = loop.wires[0]
        wire.writes.clear()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(channel.unary(ECHO, b"%d" % index, 5.0)) for index in range(5)]
        assert [task.result() for task in tasks] == [b"%d" % index for index in range(5)]
        assert len(wire.writes) == 1
        await channel.unary(ECHO, b"", 5.0)
        assert len(wire.writes) == 2

    go(program)


def test_deadlines(go: Callable[..., Answers]) -> None:
    """Every call ends at its own deadline, whatever the order in which they began, by one timer."""

    async def program(channel: NativeChannel, loop: WireLoop) -> None:
        ended: list[tuple[float, float]] = []

        async def call(timeout_s: float) -> None:
            began_at = loop.time()
            error = await failure(channel.unary(HANG, b"", timeout_s))
            assert (error.layer, error.reason) == (Layer.DEADLINE, "timeout")
            assert f"within {timeout_s:g} s" in error.detail
            ended.append((timeout_s, loop.time() - began_at))

        await channel.unary(ECHO, b"", 5.0)
        async with asyncio.TaskGroup() as group:
            for timeout_s in (7.0, 3.0, 5.0, 3.0, 9.0, 1.0):
                group.create_task(call(timeout_s))
            for _ in range(3):
                await asyncio.sleep(0)
            assert len(loop.pending_timers()) == 1
            group.create_task(heard(channel))
        assert [asked for asked, _ in ended] == [1.0, 3.0, 3.0, 5.0, 7.0, 9.0]
        assert all(math.isclose(asked, took) for asked, took in ended)
        assert channel.opened == 1

    async def heard(channel: NativeChannel) -> None:
        """Keep the connection trusted."""
        for _ in range(20):
            await asyncio.sleep(0.45)
            await channel.unary(ECHO, b"", 5.0)

    answers = go(program)
    assert all(call.done for call in answers.calls)  # the peer was told


def test_keepalive(go: Callable[..., Answers]) -> None:
    """A ping is sent only while a call is under way and nothing was heard for two minutes; an answer is life."""

    async def program(channel: NativeChannel, loop: WireLoop) -> None:
        await channel.unary(ECHO, b"", 5.0)
        wire = loop.wires[0]
        await asyncio.sleep(1000.0)
        assert wire.http2.pings == 0
        began_at = loop.time()
        assert (await failure(channel.unary(HANG, b"", 1000.0))).reason == "timeout"
        assert loop.time() - began_at == 1000.0
        assert 7 <= wire.http2.pings <= 8
        assert not wire.http2.closing  # its policy, that of Go's servers, allows it

    go(program)


def test_keepalive_after_an_answer_that_was_none(go: Callable[..., Answers]) -> None:
    """What comes after a ping counts as life, but only until the next ping, never sooner than two minutes later."""

    async def program(channel: NativeChannel, loop: WireLoop) -> None:
        await channel.unary(ECHO, b"", 5.0)
        wire = loop.wires[0]
        wire.mute = True
        began_at = loop.time()
        # On its way when the first ping left, at 120 s.
        loop.call_later(module.KEEPALIVE_TIME_S + 1.0, wire.send_raw, frame(8, (1).to_bytes(4, "big")))
        wire.writes.clear()
        error = await failure(channel.unary(HANG, b"", 1000.0))
        assert (error.layer, error.reason) == (Layer.GRPC, "reset")
        assert loop.time() - began_at == 2 * module.KEEPALIVE_TIME_S + 1.0 + module.KEEPALIVE_TIMEOUT_S

    go(program)


def test_keepalive_unanswered(go: Callable[..., Answers]) -> None:
    """A ping that stays unanswered for twenty seconds ends the connection and its calls."""

    async def program(channel: NativeChannel, loop: WireLoop) -> None:
        await channel.unary(ECHO, b"", 5.0)
        loop.wires[0].mute = True
        began_at = loop.time()
        error = await failure(channel.unary(HANG, b"", 1000.0))
        assert (error.layer, error.reason) == (Layer.GRPC, "reset")
        assert "keepalive" in error.detail
        assert loop.time() - began_at == module.KEEPALIVE_TIME_S + module.KEEPALIVE_TIMEOUT_S
        assert await channel.unary(ECHO, b"again", 5.0) == b"again"
        assert channel.opened == 2

    go(program)


def test_a_socket_that_stalls(go: Callable[..., Answers]) -> None:
    """What the socket does not take is bounded, nothing is lost of it, and no call waits longer than it may."""

    async def program(channel: NativeChannel, loop: WireLoop) -> None:
        await channel.unary(ECHO, b"", 5.0)
        wire = loop.wires[0]
        wire.stall()
        large = [bytes([index]) * 400_000 for index in range(4)]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(channel.unary(ECHO, each, 50.0)) for each in large]
            late = group.create_task(failure(channel.unary(ECHO, b"late", 1.0)))
            await asyncio.sleep(2.0)
            assert late.result().reason == "timeout"
            assert wire.waiting_max <= module.WRITE_BUFFER_BYTES_MAX + RECORD_BYTES_MAX + 64
            wire.go_on()
        assert [task.result() for task in tasks] == large

    go(program)


def test_a_peer_that_stalls_and_sends_no_more(go: Callable[..., Answers]) -> None:
    """A FIN while the socket takes nothing ends the connection at once; asyncio would wait until all is written."""

    async def program(channel: NativeChannel, loop: WireLoop) -> None:
        await channel.unary(ECHO, b"", 5.0)
        wire = loop.wires[0]
        wire.stall()
        async with asyncio.TaskGroup() as group:
            large = group.create_task(failure(channel.unary(ECHO, bytes(400_000), 50.0)))
            await asyncio.sleep(1.0)
            began_at = loop.time()
            wire.half_close()
            await asyncio.sleep(0.1)
            assert wire.lost
            assert large.result().reason == "reset"
            assert await channel.unary(ECHO, b"next", 5.0) == b"next"
        assert loop.time() - began_at < 1.0
        assert channel.opened == 2

    go(program)


def test_close_does_not_wait_for_the_socket(go: Callable[..., Answers]) -> None:
    """A connection whose transport closes already, with bytes that the peer does not take, is closed all the same."""

    async def program(channel: NativeChannel, loop: WireLoop) -> None:
        await channel.unary(ECHO, b"", 5.0)
        wire = loop.wires[0]
        wire.stall()
        async with asyncio.TaskGroup() as group:
            large = group.create_task(failure(channel.unary(ECHO, bytes(400_000), 50.0)))
            await asyncio.sleep(1.0)
            wire.close()
            began_at = loop.time()
            await channel.close()
            assert large.result().reason == "closed"
        assert wire.lost
        assert loop.time() == began_at

    go(program)


def test_a_stalled_stream_waits(go: Callable[..., Answers]) -> None:
    """Who sends a stream makes no further message while the socket takes nothing; closing ends the wait."""
    made = 0

    async def payloads() -> AsyncIterator[bytes]:
        nonlocal made
        for _ in range(1000):
            made += 1
            yield bytes(20_000)

    async def program(channel: NativeChannel, loop: WireLoop) -> None:
        await channel.unary(ECHO, b"", 5.0)
        loop.wires[0].stall()
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(failure(channel.send_stream("/t/Take", payloads(), 1000, 50.0)))
            await asyncio.sleep(10.0)
            assert made * 20_000 < 400_000
            await channel.close()
            assert (await sending).reason == "closed"

    go(program)


@pytest.mark.parametrize("turns", range(30))
@pytest.mark.parametrize("how", ["cancel", "close"])
def test_ended_at_every_turn(go: Callable[..., Answers], turns: int, how: str) -> None:
    """Calls of every kind may be cancelled, or their channel closed, at any moment; nothing is left."""

    async def payloads() -> AsyncIterator[bytes]:
        yield b"part" * 50_000

    async def program(channel: NativeChannel, loop: WireLoop) -> None:
        async def read() -> None:
            stream = channel.receive_stream(STREAM, lambda: b"", 5.0)
            while await stream.read() is not None:
                pass

        tasks = [
            loop.create_task(each)
            for each in (
                channel.unary(ECHO, b"x", 5.0),
                channel.unary(HANG, b"x", 50.0),
                channel.send_stream("/t/Take", payloads(), 1, 50.0),
                read(),
            )
        ]
        for _ in range(turns):
            await asyncio.sleep(0)
        if how == "cancel":
            for task in tasks:
                task.cancel()
        else:
            await channel.close()
        await asyncio.wait(tasks, timeout=1.0)
        for task in tasks:
            assert task.done()
            if not task.cancelled() and (error := task.exception()) is not None:
                assert isinstance(error, CallError)
                assert error.reason == "closed"
            assert how == "cancel" or not task.cancelled()
        if how == "cancel":
            assert await channel.unary(ECHO, b"still", 5.0) == b"still"
            assert channel.opened == 1

    go(program)


def test_goaway(go: Callable[..., Answers]) -> None:
    """After a GOAWAY calls under way finish, new ones use a new connection, and the old one closes with its last."""

    async def program(channel: NativeChannel, loop: WireLoop) -> None:
        async with asyncio.TaskGroup() as group:
            patient = group.create_task(channel.unary(HANG, b"", 50.0))
            await channel.unary(ECHO, b"", 5.0)
            wire = loop.wires[0]
            wire.send_raw(frame(7, (2**31 - 1).to_bytes(4, "big") + bytes(4) + b"restarting"))
            await asyncio.sleep(0.1)
            assert await channel.unary(ECHO, b"new", 5.0) == b"new"
            assert channel.opened == 2
            assert not wire.is_closing()
            next(call for call in answers.calls if call.path == HANG).reply(b"late, but there")
            assert await patient == b"late, but there"
        await asyncio.sleep(0.1)
        assert wire.lost
        # Idle, it is closed at once.
        loop.wires[1].send_raw(frame(7, (2**31 - 1).to_bytes(4, "big") + bytes(4)))
        await asyncio.sleep(0.1)
        assert loop.wires[1].lost
        assert channel.peer_certificate is None

    answers = Answers()
    go(program, answers=answers)


def test_a_goodbye_for_an_error_is_told_with_the_timeout(go: Callable[..., Answers]) -> None:
    """A peer may name the error of the connection, allow the call to finish, and never answer it."""

    async def program(channel: NativeChannel, loop: WireLoop) -> None:
        async with asyncio.TaskGroup() as group:
            hanging = group.create_task(failure(channel.unary(HANG, b"", 2.0)))
            await channel.unary(ECHO, b"", 5.0)
            loop.wires[0].send_raw(frame(7, (2**31 - 1).to_bytes(4, "big") + (9).to_bytes(4, "big") + b"bad block"))
        error = hanging.result()
        assert (error.layer, error.reason) == (Layer.DEADLINE, "timeout")
        assert error.detail.endswith("closes the connection: COMPRESSION_ERROR bad block")

    go(program)


def test_streams_are_waited_for_in_order(go: Callable[..., Answers]) -> None:
    """With one stream allowed calls take turns, first come first served; who waits too long or is cancelled leaves."""
    served: list[bytes] = []

    async def program(channel: NativeChannel, loop: WireLoop) -> None:
        await channel.unary(ECHO, b"", 5.0)
        loop.wires[0].send_raw(frame(4, (3).to_bytes(2, "big") + (1).to_bytes(4, "big")))
        await asyncio.sleep(0.1)

        async def call(name: bytes, timeout_s: float = 50.0) -> None:
            await channel.unary(ECHO, name, timeout_s)
            served.append(name)

        async with asyncio.TaskGroup() as group:
            first = group.create_task(channel.unary(HANG, b"", 20.0))
            await asyncio.sleep(0)
            names = [b"%d" % index for index in range(6)]
            tasks = [group.create_task(call(name)) for name in names[:3]]
            late = group.create_task(failure(channel.unary(ECHO, b"late", 2.0)))
            tasks += [group.create_task(call(name)) for name in names[3:]]
            await asyncio.sleep(1.0)
            tasks[1].cancel()
            loop.wires[0].send_raw(frame(6, bytes(8)))  # a ping: the peer is alive
            await asyncio.sleep(3.0)
            assert late.result().reason == "timeout"
            assert served == []
            first.cancel()
        assert served == [b"0", b"2", b"3", b"4", b"5"]
        assert loop.wires[0].http2._last_id == 2 * (2 + 5) - 1

    go(program)


def test_more_streams_are_used_at_once(go: Callable[..., Answers]) -> None:
    """When the peer allows more streams, calls that wait for one begin, though none has ended."""

    async def program(channel: NativeChannel, loop: WireLoop) -> None:
        await channel.unary(ECHO, b"", 5.0)
        wire = loop.wires[0]
        wire.send_raw(frame(4, (3).to_bytes(2, "big") + (0).to_bytes(4, "big")))
        await asyncio.sleep(0.1)
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(channel.unary(ECHO, b"%d" % index, 50.0)) for index in range(5)]
            await asyncio.sleep(1.0)
            assert not any(call.done() for call in calls)
            wire.send_raw(frame(4, (3).to_bytes(2, "big") + (2).to_bytes(4, "big")))
            await asyncio.sleep(1.0)
            assert [call.result() for call in calls] == [b"%d" % index for index in range(5)]
        assert channel.opened == 1
        assert wire.http2._last_id == 2 * 6 - 1

    go(program)


def test_ids_used_up(go: Callable[..., Answers], monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection whose stream ids come to an end makes place for another, before they do."""
    monkeypatch.setattr(module, "CALL_ID_MAX", 9)

    async def program(channel: NativeChannel, loop: WireLoop) -> None:
        for index in range(12):
            assert await channel.unary(ECHO, b"%d" % index, 5.0) == b"%d" % index
        assert channel.opened == 3
        assert [wire.http2._last_id for wire in loop.wires] == [9, 9, 3]
        assert [wire.lost for wire in loop.wires] == [True, True, False]

    go(program)


def test_waiting_calls_move_to_the_next_connection(go: Callable[..., Answers]) -> None:
    """Calls that wait for a stream of a connection that breaks begin on the next one."""

    async def program(channel: NativeChannel, loop: WireLoop) -> None:
        await channel.unary(ECHO, b"", 5.0)
        loop.wires[0].send_raw(frame(4, (3).to_bytes(2, "big") + (1).to_bytes(4, "big")))
        await asyncio.sleep(0.1)
        async with asyncio.TaskGroup() as group:
            first = group.create_task(failure(channel.unary(HANG, b"", 20.0)))
            await asyncio.sleep(0)
            others = [group.create_task(channel.unary(ECHO, b"%d" % index, 20.0)) for index in range(5)]
            await asyncio.sleep(1.0)
            loop.wires[0].break_off(ConnectionResetError(104, "Connection reset by peer"))
        assert first.result().reason == "reset"
        assert [other.result() for other in others] == [b"%d" % index for index in range(5)]
        assert channel.opened == 2

    go(program)


def test_too_many_wait(go: Callable[..., Answers], monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue for streams has an end."""
    monkeypatch.setattr(channel_module, "WAITING_MAX", 3)

    async def program(channel: NativeChannel, loop: WireLoop) -> None:
        await channel.unary(ECHO, b"", 5.0)
        loop.wires[0].send_raw(frame(4, (3).to_bytes(2, "big") + (0).to_bytes(4, "big")))
        await asyncio.sleep(0.1)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(failure(channel.unary(ECHO, b"", 1.0))) for _ in range(4)]
        assert [task.result().reason for task in tasks].count("no_stream") == 1
        assert [task.result().reason for task in tasks].count("timeout") == 3

    go(program)


@pytest.mark.parametrize(
    ("kind", "payload", "words"),
    [
        (5, bytes(4), "HTTP/2"),  # PUSH_PROMISE
        (0, b"data", "HTTP/2"),  # DATA on stream 0
        (8, bytes(4), "HTTP/2"),  # an empty WINDOW_UPDATE
    ],
)
def test_broken_protocol(go: Callable[..., Answers], kind: int, payload: bytes, words: str) -> None:
    """A peer that breaks HTTP/2 during a call loses the connection, is told why, and the next call dials anew."""

    async def program(channel: NativeChannel, loop: WireLoop) -> None:
        async with asyncio.TaskGroup() as group:
            call = group.create_task(failure(channel.unary(HANG, b"", 20.0)))
            await asyncio.sleep(1.0)
            loop.wires[0].send_raw(frame(kind, payload))
        error = call.result()
        assert (error.layer, error.reason) == (Layer.HTTP2, "protocol")
        assert words in error.detail
        assert await channel.unary(ECHO, b"x", 5.0) == b"x"
        assert channel.opened == 2

    go(program)
