"""Weigh the HTTP/2 frames in a client's bytes, without looking into them."""

from __future__ import annotations

from typing import Final

#: What a client's connection begins with. [RFC 9113, 3.4]
PREFACE_BYTES: Final = 24
#: Length (3), type (1), flags (1), stream (4). [RFC 9113, 4.1]
HEADER_BYTES: Final = 9
#: Of a frame's payload, for which it counts as one more.
COSTLY_BYTES: Final = 1024
_CONTINUATION: Final = 0x9


class FrameMeter:
    """
    Follows the frame headers of one connection, whatever pieces its bytes come in.

    Needed because what a frame costs is not seen from the outside of h2: many kinds cause no event, and a frame is
    kept until it is whole, up to 16 MiB, before h2 compares its length with what is allowed.

    Attributes:
        continuations: CONTINUATION frames in a row, at the last frame seen.
        largest: Bytes of the largest payload that a header has announced.
    """

    __slots__ = ("_header", "_skip", "continuations", "largest")

    def __init__(self) -> None:
        self._skip = PREFACE_BYTES
        self._header = bytearray()
        self.continuations = 0
        self.largest = 0

    def feed(self, data: bytes) -> int:
        """
        Take the next bytes, and return what the frames cost whose headers were completed by them.

        A frame costs one, and one more for each KiB that it announces: thousands of settings fit into a single frame.
        """
        at, size, cost = 0, len(data), 0
        while at < size:
            if self._skip:
                step = min(self._skip, size - at)
                self._skip -= step
                at += step
                continue
            piece = data[at : at + HEADER_BYTES - len(self._header)]
            self._header += piece
            at += len(piece)
            if len(self._header) == HEADER_BYTES:
                self._skip = int.from_bytes(self._header[:3], "big")
                self.largest = max(self.largest, self._skip)
                self.continuations = self.continuations + 1 if self._header[3] == _CONTINUATION else 0
                self._header.clear()
                cost += 1 + self._skip // COSTLY_BYTES
        return cost
