"""
Simulate core: take reports as the real one does, record them, and misbehave when told to.

What it keeps and how streams become services is recording.py's part; here are the gRPC service and its faults.
"""

from __future__ import annotations

import asyncio
import enum
import socket
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from serviceradar_poller.errors import GrpcCode
from serviceradar_poller.lab.errors import FaultError, LabError
from serviceradar_poller.lab.faults import SECONDS_MAX, grpc_code
from serviceradar_poller.lab.recording import Recorder
from serviceradar_poller.wire.pb import monitoring_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable

#: Like the Go core's.
RECEIVE_BYTES_MAX = 4 * 1024 * 1024
#: All chunks of one stream together.
STREAM_BYTES_MAX = 512 * 1024 * 1024
#: Calls under way, hanging ones included; more are answered RESOURCE_EXHAUSTED.
CALLS_MAX = 1_000
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_Context = grpc.aio.ServicerContext[Any, Any]


class CoreFaultKind(enum.StrEnum):
    """What core does wrong."""

    HANG = "hang"  # takes the call and never answers; nothing is recorded
    REJECT = "reject"  # answers with ``code`` and ``message``; nothing is recorded
    NOT_RECEIVED = "not_received"  # answers received=false; nothing is recorded
    ACK_LOST = "ack_lost"  # records the report, then answers with ``code``
    SLOW = "slow"  # records and answers after ``seconds``
    UNARY_ONLY = "unary_only"  # streams are answered UNIMPLEMENTED
    STREAM_ONLY = "stream_only"  # reports in one call are answered UNIMPLEMENTED
    DIE = "die"  # breaks every connection in the middle of a call, and is back after ``seconds``; nothing is recorded
    DISAPPEAR = "disappear"  # listener and connections are gone until cleared


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreFault:
    """
    One fault of core; what a kind does not use is ignored.

    Attributes:
        count: It ends by itself after so many calls; 0: when it is cleared.
    """

    kind: CoreFaultKind
    code: GrpcCode = GrpcCode.UNAVAILABLE
    message: str = "simulated fault"
    seconds: float = 1.0
    count: int = 0

    def as_json(self) -> dict[str, object]:
        """Return the fault as the control endpoint shows and takes it."""
        return {
            "fault": self.kind.value,
            "code": self.code.name,
            "message": self.message,
            "seconds": self.seconds,
            "count": self.count,
        }


def core_fault_from_json(body: Mapping[str, object]) -> CoreFault:
    """
    Read ``{"fault": "reject", "code": "UNAVAILABLE", "count": 2}``.

    Raises:
        FaultError: An unknown kind or key, or a bad value.
    """
    values = dict(body)
    name = values.pop("fault", None)
    try:
        kind = CoreFaultKind(str(name))
    except ValueError:
        known = ", ".join(k.value for k in CoreFaultKind)
        raise FaultError(f"unknown fault {name!r}; known: {known}") from None
    code = grpc_code(values.pop("code", "UNAVAILABLE"))
    message = values.pop("message", "simulated fault")
    seconds = values.pop("seconds", 1.0)
    count = values.pop("count", 0)
    if values:
        raise FaultError(f"unknown key {next(iter(values))!r} of a fault")
    if code is GrpcCode.OK or not isinstance(message, str):
        raise FaultError("code must be an error, message a text")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= SECONDS_MAX:
        raise FaultError(f"seconds must be between 0 and {SECONDS_MAX:g}, not {seconds!r}")
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise FaultError(f"count must be 0 or more, not {count!r}")
    return CoreFault(kind=kind, code=code, message=message, seconds=float(seconds), count=count)


