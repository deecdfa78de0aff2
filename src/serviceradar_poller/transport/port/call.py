"""
Serve one gRPC call on a stream of grpclib's HTTP/2: check its headers, frame its messages, end it with a status.

grpclib's own request handler is not used. It collects a message of any announced length, writes a traceback to the
log for each request that is cut, compressed or lacks a header, and forgets streams that are reset at once.
[Source: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md]
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import quote

from google.protobuf.message import DecodeError, Message
from grpclib.const import Status
from grpclib.protocol import Stream
from h2.exceptions import ProtocolError

from serviceradar_poller.errors import PollerError
from serviceradar_poller.transport.port.limits import PortLimits, Refusal

Headers = Sequence[tuple[bytes, bytes]]
_M = TypeVar("_M", bound=Message)

_PREFIX_BYTES: Final = 5
_UNIT_S: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])")
_CONTENT_TYPE: Final = b"application/grpc"


class CallRefusedError(PollerError):
    """A call ends with a status other than OK."""

    def __init__(self, status: Status, message: str, reason: Refusal | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason = reason


class Desk(Protocol):
    """What all calls of a server share."""

    limits: PortLimits
    methods: Mapping[str, Method]

    def refuse_call(self) -> CallRefusedError | None:
        """Return why no call may begin now; None when one may."""

    def refused(self, reason: Refusal) -> None:
        """Count a refusal."""

    def fault(self, error: Exception, what: str) -> None:
        """Count and tell an exception that is a bug of ours."""


class Call:
    """
    One call, as its method sees it.

    The connection feeds it; nothing here is told to the client before the method sends or ends.
    """

    __slots__ = (
        "_arrived",
        "_charge",
        "_ended",
        "_inbox",
        "_limits",
        "_overflow",
        "_stream",
        "_time",
        "_timeout_at",
        "begun",
    )

    def __init__(self, stream: Stream, limits: PortLimits, charge: Callable[[float], bool]) -> None:
        self._stream = stream
        self._limits = limits
        self._charge = charge
        self._inbox = bytearray()
        self._arrived = asyncio.Event()
        self._ended = False
        self._overflow = False
        self._timeout_at: float | None = None
        self._time: asyncio.Timeout | None = None
        self.begun = False

    # what the connection uses

    def feed(self, data: bytes) -> None:
        """Take bytes of requests; a call that sends too much ahead of its reader loses them and is refused."""
        if self._overflow:
            return
        self._inbox += data
        if len(self._inbox) > self._limits.request_bytes_max + _PREFIX_BYTES:
            self._overflow = True
            self._inbox = bytearray()
        self._arrived.set()

    def end(self) -> None:
        """Take note that no more requests come."""
        self._ended = True
        self._arrived.set()

    # what a method uses

    async def receive(self, kind: type[_M]) -> _M | None:
        """
        Return the next request; None when there are no more.

        Raises:
            CallRefusedError: it is too large, cut, compressed or unreadable.
        """
        if not await self._has(_PREFIX_BYTES):
            return None
        compressed, size = self._inbox[0], int.from_bytes(self._inbox[1:_PREFIX_BYTES], "big")
        if compressed:
            raise CallRefusedError(Status.UNIMPLEMENTED, "compressed requests are not supported", Refusal.REQUEST)
        if size > self._limits.request_bytes_max:
            raise self._too_large()
        await self._has(_PREFIX_BYTES + size)
        # Thousands fit into what may be sent ahead, and nothing else here waits while the client reads.
        self._charge(1.0)
        await asyncio.sleep(0)
        body = bytes(self._inbox[_PREFIX_BYTES : _PREFIX_BYTES + size])
        del self._inbox[: _PREFIX_BYTES + size]
        try:
            return kind.FromString(body)
        except DecodeError as error:
            raise CallRefusedError(Status.INTERNAL, "the request can't be decoded", Refusal.REQUEST) from error

    async def receive_one(self, kind: type[_M]) -> _M:
        """Return the only request of a call. Raises CallRefusedError, also when there is none."""
        request = await self.receive(kind)
        if request is None:
            raise CallRefusedError(Status.INTERNAL, "the call has no request", Refusal.REQUEST)
        return request

    async def send(self, message: Message) -> None:
        """Send a response, after headers where it is the first; waits until the client has room for it."""
        body = message.SerializeToString()
        if not self.begun:
            self.begun = True
            await self._stream.send_headers(_head())
        await self._stream.send_data(b"\0" + len(body).to_bytes(4, "big") + body)

    def unlimit(self) -> None:
        """Let the call last as long as its client wants."""
        assert self._time is not None, "a method calls this while it serves"
        self._time.reschedule(self._timeout_at)

    async def _has(self, size: int) -> bool:
        """Wait for *size* bytes; False when the requests ended before their first byte."""
        while len(self._inbox) < size:
            if self._overflow:
                raise self._too_large()
            if self._ended and self._inbox:
                raise CallRefusedError(Status.INTERNAL, "the request is cut", Refusal.REQUEST)
            if self._ended:
                return False
            self._arrived.clear()
            await self._arrived.wait()
        return True

    def _too_large(self) -> CallRefusedError:
        text = f"a request of more than {self._limits.request_bytes_max} bytes"
        return CallRefusedError(Status.RESOURCE_EXHAUSTED, text, Refusal.REQUEST)

    # the frame around the method

    async def serve(self, headers: Headers, desk: Desk) -> None:
        """Run the method that *headers* name and tell the client how it ended; raises only CancelledError."""
        fields = dict(headers)
        try:
            try:
                if await self._answer_http(fields):
                    desk.refused(Refusal.REQUEST)
                    return
                status, text = await self._run(fields, desk)
                await self._finish(status, text)
            except (ProtocolError, ConnectionError):
                pass  # the client ended call or connection meanwhile: there is nobody to tell
        except Exception as error:  # noqa: BLE001 - a bug in framing ends this call, not the port
            desk.fault(error, "a call of the gRPC port")

    async def _answer_http(self, fields: Mapping[bytes, bytes]) -> bool:
        """Answer what is no gRPC in HTTP's own terms; False when it is gRPC."""
        kind = fields.get(b"content-type", b"")
        if fields.get(b":method") != b"POST":
            code = b"405"
        elif not (kind == _CONTENT_TYPE or kind.startswith((_CONTENT_TYPE + b"+", _CONTENT_TYPE + b";"))):
            code = b"415"
        else:
            return False
        await self._stream.send_headers([(b":status", code)], end_stream=True)  # type: ignore[list-item]
        self._reset()
        return True

    async def _run(self, fields: Mapping[bytes, bytes], desk: Desk) -> tuple[Status, str]:
        unwelcome = desk.refuse_call()
        if unwelcome is not None:
            return self._refused(unwelcome, desk)
        try:
            method = desk.methods.get(fields.get(b":path", b"").decode("ascii", "replace"))
            if method is None:
                return Status.UNIMPLEMENTED, "unknown method"
            limit_s = self._limits.call_s_max
            wanted_s = _timeout_s(fields.get(b"grpc-timeout"))
            now = asyncio.get_running_loop().time()
            if wanted_s is not None:
                self._timeout_at = now + wanted_s
                limit_s = min(limit_s, wanted_s)
            try:
                async with asyncio.timeout_at(now + limit_s) as time:
                    self._time = time
                    await method(self)
            except TimeoutError:
                if not time.expired():
                    raise
                desk.refused(Refusal.DEADLINE)
                return Status.DEADLINE_EXCEEDED, "the call took too long"
        except CallRefusedError as refused:
            return self._refused(refused, desk)
        except (ProtocolError, ConnectionError):
            raise
        except Exception as error:  # noqa: BLE001 - told, and the client gets a status
            desk.fault(error, f"{fields[b':path'][:100]!r}")
            return Status.INTERNAL, "internal error"
        return Status.OK, ""

    def _refused(self, refused: CallRefusedError, desk: Desk) -> tuple[Status, str]:
        if refused.reason is not None:
            desk.refused(refused.reason)
        return refused.status, refused.message

    async def _finish(self, status: Status, text: str) -> None:
        trailers = [] if self.begun else _head()
        trailers.append((b"grpc-status", str(status.value).encode()))
        if text:
            trailers.append((b"grpc-message", quote(text, safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}~").encode()))
        # What is left of a call after its last frame has no deadline: a client that takes nothing loses its connection.
        await self._stream.send_headers(trailers, end_stream=True)
        self._reset()

    def _reset(self) -> None:
        """Tell a client that goes on sending that nobody reads it."""
        if self._stream.closable:
            self._stream.reset_nowait()


Method = Callable[[Call], Awaitable[None]]


def _head() -> list[Any]:
    """Return the first header fields of an answer. grpclib's types say text; h2 and HPACK take bytes as well."""
    return [(b":status", b"200"), (b"content-type", b"application/grpc")]


def _timeout_s(value: bytes | None) -> float | None:
    if value is None:
        return None
    match = _TIMEOUT.fullmatch(value)
    if match is None:
        raise CallRefusedError(Status.INTERNAL, "grpc-timeout can't be read", Refusal.REQUEST)
    return int(match[1]) * _UNIT_S[match[2]]
