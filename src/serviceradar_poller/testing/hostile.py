"""
Let a peer send anything to a channel with calls under way, beside an honest peer on the same loop, on virtual time.

The hostile peer's server hears and never answers: all that it sends is the script's. Calls of every kind are made to
it, each a few times, so that what breaks a connection is followed by another connection, which gets the rest of the
script. What must hold is asserted all along: calls end in time and in CallError, nothing is raised anywhere else, the
honest channel's calls are answered at once, memory is bounded, and after the peer has healed the channel works.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from unittest import mock

from serviceradar_poller.config.addresses import parse_address
from serviceradar_poller.errors import CallError, GrpcCode
from serviceradar_poller.lab.http2 import Call
from serviceradar_poller.testing.http2_frames import SETTINGS_ACK, settings
from serviceradar_poller.testing.http2_play import Step
from serviceradar_poller.testing.wires import Socket, Wire, WireLoop, run_wired
from serviceradar_poller.transport.failures import DETAIL_CHARACTERS_MAX
from serviceradar_poller.transport.native import channel as channel_module
from serviceradar_poller.transport.native.channel import SEND_AHEAD_BYTES_MAX, NativeChannel
from serviceradar_poller.transport.native.connection import READ_BUFFER_BYTES, WRITE_BUFFER_BYTES_MAX
from serviceradar_poller.transport.native.tls import RECORD_BYTES_MAX

T = TypeVar("T")

#: What a call to a hostile peer may come to; anything else is a bug.
REASONS: Final = {
    "timeout",
    "connect_timeout",
    "reset",
    "stream_reset",
    "goaway",
    "refused_stream",
    "tls",
    "protocol",
    "too_large",
    "early_answer",
    *(code.name.lower() for code in GrpcCode if code is not GrpcCode.OK),
}
GREETING: Final = settings((3, 6), (4, 65_535)) + SETTINGS_ACK
#: How late a call may end, in virtual time.
LATE_S_MAX: Final = 0.001
#: Timeouts of a caller's calls, one after the other.
TIMEOUTS_S: Final = (1.0, 0.5, 0.7)
#: Within it, calls that waited for a connection have begun; a peer that doesn't greet doesn't wait for them either.
_BEGIN_S: Final = 0.001
_HOSTILE_PORT, _HONEST_PORT = 1, 2
_CHUNK = b"c" * 30_000


@dataclass(frozen=True, slots=True)
class Unsealed:
    """Bytes that the peer sends past its TLS."""

    data: bytes


#: What the peer sends, seconds that it waits, or what the network does: ``stall``, ``go_on``, ``break``, ``reset``.
Act = Step | Unsealed | float | str


@dataclass(frozen=True, slots=True)
class Contexts:
    """TLS of the client, of the honest server and of the hostile one; None for plaintext."""

    client: ssl.SSLContext | None = None
    honest: ssl.SSLContext | None = None
    hostile: ssl.SSLContext | None = None


PLAIN: Final = Contexts()
#: What a step of the client's own is in a script, where the client does as it likes.
_ACTS: Final[dict[str, Act]] = {"send": "stall", "finish": "go_on", "close": "break", "eof": "reset"}


def script_of(steps: Sequence[Step]) -> list[Act]:
    """Turn a sequence for a session into a script for a channel's peer: it sends the same, and pauses in between."""
    return [step if step.op in ("frame", "bytes") else _ACTS.get(step.op, 0.05) for step in steps]


def play(steps: Sequence[Step]) -> None:
    """Play a sequence against a channel; asserts what must hold."""
    Hostility(script_of(steps), greeted=False).run()


class _LightWire(Wire):
    """A wire that keeps nothing of what went by, so that memory can be measured."""

    received_bytes = 0

    def write(self, data: Any) -> None:
        super().write(data)
        self.writes.clear()

    def _deliver(self, data: bytes) -> None:
        super()._deliver(data)
        self.received_bytes += len(self.received)
        self.received.clear()