class SimulatedCore:
    """
    Core's gRPC server on loopback.

    Attributes:
        port: Kept while the server is away.
        fault: In force now.
        calls: Calls that arrived, by method; those that a fault met, under ``faulty``.
    """

    def __init__(
        self,
        recorder: Recorder,
        *,
        port: int = 0,
        cert_dir: Path | str | None = None,
        receive_bytes_max: int = RECEIVE_BYTES_MAX,
    ) -> None:
        """
        Reserve the port; start() listens.

        Args:
            cert_dir: Directory with root.pem, core.pem and core-key.pem; None: plaintext.
        Raises:
            LabError: The port is taken, or a certificate is missing.
        """
        self.recorder = recorder
        self.fault: CoreFault | None = None
        self.calls: dict[str, int] = {"unary": 0, "stream": 0, "faulty": 0}
        self._met = 0
        self._changed = asyncio.Event()
        self._dying: asyncio.Task[None] | None = None
        self._receive_bytes_max = receive_bytes_max
        self._credentials = _credentials(Path(cert_dir)) if cert_dir is not None else None
        self._server: grpc.aio.Server | None = None
        self._lock = asyncio.Lock()  # one start or stop at a time
        # Bound and never listening: nobody takes the port while the server is away.
        self._guard = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._guard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._guard.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            self._guard.close()
            raise LabError(f"core can't have port {port}: {error}") from error
        self.port: int = self._guard.getsockname()[1]

    async def start(self) -> None:
        """
        Listen.

        Raises:
            LabError: The port can't be opened.
        """
        async with self._lock:
            if self._server is not None:
                return
            server = grpc.aio.server(
                options=(
                    ("grpc.so_reuseport", 0),
                    ("grpc.max_receive_message_length", self._receive_bytes_max),
                    ("grpc.http2.min_ping_interval_without_data_ms", 120_000),
                ),
                maximum_concurrent_rpcs=CALLS_MAX,
            )
            server.add_generic_rpc_handlers((self._handlers(), self._health_handlers()))
            address = f"127.0.0.1:{self.port}"
            try:
                if self._credentials is not None:
                    server.add_secure_port(address, self._credentials)
                else:
                    server.add_insecure_port(address)
            except RuntimeError as error:
                raise LabError(f"core can't listen on {address}: {error}") from error
            await server.start()
            self._server = server

    async def stop(self) -> None:
        """Close listener and connections; calls under way are cancelled. The port stays ours."""
        async with self._lock:
            if self._server is not None:
                server, self._server = self._server, None
                await server.stop(None)

    async def close(self) -> None:
        """Stop and give the port back."""
        if self._dying is not None:
            self._dying.cancel()
            await asyncio.wait({self._dying})
        await self.stop()
        self._guard.close()

    async def set_fault(self, fault: CoreFault | None) -> None:
        """Put one fault in the place of another; None: a good core. Calls that hang stay unanswered."""
        self.fault = fault
        self._met = 0
        if fault is not None and fault.kind is CoreFaultKind.DISAPPEAR:
            await self.stop()
        else:
            await self.start()

    async def wait(self, condition: Callable[[Recorder], bool], *, timeout_s: float) -> bool:
        """Wait until *condition* holds of what was recorded; return whether it does."""
        try:
            async with asyncio.timeout(timeout_s):
                while not condition(self.recorder):
                    await self._changed.wait()
        except TimeoutError:
            return condition(self.recorder)
        return True

    def state_json(self) -> dict[str, object]:
        """Return the counters of core and recorder, and the fault."""
        return {
            **self.recorder.summary(),
            "calls": dict(self.calls),
            "fault": self.fault.as_json() if self.fault is not None else None,
            "listening": self._server is not None,
        }

    async def _report(self, sized: tuple[pb.PollerStatusRequest, int], context: _Context) -> pb.PollerStatusResponse:
        request, size = sized
        self.calls["unary"] += 1
        after = await self._before(context)
        if after is not None and after.kind is CoreFaultKind.DIE:
            await self._die(after)
        if after is not None and after.kind is CoreFaultKind.NOT_RECEIVED:
            return pb.PollerStatusResponse(received=False)
        if not request.poller_id:
            await _refuse(context, GrpcCode.UNKNOWN, "empty poller ID")
        self.recorder.unary(request, size=size, monotonic_s=time.monotonic(), wall_s=time.time())
        return await self._recorded(after, context)

    async def _stream(
        self, parts: AsyncIterator[tuple[pb.PollerStatusChunk, int]], context: _Context
    ) -> pb.PollerStatusResponse:
        self.calls["stream"] += 1
        after = await self._before(context, stream=True)
        chunks: list[pb.PollerStatusChunk] = []
        total = 0
        async for chunk, size in parts:
            if not chunk.poller_id:
                await _refuse(context, GrpcCode.UNKNOWN, "empty poller ID")
            total += size
            if total > STREAM_BYTES_MAX:
                await _refuse(context, GrpcCode.RESOURCE_EXHAUSTED, f"a stream of more than {STREAM_BYTES_MAX} bytes")
            chunks.append(chunk)
            if after is not None and after.kind is CoreFaultKind.DIE:
                await self._die(after)
            if chunk.is_final:
                break
        if after is not None and after.kind is CoreFaultKind.NOT_RECEIVED:
            return pb.PollerStatusResponse(received=False)
        if not chunks:
            await _refuse(context, GrpcCode.UNKNOWN, "empty poller ID")
        self.recorder.stream(chunks, size=total, monotonic_s=time.monotonic(), wall_s=time.time())
        return await self._recorded(after, context)

    async def _before(self, context: _Context, *, stream: bool = False) -> CoreFault | None:
        """Do what the fault wants before a report is recorded; return it when it has a say afterwards too."""
        fault = self.fault
        if fault is None or fault.kind is (CoreFaultKind.STREAM_ONLY if stream else CoreFaultKind.UNARY_ONLY):
            return None
        self.calls["faulty"] += 1
        self._met += 1
        if fault.count and self._met >= fault.count:
            self.fault = None
        match fault.kind:
            case CoreFaultKind.HANG:
                await asyncio.Event().wait()  # until the client gives up or the server stops
            case CoreFaultKind.REJECT:
                await _refuse(context, fault.code, fault.message)
            case CoreFaultKind.UNARY_ONLY | CoreFaultKind.STREAM_ONLY:
                await _refuse(context, GrpcCode.UNIMPLEMENTED, "unknown method")
            case CoreFaultKind.SLOW:
                await asyncio.sleep(fault.seconds)
            case _:
                pass
        return fault

    async def _die(self, fault: CoreFault) -> NoReturn:
        """Let the server go under this call, and come back later."""

        async def restart() -> None:
            await self.stop()
            await asyncio.sleep(fault.seconds)
            if self.fault is None or self.fault.kind is not CoreFaultKind.DISAPPEAR:
                await self.start()

        if self._dying is None or self._dying.done():
            self._dying = asyncio.create_task(restart(), name="dying")
        await asyncio.Event().wait()  # the stop ends this call
        raise AssertionError("the server is gone")

    async def _recorded(self, after: CoreFault | None, context: _Context) -> pb.PollerStatusResponse:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        if after is not None and after.kind is CoreFaultKind.ACK_LOST:
            await _refuse(context, after.code, after.message)
        return pb.PollerStatusResponse(received=True)

    def _handlers(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            "monitoring.PollerService",
            {
                "ReportStatus": grpc.unary_unary_rpc_method_handler(
                    self._report,
                    request_deserializer=_sized_request,
                    response_serializer=_serialize,
                ),
                "StreamStatus": grpc.stream_unary_rpc_method_handler(
                    self._stream,
                    request_deserializer=_sized_chunk,
                    response_serializer=_serialize,
                ),
            },
        )

    def _health_handlers(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            "grpc.health.v1.Health",
            {
                "Check": grpc.unary_unary_rpc_method_handler(
                    _check_health,
                    request_deserializer=health_pb2.HealthCheckRequest.FromString,
                    response_serializer=_serialize,
                )
            },
        )


async def _check_health(request: health_pb2.HealthCheckRequest, context: _Context) -> health_pb2.HealthCheckResponse:
    if request.service not in ("", "monitoring.PollerService", "core"):
        await _refuse(context, GrpcCode.NOT_FOUND, "unknown service")
    return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


async def _refuse(context: _Context, code: GrpcCode, detail: str) -> NoReturn:
    await context.abort(_CODES[code.value], detail)
    raise AssertionError("abort() raises")


def _sized_request(data: bytes) -> tuple[pb.PollerStatusRequest, int]:
    return pb.PollerStatusRequest.FromString(data), len(data)


def _sized_chunk(data: bytes) -> tuple[pb.PollerStatusChunk, int]:
    return pb.PollerStatusChunk.FromString(data), len(data)


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _credentials(folder: Path) -> grpc.ServerCredentials:
    try:
        root, certificate, key = ((folder / name).read_bytes() for name in ("root.pem", "core.pem", "core-key.pem"))
    except OSError as error:
        raise LabError(f"the certificates in {folder} can't be used: {error}") from error
    return grpc.ssl_server_credentials([(key, certificate)], root_certificates=root, require_client_auth=True)
