"""When a connection, or an attempt to make one, is trusted no more, and who learns of it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from serviceradar_poller.errors import CallError, Layer
from serviceradar_poller.testing.contract import failure
from serviceradar_poller.testing.peers import frame
from serviceradar_poller.testing.wires import ECHO, HANG, SLOW, STREAM, Answers, Socket, Wire, WireLoop
from serviceradar_poller.transport.native import channel as channel_module
from serviceradar_poller.transport.native.channel import NativeChannel
from serviceradar_poller.transport.native.connection import Connection

Go = Callable[..., Answers]
Contexts = tuple[ssl.SSLContext | None, ssl.SSLContext | None]


async def outcome(call: Coroutine[Any, Any, bytes]) -> str:
    try:
        await call
    except CallError as error:
        return error.reason
    return "answered"


async def limited(channel: NativeChannel, loop: WireLoop, streams: int) -> None:
    """Connect to a peer that allows so many streams."""
    await channel.unary(ECHO, b"", 5.0)
    loop.wires[0].send_raw(frame(4, (3).to_bytes(2, "big") + streams.to_bytes(4, "big")))
    await asyncio.sleep(0.1)


def test_a_call_granted_late_does_not_condemn_its_connection(go: Go) -> None:
    """A call that waited for a stream most of its time, while others were answered, leaves the connection alone."""

    async def program(channel: NativeChannel, loop: WireLoop) -> None:
        await limited(channel, loop, 2)
        async with asyncio.TaskGroup() as group:
            calls = []
            for _ in range(30):  # three calls a second, of which the peer answers two
                calls += [group.create_task(outcome(channel.unary(SLOW, b"", 2.5))) for _ in range(3)]
                await asyncio.sleep(1.0)
        assert {call.result() for call in calls} == {"timeout", "answered"}
        assert channel.opened == 1
        await asyncio.sleep(1.0)

    go(program)


@pytest.mark.parametrize(("connect_s", "opened"), [(4.0, 1), (1.0, 2)])
def test_a_call_that_waited_for_the_connect(
    go: Go, monkeypatch: pytest.MonkeyPatch, connect_s: float, opened: int
) -> None:
    """Its timeout condemns the new connection only when that was silent for half of the call's time."""

    async def dial(*args: object, **kwargs: object) -> Socket:
        await asyncio.sleep(connect_s)
        return Socket()

    monkeypatch.setattr(channel_module, "dial", dial)

    async def program(channel: NativeChannel, loop: WireLoop) -> None:
        assert (await failure(channel.unary(HANG, b"", 5.0))).reason == "timeout"
        await channel.unary(ECHO, b"", 5.0)
        assert channel.opened == opened
        # One that had all of its time on the connection needs no more.
        assert (await failure(channel.unary(HANG, b"", 0.5))).reason == "timeout"
        await channel.unary(ECHO, b"", 5.0)
        assert channel.opened == opened + 1

    go(program)


