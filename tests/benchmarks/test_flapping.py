"""What flaps when is decided by a seed alone, and all is well in the end."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.flapping import CORE, CORE_FAULTS, FAULTS, Act, choose, plan
from serviceradar_poller.lab.core import core_fault_from_json
from serviceradar_poller.lab.faults import fault_from_json

AGENTS = [f"agent-{number:04d}" for number in range(1, 41)]
seeds = st.integers(0, 1000)
lengths_s = st.floats(0.5, 600.0)


def _by_target(acts: list[Act]) -> dict[str, list[Act]]:
    found: dict[str, list[Act]] = defaultdict(list)
    for act in acts:
        found[act.target].append(act)
    return found


@given(seeds, lengths_s, st.sampled_from([0.1, 1.0]))
def test_whatever_has_a_fault_is_well_in_the_end(seed: int, length_s: float, scale: float) -> None:
    """Of each agent and of core, faults and ends of faults take turns, in order of time, and the last is an end."""
    acts = plan(AGENTS[:8], seed=seed, length_s=length_s, scale=scale)
    assert all(0.0 < act.at_s <= length_s for act in acts)
    assert all(before.at_s <= after.at_s for before, after in itertools.pairwise(acts))
    for turns in _by_target(acts).values():
        assert len(turns) % 2 == 0
        assert all(bool(act.fault) is (index % 2 == 0) for index, act in enumerate(turns))


@given(seeds, lengths_s)
def test_one_seed_gives_one_plan(seed: int, length_s: float) -> None:
    """The same seed gives the same acts, and an agent's do not depend on how many others there are."""
    acts = plan(AGENTS[:4], seed=seed, length_s=length_s)
    assert acts == plan(AGENTS[:4], seed=seed, length_s=length_s)
    more = plan(AGENTS[:9], seed=seed, length_s=length_s)
    assert [act for act in more if act.target in (CORE, *AGENTS[:4])] == acts


def test_another_seed_gives_another_plan() -> None:
    """Neither the agents that flap nor their times are always the same."""
    assert choose(AGENTS, share=0.2, seed=1) != choose(AGENTS, share=0.2, seed=2)
    assert plan(AGENTS[:4], seed=1, length_s=60.0) != plan(AGENTS[:4], seed=2, length_s=60.0)


@given(st.floats(0.0, 1.0), seeds)
def test_a_share_of_the_agents_flaps(share: float, seed: int) -> None:
    """As many as the share says, one at least, each once."""
    chosen = choose(AGENTS, share=share, seed=seed)
    assert len(chosen) == len(set(chosen)) == max(round(share * len(AGENTS)), 1)
    assert set(chosen) <= set(AGENTS)


def test_each_kind_of_fault_is_met_about_as_often_as_the_others() -> None:
    """In half an hour of forty agents no kind is met half as often as another; core has each of its own."""
    acts = plan(AGENTS, seed=3, length_s=1800.0)
    met = Counter((act.fault, tuple(act.values.items())) for act in acts if act.fault and act.target != CORE)
    assert set(met) == {(fault, tuple(values.items())) for fault, values in FAULTS}
    assert max(met.values()) < 2 * min(met.values())
    assert {act.fault for act in acts if act.fault and act.target == CORE} == {fault for fault, _ in CORE_FAULTS}


def test_the_simulated_peers_know_every_fault() -> None:
    """Each is one that agents or core can be told to have."""
    for fault, values in FAULTS:
        assert fault_from_json({"fault": fault, **values}).kind.value == fault
    for fault, values in CORE_FAULTS:
        assert core_fault_from_json({"fault": fault, **values}).kind.value == fault
