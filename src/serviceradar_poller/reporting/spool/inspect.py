"""Look into a spool without changing it, also while a poller uses it: what waits, what was set aside, is it sound."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import apsw

from serviceradar_poller.errors import SpoolError, SpoolReadError
from serviceradar_poller.reporting.spool import schema, tables
from serviceradar_poller.reporting.spool.faults import FAULTS, reason_of
from serviceradar_poller.reporting.spool.files import DATABASE, FOLDER
from serviceradar_poller.reporting.spool.model import StoredCall

#: Problems that a verification names one by one.
PROBLEMS_MAX = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """
    A report as an operator sees it.

    Attributes:
        reason: Why it was set aside; empty for one that waits.
        calls: All of them; those whose index is in ``accepted`` core has.
        whole: Its bytes are there; of a large report that was set aside only the figures are kept.
    """

    id: int
    kind: str
    timestamp: int
    change: bool
    fresh: int
    size: int
    attempts: int
    sealed_wall_s: float
    calls: tuple[StoredCall, ...]
    accepted: tuple[int, ...]
    positions: tuple[tuple[str, str, str], ...]
    reason: str = ""
    whole: bool = True


class Inspection:
    """One spool, read only; made by look()."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection

    def rows(self) -> Iterator[Row]:
        """Give all reports that wait, oldest first, and then those set aside."""
        for row in self._connection.execute(
            "SELECT id, kind, timestamp, changed, fresh, size, attempts, sealed_wall_s, calls, accepted, positions,"
            " '', 1 FROM reports ORDER BY id"
        ):
            yield _row(row)
        for row in self._connection.execute(
            "SELECT id, kind, timestamp, 0, fresh, size, attempts, sealed_wall_s, calls, '[]', positions, reason,"
            " body NOTNULL FROM set_aside ORDER BY id"
        ):
            yield _row(row)

    def row(self, report_id: int) -> Row | None:
        """Return one report."""
        return next((row for row in self.rows() if row.id == report_id), None)

    def parts(self, report_id: int) -> Iterator[tuple[int, bytes]]:
        """Give the parts of a report, each with the index of its call."""
        for call_index, data in self._connection.execute(
            "SELECT call_index, data FROM parts WHERE body IN (SELECT body FROM reports WHERE id = ?1"
            " UNION ALL SELECT body FROM set_aside WHERE id = ?1) ORDER BY call_index, part_index",
            (report_id,),
        ):
            yield int(call_index), bytes(data)

    def positions(self) -> dict[tuple[str, str], str]:
        """Return where each results check goes on."""
        return tables.positions(self._connection)

    def verify(self) -> list[str]:
        """Read everything and return what is wrong, at most PROBLEMS_MAX problems; empty for a sound spool."""
        problems: list[str] = []
        for (text,) in self._connection.execute(f"PRAGMA integrity_check({PROBLEMS_MAX})"):
            if text != "ok":
                problems.append(f"structure: {text}")
        for table, rowid, parent, _ in self._connection.execute("PRAGMA foreign_key_check"):
            problems.append(f"structure: row {rowid} of {table} has no {parent}")
        for row in self.rows():
            if len(problems) >= PROBLEMS_MAX:
                break
            problems += self._wrong(row)
        return problems[:PROBLEMS_MAX]

    def _wrong(self, row: Row) -> Iterator[str]:
        if not row.whole:
            return
        found: dict[int, list[int]] = {}
        for call_index, part_index, crc, data in self._connection.execute(
            "SELECT call_index, part_index, crc, data FROM parts WHERE body IN (SELECT body FROM reports WHERE id = ?1"
            " UNION ALL SELECT body FROM set_aside WHERE id = ?1) ORDER BY call_index, part_index",
            (row.id,),
        ):
            assert isinstance(data, bytes) and isinstance(call_index, int)
            if zlib.crc32(data) != crc:
                yield f"report {row.id}: part {call_index}.{part_index} is damaged"
            found.setdefault(call_index, []).append(len(data))
        for call in row.calls:
            sizes = found.get(call.index, [])
            if (len(sizes), sum(sizes)) != (call.part_count, call.size):
                yield f"report {row.id}: call {call.index} has {len(sizes)} of {call.part_count} parts"


@contextlib.contextmanager
def look(directory: Path) -> Iterator[Inspection]:
    """
    Open the spool of a state directory, or a database that was set aside, to read it.

    Raises:
        SpoolReadError: There is none, it is not a spool, or it can't be read.
    """
    path = directory / FOLDER / DATABASE if directory.is_dir() else directory
    if not path.is_file():
        raise SpoolReadError(reason="missing", detail=f"there is no spool at {path}")
    try:
        connection = schema.connect(str(path), write=False)
        try:
            schema.check_identity(connection)
            yield Inspection(connection)
        finally:
            connection.close(force=True)
    except schema.UnusableFileError as error:
        raise SpoolReadError(reason=error.reason, detail=f"{path}: {error}") from error
    except SpoolError:
        raise
    except FAULTS as error:
        raise SpoolReadError(reason=reason_of(error), detail=f"{path}: {error}") from error


def _row(row: tuple[object, ...]) -> Row:
    report_id, kind, timestamp, changed, fresh, size, attempts, sealed, calls, accepted, positions, reason, whole = row
    return Row(
        id=_int(report_id),
        kind=str(kind),
        timestamp=_int(timestamp),
        change=bool(changed),
        fresh=_int(fresh),
        size=_int(size),
        attempts=_int(attempts),
        sealed_wall_s=float(str(sealed)),
        calls=tables.stored_calls(str(calls)),
        accepted=tuple(tables.decode_indexes(str(accepted))),
        positions=tables.decode_positions(str(positions)),
        reason=str(reason),
        whole=bool(whole),
    )


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value
