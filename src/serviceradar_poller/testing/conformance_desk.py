"""Take a test's commands in a server process, and keep what the server saw. For conformance tests only."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec

Stop = Callable[[], Awaitable[None]]
#: Starts a server: port, whether with TLS, options; returns its port and what stops it.
Start = Callable[[int, bool, dict[str, Any]], Awaitable[tuple[int, Stop]]]


class Desk:
    """
    What a server process saw.

    Attributes:
        active, peak: Calls of Slow under way, now and at most.
        order: Their tags in the order in which they began.
    """

    def __init__(self) -> None:
        self.active = 0
        self.peak = 0
        self.order: list[int] = []
        self._noted: dict[tuple[str, str], asyncio.Event] = {}

    def note(self, event: str, tag: bytes | str) -> None:
        """Note that something happened, for whoever waits for it."""
        self._event(event, tag.decode() if isinstance(tag, bytes) else tag).set()

    @contextlib.contextmanager
    def working(self, tag: int) -> Iterator[None]:
        """Count a call while it is under way."""
        self.order.append(tag)
        self.active += 1
        self.peak = max(self.peak, self.active)
        try:
            yield
        finally:
            self.active -= 1

    async def serve(self, start: Start) -> None:
        """Obey until standard input ends."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        stops: dict[int, Stop] = {}
        while line := await reader.readline():
            try:
                answer = await self._obey(msgspec.json.decode(line), start, stops)
            except Exception as error:  # noqa: BLE001  (the test fails with it)
                answer = {"error": f"{type(error).__name__}: {error}"}
            sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
            sys.stdout.buffer.flush()

    async def _obey(self, command: dict[str, Any], start: Start, stops: dict[int, Stop]) -> dict[str, Any]:
        match command["do"]:
            case "start":
                port, stop = await start(command["port"], command["tls"], command["options"])
                stops[port] = stop
                return {"port": port}
            case "stop":
                await stops.pop(command["port"])()
                return {}
            case "wait":
                async with asyncio.timeout(10.0):
                    await self._event(command["event"], command["tag"]).wait()
                return {}
            case "stats":
                answer = {"peak": self.peak, "order": self.order}
                self.peak, self.order = self.active, []
                return answer
            case other:
                raise ValueError(other)

    def _event(self, event: str, tag: str) -> asyncio.Event:
        return self._noted.setdefault((event, tag), asyncio.Event())


def pieces(request: bytes) -> Iterator[bytes]:
    """Yield the messages that a request of Stream or Broken asks for."""
    wanted = msgspec.json.decode(request)
    filler = b"x" * (wanted.get("size", 8) - 8)
    for index in range(wanted["count"]):
        yield index.to_bytes(8, "big") + filler
