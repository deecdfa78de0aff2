"""
Decide which name is looked up next, where every look-up may hang and takes a thread for as long as it does.

A look-up can't be ended, so threads have a bound; and names that are not answered must not keep the others from being
asked. So a look-up is *young* for QUICK_S, and only young ones count against the small number that is asked at once;
one that is older holds a thread and nobody up. A name that was late the last time has its place among few, whatever
the others do, and so has one of a zone in which many look-ups are late now. What is left is kept for those who
are likely to be answered, and for core.

=========  =============================================  ======================================================
rank       the look-up of                                 begins while there are fewer than
=========  =============================================  ======================================================
URGENT     core's name                                    LOOKUPS_MAX
PROVEN     a name that was answered quickly last time     PROVEN_MAX, of which PROVEN_YOUNG_MAX are young
NEW        a name of which nothing is known               NEW_MAX, of which NEW_YOUNG_MAX are young
DOUBTED    a name of these two, in a zone that is late    NEW_MAX, of which DOUBTED_MAX are DOUBTED or LATE
LATE       a name that was not answered in QUICK_S        NEW_MAX, of which LATE_MAX are DOUBTED or LATE
=========  =============================================  ======================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, assert_never

#: Look-ups at the same time, each a thread of some 50 KiB.
LOOKUPS_MAX: Final = 64
#: The rest is core's.
PROVEN_MAX: Final = 60
#: The rest is for names that were answered, and for core.
NEW_MAX: Final = 48
#: Names that may turn out to hang and are asked at once; a second later it is the turn of as many others.
NEW_YOUNG_MAX: Final = 8
PROVEN_YOUNG_MAX: Final = 16
#: Names that are likely to hang; those with a better record have some places of their own among them.
DOUBTED_MAX: Final = 32
LATE_MAX: Final = 24
#: An answer that takes longer is late. DNS answers within a fraction of it unless a packet was lost.
QUICK_S: Final = 1.0
#: Look-ups of one zone that are late at the same time and make it a late one.
ZONE_LATE_MIN: Final = 8


class Rank(IntEnum):
    """Who goes first: the lower."""

    URGENT = 0
    PROVEN = 1
    NEW = 2
    DOUBTED = 3
    LATE = 4


@dataclass(slots=True)
class Load:
    """
    Look-ups that were begun and have not ended.

    Attributes:
        running: All of them.
        young: Those of rank PROVEN or NEW that are not late yet.
        doubtful: Those of rank DOUBTED or LATE.
    """

    running: int = 0
    young: int = 0
    doubtful: int = 0


def rank_of(*, urgent: bool, late: bool | None) -> Rank:
    """
    Return the rank of a look-up.

    Args:
        late: Whether the name's last one was; None where nothing is known.
    """
    if urgent:
        return Rank.URGENT
    if late is None:
        return Rank.NEW
    return Rank.LATE if late else Rank.PROVEN


def may_begin(rank: Rank, load: Load) -> bool:
    """Whether a look-up of this rank may begin now."""
    match rank:
        case Rank.URGENT:
            return load.running < LOOKUPS_MAX
        case Rank.PROVEN:
            return load.running < PROVEN_MAX and load.young < PROVEN_YOUNG_MAX
        case Rank.NEW:
            return load.running < NEW_MAX and load.young < NEW_YOUNG_MAX
        case Rank.DOUBTED:
            return load.running < NEW_MAX and load.doubtful < DOUBTED_MAX
        case Rank.LATE:
            return load.running < NEW_MAX and load.doubtful < LATE_MAX
        case _:
            assert_never(rank)


def zone_of(name: str) -> str:
    """Return what names of one zone share, empty for a name without a dot: ``site.lan`` for ``edge-01.site.lan``."""
    return name.rstrip(".").lower().partition(".")[2]
