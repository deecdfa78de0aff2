"""Take a test's commands in a server process, and keep what the server saw. For conformance tests only."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from serviceradar_poller.testing.conformance import piece


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """
    A server that runs.

    Attributes:
        stop: Ends it and its connections.
        finish: Lets no more connections in, and ends those that there are when their calls have ended.
        goaway: Sends GOAWAY with the last stream that it is to name.
    """

    port: int
    stop: Callable[[], Awaitable[None]]
    finish: Callable[[], Coroutine[Any, Any, None]] | None = None
    goaway: Callable[[int], None] | None = None


#: Longest wait for what a test says must come; shorter than the test waits for the answer.
LONG_S: Final = 45.0
#: Starts a server: port, whether with TLS, options.
Start = Callable[[int, bool, dict[str, Any]], Awaitable[Running]]


class Desk:
    """
    What a server process saw.

    Attributes:
        active, peak: Calls of Slow and Held under way, now and at most.
        order: Their tags in the order in which they began.
        headers: The last request's header block, where the server lets one see it.
    """

    def __init__(self) -> None:
        self.active = 0
        self.peak = 0
        self.order: list[int] = []
        self.headers: dict[str, str] = {}
        self._noted: dict[tuple[str, str], asyncio.Event] = {}
        self._began = asyncio.Event()
        self._finishing: set[asyncio.Task[None]] = set()

    def note(self, event: str, tag: bytes | str) -> None:
        """Note that something happened, for whoever waits for it."""
        self._event(event, tag.decode() if isinstance(tag, bytes) else tag).set()

    @contextlib.contextmanager
    def working(self, tag: int) -> Iterator[None]:
        """Count a call while it is under way."""
        self.order.append(tag)
        self.active += 1
        self.peak = max(self.peak, self.active)
        self._began.set()
        try:
            yield
        finally:
            self.active -= 1

    @contextlib.contextmanager
    def hanging(self, tag: bytes) -> Iterator[None]:
        """Note that a call is there, and that it has ended."""
        self.note("started", tag)
        try:
            yield
        finally:
            self.note("ended", tag)

    async def pause(self, wanted: dict[str, Any]) -> None:
        """Wait as a request of Slow or Held asks for."""
        if "gate" in wanted:
            await self._event("go", wanted["gate"]).wait()
        else:
            await asyncio.sleep(wanted["delay_s"])

    async def serve(self, start: Start) -> None:
        """Obey until standard input ends."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        servers: dict[int, Running] = {}
        while line := await reader.readline():
            try:
                answer = await self._obey(msgspec.json.decode(line), start, servers)
            except Exception as error:  # noqa: BLE001  (the test fails with it)
                answer = {"error": f"{type(error).__name__}: {error}"}
            sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
            sys.stdout.buffer.flush()

    async def _obey(self, command: dict[str, Any], start: Start, servers: dict[int, Running]) -> dict[str, Any]:
        match command["do"]:
            case "start":
                server = await start(command["port"], command["tls"], command["options"])
                servers[server.port] = server
                return {"port": server.port}
            case "stop" if command["gracefully"]:
                finish = servers.pop(command["port"]).finish
                assert finish is not None
                self._finishing.add(asyncio.get_running_loop().create_task(finish()))
                return {}
            case "stop":
                await servers.pop(command["port"]).stop()
                return {}
            case "goaway":
                goaway = servers[command["port"]].goaway
                assert goaway is not None
                goaway(command["last"])
                return {}
            case "note":
                self.note(command["event"], command["tag"])
                return {}
            case "busy":
                async with asyncio.timeout(LONG_S):
                    while self.active < command["count"]:
                        self._began.clear()
                        await self._began.wait()
                return {}
            case "wait":
                async with asyncio.timeout(LONG_S):
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
    size = wanted.get("size", 8)
    for index in range(wanted["count"]):
        yield piece(index, size)