class _HostileWire(_LightWire):
    """A wire whose server hears, and says nothing of its own accord but in TLS."""

    def __init__(self, tls: ssl.SSLContext | None, on_open: Callable[[_HostileWire], None]) -> None:
        self._on_open: Callable[[_HostileWire], None] | None = on_open
        super().__init__(lambda call: None, tls)

    def _wake(self) -> None:
        self.http2.out.clear()
        on_open = self._on_open
        if on_open is not None and (self._tls is None or self._tls.established):
            self._on_open = None
            on_open(self)


class _NoNames:
    async def resolve(self, host: str, *, timeout_s: float, urgent: bool = False) -> tuple[str, ...]:
        raise AssertionError(host, timeout_s)


class Hostility:
    """
    One script, and the calls that it meets.

    Args:
        greeted: Each connection begins with settings as they should be.

    Attributes:
        reasons: What calls to the hostile peer came to; ``ok`` for an answer.
        honest_calls: How many calls the honest peer answered meanwhile.
    """

    def __init__(self, script: Sequence[Act], contexts: Contexts = PLAIN, *, greeted: bool = True) -> None:
        self.script = script
        self.contexts = contexts
        self.greeted = greeted
        self.reasons: Counter[str] = Counter()
        self.honest_calls = 0
        self._wires: list[_HostileWire] = []
        self._opened: asyncio.Event = asyncio.Event()
        self._faults: list[dict[str, Any]] = []

    def run(self) -> None:
        """Play the script to its end, or until all calls have ended; asserts what must hold."""
        with mock.patch.object(channel_module, "dial", self._dial):
            run_wired(self._main, self._hostile_wire)

    async def _main(self, loop: WireLoop) -> None:
        loop.set_exception_handler(lambda _, context: self._faults.append(context))
        buffer = memoryview(bytearray(READ_BUFFER_BYTES))
        hostile, honest = (self._channel(port, buffer) for port in (_HOSTILE_PORT, _HONEST_PORT))
        try:
            async with asyncio.TaskGroup() as group:
                peer = group.create_task(self._peer(hostile))
                beside = group.create_task(self._honest_caller(honest))
                callers = [
                    group.create_task(self._caller(hostile, call))
                    for call in (_unary, _slow_stream, _client_stream, _large_unary)
                ]
                await asyncio.wait(callers)
                peer.cancel()
                beside.cancel()
            loop.make_wire = self._honest_wire
            for wire in self._wires:
                wire.break_off()
            await asyncio.sleep(0.01)  # an attempt to connect that was under way has failed
            assert await hostile.unary("/t/Echo", b"healed", 5.0) == b"healed"
        finally:
            await hostile.close()
            await honest.close()
        assert self.honest_calls, "the honest peer was never asked"
        assert not self._faults, self._faults
        for channel in (hostile, honest):
            assert not (channel._dropped or channel._attempts or channel._waiting or channel._granted)

    def _channel(self, port: int, buffer: memoryview) -> NativeChannel:
        return NativeChannel(
            parse_address(f"127.0.0.1:{port}"),
            server_name="",
            context=self.contexts.client,
            resolver=_NoNames(),
            buffer=buffer,
        )

    # the peers

    def _hostile_wire(self) -> Wire:
        self._opened.clear()
        wire = _HostileWire(self.contexts.hostile, self._on_open)
        self._wires.append(wire)
        return wire

    def _honest_wire(self) -> Wire:
        return _LightWire(_answer, self.contexts.honest)

    async def _dial(self, host: str, port: int, **kwargs: object) -> Socket:
        del host, kwargs
        await asyncio.sleep(0)
        return Socket(self._honest_wire if port == _HONEST_PORT else None)

    def _on_open(self, wire: _HostileWire) -> None:
        if self.greeted:
            wire.send_raw(GREETING)
        self._opened.set()

    async def _peer(self, channel: NativeChannel) -> None:
        for act in self.script:
            while not self._opened.is_set() or self._wires[-1].is_closing():
                self._opened.clear()
                await self._opened.wait()
                if self.greeted:
                    await asyncio.sleep(_BEGIN_S)
            wire = self._wires[-1]
            match act:
                case float():
                    await asyncio.sleep(act)
                case Step():
                    wire.send_raw(act.sent)
                case Unsealed():
                    wire.send_unsealed(act.data)
                case "stall":
                    wire.stall()
                case "go_on":
                    wire.go_on()
                case "break":
                    wire.break_off()
                case "reset":
                    wire.break_off(ConnectionResetError(104, "Connection reset by peer"))
                case _:
                    raise AssertionError(act)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            self._check(channel, wire)

    def _check(self, channel: NativeChannel, wire: _HostileWire) -> None:
        """Assert that no more is kept than the limits allow."""
        assert wire.waiting_max <= WRITE_BUFFER_BYTES_MAX + 2 * RECORD_BYTES_MAX, "the socket's buffer is too full"
        connection = channel._connection
        if connection is None:
            return
        session, limits = connection.session, connection.session.limits
        bound = limits.frame_bytes_max + 9 + limits.header_block_bytes_max + 4096 + limits.replies_max * 40
        for call in session._calls.values():
            asked = call._wanted - call._taken
            bound += limits.stream_window_bytes + asked * (limits.message_bytes_max + 5)
            bound += SEND_AHEAD_BYTES_MAX + 2 * len(_CHUNK) + 600
        assert session.buffered_bytes <= min(bound, wire.received_bytes + 500_000), "more is kept than the limits allow"

    # the callers

    async def _caller(self, channel: NativeChannel, call: Callable[[NativeChannel, float], Awaitable[None]]) -> None:
        for timeout_s in TIMEOUTS_S:
            failure: CallError | None = None
            try:
                await call(channel, timeout_s)
            except CallError as error:
                failure = error
            assert failure is None or failure.reason in REASONS, failure
            assert failure is None or len(failure.detail) <= DETAIL_CHARACTERS_MAX, failure
            self.reasons["ok" if failure is None else failure.reason] += 1
            await asyncio.sleep(0.01)

    async def _honest_caller(self, channel: NativeChannel) -> None:
        size = 0
        while True:
            size = (size * 3 + 1) % 50_000
            message = size.to_bytes(4, "big") * size
            assert await _within(0.0, channel.unary("/t/Echo", message, 1.0)) == message
            stream = channel.receive_stream("/t/Stream", lambda: b"", 1.0)
            for index in range(3):
                assert await _within(0.0, stream.read()) == bytes((index,)) * 20_000
            assert await _within(0.0, stream.read()) is None
            self.honest_calls += 2
            await asyncio.sleep(0.05)


