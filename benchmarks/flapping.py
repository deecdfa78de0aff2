"""
Decide which agents flap, when and how, and when core goes away. Pure: one seed, one plan.

Each flapping agent is well for a while, has a fault for a while, and so on; the kinds take turns, so that each is met
equally often. Core does the same, less often.

    agent-0007  ────── refuse ───── freeze ──────── hang_status ─── …
    core        ───────────────────── disappear ────────────────────── …
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

#: Kinds as the simulated agents know them. A ``slow`` one is slow in all it does: the first still answers in time at
#: the intervals that are in use, the second never does.
FAULTS: tuple[tuple[str, Mapping[str, object]], ...] = (
    ("refuse", {}),  # the port is closed, connections with it
    ("freeze", {}),  # connections fall silent and go on later
    ("reset", {}),  # RST, then and on every accept
    ("tls_garbage", {}),  # no handshake succeeds
    ("hang_status", {}),  # the connection lives, checks are not answered
    ("mute", {}),  # accepts and never says a byte
    ("slow", {"seconds": 0.5}),
    ("slow", {"seconds": 20.0}),
    ("flap", {"up_s": 0.5, "down_s": 0.5}),
)
CORE_FAULTS: tuple[tuple[str, Mapping[str, object]], ...] = (
    ("disappear", {}),  # the port is closed, connections with it
    ("reject", {"code": "UNAVAILABLE"}),  # answers, and takes nothing
    ("die", {"seconds": 1.0}),  # breaks off in the middle of each call, and is back
)
#: How long an agent is well and has a fault, from and to, uniformly: below and above the poller's timeouts.
WELL_S, FAULTY_S = (2.0, 15.0), (1.0, 20.0)
CORE_WELL_S, CORE_FAULTY_S = (20.0, 60.0), (3.0, 20.0)
#: Target of what happens to core.
CORE = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """
    One change.

    Attributes:
        at_s: After the begin.
        target: An agent, or CORE.
        fault: Empty: well again.
        values: Of the fault.
    """

    at_s: float
    target: str
    fault: str
    values: Mapping[str, object] = field(default_factory=dict)


def choose(agents: Sequence[str], *, share: float, seed: int) -> list[str]:
    """Return the agents that flap: *share* of all, at least one, in order."""
    count = min(max(round(share * len(agents)), 1), len(agents))
    return sorted(random.Random(f"{seed} agents").sample(list(agents), count))


def plan(flapping: Sequence[str], *, seed: int, length_s: float, scale: float = 1.0) -> list[Act]:
    """
    Return what happens to agents and core, in order of time.

    Args:
        length_s: All that has a fault is well again by then.
        scale: Of all periods.
    """
    acts: list[Act] = []
    for index, agent in enumerate(flapping):
        kinds = itertools.islice(itertools.cycle(FAULTS), index % len(FAULTS), None)
        chance = random.Random(f"{seed} {agent}")
        acts += _turns(agent, kinds, chance, (WELL_S, FAULTY_S), length_s, scale)
    chance = random.Random(f"{seed} core")
    acts += _turns(CORE, itertools.cycle(CORE_FAULTS), chance, (CORE_WELL_S, CORE_FAULTY_S), length_s, scale)
    return sorted(acts, key=lambda act: (act.at_s, act.target))


def _turns(
    target: str,
    kinds: Iterator[tuple[str, Mapping[str, object]]],
    chance: random.Random,
    periods_s: tuple[tuple[float, float], tuple[float, float]],
    length_s: float,
    scale: float,
) -> Iterator[Act]:
    well_s, faulty_s = periods_s
    at_s = 0.0
    while True:
        at_s += scale * chance.uniform(*well_s)
        if at_s >= length_s:
            return
        fault, values = next(kinds)
        yield Act(at_s=at_s, target=target, fault=fault, values=values)
        at_s = min(at_s + scale * chance.uniform(*faulty_s), length_s)
        yield Act(at_s=at_s, target=target, fault="")
