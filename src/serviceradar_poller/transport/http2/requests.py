"""Write a request's header block: constant per method and authority, with the deadline and a call's metadata behind."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from typing import Final

#: Names that gRPC's metadata may have. [PROTOCOL-HTTP2.md, Custom-Metadata]
_NAME: Final = re.compile(r"[0-9a-z_.-]+")
_TEXT: Final = re.compile(r"[\x20-\x7e]*")
#: Fields that are gRPC's or HTTP's own, or that HTTP/2 forbids. [RFC 9113, 8.2.2]
_RESERVED: Final = frozenset(
    {
        "te",
        "content-type",
        "content-length",
        "user-agent",
        "host",
        "connection",
        "keep-alive",
        "proxy-connection",
        "transfer-encoding",
        "upgrade",
    }
)

#: A change of the table's size to 0, which a block may begin with. [RFC 7541, 6.3]
TABLE_EMPTIED: Final = b"\x20"

# Header fields as literals that no table remembers; the numbers are indices of HPACK's static table.
_METHOD_POST: Final = b"\x83"
_SCHEME_HTTP: Final = b"\x86"
_SCHEME_HTTPS: Final = b"\x87"
_PATH: Final = b"\x04"
_AUTHORITY: Final = b"\x01"
_CONTENT_TYPE: Final = b"\x0f\x10\x10application/grpc"
_USER_AGENT: Final = b"\x0f\x2b"
_TE: Final = b"\x00\x02te\x08trailers"
_ACCEPT_ENCODING: Final = b"\x00\x14grpc-accept-encoding\x08identity"
_TIMEOUT: Final = b"\x00\x0cgrpc-timeout"

_DIGITS_MAX: Final = 99_999_999
_UNITS: Final = ((b"n", 10**9, 1), (b"u", 10**6, 1), (b"m", 10**3, 1), (b"S", 1, 1), (b"M", 1, 60), (b"H", 1, 3600))


class RequestHeaders:
    """
    The headers of one method on one authority; immutable, shared by all calls and connections.

    Args:
        path: ``/package.Service/Method``.
        authority: What the peer is called.
        secure: Whether it is reached over TLS.
        metadata: Sent with every call; values of names that end with ``-bin`` are bytes.

    Raises:
        ValueError: A field can't be sent.
    """

    __slots__ = ("block",)

    def __init__(
        self,
        *,
        path: str,
        authority: str,
        secure: bool,
        user_agent: str,
        metadata: Sequence[tuple[str, str | bytes]] = (),
    ) -> None:
        if not path.startswith("/"):
            raise ValueError(f"a path begins with a slash: {path!r}")
        self.block: Final = b"".join(
            (
                _METHOD_POST,
                _SCHEME_HTTPS if secure else _SCHEME_HTTP,
                _PATH + _string(_printable(path)),
                _AUTHORITY + _string(_printable(authority)),
                _TE,
                _CONTENT_TYPE,
                _USER_AGENT + _string(_printable(user_agent)),
                _ACCEPT_ENCODING,
                metadata_fields(metadata),
            )
        )


def metadata_fields(metadata: Sequence[tuple[str, str | bytes]]) -> bytes:
    """
    Encode metadata as header fields.

    Raises:
        ValueError: A name or a value can't be sent.
    """
    parts = []
    for name, value in metadata:
        if not _NAME.fullmatch(name) or name.startswith("grpc-") or name in _RESERVED:
            raise ValueError(f"not a name for metadata: {name!r}")
        if name.endswith("-bin") != isinstance(value, bytes):
            raise ValueError(f"names that end with -bin have bytes, others text: {name!r}")
        if isinstance(value, str) and value != value.strip(" "):
            raise ValueError(f"a value with spaces around it: {name!r}")
        encoded = _printable(value) if isinstance(value, str) else base64.b64encode(value).rstrip(b"=")
        parts.append(b"\x00" + _string(name.encode("ascii")) + _string(encoded))
    return b"".join(parts)


def timeout_field(timeout_s: float) -> bytes:
    """Encode grpc-timeout as a header field."""
    value = timeout_value(timeout_s)
    return b"%b%c%b" % (_TIMEOUT, len(value), value)


def timeout_value(timeout_s: float) -> bytes:
    """
    Write a timeout as at most eight digits and a unit, as fine as they allow.

    Never longer than asked, and never zero: what is below a nanosecond becomes one.

    Args:
        timeout_s: Seconds, a finite number; beyond gRPC's 99,999,999 hours, those.
    """
    numerator, denominator = timeout_s.as_integer_ratio()
    for unit, multiplier, divisor in _UNITS:
        count = numerator * multiplier // (denominator * divisor)
        if count <= _DIGITS_MAX:
            return b"%d%b" % (count, unit) if count > 0 else b"1n"
    return b"%dH" % _DIGITS_MAX


def _printable(text: str) -> bytes:
    if not _TEXT.fullmatch(text):
        raise ValueError(f"not printable ASCII: {text!r}")
    return text.encode("ascii")


def _string(value: bytes) -> bytes:
    """Encode a string with its length, without Huffman coding. [RFC 7541, 5.2]"""
    size = len(value)
    if size < 127:
        return bytes((size,)) + value
    out = bytearray((127,))
    size -= 127
    while size >= 128:
        out.append(size & 127 | 128)
        size >>= 7
    out.append(size)
    return bytes(out) + value
