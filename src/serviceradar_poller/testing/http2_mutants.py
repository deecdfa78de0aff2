"""Change sequences of steps by chance, in ways that reach deep into HTTP/2: payloads of meaning, runs, repetition."""

from __future__ import annotations

import random  # noqa: TID251 — seeded by the caller
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from serviceradar_poller.testing.http2_frames import HEADERS_OK, TRAILERS_OK, block, prefixed
from serviceradar_poller.testing.http2_play import OPS, Step
from serviceradar_poller.transport.http2.frames import CONTINUATION, DATA, HEADERS, SETTINGS, WINDOW_UPDATE

#: Longer sequences say nothing that two shorter ones don't.
STEPS_MAX: Final = 60
#: What one step floods the session with, at most.
_FLOOD_BYTES_MAX: Final = 100_000
_STREAMS: Final = (0, 1, 3, 5, 7, 2, 0x7FFF_FFFF)
_FLAGS: Final = (0, 1, 4, 5, 8, 9, 12, 0x2C)
_SIZES: Final = (0, 1, 4, 5, 6, 8, 12, 20, 100, 511, 512, 2048, 9_000, 16_383, 16_384, 16_385)
_NUMBERS: Final = (0, 1, 2, 100, 4096, 16_384, 65_535, 65_536, 100_000, 2**24 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
#: First bytes of HPACK's representations whose integer goes on in the next byte; RFC 7541, 6.
_OPEN_INTEGERS: Final = (0x0F, 0x1F, 0x3F, 0x7F, 0xFF)


class Mutator:
    """Draws mutants; one seed, one series of them."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def mutant(self, kept: Sequence[tuple[Step, ...]]) -> tuple[Step, ...]:
        """Return a kept sequence, changed in one to four places."""
        chance = self._chance
        steps = list(chance.choice(kept)) if kept else []
        for _ in range(chance.randrange(1, 5)):
            place = chance.randrange(len(steps) + 1)
            match chance.randrange(8):
                case 0:
                    steps.insert(place, self._step())
                case 1 if place < len(steps):
                    del steps[place]
                case 2 if place < len(steps):
                    steps[place:place] = [steps[place]] * chance.choice((1, 2, 25))
                case 3 if kept:
                    other = chance.choice(kept)
                    begin = chance.randrange(len(other) + 1)
                    steps[place:place] = other[begin : begin + chance.randrange(1, 8)]
                case 4 if len(steps) > 1:
                    other_place = chance.randrange(len(steps))
                    place = min(place, len(steps) - 1)
                    steps[place], steps[other_place] = steps[other_place], steps[place]
                case 5 if place < len(steps) and steps[place].op == "frame":
                    sent = steps[place].sent
                    count = min(chance.choice((30, 300, 3000)), _FLOOD_BYTES_MAX // len(sent) + 1)
                    steps[place] = Step("bytes", payload=sent * count)
                case _ if place < len(steps):
                    steps[place] = self._changed(steps[place])
        return tuple(steps[:STEPS_MAX])

    def _step(self) -> Step:
        chance = self._chance
        if chance.random() < 0.4:
            return Step(chance.choice(OPS[:-2]), chance.randrange(4), chance.choice((0, 1, 20, 16_384, 70_000)))
        stream_id = chance.choice(_STREAMS[:4])
        match chance.randrange(6):
            case 0:
                return Step("frame", HEADERS, chance.choice((0, 1, 4, 4, 5, 5)), stream_id, self._block())
            case 1:
                return Step("frame", CONTINUATION, chance.choice((0, 4)), stream_id, self._block())
            case 2:
                return Step("frame", SETTINGS, 0, 0, self._settings())
            case 3:
                return Step("frame", WINDOW_UPDATE, 0, stream_id, chance.choice(_NUMBERS).to_bytes(4, "big"))
            case 4:
                message = prefixed(self._run(), chance.choice((0, 0, 0, 1)))
                return Step("frame", DATA, chance.choice((0, 0, 1)), stream_id, message[: chance.choice(_SIZES)])
            case _:
                return Step("frame", chance.randrange(11), chance.choice(_FLAGS), stream_id, self._run())

    def _changed(self, step: Step) -> Step:
        chance = self._chance
        payload = bytearray(step.payload)
        match chance.randrange(7) if step.op in ("frame", "bytes") else chance.randrange(2):
            case 0:
                return replace(step, a=step.a ^ 1 << chance.randrange(4))
            case 1:
                return replace(step, b=step.b ^ 1 << chance.randrange(6))
            case 2:
                return replace(step, stream_id=chance.choice(_STREAMS))
            case 3 if payload:
                payload[chance.randrange(len(payload))] = chance.choice((0, 1, 0x20, 0x40, 0x7F, 0x80, 0xFF))
            case 4 if payload:
                del payload[chance.randrange(len(payload)) :]
            case 5:
                place = chance.randrange(len(payload) + 1)
                payload[place:place] = chance.choice((self._run, self._field, self._settings))()
            case _:
                place = chance.randrange(len(payload) + 1)
                payload[place:place] = chance.randbytes(chance.randrange(1, 6))
        return replace(step, payload=bytes(payload))

    def _run(self) -> bytes:
        """Draw a payload without meaning, small or as large as frames get: one byte again and again, or noise."""
        size = self._chance.choice(_SIZES)
        kind = self._chance.choice((0x00, 0x80, 0xFF, 0x2C, None))
        return self._chance.randbytes(size) if kind is None else bytes((kind,)) * size

    def _settings(self) -> bytes:
        """Draw entries of SETTINGS, most of them of keys that mean something."""
        chance = self._chance
        return b"".join(
            chance.choice((1, 2, 3, 4, 4, 5, 6, 8)).to_bytes(2, "big") + chance.choice(_NUMBERS).to_bytes(4, "big")
            for _ in range(chance.choice((1, 1, 2, 3, 8, 9)))
        )

    def _block(self) -> bytes:
        """Draw a header block: good headers or trailers or none, and more fields."""
        start = self._chance.choice((b"", HEADERS_OK, TRAILERS_OK))
        return start + b"".join(self._field() for _ in range(self._chance.choice((0, 1, 1, 2, 5, 40))))

    def _field(self) -> bytes:
        """Draw one representation of HPACK. [RFC 7541, 6]"""
        chance = self._chance
        match chance.randrange(7):
            case 0:  # indexed; beyond 61 lies the peer's own table
                return bytes((0x80 | chance.choice((0, 1, 8, 61, 62, 63, 100, 127)),))
            case 1:  # the table's size
                return chance.choice((b"\x20", b"\x21", b"\x3e", b"\x3f\xe1\x1f", b"\x3f\xe2\x1f"))
            case 2:  # an integer without end
                go_on = bytes((chance.choice((0x80, 0xFF)),)) * chance.choice((1, 3, 4, 5, 9, 200, 16_000))
                end = chance.choice((b"", b"\x00", b"\x7f"))
                return chance.choice((b"", b"\x00")) + bytes((chance.choice(_OPEN_INTEGERS),)) + go_on + end
            case 3:  # binary values, one after the other
                return block(
                    [(b"a-bin", chance.choice((b",", b"AA,", b"A,", b"=,")) * chance.choice((1, 30, 500, 5000)))]
                )
            case 4:  # literals, kept in the table or not, their strings in Huffman's code or not
                name, value = chance.randbytes(chance.randrange(4)), chance.randbytes(chance.choice((0, 1, 8, 100)))
                huffman = chance.choice((0x00, 0x80))
                start = bytes((chance.choice((0x00, 0x10, 0x40)), len(name)))
                return start + name + bytes((huffman | len(value),)) + value
            case 5:  # a literal whose name is in the table
                value = bytes((chance.choice(b"a, 7"),)) * chance.choice((0, 1, 3, 100))
                return bytes((chance.choice((0x00, 0x10, 0x40)) | chance.choice((1, 8, 14)), len(value))) + value
            case _:
                name = chance.choice(
                    (b":status", b"content-type", b"grpc-status", b"grpc-message", b"a-bin", b"te", b"a")
                )
                return block([(name, chance.choice((b"200", b"103", b"0", b"7", b"%zz%20", b"application/grpc", b"")))])
