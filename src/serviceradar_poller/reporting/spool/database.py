"""
Keep one usable database: open it, set a bad file aside and begin anew, run transactions, give space back.

Every commit is synced before it returns. Leaving out the sync where a loss would do no harm is no saving: when a
sync fails, the kernel may forget what it was to write and report success the next time, and a record that depends
on an older one that was never synced by itself would be lost with it. So nothing depends on anything unsynced: the
frames of a commit that failed are written again by the next one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import apsw

from serviceradar_poller.errors import SpoolError, SpoolWriteError
from serviceradar_poller.events.polling import (
    PollingEvent,
    ReportDropped,
    SpoolRecovered,
    SpoolSetAside,
    SpoolWritable,
    SpoolWriteFailed,
)
from serviceradar_poller.reporting.spool import faults, schema, tables
from serviceradar_poller.reporting.spool.faults import FAULTS, Fault, reason_of
from serviceradar_poller.reporting.spool.files import SpoolFiles
from serviceradar_poller.reporting.spool.ledger import Ledger
from serviceradar_poller.reporting.spool.model import PositionKey
from serviceradar_poller.reporting.spool.owed import Deed, move

#: Free pages (4 KiB) from which on space is given back, when as much is free as is used.
TRIM_PAGES_MIN = 2_048
#: Seals in a row after which a disk that was full has room: at its edge they fail and succeed by turns.
SEALS_TO_TRUST = 3
#: What the log takes for deleting a gigabyte, with room to spare.
DELETE_BYTES = 4 * 1024 * 1024
#: Pages that are copied at once.
COPY_STEP_PAGES = 4_096
#: After files that were deleted could not be made anew it is not tried again for this long: it may mean a gigabyte.
RESCUE_AGAIN_S = 10.0
#: Pages that one step gives back, some 4 MiB of copying at most, so that a seal waits for no more than that.
TRIM_STEP_PAGES = 1_024


class Database:
    """
    The database of one spool; belongs to one thread.

    Attributes:
        events: What happened, in order; the owner takes them.
        positions: What the database holds of them, what is owed included.
        owed: Reports that are done with, by id, in order, and still stand in the file: it could not be written.
        epoch: Grows when a new file begins: what was being written to the old one is lost.
        last_id, last_body: The greatest ever given, never given again.
    """

    def __init__(
        self,
        files: SpoolFiles,
        ledger: Ledger,
        *,
        wall: Callable[[], float],
        monotonic: Callable[[], float],
        vfs: str = "",
    ) -> None:
        self.events: list[PollingEvent] = []
        self.positions: dict[PositionKey, str] = {}
        self.owed: dict[int, Deed] = {}
        self.epoch = 0
        self.last_id = 0
        self.last_body = 0
        self._files = files
        self._ledger = ledger
        self._wall = wall
        self._monotonic = monotonic
        self._vfs = vfs
        self._connection: apsw.Connection | None = None
        self._failed_s: float | None = None
        self._errors = 0
        self._wal_pages = 0
        self._wants_space = False
        self._short = False
        self._seals_missing = 0  # until a disk that was full counts as having room
        self._loaded = False
        self._rescue_s: float | None = None  # no attempt to make lost files anew before

    # -- opening

    def start(self) -> None:
        """Open the database, or a new one where it can't be used; without success every write tries again."""
        retried = moved = False
        while True:
            began_s = self._monotonic()
            try:
                checked = self._open()
            except (*FAULTS, schema.UnusableFileError) as error:
                self._disconnect()
                reason = error.reason if isinstance(error, schema.UnusableFileError) else reason_of(error)
                if reason == faults.DISK_FULL and self._files.release():
                    continue
                if reason in (faults.BUSY, faults.IO_ERROR) and not retried:
                    retried = True
                    continue
                hopeless = reason in (faults.DISK_FULL, faults.BUSY) or moved
                if hopeless or not self._move_away(faults.UNREADABLE if reason == faults.IO_ERROR else reason, error):
                    self.note_failure(reason, error)
                    return
                moved = True
                continue
            ledger = self._ledger
            self.events.append(
                SpoolRecovered(
                    reports=ledger.reports,
                    statuses=ledger.queued,
                    size=ledger.size,
                    positions=len(self.positions),
                    duration_s=self._monotonic() - began_s,
                    checked=checked,
                )
            )
            return

    def _open(self) -> bool:
        self._files.make_database()
        con = self._connection = schema.connect(str(self._files.database), vfs=self._vfs)
        checked = schema.prepare(con, monotonic=self._monotonic)
        con.set_wal_hook(self._committed)
        self._files.note_database()
        with self._transaction(con):
            tables.delete_orphans(con)
            found = tables.positions(con)
            if self._loaded and not found:
                # A new file while the program runs: it goes on with the positions that it knows.
                tables.move_positions(con, tuple((*key, value) for key, value in self.positions.items()))
                found = dict(self.positions)
        for deed in self.owed.values():
            move(found, deed.moved)
        reports, size, fresh = self._totals(con)
        oldest = tables.oldest_timestamp(con, passed=self.owed)
        last_id, last_body = tables.last_ids(con)
        set_aside = tables.aside_totals(con)
        # Nothing fails from here on.
        ledger = self._ledger
        # A commit whose failure was told may have reached the disk all the same: an acceptance, or a seal.
        known = ledger.queued
        ledger.accepted += max(known - fresh, 0)
        ledger.queued = min(known, fresh)
        ledger.recover(reports=reports, size=size, fresh=max(fresh - known, 0), oldest=oldest)
        ledger.set_aside, ledger.set_aside_size = set_aside
        ledger.writing = 0
        self.epoch += 1
        self.last_id = max(self.last_id, last_id)
        self.last_body = max(self.last_body, last_body)
        self.positions = found
        self._loaded = True
        return checked

    def _totals(self, con: apsw.Connection) -> tuple[int, int, int]:
        """Return the reports, their bytes and their fresh statuses, without those that are done with."""
        reports, size, fresh = tables.totals(con)
        for report_id in self.owed:
            entry = tables.entry(con, report_id)
            if entry is not None:
                reports, size, fresh = reports - 1, size - entry.size, fresh - entry.fresh
        return reports, size, fresh

    def _begin_anew(self, error: Fault) -> None:
        """Set a database aside that turned out to be damaged while it was in use, and open a new one."""
        self._disconnect()
        self.epoch += 1
        if not self._move_away(faults.CORRUPT, error):
            self.note_failure(faults.CORRUPT, error)
            return
        self._lose_all(faults.CORRUPT)
        self.start()

    def _lose_all(self, reason: str) -> None:
        gone = self._ledger.lose_all(reason)
        if gone.reports:
            self.events.append(
                ReportDropped(kind="all", statuses=gone.fresh, reason=reason, queued=0, reports=gone.reports)
            )

    def keep_files(self) -> None:
        """
        See that the files are where they were, and make them anew with what the open database holds where they are not.

        Raises:
            SpoolWriteError: They can't be made anew: another poller has taken their place, or the disk refuses.
        """
        files, lost = self._files, self._files.database_lost
        if not files.lock_lost and not lost:
            return
        gone = SpoolWriteError(reason=faults.LOST, detail=f"{files.folder} was deleted or replaced while it was in use")
        self.note_failure(faults.LOST, gone)
        if self._rescue_s is not None and self._monotonic() < self._rescue_s:
            raise gone
        try:
            if files.lock_lost:
                files.open()
            if lost and self._connection is not None:
                self._copy(self._connection)
        except (SpoolError, *FAULTS) as error:
            self._rescue_s = self._monotonic() + RESCUE_AGAIN_S
            raise SpoolWriteError(reason=faults.LOST, detail=f"{gone.detail}: {error}") from error
        if lost:
            self._lose_unless_open()
            self._disconnect()
            self.start()

    def _lose_unless_open(self) -> None:
        if self._connection is None and self._files.database_lost:
            self._lose_all(faults.LOST)

    def _copy(self, con: apsw.Connection) -> None:
        """Bring what *con* holds into a new file, which takes the place of the one that is lost, all or nothing."""
        files = self._files
        size = con.pragma("page_count") * schema.PAGE_BYTES
        free = files.free_bytes()
        if 0 <= free < size + DELETE_BYTES:
            raise apsw.FullError(f"{free} bytes are left for a copy of {size}")
        try:
            new = schema.connect(str(files.begin_new()), vfs=self._vfs)
            with contextlib.closing(new), new.backup("main", con, "main") as backup:
                while not backup.done:
                    backup.step(COPY_STEP_PAGES)
            aside = files.make_way(wall_s=self._wall())
            if aside is not None:
                error = "another database was put in the place of the one in use"
                self.events.append(SpoolSetAside(reason="replaced", error=error, path=str(aside), statuses=0))
            files.put_new_in_place()
        except FAULTS:
            files.drop_new()
            raise

    def _move_away(self, reason: str, error: Exception) -> bool:
        try:
            path = self._files.set_aside(wall_s=self._wall())
        except OSError:
            return False
        self.events.append(SpoolSetAside(reason=reason, error=str(error), path=str(path), statuses=self._ledger.queued))
        return True

    # -- use

    def read(self) -> apsw.Connection:
        """Return the connection, which is opened where it is not; SpoolWriteError where it can't be."""
        if self._connection is None:
            self._lose_unless_open()
            self.start()
        if self._connection is None:
            raise SpoolWriteError(reason="unusable", detail="the spool can't be opened")
        return self._connection

    def failed(self, error: Fault) -> str:
        """Take a fault into account and return its reason; a damaged file is replaced by a new one."""
        reason = reason_of(error)
        if reason == faults.CORRUPT:
            self._begin_anew(error)
        return reason

    @contextlib.contextmanager
    def transaction(self) -> Iterator[apsw.Connection]:
        """Commit what is done inside, durably, or nothing of it; faults are raised as they come."""
        con = self.read()
        with self._transaction(con):
            yield con

    @contextlib.contextmanager
    def _transaction(self, con: apsw.Connection) -> Iterator[None]:
        con.execute("BEGIN IMMEDIATE")
        try:
            yield
            con.execute("COMMIT")
        except BaseException:
            try:
                if con.in_transaction:
                    con.execute("ROLLBACK")
            except apsw.Error:
                # It can't be told what state it is in: begin with a new connection.
                self._disconnect()
            raise
        self._ledger.fsyncs += 1

    def note_failure(self, reason: str, error: Exception) -> None:
        """Count a failed write; the first of a row is told."""
        self._ledger.write_errors += 1
        self._errors += 1
        self._ledger.writable = False
        self._short = self._short or reason == faults.DISK_FULL
        self._seals_missing = SEALS_TO_TRUST if reason == faults.DISK_FULL else 0
        if self._failed_s is None:
            self._failed_s = self._monotonic()
            self.events.append(SpoolWriteFailed(reason=reason, error=str(error)))

    def note_success(self, *, sealed: bool) -> None:
        """Tell that writing works again, where it did not; a delete says nothing of a disk that was full."""
        self._seals_missing -= sealed and self._seals_missing > 0
        if self._failed_s is not None and not self._seals_missing:
            outage_s = self._monotonic() - self._failed_s
            self.events.append(SpoolWritable(outage_s=outage_s, errors=self._errors))
            self._failed_s = None
            self._errors = 0
            self._ledger.writable = True

    # -- space

    def freed(self) -> None:
        """Something was deleted: see later whether space can be given back."""
        self._wants_space = True

    def run_short(self) -> None:
        """The disk lacks room: everything that is free goes back to it."""
        self._short = True

    def stored(self) -> None:
        """Something was written: the disk has room."""
        self._short = False

    @property
    def wants_maintenance(self) -> bool:
        """Whether there is work that may wait until nobody does."""
        return self._connection is not None and (self._wants_space or self._wal_pages >= schema.WAL_PAGES)

    def maintain(self) -> bool:
        """Fold the log back or give one step of free space back; say whether there is more to do. Never raises."""
        if self._connection is None:
            return False
        try:
            short = self._short or not self._files.whole
            if self._wal_pages >= schema.WAL_PAGES or short:
                self._fold_where_it_fits(self._connection, short=short)
            if self._wants_space:
                self._wants_space = self._trim(self._connection, all_of_it=short)
                if short:
                    self._fold_where_it_fits(self._connection, short=True)
                if not self._wants_space:
                    self._files.reserve()
        except FAULTS as error:
            # Nothing is lost by it: the log holds what could not be folded back.
            self._wants_space = False
            if self.failed(error) != faults.BUSY:
                self._ledger.write_errors += 1
            return False
        return self._wants_space

    @property
    def log_bytes(self) -> int:
        """What folding the log back may add to the database at most."""
        return self._wal_pages * schema.PAGE_BYTES

    def _fold_where_it_fits(self, con: apsw.Connection, *, short: bool) -> None:
        """
        Fold the log back, unless it would fail half-way and use up what deletes need.

        When the disk is *short* of space the log's file goes back to it, and the reserve lends what the database grows.
        """
        growth = con.pragma("page_count") * schema.PAGE_BYTES - self._files.database_bytes()
        for _ in range(2):
            free = self._files.free_bytes()
            if free < 0 or growth <= 0 or growth + DELETE_BYTES <= free:
                self.fold(truncate=short)
                return
            if not short or not self._files.release():
                return

    def fold(self, *, truncate: bool = False) -> None:
        """Fold the log back into the database; apsw.Error where that fails."""
        if self._connection is not None:
            mode = apsw.SQLITE_CHECKPOINT_TRUNCATE if truncate else apsw.SQLITE_CHECKPOINT_PASSIVE
            self._connection.wal_checkpoint(mode=mode)
            self._ledger.fsyncs += 2
            self._wal_pages = 0

    def _trim(self, con: apsw.Connection, *, all_of_it: bool) -> bool:
        free = con.pragma("freelist_count")
        used = con.pragma("page_count") - free
        if not free or (not all_of_it and (free < TRIM_PAGES_MIN or free < used)):
            return False
        with self._transaction(con):
            con.execute(f"PRAGMA incremental_vacuum({TRIM_STEP_PAGES})").fetchall()
        return bool(con.pragma("freelist_count") < free)

    def _committed(self, con: apsw.Connection, name: str, pages: int) -> int:
        self._wal_pages = pages
        return int(apsw.SQLITE_OK)

    def close(self) -> None:
        """Close the connection, which folds the log back where it can."""
        self._disconnect()

    def _disconnect(self) -> None:
        con, self._connection = self._connection, None
        if con is not None:
            # Whatever it could not do at its end, the log still holds.
            with contextlib.suppress(apsw.Error):
                con.close(force=True)
