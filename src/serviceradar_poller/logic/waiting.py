"""
Decide which reports have waited too long, without asking what time it is.

A clock on the wall is set: by hand, or from 1970 to today when a device without a battery finds its time server. What
counts is how long the poller has had a report, by a clock that nobody sets. Now and then it is marked up to which id
reports were there; what was there at a mark that is old enough is too old, wherever it came from.

    ids     1 … 40          41 … 90          91 …
            └ mark, 3 days  └ mark, 2 days   └ not marked yet
              ago: too old    ago: they wait
"""

from __future__ import annotations

from dataclasses import dataclass

#: A report is given up up to this part of its time too late.
MARKS_MAX = 72


@dataclass(frozen=True, slots=True)
class Mark:
    """Every report up to ``last_id`` was there at ``at_s``, monotonic seconds."""

    at_s: float
    last_id: int


def look(
    marks: tuple[Mark, ...], *, now_s: float, last_id: int, age_max_s: float
) -> tuple[tuple[Mark, ...], int | None]:
    """
    Return the marks to go on with, and the greatest id that has waited for *age_max_s*; None where none has.

    Args:
        marks: Oldest first; none at the start.
        last_id: The greatest id that was ever given.
    """
    passed = [mark for mark in marks if mark.at_s <= now_s - age_max_s]
    kept = marks[max(len(passed) - 1, 0) :]  # the last one that passed is asked for until a newer one has
    if not kept or now_s - kept[-1].at_s >= age_max_s / MARKS_MAX:
        kept = (*kept, Mark(now_s, last_id))
    return kept, passed[-1].last_id if passed else None
