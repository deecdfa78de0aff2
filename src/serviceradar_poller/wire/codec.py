"""
Turn the contract's messages into bytes and back, and tell encoded sizes without encoding.

The sweep completion fields are neither sent nor kept, and so are fields that a newer peer may add.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import DecodeError as _ProtobufDecodeError

from serviceradar_poller.errors import PollerError
from serviceradar_poller.wire.messages import (
    PollerStatusChunk,
    PollerStatusRequest,
    PollerStatusResponse,
    ResultsChunk,
    ResultsRequest,
    ResultsResponse,
    ServiceStatus,
    StatusRequest,
    StatusResponse,
)
from serviceradar_poller.wire.pb import monitoring_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.message import Message


class DecodeError(PollerError):
    """
    Bytes are not the message that they should be.

    Attributes:
        message_name: The message of the contract.
    """

    def __init__(self, message_name: str, cause: str) -> None:
        super().__init__(f"not a {message_name}: {cause}")
        self.message_name = message_name


class EncodeError(PollerError):
    """
    A value does not fit into its field: text with a lone surrogate, or an integer beyond the field's width.

    Attributes:
        message_name: The message of the contract.
    """

    def __init__(self, message_name: str, cause: str) -> None:
        super().__init__(f"can't encode {message_name}: {cause}")
        self.message_name = message_name


def encode_status_request(msg: StatusRequest) -> bytes:
    """Encode for AgentService.GetStatus. Raises EncodeError."""
    try:
        return pb.StatusRequest(
            service_name=msg.service_name,
            service_type=msg.service_type,
            agent_id=msg.agent_id,
            poller_id=msg.poller_id,
            details=msg.details,
            port=msg.port,
        ).SerializeToString()
    except ValueError as error:
        raise EncodeError("StatusRequest", str(error)) from error


def decode_status_request(data: bytes) -> StatusRequest:
    """Decode what AgentService.GetStatus is asked. Raises DecodeError."""
    m = _parse(pb.StatusRequest, data)
    return StatusRequest(
        service_name=m.service_name,
        service_type=m.service_type,
        agent_id=m.agent_id,
        poller_id=m.poller_id,
        details=m.details,
        port=m.port,
    )


def encode_status_response(msg: StatusResponse) -> bytes:
    """Encode what AgentService.GetStatus answers. Raises EncodeError."""
    try:
        return pb.StatusResponse(
            available=msg.available,
            message=msg.message,
            service_name=msg.service_name,
            service_type=msg.service_type,
            response_time=msg.response_time,
            agent_id=msg.agent_id,
            poller_id=msg.poller_id,
        ).SerializeToString()
    except ValueError as error:
        raise EncodeError("StatusResponse", str(error)) from error


def decode_status_response(data: bytes) -> StatusResponse:
    """Decode what AgentService.GetStatus answered. Raises DecodeError."""
    m = _parse(pb.StatusResponse, data)
    return StatusResponse(
        available=m.available,
        message=m.message,
        service_name=m.service_name,
        service_type=m.service_type,
        response_time=m.response_time,
        agent_id=m.agent_id,
        poller_id=m.poller_id,
    )


def encode_results_request(msg: ResultsRequest) -> bytes:
    """Encode for AgentService.GetResults and StreamResults. Raises EncodeError."""
    try:
        return pb.ResultsRequest(
            service_name=msg.service_name,
            service_type=msg.service_type,
            agent_id=msg.agent_id,
            poller_id=msg.poller_id,
            details=msg.details,
            last_sequence=msg.last_sequence,
        ).SerializeToString()
    except ValueError as error:
        raise EncodeError("ResultsRequest", str(error)) from error


def decode_results_request(data: bytes) -> ResultsRequest:
    """Decode what AgentService.GetResults and StreamResults are asked. Raises DecodeError."""
    m = _parse(pb.ResultsRequest, data)
    return ResultsRequest(
        service_name=m.service_name,
        service_type=m.service_type,
        agent_id=m.agent_id,
        poller_id=m.poller_id,
        details=m.details,
        last_sequence=m.last_sequence,
    )


def encode_results_response(msg: ResultsResponse) -> bytes:
    """Encode what AgentService.GetResults answers. Raises EncodeError."""
    try:
        return pb.ResultsResponse(
            available=msg.available,
            data=msg.data,
            service_name=msg.service_name,
            service_type=msg.service_type,
            response_time=msg.response_time,
            agent_id=msg.agent_id,
            poller_id=msg.poller_id,
            timestamp=msg.timestamp,
            current_sequence=msg.current_sequence,
            has_new_data=msg.has_new_data,
        ).SerializeToString()
    except ValueError as error:
        raise EncodeError("ResultsResponse", str(error)) from error


def decode_results_response(data: bytes) -> ResultsResponse:
    """Decode what AgentService.GetResults answered. Raises DecodeError."""
    m = _parse(pb.ResultsResponse, data)
    return ResultsResponse(
        available=m.available,
        data=m.data,
        service_name=m.service_name,
        service_type=m.service_type,
        response_time=m.response_time,
        agent_id=m.agent_id,
        poller_id=m.poller_id,
        timestamp=m.timestamp,
        current_sequence=m.current_sequence,
        has_new_data=m.has_new_data,
    )


def encode_results_chunk(msg: ResultsChunk) -> bytes:
    """Encode one message of AgentService.StreamResults. Raises EncodeError."""
    try:
        return pb.ResultsChunk(
            data=msg.data,
            is_final=msg.is_final,
            chunk_index=msg.chunk_index,
            total_chunks=msg.total_chunks,
            current_sequence=msg.current_sequence,
            timestamp=msg.timestamp,
        ).SerializeToString()
    except ValueError as error:
        raise EncodeError("ResultsChunk", str(error)) from error


def decode_results_chunk(data: bytes) -> ResultsChunk:
    """Decode one message of AgentService.StreamResults. Raises DecodeError."""
    m = _parse(pb.ResultsChunk, data)
    return ResultsChunk(
        data=m.data,
        is_final=m.is_final,
        chunk_index=m.chunk_index,
        total_chunks=m.total_chunks,
        current_sequence=m.current_sequence,
        timestamp=m.timestamp,
    )


def encode_service_status(msg: ServiceStatus) -> bytes:
    """Encode one status by itself, as a spool keeps it. Raises EncodeError."""
    try:
        return _status_to_pb(msg).SerializeToString()
    except ValueError as error:
        raise EncodeError("ServiceStatus", str(error)) from error


def decode_service_status(data: bytes) -> ServiceStatus:
    """Decode one status by itself. Raises DecodeError."""
    return _status_from_pb(_parse(pb.ServiceStatus, data))


def encode_poller_status_request(msg: PollerStatusRequest) -> bytes:
    """Encode for PollerService.ReportStatus. Raises EncodeError."""
    try:
        report = pb.PollerStatusRequest(
            poller_id=msg.poller_id,
            agent_id=msg.agent_id,
            timestamp=msg.timestamp,
            partition=msg.partition,
            source_ip=msg.source_ip,
            kv_store_id=msg.kv_store_id,
        )
        add = report.services.add  # a list of messages would be copied, at twice the cost
        for status in msg.services:
            add(
                service_name=status.service_name,
                available=status.available,
                message=status.message,
                service_type=status.service_type,
                response_time=status.response_time,
                agent_id=status.agent_id,
                poller_id=status.poller_id,
                partition=status.partition,
                source=status.source,
                kv_store_id=status.kv_store_id,
            )
        return report.SerializeToString()
    except ValueError as error:
        raise EncodeError("PollerStatusRequest", str(error)) from error


def decode_poller_status_request(data: bytes) -> PollerStatusRequest:
    """Decode what PollerService.ReportStatus is told. Raises DecodeError."""
    m = _parse(pb.PollerStatusRequest, data)
    return PollerStatusRequest(
        services=tuple(_status_from_pb(status) for status in m.services),
        poller_id=m.poller_id,
        agent_id=m.agent_id,
        timestamp=m.timestamp,
        partition=m.partition,
        source_ip=m.source_ip,
        kv_store_id=m.kv_store_id,
    )


def encode_poller_status_chunk(msg: PollerStatusChunk) -> bytes:
    """Encode one message of PollerService.StreamStatus. Raises EncodeError."""
    try:
        return pb.PollerStatusChunk(
            services=[_status_to_pb(status) for status in msg.services],
            poller_id=msg.poller_id,
            agent_id=msg.agent_id,
            timestamp=msg.timestamp,
            partition=msg.partition,
            source_ip=msg.source_ip,
            is_final=msg.is_final,
            chunk_index=msg.chunk_index,
            total_chunks=msg.total_chunks,
            kv_store_id=msg.kv_store_id,
        ).SerializeToString()
    except ValueError as error:
        raise EncodeError("PollerStatusChunk", str(error)) from error


def decode_poller_status_chunk(data: bytes) -> PollerStatusChunk:
    """Decode one message of PollerService.StreamStatus. Raises DecodeError."""
    m = _parse(pb.PollerStatusChunk, data)
    return PollerStatusChunk(
        services=tuple(_status_from_pb(status) for status in m.services),
        poller_id=m.poller_id,
        agent_id=m.agent_id,
        timestamp=m.timestamp,
        partition=m.partition,
        source_ip=m.source_ip,
        is_final=m.is_final,
        chunk_index=m.chunk_index,
        total_chunks=m.total_chunks,
        kv_store_id=m.kv_store_id,
    )


def total_chunks_field(total: int) -> bytes:
    """
    Return what tells a PollerStatusChunk its total when it is put behind the chunk's bytes.

    Of a field that comes twice the last one counts, so that a chunk can be encoded before the total is known.
    Source: https://protobuf.dev/programming-guides/encoding/#last-one-wins
    """
    return pb.PollerStatusChunk(total_chunks=total).SerializeToString()


def encode_poller_status_response(msg: PollerStatusResponse) -> bytes:
    """Encode what core answers to a report."""
    return pb.PollerStatusResponse(received=msg.received).SerializeToString()


def decode_poller_status_response(data: bytes) -> PollerStatusResponse:
    """Decode what core answered to a report. Raises DecodeError."""
    return PollerStatusResponse(received=_parse(pb.PollerStatusResponse, data).received)


def status_size(status: ServiceStatus) -> int:
    """
    Tell how many bytes *status* adds to the report or chunk that holds it, its field header included.

    Raises:
        EncodeError: it can't be encoded at all (a lone surrogate).
    """
    texts = (
        status.service_name,
        status.service_type,
        status.agent_id,
        status.poller_id,
        status.partition,
        status.source,
        status.kv_store_id,
    )
    joined = "".join(texts)
    if len(joined) < 128 and joined.isascii():  # then each has a header of two bytes, unless it is empty
        texts_bytes = len(joined) + 2 * (len(texts) - texts.count(""))
    else:
        texts_bytes = sum(map(_text_size, texts))
    content_bytes = (
        texts_bytes + (2 if status.available else 0) + _blob_size(len(status.message)) + _int_size(status.response_time)
    )
    return 1 + _varint_size(content_bytes) + content_bytes


def report_size(report: PollerStatusRequest) -> int:
    """Tell how many bytes *report* takes when encoded. Raises EncodeError."""
    return (
        sum(map(status_size, report.services))
        + _text_size(report.poller_id)
        + _text_size(report.agent_id)
        + _int_size(report.timestamp)
        + _text_size(report.partition)
        + _text_size(report.source_ip)
        + _text_size(report.kv_store_id)
    )


def chunk_size(chunk: PollerStatusChunk) -> int:
    """Tell how many bytes *chunk* takes when encoded. Raises EncodeError."""
    return (
        sum(map(status_size, chunk.services))
        + _text_size(chunk.poller_id)
        + _text_size(chunk.agent_id)
        + _int_size(chunk.timestamp)
        + _text_size(chunk.partition)
        + _text_size(chunk.source_ip)
        + (2 if chunk.is_final else 0)
        + _int_size(chunk.chunk_index)
        + _int_size(chunk.total_chunks)
        + _text_size(chunk.kv_store_id)
    )


_M = TypeVar("_M", bound="Message")


def _parse(message_type: type[_M], data: bytes) -> _M:
    try:
        return message_type.FromString(data)
    except _ProtobufDecodeError as error:
        raise DecodeError(message_type.__name__, f"{len(data)} bytes that don't parse") from error


def _status_to_pb(status: ServiceStatus) -> pb.ServiceStatus:
    return pb.ServiceStatus(
        service_name=status.service_name,
        available=status.available,
        message=status.message,
        service_type=status.service_type,
        response_time=status.response_time,
        agent_id=status.agent_id,
        poller_id=status.poller_id,
        partition=status.partition,
        source=status.source,
        kv_store_id=status.kv_store_id,
    )


def _status_from_pb(m: pb.ServiceStatus) -> ServiceStatus:
    return ServiceStatus(
        service_name=m.service_name,
        available=m.available,
        message=m.message,
        service_type=m.service_type,
        response_time=m.response_time,
        agent_id=m.agent_id,
        poller_id=m.poller_id,
        partition=m.partition,
        source=m.source,
        kv_store_id=m.kv_store_id,
    )


# Sizes: every field number here is below 16, so a tag is one byte. proto3 leaves out zero, false and empty.
# Source: https://protobuf.dev/programming-guides/encoding/


def _varint_size(value: int) -> int:
    return 10 if value < 0 else (value.bit_length() + 6) // 7 or 1


def _int_size(value: int) -> int:
    return 1 + _varint_size(value) if value else 0


def _blob_size(length_bytes: int) -> int:
    return 1 + _varint_size(length_bytes) + length_bytes if length_bytes else 0


def _text_size(text: str) -> int:
    if text.isascii():
        return _blob_size(len(text))
    try:
        return _blob_size(len(text.encode()))
    except UnicodeEncodeError as error:
        raise EncodeError("text", str(error)) from error
