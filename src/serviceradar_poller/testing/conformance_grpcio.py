"""Serve conformance tests by grpcio, as a process."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import serviceradar_poller.transport  # noqa: F401  (before anything loads gRPC)

# isort: split
import grpc
import grpc.aio
import msgspec

from serviceradar_poller.testing.conformance import TRAILERS
from serviceradar_poller.testing.conformance_desk import Desk, Running, pieces
from serviceradar_poller.testing.contract import server_credentials

Context = grpc.aio.ServicerContext[Any, Any]
#: A graceful end takes no longer; longer than a test takes.
_GRACE_S = 60.0
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class Echo:
    """The service."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def handler(self) -> grpc.GenericRpcHandler:
        """Return what a server is given."""
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        return grpc.method_handlers_generic_handler(
            "conformance.Echo",
            {
                "Unary": unary(self._unary),
                "Slow": unary(self._slow),
                "Inspect": unary(self._inspect),
                "Hang": unary(self._hang),
                "HangDown": stream(self._hang_down),
                "HangUp": grpc.stream_unary_rpc_method_handler(self._hang_up),
                "Held": stream(self._held),
                "Stream": stream(self._stream),
                "Broken": stream(self._broken),
                "Collect": grpc.stream_unary_rpc_method_handler(self._collect),
                "Early": grpc.stream_unary_rpc_method_handler(self._early),
            },
        )

    async def _unary(self, request: bytes, context: Context) -> bytes:
        return request

    async def _slow(self, request: bytes, context: Context) -> bytes:
        wanted = msgspec.json.decode(request)
        with self._desk.working(wanted["tag"]):
            await self._desk.pause(wanted)
        return request

    async def _held(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        wanted = msgspec.json.decode(request)
        with self._desk.working(wanted["tag"]):
            yield request
            await self._desk.pause(wanted)
        yield request

    async def _inspect(self, request: bytes, context: Context) -> bytes:
        metadata = {
            name: list(value) if isinstance(value, bytes) else value
            for name, value in context.invocation_metadata() or ()
        }
        return msgspec.json.encode({"metadata": metadata, "left_s": context.time_remaining()})

    async def _hang(self, request: bytes, context: Context) -> bytes:
        with self._desk.hanging(request):
            await asyncio.Event().wait()
        raise AssertionError

    async def _hang_down(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        yield request
        with self._desk.hanging(request):
            await asyncio.Event().wait()

    async def _hang_up(self, messages: AsyncIterator[bytes], context: Context) -> bytes:
        async for message in messages:
            with self._desk.hanging(message):
                await asyncio.Event().wait()
        raise AssertionError

    async def _stream(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        for piece in pieces(request):
            yield piece

    async def _broken(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        for piece in pieces(request):
            yield piece
        wanted = msgspec.json.decode(request)
        await context.abort(_CODES[wanted["code"]], wanted["text"], TRAILERS)

    async def _collect(self, messages: AsyncIterator[bytes], context: Context) -> bytes:
        count = size = 0
        hashed = hashlib.sha256()
        async for message in messages:
            count, size = count + 1, size + len(message)
            hashed.update(message)
        return msgspec.json.encode({"count": count, "bytes": size, "sha256": hashed.hexdigest()})

    async def _early(self, messages: AsyncIterator[bytes], context: Context) -> bytes:
        async for _ in messages:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "enough")
        raise AssertionError


async def _main(pki: Path) -> None:
    desk = Desk()

    async def start(port: int, tls: bool, wanted: dict[str, Any]) -> Running:
        options: list[tuple[str, int]] = [
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
        ]
        if "streams_max" in wanted:
            options.append(("grpc.max_concurrent_streams", wanted["streams_max"]))
        if "window_bytes" in wanted:
            options += [("grpc.http2.lookahead_bytes", wanted["window_bytes"]), ("grpc.http2.bdp_probe", 0)]
        if "frame_bytes_max" in wanted:
            options.append(("grpc.http2.max_frame_size", wanted["frame_bytes_max"]))
        if "age_s" in wanted:
            options.append(("grpc.max_connection_age_ms", int(wanted["age_s"] * 1000)))
        server = grpc.aio.server(options=options)
        server.add_generic_rpc_handlers((Echo(desk).handler(),))
        where = f"127.0.0.1:{port}"
        bound = server.add_secure_port(where, server_credentials(pki)) if tls else server.add_insecure_port(where)
        await server.start()

        return Running(port=bound, stop=lambda: server.stop(None), finish=lambda: server.stop(_GRACE_S))

    await desk.serve(start)


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1])))
