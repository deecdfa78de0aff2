from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from serviceradar_poller.config.model import SecurityConfig
from serviceradar_poller.errors import Layer
from serviceradar_poller.testing.conformance import SERVICE, PeerProcess
from serviceradar_poller.testing.conformance_client import AMPLE_S, channel_to, drive, messages
from serviceradar_poller.testing.contract import failure
from serviceradar_poller.transport.native.channel import NativeChannel

#: More than the peers' windows.
MANY = 1000
#: The server is told so, and does not get to it: a wait for what it notes ends long before.
FAR_S = 600.0

Form = Callable[[NativeChannel, str, float], Coroutine[Any, Any, object]]


def unary(channel: NativeChannel, tag: str, timeout_s: float) -> Coroutine[Any, Any, object]:
    return channel.unary(f"{SERVICE}Hang", tag.encode(), timeout_s)


async def down(channel: NativeChannel, tag: str, timeout_s: float) -> None:
    """Read a stream that gives one message and no more."""
    stream = channel.receive_stream(f"{SERVICE}HangDown", tag.encode, timeout_s)
    assert await stream.read() == tag.encode()
    await messages(stream)


def up(channel: NativeChannel, tag: str, timeout_s: float) -> Coroutine[Any, Any, object]:
    """Send a stream that is complete, and is not answered."""

    async def parts() -> AsyncIterator[bytes]:
        yield tag.encode()

    return channel.send_stream(f"{SERVICE}HangUp", parts(), 1, timeout_s)


def up_blocked(channel: NativeChannel, tag: str, timeout_s: float) -> Coroutine[Any, Any, object]:
    """Send a stream of which the server takes what its window allows."""

    async def parts() -> AsyncIterator[bytes]:
        yield tag.encode()
        for _ in range(MANY):
            yield b"x" * 100_000

    return channel.send_stream(f"{SERVICE}HangUp", parts(), MANY + 1, timeout_s)


FORMS = pytest.mark.parametrize("form", [unary, down, up, up_blocked])


@pytest.mark.slow
@FORMS
def test_deadline(peer: PeerProcess, mtls: SecurityConfig, form: Form) -> None:
    """
    A call of any form that is not answered ends at its deadline on both sides, and the connection goes on.

    Another call is answered in the meantime: a connection on which nothing is heard would be given up. Which side ends
    the call at the server can't be told: both clocks run out at once.
    """
    address = peer.start(tls=True)
    tag = f"deadline {address}"

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with channel_to(address, mtls) as channel:
            await channel.unary(f"{SERVICE}Unary", b"", AMPLE_S)
            began_at = loop.time()
            task = asyncio.create_task(failure(form(channel, tag, 0.8)))
            await asyncio.sleep(0)
            assert await channel.unary(f"{SERVICE}Unary", b"y", AMPLE_S) == b"y"
            error = await task
            assert 0.78 <= loop.time() - began_at < AMPLE_S / 2
            assert (error.layer, error.reason) == (Layer.DEADLINE, "timeout")
            await peer.wait_for("ended", tag)
            assert await channel.unary(f"{SERVICE}Unary", b"x", AMPLE_S) == b"x"
            assert channel.opened == 1

    drive(main)


@pytest.mark.slow
@FORMS
def test_cancellation(peer: PeerProcess, mtls: SecurityConfig, form: Form) -> None:
    """
    A cancelled call of any form ends at the server too, and the connection goes on.

    Its deadline is far off: it is our RST_STREAM that the server heard of it by.
    """
    address = peer.start(tls=True)
    tag = f"cancel {address}"

    async def main() -> None:
        async with channel_to(address, mtls) as channel:
            task = asyncio.create_task(form(channel, tag, FAR_S))
            await peer.wait_for("started", tag)
            assert not task.done()
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled()
            await peer.wait_for("ended", tag)
            assert await channel.unary(f"{SERVICE}Unary", b"x", AMPLE_S) == b"x"
            assert channel.opened == 1

    drive(main)


def test_stream_given_up(peer: PeerProcess, mtls: SecurityConfig) -> None:
    """A stream that is cancelled while nobody awaits it ends at the server, long before its deadline."""
    address = peer.start(tls=True)
    tag = f"given up {address}"

    async def main() -> None:
        async with channel_to(address, mtls) as channel:
            stream = channel.receive_stream(f"{SERVICE}HangDown", tag.encode, FAR_S)
            assert await stream.read() == tag.encode()
            await peer.wait_for("started", tag)
            await stream.cancel()
            await peer.wait_for("ended", tag)
            assert (await failure(stream.read())).reason == "cancelled"
            assert await channel.unary(f"{SERVICE}Unary", b"x", AMPLE_S) == b"x"
            assert channel.opened == 1

    drive(main)
