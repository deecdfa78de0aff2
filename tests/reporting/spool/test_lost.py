"""Somebody deletes or replaces the spool's files while they are in use: it is noticed, told, and mended."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from serviceradar_poller.errors import SpoolError, SpoolWriteError
from serviceradar_poller.events.polling import ReportDropped, SpoolSetAside, SpoolWritable, SpoolWriteFailed
from serviceradar_poller.reporting.spool import SpoolSettings
from serviceradar_poller.reporting.spool.database import RESCUE_AGAIN_S
from serviceradar_poller.reporting.spool.engine import Engine
from serviceradar_poller.reporting.spool.files import DATABASE, FOLDER, NEW
from serviceradar_poller.reporting.spool.inspect import look
from serviceradar_poller.testing.spool_model import Driver
from serviceradar_poller.testing.spools import NOW


class Bench(Driver):
    """A spool whose clock the test moves."""

    now_s = 0.0

    def make_engine(self) -> Engine:
        return Engine(self.settings, wall=lambda: float(NOW), monotonic=lambda: self.now_s)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Return a spool with five reports, of which one was accepted and one set aside."""
    made = Bench(tmp_path)
    made.engine.open()
    ids = [made.seal(f"r{number}", sequence=str(number), size=5_000) for number in range(5)]
    made.accept("r0", ids[0])
    made.aside("r1", ids[1])
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
    assert not (bench.folder / FOLDER / NEW).exists() and not (bench.folder / FOLDER / DATABASE).exists()
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