def _answer(call: Call) -> None:
    if call.path == "/t/Stream":
        call.stream(iter([bytes((index,)) * 20_000 for index in range(3)]))
    else:
        call.reply(call.message)


async def _within(timeout_s: float, awaitable: Awaitable[T]) -> T:
    """Await something that has to end in time, by itself, however it ends."""
    timeout = asyncio.timeout(timeout_s + LATE_S_MAX)
    try:
        async with timeout:
            return await awaitable
    finally:
        assert not timeout.expired(), "a call did not end in time"


async def _unary(channel: NativeChannel, timeout_s: float) -> None:
    await _within(timeout_s, channel.unary("/t/Unary", bytes(20), timeout_s))


async def _large_unary(channel: NativeChannel, timeout_s: float) -> None:
    await _within(timeout_s, channel.unary("/t/Large", bytes(70_000), timeout_s))


async def _slow_stream(channel: NativeChannel, timeout_s: float) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    stream = channel.receive_stream("/t/Stream", lambda: b"", timeout_s)
    try:
        # What has arrived may be read when time is over, but a peer can send much of little.
        while loop.time() < deadline + 1.0:
            if await _within(max(deadline - loop.time(), 0.0), stream.read()) is None:
                return
            await asyncio.sleep(0.15)
    finally:
        await stream.cancel()


async def _client_stream(channel: NativeChannel, timeout_s: float) -> None:
    await _within(timeout_s, channel.send_stream("/t/Send", _chunks(), 5, timeout_s))


async def _chunks() -> AsyncIterator[bytes]:
    for _ in range(5):
        yield _CHUNK
