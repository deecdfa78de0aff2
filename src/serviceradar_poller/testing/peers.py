"""Real peers for transport tests: gRPC servers that speak the contract, and TCP peers that break it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

from serviceradar_poller.lab.ports import free_port
from serviceradar_poller.wire import codec
from serviceradar_poller.wire.messages import (
    PollerStatusChunk,
    PollerStatusRequest,
    PollerStatusResponse,
    ResultsRequest,
    ResultsResponse,
    StatusRequest,
    StatusResponse,
)

Context = grpc.aio.ServicerContext[Any, Any]
TcpHandler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Peer:
    """
    Agent and core in one gRPC server; a test replaces the answer that it is about.

    Attributes:
        requests: Every decoded request, in order of arrival.
        metadata: What came with the last call.
        started, cancelled: Set when a call of ``hang`` begins, and when it is cancelled.
    """

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.metadata: dict[str, str | bytes] = {}
        self.health: int | grpc.StatusCode = health_pb2.HealthCheckResponse.SERVING
        self.status_answer: Callable[[StatusRequest, Context], Awaitable[bytes]] = self._status
        self.results_answer: ResultsResponse = ResultsResponse()
        self.results_stream: Callable[[ResultsRequest, Context], AsyncIterator[bytes]] = _no_chunks
        self.stream_answer: Callable[[AsyncIterator[bytes], Context], Awaitable[bytes]] = self._stream
        self.received = True
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.port = 0
        self._server: grpc.aio.Server | None = None

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    async def start(
        self, credentials: grpc.ServerCredentials | None = None, *, port: int = 0, streams_max: int = 2**31 - 1
    ) -> None:
        """Listen on the loopback; a connection may have so many calls at a time."""
        server = grpc.aio.server(
            options=[
                ("grpc.max_concurrent_streams", streams_max),
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
            ]
        )
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    "grpc.health.v1.Health", {"Check": grpc.unary_unary_rpc_method_handler(self._health)}
                ),
                grpc.method_handlers_generic_handler(
                    "monitoring.AgentService",
                    {
                        "GetStatus": grpc.unary_unary_rpc_method_handler(self._get_status),
                        "GetResults": grpc.unary_unary_rpc_method_handler(self._get_results),
                        "StreamResults": grpc.unary_stream_rpc_method_handler(self._stream_results),
                    },
                ),
                grpc.method_handlers_generic_handler(
                    "monitoring.PollerService",
                    {
                        "ReportStatus": grpc.unary_unary_rpc_method_handler(self._report),
                        "StreamStatus": grpc.stream_unary_rpc_method_handler(self._stream_status),
                    },
                ),
            )
        )
        where = f"127.0.0.1:{port}"
        if credentials is None:
            self.port = server.add_insecure_port(where)
        else:
            self.port = server.add_secure_port(where, credentials)
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Break every connection."""
        if self._server is not None:
            await self._server.stop(None)

    async def hang(self, request: StatusRequest, context: Context) -> bytes:
        """Never answer."""
        self.started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        raise AssertionError

    async def _status(self, request: StatusRequest, context: Context) -> bytes:
        return codec.encode_status_response(
            StatusResponse(
                available=True,
                message=b'{"status":"running"}',
                service_name=request.service_name,
                service_type=request.service_type,
                response_time=1_500_000,
                agent_id="agent-1",
                poller_id=request.poller_id,
            )
        )

    async def _stream(self, chunks: AsyncIterator[bytes], context: Context) -> bytes:
        async for chunk in chunks:
            self.requests.append(codec.decode_poller_status_chunk(chunk))
        return codec.encode_poller_status_response(PollerStatusResponse(received=self.received))

    async def _health(self, data: bytes, context: Context) -> bytes:
        self._note(health_pb2.HealthCheckRequest.FromString(data).service, context)
        if isinstance(self.health, grpc.StatusCode):
            await context.abort(self.health, "unknown service")
        answer: bytes = health_pb2.HealthCheckResponse(status=self.health).SerializeToString()
        return answer

    async def _get_status(self, data: bytes, context: Context) -> bytes:
        request = codec.decode_status_request(data)
        self._note(request, context)
        return await self.status_answer(request, context)

    async def _get_results(self, data: bytes, context: Context) -> bytes:
        self._note(codec.decode_results_request(data), context)
        return codec.encode_results_response(self.results_answer)

    async def _stream_results(self, data: bytes, context: Context) -> AsyncIterator[bytes]:
        request = codec.decode_results_request(data)
        self._note(request, context)
        async for chunk in self.results_stream(request, context):
            yield chunk

    async def _report(self, data: bytes, context: Context) -> bytes:
        self._note(codec.decode_poller_status_request(data), context)
        return codec.encode_poller_status_response(PollerStatusResponse(received=self.received))

    async def _stream_status(self, chunks: AsyncIterator[bytes], context: Context) -> bytes:
        return await self.stream_answer(chunks, context)

    def _note(
        self, request: StatusRequest | ResultsRequest | PollerStatusRequest | PollerStatusChunk | str, context: Context
    ) -> None:
        self.requests.append(request)
        self.metadata = dict(context.invocation_metadata() or ())


async def _no_chunks(request: ResultsRequest, context: Context) -> AsyncIterator[bytes]:
    nothing: tuple[bytes, ...] = ()
    for chunk in nothing:
        yield chunk


@contextlib.asynccontextmanager
async def serving(
    credentials: grpc.ServerCredentials | None = None, *, streams_max: int = 2**31 - 1
) -> AsyncIterator[Peer]:
    """Run a Peer."""
    peer = Peer()
    await peer.start(credentials, streams_max=streams_max)
    try:
        yield peer
    finally:
        await peer.stop()


@contextlib.asynccontextmanager
async def tcp_peer(handler: TcpHandler, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Run a TCP (or TLS) server whose connections *handler* treats; gives its address."""
    writers: list[asyncio.StreamWriter] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(OSError, EOFError, ssl.SSLError):
            await handler(reader, writer)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        # Handlers that wait for their connection see its end before the loop closes.
        await asyncio.sleep(0.01)


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with RST."""
    sock: socket.socket = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def frame(kind: int, payload: bytes = b"", *, stream: int = 0, flags: int = 0) -> bytes:
    """Build an HTTP/2 frame, RFC 9113 section 4.1."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + struct.pack(">I", stream) + payload


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read everything, answer nothing."""
    while await reader.read(65536):
        pass


def after_settings(answer: Callable[[asyncio.StreamWriter], None]) -> TcpHandler:
    """Greet as an HTTP/2 server, wait for the call's headers, then give *answer* and keep silent."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(24)  # the client's preface
        writer.write(frame(4))
        while True:
            header = await reader.readexactly(9)
            await reader.readexactly(int.from_bytes(header[:3], "big"))
            if header[3] == 1:  # HEADERS
                break
        answer(writer)
        await silence(reader, writer)

    return handle


def unused_port() -> int:
    """Return a port that was free a moment ago, and that no outgoing connection takes."""
    return free_port()
