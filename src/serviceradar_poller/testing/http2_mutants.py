"""Change sequences of steps by chance, in ways that reach deep into HTTP/2: payloads of meaning, runs, repetition."""

from __future__ import annotations

import random  # noqa: TID251 — seeded by the caller
from collections.abc import Sequence
from dataclasses import replace

from serviceradar_poller.testing.http2_play import OPS, Step

#: Longer sequences say nothing that two shorter ones don't.
STEPS_MAX = 60


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
            match chance.randrange(7):
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
                case _ if place < len(steps):
                    steps[place] = self._changed(steps[place])
        return tuple(steps[:STEPS_MAX])

    def _step(self) -> Step:
        chance = self._chance
        if chance.random() < 0.5:
            return Step(chance.choice(OPS[:-2]), chance.randrange(4), chance.choice((0, 1, 20, 16_384, 70_000)))
        kind = chance.randrange(11)
        size = chance.choice((0, 4, 5, 6, 8, 12, 20, 16_384, 16_385))
        payload = chance.randbytes(size) if size < 100 else bytes(size)
        return Step("frame", kind, chance.choice((0, 1, 4, 5, 8, 9, 12, 0x2C)), chance.choice((0, 1, 3, 5, 2)), payload)

    def _changed(self, step: Step) -> Step:
        chance = self._chance
        payload = bytearray(step.payload)
        match chance.randrange(6):
            case 0:
                return replace(step, a=step.a ^ 1 << chance.randrange(4))
            case 1:
                return replace(step, b=step.b ^ 1 << chance.randrange(6))
            case 2:
                return replace(step, stream_id=chance.choice((0, 1, 3, 5, 7, 2, 0x7FFF_FFFF)))
            case 3 if payload:
                payload[chance.randrange(len(payload))] = chance.choice((0, 1, 0x20, 0x40, 0x7F, 0x80, 0xFF))
            case 4 if payload:
                del payload[chance.randrange(len(payload)) :]
            case _:
                place = chance.randrange(len(payload) + 1)
                payload[place:place] = chance.randbytes(chance.randrange(1, 6))
        return replace(step, payload=bytes(payload))