def test_whoever_connects_first_connects_all(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that wait for an attempt whose SYN was lost go on with the connection of a later one, which ends it."""
    dials = 0

    async def dial(*args: object, **kwargs: object) -> Socket:
        nonlocal dials
        dials += 1
        if dials == 1:
            await asyncio.Event().wait()
        await asyncio.sleep(0.1)
        return Socket()

    monkeypatch.setattr(channel_module, "dial", dial)

    async def program(channel: NativeChannel, loop: WireLoop) -> None:
        async with asyncio.TaskGroup() as group:
            patient = group.create_task(channel.unary(ECHO, b"patient", 30.0))
            await asyncio.sleep(0.5)
            assert (await failure(channel.unary(ECHO, b"", 2.0))).reason == "connect_timeout"
            began_at = loop.time()
            assert await channel.unary(ECHO, b"new", 5.0) == b"new"
            assert await patient == b"patient"
            assert loop.time() - began_at < 0.2
        assert not channel._attempts
        assert channel._attempt is None
        assert channel.opened == 2

    go(program)


@pytest.mark.parametrize("turns", range(12))
def test_a_stream_cancelled_while_it_waits_its_turn(go: Go, turns: int) -> None:
    """However near its turn is, after the cancel it is not begun, its reader knows at once, and the next one begins."""

    async def program(channel: NativeChannel, loop: WireLoop) -> None:
        await limited(channel, loop, 1)
        async with asyncio.TaskGroup() as group:
            first = group.create_task(channel.unary(HANG, b"", 50.0))
            await asyncio.sleep(0.1)
            stream = channel.receive_stream(HANG, lambda: b"", 30.0)
            reading = group.create_task(failure(stream.read()))
            await asyncio.sleep(0.1)
            behind = group.create_task(channel.unary(ECHO, b"behind", 5.0))
            await asyncio.sleep(0.1)
            first.cancel()
            for _ in range(turns):
                await asyncio.sleep(0)
            connection = channel._connection
            assert connection is not None
            begun = connection.session._next_id
            await stream.cancel()
            began_at = loop.time()
            assert (await reading).reason == "cancelled"
            assert await behind == b"behind"
            assert loop.time() == began_at
        assert connection.session._next_id == begun + 2  # only the one behind was begun after the cancel
        assert not connection.exchanges
        assert channel._granted == 0

    go(program)


@pytest.mark.parametrize("turns", range(12))
def test_closed_as_a_turn_comes(go: Go, turns: int) -> None:
    """A call whose turn comes while the channel is closed is told ``closed``."""

    async def program(channel: NativeChannel, loop: WireLoop) -> None:
        await limited(channel, loop, 1)
        async with asyncio.TaskGroup() as group:
            first = group.create_task(channel.unary(HANG, b"", 50.0))
            await asyncio.sleep(0.1)
            waiting = group.create_task(failure(channel.unary(HANG, b"", 5.0)))
            await asyncio.sleep(0.1)
            first.cancel()
            for _ in range(turns):
                await asyncio.sleep(0)
            await channel.close()
            assert (await waiting).reason == "closed"
        assert channel._granted == 0

    go(program)


class Busy(Wire):
    """A wire whose loop is busy with something else for two seconds when the settings have arrived."""

    skipped = False

    def _deliver(self, data: bytes) -> None:
        super()._deliver(data)
        if not self.skipped and cast("Connection", self._protocol).session.ready:
            self.skipped = True
            cast("WireLoop", self._loop).skip(2.0)


def test_time_that_ended_while_waiting(go: Go, contexts: Contexts) -> None:
    """A call whose time is over when its connection is up is not sent, and says nothing about the connection."""
    answers = Answers()

    async def program(channel: NativeChannel, loop: WireLoop) -> None:
        loop.make_wire = lambda: Busy(answers, contexts[1])
        error = await failure(channel.unary(ECHO, b"", 1.0))
        assert (error.layer, error.reason) == (Layer.DEADLINE, "timeout")
        assert await channel.unary(ECHO, b"next", 5.0) == b"next"
        assert channel.opened == 1

    go(program)
    assert [call.message for call in answers.calls] == [b"next"]


def test_time_that_ended_as_the_turn_came(go: Go) -> None:
    """A call whose turn comes in the moment in which its time ends passes the turn on."""

    async def program(channel: NativeChannel, loop: WireLoop) -> None:
        await limited(channel, loop, 1)
        async with asyncio.TaskGroup() as group:
            first = group.create_task(channel.unary(HANG, b"", 50.0))
            await asyncio.sleep(0.1)
            loop.call_at(loop.time() + 1.0, first.cancel)
            late = group.create_task(failure(channel.unary(ECHO, b"late", 1.0)))
            await asyncio.sleep(0)
            behind = group.create_task(channel.unary(ECHO, b"behind", 5.0))
            assert (await late).reason == "timeout"
            assert await behind == b"behind"
        assert channel._granted == 0

    answers = go(program)
    assert b"late" not in [call.message for call in answers.calls]


@pytest.mark.parametrize("turns", range(25))
def test_an_attempt_that_is_closed_at_any_turn_is_forgotten(go: Go, turns: int) -> None:
    """Also one that is cancelled before its task's first step leaves nothing with the channel."""

    async def program(channel: NativeChannel, loop: WireLoop) -> None:
        async with asyncio.TaskGroup() as group:
            calling = group.create_task(failure(channel.unary(HANG, b"", 5.0)))
            for _ in range(turns):
                await asyncio.sleep(0)
            await channel.close()
            assert not channel._attempts
            assert (await calling).reason == "closed"

    go(program)


class Pushy(Wire):
    """A server that breaks HTTP/2 right behind its settings."""

    pushed = False

    def _wake(self) -> None:
        greeting = bool(self.http2.out) and (self._tls is None or self._tls.established)
        super()._wake()
        if greeting and not self.pushed:
            self.pushed = True
            self.send_raw(frame(5, bytes(4)))


def test_a_connection_lost_as_it_is_ready_says_why(go: Go, contexts: Contexts) -> None:
    """A peer that breaks HTTP/2 right behind its settings is told from one that resets the connection."""

    async def program(channel: NativeChannel, loop: WireLoop) -> None:
        loop.make_wire = lambda: Pushy(Answers(), contexts[1])
        error = await failure(channel.unary(ECHO, b"", 5.0))
        assert (error.layer, error.reason) == (Layer.HTTP2, "protocol")
        assert "PUSH_PROMISE" in error.detail

    go(program)


def test_calls_do_not_pile_up_at_a_peer_that_reads_nothing(go: Go) -> None:
    """One that says something now and then but takes nothing is given up by a call that could never be sent."""

    async def program(channel: NativeChannel, loop: WireLoop) -> None:
        await channel.unary(ECHO, b"", 5.0)
        wire = loop.wires[0]
        connection = channel._connection
        assert connection is not None
        wire.stall()
        sign_of_life = frame(8, (1).to_bytes(4, "big"))
        async with asyncio.TaskGroup() as group:
            large = group.create_task(failure(channel.unary(ECHO, bytes(400_000), 5_000.0)))
            await asyncio.sleep(0.1)
            assert connection.paused
            buffered = connection.session.buffered_bytes
            calls = []
            for _ in range(2000):
                calls.append(group.create_task(outcome(channel.unary(ECHO, bytes(1000), 600.0))))
                await asyncio.sleep(0.25)
                wire.send_raw(sign_of_life)
            assert connection.session.buffered_bytes <= buffered
            assert channel.opened == 1
            await asyncio.wait({calls[0]})
            assert await channel.unary(ECHO, b"next", 5.0) == b"next"
            assert channel.opened == 2
            assert not large.done()
            large.cancel()
        assert [call.result() for call in calls] == ["timeout", *["answered"] * 1999]
        await asyncio.sleep(0.1)
        assert wire.lost

    go(program)


def test_calls_that_waited_for_the_socket_go_on(go: Go) -> None:
    """When the socket takes something again, those who wait to begin have their turn."""

    async def program(channel: NativeChannel, loop: WireLoop) -> None:
        await channel.unary(ECHO, b"", 5.0)
        wire = loop.wires[0]
        wire.stall()
        async with asyncio.TaskGroup() as group:
            large = group.create_task(channel.unary(ECHO, bytes(400_000), 50.0))
            await asyncio.sleep(0.1)
            small = [group.create_task(channel.unary(ECHO, b"%d" % index, 50.0)) for index in range(5)]
            stream = channel.receive_stream(STREAM, lambda: b"", 50.0)
            reading = group.create_task(stream.read())
            await asyncio.sleep(1.0)
            wire.go_on()
        assert large.result() == bytes(400_000)
        assert [call.result() for call in small] == [b"%d" % index for index in range(5)]
        assert reading.result() == b"one"
        await stream.cancel()
        assert channel.opened == 1

    go(program)


class Breaking(Wire):
    """A wire that breaks at the first of the writes that a test is about."""

    breaking = False
    in_vain = 0

    def write(self, data: Any) -> None:
        if not self.breaking:
            super().write(data)
        elif self.is_closing():
            self.in_vain += 1
        else:
            self._closing = True
            self._loop.call_soon(self.break_off, ConnectionResetError(104, "Connection reset by peer"))


def test_writing_ends_where_the_socket_broke(go: Go, contexts: Contexts) -> None:
    """Of a large request no further record is made once the socket has broken."""

    async def program(channel: NativeChannel, loop: WireLoop) -> None:
        wire = Breaking(Answers(), contexts[1])
        loop.make_wire = lambda: wire
        await channel.unary(ECHO, b"", 5.0)
        # A large window, so that all of the request is to be written at once.
        wire.send_raw(frame(4, (4).to_bytes(2, "big") + (2**31 - 1).to_bytes(4, "big")))
        wire.send_raw(frame(8, (2**30).to_bytes(4, "big")))
        await asyncio.sleep(0.1)
        wire.breaking = True
        assert (await failure(channel.unary(ECHO, bytes(3_000_000), 50.0))).reason == "reset"
        assert wire.in_vain == 0

    go(program)


def test_any_time_is_bounded(go: Go) -> None:
    """A stream that may take for ever is begun like any other call."""

    async def program(channel: NativeChannel, loop: WireLoop) -> None:
        assert await channel.unary(ECHO, b"x", float("inf")) == b"x"
        stream = channel.receive_stream(STREAM, lambda: b"", float("inf"))
        assert [await stream.read() for _ in range(4)] == [b"one", b"two", b"three", None]

    go(program)
