from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serviceradar_poller.errors import CallError, GrpcCode, Layer
from serviceradar_poller.transport.failures import DETAIL_CHARACTERS_MAX, one_line
from serviceradar_poller.transport.grpcio_failures import from_status

CONNECT = "failed to connect to all addresses; last error: "


def classify(details: str, code: GrpcCode = GrpcCode.UNAVAILABLE, *, secure: bool = False) -> CallError:
    return from_status(code, details, peer="h:1", secure=secure, ready=False, timeout_s=2.0)


# ruff: noqa: E501
# Texts of grpcio 1.85 that a test can't bring about everywhere; the others come over sockets in test_contract.
@pytest.mark.parametrize(
    ("text", "layer", "reason"),
    [
        ("UNKNOWN: ipv6:%5B2001:db8::1%5D:5: Failed to connect to remote host: getsockopt(SO_ERROR): No route to host",
         Layer.TCP, "unreachable"),
        ("FAILED_PRECONDITION: ipv6:%5Bfe80::1%5D:5: connect failed: addr: ipv6:%5Bfe80::1%5D:5 error: Invalid argument",
         Layer.TCP, "unreachable"),
        ("UNKNOWN: ipv4:10.0.0.1:5: Failed to connect to remote host: connect() timed out",
         Layer.TCP, "connect_timeout"),
        ("UNKNOWN: ipv4:10.0.0.1:5: Failed to connect to remote host: Connection timed out",
         Layer.TCP, "connect_timeout"),
        ("UNKNOWN: ipv4:10.0.0.1:5: connection attempt timed out before receiving SETTINGS frame",
         Layer.HTTP2, "connect_timeout"),
        ("UNAVAILABLE: ipv4:10.0.0.1:5: Handshake read failed (Endpoint closing)", Layer.TCP, "connect_timeout"),
        ("UNAVAILABLE: ipv4:10.0.0.1:5: Handshake read failed (Socket closed)", Layer.TLS, "tls"),
        ("UNKNOWN: ipv4:10.0.0.1:5: Tls handshake failed (TSI_PROTOCOL_FAILURE): something new", Layer.TLS, "tls"),
        ("UNKNOWN: ipv4:10.0.0.1:5: something new", Layer.TCP, "connect"),
    ],
)  # fmt: skip
def test_connect_failures(text: str, layer: Layer, reason: str) -> None:
    """A failed connect has its layer and reason, and is never mistaken for the peer's answer."""
    error = classify(CONNECT + text, secure=True)
    assert (error.layer, error.reason) == (layer, reason)
    assert error.unreachable
    assert error.detail.startswith("h:1: ")


@pytest.mark.parametrize(
    ("code", "text", "layer", "reason"),
    [
        (GrpcCode.UNAVAILABLE, "Stream removed (keepalive timeout)", Layer.GRPC, "reset"),
        (GrpcCode.RESOURCE_EXHAUSTED, "Stream removed (CLIENT: Received message larger than max (9 vs. 4))",
         Layer.APPLICATION, "too_large"),
        (GrpcCode.UNIMPLEMENTED, "Received http2 header with status: 404", Layer.HTTP2, "protocol"),
        (GrpcCode.INTERNAL, "Stream removed (something new)", Layer.GRPC, "internal"),
        (GrpcCode.UNKNOWN, "", Layer.GRPC, "unknown"),
    ],
)  # fmt: skip
def test_stream_failures(code: GrpcCode, text: str, layer: Layer, reason: str) -> None:
    """A call that broke on a working connection has its layer and reason."""
    error = classify(text, code)
    assert (error.layer, error.reason) == (layer, reason)


def test_too_large_is_not_retryable() -> None:
    """The next answer would be as large."""
    text = "Stream removed (CLIENT: Received message larger than max (9 vs. 4))"
    assert not classify(text, GrpcCode.RESOURCE_EXHAUSTED).retryable


def test_code_unknown_to_grpc() -> None:
    """A peer's invented status code counts as UNKNOWN."""
    assert from_status(99, "x", peer="h:1", secure=False, ready=True, timeout_s=1.0).code is GrpcCode.UNKNOWN


@given(
    st.sampled_from(GrpcCode),
    st.sampled_from(["", CONNECT, "Stream removed (", "errors resolving "]),
    st.text(max_size=600),
    st.booleans(),
    st.booleans(),
)
def test_any_text(code: GrpcCode, head: str, text: str, secure: bool, ready: bool) -> None:
    """Whatever text a peer or the library gives, the result is one bounded, printable line and a token."""
    error = from_status(code, head + text, peer="h:1", secure=secure, ready=ready, timeout_s=1.0)
    assert len(error.detail) <= DETAIL_CHARACTERS_MAX
    assert error.detail == one_line(error.detail)
    assert not any(c in error.detail for c in "\n\r\x1b\u2028")
    assert error.reason.replace("_", "").isalnum()
    error.detail.encode()
