"""A simple model of the spool, and a driver that uses both and compares them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from serviceradar_poller.errors import SpoolError
from serviceradar_poller.reporting.spool import NewReport, SpoolSettings
from serviceradar_poller.reporting.spool.engine import Engine
from serviceradar_poller.reporting.spool.inspect import look
from serviceradar_poller.testing.spools import NOW, make_report

#: More than a test fills that does not mean to, and what one fills that does.
BYTES_MAX = 10_000_000
BYTES_MAX_SMALL = 150_000
#: What crowd() leaves for what follows, less than any repeat.
CROWD_ROOM = 2_000
META = NewReport(kind="result", timestamp=NOW, change=True, fresh=0, calls=())


class Model:
    """
    What a spool must hold, by the text that each report begins with, and what it may hold.

    A call that failed may have reached the disk all the same: its effect may show after the next open, whole.
    """

    def __init__(self) -> None:
        self.order: list[str] = []
        self.inside: set[str] = set()
        self.maybe: set[str] = set()
        self.positions: dict[str, tuple[str, str, str]] = {}
        self.accepted: list[str] = []
        self.maybe_accepted: set[str] = set()

    def sealing(self, text: str, position: tuple[str, str, str] | None) -> None:
        """A seal begins."""
        self.order.append(text)
        self.maybe.add(text)
        if position is not None:
            self.positions[text] = position

    def sealed(self, text: str) -> None:
        """It returned."""
        self.maybe.discard(text)
        self.inside.add(text)

    def accepting(self, text: str) -> None:
        """An acceptance begins."""
        self.maybe_accepted.add(text)
        self.leaving(text)

    def leaving(self, text: str) -> None:
        """Something begins that takes a report away."""
        self.inside.discard(text)
        self.maybe.add(text)

    def gone(self, text: str) -> None:
        """It returned: the report is away."""
        self.maybe.discard(text)
        if text in self.maybe_accepted:
            self.maybe_accepted.discard(text)
            self.accepted.append(text)

    def settle(self, texts: list[str]) -> None:
        """Take in how what was open has ended: it is there or it is not."""
        for text in sorted(self.maybe):
            if text in texts:
                self.maybe_accepted.discard(text)
                self.sealed(text)
            else:
                self.gone(text)

    def check(self, texts: list[str], positions: dict[tuple[str, str], str]) -> None:
        """Compare with what is there."""
        assert self.inside <= set(texts), "what was sealed and not accepted is there"
        assert set(texts) <= self.inside | self.maybe, "nothing else is"
        assert texts == [text for text in self.order if text in set(texts)], "in order, each once"
        expected = {}
        for text in (*self.accepted, *(self.maybe_accepted - set(texts))):
            if text in self.positions:
                agent, key, sequence = self.positions[text]
                expected[agent, key] = sequence
        assert positions == expected, "positions are exactly those of accepted reports"


class Driver:
    """Uses a spool and keeps the model."""

    def __init__(self, folder: Path, vfs: str = "", *, model: Model | None = None, bytes_max: int = BYTES_MAX) -> None:
        self.model = model or Model()
        self.events: list[Any] = []
        self.errors = 0
        self.owed: list[str] = []  # of what the spool let go, that which may still stand in its file
        self.folder = folder
        self.settings = SpoolSettings(directory=folder, bytes_max=bytes_max, reserve_bytes=4_096, age_max_s=1_000.0)
        self.vfs = vfs
        self.engine = self.make_engine()

    def make_engine(self) -> Engine:
        """Return an engine that is not open yet."""
        return Engine(self.settings, wall=lambda: float(NOW), monotonic=lambda: 0.0, vfs=self.vfs)

    def reopen(self) -> bool:
        """Close, and open what is there with a new engine, as a restart does; say whether it opened."""
        self.attempt(self.engine.close)
        self.owed.clear()
        self.engine = self.make_engine()
        return self.attempt(self.engine.open)

    def there(self) -> dict[str, int]:
        """Return the id of each report that waits, by its text, in order."""
        with look(self.folder) as inspection:
            rows = [row for row in inspection.rows() if not row.reason]
            return {next(inspection.parts(row.id))[1].split(b" ")[0].decode(): row.id for row in rows}

    def attempt(self, action: Callable[[], object]) -> bool:
        """Do it; nothing but a typed error may come of it, and the accounts stay balanced."""
        try:
            action()
        except SpoolError:
            self.errors += 1
            return False
        finally:
            self.events += self.engine.take_events()
            stats = self.engine.stats()
            assert stats.balanced
            if not stats.owed:
                for text in self.owed:
                    self.model.gone(text)
                self.owed.clear()
        return True

    def let_go(self, text: str) -> None:
        """The spool has let a report go: from its file, or as soon as that can be written."""
        if self.engine.stats().owed:
            self.owed.append(text)
        else:
            self.model.gone(text)

    def seal(self, text: str, *, size: int = 200, change: bool = True, sequence: str = "", at: int = NOW) -> int | None:
        """Seal a report that begins with *text*; return its id, or None where it failed."""
        position = ("a", "k", sequence) if sequence else None
        report = make_report(
            text=text + " ", size=size, change=change, at=at, positions=(position,) if position else ()
        )
        self.model.sealing(text, position)
        ids: list[int] = []
        if not self.attempt(lambda: ids.append(self.engine.seal(report))):
            return None
        self.model.sealed(text)
        return ids[0]

    def accept(self, text: str, report_id: int | None) -> None:
        """Accept it."""
        if report_id is not None:
            self.model.accepting(text)
            if self.attempt(lambda: self.engine.accepted(report_id)):
                self.let_go(text)

    def aside(self, text: str, report_id: int | None) -> None:
        """Set it aside."""
        if report_id is not None:
            self.model.leaving(text)
            if self.attempt(lambda: self.engine.set_aside(report_id, "refused")):
                self.let_go(text)

    def crowd(self) -> None:
        """Seal a change that has room only where every repeat goes."""
        stats = self.engine.stats()
        try:
            with look(self.folder) as inspection:
                repeats = [row for row in inspection.rows() if not row.change and not row.reason]
                texts = [next(inspection.parts(row.id))[1].split(b" ")[0].decode() for row in repeats]
        except SpoolError:
            return  # the fault met the making of the file
        if not repeats:
            return
        room = self.engine._settings.bytes_max - stats.bytes - stats.writing_bytes
        size = room + sum(row.size for row in repeats) - CROWD_ROOM
        for text in texts:
            self.model.leaving(text)
        if self.seal("crowd", size=size) is not None:
            for text in texts:
                self.model.gone(text)

    def lose(self, texts: list[str], action: Callable[[], object]) -> None:
        """Do what takes the reports *texts* away, all of them or, where it fails, none."""
        for text in texts:
            self.model.leaving(text)
        if self.attempt(action):
            for text in texts:
                self.model.gone(text)

    def result(self, text: str, *, end: str) -> None:
        """Write a result of two parts, and *end* it: ``seal``, ``abandon`` or ``leave``."""
        begun: list[tuple[int, int]] = []
        parts = (text.encode() + b" ", b"x" * 9_000)
        if not self.attempt(lambda: begun.append(self.engine.begin_result())):
            return
        ((body, epoch),) = begun
        size = 0
        for index, part in enumerate(parts):
            if not self.attempt(lambda index=index, part=part: self.engine.add(body, epoch, index, part, META)):  # type: ignore[misc]
                end = "abandon"
                break
            size += len(part)
        if end == "abandon":
            self.attempt(lambda: self.engine.abandon(body, epoch, size))
        if end == "seal":
            self.model.sealing(text, None)
            if self.attempt(
                lambda: self.engine.seal_result(body, epoch, replace(META, fresh=1), "stream", (len(parts), size, 1))
            ):
                self.model.sealed(text)
