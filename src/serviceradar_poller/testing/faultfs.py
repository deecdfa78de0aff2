"""
A file system for SQLite that fails when it is told to, and that knows what a crash would leave.

Everything goes through to real files, so that what works on it works as it would without. Beside them it keeps, for
each file, what is surely on the disk (the content at the last sync) and what was written since. A crash keeps any part
of the latter: none, all, or some, the last of them torn.

A sync that fails loses what it was to write, and the next one reports success all the same: that is what Linux does.
"""

from __future__ import annotations

import random  # noqa: TID251 — seeded by the test
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import apsw

Fault = Literal["eio", "enospc", "short", "crash"]

#: What may reach the disk without the rest of its write.
SECTOR = 512
_CHANGES = ("write", "sync", "truncate", "delete")
#: Operations that each fault counts and hits.
_HIT: dict[Fault, tuple[str, ...]] = {
    "eio": ("read", "open", "size", *_CHANGES),
    "enospc": ("write",),
    "short": ("write",),
    "crash": _CHANGES,
}


@dataclass(slots=True)
class _Image:
    durable: bytes
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)  # None cuts the file at the offset
    deleted: bool = False


class FaultFs(apsw.VFS):
    """
    The file system; register it by making it, use it by its name.

    Attributes:
        operations: Counted since the last arm().
        fired: The fault has happened.
        dead: Everything fails, since a crash.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.operations = 0
        self.fired = False
        self._images: dict[str, _Image] = {}
        self._fault: Fault | None = None
        self._at = 0
        self._sticky = False
        self.dead = False
        super().__init__(name, "", iVersion=2)

    # -- for the test

    def arm(self, fault: Fault, at: int, *, sticky: bool = False) -> None:
        """Let the operation number *at* (from 1) of those that *fault* hits fail, and with *sticky* all after it."""
        self.operations = 0
        self.fired = False
        self._fault, self._at, self._sticky = fault, at, sticky

    def heal(self) -> None:
        """Fail no more."""
        self._fault = None

    def crash(self) -> None:
        """From now on everything fails."""
        self.dead = True

    def restore(self, folder: Path, rng: random.Random) -> None:
        """Write into *folder* what a crash at this moment may leave."""
        style = rng.choice(("none", "all", "some", "some"))
        for path, image in self._images.items():
            if image.deleted and rng.random() < 0.5:
                continue
            content = bytearray(image.durable)
            for offset, data in image.pending:
                if style == "none" or (style == "some" and rng.random() < 0.5):
                    continue
                if data is not None and style == "some" and rng.random() < 0.25:
                    data = data[: rng.randrange(0, len(data) + 1, SECTOR)]
                _apply(content, offset, data)
            (folder / Path(path).name).write_bytes(content)

    # -- for SQLite

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        """Open a file that remembers."""
        self.check("open")
        text = name.filename() if isinstance(name, apsw.URIFilename) else name
        if text is None:
            return apsw.VFSFile("", name, flags)
        path = Path(text)
        content = path.read_bytes() if path.is_file() else b""
        file = FaultFile(self, name, text, flags)
        known = self._images.get(text)
        if known is None or known.deleted:
            self._images[text] = _Image(content)
        return file

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        """Delete a file, which a crash may bring back unless its directory is synced."""
        self.check("delete")
        super().xDelete(filename, syncdir)
        if (image := self._images.get(filename)) is not None:
            image.deleted = True
        if syncdir:
            self._images = {path: image for path, image in self._images.items() if not image.deleted}

    # -- for its files

    def image(self, path: str) -> _Image:
        """Return what is known of a file."""
        return self._images[path]

    def check(self, operation: str, cut: Callable[[], None] | None = None) -> None:
        """Fail, where it is time to; *cut* does the part of a write that a short one does."""
        if self.dead:
            raise _io_error("dead")
        if self._fault is None or operation not in _HIT[self._fault]:
            return
        self.operations += 1
        if self.operations < self._at or (self.operations > self._at and not self._sticky):
            return
        self.fired = True
        match self._fault:
            case "eio":
                raise _io_error(operation)
            case "enospc":
                raise apsw.FullError("no space")
            case "short":
                if cut is not None:
                    cut()
                raise apsw.FullError("no space for all of it")
            case "crash":
                if cut is not None:
                    cut()
                self.dead = True
                raise _io_error("crash")


class FaultFile(apsw.VFSFile):
    """One open file."""

    def __init__(self, fs: FaultFs, name: Any, path: str, flags: list[int]) -> None:
        super().__init__("", name, flags)
        self._fs = fs
        self._path = path

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        """Read."""
        self._fs.check("read")
        return super().xRead(amount, offset)

    def xFileSize(self) -> int:  # noqa: N802
        """Return the size."""
        self._fs.check("size")
        return super().xFileSize()

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802
        """Write, and remember that it is not synced."""
        content = bytes(data)
        self._fs.check("write", cut=lambda: self._write(content[: len(content) // 2], offset))
        self._write(content, offset)

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        """Cut, and remember that it is not synced."""
        self._fs.check("truncate")
        super().xTruncate(newsize)
        self._fs.image(self._path).pending.append((newsize, None))

    def xSync(self, flags: int) -> None:  # noqa: N802
        """Make everything durable, or lose it."""
        image = self._fs.image(self._path)
        try:
            self._fs.check("sync")
        except apsw.IOError:
            if not self._fs.dead:
                image.pending.clear()
            raise
        # The real disk is not waited for: what a crash leaves is decided here.
        content = bytearray(image.durable)
        for offset, data in image.pending:
            _apply(content, offset, data)
        image.durable = bytes(content)
        image.pending.clear()

    def _write(self, data: bytes, offset: int) -> None:
        super().xWrite(data, offset)
        self._fs.image(self._path).pending.append((offset, data))


def _apply(content: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del content[offset:]
        return
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


def _io_error(text: str) -> apsw.Error:
    error = apsw.IOError(text)
    error.extendedresult = apsw.SQLITE_IOERR  # type: ignore[attr-defined]
    return error
