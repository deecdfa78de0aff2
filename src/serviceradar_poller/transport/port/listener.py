"""Own a port: its listening sockets, who may connect, and how it all ends."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from grpclib.const import Status

from serviceradar_poller.logic.bucket import BucketSettings, new_bucket, take
from serviceradar_poller.transport.port.call import CallRefusedError, Method
from serviceradar_poller.transport.port.connection import GuardedConnection
from serviceradar_poller.transport.port.limits import PortLimits, Refusal, Refusals

#: Connections that the kernel keeps until they are accepted.
BACKLOG: Final = 128
#: Resolution of a listen address' name; it is local, so anything slower is broken.
RESOLVE_TIMEOUT_S: Final = 5.0
#: After an accept that failed for want of descriptors or memory.
ACCEPT_PAUSE_S: Final = 1.0
#: What a closed connection's peer has for taking the last bytes.
FLUSH_S: Final = 0.25
#: A host that is gone without a word is noticed after 60 + 4 * 15 s, also while a watch is open.
_KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))
_NOT_HERE: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


async def open_sockets(host: str, port: int) -> list[socket.socket]:
    """
    Return listening sockets for *host*, empty for every interface, all on the same port; 0 is any free one.

    A port is never shared with another listener. Every interface is both address families, where there are two.

    Raises:
        OSError: nothing could be listened on, or one of the addresses is in use.
        TimeoutError: the name did not resolve in time.
    """
    if not host:
        try:
            if socket.has_dualstack_ipv6():
                return [_listen(socket.AF_INET6, ("::", port), dualstack=True)]
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
        return [_listen(socket.AF_INET, ("0.0.0.0", port))]
    async with asyncio.timeout(RESOLVE_TIMEOUT_S):
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    opened: list[socket.socket] = []
    failure: OSError | None = None
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            bound = opened[0].getsockname()[1] if opened else port
            try:
                opened.append(_listen(family, (address[0], bound, *address[2:])))
            except OSError as error:
                # A port that was free for one family only by chance is no reason to fail.
                if error.errno not in _NOT_HERE and not (opened and port == 0):
                    raise
                failure = error
    except BaseException:
        for each in opened:
            each.close()
        raise
    if not opened:
        raise failure or OSError(errno.EADDRNOTAVAIL, "the name has no address")
    return opened


def _listen(family: int, address: tuple[object, ...], *, dualstack: bool = False) -> socket.socket:
    listener = socket.create_server(address, family=family, backlog=BACKLOG, dualstack_ipv6=dualstack)
    listener.setblocking(False)  # noqa: FBT003 - the socket module's signature
    return listener


def _watch_over(client: socket.socket) -> None:
    """Have the kernel notice when the other side is gone. Raises OSError."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option, value in _KEEPALIVE:
        client.setsockopt(socket.IPPROTO_TCP, option, value)


