from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serviceradar_poller.wire import codec, messages
from serviceradar_poller.wire.pb import monitoring_pb2 as pb

INT32 = {"port", "chunk_index", "total_chunks"}
TEXT = st.text(st.characters(codec="utf-8"), max_size=40)


def field_strategy(field: dataclasses.Field[Any]) -> st.SearchStrategy[Any]:
    if field.name in INT32:
        return st.integers(-(2**31), 2**31 - 1)
    if field.name == "services":
        return st.lists(message_of(messages.ServiceStatus), max_size=4).map(tuple)
    return {
        "bool": st.booleans(),
        "int": st.integers(-(2**63), 2**63 - 1) | st.integers(0, 300),
        "bytes": st.binary(max_size=300),
        "str": TEXT,
    }[str(field.type)]


def message_of(kind: type[Any]) -> st.SearchStrategy[Any]:
    return st.builds(kind, **{field.name: field_strategy(field) for field in dataclasses.fields(kind)})


KINDS = (
    messages.StatusRequest,
    messages.StatusResponse,
    messages.ResultsRequest,
    messages.ResultsResponse,
    messages.ResultsChunk,
    messages.ServiceStatus,
    messages.PollerStatusRequest,
    messages.PollerStatusResponse,
    messages.PollerStatusChunk,
)


def pair(kind: type[Any]) -> tuple[Callable[[Any], bytes], Callable[[bytes], Any]]:
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()
    return getattr(codec, f"encode_{name}"), getattr(codec, f"decode_{name}")


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_round_trip(kind: type[Any], data: st.DataObject) -> None:
    """Whatever a message holds comes back equal after encoding and decoding."""
    encode, decode = pair(kind)
    message = data.draw(message_of(kind))
    assert decode(encode(message)) == message


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_each_field_lands_in_the_field_of_its_name(kind: type[Any], data: st.DataObject) -> None:
    """The generated class reads every field under the same name, so no two fields are swapped both ways."""
    encode, _ = pair(kind)
    message = data.draw(message_of(kind))
    parsed = getattr(pb, kind.__name__).FromString(encode(message))
    for field in dataclasses.fields(kind):
        if field.name != "services":
            assert getattr(parsed, field.name) == getattr(message, field.name)
        else:
            assert [s.service_name for s in parsed.services] == [s.service_name for s in message.services]


@pytest.mark.parametrize("kind", KINDS)
def test_malformed_bytes_raise_decode_error(kind: type[Any]) -> None:
    """Truncated bytes raise DecodeError that names the message."""
    _, decode = pair(kind)
    with pytest.raises(codec.DecodeError, match=kind.__name__):
        decode(b"\x0a\xff")


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_raise_decode_error(data: bytes) -> None:
    """A hostile peer's bytes lead to a value or to DecodeError, never to anything else."""
    for kind in KINDS:
        _, decode = pair(kind)
        try:
            decoded = decode(data)
        except codec.DecodeError:
            continue
        assert isinstance(decoded, kind)


def test_text_that_is_not_utf8_is_refused() -> None:
    """A string field with invalid UTF-8 raises DecodeError."""
    with pytest.raises(codec.DecodeError):
        codec.decode_status_response(b"\x1a\x02\xff\xfe")


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (codec.encode_status_request, messages.StatusRequest(service_name="\ud800")),
        (codec.encode_status_request, messages.StatusRequest(port=2**31)),
        (codec.encode_status_response, messages.StatusResponse(response_time=2**63)),
        (codec.encode_results_request, messages.ResultsRequest(details="\udfff")),
        (codec.encode_results_response, messages.ResultsResponse(timestamp=-(2**63) - 1)),
        (codec.encode_results_chunk, messages.ResultsChunk(chunk_index=2**40)),
        (codec.encode_service_status, messages.ServiceStatus(source="\ud800")),
        (
            codec.encode_poller_status_request,
            messages.PollerStatusRequest(services=(messages.ServiceStatus(response_time=2**64),)),
        ),
        (codec.encode_poller_status_chunk, messages.PollerStatusChunk(poller_id="\ud800")),
    ],
)
def test_values_that_fit_no_field_raise_encode_error(encode: Callable[[Any], bytes], message: Any) -> None:
    """A lone surrogate or an integer out of range raises EncodeError, whichever message holds it."""
    with pytest.raises(codec.EncodeError):
        encode(message)


def test_size_of_text_that_fits_no_field() -> None:
    """The size of text that can't be encoded is an EncodeError too, not a guess."""
    with pytest.raises(codec.EncodeError):
        codec.status_size(messages.ServiceStatus(service_name="\ud800"))


@given(message_of(messages.ServiceStatus))
def test_status_size_is_exact(status: messages.ServiceStatus) -> None:
    """A status's size is what a report grows by when it is added."""
    one = len(codec.encode_poller_status_request(messages.PollerStatusRequest(services=(status,))))
    assert codec.status_size(status) == one


@given(st.integers(0, 2**22))
def test_status_size_at_every_length(length: int) -> None:
    """The size stays exact where length prefixes grow by a byte."""
    status = messages.ServiceStatus(message=bytes(length))
    content = len(codec.encode_service_status(status))
    assert codec.status_size(status) == len(
        codec.encode_poller_status_request(messages.PollerStatusRequest(services=(status,)))
    )
    assert content < codec.status_size(status)


@given(message_of(messages.PollerStatusRequest))
def test_report_size_is_exact(report: messages.PollerStatusRequest) -> None:
    """A report's size is the length of its encoding."""
    assert codec.report_size(report) == len(codec.encode_poller_status_request(report))


@given(message_of(messages.PollerStatusChunk))
def test_chunk_size_is_exact(chunk: messages.PollerStatusChunk) -> None:
    """A chunk's size is the length of its encoding."""
    assert codec.chunk_size(chunk) == len(codec.encode_poller_status_chunk(chunk))


@given(st.integers(1, 2**31 - 1), st.integers(0, 2**31 - 1))
def test_a_total_can_be_put_behind_a_chunk(total: int, before: int) -> None:
    """The last total counts, and the rest of the chunk is as it was."""
    chunk = messages.PollerStatusChunk(poller_id="p", chunk_index=3, total_chunks=before)
    data = codec.encode_poller_status_chunk(chunk) + codec.total_chunks_field(total)
    assert codec.decode_poller_status_chunk(data) == dataclasses.replace(chunk, total_chunks=total)
