"""
Read the header blocks of answers, once each: what a block means is remembered by its bytes.

That is sound as soon as the peer has acknowledged our HEADER_TABLE_SIZE of 0: from then on a block can neither use
nor change a table, so equal bytes mean equal fields, on every connection of the process. Until then, and through
the one block in which a peer empties a table that it has filled, a session has a decoder of its own.
"""

from __future__ import annotations

import base64
import binascii
import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from hpack import Decoder
from hpack.exceptions import HPACKError, OversizedHeaderListError

from serviceradar_poller.errors import GrpcCode
from serviceradar_poller.transport.http2.frames import BrokenSessionError, ErrorCode
from serviceradar_poller.transport.http2.limits import (
    BLOCK_BYTES_KEPT_MAX,
    BLOCK_METADATA_KEPT_MAX,
    BLOCKS_KEPT_MAX,
    Limits,
)
from serviceradar_poller.transport.http2.status import BrokenCallError, Metadata, Outcome, of_status

#: A field name of HTTP/2 is a token without capital letters. [RFC 9113, 8.2.1; RFC 9110, 5.6.2]
_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
#: More changes of the table's size than a block may begin with: two. Each is a byte, and as costly as a field.
#: [RFC 7541, 4.2 and 6.3]
_RESIZES: Final = re.compile(rb"(?:[\x20-\x3e]|\x3f[\x80-\xff]*[\x00-\x7f]){3}", re.DOTALL)
_UNWANTED_IN_VALUE: Final = re.compile(rb"[\x00\r\n]")
#: Fields of HTTP/1 connections make an answer malformed. [RFC 9113, 8.2.2]
_OF_CONNECTION: Final = frozenset(
    {b"connection", b"proxy-connection", b"keep-alive", b"te", b"transfer-encoding", b"upgrade"},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """
    What one header block says: headers, trailers, or both in one.

    Attributes:
        http_status: ``:status``, None in trailers.
        is_grpc: Whether the content type is gRPC's.
        content_type: For a text about it; shortened.
        metadata: Fields that are not of the protocol, ``-bin`` values decoded.
        outcome: The peer's own status, where the block holds one.
        fault: Where the block breaks a rule: the end of its call.
    """

    http_status: int | None = None
    is_grpc: bool = False
    content_type: str = ""
    metadata: Metadata = ()
    outcome: Outcome | None = None
    fault: Outcome | None = None


class BlockReader:
    """
    Reads the blocks of one session in the order of their arrival.

    Attributes:
        known: Blocks that need no decoding now; empty as long as equal bytes may differ in meaning.
        stateless: No block can change how a later one is read.
    """

    __slots__ = ("_decoder", "_limits", "known", "stateless")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._decoder: Decoder | None = None
        self.stateless = False
        self.known: dict[bytes, Block] = {}

    def table_refused(self) -> None:
        """Take note that the peer has acknowledged a table of size 0."""
        if self._decoder is None or not self._decoder.header_table.dynamic_entries:
            self._forget()
        else:
            # The next block has to empty the table, or it is an error. [RFC 9113, 4.3.1]
            self._decoder.max_allowed_table_size = 0

    @property
    def buffered_bytes(self) -> int:
        """What the peer's table holds here."""
        return 0 if self._decoder is None else sum(len(n) + len(v) for n, v in self._entries(self._decoder))

    def read(self, block: bytes) -> Block:
        """
        Decode a block.

        A block that is only unfit for its call has ``fault`` set.

        Raises:
            BrokenSessionError: It can't be decoded, and the meaning of later blocks is lost with it.
        """
        if _RESIZES.match(block):
            raise BrokenSessionError(ErrorCode.COMPRESSION_ERROR, "compression", "too many changes of the table's size")
        decoder = _decoder(self._limits) if self.stateless else self._decoder
        if decoder is None:
            decoder = self._decoder = Decoder(max_header_list_size=self._limits.header_list_bytes_max)
        try:
            fields = decoder.decode(block, raw=True)
        except OversizedHeaderListError as error:
            text = f"the header list is larger than {self._limits.header_list_bytes_max} bytes"
            if not self.stateless:
                raise BrokenSessionError(ErrorCode.ENHANCE_YOUR_CALM, "header_list", text) from error
            # The rest of the block is not read, and nothing is lost by that: there is no table.
            return Block(fault=_oversized(text).outcome)
        except HPACKError as error:
            # Its text may quote the rest of the block, which is as long as the peer likes.
            text = f"a header block can't be decoded: {type(error).__name__}"
            raise BrokenSessionError(ErrorCode.COMPRESSION_ERROR, "compression", text) from error
        result = interpret(fields, self._limits)
        if self.stateless:
            if len(block) <= BLOCK_BYTES_KEPT_MAX and len(result.metadata) <= BLOCK_METADATA_KEPT_MAX:
                if len(self.known) >= BLOCKS_KEPT_MAX:
                    self.known.clear()
                self.known[block] = result
        elif decoder.max_allowed_table_size == 0:
            self._forget()
        return result

    def _forget(self) -> None:
        self._decoder = None
        self.stateless = True
        self.known = _known(self._limits)

    @staticmethod
    def _entries(decoder: Decoder) -> Iterable[tuple[bytes, bytes]]:
        return decoder.header_table.dynamic_entries


@functools.lru_cache(maxsize=8)
def _decoder(limits: Limits) -> Decoder:
    """Return the decoder that all sessions without a table share: it holds nothing from one block to the next."""
    decoder = Decoder(max_header_list_size=limits.header_list_bytes_max)
    decoder.header_table_size = 0
    decoder.max_allowed_table_size = 0
    return decoder


@functools.lru_cache(maxsize=8)
def _known(limits: Limits) -> dict[bytes, Block]:
    """Return the memory of blocks that all sessions without a table share; what is too large depends on the limits."""
    del limits
    return {}


def interpret(fields: Iterable[tuple[bytes, bytes]], limits: Limits) -> Block:
    """
    Check a header list and take out what gRPC's client needs.

    A block that breaks HTTP's or gRPC's rules comes back with ``fault``. Two rules are left alone. Whitespace around a
    value (RFC 9113, 8.2.1): gRPC's servers don't escape it in grpc-message. A content-length that is wrong (8.1.1):
    gRPC's messages have lengths of their own.
    """
    try:
        return _interpret(fields, limits)
    except BrokenCallError as fault:
        return Block(fault=fault.outcome)


def _interpret(fields: Iterable[tuple[bytes, bytes]], limits: Limits) -> Block:
    http_status: int | None = None
    content_type: bytes | None = None
    grpc_status: str | None = None
    grpc_message = b""
    metadata: list[tuple[str, str | bytes]] = []
    count = 0
    for name, value in fields:
        count += 1
        if count > limits.header_count_max:
            raise _oversized(f"the header list has more than {limits.header_count_max} fields")
        if name == b":status":
            if http_status is not None or count > 1:
                raise BrokenCallError(GrpcCode.INTERNAL, "malformed headers: :status twice or after other fields")
            if len(value) != 3 or not value.isdigit() or not 100 <= int(value) <= 599:
                raise BrokenCallError(GrpcCode.INTERNAL, f"malformed headers: :status is {value[:20]!r}")
            http_status = int(value)
            continue
        if not _NAME.fullmatch(name) or name in _OF_CONNECTION:
            raise BrokenCallError(GrpcCode.INTERNAL, f"malformed headers: a field {name[:40]!r}")
        if _UNWANTED_IN_VALUE.search(value):
            raise BrokenCallError(GrpcCode.INTERNAL, f"malformed headers: an unprintable value of {name[:40]!r}")
        if name == b"content-type":
            content_type = value
        elif name == b"grpc-status":
            if grpc_status is not None:
                raise BrokenCallError(GrpcCode.INTERNAL, "malformed headers: grpc-status twice")
            grpc_status = value.decode("latin-1")
        elif name == b"grpc-message":
            grpc_message = grpc_message or value
        elif name.endswith(b"-bin"):
            parts = value.split(b",", limits.header_count_max)
            count += len(parts) - 1
            if count > limits.header_count_max:
                raise _oversized(f"the header list has more than {limits.header_count_max} fields")
            text = name.decode("ascii")
            metadata.extend((text, _binary(name, part)) for part in parts)
        else:
            metadata.append((name.decode("ascii"), value.decode("latin-1")))
    trailing = tuple(metadata)
    outcome = None
    if grpc_status is not None:
        outcome = of_status(grpc_status, grpc_message, trailing, chars_max=limits.status_text_chars_max)
    kind = (content_type or b"").lower()
    return Block(
        http_status=http_status,
        is_grpc=kind.startswith(b"application/grpc") and kind[16:17] in (b"", b"+", b";"),
        content_type=(content_type or b"")[:80].decode("latin-1"),
        metadata=trailing,
        outcome=outcome,
    )


def _binary(name: bytes, value: bytes) -> bytes:
    """Decode a binary value, with or without padding."""
    value = value.strip(b" \t").rstrip(b"=")
    try:
        return base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except binascii.Error as error:
        raise BrokenCallError(GrpcCode.INTERNAL, f"metadata {name[:40]!r} is not base64") from error


def _oversized(text: str) -> BrokenCallError:
    return BrokenCallError(GrpcCode.RESOURCE_EXHAUSTED, text, http2_code=ErrorCode.CANCEL)
