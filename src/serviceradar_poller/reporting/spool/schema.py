"""
The spool's database: its tables, its settings, and whether a file is one.

    reports     one row for each sealed report, id in the order of sealing; calls and positions as JSON
    bodies      one row for each report's bytes, made before the report where a result is written part by part
    parts       the bytes, with a checksum, deleted with their body
    positions   where each results check goes on, in the order in which they moved
    set_aside   reports that core does not take

A body that neither a report nor a set-aside report names is a result that was never sealed: it goes at the next open.
"""

from __future__ import annotations

from collections.abc import Callable

import apsw

#: "SRps": marks the file as a spool.
APPLICATION_ID = 0x53527073
SCHEMA_VERSION = 1
#: The writer is alone but for an operator's read, which holds nothing for long.
BUSY_TIMEOUT_MS = 1_000
#: Dirty pages beyond it go to the log before the commit: a part of 3 MiB does not grow the heap for good.
CACHE_KIB = 512
#: SQLite's own default: a small report changes few pages, and each goes to the log whole.
PAGE_BYTES = 4_096
#: Pages of the log after which it is folded back, when there is nothing else to do.
WAL_PAGES = 1_000
#: The log's file is cut to this after it grew for a large result.
WAL_BYTES_KEPT = 8 * 1024 * 1024
#: The check of the whole file at an open ends after this, some 1–2 GB; what it didn't reach is found when it is read.
CHECK_S_MAX = 3.0
#: Instructions of SQLite between two looks at the clock.
_CHECK_STEPS = 1_000

_TABLES = """
CREATE TABLE reports (
    id INTEGER PRIMARY KEY, body INTEGER NOT NULL, kind TEXT NOT NULL, timestamp INTEGER NOT NULL,
    changed INTEGER NOT NULL, fresh INTEGER NOT NULL, size INTEGER NOT NULL, sealed_wall_s REAL NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, calls TEXT NOT NULL, accepted TEXT NOT NULL DEFAULT '[]',
    positions TEXT NOT NULL
) STRICT;
CREATE TABLE bodies (id INTEGER PRIMARY KEY) STRICT;
CREATE TABLE parts (
    body INTEGER NOT NULL REFERENCES bodies (id) ON DELETE CASCADE, call_index INTEGER NOT NULL,
    part_index INTEGER NOT NULL, crc INTEGER NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (body, call_index, part_index)
) STRICT;
CREATE TABLE positions (
    agent TEXT NOT NULL, key TEXT NOT NULL, sequence TEXT NOT NULL, PRIMARY KEY (agent, key)
) STRICT;
CREATE TABLE set_aside (
    id INTEGER PRIMARY KEY, body INTEGER, kind TEXT NOT NULL, timestamp INTEGER NOT NULL, fresh INTEGER NOT NULL,
    size INTEGER NOT NULL, sealed_wall_s REAL NOT NULL, attempts INTEGER NOT NULL, calls TEXT NOT NULL,
    positions TEXT NOT NULL, reason TEXT NOT NULL, set_aside_wall_s REAL NOT NULL
) STRICT;
"""


class UnusableFileError(Exception):
    """The file is not a spool that this version can use; never leaves this package."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def connect(path: str, *, vfs: str = "", write: bool = True) -> apsw.Connection:
    """Open *path*, which exists, and set what every connection needs; apsw.Error where that fails."""
    flags = apsw.SQLITE_OPEN_READWRITE if write else apsw.SQLITE_OPEN_READONLY
    connection = apsw.Connection(path, flags=flags, vfs=vfs or None)
    try:
        connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        for setting in ("foreign_keys = ON", "trusted_schema = OFF", "temp_store = MEMORY"):
            connection.execute(f"PRAGMA {setting}")
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    except apsw.Error:
        connection.close(force=True)
        raise
    return connection


def prepare(connection: apsw.Connection, *, monotonic: Callable[[], float]) -> bool:
    """
    Make the tables of a new file, or check those of an old one.

    Returns:
        Whether the whole file was checked; False where that took longer than CHECK_S_MAX.
    Raises:
        UnusableFileError: It is something else, newer or damaged.
        apsw.Error: Reading or writing failed.
    """
    # Before anything is written, or it has no effect.
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    check_identity(connection)
    new = _number(connection, "PRAGMA user_version") == 0
    # Beyond FULL it only makes durable that a rollback journal is gone. There is one while a new file is turned to WAL,
    # and if a power cut brought it back, it would undo the file's first pages under everything that was stored since.
    connection.execute("PRAGMA synchronous = EXTRA")
    connection.execute("PRAGMA journal_mode = WAL").fetchall()
    # The writer folds the log back itself, after the caller has its answer.
    connection.execute("PRAGMA wal_autocheckpoint = 0").fetchall()
    connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_KEPT}").fetchall()
    if new:
        create(connection)
        return True
    return check(connection, monotonic=monotonic)


def check_identity(connection: apsw.Connection) -> None:
    """Raise UnusableFileError unless the file is empty or a spool of a version that is known."""
    version = _number(connection, "PRAGMA user_version")
    application = _number(connection, "PRAGMA application_id")
    tables = _number(connection, "SELECT count(*) FROM sqlite_schema")
    if application == APPLICATION_ID and version > SCHEMA_VERSION:
        raise UnusableFileError("newer_version", f"its version is {version}, this program knows {SCHEMA_VERSION}")
    if (application, version) != (APPLICATION_ID, SCHEMA_VERSION) and (application, version, tables) != (0, 0, 0):
        raise UnusableFileError("not_a_spool", f"it is a database of another kind ({application:#x}, {version})")


def create(connection: apsw.Connection) -> None:
    """Make the tables and say whose they are, all or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in filter(None, map(str.strip, _TABLES.split(";"))):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")
    except apsw.Error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def check(connection: apsw.Connection, *, monotonic: Callable[[], float], time_s: float = CHECK_S_MAX) -> bool:
    """Check the structure of the file for at most *time_s*; say whether that was enough for all of it."""
    until_s = monotonic() + time_s
    connection.set_progress_handler(lambda: monotonic() > until_s, _CHECK_STEPS)
    try:
        found = [str(row[0]) for row in connection.execute("PRAGMA quick_check(3)")]
    except apsw.InterruptError:
        return False
    finally:
        connection.set_progress_handler(None)
    if found != ["ok"]:
        raise UnusableFileError("corrupt", "; ".join(found))
    return True


def _number(connection: apsw.Connection, sql: str) -> int:
    value = connection.execute(sql).get
    assert isinstance(value, int)
    return value
