"""Where a large result goes while it is still coming in: what agents ask of whoever keeps it for core."""

from __future__ import annotations

from typing import Protocol

from serviceradar_poller.logic.reports import CheckId
from serviceradar_poller.wire.messages import ServiceStatus


class ResultWriter(Protocol):
    """
    Takes the message of one result, piece by piece; for one task at a time.

    Nothing of it reaches core before its seal, and nothing is left of it without one.
    """

    async def add(self, piece: bytes) -> None:
        """
        Take the next piece, of any size; return when there is room for another.

        Raises:
            SpoolWriteError: It could not be kept; the result can only be abandoned.
        """
        ...

    async def seal(self, *, sequence: str) -> None:
        """
        Hand the whole message on to core; the check's position moves to *sequence* when core has it.

        Raises:
            SpoolWriteError: It could not be kept; the result can only be abandoned.
        """
        ...

    async def abandon(self) -> None:
        """Leave nothing behind; may be called at any time, also after the seal, and never raises."""
        ...


class ResultSink(Protocol):
    """Keeps large results for core."""

    async def begin(self, check: CheckId, status: ServiceStatus) -> ResultWriter:
        """
        Return where the message of *status* goes, which itself holds none; waits while too many are being written.

        Raises:
            SpoolWriteError: Nothing can be kept now.
        """
        ...
