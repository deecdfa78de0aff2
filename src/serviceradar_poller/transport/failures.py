"""
Turn what gRPC says of a failed call into CallError: layer, stable reason, one line for an operator.

gRPC's core tells everything below the peer's own status as text; tests/transport gets each of these texts
over a real socket. What the core itself says begins with one of three phrases; anything else is the peer's word,
whatever it holds: a status that quotes "connection refused" of some other connection is not taken for ours.

    failed to connect to all addresses; last error: …    no connection came up: the request was never sent
    errors resolving …                                   no address
    Stream removed (…)                                   the connection was up: the request may have arrived

=================  ===========  =================================================================
reason             layer        meaning
=================  ===========  =================================================================
address            CONFIG       the address can't be read
credentials        CONFIG       certificate files missing, unreadable, mismatching, expired
resolve            RESOLVE      the name has no address
refused            TCP          connection refused
unreachable        TCP          no route, network or host unreachable
connect_timeout    TCP, HTTP2   no connection in time: SYN, handshake or SETTINGS unanswered
reset              TCP          broken while connecting
reset              GRPC         broken while waiting for the answer: the request may have arrived
tls                TLS          handshake failed, either side refused the other's certificate
protocol           HTTP2        the peer speaks something else
goaway             HTTP2        the peer is closing the connection and has not taken the request
refused_stream     HTTP2        the peer has not taken the request
connect            TCP          no connection, for a cause that is not in this table
stream_reset       GRPC         the peer broke off this call alone
timeout            DEADLINE     connected, but no answer in time
too_large          APPLICATION  the answer exceeds our receive limit
decode, encode     APPLICATION  the answer can't be read; the request can't be written
early_answer       APPLICATION  the peer said OK before it had the whole stream
closed             CONFIG       this client was closed
cancelled          CONFIG       this stream was cancelled by its reader
the code's name    GRPC         the peer's status: unimplemented, permission_denied, unavailable …
=================  ===========  =================================================================
"""

from __future__ import annotations

import re
from typing import Final

from serviceradar_poller.errors import CallError, GrpcCode, Layer

#: An operator's line; longer texts are cut.
DETAIL_CHARACTERS_MAX: Final = 240

_CONNECT = "failed to connect to all addresses; last error: "
_STREAM = "Stream removed ("
_UNWANTED = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
# "UNKNOWN: ipv4:127.0.0.1:50051: " before the cause; an IPv6 address is percent-encoded.
_SUBCHANNEL = re.compile(r"[A-Z_]+: (?:ipv4|ipv6|unix):\S+: ")
_VERIFY = re.compile(r"CERTIFICATE_VERIFY_FAILED: (?P<cause>.*?)(?:: OK)?$")
_SSL_ERROR = re.compile(r"OPENSSL_internal:(?P<cause>[A-Z0-9_]+)")
_HTTP_STATUS = re.compile(r"Received http2 (?:header with status|:status header).*?(?P<status>\d{3})")
_GOAWAY = re.compile(r"GOAWAY received; Error code: (?P<code>\d+); Debug Text: (?P<text>.*?)\)?$")
_RST_STREAM = re.compile(r"RST_STREAM with error code (?P<code>\d+)")

_UNREACHABLE = ("No route to host", "unreachable", "Host is down", "Permission denied", "Invalid argument")
_RESET = ("Connection reset", "Broken pipe", "Connection aborted", "ECONNRESET")


