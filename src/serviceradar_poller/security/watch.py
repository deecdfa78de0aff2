"""
The actor that watches certificate files and tells when they have changed.

Certificate and key are replaced one after the other, so a change counts only when a second look finds the files as the
first one left them. What the new files are worth is not decided here: each connection proves them before it uses them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from serviceradar_poller.otp import Actor

#: Between two looks. A rotation is noticed after two of them at most, and used at once.
LOOK_INTERVAL_S = 5.0

Signature = tuple[int, int, int]  # mtime in ns, size, inode


@dataclass(frozen=True, slots=True)
class Look:
    """Look at the files."""


class CredentialsWatch(Actor[Look]):
    """Watches the files that connections authenticate with."""

    def __init__(
        self,
        files: Iterable[str],
        *,
        known: dict[str, Signature | None],
        changed: Callable[[frozenset[str]], object],
    ) -> None:
        """
        Args:
            known: What the files were last known to be; outlives this actor, so that a crash hides no change.
            changed: Called with the files whose content settled on something new.
        """
        self._files = frozenset(files)
        self._changed = changed
        self._known = known
        self._unsettled: dict[str, Signature | None] = {}

    async def init(self) -> None:
        """Take the files as they are, where nothing is known of them."""
        if not self._known:
            self._known.update(await asyncio.to_thread(signatures, self._files))
        self.send_after(LOOK_INTERVAL_S, Look())

    async def handle(self, message: Look) -> None:
        """Tell of files that changed since the last settled state and not since the last look."""
        found = await asyncio.to_thread(signatures, self._files)
        changed = {file: signature for file, signature in found.items() if signature != self._known[file]}
        if changed and changed == self._unsettled:
            self._known.update(changed)
            self._unsettled = {}
            self._changed(frozenset(changed))
        else:
            self._unsettled = changed
        self.send_after(LOOK_INTERVAL_S, Look())


def signatures(files: Iterable[str]) -> dict[str, Signature | None]:
    """Return what tells one content of each file from the next; None for a file that can't be looked at."""
    found: dict[str, Signature | None] = {}
    for file in files:
        try:
            stat = os.stat(file)
        except (OSError, ValueError):  # ValueError: a name that no file can have
            found[file] = None
        else:
            found[file] = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
    return found
