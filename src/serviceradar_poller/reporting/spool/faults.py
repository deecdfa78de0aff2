"""Say what an error of SQLite or of the disk means for the spool."""

from __future__ import annotations

import errno

import apsw
import msgspec

#: The file is damaged or is not what it was: only a new one helps.
CORRUPT = "corrupt"
DISK_FULL = "disk_full"
IO_ERROR = "io_error"
BUSY = "busy"
UNREADABLE = "unreadable"
#: The files were deleted or replaced while they were in use.
LOST = "lost"

FULL_ERRNO = (errno.ENOSPC, errno.EDQUOT)
#: Extended codes that mean no room for the log's index, which is extended to a whole page before it is mapped.
_FULL_EXTENDED = (apsw.SQLITE_IOERR_SHMSIZE,)

#: What may happen to a file that is used as it should be.
Fault = apsw.Error | OSError | msgspec.MsgspecError
FAULTS = (apsw.Error, OSError, msgspec.MsgspecError)


def reason_of(error: Fault) -> str:
    """
    Return a short stable token: ``disk_full``, ``io_error``, ``corrupt``, ``unreadable``, ``busy`` or ``too_large``.

    Raises:
        apsw.Error: *error*, where it says that the program is wrong, not the file.
    """
    match error:
        case apsw.FullError():
            return DISK_FULL
        case apsw.IOError():
            return DISK_FULL if getattr(error, "extendedresult", 0) in _FULL_EXTENDED else IO_ERROR
        case apsw.CorruptError() | apsw.NotADBError() | apsw.FormatError() | apsw.ConstraintError():
            return CORRUPT
        case apsw.SQLError() | apsw.SchemaChangeError() | apsw.MismatchError() | msgspec.MsgspecError():
            return CORRUPT  # the tables, or what stands in them, are not what was made
        case apsw.CantOpenError() | apsw.PermissionsError() | apsw.AuthError() | apsw.ReadOnlyError():
            return UNREADABLE
        case apsw.BusyError() | apsw.LockedError() | apsw.ProtocolError():
            return BUSY
        case apsw.TooBigError():
            return "too_large"
        case apsw.ThreadingViolationError() | apsw.ConnectionClosedError() | apsw.BindingsError() | apsw.MisuseError():
            raise error
        case OSError():
            if error.errno in FULL_ERRNO:
                return DISK_FULL
            return UNREADABLE if error.errno in (errno.EACCES, errno.EPERM, errno.EISDIR) else IO_ERROR
    return IO_ERROR
