"""A server in memory, on virtual time, for what a connection does with every kind of peer."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from serviceradar_poller.config.addresses import parse_address
from serviceradar_poller.config.model import SecurityConfig
from serviceradar_poller.env import SystemClock
from serviceradar_poller.lab.tls import server_context
from serviceradar_poller.testing.wires import Answers, Socket, Wire, WireLoop, run_wired
from serviceradar_poller.transport.credentials import CredentialsCache
from serviceradar_poller.transport.native import channel as channel_module
from serviceradar_poller.transport.native import connection as module
from serviceradar_poller.transport.native.channel import NativeChannel

Block = Callable[..., SecurityConfig]
Program = Callable[[NativeChannel, WireLoop], Coroutine[Any, Any, Any]]


class NoNames:
    async def resolve(self, host: str, *, timeout_s: float, urgent: bool = False) -> tuple[str, ...]:
        raise AssertionError


@pytest.fixture(params=["plain", "tls"])
def contexts(
    request: pytest.FixtureRequest, pki: Path, block: Block
) -> tuple[ssl.SSLContext | None, ssl.SSLContext | None]:
    """A client's and a server's; none for plaintext."""
    if request.param == "plain":
        return None, None
    return asyncio.run(CredentialsCache(SystemClock()).ssl_context(block())), server_context(pki, "agent")


@pytest.fixture
def go(
    contexts: tuple[ssl.SSLContext | None, ssl.SSLContext | None], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Answers]:
    """Run a program against a server in memory, on virtual time; afterwards nothing may be left."""

    async def dial(*args: object, **kwargs: object) -> Socket:
        await asyncio.sleep(0)
        return Socket()

    monkeypatch.setattr(channel_module, "dial", dial)

    def run(program: Program, *, answers: Answers | None = None, **wire: Any) -> Answers:
        answers = answers or Answers()

        async def main(loop: WireLoop) -> None:
            channel = NativeChannel(
                parse_address("127.0.0.1:1"),
                server_name="",
                context=contexts[0],
                resolver=NoNames(),
                buffer=memoryview(bytearray(module.READ_BUFFER_BYTES)),
            )
            try:
                await program(channel, loop)
            finally:
                await channel.close()

        run_wired(main, lambda: Wire(answers, contexts[1], **wire))
        return answers

    return run
