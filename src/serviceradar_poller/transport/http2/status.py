"""Say how a call or a session ended; a call in gRPC's terms: the peer's status, or what other codes are mapped to."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

from serviceradar_poller.errors import GrpcCode
from serviceradar_poller.transport.http2.frames import ErrorCode

#: A metadata value: text, or bytes where the name ends with ``-bin``.
Metadata = tuple[tuple[str, str | bytes], ...]


class Cause(enum.Enum):
    """Where the end of a call came from."""

    STATUS = enum.auto()  # the peer's own grpc-status
    REFUSED = enum.auto()  # REFUSED_STREAM, or above GOAWAY's last stream: the peer has not taken it
    RESET = enum.auto()  # RST_STREAM by the peer; http2_code says why
    CANCELLED = enum.auto()  # this side cancelled it
    TOO_LARGE = enum.auto()  # a message above the limit; this side reset the stream
    PROTOCOL = enum.auto()  # not gRPC as it should be; only this call is hurt
    CONNECTION = enum.auto()  # the session broke or was closed meanwhile; Session.error says why


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """
    How a call ended.

    Attributes:
        code: gRPC status, the peer's or the one that gRPC prescribes for this cause; always one that gRPC defines.
        message: The status' text, decoded and bounded.
        http2_code: The code of the RST_STREAM or GOAWAY that ended it, or of the RST_STREAM that this side sent.
        metadata: Trailing metadata, ``-bin`` values decoded.
    """

    cause: Cause
    code: int
    message: str = ""
    http2_code: int | None = None
    metadata: Metadata = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionError:
    """
    What ended a session.

    Attributes:
        reason: Short stable token, for grouping: ``eof``, ``closed``, ``http1``, ``not_http2``, ``flow_control`` …
        detail: For an operator.
        http2_code: What our GOAWAY says; None where nothing can be said any more.
    """

    reason: str
    detail: str
    http2_code: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GoAway:
    """The peer takes no more calls: those up to *last_stream_id* may finish, and *text* is its word, bounded."""

    last_stream_id: int
    code: int
    text: str


class BrokenCallError(Exception):
    """
    The peer broke one call; the connection is unhurt.

    Attributes:
        outcome: How the call ends; its http2_code is what the stream is reset with.
    """

    def __init__(
        self,
        code: GrpcCode,
        message: str,
        *,
        cause: Cause = Cause.PROTOCOL,
        http2_code: ErrorCode = ErrorCode.PROTOCOL_ERROR,
    ) -> None:
        super().__init__(message)
        self.outcome = Outcome(cause=cause, code=code.value, message=message, http2_code=http2_code.value)


CANCELLED: Final = Outcome(
    cause=Cause.CANCELLED,
    code=GrpcCode.CANCELLED.value,
    message="cancelled by this side",
    http2_code=ErrorCode.CANCEL.value,
)

_OF_HTTP2: Final = {
    ErrorCode.REFUSED_STREAM: (GrpcCode.UNAVAILABLE, "the peer did not take the call"),
    ErrorCode.CANCEL: (GrpcCode.CANCELLED, "the peer cancelled the call"),
    ErrorCode.ENHANCE_YOUR_CALM: (GrpcCode.RESOURCE_EXHAUSTED, "the peer wants less load on the connection"),
    ErrorCode.INADEQUATE_SECURITY: (
        GrpcCode.PERMISSION_DENIED,
        "the peer does not find the connection secure enough for the call",
    ),
}

_OF_HTTP: Final = {
    400: GrpcCode.INTERNAL,
    401: GrpcCode.UNAUTHENTICATED,
    403: GrpcCode.PERMISSION_DENIED,
    404: GrpcCode.UNIMPLEMENTED,
    429: GrpcCode.UNAVAILABLE,
    431: GrpcCode.INTERNAL,
    502: GrpcCode.UNAVAILABLE,
    503: GrpcCode.UNAVAILABLE,
    504: GrpcCode.UNAVAILABLE,
}

_CODE_MAX: Final = max(GrpcCode).value


def of_reset(http2_code: int) -> Outcome:
    """Return the outcome of a call that the peer reset. Source: PROTOCOL-HTTP2.md, Errors."""
    code, text = _OF_HTTP2.get(http2_code, (GrpcCode.INTERNAL, ""))  # type: ignore[call-overload]
    return Outcome(
        cause=Cause.REFUSED if http2_code == ErrorCode.REFUSED_STREAM else Cause.RESET,
        code=code.value,
        message=text or f"the peer reset the call: {error_name(http2_code)}",
        http2_code=http2_code,
    )


def of_http(http_status: int) -> GrpcCode:
    """Map the HTTP status of an answer without grpc-status. Source: http-grpc-status-mapping.md."""
    return _OF_HTTP.get(http_status, GrpcCode.UNKNOWN)


def error_name(http2_code: int) -> str:
    """Name an HTTP/2 error code for an operator; codes without a name as hexadecimal number."""
    try:
        return ErrorCode(http2_code).name
    except ValueError:
        return f"code 0x{http2_code:x}"


def of_status(grpc_status: str, grpc_message: bytes, metadata: Metadata, *, chars_max: int) -> Outcome:
    """
    Read the peer's own status.

    A status that is not a number, or that gRPC does not define, is UNKNOWN, and the text says so.

    Args:
        grpc_message: Percent-encoded; broken escapes stay as they are, and so does the rest of the text.
        chars_max: Longer texts are cut.
    """
    # An escape makes one byte of three, and a character has at most four bytes.
    text = unquote_to_bytes(grpc_message[: chars_max * 12]).decode("utf-8", "replace")[:chars_max]
    digits = len(grpc_status) <= 4 and grpc_status.isascii() and grpc_status.isdigit()
    code = int(grpc_status) if digits else -1
    if not 0 <= code <= _CODE_MAX:
        text = f"grpc-status {grpc_status[:20]!r} is not defined: {text}"[:chars_max]
        code = GrpcCode.UNKNOWN.value
    return Outcome(cause=Cause.STATUS, code=code, message=text, metadata=metadata)
