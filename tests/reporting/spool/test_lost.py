"""Somebody deletes or replaces the spool's files while they are in use: it is noticed, told, and mended."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serviceradar_poller.errors import SpoolError, SpoolWriteError
from serviceradar_poller.events.polling import ReportDropped, SpoolSetAside, SpoolWritable, SpoolWriteFailed
from serviceradar_poller.reporting.spool import SpoolSettings
from serviceradar_poller.reporting.spool.database import RESCUE_AGAIN_S, SEALS_TO_TRUST
from serviceradar_poller.reporting.spool.engine import Engine
from serviceradar_poller.reporting.spool.files import BAD_FILES_MAX, DATABASE, FOLDER, NEW
from serviceradar_poller.reporting.spool.inspect import look
from serviceradar_poller.testing.faultfs import Fault, FaultFs
from serviceradar_poller.testing.spool_model import Driver
from serviceradar_poller.testing.spools import NOW


class Bench(Driver):
    """A spool whose clock the test moves."""

    now_s = 0.0

    def make_engine(self) -> Engine:
        return Engine(self.settings, wall=lambda: float(NOW), monotonic=lambda: self.now_s, vfs=self.vfs)


def filled(folder: Path, vfs: str = "") -> Bench:
    """Return a spool with five reports, of which one was accepted and one set aside."""
    made = Bench(folder, vfs)
    made.engine.open()
    ids = [made.seal(f"r{number}", sequence=str(number), size=5_000) for number in range(5)]
    made.accept("r0", ids[0])
    made.aside("r1", ids[1])
    return made


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = filled(tmp_path)
    yield made
    made.engine.close()


def told(bench: Bench) -> list[str]:
    return [event.reason for event in bench.events if isinstance(event, SpoolWriteFailed)]


@pytest.mark.parametrize("what", ["folder", "database", "all files", "lock"])
def test_deleted_files_are_made_anew_with_everything_that_waits(bench: Bench, what: str) -> None:
    """Reports, positions, what was set aside and accounts are as they were; a restart finds all of it."""
    folder = bench.folder / FOLDER
    match what:
        case "folder":
            shutil.rmtree(folder)
        case "database":
            (folder / DATABASE).unlink()
        case "all files":
            for path in folder.iterdir():
                path.unlink()
        case "lock":
            (folder / "lock").unlink()
    bench.seal("r5")
    assert told(bench) == ["lost"] and bench.errors == 0
    assert [event for event in bench.events if isinstance(event, SpoolWritable)]
    assert [*bench.there()] == ["r2", "r3", "r4", "r5"]
    stats = bench.engine.stats()
    assert (stats.reports, stats.accepted, stats.rejected, stats.set_aside, stats.recovered) == (4, 1, 1, 1, 0)
    assert stats.writable and stats.free_bytes > 0
    with look(bench.folder) as inspection:
        assert inspection.verify() == [] and len([row for row in inspection.rows() if row.reason]) == 1
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / DATABASE).stat().st_mode & 0o777 == 0o600 and not (folder / NEW).exists()
    assert bench.reopen()
    bench.model.check([*bench.there()], bench.engine.positions())
    assert bench.engine.stats().recovered == 4


def test_no_second_poller_gets_in_afterwards(bench: Bench) -> None:
    """The lock is taken anew with the files."""
    shutil.rmtree(bench.folder / FOLDER)
    bench.seal("r5")
    second = bench.make_engine()
    with pytest.raises(SpoolError) as refused:
        second.open()
    assert refused.value.reason == "locked"


def test_a_second_poller_that_was_faster_keeps_its_place(bench: Bench) -> None:
    """What is new is refused, so that memory keeps it; what waits can still be sent, and is not sent twice."""
    shutil.rmtree(bench.folder / FOLDER)
    second = Bench(bench.folder)
    second.engine.open()
    second.seal("theirs")
    assert bench.seal("r5") is None and told(bench) == ["lost"]
    assert not bench.engine.stats().writable
    sent = []
    while (head := bench.engine.head()) is not None:
        sent.append(bench.engine.part(head.id, 0, 0).split(b" ")[0].decode())
        bench.engine.accepted(head.id)
    assert sent == ["r2", "r3", "r4"]
    assert [*second.there()] == ["theirs"]
    assert second.seal("more") is not None and not told(second)
    second.engine.close()
    bench.now_s += RESCUE_AGAIN_S
    assert bench.seal("r6") is not None
    assert [*bench.there()] == ["r6"] and bench.engine.stats().owed == 0
    (aside,) = [event for event in bench.events if isinstance(event, SpoolSetAside)]
    assert aside.reason == "replaced" and Path(aside.path).exists(), "theirs is kept for the operator"


def test_a_directory_that_is_gone_is_waited_for(bench: Bench) -> None:
    """Until it is back everything new is refused, and it is not tried at every turn."""
    shutil.rmtree(bench.folder)
    for _ in range(3):
        assert bench.seal("no") is None
    assert told(bench) == ["lost"] and bench.engine.stats().writable is False
    bench.folder.mkdir()
    assert bench.seal("no") is None, "not yet"
    bench.now_s += RESCUE_AGAIN_S
    assert bench.seal("r5") is not None
    assert [*bench.there()] == ["r2", "r3", "r4", "r5"]


def test_what_no_connection_holds_any_more_is_lost_and_counted(bench: Bench) -> None:
    """Deleted while the database was closed after a fault: the statuses are told as dropped, not as delivered."""
    bench.engine._database._disconnect()
    shutil.rmtree(bench.folder / FOLDER)
    bench.seal("r5")
    stats = bench.engine.stats()
    assert stats.balanced and stats.dropped == {"lost": 3} and stats.accepted == 1
    assert [event.statuses for event in bench.events if isinstance(event, ReportDropped)] == [3]
    assert [*bench.there()] == ["r5"]


def test_a_disk_without_room_for_a_copy_is_not_filled(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits stays in what is still open, and can be sent; nothing half done is left."""
    shutil.rmtree(bench.folder / FOLDER)
    monkeypatch.setattr(bench.engine._files, "free_bytes", lambda: 1_000)
    with pytest.raises(SpoolWriteError) as refused:
        bench.engine.call_accepted(3, 0)
    assert refused.value.reason == "lost" and "1000 bytes are left" in refused.value.detail
    assert not [*(bench.folder / FOLDER).glob(f"{NEW}*")] and not (bench.folder / FOLDER / DATABASE).exists()
    assert bench.engine.head() is not None


