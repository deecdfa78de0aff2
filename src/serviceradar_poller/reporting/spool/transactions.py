"""
Read and write the spool's file: each write a transaction, after what is owed, with the reserve where that may help.

A report that is done with leaves the file at once, or is owed where the file can't be written: see owed.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import NoReturn, TypeVar

import apsw

from serviceradar_poller.errors import SpoolReadError, SpoolWriteError
from serviceradar_poller.reporting.spool import faults, tables
from serviceradar_poller.reporting.spool.database import Database
from serviceradar_poller.reporting.spool.faults import FAULTS, Fault
from serviceradar_poller.reporting.spool.files import SpoolFiles
from serviceradar_poller.reporting.spool.ledger import Entry, Ledger
from serviceradar_poller.reporting.spool.model import SpoolSettings, StoredReport
from serviceradar_poller.reporting.spool.owed import OWED_MAX, Deed, carry_out

T = TypeVar("T")
#: A report that left, and the timestamp of the first that is left.
Left = tuple[Entry, int | None]
#: How many reports stand aside, and the bytes that are kept of them.
Aside = tuple[int, int]


class Transactions:
    """
    The way to the file; belongs to the spool's thread.

    Attributes:
        made_room: The next write takes the room that was made for it: it says nothing of the disk.
    """

    def __init__(self, settings: SpoolSettings, files: SpoolFiles, ledger: Ledger, database: Database) -> None:
        self.made_room = False
        self._settings = settings
        self._files = files
        self._ledger = ledger
        self._database = database

    def read(self, action: Callable[[apsw.Connection], T], *, lost: T) -> T:
        """Run *action*; *lost* is the answer of a new file where the old one turns out to be damaged."""
        try:
            return action(self._database.read())
        except FAULTS as error:
            reason = self._database.failed(error)
            if reason == faults.CORRUPT:
                return lost
            raise SpoolReadError(reason=reason, detail=str(error)) from error
        except SpoolWriteError as error:
            raise SpoolReadError(reason=error.reason, detail=error.detail) from error

    def write(self, action: Callable[[apsw.Connection], T], *, frees: bool) -> T:
        """
        Run *action* in a transaction, after what is owed: it finds nothing in the file that is done with.

        Args:
            frees: Where the disk is full, it may use the reserve.
        """
        self.settle()
        return self._write(action, frees=frees)

    def head(self, *, skip: int = 0) -> StoredReport | None:
        """Return the oldest report that is not done with, after *skip* others."""
        owed = self._database.owed
        if len(owed) >= OWED_MAX:
            try:
                self.settle()
            except SpoolWriteError as error:
                raise SpoolReadError(reason=error.reason, detail=error.detail) from error
        return self.read(lambda con: tables.head(con, skip=skip, passed=owed), lost=None)

    def find(self, look: Callable[[apsw.Connection], T], report_id: int) -> T | None:
        """Return what *look* finds of a report; None where it is gone; SpoolWriteError where it can't be read."""
        if report_id in self._database.owed:
            return None
        try:
            return self.read(lambda con: look(con) if tables.entry(con, report_id) else None, lost=None)
        except SpoolReadError as error:
            raise SpoolWriteError(reason=error.reason, detail=error.detail) from error

    def part_with(self, report_id: int, deed: Deed) -> Left | None:
        """Take a report out of the file, or owe it that; None where it was gone."""

        def take_out(con: apsw.Connection) -> tuple[Left | None, Aside | None]:
            entry = tables.entry(con, report_id)
            if entry is None:
                return None, None
            aside = self._carry_out(con, {report_id: deed})
            return (entry, tables.oldest_timestamp(con)), aside

        owed = self._database.owed
        try:
            left, aside = self.write(take_out, frees=True)
        except SpoolWriteError:
            entry = self.find(lambda con: tables.entry(con, report_id), report_id)
            if entry is None or len(owed) >= OWED_MAX:
                raise
            owed[report_id] = deed
            return entry, self._oldest(entry)
        self._note_aside(aside)
        return left

    def settle(self) -> None:
        """Do in the file what is owed, a batch a transaction; SpoolWriteError where that fails."""
        owed = self._database.owed
        while owed:
            batch = dict(islice(owed.items(), tables.EXPIRE_BATCH))

            def pay(con: apsw.Connection, batch: Mapping[int, Deed] = batch) -> Aside | None:
                return self._carry_out(con, batch)

            self._note_aside(self._write(pay, frees=True))
            for report_id in batch:
                del owed[report_id]

    # -- inside

    def _carry_out(self, con: apsw.Connection, deeds: Mapping[int, Deed]) -> Aside | None:
        """Take reports out; return what stands aside by then, where that changed."""
        carry_out(con, deeds)
        if not any(deed.reason for deed in deeds.values()):
            return None
        settings = self._settings
        return tables.trim_aside(con, count_max=settings.set_aside_max, bytes_max=settings.set_aside_bytes_max)

    def _note_aside(self, aside: Aside | None) -> None:
        if aside is not None:
            self._ledger.set_aside, self._ledger.set_aside_size = aside

    def _oldest(self, entry: Entry) -> int | None:
        """Return the timestamp of the first report that is left; that of *entry* where it can't be read."""
        try:
            return self.read(lambda con: tables.oldest_timestamp(con, passed=self._database.owed), lost=None)
        except SpoolReadError:
            return entry.timestamp

    def _write(self, action: Callable[[apsw.Connection], T], *, frees: bool) -> T:
        self._database.keep_files()
        try:
            value = self._attempt(action)
        except FAULTS as error:
            reason = self._database.failed(error)
            again = reason == faults.CORRUPT or (reason == faults.DISK_FULL and frees and self._files.release())
            if not again:
                self._raise(reason, error)
            try:
                value = self._attempt(action)
            except FAULTS as second:
                self._raise(self._database.failed(second), second)
        database = self._database
        if frees:
            database.freed()
            database.note_success(sealed=False)
        elif self.made_room:
            self.made_room = False  # the disk is as full as it was
        else:
            database.stored()
            database.note_success(sealed=True)
        return value

    def _attempt(self, action: Callable[[apsw.Connection], T]) -> T:
        with self._database.transaction() as con:
            return action(con)

    def _raise(self, reason: str, error: Fault) -> NoReturn:
        self._database.note_failure(reason, error)
        raise SpoolWriteError(reason=reason, detail=str(error)) from error
