"""Clients of agents and core: messages in and out of a channel that carries bytes, whichever library does."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable
from typing import Final, Protocol

from google.protobuf.message import DecodeError as ProtobufDecodeError
from grpc_health.v1 import health_pb2

from serviceradar_poller.errors import CallError, GrpcCode
from serviceradar_poller.transport import failures
from serviceradar_poller.wire import codec
from serviceradar_poller.wire.messages import (
    PollerStatusResponse,
    ResultsChunk,
    ResultsRequest,
    ResultsResponse,
    StatusRequest,
    StatusResponse,
)

#: The name that agents register their health under; they know no other.
AGENT_HEALTH_SERVICE: Final = "AgentService"

_HEALTH_CHECK = "/grpc.health.v1.Health/Check"
_GET_STATUS = "/monitoring.AgentService/GetStatus"
_GET_RESULTS = "/monitoring.AgentService/GetResults"
_STREAM_RESULTS = "/monitoring.AgentService/StreamResults"
_REPORT_STATUS = "/monitoring.PollerService/ReportStatus"
_STREAM_STATUS = "/monitoring.PollerService/StreamStatus"
_HEALTH_REQUEST: bytes = health_pb2.HealthCheckRequest(service=AGENT_HEALTH_SERVICE).SerializeToString()
_HEALTH_NAMES: dict[int, str] = {value: name for name, value in health_pb2.HealthCheckResponse.ServingStatus.items()}


class IncomingStream(Protocol):
    """A call that the peer answers with a stream, one message at a time; it begins when it is first read."""

    async def read(self) -> bytes | None:
        """Return the next message, None at the end. Raises CallError, and what making the request raises."""
        ...

    async def cancel(self, failure: CallError | None = None) -> None:
        """End the call, with *failure* for later reads; a read under way fails with reason ``cancelled``."""
        ...


class Channel(Protocol):
    """Calls to one peer, in bytes. They raise CallError, or CancelledError when the caller's task is cancelled."""

    @property
    def peer(self) -> str:
        """``host:port`` for an operator's line."""
        ...

    async def unary(self, method: str, payload: bytes, timeout_s: float) -> bytes:
        """Call a method with one message each way."""
        ...

    async def send_stream(self, method: str, payloads: AsyncIterable[bytes], count: int, timeout_s: float) -> bytes:
        """Call a method with a stream of *count* messages to the peer and one back. Raises what *payloads* raises."""
        ...

    def receive_stream(self, method: str, payload: Callable[[], bytes], timeout_s: float) -> IncomingStream:
        """Return a call with one message to the peer, made when it is needed, and a stream of messages back."""
        ...

    async def close(self) -> None:
        """Close for good; calls under way fail with reason ``closed``."""
        ...


class ChannelAgentClient:
    """One agent; implements env.AgentClient."""

    __slots__ = ("_channel",)

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def check_health(self, *, timeout_s: float) -> str:
        """
        Return ``SERVING``, ``NOT_SERVING``, ``UNKNOWN`` or ``SERVICE_UNKNOWN``.

        A sync service registers its health under another name: NOT_FOUND is an answer, not a failure.
        """
        try:
            answer = await self._channel.unary(_HEALTH_CHECK, _HEALTH_REQUEST, timeout_s)
        except CallError as error:
            if error.code is GrpcCode.NOT_FOUND and error.reason == "not_found":
                return "SERVICE_UNKNOWN"
            raise
        try:
            status = health_pb2.HealthCheckResponse.FromString(answer).status
        except ProtobufDecodeError as error:
            raise failures.undecodable(self._channel.peer, "not a HealthCheckResponse") from error
        return _HEALTH_NAMES.get(status, "UNKNOWN")

    async def get_status(self, request: StatusRequest, *, timeout_s: float) -> StatusResponse:
        """Ask for the status of one check."""
        channel = self._channel
        try:
            payload = codec.encode_status_request(request)
            return codec.decode_status_response(await channel.unary(_GET_STATUS, payload, timeout_s))
        except (codec.EncodeError, codec.DecodeError) as error:
            raise _codec_failure(channel.peer, error) from error

    async def get_results(self, request: ResultsRequest, *, timeout_s: float) -> ResultsResponse:
        """Ask for a result set in one message."""
        channel = self._channel
        try:
            payload = codec.encode_results_request(request)
            return codec.decode_results_response(await channel.unary(_GET_RESULTS, payload, timeout_s))
        except (codec.EncodeError, codec.DecodeError) as error:
            raise _codec_failure(channel.peer, error) from error

    def stream_results(self, request: ResultsRequest, *, timeout_s: float) -> ChannelResultsStream:
        """Ask for a result set chunk by chunk; nothing happens before the first read."""
        return ChannelResultsStream(self._channel, request, timeout_s)

    async def close(self) -> None:
        """Close the connection; calls under way fail with reason ``closed``. May be called twice."""
        await self._channel.close()


class ChannelResultsStream:
    """One streamed result; implements env.ResultsStream."""

    __slots__ = ("_peer", "_stream")

    def __init__(self, channel: Channel, request: ResultsRequest, timeout_s: float) -> None:
        self._peer = channel.peer

        def payload() -> bytes:
            try:
                return codec.encode_results_request(request)
            except codec.EncodeError as error:
                raise _codec_failure(channel.peer, error) from error

        self._stream = channel.receive_stream(_STREAM_RESULTS, payload, timeout_s)

    async def read(self) -> ResultsChunk | None:
        """Return the next chunk, None at the end. Raises CallError."""
        message = await self._stream.read()
        if message is None:
            return None
        try:
            return codec.decode_results_chunk(message)
        except codec.DecodeError as error:
            failure = _codec_failure(self._peer, error)
            await self._stream.cancel(failure)
            raise failure from error

    async def cancel(self) -> None:
        """End the call; a read under way fails with reason ``cancelled``. May be called twice."""
        await self._stream.cancel()


class ChannelCoreClient:
    """Core; implements env.CoreClient."""

    __slots__ = ("_channel",)

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def report_status_raw(self, report: bytes, *, timeout_s: float) -> PollerStatusResponse:
        """Send an encoded report in one call."""
        return self._answer(await self._channel.unary(_REPORT_STATUS, report, timeout_s))

    async def stream_status_raw(
        self, chunks: AsyncIterable[bytes], count: int, *, timeout_s: float
    ) -> PollerStatusResponse:
        """Send a report as a stream of encoded chunks; sending stops where core answers early."""
        return self._answer(await self._channel.send_stream(_STREAM_STATUS, chunks, count, timeout_s))

    async def close(self) -> None:
        """Close the connection; calls under way fail with reason ``closed``. May be called twice."""
        await self._channel.close()

    def _answer(self, data: bytes) -> PollerStatusResponse:
        try:
            return codec.decode_poller_status_response(data)
        except codec.DecodeError as error:
            raise _codec_failure(self._channel.peer, error) from error


def _codec_failure(peer: str, error: codec.EncodeError | codec.DecodeError) -> CallError:
    if isinstance(error, codec.EncodeError):
        return failures.unencodable(peer, str(error))
    return failures.undecodable(peer, str(error))