class Listener:
    """
    Serves *methods* on open sockets until it is stopped; implements connection.Port.

    Args:
        sockets: As of open_sockets; closed by stop().
        context: None for plaintext.
        methods: What is served, by path.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        *,
        context: ssl.SSLContext | None,
        methods: Mapping[str, Method],
        limits: PortLimits,
        refusals: Refusals,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sockets = tuple(sockets)
        self._context = context
        self.methods = methods
        self.limits = limits
        self._refusals = refusals
        self._faults_told = 0
        self._stopping = False
        self._changed = asyncio.Event()
        self._connections: set[GuardedConnection] = set()
        self._admissions: dict[GuardedConnection, asyncio.Task[None]] = {}
        self._rate = BucketSettings(rate_per_s=limits.accepts_per_s, burst=limits.accepts_burst)
        self._bucket = new_bucket(self._rate, self._loop.time())
        self._accepting = [self._loop.create_task(self._accept(each)) for each in self._sockets]
        self.port: int = self._sockets[0].getsockname()[1]

    @property
    def connections(self) -> int:
        """Sockets that are open, those in a handshake included."""
        return len(self._connections)

    def renew(self, context: ssl.SSLContext | None) -> None:
        """Use another context from the next connection on; those that are open go on as they are."""
        self._context = context

    async def stop(self, grace_s: float) -> None:
        """Free the port, refuse new calls, give those under way *grace_s* seconds, then end everything."""
        self._stopping = True
        await self._end_tasks(self._accepting)
        # All of them have begun meanwhile: a task that has not would leave its socket open.
        await self._end_tasks([*self._admissions.values()])
        for each in self._sockets:
            each.close()
        await self._until(lambda: not any(each.tasks for each in self._connections), grace_s)
        tasks = [task for connection in self._connections for task in connection.tasks]
        for connection in tuple(self._connections):
            connection.say_goodbye()
        await self._end_tasks(tasks)
        await self._until(lambda: not self._connections, FLUSH_S)
        for connection in tuple(self._connections):
            connection.cut(None)
        await self._until(lambda: not self._connections, FLUSH_S)

    # what connections and calls use

    def refuse_call(self) -> CallRefusedError | None:
        """Return why no call may begin now; None when one may."""
        if self._stopping:
            return CallRefusedError(Status.UNAVAILABLE, "the server is stopping", Refusal.STOPPING)
        return None

    def refused(self, reason: Refusal) -> None:
        """Count a refusal."""
        self._refusals.count(reason)

    def fault(self, error: Exception, what: str) -> None:
        """Count an exception that is a bug of ours or of a library; the first ones are told with their traceback."""
        self._refusals.count(Refusal.FAULT)
        if self._faults_told < self.limits.faults_told_max:
            self._faults_told += 1
            self._loop.call_exception_handler({"message": f"{what} failed", "exception": error})

    def ended(self) -> None:
        """Wake a stop that waits for calls."""
        self._changed.set()

    def left(self, connection: GuardedConnection) -> None:
        """Take note that the connection is gone."""
        self._connections.discard(connection)
        self._changed.set()

    # inside

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = await self._loop.sock_accept(listener)
            except ConnectionError:
                continue  # gone before it was accepted
            except OSError:
                # No descriptor or no memory: those who wait stay in the kernel's queue.
                self._refusals.count(Refusal.CONNECTIONS)
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            # sock_accept() does not wait while the kernel has connections: a flood of them would be all that runs.
            await asyncio.sleep(self._let_in(client))

    def _let_in(self, client: socket.socket) -> float:
        """Begin a connection, or close it; returns for how many seconds no other may be let in."""
        if len(self._connections) >= self.limits.connections_max and not self._make_room():
            self._refusals.count(Refusal.CONNECTIONS)
            client.close()
            return 0.0
        try:
            _watch_over(client)
        except OSError:
            client.close()  # it is gone already
            return 0.0
        connection = GuardedConnection(self)
        self._connections.add(connection)
        task = self._loop.create_task(self._admit(client, connection))
        self._admissions[connection] = task
        task.add_done_callback(lambda _: self._admissions.pop(connection))
        self._bucket, wait_s = take(self._bucket, self._rate, self._loop.time())
        return wait_s

    def _make_room(self) -> bool:
        """End a connection that has had its time, one without calls where there is one; False when there is none."""
        going = [each for each in self._connections if each.may_go()]
        if not going:
            return False
        oldest = min(going, key=lambda each: (each.has_calls, each.since))
        self._refusals.count(Refusal.EVICTED)
        handshake = self._admissions.get(oldest)
        if handshake is not None:
            handshake.cancel()
        else:
            oldest.say_goodbye()
        # It may take its time to go; its place is given away now.
        self._connections.discard(oldest)
        return True

    async def _admit(self, client: socket.socket, connection: GuardedConnection) -> None:
        try:
            timeout_s = self.limits.handshake_s if self._context is not None else None
            await self._loop.connect_accepted_socket(
                lambda: connection,
                client,
                ssl=self._context,
                ssl_handshake_timeout=timeout_s,
                ssl_shutdown_timeout=timeout_s,
            )
        except OSError:  # TLS errors are, and a client that left is too
            self._connections.discard(connection)
            self._refusals.count(Refusal.TLS if self._context is not None else Refusal.PROTOCOL)
        except Exception as error:  # noqa: BLE001 - one handshake must not end the port
            self._connections.discard(connection)
            self.fault(error, "a handshake at the gRPC port")
        except asyncio.CancelledError:
            connection.cut(None)  # asyncio may go on with TLS all the same, where that has not begun
            self._connections.discard(connection)
            raise

    async def _until(self, fulfilled: Callable[[], bool], limit_s: float) -> None:
        """Wait for a state that calls or connections bring about by ending, at most *limit_s*."""
        try:
            async with asyncio.timeout(limit_s):
                while not fulfilled():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass  # what goes on after it is cut by the caller

    async def _end_tasks(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