def one_line(text: str, characters_max: int = DETAIL_CHARACTERS_MAX) -> str:
    """Make a text fit for a log line: no control characters or line ends, bounded length."""
    line = _UNWANTED.sub(" ", text).strip()
    if len(line) > characters_max:
        return line[: characters_max - 1].rstrip() + "…"
    return line


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
    status = _code(code)
    if details.startswith(_CONNECT):
        return _connect_failure(details.removeprefix(_CONNECT), status, peer=peer, secure=secure)
    if details.startswith("errors resolving "):
        cause = "name not found" if "not found" in details else _inner(details)
        return _error(Layer.RESOLVE, status, "resolve", f"{peer}: {cause}")
    if details.startswith(_STREAM):
        return _stream_failure(details.removeprefix(_STREAM).removesuffix(")"), status, peer=peer, timeout_s=timeout_s)
    if status is GrpcCode.DEADLINE_EXCEEDED and details == "Deadline Exceeded":
        if ready:
            return deadline(peer, timeout_s)
        return _error(Layer.TCP, status, "connect_timeout", f"{peer}: no connection within {timeout_s:.3g} s")
    if match := _HTTP_STATUS.match(details):
        return _error(Layer.HTTP2, status, "protocol", f"{peer}: HTTP status {match['status']}, not a gRPC server")
    return _error(Layer.GRPC, status, status.name.lower(), details or status.name)


def deadline(peer: str, timeout_s: float) -> CallError:
    """Make the failure of a call whose time ran out on a working connection, or before it began."""
    return _error(
        Layer.DEADLINE,
        GrpcCode.DEADLINE_EXCEEDED,
        "timeout",
        f"{peer}: no answer within {max(timeout_s, 0.0):.3g} s",
    )


def closed(peer: str) -> CallError:
    """Make the failure of a call on a client that is closed."""
    return _error(Layer.CONFIG, GrpcCode.CANCELLED, "closed", f"{peer}: the client was closed")


def cancelled(peer: str) -> CallError:
    """Make the failure of reading a stream that this side has cancelled."""
    return _error(Layer.CONFIG, GrpcCode.CANCELLED, "cancelled", f"{peer}: the stream was cancelled")


def unusable_address(detail: str) -> CallError:
    """Make the failure of a client whose address can't be read."""
    return _error(Layer.CONFIG, GrpcCode.INVALID_ARGUMENT, "address", detail)


def unusable_credentials(detail: str) -> CallError:
    """Make the failure of a client whose certificate files can't be used."""
    return _error(Layer.CONFIG, GrpcCode.FAILED_PRECONDITION, "credentials", detail)


def undecodable(peer: str, cause: str) -> CallError:
    """Make the failure of a call whose answer can't be read."""
    return _error(Layer.APPLICATION, GrpcCode.INTERNAL, "decode", f"{peer}: {cause}")


def unencodable(peer: str, cause: str) -> CallError:
    """Make the failure of a call whose request can't be written."""
    return _error(Layer.APPLICATION, GrpcCode.INVALID_ARGUMENT, "encode", f"{peer}: {cause}")


def early_answer(peer: str, sent_count: int, count: int) -> CallError:
    """Make the failure of a stream that the peer ended with OK before it had everything."""
    return _error(
        Layer.APPLICATION,
        GrpcCode.DATA_LOSS,
        "early_answer",
        f"{peer}: answered OK after {sent_count} of {count} chunks",
    )


def _error(layer: Layer, code: GrpcCode, reason: str, detail: str) -> CallError:
    return CallError(layer=layer, code=code, reason=reason, detail=one_line(detail))


def _code(code: int) -> GrpcCode:
    try:
        return GrpcCode(code)
    except ValueError:
        return GrpcCode.UNKNOWN


def _inner(details: str) -> str:
    """Take the innermost cause out of gRPC's nested brackets."""
    return details.rpartition(": ")[2].rstrip("])") or details


