from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serviceradar_poller.logic import lookups
from serviceradar_poller.logic.lookups import Load, Rank, may_begin, rank_of, zone_of

LOADS = st.builds(
    lambda running, young, doubtful: Load(running=running, young=min(young, running), doubtful=min(doubtful, running)),
    st.integers(0, 70),
    st.integers(0, 70),
    st.integers(0, 70),
)


@given(LOADS)
def test_threads_are_bounded(load: Load) -> None:
    """Whatever its rank, no look-up begins beyond the bound of all."""
    for rank in Rank:
        if may_begin(rank, load):
            assert load.running < lookups.LOOKUPS_MAX


@pytest.mark.slow
@given(LOADS, LOADS)
def test_more_load_never_lets_more_begin(load: Load, more: Load) -> None:
    """What may not begin now may not when more is under way."""
    both = Load(
        running=load.running + more.running, young=load.young + more.young, doubtful=load.doubtful + more.doubtful
    )
    for rank in Rank:
        if may_begin(rank, both):
            assert may_begin(rank, load)


@pytest.mark.slow
@given(LOADS, st.integers(0, 70), st.integers(0, 70))
def test_those_who_are_likely_to_hang_hold_nobody_up(load: Load, doubtful: int, late: int) -> None:
    """However many names are doubted or late, a place is left for each rank before them."""
    running = min(lookups.DOUBTED_MAX, doubtful)  # more of them are never begun
    assert may_begin(Rank.NEW, Load(running=running, doubtful=running))
    running = lookups.NEW_MAX  # nor are more that were new
    assert may_begin(Rank.PROVEN, Load(running=running, young=min(late, lookups.NEW_YOUNG_MAX)))
    running = lookups.PROVEN_MAX
    assert may_begin(Rank.URGENT, Load(running=running, young=load.young))


def test_late_ones_leave_places_to_the_doubted() -> None:
    """A good name in a zone that is late does not wait behind those that were late themselves."""
    load = Load(running=lookups.LATE_MAX, doubtful=lookups.LATE_MAX)
    assert not may_begin(Rank.LATE, load)
    assert may_begin(Rank.DOUBTED, load)


def test_ranks() -> None:
    """Core first, then who was answered, then who is unknown, then who was late."""
    ranks = [rank_of(urgent=True, late=True), *(rank_of(urgent=False, late=late) for late in (False, None, True))]
    assert ranks == [Rank.URGENT, Rank.PROVEN, Rank.NEW, Rank.LATE]
    assert ranks == sorted(ranks)


@pytest.mark.parametrize(
    ("name", "zone"),
    [("localhost", ""), ("edge-1.lan", "lan"), ("edge-1.Site.LAN.", "site.lan"), ("", ""), (".", "")],
)
def test_zones(name: str, zone: str) -> None:
    """The zone is what stands behind the first dot, however it is written."""
    assert zone_of(name) == zone
