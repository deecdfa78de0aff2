"""Stand between a client and a server: cut, stall or crumble what they say. For conformance tests only."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from serviceradar_poller.testing.peers import reset

_READ_BYTES = 64 * 1024


class Way(enum.Enum):
    """Which way bytes go."""

    UP = "to the server"
    DOWN = "to the client"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """
    Where a connection ends.

    Attributes:
        offset_bytes: So many bytes of *way* are passed on, and not one more.
        reset: By RST, both ways; else by FIN.
    """

    way: Way
    offset_bytes: int
    reset: bool


class Proxy:
    """
    A TCP proxy; an async context manager that leaves nothing behind.

    Attributes:
        cut: Where the next connections end; None: nowhere.
        piece_bytes: What is passed on at a time; 0: as it comes.
        pause_s: Waited after each piece; with 0 the others of the loop have their turn only.
        passed: Bytes of the latest connection, by way.
        connections: How many there were.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[asyncio.Event] = set()
        self._closing = False
        self.cut: Cut | None = None
        self.piece_bytes = 0
        self.pause_s = 0.0
        self.passed = dict.fromkeys(Way, 0)
        self.connections = 0
        self.address = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._handle, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self._closing = True
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        # A socket is closed in the iteration after its transport.
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    def freeze(self) -> None:
        """Pass nothing on any more on the connections that there are; they stay open."""
        for thawed in self._open:
            thawed.clear()

    async def _handle(self, client_reader: asyncio.StreamReader, client_writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        loop = asyncio.get_running_loop()
        passed = self.passed = dict.fromkeys(Way, 0)
        cut = self.cut
        thawed = asyncio.Event()
        thawed.set()
        self._open.add(thawed)
        writers = [client_writer]
        pumps: set[asyncio.Task[None]] = set()
        try:
            host, _, port = self._target.rpartition(":")
            server_reader, server_writer = await asyncio.open_connection(host, int(port))
            writers.append(server_writer)
            for way, reader, writer in (
                (Way.UP, client_reader, server_writer),
                (Way.DOWN, server_reader, client_writer),
            ):
                limit = cut.offset_bytes if cut is not None and cut.way is way else None
                pumps.add(loop.create_task(self._pump(way, reader, writer, limit, passed, thawed)))
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        except (asyncio.CancelledError, OSError):
            pass  # whoever cancelled waits for the end of this task, and there is nobody else to tell
        finally:
            for pump in pumps:
                pump.cancel()
            for writer in writers:
                if cut is not None and cut.reset:
                    reset(writer)
                elif self._closing:
                    writer.transport.abort()
                else:
                    writer.close()
            self._open.discard(thawed)
            self._tasks.discard(task)

    async def _pump(
        self,
        way: Way,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        limit: int | None,
        passed: dict[Way, int],
        thawed: asyncio.Event,
    ) -> None:
        """Pass on until an end: the sender's, the receiver's or the limit's."""
        with contextlib.suppress(OSError):
            while limit is None or passed[way] < limit:
                data = await reader.read(_READ_BYTES)
                if not data:
                    return
                if limit is not None:
                    data = data[: limit - passed[way]]
                size = self.piece_bytes or len(data)
                for begin in range(0, len(data), size):
                    await thawed.wait()
                    piece = data[begin : begin + size]
                    writer.write(piece)
                    passed[way] += len(piece)
                    await writer.drain()
                    if self.piece_bytes:
                        # The receiver has read it after two: it runs behind this one in the next iteration of the loop.
                        await asyncio.sleep(self.pause_s)
                        await asyncio.sleep(0)
