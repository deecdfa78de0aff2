"""The spool's own files: what is set aside, who may use it, what an earlier run left, and a full disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from serviceradar_poller.errors import SpoolError, SpoolReadError, SpoolWriteError
from serviceradar_poller.events.polling import (
    ReportDropped,
    SpoolRecovered,
    SpoolSetAside,
    SpoolWritable,
    SpoolWriteFailed,
)
from serviceradar_poller.reporting.spool import NewReport, Spool, SpoolSettings, schema
from serviceradar_poller.reporting.spool.database import SEALS_TO_TRUST
from serviceradar_poller.reporting.spool.engine import Engine
from serviceradar_poller.reporting.spool.files import BAD_FILES_MAX, DATABASE, FOLDER, SpoolFiles
from serviceradar_poller.reporting.spool.inspect import look
from serviceradar_poller.testing.spools import NOW, make_report

META = NewReport(kind="result", timestamp=NOW, change=True, fresh=0, calls=())


def run(
    directory: Path, body: Callable[[Spool], Awaitable[None]], events: list[Any] | None = None, **bounds: Any
) -> list[Any]:
    """Open a spool, use it, close it; return what it told."""
    told: list[Any] = [] if events is None else events

    async def main() -> None:
        settings = SpoolSettings(directory=directory, **({"reserve_bytes": 65_536} | bounds))
        spool = await Spool.open(settings, emit=told.append, wall=lambda: float(NOW))
        try:
            await body(spool)
            assert spool.stats().balanced
        finally:
            await spool.close()

    asyncio.run(main())
    return told


async def nothing(spool: Spool) -> None:
    """Only open and close."""


async def seal_three(spool: Spool) -> None:
    for number in range(3):
        await spool.seal(make_report(text=str(number), size=3_000, fresh=2, positions=(("a", "k", str(number)),)))


def database(directory: Path) -> Path:
    return directory / FOLDER / DATABASE


def test_what_was_sealed_is_there_after_a_restart(tmp_path: Path) -> None:
    """Reports, progress, attempts and positions come back; their statuses count as recovered."""

    async def first(spool: Spool) -> None:
        await seal_three(spool)
        head = await spool.head()
        assert head is not None
        await spool.accepted(head.id)
        head = await spool.head()
        assert head is not None
        assert await spool.failed(head.id) == 1

    async def second(spool: Spool) -> None:
        stats = spool.stats()
        assert (stats.reports, stats.bytes, stats.recovered, stats.sealed) == (2, 6_000, 4, 0)
        assert dict(spool.positions()) == {("a", "k"): "0"}
        head = await spool.head()
        assert head is not None and (head.attempts, head.sealed_wall_s) == (1, float(NOW))
        assert (await spool.part(head.id, 0, 0)).startswith(b"1")
        assert await spool.seal(make_report()) > head.id + 1

    run(tmp_path, first)
    told = run(tmp_path, second)
    (opened,) = [event for event in told if isinstance(event, SpoolRecovered)]
    assert (opened.reports, opened.statuses, opened.size, opened.positions, opened.checked) == (2, 4, 6_000, 1, True)


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    """The folder is for its owner only, and so is every file in it."""

    async def body(spool: Spool) -> None:
        await seal_three(spool)
        folder = tmp_path / FOLDER
        assert folder.stat().st_mode & 0o777 == 0o700
        modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
        assert modes.keys() >= {DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", "lock", "reserve"}
        assert set(modes.values()) == {0o600}

    run(tmp_path, body)


def _garbage(path: Path) -> None:
    path.write_bytes(b"this is no database " * 500)


def _torn(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3 // 4096 * 4096])


def _corrupt(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096 + 100 : 4096 * 3] = b"\xa5" * (4096 * 2 - 100)
    path.write_bytes(content)


def _newer(path: Path) -> None:
    with apsw.Connection(str(path)) as con:
        con.execute(f"PRAGMA user_version = {schema.SCHEMA_VERSION + 1}")
    con.close()


def _foreign(path: Path) -> None:
    path.unlink()
    with apsw.Connection(str(path)) as con:
        con.execute("CREATE TABLE reports (id)")
    con.close()


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_garbage, "corrupt"),
        (_torn, "corrupt"),
        (_corrupt, "corrupt"),
        (_newer, "newer_version"),
        (_foreign, "not_a_spool"),
        (_directory, "unreadable"),
    ],
)
def test_a_file_that_can_not_be_used_is_set_aside(tmp_path: Path, damage: Callable[[Path], None], reason: str) -> None:
    """The poller goes on with a new file; the old one is kept, and an event says where and why."""
    run(tmp_path, seal_three)
    damage(database(tmp_path))

    async def body(spool: Spool) -> None:
        assert spool.stats().reports == 0
        await seal_three(spool)

    (aside,) = [event for event in run(tmp_path, body) if isinstance(event, SpoolSetAside)]
    assert aside.reason == reason
    assert aside.error
    assert Path(aside.path).exists()
    told = run(tmp_path, nothing)
    assert [type(event) for event in told] == [SpoolRecovered]
    assert told[0].reports == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_set_aside(tmp_path: Path) -> None:
    """As one that is damaged."""
    run(tmp_path, seal_three)
    database(tmp_path).chmod(0)
    (aside,) = [event for event in run(tmp_path, seal_three) if isinstance(event, SpoolSetAside)]
    assert aside.reason == "unreadable"


def test_an_empty_file_is_a_new_spool(tmp_path: Path) -> None:
    """What a crash in the very first moment leaves is nothing to complain about."""
    (tmp_path / FOLDER).mkdir()
    database(tmp_path).touch()
    assert [type(event) for event in run(tmp_path, seal_three)] == [SpoolRecovered]


def test_only_so_many_bad_files_are_kept(tmp_path: Path) -> None:
    """The oldest go; those of the same second are told apart."""
    for _ in range(BAD_FILES_MAX + 2):
        run(tmp_path, nothing)
        _garbage(database(tmp_path))
    run(tmp_path, nothing)
    kept = sorted(path.name for path in (tmp_path / FOLDER).glob(f"{DATABASE}.bad-*"))
    assert len(kept) == BAD_FILES_MAX
    assert kept[-1].endswith(f"-{BAD_FILES_MAX + 1}")


def test_damage_that_shows_later_costs_the_file_and_not_the_poller(tmp_path: Path) -> None:
    """The queue is lost and counted, the positions are kept, and the seal that found it succeeds."""
    events: list[Any] = []

    async def body(spool: Spool) -> None:
        await spool.seal(make_report(text="first", positions=(("a", "k", "1"),)))
        head = await spool.head()
        assert head is not None
        await spool.accepted(head.id)
        writer = await spool.begin_result(META)
        await writer.add(b"x")
        for _ in range(60):  # more than SQLite remembers
            await spool.seal(make_report(size=100_000, fresh=2))
        folder = tmp_path / FOLDER
        for name in (DATABASE, f"{DATABASE}-wal"):
            with (folder / name).open("r+b") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(0)
                file.write(b"\xa5" * size)
        while not [event for event in events if isinstance(event, SpoolSetAside)]:
            head = await spool.head()
            assert head is not None
            await spool.set_aside(head.id, "test")
        for _ in range(3):
            await spool.seal(make_report(text="after", size=5_000, fresh=1))
        stats = spool.stats()
        assert stats.dropped["corrupt"] + stats.rejected == 120
        assert stats.dropped["corrupt"] > 0
        assert stats.fresh_queued == 3
        with pytest.raises(SpoolWriteError) as lost:
            await writer.add(b"y")
        assert lost.value.reason == "lost"
        await writer.abandon()
        assert dict(spool.positions()) == {("a", "k"): "1"}

    run(tmp_path, body, events)
    assert [event.reason for event in events if isinstance(event, SpoolSetAside)] == ["corrupt"]
    assert [event.reason for event in events if isinstance(event, ReportDropped)] == ["corrupt"]
    run(tmp_path, _has_position)


async def _has_position(spool: Spool) -> None:
    assert dict(spool.positions()) == {("a", "k"): "1"}
    assert spool.stats().reports == 3


def test_a_damaged_part_is_not_sent(tmp_path: Path) -> None:
    """A flipped bit that the structure does not show is found by the checksum; verify names it."""
    run(tmp_path, seal_three)
    with apsw.Connection(str(database(tmp_path))) as con:
        con.execute("UPDATE parts SET data = zeroblob(3000) WHERE body = 1")
    con.close()

    async def body(spool: Spool) -> None:
        head = await spool.head()
        assert head is not None
        with pytest.raises(SpoolReadError) as damaged:
            await spool.part(head.id, 0, 0)
        assert damaged.value.reason == "damaged"
        await spool.set_aside(head.id, "damaged")
        head = await spool.head()
        assert head is not None
        assert (await spool.part(head.id, 0, 0)).startswith(b"1")

    run(tmp_path, body)
    with look(tmp_path) as inspection:
        assert inspection.verify() == ["report 1: part 0.0 is damaged"]


def test_two_pollers_never_share_one(tmp_path: Path) -> None:
    """The second is told who has it; when the first has ended, even without a word, it may."""

    async def body(spool: Spool) -> None:
        with pytest.raises(SpoolError) as locked:
            await Spool.open(SpoolSettings(directory=tmp_path), emit=lambda event: None, wall=lambda: 0.0)
        assert locked.value.reason == "locked"
        assert f"process {os.getpid()};" in str(locked.value)

    run(tmp_path, body)
    run(tmp_path, nothing)


def test_a_directory_that_can_not_be_used_is_a_clear_error(tmp_path: Path) -> None:
    """Missing, a file, or one that may not be written: the error names it and says what is wrong."""
    file = tmp_path / "file"
    file.write_text("")
    for directory, reason in ((tmp_path / "absent", "missing"), (file, "not_a_directory"), (Path("/proc"), "unusable")):
        with pytest.raises(SpoolError) as refused:
            run(directory, nothing)
        assert refused.value.reason in (reason, "read_only")
        assert str(directory) in str(refused.value)
        assert not isinstance(refused.value, SpoolWriteError)


def test_the_log_and_the_file_shrink_when_the_backlog_is_gone(tmp_path: Path) -> None:
    """Space comes back to the disk, in steps, while the spool is used."""

    async def body(spool: Spool) -> None:
        for _ in range(30):
            await spool.seal(make_report(size=1_000_000))
        assert spool.stats().file_bytes > 30_000_000
        while (head := await spool.head()) is not None:
            await spool.accepted(head.id)
        for _ in range(100):
            await spool.expire(0.0)  # each step of giving space back runs between two operations
        assert spool.stats().file_bytes < 20_000_000

    run(tmp_path, body)


class SmallDisk(SpoolFiles):
    """A disk on which others take the space: nothing grows while ``left`` is 0, but for what the reserve gave back."""

    def __init__(self, directory: Path, *, reserve_bytes: int) -> None:
        super().__init__(directory, reserve_bytes=reserve_bytes)
        self.left = 10**9
        self.held = 0

    def free_bytes(self) -> int:
        return self.left

    def allocate(self) -> bool:
        if self.left < self.reserve_bytes:
            return False
        self.left -= self.reserve_bytes
        self.held = self.reserve_bytes
        return True

    def free(self) -> bool:
        had, self.held = self.held, 0
        self.left += had
        return had > 0


class SmallFs(apsw.VFS):
    """The file system of that disk."""

    def __init__(self, name: str, disk: SmallDisk) -> None:
        self.name = name
        self.disk = disk
        super().__init__(name, "", iVersion=2)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        return SmallFile(self, name, flags)


class SmallFile(apsw.VFSFile):
    """A file of it."""

    def __init__(self, fs: SmallFs, name: Any, flags: list[int]) -> None:
        super().__init__("", name, flags)
        self.fs = fs

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802
        grows = max(offset + len(data) - self.xFileSize(), 0)
        if grows > self.fs.disk.left:
            raise apsw.FullError("no space")
        self.fs.disk.left -= grows
        super().xWrite(data, offset)

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        self.fs.disk.left += max(self.xFileSize() - newsize, 0)
        super().xTruncate(newsize)


def test_deletes_work_on_a_full_disk_and_seals_come_back_by_themselves(tmp_path: Path) -> None:
    """Seals are refused and told once, every delete works, and what they free is enough to seal again."""
    disk = SmallDisk(tmp_path, reserve_bytes=8_000_000)
    fs = SmallFs("small-disk", disk)
    settings = SpoolSettings(directory=tmp_path)
    engine = Engine(settings, wall=lambda: float(NOW), monotonic=lambda: 0.0, files=disk, vfs=fs.name)
    engine.open()
    for _ in range(40):
        engine.seal(make_report(size=100_000))
        engine.maintain()
    disk.left = 0
    engine.maintain()
    with contextlib.suppress(SpoolWriteError):
        for _ in range(500):  # what room the log has left
            engine.seal(make_report(size=100_000))
    for _ in range(10):
        with pytest.raises(SpoolWriteError) as refused:
            engine.seal(make_report(size=100_000))
        assert refused.value.reason == "disk_full"
    sealed = engine.stats().reports
    for number in range(sealed - 5):
        head = engine.head()
        assert head is not None
        if number == 3:
            engine.set_aside(head.id, "refused")
        else:
            engine.accepted(head.id)
        if engine.wants_maintenance:
            engine.maintain()
    assert engine.stats().reports == 5
    while engine.wants_maintenance and engine.maintain():
        pass
    for _ in range(SEALS_TO_TRUST):
        assert not engine.stats().writable
        engine.seal(make_report(size=100_000))
    stats = engine.stats()
    assert stats.balanced and stats.writable and disk.held == 8_000_000
    told = [type(event) for event in engine.take_events() if isinstance(event, SpoolWriteFailed | SpoolWritable)]
    assert told == [SpoolWriteFailed, SpoolWritable] * (len(told) // 2) and told
    engine.close()
    fs.unregister()


def test_on_a_full_disk_the_oldest_repeats_make_room(tmp_path: Path) -> None:
    """What goes is counted and told, gives the disk enough for a seal, and is no more than that needs."""
    disk = SmallDisk(tmp_path, reserve_bytes=8_000_000)
    fs = SmallFs("roomy-disk", disk)
    settings = SpoolSettings(directory=tmp_path)
    engine = Engine(settings, wall=lambda: float(NOW), monotonic=lambda: 0.0, files=disk, vfs=fs.name)
    engine.open()
    change = engine.seal(make_report(size=100_000, change=True))
    for _ in range(200):
        engine.seal(make_report(size=100_000))
        engine.maintain()
    while engine.wants_maintenance and engine.maintain():
        pass
    assert engine.make_room(100_000).reports == 0
    disk.left = 0
    with contextlib.suppress(SpoolWriteError):
        for _ in range(500):  # what room the log has left
            engine.seal(make_report(size=100_000))
    before = engine.stats()
    lost = 0
    for _ in range(30):
        gone = engine.make_room(100_000)
        lost += gone.reports
        engine.seal(make_report(size=100_000))
        if engine.wants_maintenance:
            engine.maintain()
    stats = engine.stats()
    assert stats.balanced and dict(stats.dropped) == {"disk_full": lost}
    assert stats.reports == before.reports + 30 - lost
    assert 1 <= lost <= 30, "no more than what is sealed"
    assert disk.held == 8_000_000 and disk.left >= 0
    head = engine.head()
    assert head is not None and head.id == change
    events = engine.take_events()
    failed = [event for event in events if isinstance(event, SpoolWriteFailed)]
    assert 1 <= len(failed) <= 3, "not for every seal at the edge"
    told = [event for event in events if isinstance(event, ReportDropped)]
    assert {event.reason for event in told} == {"disk_full"} and sum(event.reports for event in told) == lost
    engine.close()
    fs.unregister()


def test_a_disk_that_is_full_at_the_start_keeps_nobody_from_starting(tmp_path: Path) -> None:
    """The spool opens, refuses seals, and takes them as soon as there is room."""
    disk = SmallDisk(tmp_path, reserve_bytes=100_000)
    disk.left = 0
    fs = SmallFs("full-disk", disk)
    engine = Engine(
        SpoolSettings(directory=tmp_path), wall=lambda: float(NOW), monotonic=lambda: 0.0, files=disk, vfs=fs.name
    )
    engine.open()
    for _ in range(2):
        with pytest.raises(SpoolWriteError) as refused:
            engine.seal(make_report())
        assert refused.value.reason == "disk_full"
        with pytest.raises(SpoolReadError):
            engine.head()
    disk.left = 10**7
    for number in range(SEALS_TO_TRUST):
        assert engine.seal(make_report()) == number + 1
    told = [type(event) for event in engine.take_events()]
    assert told == [SpoolWriteFailed, SpoolRecovered, SpoolWritable]
    engine.close()
    fs.unregister()


KILLED = """
import asyncio, sys
from pathlib import Path
from serviceradar_poller.reporting.spool import Spool, SpoolSettings, NewReport, NewCall

