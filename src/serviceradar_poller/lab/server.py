"""
Serve one simulated agent's port: listener and connections, with the faults that a socket can have.

The sockets are ours, not a transport's, so that they can refuse, reset, fall silent and come back. All on one loop.

    listener ── accept ──► Connection ── bytes ──► TlsEngine ── bytes ──► Http2Server ── Call ──► on_call
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Callable

from serviceradar_poller.lab.faults import Fault, FaultKind
from serviceradar_poller.lab.http2 import Call, Http2Server
from serviceradar_poller.lab.tls import TlsEngine

#: Connections that one agent holds at a time; more are closed at once and counted.
CONNECTIONS_MAX = 64
#: Waiting for accept, per listener; beyond it the kernel drops SYNs and a client loses a second.
BACKLOG = 1024
#: Connections accepted before others get their turn.
ACCEPTS_PER_TURN = 64
#: After the process ran out of descriptors, a listener tries again this much later.
ACCEPT_PAUSE_S = 0.5
_READ_BYTES = 64 * 1024
_LINGER_RESET = struct.pack("ii", 1, 0)
_GARBAGE = b"SSH-2.0-OpenSSH_9.6\r\n"


class AgentServer:
    """
    One port on loopback.

    A refusing server keeps its port: the listening socket stops listening, so that connects are refused,
    and nobody else can bind it.

    Attributes:
        counts: accepted, over_limit, handshakes, handshake_errors, protocol_errors, goaways, accept_errors, resets.
        last_error: The last thing that went wrong on a connection, in words.
    """

    __slots__ = (
        "_fault",
        "_flap",
        "_listener",
        "_loop",
        "_pause",
        "connections",
        "counts",
        "last_error",
        "listening",
        "on_call",
        "port",
        "tls",
    )

    def __init__(self, *, port: int, tls: ssl.SSLContext | None, on_call: Callable[[Call], None]) -> None:
        """
        Bind and listen; port 0 takes a free one.

        Raises:
            OSError: The port is taken.
        """
        self._loop = asyncio.get_running_loop()
        self.tls = tls
        self.on_call = on_call
        self.counts: Counter[str] = Counter()
        self.last_error = ""
        self.connections: set[Connection] = set()
        self.listening = False
        self._fault: Fault | None = None
        self._flap: asyncio.TimerHandle | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._listener = _bind(port)
        self.port: int = self._listener.getsockname()[1]
        self._listen()

    @property
    def fault(self) -> FaultKind | None:
        """The socket fault in force."""
        return self._fault.kind if self._fault is not None else None

    def set_fault(self, fault: Fault | None) -> None:
        """Put one socket fault in the place of another; None: a good server."""
        before = self.fault
        self._fault = fault
        if self._flap is not None:
            self._flap.cancel()
            self._flap = None
        kind = self.fault
        if before is FaultKind.FREEZE and kind is not FaultKind.FREEZE:
            for connection in list(self.connections):
                connection.thaw()
        if before in (FaultKind.MUTE, FaultKind.TLS_GARBAGE):
            self._close_all(reset=False)  # they have no session that could go on
        match kind:
            case FaultKind.REFUSE:
                self._down()
            case FaultKind.FLAP:
                self._flap_down()
            case FaultKind.FREEZE:
                self._listen()
                for connection in self.connections:
                    connection.freeze()
            case FaultKind.MUTE | FaultKind.TLS_GARBAGE:
                self._listen()
                self._close_all(reset=False)
            case FaultKind.RESET:
                self._listen()
                self._close_all(reset=True)
            case _:
                self._listen()

    def close(self) -> None:
        """Close the listener and every connection."""
        for timer in (self._flap, self._pause):
            if timer is not None:
                timer.cancel()
        self._down()
        self._listener.close()

    def _listen(self) -> None:
        if not self.listening:
            self._listener.listen(BACKLOG)
            self._loop.add_reader(self._listener, self._accept)
            self.listening = True

    def _down(self) -> None:
        if self.listening:
            self._loop.remove_reader(self._listener)
            # Linux: the socket leaves LISTEN and keeps its port.
            self._listener.shutdown(socket.SHUT_RDWR)
            self.listening = False
        self._close_all(reset=False)

    def _flap_down(self) -> None:
        assert self._fault is not None
        self._down()
        self._flap = self._loop.call_later(self._fault.down_s, self._flap_up)

    def _flap_up(self) -> None:
        assert self._fault is not None
        self._listen()
        self._flap = self._loop.call_later(self._fault.up_s, self._flap_down)

    def _close_all(self, *, reset: bool) -> None:
        for connection in list(self.connections):
            if reset:
                connection.reset()
            else:
                connection.close()

    def _accept(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                accepted, _address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # Out of descriptors: the listener would be readable for ever.
                self.counts["accept_errors"] += 1
                self.last_error = f"accept: {error}"
                self._loop.remove_reader(self._listener)
                self._pause = self._loop.call_later(ACCEPT_PAUSE_S, self._accept_again)
                return
            self.counts["accepted"] += 1
            accepted.setblocking(False)  # noqa: FBT003
            if self.fault is FaultKind.RESET:
                self.counts["resets"] += 1
                _reset(accepted)
            elif len(self.connections) >= CONNECTIONS_MAX:
                self.counts["over_limit"] += 1
                accepted.close()
            else:
                self.connections.add(Connection(self._loop, accepted, self))

    def _accept_again(self) -> None:
        self._pause = None
        if self.listening:
            self._loop.add_reader(self._listener, self._accept)


class Connection:
    """One accepted socket, from the first byte to the last."""

    __slots__ = (
        "_buffer",
        "_held",
        "_http2",
        "_loop",
        "_server",
        "_socket",
        "_tls",
        "_waiting",
        "frozen",
        "garbage",
        "mute",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, accepted: socket.socket, server: AgentServer) -> None:
        self._loop = loop
        self._socket = accepted
        self._server = server
        self._tls = TlsEngine(server.tls) if server.tls is not None else None
        self._http2: Http2Server | None = None
        self._buffer = bytearray()  # encrypted, waiting for the socket
        self._held = False  # a flush is under way, or comes
        self._waiting = False  # the socket is full: its writer is registered
        self.mute = server.fault is FaultKind.MUTE
        self.garbage = server.fault is FaultKind.TLS_GARBAGE
        self.frozen = server.fault is FaultKind.FREEZE
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not self.frozen:
            loop.add_reader(accepted, self._readable)

    def freeze(self) -> None:
        """Fall silent: nothing is read or written until thaw()."""
        if not self.frozen:
            self.frozen = True
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._waiting = False

    def thaw(self) -> None:
        """Go on where freeze() stopped, answers that were due included."""
        if self.frozen:
            self.frozen = False
            self._loop.add_reader(self._socket, self._readable)
            self._flush()

    def close(self) -> None:
        """Close, answering nothing any more. May be called twice."""
        if self not in self._server.connections:
            return
        self._server.connections.discard(self)
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        if self._http2 is not None:
            self._http2.close()
        self._socket.close()

    def reset(self) -> None:
        """Close with an RST."""
        if self in self._server.connections:
            self._server.counts["resets"] += 1
            with contextlib.suppress(OSError):  # the peer may have closed before us
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            self.close()

    def _readable(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._server.last_error = f"recv: {error}"
            self.close()
            return
        if not data:
            self.close()
        elif self.mute:
            pass
        elif self.garbage:
            self._buffer += _GARBAGE
            self.garbage = False
            self.mute = True
            self._write()
        else:
            self._receive(data)

    def _receive(self, data: bytes) -> None:
        tls = self._tls
        if tls is not None:
            known = tls.established
            try:
                data = tls.receive(data)
            except ssl.SSLError as error:
                self._server.counts["handshake_errors" if not known else "protocol_errors"] += 1
                self._server.last_error = f"tls: {error}"
                self._buffer += tls.take_output()  # the alert
                self._write()
                self.close()
                return
            if not known:
                self._buffer += tls.take_output()
                self._server.counts["handshakes"] += tls.established
            if not tls.established:
                self._write()
                return
        http2 = self._http2
        if http2 is None:
            http2 = self._http2 = Http2Server(
                on_call=self._server.on_call, wake=self._flush, now=self._loop.time, later=self._loop.call_later
            )
        self._held = True  # one send for everything that these bytes cause
        http2.receive(data)
        self._held = False
        self._flush()
        if http2.closing and self in self._server.connections:
            self._server.counts["goaways"] += 1
            self.close()
        elif tls is not None and tls.closed:
            self.close()

    def _flush(self) -> None:
        """Send what the protocol has, and go on with streamed answers while the socket takes them."""
        if self._held or self._waiting or self.frozen:
            return
        http2 = self._http2
        self._held = True  # resume() wakes us from within
        while True:
            if http2 is not None and http2.out:
                self._buffer += self._tls.encrypt(http2.out) if self._tls is not None else http2.out
                http2.out.clear()
            self._write()
            if self._buffer or http2 is None or http2.closing:
                break
            http2.resume()
            if not http2.out:
                break
        self._held = False

    def _write(self) -> None:
        if not self._buffer or self.frozen or self not in self._server.connections:
            return
        try:
            sent = self._socket.send(self._buffer)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self._server.last_error = f"send: {error}"
            self._buffer.clear()
            self.close()
            return
        del self._buffer[:sent]
        if self._buffer and not self._waiting:
            self._waiting = True
            self._loop.add_writer(self._socket, self._writable)

    def _writable(self) -> None:
        self._loop.remove_writer(self._socket)
        self._waiting = False
        self._flush()


def _bind(port: int) -> socket.socket:
    """
    Return a socket that owns *port* on loopback, not yet listening.

    A port that the system chose is bound a second time by number: only so does it survive a shutdown().
    """
    chosen = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        chosen.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        chosen.bind(("127.0.0.1", port))
        if port == 0:
            again = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                again.bind(chosen.getsockname())
            except OSError:
                again.close()
                raise
            chosen.close()
            chosen = again
    except OSError:
        chosen.close()
        raise
    chosen.setblocking(False)  # noqa: FBT003
    return chosen


def _reset(accepted: socket.socket) -> None:
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    accepted.close()
