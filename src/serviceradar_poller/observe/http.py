"""
The HTTP server: an actor that serves the endpoints, and goes on trying where its port is taken.

Polling does not depend on it: a listener that can't be opened is told once and tried again with growing delay.
uvicorn runs inside the actor's own helper task, without its signal handlers, logging, lifespan and ticking.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import uvicorn

from serviceradar_poller.config.addresses import AddressError, ListenAddress
from serviceradar_poller.events.polling import OperatorRestart, ServerBusy, ServerFailed
from serviceradar_poller.observe.endpoints import Sources, make_app
from serviceradar_poller.observe.http_guard import KEEP_ALIVE_S, Connections
from serviceradar_poller.observe.listen import open_listener
from serviceradar_poller.otp import Actor, ExitReason

#: Delay before the next attempt to open the listener, doubled from the first to the last.
RETRY_MIN_S = 1.0
RETRY_MAX_S = 30.0
#: Answers under way at a stop have this long; they come from memory and take milliseconds.
STOP_GRACE_S = 1.0
#: Refused connections are told at once, and then so often while they go on.
BUSY_TOLD_S = 60.0


@dataclass(frozen=True, slots=True)
class Open:
    """Try to open the listener."""

    attempt: int


@dataclass(frozen=True, slots=True)
class GetAddress:
    """Ask for the address that is served, ``host:port``; empty while none is."""


class HttpServer(Actor[Open | GetAddress]):
    """
    Serve HTTP at *listen_addr*; an empty one serves nothing.

    Args:
        sources: Where the answers come from.
        emit: Takes ServerFailed, ServerBusy and OperatorRestart.
        control: Whether /tree/restart is allowed.
    """

    mailbox_limit = 16

    def __init__(
        self,
        listen_addr: str,
        *,
        sources: Sources,
        emit: Callable[[ServerFailed | ServerBusy | OperatorRestart], None],
        control: bool = False,
        retry_min_s: float = RETRY_MIN_S,
    ) -> None:
        self._listen_addr = listen_addr
        self._sources = sources
        self._emit = emit
        self._control = control
        self._retry_min_s = retry_min_s
        self._told = ""
        self._address = ""
        self._connections = Connections(count=sources.metrics.count_http_refusal, busy=self._refuse)
        self._refused = 0
        self._refused_told_s = -BUSY_TOLD_S
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    async def init(self) -> None:
        """Leave the opening to the first message: nothing here can fail or take long."""
        if self._listen_addr:
            self.send_after(0.0, Open(1))

    async def handle(self, message: Open | GetAddress) -> str | None:
        """Open the listener, or say where it is."""
        match message:
            case GetAddress():
                return self._address
            case Open(attempt):
                await self._open(attempt)
                return None

    async def terminate(self, reason: ExitReason) -> None:
        """Stop accepting, and give the answers under way STOP_GRACE_S."""
        if self._server is None or self._serving is None:
            return
        self._server.leave()
        await asyncio.wait({self._serving}, timeout=STOP_GRACE_S + 0.5)

    def _refuse(self) -> None:
        """Tell of refused connections, but not of each."""
        self._refused += 1
        now_s = asyncio.get_running_loop().time()
        if now_s - self._refused_told_s >= BUSY_TOLD_S:
            self._emit(ServerBusy(name="http", address=self._listen_addr, refused=self._refused))
            self._refused, self._refused_told_s = 0, now_s

    async def _open(self, attempt: int) -> None:
        try:
            address = ListenAddress.parse(self._listen_addr)
            listener = await open_listener(address)
        except (OSError, AddressError) as error:
            text = str(error)
            if text != self._told:
                self._told = text
                self._emit(ServerFailed(name="http", address=self._listen_addr, error=text))
            delay_s = min(self._retry_min_s * 2 ** min(attempt - 1, 10), RETRY_MAX_S)
            self.send_after(delay_s, Open(attempt + 1))
            return
        self._told = ""
        host, port = listener.getsockname()[:2]
        self._address = str(ListenAddress(str(host), int(port)))
        app = make_app(self._sources, address=address, control=self._control, emit=self._emit)
        self._server = _Server(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                loop="none",
                http=self._connections.protocol,  # type: ignore[arg-type] # is called, whatever it is
                ws="none",
                server_header=False,
                headers=[("cache-control", "no-store"), ("x-content-type-options", "nosniff")],
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=int(STOP_GRACE_S),
            )
        )
        self._serving = self.spawn(self._server.run_on(listener), name="serve")


class _Server(uvicorn.Server):
    """uvicorn's server without signals and without its ten wake-ups a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._leave = asyncio.Event()

    def leave(self) -> None:
        """Begin the stop."""
        self.should_exit = True
        self._leave.set()

    async def run_on(self, listener: socket.socket) -> None:
        """Serve on *listener* until the stop; however it ends, nothing stays open."""
        try:
            await self.serve(sockets=[listener])
        finally:
            for server in getattr(self, "servers", []):
                server.close()
            listener.close()
            for connection in list(self.server_state.connections):
                transport = getattr(connection, "transport", None)
                if transport is not None:
                    transport.abort()

    async def main_loop(self) -> None:
        """Wait for the stop."""
        await self.on_tick(0)  # makes the headers that all answers have
        await self._leave.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the program."""
        yield