async def main():
    settings = SpoolSettings(directory=Path(sys.argv[1]), reserve_bytes=65536)
    spool = await Spool.open(settings, emit=lambda event: None, wall=lambda: 0.0)
    number = spool.stats().recovered
    while True:
        part = str(number).encode().ljust(2000, b".")
        call = NewCall(kind="unary", parts=(part,), status_count=1)
        at = int(sys.argv[2]) + number
        report = NewReport(kind="cycle", timestamp=at, change=False, fresh=1, calls=(call,))
        await spool.seal(report)
        print(at, flush=True)
        if number % 7 == 3:
            writer = await spool.begin_result(NewReport(kind="r", timestamp=0, change=True, fresh=0, calls=()))
            await writer.add(b"never sealed" * 1000)
        number += 1

asyncio.run(main())
"""


@pytest.mark.slow
def test_a_kill_at_any_instant_loses_nothing_that_was_sealed(tmp_path: Path) -> None:
    """Whenever the process is killed, every seal that returned is there at the next start, in order, and whole."""
    promised: list[int] = []
    for kill in range(24):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path), str(kill * 1_000_000)], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(1 + kill * 2)]
        child.kill()
        lines += child.stdout.readlines()
        child.stdout.close()
        child.wait()
        promised += [int(line) for line in lines if line.endswith(b"\n")]
    with look(tmp_path) as inspection:
        rows = list(inspection.rows())
        assert inspection.verify() == []
    there = [row.timestamp for row in rows]
    assert set(promised) <= set(there)
    assert there == sorted(set(there))
    assert len(there) - len(promised) <= 24, "at most one a kill was sealed without being told"
    assert all(row.kind == "cycle" and row.size == 2_000 for row in rows)
