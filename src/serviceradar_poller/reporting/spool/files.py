"""
The spool's files: the folder, the lock, the reserve, and the way out of the way for a file that can't be used.

    STATE_DIR/spool/            mode 700
        spool.db -wal -shm      the database, mode 600
        lock                    held by the poller that uses it; holds its process id
        reserve                 space that is given back to the disk when a delete finds it full
        spool.db.bad-…          files that could not be used, the newest BAD_FILES_MAX
        spool.db.new            the database while it is made anew, after somebody deleted it
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from serviceradar_poller.errors import SpoolError
from serviceradar_poller.reporting.spool.faults import FULL_ERRNO

FOLDER = "spool"
DATABASE = "spool.db"
NEW = "spool.db.new"
LOCK = "lock"
RESERVE = "reserve"
#: Of unusable databases kept for the operator; the oldest goes.
BAD_FILES_MAX = 5
_COMPANIONS = ("-wal", "-shm")
#: Beside a file that is being made: it is not turned to a log yet.
_NEW_COMPANIONS = ("-journal", *_COMPANIONS)


class SpoolFiles:
    """
    The files of one spool; all methods work at once and belong to the thread that owns the database.

    Attributes:
        reserve_bytes: What the reserve takes when it is whole.
    """

    def __init__(self, directory: Path, *, reserve_bytes: int) -> None:
        self.folder = directory / FOLDER
        self.reserve_bytes = reserve_bytes
        self._directory = directory
        self._lock: int | None = None
        self._database_id: tuple[int, int] | None = None
        self._reserve_whole = False

    @property
    def database(self) -> Path:
        """The database."""
        return self.folder / DATABASE

    def open(self) -> None:
        """
        Make the folder where there is none and lock it.

        Raises:
            SpoolError: ``missing``, ``not_a_directory``, ``read_only``, ``locked`` or ``unusable``.
        """
        if not self._directory.exists():
            raise SpoolError(reason="missing", detail=f"state_dir {self._directory} does not exist: make it")
        if not self._directory.is_dir():
            raise SpoolError(reason="not_a_directory", detail=f"state_dir {self._directory} is not a directory")
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            self.folder.chmod(0o700)
            _sync_directory(self._directory)
            lock = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(lock)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise self._unusable(error) from error
            raise SpoolError(
                reason="locked",
                detail=f"the spool in {self._directory} is in use by process {holder}; two pollers can't share one",
            ) from None
        before, self._lock = self._lock, lock
        if before is not None:
            os.close(before)
        self._reserve_whole = False
        try:
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        except OSError:
            # A full disk: the lock holds all the same, only its text is missing.
            os.ftruncate(lock, 0)

    def close(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def lock_lost(self) -> bool:
        """Whether the lock that is held is not the one that another poller would meet."""
        return self._lock is not None and _is_elsewhere(self.folder / LOCK, _id(os.fstat(self._lock)))

    @property
    def database_lost(self) -> bool:
        """Whether the database that is in use is not the one that stands in its place; not where that can't be seen."""
        return self._database_id is not None and _is_elsewhere(self.database, self._database_id)

    def note_database(self) -> None:
        """The database that stands there now is in use; OSError where it can't be seen."""
        self._database_id = _id(self.database.stat())

    def begin_new(self) -> Path:
        """Make an empty file for a database that is made anew, and return its path; OSError where it fails."""
        path = self.folder / NEW
        for companion in ("", *_NEW_COMPANIONS):
            Path(f"{path}{companion}").unlink(missing_ok=True)
        self.make_database(path)
        return path

    def drop_new(self) -> None:
        """Delete it, where it could not be made; never raises."""
        for companion in ("", *_NEW_COMPANIONS):
            with contextlib.suppress(OSError):
                (self.folder / f"{NEW}{companion}").unlink(missing_ok=True)

    def make_way(self, *, wall_s: float) -> Path | None:
        """Set aside what somebody put in the place of the database in use; return where to. OSError where it fails."""
        return self._move_aside(wall_s=wall_s) if self.database.exists() else None

    def put_new_in_place(self) -> None:
        """
        Let the new file be the database in use, whose place is free. Until it is, the one in use stays a lost one.

        Raises:
            OSError: It could not be put there, or may not stay there.
        """
        new = self.folder / NEW
        new_id = _id(new.stat())
        for companion in _COMPANIONS:  # of a database that is gone: it would be taken for the new one's
            (self.folder / f"{DATABASE}{companion}").unlink(missing_ok=True)
        new.rename(self.database)
        _sync_directory(self.folder)
        self._database_id = new_id

    def make_database(self, path: Path | None = None) -> None:
        """Make an empty file with the right mode, which the log's files take from it; OSError where it fails."""
        path = path or self.database
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a directory stands in its place", str(path))
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def set_aside(self, *, wall_s: float) -> Path:
        """
        Move the database that was in use and its log away and return where to; the oldest of too many such goes.

        Raises:
            OSError: It can't be moved.
        """
        target = self._move_aside(wall_s=wall_s)
        self._database_id = None
        return target

    @property
    def whole(self) -> bool:
        """Whether the reserve is there."""
        return self._reserve_whole

    def reserve(self) -> bool:
        """Make the reserve whole; say whether it is. Never raises."""
        if not self._reserve_whole:
            self._reserve_whole = self.allocate()
        return self._reserve_whole

    def release(self) -> bool:
        """Give the reserve back to the disk; say whether there was one. Never raises."""
        had = self.free()
        self._reserve_whole = False
        return had

    def allocate(self) -> bool:
        """
        Take the reserve's space from the disk, all or nothing; say whether the disk had it.

        A file system that can't hold space back counts as one that has it: the log's own file is the headroom then.
        """
        if not self.reserve_bytes:
            return True
        try:
            file = os.open(self.folder / RESERVE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            return error.errno not in FULL_ERRNO
        try:
            # Blocks, not a hole: posix_fallocate writes them where the file system can't just take them.
            os.posix_fallocate(file, 0, self.reserve_bytes)
        except OSError as error:
            os.ftruncate(file, 0)
            return error.errno not in FULL_ERRNO
        finally:
            os.close(file)
        return True

    def free(self) -> bool:
        """Give the reserve's space back; say whether there was any."""
        path = self.folder / RESERVE
        try:
            had = path.stat().st_size > 0
            os.truncate(path, 0)
        except OSError:
            return False
        return had

    def free_bytes(self) -> int:
        """Return what the file system has left for us; -1 where it can't be asked."""
        try:
            found = os.statvfs(self.folder)
        except OSError:
            return -1
        return found.f_bavail * found.f_frsize

    def database_bytes(self) -> int:
        """Return the size of the database without its log; 0 where there is none."""
        try:
            return self.database.stat().st_size
        except OSError:
            return 0

    def file_bytes(self) -> int:
        """Return what the database, its log and the reserve take."""
        total = 0
        for name in (DATABASE, f"{DATABASE}-wal", RESERVE):
            try:
                total += (self.folder / name).stat().st_size
            except OSError:
                continue
        return total

    def _move_aside(self, *, wall_s: float) -> Path:
        # Above every number that was ever given in this second, so that the oldest stay the lowest.
        taken = [_age(path)[1] for path in self.folder.glob(f"{DATABASE}.bad-{wall_s:.0f}-*")]
        target = self.folder / f"{DATABASE}.bad-{wall_s:.0f}-{max(taken, default=-1) + 1}"
        # The log first: a database that has lost its log is the lesser half.
        for companion in _COMPANIONS:
            source = self.folder / f"{DATABASE}{companion}"
            if source.exists():
                source.rename(f"{target}{companion}")
        if self.database.exists():
            self.database.rename(target)
        self._forget_old()
        return target

    def _forget_old(self) -> None:
        """Delete the oldest of too many unusable databases, if it can be; one that is a directory stays."""
        bad = [path for path in self.folder.glob(f"{DATABASE}.bad-*") if not path.name.endswith(_COMPANIONS)]
        bad.sort(key=_age)
        for path in bad[:-BAD_FILES_MAX]:
            with contextlib.suppress(OSError):
                if path.is_file():
                    for companion in (*_COMPANIONS, ""):  # the file last: by it they are found again
                        Path(f"{path}{companion}").unlink(missing_ok=True)

    def _unusable(self, error: OSError) -> SpoolError:
        reason = "read_only" if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM) else "unusable"
        words = "can't be written" if reason == "read_only" else "can't be used"
        return SpoolError(reason=reason, detail=f"state_dir {self._directory} {words}: {error.strerror}")


def _sync_directory(path: Path) -> None:
    """Make durable which files are in *path*; a file system that can't be asked for it keeps its own order."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(directory)


def _id(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _is_elsewhere(path: Path, known: tuple[int, int]) -> bool:
    """Tell whether another file than *known*, or none, stands at *path*; a disk that does not answer tells nothing."""
    try:
        return _id(path.stat()) != known
    except OSError as error:
        return error.errno in (errno.ENOENT, errno.ENOTDIR)


def _age(path: Path) -> tuple[int, int]:
    wall_s, _, number = path.name.rpartition("bad-")[2].partition("-")
    return (int(wall_s) if wall_s.isdecimal() else 0, int(number) if number.isdecimal() else 0)
