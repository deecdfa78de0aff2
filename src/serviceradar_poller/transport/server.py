"""Serve the poller's own gRPC port: health and reflection, for probes and for people with grpcurl."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from serviceradar_poller.config.model import SecurityConfig
from serviceradar_poller.errors import PollerError
from serviceradar_poller.transport.address import AddressError, parse_address
from serviceradar_poller.transport.credentials import server_credentials

HEALTH_SERVICE: Final = "grpc.health.v1.Health"
REFLECTION_SERVICES: Final = (
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
)
#: Calls at the same time; probes are few and short.
CALLS_MAX: Final = 128
#: Open Watch calls; each lasts as long as its client wants.
WATCHERS_MAX: Final = 64
REQUEST_BYTES_MAX: Final = 64 * 1024

_Check = health_pb2.HealthCheckRequest
_Context = grpc.aio.ServicerContext[Any, Any]


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

    def __init__(self, server: grpc.aio.Server, health: _Health, port: int) -> None:
        self._server = server
        self._health = health
        self.port = port

    def set_serving(self, serving: bool) -> None:
        """Tell probes whether the poller works; those that watch are told at once."""
        self._health.set_serving(serving)

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, give those under way *grace_s* seconds, then end them. May be called twice."""
        self._health.close()
        await self._server.stop(grace_s)


async def start(listen_addr: str, *, service_name: str, security: SecurityConfig | None, now: float) -> PollerServer:
    """
    Listen and serve.

    Args:
        listen_addr: ``host:port``, ``:port`` (every interface), or empty (every interface, a random port).
        service_name: What is served beside the empty health name.
        security: mtls demands a client certificate.
        now: Unix seconds, for the certificates' dates.
    Raises:
        ListenError: the address can't be read or is in use.
        CallError: layer CONFIG, the certificate files can't be used.
    """
    binding = _binding(listen_addr)
    credentials = await server_credentials(security, now=now)
    server = grpc.aio.server(
        options=[
            ("grpc.so_reuseport", 0),  # two pollers on one port must not both seem to work
            ("grpc.max_receive_message_length", REQUEST_BYTES_MAX),
        ],
        maximum_concurrent_rpcs=CALLS_MAX,
    )
    health = _Health(("", service_name))
    server.add_generic_rpc_handlers((health.handler(), *_reflection_handlers()))
    try:
        if credentials is None:
            port = server.add_insecure_port(binding)
        else:
            port = server.add_secure_port(binding, credentials)
    except RuntimeError as error:
        raise ListenError(listen_addr, "the address is in use or not of this machine") from error
    if port == 0:
        raise ListenError(listen_addr, "the address is in use or not of this machine")
    await server.start()
    return PollerServer(server, health, port)


def _binding(listen_addr: str) -> str:
    if not listen_addr.strip():
        return "[::]:0"
    if listen_addr.strip().startswith(":"):
        listen_addr = f"[::]{listen_addr.strip()}"  # gRPC falls back to IPv4 where there is no IPv6
    try:
        return str(parse_address(listen_addr, port_min=0))
    except AddressError as error:
        raise ListenError(listen_addr, f"accepted: {error.accepted}, or :port") from error


class _Health:
    """grpc.health.v1, https://github.com/grpc/grpc/blob/master/doc/health-checking.md."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = frozenset(names)
        self._serving = True
        self._closed = False
        self._changed = asyncio.Event()
        self._watchers = 0

    def set_serving(self, serving: bool) -> None:
        if serving is not self._serving:
            self._serving = serving
            self._wake()

    def close(self) -> None:
        self._closed = True
        self._wake()

    def handler(self) -> grpc.GenericRpcHandler:
        answer = health_pb2.HealthCheckResponse.SerializeToString
        return grpc.method_handlers_generic_handler(
            HEALTH_SERVICE,
            {
                "Check": grpc.unary_unary_rpc_method_handler(
                    self._check, request_deserializer=_Check.FromString, response_serializer=answer
                ),
                "Watch": grpc.unary_stream_rpc_method_handler(
                    self._watch, request_deserializer=_Check.FromString, response_serializer=answer
                ),
            },
        )

    async def _check(self, request: Any, context: _Context) -> Any:
        if request.service not in self._names:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return self._answer(request.service)

    async def _watch(self, request: Any, context: _Context) -> AsyncIterator[Any]:
        if self._watchers >= WATCHERS_MAX:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"more than {WATCHERS_MAX} watchers")
        self._watchers += 1
        try:
            told = None
            while not self._closed:
                changed = self._changed
                answer = self._answer(request.service)
                if answer.status != told:
                    told = answer.status
                    yield answer
                await changed.wait()
        finally:
            self._watchers -= 1

    def _answer(self, name: str) -> Any:
        states = health_pb2.HealthCheckResponse
        if name not in self._names:
            return states(status=states.SERVICE_UNKNOWN)
        return states(status=states.SERVING if self._serving else states.NOT_SERVING)

    def _wake(self) -> None:
        """Wake everyone who waits now; later waiters get a fresh event, so no change is missed."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _reflection_handlers() -> list[grpc.GenericRpcHandler]:
    """Serve v1 with the messages of v1alpha: only the service's name differs between the two."""
    servicer = reflection.aio.ReflectionServicer((HEALTH_SERVICE, *REFLECTION_SERVICES))
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return [
        grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method}) for name in REFLECTION_SERVICES
    ]