def _connect_failure(text: str, code: GrpcCode, *, peer: str, secure: bool) -> CallError:
    cause = _SUBCHANNEL.sub("", text, count=1)
    if "Connection refused" in cause:
        return _error(Layer.TCP, code, "refused", f"{peer}: connection refused")
    if match := _VERIFY.search(cause):
        return _error(Layer.TLS, code, "tls", f"{peer}: the peer's certificate was refused: {match['cause']}")
    if "Hostname Verification Check failed" in cause:
        return _error(Layer.TLS, code, "tls", f"{peer}: the peer's certificate does not hold the expected name")
    if "ALPN" in cause:
        return _error(Layer.TLS, code, "tls", f"{peer}: the peer's TLS does not offer HTTP/2 (ALPN h2)")
    if "Unwrap failed" in cause:
        # TLS 1.3 tells a client that its certificate is refused only after the handshake, by an alert.
        return _error(Layer.TLS, code, "tls", f"{peer}: the peer ended TLS; does it accept our certificate?")
    if match := _SSL_ERROR.search(cause):
        problem = match["cause"]
        if problem == "WRONG_VERSION_NUMBER":
            return _error(Layer.TLS, code, "tls", f"{peer}: the peer does not speak TLS")
        return _error(Layer.TLS, code, "tls", f"{peer}: TLS handshake failed: {problem}")
    if "Tls handshake failed" in cause or "handshaker" in cause.lower():
        return _error(Layer.TLS, code, "tls", f"{peer}: TLS handshake failed: {cause}")
    if "timed out before receiving SETTINGS" in cause:
        return _error(Layer.HTTP2, code, "connect_timeout", f"{peer}: accepts TCP but sends no HTTP/2 settings")
    if "timed out" in cause:
        return _error(Layer.TCP, code, "connect_timeout", f"{peer}: no answer to the TCP connect")
    if "Handshake read failed (Endpoint closing)" in cause:
        return _error(Layer.TCP, code, "connect_timeout", f"{peer}: accepts TCP but does not answer the TLS handshake")
    if any(word in cause for word in _UNREACHABLE):
        return _error(Layer.TCP, code, "unreachable", f"{peer}: {_inner(cause)}")
    if any(word in cause for word in _RESET):
        during = " during the TLS handshake" if "Handshake" in cause else ""
        return _error(Layer.TCP, code, "reset", f"{peer}: connection reset{during}")
    if "Handshake read failed (Socket closed)" in cause:
        return _error(Layer.TLS, code, "tls", f"{peer}: the peer broke the TLS handshake off (TLS 1.3?)")
    if "HTTP/2" in cause or "http1" in cause:
        return _error(Layer.HTTP2, code, "protocol", f"{peer}: the peer does not speak HTTP/2")
    if "Socket closed" in cause:
        # In TLS 1.3 a client learns only after its own handshake that its certificate was refused.
        if secure:
            return _error(
                Layer.TLS,
                code,
                "tls",
                f"{peer}: closed after the TLS handshake; our certificate was refused?",
            )
        return _error(Layer.HTTP2, code, "protocol", f"{peer}: closed without HTTP/2 settings; does it expect TLS?")
    return _error(Layer.TCP, code, "connect", f"{peer}: {cause}")


def _stream_failure(cause: str, code: GrpcCode, *, peer: str, timeout_s: float) -> CallError:
    if cause == "Deadline Exceeded":
        return deadline(peer, timeout_s)
    if match := _GOAWAY.match(cause):
        return _error(
            Layer.HTTP2,
            GrpcCode.UNAVAILABLE,
            "goaway",
            f"{peer}: is closing the connection (code {match['code']}, {match['text'] or 'no text'})",
        )
    if match := _RST_STREAM.search(cause):
        if match["code"] == "7":
            return _error(Layer.HTTP2, code, "refused_stream", f"{peer}: did not take the call")
        return _error(Layer.GRPC, code, "stream_reset", f"{peer}: broke off the call (HTTP/2 code {match['code']})")
    if "CLIENT: Received message larger than max" in cause:
        # RESOURCE_EXHAUSTED counts as retryable, and the next answer would be as large.
        size = cause.rpartition("max ")[2]
        return _error(Layer.APPLICATION, GrpcCode.OUT_OF_RANGE, "too_large", f"{peer}: answer too large {size}")
    if "HTTP/2" in cause:
        return _error(Layer.HTTP2, code, "protocol", f"{peer}: broke the HTTP/2 protocol: {cause}")
    if code is GrpcCode.UNAVAILABLE:
        return _error(Layer.GRPC, code, "reset", f"{peer}: connection lost while waiting ({_inner(cause)})")
    return _error(Layer.GRPC, code, code.name.lower(), f"{peer}: {cause}")
