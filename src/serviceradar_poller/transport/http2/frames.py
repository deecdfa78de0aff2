"""Name the frames of HTTP/2, write their headers, and take their padding off."""

from __future__ import annotations

import enum
import struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_HEADER_BYTES: Final = 9

DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
HAS_PRIORITY: Final = 0x20

SETTING_HEADER_TABLE_SIZE: Final = 0x1
SETTING_ENABLE_PUSH: Final = 0x2
SETTING_MAX_CONCURRENT_STREAMS: Final = 0x3
SETTING_INITIAL_WINDOW_SIZE: Final = 0x4
SETTING_MAX_FRAME_SIZE: Final = 0x5
SETTING_MAX_HEADER_LIST_SIZE: Final = 0x6

#: A frame's header: high 16 bits of its length, the low 8, kind, flags, stream.
_HEADER: Final = struct.Struct(">HBBBL")
unpack_header = _HEADER.unpack_from
_pack = _HEADER.pack
#: A DATA frame's header and the prefix of the gRPC message that begins in it.
_MESSAGE: Final = struct.Struct(">HBBBLBL")
_pack_message = _MESSAGE.pack
_SETTING: Final = struct.Struct(">HL")
iter_settings = _SETTING.iter_unpack


class ErrorCode(enum.IntEnum):
    """Why a stream was reset or a connection ended. [RFC 9113, 7]"""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class BrokenSessionError(Exception):
    """
    The peer broke the protocol in a way that ends the connection.

    Attributes:
        code: What the GOAWAY says.
        reason: Short stable token, for grouping.
    """

    def __init__(self, code: ErrorCode, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.reason = reason


def frame_header(size: int, kind: int, flags: int, stream_id: int) -> bytes:
    """Write the header of a frame whose payload has *size* bytes."""
    return _pack(size >> 8, size & 0xFF, kind, flags, stream_id)


def data_header(size: int, flags: int, stream_id: int) -> bytes:
    """Write the header of a DATA frame that holds one whole message of *size* bytes, and the message's prefix."""
    length = size + 5
    return _pack_message(length >> 8, length & 0xFF, DATA, flags, stream_id, 0, size)


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Write a whole small frame."""
    return frame_header(len(payload), kind, flags, stream_id) + payload


def settings(*pairs: tuple[int, int]) -> bytes:
    """Write a SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(key, value) for key, value in pairs))


def window_update(stream_id: int, increment: int) -> bytes:
    """Write a WINDOW_UPDATE frame."""
    return frame_header(4, WINDOW_UPDATE, 0, stream_id) + increment.to_bytes(4, "big")


def rst_stream(stream_id: int, code: ErrorCode) -> bytes:
    """Write a RST_STREAM frame."""
    return frame_header(4, RST_STREAM, 0, stream_id) + code.to_bytes(4, "big")


def headers_frames(stream_id: int, block: bytes, flags: int, frame_bytes_max: int) -> bytes:
    """Write a header block as HEADERS and as many CONTINUATION frames as the peer's frame size asks for."""
    size = len(block)
    if size <= frame_bytes_max:
        return _pack(size >> 8, size & 0xFF, HEADERS, flags | END_HEADERS, stream_id) + block
    parts = [frame(HEADERS, flags, stream_id, block[:frame_bytes_max])]
    for begin in range(frame_bytes_max, size, frame_bytes_max):
        last = END_HEADERS if begin + frame_bytes_max >= size else 0
        parts.append(frame(CONTINUATION, last, stream_id, block[begin : begin + frame_bytes_max]))
    return b"".join(parts)


def unpadded(flags: int, data: bytes, begin: int, end: int) -> tuple[int, int]:
    """
    Return where the content of a padded DATA or HEADERS payload begins and ends in *data*.

    Raises:
        BrokenSessionError: The padding is longer than the payload.
    """
    if not flags & PADDED:
        return begin, end
    if begin == end or data[begin] >= end - begin:
        raise BrokenSessionError(ErrorCode.PROTOCOL_ERROR, "padding", "a frame's padding is longer than its payload")
    return begin + 1, end - data[begin]
