"""
Keep clients of the HTTP listener from holding its connections: each has its time, and the oldest makes way.

uvicorn bounds how long a connection is idle between two requests, but neither how long a request may take to come nor
how long an answer may wait to be taken. So every connection here is *waiting* (for a request, or for the rest of one)
or *answering*, and has its time for either. Where there are as many connections as there may be, a new one takes
the place of the one that has waited for longest, or else of one whose answer should have been taken long ago; where
there is none of these, the new one is refused. All that is refused or ended is counted, and the last of these told.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

import h11
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

#: Connections at once.
CONNECTIONS_MAX: Final = 64
#: From the connect, or from its first byte on a connection that was idle, until a request is there in full.
REQUEST_S_MAX: Final = 5.0
#: For making an answer, which takes milliseconds, and for the client to take it; and then for what is left of it.
ANSWER_S_MAX: Final = 10.0
#: An answer that is not taken for so long makes way for a new connection.
ANSWER_EVICT_S: Final = 2.0
#: An idle connection is closed after this; longer than the usual scrape interval would only hold memory.
KEEP_ALIVE_S: Final = 5

_REFUSAL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\n"
    b"content-type: text/plain; charset=utf-8\r\nconnection: close\r\ncontent-length: 21\r\n\r\n"
    b"too many connections\n"
)
#: What any client can make it warn of is counted, not logged; its errors are told.
_LOGGER: Final = logging.getLogger("uvicorn.error.http")
_LOGGER.setLevel(logging.ERROR)


class Connections:
    """
    The connections of one listener; a constructor of uvicorn's protocols.

    Args:
        count: Called for each connection or request that is refused, or ended before its time.
        busy: Called for each connection that is refused because all others have their answer under way.
    """

    def __init__(self, *, count: Callable[[], None], busy: Callable[[], None]) -> None:
        self.count = count
        self.busy = busy
        self.open: set[GuardedHttp] = set()

    def protocol(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> GuardedHttp:
        """Return the protocol of a new connection."""
        return GuardedHttp(self, config, server_state, app_state, _loop)

    def make_room(self, now_s: float) -> bool:
        """Have a place for one more; False where there is none."""
        if len(self.open) < CONNECTIONS_MAX:
            return True
        going = [each for each in self.open if each.may_go(now_s)]
        if not going:
            return False
        min(going, key=lambda each: (each.answering, each.since_s)).end()
        return True


class GuardedHttp(H11Protocol):
    """
    One connection, which has its time for everything.

    Attributes:
        answering: A request is there, and its answer is not over.
        since_s: When it began to be so, in the loop's time.
    """

    def __init__(
        self,
        connections: Connections,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._connections = connections
        self._idle = True  # nothing of a request has come
        self._timer: asyncio.TimerHandle | None = None
        self.logger = _LOGGER
        self.answering = False
        self.since_s = 0.0

    def may_go(self, now_s: float) -> bool:
        """Whether it may be ended for another one."""
        return not self.answering or now_s - self.since_s >= ANSWER_EVICT_S

    def end(self) -> None:
        """End it at once, whatever is under way; its place is free."""
        self._connections.count()
        self._connections.open.discard(self)
        self.transport.abort()

    # what asyncio and uvicorn call

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take it in, or refuse it."""
        assert isinstance(transport, asyncio.Transport)
        super().connection_made(transport)
        if not self._connections.make_room(self.loop.time()):
            self._connections.count()
            self._connections.busy()
            transport.write(_REFUSAL)
            transport.close()
            return
        self._connections.open.add(self)
        self._enter(answering=False)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._connections.open.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on; the first byte of a request begins its time."""
        if self.transport.is_closing():
            return
        if self._idle:
            self._idle = False
            self._enter(answering=False)
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        """Go on with the next request; what the client has not taken of the answer has its time too."""
        self._idle = True
        self._enter(answering=False, limit_s=ANSWER_S_MAX)
        super().on_response_complete()
        self._look()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self._connections.count()
        super().send_400_response(msg)

    def shutdown(self) -> None:
        """Begin the stop; nothing is said on a connection that is being closed."""
        if not self.transport.is_closing():
            super().shutdown()

    # inside

    def _look(self) -> None:
        """See what it does now."""
        answering = self.conn.their_state not in (h11.IDLE, h11.SEND_BODY)
        if self.conn.their_state is h11.SEND_BODY:
            self._idle = False
        if answering and not self.answering:
            self._enter(answering=True)

    def _enter(self, *, answering: bool, limit_s: float | None = None) -> None:
        self.answering = answering
        self.since_s = self.loop.time()
        if limit_s is None:
            limit_s = ANSWER_S_MAX if answering else REQUEST_S_MAX
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(limit_s, self.end)
