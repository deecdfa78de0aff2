"""A connection's other end in memory: a transport without a socket, and the lab's own TLS and HTTP/2 behind it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from serviceradar_poller.errors import GrpcCode
from serviceradar_poller.lab.http2 import Call, Http2Server, StreamItem
from serviceradar_poller.lab.tls import TlsEngine
from serviceradar_poller.testing.simloop import SimLoop

T = TypeVar("T")
#: Calls that Answers knows.
ECHO, HANG, SLOW, STREAM, FAIL = "/t/Echo", "/t/Hang", "/t/Slow", "/t/Stream", "/t/Fail"


class Answers:
    """What the server does with calls."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.paths: list[str] = []
        self.stream: list[StreamItem] = [b"one", b"two", b"three"]

    def __call__(self, call: Call) -> None:
        """Answer a call, or not, as its path says."""
        self.calls.append(call)
        self.paths.append(call.path)
        match call.path:
            case "/t/Echo":
                call.reply(call.message)
            case "/t/Slow":
                asyncio.get_running_loop().call_later(1.0, call.reply, call.message)
            case "/t/Stream":
                call.stream(iter(self.stream))
            case "/t/Fail":
                call.fail(GrpcCode.NOT_FOUND, "no such thing")


class Wire(asyncio.Transport):
    """
    What asyncio would put between a connection and its socket.

    Bytes reach the server, and the server's reach the connection, in the loop's next iteration.

    Args:
        piece: The server's bytes arrive so many at a time; 0: as they were sent.
        cut_after: The connection is reset after so many bytes from the server; None: never.

    Attributes:
        writes: What the connection wrote, write by write.
        received: What the connection was given, all of it.
        stalled: The socket takes nothing; set it with stall() and go_on().
        lost: The connection was told of its end.
    """

    def __init__(
        self,
        on_call: Callable[[Call], None],
        tls: ssl.SSLContext | None,
        *,
        piece: int = 0,
        cut_after: int | None = None,
    ) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._tls = TlsEngine(tls) if tls is not None else None
        self._protocol: asyncio.BufferedProtocol | None = None
        self._piece = piece
        self._cut_after = cut_after
        self._waiting = bytearray()
        self._high = 64 * 1024
        self._paused = False
        self._closing = False
        self.http2 = Http2Server(on_call=on_call, wake=self._wake, now=self._loop.time, later=self._loop.call_later)
        self.mute = False
        self.writes: list[bytes] = []
        self.received = bytearray()
        self.stalled = False
        self.waiting_max = 0
        self.lost = False

    def attach(self, protocol: asyncio.BufferedProtocol) -> None:
        """Connect."""
        self._protocol = protocol
        protocol.connection_made(self)

    # for a test

    def stall(self) -> None:
        """Let the socket take nothing more."""
        self.stalled = True

    def go_on(self) -> None:
        """Let the socket take what waits."""
        self.stalled = False
        data = bytes(self._waiting)
        self._waiting.clear()
        if data:
            self._loop.call_soon(self._to_server, data)
        if self._closing:
            self._loop.call_soon(self.break_off)
        elif self._paused and self._protocol is not None:
            self._paused = False
            self._protocol.resume_writing()

    def break_off(self, error: Exception | None = None) -> None:
        """End the connection from the other side."""
        if not self.lost:
            self._closing = self.lost = True
            self._waiting.clear()
            assert self._protocol is not None
            self._protocol.connection_lost(error)

    def half_close(self) -> None:
        """Let the server say that it sends nothing more, a FIN; it may read on, or not."""
        if self._closing:
            return
        assert self._protocol is not None
        if not self._protocol.eof_received():
            self.close()

    def abandon(self) -> None:
        """Close before anything was connected."""
        self._closing = self.lost = True

    def send_raw(self, data: bytes) -> None:
        """Let the server send bytes of HTTP/2 that it would not."""
        self._to_client(self._tls.encrypt(data) if self._tls is not None else data)

    def send_unsealed(self, data: bytes) -> None:
        """Let the peer send bytes past its TLS, if it has any."""
        self._to_client(data)

    # what asyncio has

    def write(self, data: Any) -> None:
        """Take bytes of the connection; while some wait for the socket, even after close()."""
        if not data or self.lost or (self._closing and not self._waiting):
            return
        self.writes.append(bytes(data))
        if self.stalled or self._waiting:
            self._waiting += data
            self.waiting_max = max(self.waiting_max, len(self._waiting))
            if len(self._waiting) > self._high and not self._paused and self._protocol is not None:
                self._paused = True
                self._protocol.pause_writing()
        else:
            self._loop.call_soon(self._to_server, bytes(data))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set when the connection is told to pause."""
        self._high = 64 * 1024 if high is None else high

    def get_write_buffer_size(self) -> int:
        """Return what the socket has not taken."""
        return len(self._waiting)

    def is_closing(self) -> bool:
        """Whether the connection closed it."""
        return self._closing

    def close(self) -> None:
        """Close when everything is written."""
        if not self._closing:
            self._closing = True
            if not self._waiting:
                self._loop.call_soon(self.break_off)

    def abort(self) -> None:
        """Close now."""
        self._waiting.clear()
        self._closing = True
        self._loop.call_soon(self.break_off)

    # within

    def _to_server(self, data: bytes) -> None:
        if self.mute or self.lost:
            return
        if self._tls is not None:
            try:
                data = self._tls.receive(data)
            except ssl.SSLError:
                self._to_client(self._tls.take_output())
                self._loop.call_soon(self.break_off)
                return
            self._to_client(self._tls.take_output())
        if data:
            self.http2.receive(data)
        self._wake()

    def _wake(self) -> None:
        if self._tls is not None and not self._tls.established:
            return
        while self.http2.out:
            out = bytes(self.http2.out)
            self.http2.out.clear()
            self._to_client(self._tls.encrypt(out) if self._tls is not None else out)
            self.http2.resume()
        if self.http2.closing and not self.lost:
            self._loop.call_soon(self.break_off)

    def _to_client(self, data: bytes) -> None:
        size = self._piece or len(data)
        for at in range(0, len(data), size or 1):
            self._loop.call_soon(self._deliver, data[at : at + size])

    def _deliver(self, data: bytes) -> None:
        if self._closing or self._protocol is None:
            return
        if self._cut_after is not None:
            data = data[: self._cut_after - len(self.received)]
        self.received += data
        while data and not self._closing:
            buffer = memoryview(self._protocol.get_buffer(-1))
            count = min(len(buffer), len(data))
            buffer[:count] = data[:count]
            data = data[count:]
            self._protocol.buffer_updated(count)
        if self._cut_after is not None and len(self.received) >= self._cut_after and not self._closing:
            self.break_off(ConnectionResetError(104, "Connection reset by peer"))


class Socket:
    """What stands for a connected socket; *make_wire* is who is at its other end, None for the loop's own."""

    def __init__(self, make_wire: Callable[[], Wire] | None = None) -> None:
        self.make_wire = make_wire

    def close(self) -> None:
        """Nothing is held."""


class WireLoop(SimLoop):
    """Virtual time, and connections that lead to wires."""

    def __init__(self, make_wire: Callable[[], Wire]) -> None:
        super().__init__()
        self.make_wire = make_wire
        self.wires: list[Wire] = []

    async def create_connection(self, protocol_factory: Callable[[], Any], *args: Any, **kwargs: Any) -> Any:
        """Connect to a new wire."""
        protocol = protocol_factory()
        wire = (getattr(kwargs.get("sock"), "make_wire", None) or self.make_wire)()
        self.wires.append(wire)
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            wire.abandon()
            raise
        wire.attach(protocol)
        return wire, protocol


def run_wired(main: Callable[[WireLoop], Coroutine[Any, Any, T]], make_wire: Callable[[], Wire]) -> T:
    """Run *main* on a WireLoop; nothing may be left of it: no task, no timer of ours, no connection."""
    loop = WireLoop(make_wire)
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        result = runner.run(main(loop))
        left = [task for task in asyncio.all_tasks(loop) if not task.done()]
        assert not left, left
        assert not loop.pending_timers(), loop.pending_timers()
        assert all(wire.is_closing() and wire.lost for wire in loop.wires), "a connection is left open"
    return result
