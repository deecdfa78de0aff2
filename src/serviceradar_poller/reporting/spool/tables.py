"""The statements of the spool; each function runs inside a transaction that its caller holds."""

from __future__ import annotations

import zlib
from collections.abc import Container, Iterator
from typing import Any

import apsw
import msgspec

from serviceradar_poller.reporting.spool.ledger import Entry
from serviceradar_poller.reporting.spool.model import (
    CallKind,
    NewReport,
    PositionKey,
    StoredCall,
    StoredReport,
)

#: One for each results check; the one that has not moved for longest goes, and its next result is a whole one.
POSITIONS_MAX = 100_000
#: Reports that leave in one transaction, so that the log stays small.
EXPIRE_BATCH = 1_000

_ENTRY = "SELECT id, kind, fresh, size, timestamp FROM reports"
_encode = msgspec.json.Encoder().encode
#: A call as it is kept: kind, parts, bytes, statuses.
_CallRow = tuple[CallKind, int, int, int]
_calls = msgspec.json.Decoder(tuple[_CallRow, ...]).decode
decode_indexes = msgspec.json.Decoder(list[int]).decode
decode_positions = msgspec.json.Decoder(tuple[tuple[str, str, str], ...]).decode


def insert_report(
    con: apsw.Connection, report_id: int, body: int, report: NewReport, calls: tuple[_CallRow, ...], wall_s: float
) -> Entry:
    """Make the report of *body* visible."""
    size = sum(call[2] for call in calls)
    con.execute(
        "INSERT INTO reports (id, body, kind, timestamp, changed, fresh, size, sealed_wall_s, calls, positions)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            report_id, body, report.kind, report.timestamp, int(report.change), report.fresh, size, wall_s,
            _encode(calls).decode(), _encode(report.positions).decode(),
        ),
    )  # fmt: skip
    return Entry(report_id, report.kind, report.fresh, size, report.timestamp)


def call_rows(report: NewReport) -> tuple[_CallRow, ...]:
    """Return the calls of *report* as they are kept."""
    return tuple((call.kind, len(call.parts), sum(map(len, call.parts)), call.status_count) for call in report.calls)


def insert_body(con: apsw.Connection, body: int) -> None:
    """Make a place for bytes."""
    con.execute("INSERT INTO bodies (id) VALUES (?)", (body,))


def insert_part(con: apsw.Connection, body: int, call_index: int, part_index: int, data: bytes) -> None:
    """Store one part."""
    con.execute("INSERT INTO parts VALUES (?, ?, ?, ?, ?)", (body, call_index, part_index, zlib.crc32(data), data))


def delete_body(con: apsw.Connection, body: int) -> None:
    """Delete bytes."""
    con.execute("DELETE FROM bodies WHERE id = ?", (body,))


def delete_orphans(con: apsw.Connection) -> None:
    """Delete the bytes of results that were never sealed."""
    con.execute(
        "DELETE FROM bodies WHERE id NOT IN (SELECT body FROM reports)"
        " AND id NOT IN (SELECT body FROM set_aside WHERE body IS NOT NULL)"
    )


def delete_report(con: apsw.Connection, report_id: int) -> None:
    """Delete a report with its bytes."""
    con.execute("DELETE FROM bodies WHERE id = (SELECT body FROM reports WHERE id = ?)", (report_id,))
    con.execute("DELETE FROM reports WHERE id = ?", (report_id,))


def entry(con: apsw.Connection, report_id: int) -> Entry | None:
    """Return a report as the bounds see it."""
    row = con.execute(f"{_ENTRY} WHERE id = ?", (report_id,)).fetchone()
    return None if row is None else Entry(*row)


def candidates(con: apsw.Connection, *, changes: bool, spared: int | None) -> Iterator[Entry]:
    """Give what may go for want of room: repeats, oldest first, and then *changes*."""
    for wanted in (0, 1)[: 1 + changes]:
        for row in con.execute(f"{_ENTRY} WHERE changed = ? AND id IS NOT ? ORDER BY id", (wanted, spared)):
            yield Entry(*row)


