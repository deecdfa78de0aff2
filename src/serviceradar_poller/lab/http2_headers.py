"""
Read and write the header blocks of gRPC, remembering what a warm connection repeats.

A client's block that was seen before, with its table unchanged since, is one dictionary look-up; ours are constants.
"""

from __future__ import annotations

from urllib.parse import quote

from hpack import Decoder
from hpack.exceptions import HPACKError
from hpack.table import HeaderTable

from serviceradar_poller.errors import GrpcCode

#: Header blocks remembered per connection; then the memory starts anew.
BLOCKS_MAX = 64
#: A header block, all its frames together.
BLOCK_BYTES_MAX = 64 * 1024
#: Of an error's text, after escaping.
_DETAIL_BYTES_MAX = 1024

_STATUS_200 = b"\x88"
_CONTENT_TYPE = b"\x10application/grpc"  # length and value; the name is static entry 31
_GRPC_STATUS = b"\x0bgrpc-status"
_GRPC_MESSAGE = b"\x0cgrpc-message"


class HeaderError(Exception):
    """A header block can't be decoded: the connection's table is lost."""


class _CountingTable(HeaderTable):
    """Tells when a header block changed the dynamic table: then remembered blocks mean something else."""

    generation = 0

    def add(self, name: bytes, value: bytes) -> None:
        self.generation += 1
        super().add(name, value)

    @property
    def maxsize(self) -> int:
        return self._maxsize

    @maxsize.setter
    def maxsize(self, newmax: int) -> None:
        self.generation += 1
        HeaderTable.maxsize.fset(self, newmax)  # type: ignore[attr-defined]


class HeaderReader:
    """Finds the path in a client's header blocks."""

    __slots__ = ("_blocks", "_decoder", "_table")

    def __init__(self) -> None:
        self._decoder = Decoder(max_header_list_size=BLOCK_BYTES_MAX)
        self._table = _CountingTable()
        self._decoder.header_table = self._table
        self._blocks: dict[bytes, str] = {}

    def path(self, block: bytes) -> str:
        """
        Return the ``:path`` of a block, empty where it has none.

        Raises:
            HeaderError: The block is broken.
        """
        known = self._blocks.get(block)
        if known is not None:
            return known
        generation = self._table.generation
        try:
            headers = self._decoder.decode(block, raw=True)
        except HPACKError as error:
            raise HeaderError(str(error)) from error
        path = ""
        for name, value in headers:
            if name == b":path":
                path = bytes(value).decode("ascii", "replace")
        if self._table.generation != generation:
            self._blocks.clear()  # indices have moved
        else:
            if len(self._blocks) >= BLOCKS_MAX:
                self._blocks.clear()
            self._blocks[block] = path
        return path


class HeaderWriter:
    """Writes the three blocks that a gRPC server needs."""

    __slots__ = ("_indexed", "_resize", "_started")

    def __init__(self) -> None:
        self._indexed = True  # whether our two entries may live in the peer's table
        self._resize = b""  # owed table size update
        self._started = 0  # which of our entries the peer's table holds: 1 headers, 2 trailers too

    def limit_table(self, size: int) -> None:
        """Obey the peer's table size: below the default we use none at all."""
        if size < HeaderTable.DEFAULT_SIZE:
            self._indexed, self._resize = False, b"\x20"

    def headers(self) -> bytes:
        """Return ``:status`` and ``content-type``, as an index once the peer's table holds it."""
        resize, self._resize = self._resize, b""
        if not self._indexed:
            return resize + _STATUS_200 + b"\x0f\x10" + _CONTENT_TYPE
        if self._started == 0:
            self._started = 1
            return _STATUS_200 + b"\x5f" + _CONTENT_TYPE
        return _STATUS_200 + (b"\xbe" if self._started == 1 else b"\xbf")

    def trailers(self) -> bytes:
        """Return ``grpc-status: 0``, as an index once the peer's table holds it; headers() came before."""
        resize, self._resize = self._resize, b""
        if not self._indexed:
            return resize + b"\x00" + _GRPC_STATUS + b"\x010"
        if self._started == 1:
            self._started = 2
            return b"\x40" + _GRPC_STATUS + b"\x010"
        return b"\xbe"

    def error(self, code: GrpcCode, detail: str, *, begun: bool) -> bytes:
        """Return the trailers of a failed call, with the headers before them unless the answer has *begun*."""
        text = quote(detail, safe=" !#$&'()*+,/:;=?@[]{}|<>\"^`").encode("ascii")
        if len(text) > _DETAIL_BYTES_MAX:
            text = text[:_DETAIL_BYTES_MAX]
            cut = text.rfind(b"%", -2)  # not in the middle of an escape
            text = text[:cut] if cut >= 0 else text
        status = str(code.value).encode("ascii")
        block = b"" if begun else self.headers()
        block += b"\x00" + _GRPC_STATUS + bytes((len(status),)) + status
        return block + b"\x00" + _GRPC_MESSAGE + _length(len(text)) + text


def _length(size: int) -> bytes:
    """Encode a string length, HPACK integer with a 7-bit prefix, no Huffman."""
    if size < 127:
        return bytes((size,))
    out = bytearray((127,))
    size -= 127
    while size >= 128:
        out.append(size % 128 | 128)
        size //= 128
    out.append(size)
    return bytes(out)
