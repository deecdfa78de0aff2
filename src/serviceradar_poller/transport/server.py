"""Serve the poller's own gRPC port: health and reflection, for probes and for people with grpcurl."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Mapping
from typing import Any, Final

from grpc_health.v1 import health_pb2
from grpclib.const import Status

from serviceradar_poller.config.addresses import AddressError, ListenAddress
from serviceradar_poller.errors import PollerError
from serviceradar_poller.transport.port.call import Call, CallRefusedError, Method
from serviceradar_poller.transport.port.limits import PortLimits, Refusals
from serviceradar_poller.transport.port.listener import RESOLVE_TIMEOUT_S, Listener, open_sockets

HEALTH_SERVICE: Final = "grpc.health.v1.Health"
REFLECTION_SERVICES: Final = (
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
)

_Check = health_pb2.HealthCheckRequest


class ListenError(PollerError):
    """
    The poller's own port can't be opened.

    Attributes:
        address: What was to be listened on.
    """

    def __init__(self, address: str, cause: str) -> None:
        super().__init__(f"can't listen on {address or 'a random port'}: {cause}")
        self.address = address


class PollerServer:
    """
    The running server; made by start().

    Attributes:
        port: Where it listens.
    """

    def __init__(self, listener: Listener, health: _Health) -> None:
        self._listener = listener
        self._health = health
        self.port = listener.port

    @property
    def connections(self) -> int:
        """Open connections, those in a handshake included."""
        return self._listener.connections

    def set_serving(self, serving: bool) -> None:
        """Tell probes whether the poller works; those that watch are told at once."""
        self._health.set_serving(serving)

    def renew(self, context: ssl.SSLContext | None) -> None:
        """Meet new clients with another certificate; those that are connected go on as they are."""
        self._listener.renew(context)

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, give those under way *grace_s* seconds, then end them. May be called twice."""
        self._health.close()
        await self._listener.stop(grace_s)


async def start(
    listen_addr: str,
    *,
    service_name: str,
    context: ssl.SSLContext | None,
    limits: PortLimits | None = None,
    refusals: Refusals | None = None,
) -> PollerServer:
    """
    Listen and serve.

    Args:
        listen_addr: ``host:port``, ``:port`` (every interface), or empty (every interface, a random port).
        service_name: What is served beside the empty health name.
        context: Of a TLS server; None for plaintext.
        limits: What clients may cost; defaults unless given.
        refusals: Where refusals are counted.
    Raises:
        ListenError: the address can't be read, or the system refuses to listen there; in its words.
    """
    host, port = _binding(listen_addr)
    try:
        sockets = await open_sockets(host, port)
    except (OSError, UnicodeError) as error:  # UnicodeError: a label that IDNA can't encode
        raise ListenError(listen_addr, _cause(host, port, error)) from error
    health = _Health(("", service_name))
    reflection = dict.fromkeys((f"/{name}/ServerReflectionInfo" for name in REFLECTION_SERVICES), _reflect)
    listener = Listener(
        sockets,
        context=context,
        methods={**health.methods(), **reflection},
        limits=limits if limits is not None else PortLimits(),
        refusals=refusals if refusals is not None else Refusals(),
    )
    return PollerServer(listener, health)


def _binding(listen_addr: str) -> tuple[str, int]:
    """Return host and port; an empty host is every interface."""
    try:
        address = ListenAddress.parse(listen_addr.strip() or ":0")
    except AddressError as error:
        raise ListenError(
            listen_addr, f"that is no address; accepted: {error.accepted}, or :port for every interface"
        ) from error
    return address.host, address.port


def _cause(host: str, port: int, error: OSError | UnicodeError) -> str:
    """Say why *host* can't be listened on: the system's words, and what helps where that is known."""
    if isinstance(error, UnicodeError | socket.gaierror):
        words = error.strerror if isinstance(error, socket.gaierror) else "a part of it is empty or too long"
        return f"the name {host!r} has no address: {words}"
    if isinstance(error, TimeoutError) and not error.errno:
        return f"the name {host!r} was not resolved within {RESOLVE_TIMEOUT_S:g} s"
    # asyncio and socket add words of their own to the system's.
    words = os.strerror(error.errno) if error.errno else str(error)
    hint = _HINTS.get(error.errno or 0, "")
    if error.errno == errno.EACCES and 0 < port < 1024:
        hint = "a port below 1024 takes root or CAP_NET_BIND_SERVICE"
    return f"{words}: {hint}" if hint else words


_HINTS: Final = {
    errno.EADDRINUSE: "another program listens there",
    errno.EADDRNOTAVAIL: "this machine does not have the address",
    errno.EAFNOSUPPORT: "this machine does not have addresses of that kind",
}


class _Health:
    """grpc.health.v1, https://github.com/grpc/grpc/blob/master/doc/health-checking.md."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = frozenset(names)
        self._serving = True
        self._closed = False
        self._changed = asyncio.Event()

    def set_serving(self, serving: bool) -> None:
        if serving is not self._serving:
            self._serving = serving
            self._wake()

    def close(self) -> None:
        self._closed = True
        self._wake()

    def methods(self) -> Mapping[str, Method]:
        return {f"/{HEALTH_SERVICE}/Check": self._check, f"/{HEALTH_SERVICE}/Watch": self._watch}

    async def _check(self, call: Call) -> None:
        request = await call.receive_one(_Check)
        if request.service not in self._names:
            raise CallRefusedError(Status.NOT_FOUND, "unknown service")
        await call.send(self._answer(request.service))

    async def _watch(self, call: Call) -> None:
        request = await call.receive_one(_Check)
        call.unlimit()
        told = None
        while True:
            changed, last = self._changed, self._closed
            answer = self._answer(request.service)
            if answer.status != told:
                told = answer.status
                await call.send(answer)
            if last:
                return
            await changed.wait()

    def _answer(self, name: str) -> Any:
        states = health_pb2.HealthCheckResponse
        if name not in self._names:
            return states(status=states.SERVICE_UNKNOWN)
        return states(status=states.SERVING if self._serving else states.NOT_SERVING)

    def _wake(self) -> None:
        """Wake everyone who waits now; later waiters get a fresh event, so no change is missed."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


async def _reflect(call: Call) -> None:
    """Answer one request after the other; what that needs is loaded when it is first asked for."""
    from serviceradar_poller.transport import reflection

    services = (HEALTH_SERVICE, *REFLECTION_SERVICES)
    while (request := await call.receive(reflection.Request)) is not None:
        await call.send(reflection.answer(request, services))
