"""Look at a state directory before a poller uses it: is it there, writable and large enough, and nobody else's?"""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from serviceradar_poller.reporting.spool.files import DATABASE, FOLDER, LOCK, RESERVE
from serviceradar_poller.reporting.spool.model import MIB, SpoolSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """
    What was found, in one line each.

    Attributes:
        problem: Why a poller can't start with this directory; empty when it can.
        warnings: What keeps it from holding what it is to hold.
        notes: What is merely good to know.
    """

    problem: str = ""
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def survey(settings: SpoolSettings) -> Survey:
    """Look at ``settings.directory`` as the current user, and change nothing."""
    directory = settings.directory
    if not directory.exists():
        return Survey(problem=f"{directory} does not exist: make it, for the user that runs the poller")
    if not directory.is_dir():
        return Survey(problem=f"{directory} is not a directory")
    folder = directory / FOLDER
    for path in (directory, folder, folder / DATABASE, folder / LOCK):
        if path.exists() and not os.access(path, os.W_OK | (os.X_OK if path.is_dir() else 0)):
            return Survey(problem=f"{path} can't be written by {_user()}")
    try:
        # Permissions are not all: file systems such as /proc take no file from anybody. This one never gets a name.
        tempfile.TemporaryFile(dir=folder if folder.is_dir() else directory).close()
    except OSError as error:
        # A full disk is for the warnings below: reports wait in memory until there is room.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return Survey(problem=f"{directory} takes no file: {error.strerror}")
    holder = lock_holder(folder / LOCK)
    notes = (f"process {holder} uses it now; a second poller can't",) if holder else ()
    return Survey(warnings=_space(settings, folder), notes=notes)


def lock_holder(lock: Path) -> str:
    """Return the process id of the poller that holds *lock*, ``unknown`` where it left none; empty when nobody does."""
    try:
        file = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        # Held for this instant only: a poller that starts in it is started again by its supervisor.
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            return ""
        return os.pread(file, 32, 0).decode("ascii", "replace").strip() or "unknown"
    finally:
        os.close(file)
    return ""


def _space(settings: SpoolSettings, folder: Path) -> tuple[str, ...]:
    try:
        disk = os.statvfs(settings.directory)
    except OSError as error:
        return (f"the space that is left can't be asked for: {error.strerror}",)
    free = disk.f_bavail * disk.f_frsize
    reserve = max(settings.reserve_bytes - _size(folder / RESERVE), 0)
    if free < reserve:
        text = f"{_mib(free)} are free, less than the {_mib(settings.reserve_bytes)} kept back for deletes"
        return (f"{text}: nothing can be stored, and a restart loses what waits in memory",)
    held = _size(folder / DATABASE)
    if free - reserve + held < settings.bytes_max:
        text = f"{_mib(free)} are free, {_mib(held)} used, but reporting.queue_bytes is {_mib(settings.bytes_max)}"
        return (f"{text}: the disk is full first",)
    return ()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _mib(count: int) -> str:
    return f"{count / MIB:,.0f} MiB"


def _user() -> str:
    return f"user {os.geteuid()}"
