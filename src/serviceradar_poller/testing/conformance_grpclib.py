"""Serve conformance tests by grpclib, as a process."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import sys
from pathlib import Path
from typing import Any

import msgspec
from grpclib.const import Cardinality, Handler, Status
from grpclib.encoding.base import CodecBase
from grpclib.server import Stream

from serviceradar_poller.testing.conformance import SERVICE, TRAILERS
from serviceradar_poller.testing.conformance_desk import Desk, Running, pieces
from serviceradar_poller.testing.conformance_h2 import H2Server
from serviceradar_poller.testing.contract import server_context

_Stream = Stream[bytes, bytes]


class Raw(CodecBase):
    """Messages as they are."""

    __content_subtype__ = "proto"

    def encode(self, message: bytes, message_type: Any) -> bytes:
        """Return the message."""
        return message

    def decode(self, data: bytes, message_type: Any) -> bytes:
        """Return the message."""
        return data


class Echo:
    """The service."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def __mapping__(self) -> dict[str, Any]:
        one, many, collected = Cardinality.UNARY_UNARY, Cardinality.UNARY_STREAM, Cardinality.STREAM_UNARY
        methods = {
            "Unary": (self._unary, one),
            "Slow": (self._slow, one),
            "Inspect": (self._inspect, one),
            "Hang": (self._hang, one),
            "HangDown": (self._hang_down, many),
            "HangUp": (self._hang_up, collected),
            "Held": (self._held, many),
            "Stream": (self._stream, many),
            "Broken": (self._broken, many),
            "Collect": (self._collect, collected),
            "Early": (self._early, collected),
        }
        return {f"{SERVICE}{name}": Handler(method, kind, bytes, bytes) for name, (method, kind) in methods.items()}

    async def _unary(self, stream: _Stream) -> None:
        await stream.send_message(await _request(stream))

    async def _slow(self, stream: _Stream) -> None:
        request = await _request(stream)
        wanted = msgspec.json.decode(request)
        with self._desk.working(wanted["tag"]):
            await self._desk.pause(wanted)
        await stream.send_message(request)

    async def _held(self, stream: _Stream) -> None:
        request = await _request(stream)
        wanted = msgspec.json.decode(request)
        with self._desk.working(wanted["tag"]):
            await stream.send_message(request)
            await self._desk.pause(wanted)
        await stream.send_message(request)

    async def _inspect(self, stream: _Stream) -> None:
        await _request(stream)
        assert stream.metadata is not None
        metadata = {name: list(value) if isinstance(value, bytes) else value for name, value in stream.metadata.items()}
        left_s = stream.deadline.time_remaining() if stream.deadline is not None else None
        seen = {"metadata": metadata, "left_s": left_s, "headers": self._desk.headers}
        await stream.send_message(msgspec.json.encode(seen))

    async def _hang(self, stream: _Stream) -> None:
        with self._desk.hanging(await _request(stream)):
            await asyncio.Event().wait()

    async def _hang_down(self, stream: _Stream) -> None:
        request = await _request(stream)
        await stream.send_message(request)
        with self._desk.hanging(request):
            await asyncio.Event().wait()

    async def _hang_up(self, stream: _Stream) -> None:
        with self._desk.hanging(await _request(stream)):
            await asyncio.Event().wait()

    async def _stream(self, stream: _Stream) -> None:
        for piece in pieces(await _request(stream)):
            await stream.send_message(piece)

    async def _broken(self, stream: _Stream) -> None:
        request = await _request(stream)
        for piece in pieces(request):
            await stream.send_message(piece)
        wanted = msgspec.json.decode(request)
        await stream.send_trailing_metadata(
            status=Status(wanted["code"]), status_message=wanted["text"], metadata=list(TRAILERS)
        )

    async def _collect(self, stream: _Stream) -> None:
        count = size = 0
        hashed = hashlib.sha256()
        async for message in stream:
            count, size = count + 1, size + len(message)
            hashed.update(message)
        await stream.send_message(msgspec.json.encode({"count": count, "bytes": size, "sha256": hashed.hexdigest()}))

    async def _early(self, stream: _Stream) -> None:
        await _request(stream)
        await stream.send_trailing_metadata(status=Status.RESOURCE_EXHAUSTED, status_message="enough")


async def _request(stream: _Stream) -> bytes:
    request: bytes | None = await stream.recv_message()
    assert request is not None
    return request


async def _main(pki: Path) -> None:
    desk = Desk()
    context = server_context(pki)
    context.load_verify_locations(pki / "root.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])

    async def start(port: int, tls: bool, wanted: dict[str, Any]) -> Running:
        server = H2Server([Echo(desk)], codec=Raw(), desk=desk, wanted=wanted)
        await server.start("127.0.0.1", port, ssl=context if tls else None)
        assert isinstance(server._server, asyncio.Server)
        bound = server._server.sockets[0].getsockname()[1]
        return Running(port=bound, stop=server.stop, goaway=server.goaway)

    await desk.serve(start)


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1])))