def test_bounds_of_the_settings_hold_in_a_new_file(tmp_path: Path) -> None:
    """The reserve is taken from the new place's disk."""
    settings = SpoolSettings(directory=tmp_path, reserve_bytes=65_536)
    engine = Engine(settings, wall=lambda: float(NOW), monotonic=lambda: 0.0)
    engine.open()
    shutil.rmtree(tmp_path / FOLDER)
    engine.expire(0.0)
    engine._transactions.write(lambda con: None, frees=False)
    engine._files.reserve()
    assert (tmp_path / FOLDER / "reserve").stat().st_size == 65_536
    engine.close()


#: What the rescue asks of the system without SQLite.
CALLS = ("open", "stat", "scandir", "rename", "unlink", "fsync")
NUMBER = itertools.count()


@contextlib.contextmanager
def failing_calls(patch: pytest.MonkeyPatch, at: int, *, sticky: bool) -> Iterator[list[str]]:
    """Let the call number *at* (from 1) of those in CALLS fail, and with *sticky* all after it; give those that did."""
    fired: list[str] = []
    numbers = itertools.count(1)

    def failing(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def made(*args: Any, **kwargs: Any) -> Any:
            number = next(numbers)
            if number == at or (sticky and number > at):
                fired.append(name)
                raise OSError(errno.EIO, "by the test")
            return call(*args, **kwargs)

        return made

    with patch.context() as each:
        for name in CALLS:
            each.setattr(os, name, failing(name, getattr(os, name)))
        yield fired


def lose_database(tmp_path: Path, bench: Bench, *, how: str) -> None:
    """Delete the database, or put another spool's in its place where as many bad ones stand as are kept."""
    folder = bench.folder / FOLDER
    if how == "deleted":
        (folder / DATABASE).unlink()
        return
    for number in range(BAD_FILES_MAX):
        for companion in ("", "-wal", "-shm"):
            (folder / f"{DATABASE}.bad-1-{number}{companion}").touch()
    other = Bench(tmp_path)
    other.engine.open()
    other.seal("theirs")
    other.engine.close()
    (tmp_path / FOLDER / DATABASE).replace(folder / DATABASE)


def check_mended(bench: Bench) -> None:
    """The next rescue succeeds, and what was sealed is there after a restart, once and in order."""
    bench.seal("between")  # at once: refused or kept, and nothing between the two
    bench.now_s += RESCUE_AGAIN_S
    for number in range(SEALS_TO_TRUST):
        assert bench.seal(f"after{number}") is not None
    stats = bench.engine.stats()
    assert stats.writable and stats.dropped == {} and (stats.accepted, stats.recovered) == (1, 0)
    assert {event.reason for event in bench.events if isinstance(event, SpoolSetAside)} <= {"replaced"}
    assert not [*(bench.folder / FOLDER).glob(f"{NEW}*")]
    assert bench.reopen()
    there = [*bench.there()]
    assert {"r2", "r3", "r4", "after0"} <= {*there}
    bench.model.check(there, bench.engine.positions())
    bench.engine.close()


@pytest.mark.parametrize("how", ["deleted", "replaced"])
@pytest.mark.parametrize("sticky", [False, True], ids=["once", "on"])
def test_every_call_of_a_rescue_may_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, *, sticky: bool
) -> None:
    """Whatever the system refuses half-way, the open database counts as lost until its copy is in its place."""
    met: set[str] = set()
    for at in itertools.count(1):
        folders = [tmp_path / f"state-{next(NUMBER)}" for _ in range(2)]
        for folder in folders:
            folder.mkdir()
        bench = filled(folders[0])
        lose_database(folders[1], bench, how=how)
        with failing_calls(monkeypatch, at, sticky=sticky) as fired:
            bench.seal("during")
        met.update(fired)
        check_mended(bench)
        if not fired:
            break
    assert met >= {"open", "stat", "unlink", "rename", "fsync"}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["deleted", "replaced"])
@pytest.mark.parametrize("fault", ["eio", "enospc", "short"])
def test_every_operation_on_the_copy_may_fail(tmp_path: Path, fault: Fault, how: str) -> None:
    """A copy that could not be made leaves nothing behind, its journal included, and the next one is whole."""
    for at in itertools.count(1):
        folders = [tmp_path / f"state-{next(NUMBER)}" for _ in range(2)]
        for folder in folders:
            folder.mkdir()
        fs = FaultFs(f"lost-{next(NUMBER)}")
        bench = filled(folders[0], fs.name)
        lose_database(folders[1], bench, how=how)
        fs.arm(fault, at)
        bench.seal("during")
        fired = fs.fired
        fs.heal()
        assert not [*(folders[0] / FOLDER).glob(f"{NEW}*")]
        check_mended(bench)
        fs.unregister()
        if not fired:
            break
    assert at > 5