def oldest_first(con: apsw.Connection, *, spared: int | None) -> Iterator[Entry]:
    """Give the first EXPIRE_BATCH reports."""
    for row in con.execute(f"{_ENTRY} WHERE id IS NOT ? ORDER BY id LIMIT {EXPIRE_BATCH}", (spared,)):
        yield Entry(*row)


def oldest_timestamp(con: apsw.Connection, *, passed: Container[int] = ()) -> int | None:
    """Return the timestamp of the head; those that were *passed* don't count."""
    for report_id, timestamp in con.execute("SELECT id, timestamp FROM reports ORDER BY id"):
        if report_id not in passed:
            return int(timestamp)
    return None


def head(con: apsw.Connection, *, skip: int = 0, passed: Container[int] = ()) -> StoredReport | None:
    """Return the oldest report that was not *passed*, after *skip* others, with the calls that core does not have."""
    for (report_id,) in con.execute("SELECT id FROM reports ORDER BY id"):
        if report_id in passed:
            continue
        if not skip:
            return _stored(con, report_id)
        skip -= 1
    return None


def _stored(con: apsw.Connection, report_id: int) -> StoredReport:
    kind, timestamp, changed, fresh, size, attempts, wall_s, calls, accepted = _row(
        con.execute(
            "SELECT kind, timestamp, changed, fresh, size, attempts, sealed_wall_s, calls, accepted"
            " FROM reports WHERE id = ?",
            (report_id,),
        )
    )
    done = set(decode_indexes(accepted))
    return StoredReport(
        id=report_id,
        kind=kind,
        timestamp=timestamp,
        change=bool(changed),
        fresh=fresh,
        size=size,
        attempts=attempts,
        sealed_wall_s=wall_s,
        calls=tuple(call for call in stored_calls(calls) if call.index not in done),
    )


def stored_calls(text: str) -> tuple[StoredCall, ...]:
    """Return all calls of a report from what is kept of them."""
    return tuple(
        StoredCall(index=index, kind=kind, part_count=parts, size=size, status_count=statuses)
        for index, (kind, parts, size, statuses) in enumerate(_calls(text))
    )


def part(con: apsw.Connection, report_id: int, call_index: int, part_index: int) -> tuple[bytes, bool] | None:
    """Return one part and whether it is what was written; None where there is none."""
    row = con.execute(
        "SELECT crc, data FROM parts WHERE body = (SELECT body FROM reports WHERE id = ?)"
        " AND call_index = ? AND part_index = ?",
        (report_id, call_index, part_index),
    ).fetchone()
    return None if row is None else (row[1], zlib.crc32(row[1]) == row[0])


def mark_call(con: apsw.Connection, report_id: int, call_index: int) -> None:
    """Remember that core has a call."""
    row = con.execute("SELECT accepted FROM reports WHERE id = ?", (report_id,)).fetchone()
    if row is not None:
        done = sorted({*decode_indexes(row[0]), call_index})
        con.execute("UPDATE reports SET accepted = ? WHERE id = ?", (_encode(done).decode(), report_id))


def count_attempt(con: apsw.Connection, report_id: int) -> int:
    """Count a failed attempt; 0 where the report is gone."""
    found = con.execute("UPDATE reports SET attempts = attempts + 1 WHERE id = ? RETURNING attempts", (report_id,)).get
    return found if isinstance(found, int) else 0


def positions_of(con: apsw.Connection, report_id: int) -> tuple[tuple[str, str, str], ...]:
    """Return the positions that a report moves."""
    (found,) = _row(con.execute("SELECT positions FROM reports WHERE id = ?", (report_id,)))
    return decode_positions(found)


def move_positions(con: apsw.Connection, moved: tuple[tuple[str, str, str], ...]) -> None:
    """Move positions; REPLACE gives each a new place in the order of moves."""
    for position in moved:
        con.execute("INSERT OR REPLACE INTO positions (agent, key, sequence) VALUES (?, ?, ?)", position)


