"""The ``spool`` command: what waits for core in a state directory, what was set aside, and is it sound."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from serviceradar_poller.env import SystemClock
from serviceradar_poller.errors import SpoolError
from serviceradar_poller.observe.text import clean
from serviceradar_poller.reporting.spool import SpoolSettings, StoredCall
from serviceradar_poller.reporting.spool.engine import Engine
from serviceradar_poller.reporting.spool.inspect import Row, look
from serviceradar_poller.wire.codec import DecodeError, decode_poller_status_chunk, decode_poller_status_request
from serviceradar_poller.wire.messages import ServiceStatus

#: Statuses that ``show`` prints of one report.
STATUSES_SHOWN_MAX = 200
#: Reports sealed within this time say how fast it grows.
GROWTH_S = 600.0
ACTIONS = ("list", "show", "verify", "drop")


def spool(directory: Path, action: str, ids: Sequence[int], *, out: TextIO) -> int:
    """
    Do *action* on the spool in *directory*; only ``drop`` changes it, and not while a poller uses it.

    Args:
        directory: The state directory; for reading also a database file that was set aside.
        action: One of ACTIONS.
        ids: Of reports, as ``list`` prints them; ``show`` takes one, ``drop`` one or more.
    Returns:
        0 when it is done and nothing is wrong.
    Raises:
        SpoolError: There is no such spool or report, it is damaged, or a poller uses it.
    """
    match action:
        case "show":
            return _show(directory, ids, out)
        case "verify":
            return _verify(directory, out)
        case "drop":
            return _drop(directory, ids, out)
    return _list(directory, out)


def _list(directory: Path, out: TextIO) -> int:
    with look(directory) as inspection:
        print(f"{'ID':>8}  {'TIME':20}  {'KIND':9}  {'STATUSES':>8}  {'BYTES':>12}  {'TRIES':>5}  NOTE", file=out)
        waiting = aside = fresh = size = 0
        now_s = SystemClock().wall()
        first_s = now_s
        added = 0
        for row in inspection.rows():
            print(
                f"{row.id:>8}  {_time(row.timestamp):20}  {clean(row.kind):9}  {row.fresh:>8}  {row.size:>12,}"
                f"  {row.attempts:>5}  {_note(row)}".rstrip(),
                file=out,
            )
            if row.reason:
                aside += 1
            else:
                waiting += 1
                fresh += row.fresh
                size += row.size
                if now_s - GROWTH_S <= row.sealed_wall_s <= now_s:
                    # The first one stands at the beginning of the time, not in it.
                    added += row.size if first_s < now_s else 0
                    first_s = min(first_s, row.sealed_wall_s)
    print(f"{waiting} reports wait with {fresh} statuses and {size:,} bytes; {aside} are set aside", file=out)
    if growth := _growth(directory, now_s - first_s, added):
        print(growth, file=out)
    return 0


def _growth(directory: Path, span_s: float, added: int) -> str:
    """Return how fast it grows and how long the disk lasts; empty where too little was sealed lately to say."""
    if span_s <= 0 or added <= 0:
        return ""
    per_h = added / span_s * 3_600
    disk = os.statvfs(directory)
    free = disk.f_bavail * disk.f_frsize
    return f"{per_h:,.0f} bytes an hour were added lately; the disk has {free:,}, room for {free / per_h:,.1f} hours"


def _show(directory: Path, ids: Sequence[int], out: TextIO) -> int:
    (report_id,) = ids
    with look(directory) as inspection:
        row = inspection.row(report_id)
        if row is None:
            raise _unknown(report_id)
        print(f"report {row.id}: {clean(row.kind)}, {_note(row) or 'waits'}", file=out)
        print(
            f"  of {_time(row.timestamp)}, sealed {_time(row.sealed_wall_s)}, {row.attempts} failed attempts", file=out
        )
        print(f"  {row.fresh} statuses that core has not seen, {row.size:,} bytes", file=out)
        for agent, key, sequence in row.positions:
            print(f"  position of {clean(agent)} {clean(key)}: {clean(sequence)}", file=out)
        for call in row.calls:
            state = "core has it" if call.index in row.accepted else "waits"
            print(
                f"  call {call.index}: {call.kind}, {call.status_count} statuses, {call.part_count} parts,"
                f" {call.size:,} bytes, {state}",
                file=out,
            )
        kinds = {call.index: call for call in row.calls}
        shown = 0
        for call_index, data in inspection.parts(report_id):
            for status in _statuses(kinds.get(call_index), data):
                if shown == STATUSES_SHOWN_MAX:
                    print(f"  … only the first {STATUSES_SHOWN_MAX} statuses are shown", file=out)
                    return 0
                shown += 1
                state = "available" if status.available else "unavailable"
                name = f"{clean(status.agent_id)} {clean(status.service_name)} ({clean(status.service_type)})"
                print(f"    {name}: {state}, {len(status.message):,} bytes", file=out)
    return 0


def _verify(directory: Path, out: TextIO) -> int:
    with look(directory) as inspection:
        problems = inspection.verify()
        rows = sum(1 for _ in inspection.rows()) if not problems else 0
    if problems:
        for problem in problems:
            print(problem, file=out)
        raise SpoolError(reason="damaged", detail=f"{len(problems)} problems found")
    print(f"ok: {rows} reports, every part as it was written", file=out)
    return 0


def _drop(directory: Path, ids: Sequence[int], out: TextIO) -> int:
    with look(directory) as inspection:
        for report_id in ids:
            if inspection.row(report_id) is None:
                raise _unknown(report_id)
    clock = SystemClock()
    # Nothing of it is used up: the bounds that the poller has are not those of this command.
    settings = SpoolSettings(directory=directory, reserve_bytes=0)
    engine = Engine(settings, wall=clock.wall, monotonic=clock.monotonic)
    _dropping(engine, ids, lambda text: print(text, file=out))
    return 0


def _dropping(engine: Engine, ids: Sequence[int], say: Callable[[str], None]) -> None:
    engine.open()
    try:
        for report_id in ids:
            if engine.drop(report_id):
                say(f"dropped report {report_id}")
    finally:
        engine.close()


def _statuses(call: StoredCall | None, data: bytes) -> tuple[ServiceStatus, ...]:
    try:
        if call is None or call.kind == "stream":
            return decode_poller_status_chunk(data).services
        return decode_poller_status_request(data).services
    except DecodeError:
        return ()


def _note(row: Row) -> str:
    notes = ["change"] if row.change else []
    if row.reason:
        notes.append(f"set aside: {clean(row.reason)}")
        if not row.whole:
            notes.append("its bytes were not kept")
    return ", ".join(notes)


def _time(unix_s: float) -> str:
    try:
        return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return f"{unix_s:g}"


def _unknown(report_id: int) -> SpoolError:
    return SpoolError(reason="unknown", detail=f"there is no report {report_id}")
