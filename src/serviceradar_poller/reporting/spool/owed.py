"""
What the disk is owed: reports that are done with, and still stand in a file that can't be written.

    core has it, or never takes it ─► the file ─► written: gone from it
                                          └─► can't be written: owed ─► before the next thing that is written

For this process such a report is gone: it is not given again, and counts where it belongs. A kill forgets what is owed,
and the next run sends the report once more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import apsw

from serviceradar_poller.reporting.spool import tables
from serviceradar_poller.reporting.spool.model import PositionKey

#: Reports that may be owed; beyond it the file gives none until it can be written.
OWED_MAX = 10_000

Moved = tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True)
class Deed:
    """
    How a report leaves.

    Attributes:
        moved: The positions that move with it, where core has it.
        reason: Why it is set aside, and wall_s when; empty where core has it.
    """

    moved: Moved = ()
    reason: str = ""
    wall_s: float = 0.0


def carry_out(con: apsw.Connection, deeds: Mapping[int, Deed]) -> None:
    """Take reports out of the file, in order; doing it again changes nothing."""
    moves = 0
    for report_id, deed in deeds.items():
        if deed.reason:
            tables.move_aside(con, report_id, deed.reason, deed.wall_s)
        else:
            tables.delete_report(con, report_id)
            tables.move_positions(con, deed.moved)
            moves += len(deed.moved)
    if moves:
        tables.trim_positions(con)


def move(positions: dict[PositionKey, str], moved: Iterable[tuple[str, str, str]]) -> None:
    """Move *positions*; the ones that have not moved for longest go beyond POSITIONS_MAX."""
    for agent, key, sequence in moved:
        positions.pop((agent, key), None)
        positions[agent, key] = sequence
    while len(positions) > tables.POSITIONS_MAX:
        del positions[next(iter(positions))]
