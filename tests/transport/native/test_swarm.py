"""Calls of every kind against a network and a peer that misbehave at drawn moments, on virtual time."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from serviceradar_poller.config.addresses import parse_address
from serviceradar_poller.config.model import SecurityConfig
from serviceradar_poller.env import SystemClock
from serviceradar_poller.errors import CallError, GrpcCode
from serviceradar_poller.lab.http2 import Call
from serviceradar_poller.lab.tls import server_context
from serviceradar_poller.testing.peers import frame
from serviceradar_poller.testing.wires import Socket, Wire, WireLoop, run_wired
from serviceradar_poller.transport.credentials import CredentialsCache
from serviceradar_poller.transport.native import channel as channel_module
from serviceradar_poller.transport.native.channel import NativeChannel
from serviceradar_poller.transport.native.connection import READ_BUFFER_BYTES

Block = Callable[..., SecurityConfig]

CALLS, EVENTS, HORIZON_S, SEEDS = 40, 12, 30.0, 25
#: What a call may come to; anything else is a bug.
REASONS = {
    "timeout",
    "connect_timeout",
    "reset",
    "goaway",
    "refused_stream",
    "tls",
    "protocol",
    "cancelled",
    "not_found",
    "closed",
    "early_answer",
}


async def only(message: bytes) -> AsyncIterator[bytes]:
    yield message


class NoNames:
    async def resolve(self, host: str, *, timeout_s: float, urgent: bool = False) -> tuple[str, ...]:
        raise AssertionError


class Swarm:
    """One seed's peer, network and callers."""

    def __init__(self, seed: int, contexts: tuple[ssl.SSLContext | None, ssl.SSLContext | None]) -> None:
        self.chance = random.Random(seed)
        self.contexts = contexts
        self.reasons: set[str] = set()
        self.answered = 0

    def wire(self) -> Wire:
        piece = self.chance.choice([0, 0, 0, 29, 200, 5000])
        cut = self.chance.choice([None, None, None, self.chance.randrange(1, 6000)])
        return Wire(self.on_call, self.contexts[1], piece=piece, cut_after=cut)

    def on_call(self, call: Call) -> None:
        loop = asyncio.get_running_loop()
        match call.path:
            case "/t/Echo":
                loop.call_later(self.chance.choice([0.0, 0.0, 0.5, 5.0]), call.reply, call.message)
            case "/t/Stream":
                size = self.chance.choice([1, 1000, 100_000])
                call.stream(iter([b"a" * size, self.chance.random(), b"b" * size]))
            case "/t/Fail":
                call.fail(GrpcCode.NOT_FOUND, "no such thing")

    async def run(self, loop: WireLoop) -> None:
        channel = NativeChannel(
            parse_address("127.0.0.1:1"),
            server_name="",
            context=self.contexts[0],
            resolver=NoNames(),
            buffer=memoryview(bytearray(READ_BUFFER_BYTES)),
        )
        try:
            async with asyncio.TaskGroup() as group:
                callers = [group.create_task(self.caller(channel)) for _ in range(CALLS)]
                trouble = group.create_task(self.trouble(loop))
                for caller in self.chance.sample(callers, CALLS // 4):
                    loop.call_later(self.chance.random() * HORIZON_S, caller.cancel)
                await asyncio.wait({trouble, *callers})
            # The network heals: the next call succeeds, whatever was before.
            self.chance = random.Random(0)
            loop.make_wire = lambda: Wire(lambda call: call.reply(call.message), self.contexts[1])
            for wire in loop.wires:
                wire.break_off()
            assert await channel.unary("/t/Echo", b"healed", 5.0) == b"healed"
        finally:
            await channel.close()
        assert not (channel._dropped or channel._attempts or channel._waiting)
        assert channel._granted == 0
        assert not [timer for timer in loop.pending_timers() if "Connection" in repr(timer)]
        await asyncio.sleep(HORIZON_S)  # until the peer's own timers have come to an end

    async def caller(self, channel: NativeChannel) -> None:
        await asyncio.sleep(self.chance.random() * HORIZON_S)
        timeout_s = self.chance.choice([0.3, 2.0, 10.0])
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        try:
            match self.chance.choice(["echo", "echo", "echo", "fail", "stream", "half", "send"]):
                case "echo":
                    message = b"m" * self.chance.choice([0, 10, 20_000, 150_000])
                    assert await channel.unary("/t/Echo", message, timeout_s) == message
                case "fail":
                    await channel.unary("/t/Fail", b"", timeout_s)
                    raise AssertionError
                case "stream":
                    stream = channel.receive_stream("/t/Stream", lambda: b"", timeout_s)
                    first, second = await stream.read(), await stream.read()
                    assert first is not None
                    assert second is not None
                    assert (set(first), set(second), len(first)) == ({97}, {98}, len(second))
                    assert await stream.read() is None
                case "half":
                    stream = channel.receive_stream("/t/Stream", lambda: b"", timeout_s)
                    assert await stream.read() is not None
                    await stream.cancel()
                case _:
                    message = b"s" * self.chance.choice([10, 200_000])
                    assert await channel.send_stream("/t/Echo", only(message), 1, timeout_s) == message
            self.answered += 1
        except CallError as error:
            self.reasons.add(error.reason)
        assert loop.time() - began_at <= timeout_s + 0.001

    async def trouble(self, loop: WireLoop) -> None:
        for _ in range(EVENTS):
            await asyncio.sleep(self.chance.random() * HORIZON_S * 2 / EVENTS)
            if not loop.wires:
                continue
            wire = loop.wires[-1]
            if wire.lost:
                continue
            match self.chance.choice(["stall", "go_on", "break", "reset", "goaway", "one", "many", "ping"]):
                case "stall":
                    wire.stall()
                case "go_on":
                    wire.go_on()
                case "break":
                    wire.break_off()
                case "reset":
                    wire.break_off(ConnectionResetError(104, "Connection reset by peer"))
                case "goaway":
                    self.raw(wire, frame(7, (self.chance.randrange(0, 99)).to_bytes(4, "big") + bytes(4)))
                case "one":
                    self.raw(wire, frame(4, (3).to_bytes(2, "big") + (self.chance.randrange(2)).to_bytes(4, "big")))
                case "many":
                    self.raw(wire, frame(4, (3).to_bytes(2, "big") + (100).to_bytes(4, "big")))
                case _:
                    self.raw(wire, frame(6, bytes(8)))

    def raw(self, wire: Wire, data: bytes) -> None:
        if self.contexts[0] is None or wire._tls is None or wire._tls.established:
            wire.send_raw(data)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "tls"])
def test_swarm(kind: str, pki: Path, block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call ends in time, with its own answer or a failure of a known kind; then a call works; nothing is left."""

    async def dial(*args: object, **kwargs: object) -> Socket:
        await asyncio.sleep(0.1)
        return Socket()

    monkeypatch.setattr(channel_module, "dial", dial)
    contexts = (
        (None, None)
        if kind == "plain"
        else (asyncio.run(CredentialsCache(SystemClock()).ssl_context(block())), server_context(pki, "agent"))
    )
    reasons: set[str] = set()
    answered = 0
    for seed in range(SEEDS):
        swarm = Swarm(seed, contexts)
        try:
            run_wired(swarm.run, swarm.wire)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        reasons |= swarm.reasons
        answered += swarm.answered
    assert reasons <= REASONS, reasons - REASONS
    assert {"timeout", "reset", "goaway", "not_found"} <= reasons
    assert answered > SEEDS * CALLS // 5
