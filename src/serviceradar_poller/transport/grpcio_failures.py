"""
Turn what gRPC's core says of a failed call into CallError.

gRPC's core tells everything below the peer's own status as text; tests/transport gets each of these texts
over a real socket. What the core itself says begins with one of three phrases; anything else is the peer's word,
whatever it holds: a status that quotes "connection refused" of some other connection is not taken for ours.

    failed to connect to all addresses; last error: …    no connection came up: the request was never sent
    errors resolving …                                   no address
    Stream removed (…)                                   the connection was up: the request may have arrived
"""

from __future__ import annotations

import re

from serviceradar_poller.errors import CallError, GrpcCode, Layer
from serviceradar_poller.transport import failures
from serviceradar_poller.transport.failures import ConnectStep, failed, known_code

_CONNECT = "failed to connect to all addresses; last error: "
_STREAM = "Stream removed ("
# "UNKNOWN: ipv4:127.0.0.1:50051: " before the cause; an IPv6 address is percent-encoded.
_SUBCHANNEL = re.compile(r"[A-Z_]+: (?:ipv4|ipv6|unix):\S+: ")
_VERIFY = re.compile(r"CERTIFICATE_VERIFY_FAILED: (?P<cause>.*?)(?:: OK)?$")
_SSL_ERROR = re.compile(r"OPENSSL_internal:(?P<cause>[A-Z0-9_]+)")
_HTTP_STATUS = re.compile(r"Received http2 (?:header with status|:status header).*?(?P<status>\d{3})")
_GOAWAY = re.compile(r"GOAWAY received; Error code: (?P<code>\d+); Debug Text: (?P<text>.*?)\)?$")
_RST_STREAM = re.compile(r"RST_STREAM with error code (?P<code>\d+)")

_UNREACHABLE = ("No route to host", "unreachable", "Host is down", "Permission denied", "Invalid argument")
_RESET = ("Connection reset", "Broken pipe", "Connection aborted", "ECONNRESET")


def from_status(code: int, details: str, *, peer: str, secure: bool, ready: bool, timeout_s: float) -> CallError:
    """
    Classify a failed call.

    Args:
        code: gRPC status code; one that gRPC doesn't define becomes UNKNOWN.
        details: The status' text, the peer's or the core's.
        peer: ``host:port`` for the operator's line.
        secure: Whether the channel uses TLS.
        ready: Whether the channel is connected now.
        timeout_s: What the call was given.
    """
    status = known_code(code)
    if details.startswith(_CONNECT):
        return _connect_failure(details.removeprefix(_CONNECT), status, peer=peer, secure=secure)
    if details.startswith("errors resolving "):
        cause = "name not found" if "not found" in details else _inner(details)
        return failures.unresolved(peer, cause, status)
    if details.startswith(_STREAM):
        return _stream_failure(details.removeprefix(_STREAM).removesuffix(")"), status, peer=peer, timeout_s=timeout_s)
    if status is GrpcCode.DEADLINE_EXCEEDED and details == "Deadline Exceeded":
        if ready:
            return failures.deadline(peer, timeout_s)
        return failed(Layer.TCP, status, "connect_timeout", f"{peer}: no connection within {timeout_s:.3g} s")
    if match := _HTTP_STATUS.match(details):
        return failures.protocol(peer, f"HTTP status {match['status']}, not a gRPC server", status)
    return failures.status(status, details)


def _inner(details: str) -> str:
    """Take the innermost cause out of gRPC's nested brackets."""
    return details.rpartition(": ")[2].rstrip("])") or details


def _connect_failure(text: str, code: GrpcCode, *, peer: str, secure: bool) -> CallError:
    cause = _SUBCHANNEL.sub("", text, count=1)
    if "Connection refused" in cause:
        return failures.refused(peer, code)
    if match := _VERIFY.search(cause):
        return failures.tls(peer, f"the peer's certificate was refused: {match['cause']}", code)
    if "Hostname Verification Check failed" in cause:
        return failures.tls(peer, "the peer's certificate does not hold the expected name", code)
    if "ALPN" in cause:
        return failures.tls(peer, "the peer's TLS does not offer HTTP/2 (ALPN h2)", code)
    if "Unwrap failed" in cause:
        # TLS 1.3 tells a client that its certificate is refused only after the handshake, by an alert.
        return failures.tls(peer, "the peer ended TLS; does it accept our certificate?", code)
    if match := _SSL_ERROR.search(cause):
        problem = match["cause"]
        if problem == "WRONG_VERSION_NUMBER":
            return failures.tls(peer, "the peer does not speak TLS", code)
        return failures.tls(peer, f"TLS handshake failed: {problem}", code)
    if "Tls handshake failed" in cause or "handshaker" in cause.lower():
        return failures.tls(peer, f"TLS handshake failed: {cause}", code)
    if "timed out before receiving SETTINGS" in cause:
        return failures.connect_timeout(peer, ConnectStep.SETTINGS, code)
    if "timed out" in cause:
        return failures.connect_timeout(peer, ConnectStep.TCP, code)
    if "Handshake read failed (Endpoint closing)" in cause:
        return failures.connect_timeout(peer, ConnectStep.TLS, code)
    if any(word in cause for word in _UNREACHABLE):
        return failures.unreachable(peer, _inner(cause), code)
    if any(word in cause for word in _RESET):
        return failures.connect_reset(peer, in_handshake="Handshake" in cause, code=code)
    if "Handshake read failed (Socket closed)" in cause:
        return failures.tls(peer, "the peer broke the TLS handshake off (TLS 1.3?)", code)
    if "HTTP/2" in cause or "http1" in cause:
        return failures.protocol(peer, "the peer does not speak HTTP/2", code)
    if "Socket closed" in cause:
        return failures.closed_before_settings(peer, secure=secure, code=code)
    return failures.unconnected(peer, cause, code)


def _stream_failure(cause: str, code: GrpcCode, *, peer: str, timeout_s: float) -> CallError:
    if cause == "Deadline Exceeded":
        return failures.deadline(peer, timeout_s)
    if match := _GOAWAY.match(cause):
        return failures.goaway(peer, int(match["code"]), match["text"])
    if match := _RST_STREAM.search(cause):
        if match["code"] == "7":
            return failures.refused_stream(peer, code)
        return failures.stream_reset(peer, match["code"], code)
    if "CLIENT: Received message larger than max" in cause:
        return failures.too_large(peer, cause.rpartition("max ")[2])
    if "HTTP/2" in cause:
        return failures.protocol(peer, f"broke the HTTP/2 protocol: {cause}", code)
    if code is GrpcCode.UNAVAILABLE:
        return failures.lost(peer, _inner(cause), code)
    return failed(Layer.GRPC, code, code.name.lower(), f"{peer}: {cause}")