def trim_positions(con: apsw.Connection) -> None:
    """Forget the positions beyond POSITIONS_MAX that have not moved for longest."""
    (count,) = _row(con.execute("SELECT count(*) FROM positions"))
    if count > POSITIONS_MAX:
        con.execute(
            "DELETE FROM positions WHERE rowid IN (SELECT rowid FROM positions ORDER BY rowid LIMIT ?)",
            (count - POSITIONS_MAX,),
        )


def positions(con: apsw.Connection) -> dict[PositionKey, str]:
    """Return all positions in the order of their moves."""
    rows = con.execute("SELECT agent, key, sequence FROM positions ORDER BY rowid")
    return {(agent, key): sequence for agent, key, sequence in _rows(rows)}


def move_aside(con: apsw.Connection, report_id: int, reason: str, wall_s: float) -> None:
    """Move a report out of the way."""
    con.execute(
        "INSERT INTO set_aside SELECT id, body, kind, timestamp, fresh, size, sealed_wall_s, attempts, calls,"
        " positions, ?, ? FROM reports WHERE id = ?",
        (reason, wall_s, report_id),
    )
    con.execute("DELETE FROM reports WHERE id = ?", (report_id,))


def trim_aside(con: apsw.Connection, *, count_max: int, bytes_max: int) -> tuple[int, int]:
    """Keep the newest set-aside reports within the bounds; return how many there are and the bytes they hold."""
    count = held = 0
    for report_id, body, size in [*_rows(con.execute("SELECT id, body, size FROM set_aside ORDER BY id DESC"))]:
        count += 1
        if count > count_max:
            con.execute("DELETE FROM set_aside WHERE id = ?", (report_id,))
        if body is None:
            continue
        held += size
        if held > bytes_max or count > count_max:
            # What it was stays known, where only its bytes are too much.
            held -= size
            delete_body(con, body)
            con.execute("UPDATE set_aside SET body = NULL WHERE id = ?", (report_id,))
    return min(count, count_max), held


def delete_aside(con: apsw.Connection, report_id: int) -> bool:
    """Delete a set-aside report; say whether there was one."""
    con.execute("DELETE FROM bodies WHERE id = (SELECT body FROM set_aside WHERE id = ?)", (report_id,))
    con.execute("DELETE FROM set_aside WHERE id = ?", (report_id,))
    return con.changes() > 0


def totals(con: apsw.Connection) -> tuple[int, int, int]:
    """Return the reports, their bytes and their fresh statuses."""
    row = _row(con.execute("SELECT count(*), coalesce(sum(size), 0), coalesce(sum(fresh), 0) FROM reports"))
    return int(row[0]), int(row[1]), int(row[2])


def aside_totals(con: apsw.Connection) -> tuple[int, int]:
    """Return the set-aside reports and the bytes that are kept of them."""
    row = _row(con.execute("SELECT count(*), coalesce(sum(size) FILTER (WHERE body NOTNULL), 0) FROM set_aside"))
    return int(row[0]), int(row[1])


def last_ids(con: apsw.Connection) -> tuple[int, int]:
    """Return the greatest id of a report, set aside or not, and of a body; 0 where there is none."""
    row = _row(
        con.execute(
            "SELECT max((SELECT coalesce(max(id), 0) FROM reports), (SELECT coalesce(max(id), 0) FROM set_aside)),"
            " (SELECT coalesce(max(id), 0) FROM bodies)"
        )
    )
    return int(row[0]), int(row[1])


def _rows(cursor: apsw.Cursor) -> Iterator[tuple[Any, ...]]:
    yield from cursor


def _row(cursor: apsw.Cursor) -> tuple[Any, ...]:
    """Return the only row of a query that always has one."""
    row: tuple[Any, ...]
    (row,) = cursor
    return row
