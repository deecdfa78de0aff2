"""
Do what a spool does, at once and in one thread: each operation is a transaction, its figures and its events.

An operation that frees space may use the reserve where the disk is full; one that takes space first sees that the
reserve is whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TypeVar

import apsw

from serviceradar_poller.errors import SpoolReadError, SpoolWriteError
from serviceradar_poller.events.polling import PollingEvent, ReportSetAside
from serviceradar_poller.logic.waiting import Mark, look
from serviceradar_poller.reporting.spool import faults, tables
from serviceradar_poller.reporting.spool.database import Database
from serviceradar_poller.reporting.spool.files import SpoolFiles
from serviceradar_poller.reporting.spool.ledger import DISK_FULL, EXPIRED, FULL, Entry, Ledger, choose, told
from serviceradar_poller.reporting.spool.model import (
    CallKind,
    Gone,
    NewReport,
    PositionKey,
    SpoolSettings,
    SpoolStats,
    StoredReport,
)
from serviceradar_poller.reporting.spool.owed import Deed, Moved, move
from serviceradar_poller.reporting.spool.transactions import Transactions

T = TypeVar("T")

#: Rounds of deleting and giving back that make room for a report: the log's own file is part of what is missing, and
#: how much of it comes back shows afterwards.
ROOM_ROUNDS = 4


class Engine:
    """
    A spool without a thread.

    Args:
        wall: Unix seconds.
        monotonic: Seconds that never go backwards.
        files: Other than the real ones for tests of full disks.
        vfs: SQLite's file system; empty for the real one.
    """

    def __init__(
        self,
        settings: SpoolSettings,
        *,
        wall: Callable[[], float],
        monotonic: Callable[[], float],
        files: SpoolFiles | None = None,
        vfs: str = "",
    ) -> None:
        self._settings = settings
        self._wall = wall
        self._monotonic = monotonic
        self._files = files or SpoolFiles(settings.directory, reserve_bytes=settings.reserve_bytes)
        self._ledger = Ledger(limit_bytes=settings.bytes_max)
        self._database = Database(self._files, self._ledger, wall=wall, monotonic=monotonic, vfs=vfs)
        self._transactions = Transactions(settings, self._files, self._ledger, self._database)
        self._busy: int | None = None
        self._marks: tuple[Mark, ...] = ()
        self._moved: list[tuple[str, str, str]] = []

    def open(self) -> None:
        """Take the directory and open the database; SpoolError where the directory can't be used."""
        self._files.open()
        self._database.start()
        self._files.reserve()

    def close(self) -> None:
        """Close; may be called twice."""
        with contextlib.suppress(SpoolWriteError):
            self._transactions.settle()
        self._database.close()
        self._files.close()

    def seal(self, report: NewReport) -> int:
        """Store a report durably and return its id."""
        assert report.calls
        size = report.size

        def store(con: apsw.Connection) -> tuple[Entry, list[Entry]]:
            victims = self._make_room(con, size, changes=report.change, reports=1)
            body = self._next_body()
            tables.insert_body(con, body)
            for call_index, call in enumerate(report.calls):
                for part_index, part in enumerate(call.parts):
                    tables.insert_part(con, body, call_index, part_index, part)
            return self._insert(con, body, report, tables.call_rows(report)), victims

        return self._enter(store, size=size)

    def head(self) -> StoredReport | None:
        """Return the oldest report and spare it from now on."""
        found = self._transactions.head()
        self._busy = None if found is None else found.id
        return found

    def second(self) -> StoredReport | None:
        """Return the oldest report but one and spare it from now on."""
        found = self._transactions.head(skip=1)
        if found is not None:
            self._busy = found.id
        return found

    def part(self, report_id: int, call_index: int, part_index: int) -> bytes:
        """Return one part."""
        found = self._transactions.read(lambda con: tables.part(con, report_id, call_index, part_index), lost=None)
        if found is None:
            raise SpoolReadError(reason="gone", detail=f"there is no part {call_index}.{part_index} of {report_id}")
        data, whole = found
        if not whole:
            raise SpoolReadError(reason="damaged", detail=f"part {call_index}.{part_index} of {report_id} is damaged")
        return data

    def call_accepted(self, report_id: int, call_index: int) -> None:
        """Remember that core has a call."""
        self._transactions.write(lambda con: tables.mark_call(con, report_id, call_index), frees=True)

    def accepted(self, report_id: int) -> None:
        """Delete a report and move its positions; what can't be written is owed."""
        moved = self._transactions.find(lambda con: tables.positions_of(con, report_id), report_id)
        left = None if moved is None else self._transactions.part_with(report_id, Deed(moved=moved))
        self._release(report_id)
        if moved is not None and left is not None:
            self._ledger.accept(*left)
            move(self._database.positions, moved)
            self._moved += moved

    def failed(self, report_id: int) -> int:
        """Count a failed attempt and return how many there were."""
        self._release(report_id)
        return self._transactions.write(lambda con: tables.count_attempt(con, report_id), frees=True)

    def set_aside(self, report_id: int, reason: str, *, rejected: int | None = None) -> None:
        """Move a report out of the way; what can't be written is owed."""
        found = self._transactions.find(lambda con: True, report_id)
        left = (
            None if found is None else self._transactions.part_with(report_id, Deed(reason=reason, wall_s=self._wall()))
        )
        self._release(report_id)
        if left is not None:
            entry, oldest = left
            count = self._ledger.reject(entry, oldest, rejected)
            self._database.events.append(
                ReportSetAside(kind=entry.kind, statuses=count, reason=reason, report_id=report_id)
            )

    def expire(self, now_s: float) -> Gone:
        """Give up what has waited for longer than the bound; do what is owed, too."""
        self._marks, too_old = look(
            self._marks, now_s=now_s, last_id=self._database.last_id, age_max_s=self._settings.age_max_s
        )
        self._transactions.settle()
        gone = Gone()
        while too_old is not None and self._ledger.oldest is not None:

            def delete(con: apsw.Connection, too_old: int = too_old) -> tuple[list[Entry], int | None]:
                old = [entry for entry in tables.oldest_first(con, spared=self._busy) if entry.id <= too_old]
                for entry in old:
                    tables.delete_report(con, entry.id)
                return old, tables.oldest_timestamp(con)

            old, oldest = self._transactions.write(delete, frees=True)
            each = self._gave_up(old, oldest, EXPIRED)
            gone = Gone(reports=gone.reports + each.reports, fresh=gone.fresh + each.fresh)
            if len(old) < tables.EXPIRE_BATCH:
                break
        return gone

    def make_room(self, size: int) -> Gone:
        """Give up the oldest repeats for a report of *size* bytes on a full disk; nothing where they don't suffice."""
        gone = Gone()
        for _ in range(ROOM_ROUNDS):
            missing = self._missing(size)
            if missing <= 0:
                break
            each = self._give_way(missing)
            gone = Gone(reports=gone.reports + each.reports, fresh=gone.fresh + each.fresh)
            if not each.reports:
                break
        self._transactions.made_room = gone.reports > 0
        return gone

    def _give_way(self, missing: int) -> Gone:
        """Delete the oldest repeats that hold *missing* bytes, and give what they took back to the disk."""

        def delete(con: apsw.Connection) -> tuple[list[Entry], int | None]:
            victims = choose(
                tables.candidates(con, changes=False, spared=self._busy), bytes_over=missing, reports_over=0
            )
            for entry in victims or ():
                tables.delete_report(con, entry.id)
            return victims or [], tables.oldest_timestamp(con)

        victims, oldest = self._transactions.write(delete, frees=True)
        self._database.run_short()
        # Pages that are free within the file are no room for anybody: step by step, until they are with the disk.
        while victims and self._database.maintain():
            continue
        return self._gave_up(victims, oldest, DISK_FULL)

    def drop(self, report_id: int) -> bool:
        """Delete a report, waiting or set aside, because the operator wants it; say whether there was one."""

        def delete(con: apsw.Connection) -> tuple[Entry | None, int | None, bool]:
            entry = tables.entry(con, report_id)
            if entry is not None:
                tables.delete_report(con, report_id)
            return entry, tables.oldest_timestamp(con), tables.delete_aside(con, report_id)

        entry, oldest, aside = self._transactions.write(delete, frees=True)
        if entry is not None:
            self._gave_up([entry], oldest, "operator")
        return entry is not None or aside

    # -- results, part by part

    def begin_result(self) -> tuple[int, int]:
        """Make a place for a result; return its body and epoch."""
        body = self._next_body()
        self._need_space(0)
        self._transactions.write(lambda con: tables.insert_body(con, body), frees=False)
        return body, self._database.epoch

    def add(self, body: int, epoch: int, index: int, part: bytes, meta: NewReport) -> None:
        """Write the next part of a result."""
        self._check_epoch(epoch)
        self._need_space(len(part))

        def store(con: apsw.Connection) -> tuple[list[Entry], int | None]:
            victims = self._make_room(con, len(part), changes=meta.change, reports=0)
            self._check_epoch(epoch)
            tables.insert_part(con, body, 0, index, part)
            return victims, tables.oldest_timestamp(con)

        victims, oldest = self._transactions.write(store, frees=False)
        self._gave_up(victims, oldest, FULL)
        self._ledger.writing += len(part)

    def seal_result(self, body: int, epoch: int, report: NewReport, kind: CallKind, calls: tuple[int, int, int]) -> int:
        """Make a result visible; *calls* are its one call's parts, bytes and statuses."""
        self._check_epoch(epoch)

        def store(con: apsw.Connection) -> tuple[Entry, list[Entry]]:
            victims = self._make_room(con, 0, changes=report.change, reports=1)
            self._check_epoch(epoch)
            return self._insert(con, body, report, ((kind, *calls),)), victims

        report_id = self._enter(store, size=0)
        self._ledger.writing -= calls[1]
        return report_id

    def abandon(self, body: int, epoch: int, size: int) -> None:
        """Delete what was written of a result; what can't be deleted now goes at the next open."""
        if epoch == self._database.epoch:
            self._ledger.writing -= size
            try:
                self._transactions.write(lambda con: tables.delete_body(con, body), frees=True)
            except SpoolWriteError:
                return  # counted and told

    # -- what the owner asks for after each operation

    def stats(self) -> SpoolStats:
        """Return the figures."""
        return self._ledger.stats(
            free_bytes=self._files.free_bytes(), file_bytes=self._files.file_bytes(), owed=len(self._database.owed)
        )

    def positions(self) -> dict[PositionKey, str]:
        """Return all positions."""
        return dict(self._database.positions)

    def take_events(self) -> list[PollingEvent]:
        """Return what happened since the last call."""
        taken, self._database.events = self._database.events, []
        return taken

    def take_moved(self) -> Moved:
        """Return the positions that moved since the last call."""
        taken, self._moved = tuple(self._moved), []
        return taken

    @property
    def wants_maintenance(self) -> bool:
        """Whether there is work that may wait until nobody does."""
        return self._database.wants_maintenance

    def maintain(self) -> bool:
        """Do a step of that work; say whether there is more."""
        return self._database.maintain()

    # -- inside

    def _enter(self, store: Callable[[apsw.Connection], tuple[Entry, list[Entry]]], *, size: int) -> int:
        began_s = self._monotonic()
        if size > self._settings.bytes_max:
            detail = f"{size} bytes are above the bound of {self._settings.bytes_max}"
            self._ledger.write_errors += 1
            raise SpoolWriteError(reason="too_large", detail=detail)
        self._need_space(size)

        def stored(con: apsw.Connection) -> tuple[Entry, list[Entry], int | None]:
            entry, victims = store(con)
            return entry, victims, tables.oldest_timestamp(con)

        entry, victims, oldest = self._transactions.write(stored, frees=False)
        self._gave_up(victims, oldest, FULL)
        self._ledger.enter(entry, took_s=self._monotonic() - began_s)
        return entry.id

    def _insert(
        self, con: apsw.Connection, body: int, report: NewReport, calls: tuple[tuple[CallKind, int, int, int], ...]
    ) -> Entry:
        self._database.last_id += 1
        return tables.insert_report(con, self._database.last_id, body, report, calls, self._wall())

    def _make_room(self, con: apsw.Connection, size: int, *, changes: bool, reports: int) -> list[Entry]:
        ledger, settings = self._ledger, self._settings
        victims = choose(
            tables.candidates(con, changes=changes, spared=self._busy),
            bytes_over=ledger.size + ledger.writing + size - settings.bytes_max,
            reports_over=ledger.reports + reports - settings.reports_max,
        )
        if victims is None:
            ledger.write_errors += 1
            detail = f"no room for {size} bytes within the bound of {settings.bytes_max}"
            raise SpoolWriteError(reason=FULL, detail=detail)
        for entry in victims:
            tables.delete_report(con, entry.id)
        return victims

    def _gave_up(self, entries: list[Entry], oldest: int | None, reason: str) -> Gone:
        if not entries:
            return Gone()
        gone = self._ledger.give_up(entries, oldest, reason)
        self._database.events += told(entries, reason, self._ledger.reports)
        self._database.freed()
        return gone

    def _need_space(self, size: int) -> None:
        """
        Refuse what would use up the space that deletes need.

        A seal takes its size twice: in the log, and in the database when the log is folded back.
        """
        if self._missing(size) <= 0:
            return
        free = self._files.free_bytes()
        error = SpoolWriteError(reason=faults.DISK_FULL, detail=f"{free} bytes are left, and kept for deletes")
        self._database.note_failure(faults.DISK_FULL, error)
        raise error

    def _missing(self, size: int) -> int:
        """Return the bytes that the disk lacks for a seal of *size*; 0 or less where it has them."""
        whole = self._files.reserve()
        free = self._files.free_bytes()
        if free < 0:
            return 0 if whole else self._files.reserve_bytes
        need = 2 * size + self._database.log_bytes
        return need - free if whole else max(need + self._files.reserve_bytes - free, 1)

    def _check_epoch(self, epoch: int) -> None:
        if epoch != self._database.epoch:
            raise SpoolWriteError(reason="lost", detail="the spool's file was replaced while the result was written")

    def _next_body(self) -> int:
        self._database.last_body += 1
        return self._database.last_body

    def _release(self, report_id: int) -> None:
        if self._busy == report_id:
            self._busy = None
