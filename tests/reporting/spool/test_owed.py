"""What core has leaves a file that can't be written: it is not given again, counts once, and goes first later."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from serviceradar_poller.errors import SpoolReadError, SpoolWriteError
from serviceradar_poller.events.polling import ReportSetAside, SpoolWritable, SpoolWriteFailed
from serviceradar_poller.reporting.spool import owed as owing
from serviceradar_poller.reporting.spool import tables, transactions
from serviceradar_poller.reporting.spool.database import SEALS_TO_TRUST
from serviceradar_poller.reporting.spool.inspect import look
from serviceradar_poller.testing.faultfs import FaultFs
from serviceradar_poller.testing.spool_model import Driver


@pytest.fixture
def fs(tmp_path: Path) -> Iterator[FaultFs]:
    """Return a file system that is registered for this test."""
    made = FaultFs(f"owed-{tmp_path.name}")
    yield made
    made.unregister()


@pytest.fixture
def driver(tmp_path: Path, fs: FaultFs) -> Iterator[Driver]:
    """Return a spool with the reports r0 … r5, each of which moves a position to its number."""
    made = Driver(tmp_path, fs.name)
    made.engine.open()
    for number in range(6):
        made.seal(f"r{number}", sequence=str(number))
    yield made
    fs.heal()
    made.engine.close()


def stop_writes(fs: FaultFs) -> None:
    fs.arm("enospc", 1, sticky=True)


def accept_head(driver: Driver) -> str:
    """Send the oldest report to core; return its text."""
    head = driver.engine.head()
    assert head is not None
    text = driver.engine.part(head.id, 0, 0).split(b" ")[0].decode()
    driver.accept(text, head.id)
    return text


def position(driver: Driver) -> str:
    return driver.engine.positions()["a", "k"]


def test_reports_go_on_in_order_while_nothing_can_be_written(driver: Driver, fs: FaultFs) -> None:
    """Each is given once and counts as accepted at once, and its position has moved."""
    stop_writes(fs)
    assert [accept_head(driver) for _ in range(6)] == ["r0", "r1", "r2", "r3", "r4", "r5"]
    assert driver.engine.head() is None and driver.engine.second() is None
    stats = driver.engine.stats()
    assert (stats.reports, stats.bytes, stats.fresh_queued, stats.accepted, stats.owed) == (0, 0, 0, 6, 6)
    assert stats.oldest_timestamp is None and not stats.writable and driver.errors == 0
    assert position(driver) == "5" and driver.engine.take_moved()[-1] == ("a", "k", "5")
    assert len(driver.there()) == 6, "still in the file"
    assert [type(event) for event in driver.events if isinstance(event, SpoolWriteFailed)] == [SpoolWriteFailed]


def test_what_is_owed_goes_before_anything_else_is_written(driver: Driver, fs: FaultFs) -> None:
    """A position that a later report moved is not moved back by an earlier one."""
    stop_writes(fs)
    for _ in range(3):
        accept_head(driver)
    assert driver.seal("late") is None
    fs.heal()
    assert accept_head(driver) == "r3"
    assert [*driver.there()] == ["r4", "r5"] and driver.engine.stats().owed == 0
    driver.model.settle(["r4", "r5"])
    driver.model.check([*driver.there()], driver.engine.positions())
    with look(driver.folder) as inspection:
        assert inspection.positions() == {("a", "k"): "3"}
    for number in range(SEALS_TO_TRUST):
        driver.seal(f"more{number}")
    assert [event.errors for event in driver.events if isinstance(event, SpoolWritable)] == [driver.errors + 3]


def test_an_idle_spool_pays_too(driver: Driver, fs: FaultFs) -> None:
    """Looking for what is too old, which is done now and then, does what is owed; so does a close."""
    stop_writes(fs)
    accept_head(driver)
    driver.attempt(lambda: driver.engine.expire(0.0))
    assert driver.engine.stats().owed == 1
    fs.heal()
    driver.attempt(lambda: driver.engine.expire(60.0))
    assert driver.engine.stats().owed == 0 and len(driver.there()) == 5
    stop_writes(fs)
    accept_head(driver)
    fs.heal()
    driver.engine.close()
    assert len(driver.there()) == 4


def test_a_kill_forgets_what_is_owed_and_loses_nothing(driver: Driver, fs: FaultFs) -> None:
    """The next run gives the report once more, and positions are those of the file: asked for twice, never skipped."""
    accept_head(driver)
    stop_writes(fs)
    accept_head(driver)
    killed = driver.engine
    killed._files.close()  # as the kernel does
    driver.engine = driver.make_engine()
    fs.heal()
    driver.engine.open()
    assert position(driver) == "0"
    assert accept_head(driver) == "r1" and position(driver) == "1"


def test_a_file_that_is_opened_again_does_not_count_twice(driver: Driver, fs: FaultFs) -> None:
    """The connection may have to be made anew meanwhile: what is owed is gone from what the file is found to hold."""
    stop_writes(fs)
    for _ in range(4):
        accept_head(driver)
    fs.heal()
    driver.engine._database._disconnect()
    assert driver.engine.head() is not None
    stats = driver.engine.stats()
    assert (stats.reports, stats.fresh_queued, stats.accepted, stats.recovered) == (2, 2, 4, 0)
    assert position(driver) == "3"
    assert accept_head(driver) == "r4"


def test_a_report_that_core_never_takes_does_not_stand_in_the_way_either(driver: Driver, fs: FaultFs) -> None:
    """It counts as rejected at once, is told once, and is kept for the operator when the file can be written."""
    stop_writes(fs)
    head = driver.engine.head()
    assert head is not None
    driver.aside("r0", head.id)
    assert accept_head(driver) == "r1"
    assert driver.engine.stats().rejected == 1 and driver.engine.stats().set_aside == 0
    fs.heal()
    assert driver.seal("next") is not None
    assert driver.engine.stats().set_aside == 1
    assert len([event for event in driver.events if isinstance(event, ReportSetAside)]) == 1
    with look(driver.folder) as inspection:
        assert [row.reason for row in inspection.rows() if row.reason] == ["refused"]


def test_what_may_be_owed_is_bounded(driver: Driver, fs: FaultFs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it the spool says that it can't give more, so that memory's reports go ahead and nothing goes twice."""
    monkeypatch.setattr(owing, "OWED_MAX", 3)
    monkeypatch.setattr(transactions, "OWED_MAX", 3)
    stop_writes(fs)
    for _ in range(3):
        accept_head(driver)
    with pytest.raises(SpoolReadError) as told:
        driver.engine.head()
    assert told.value.reason == "disk_full"
    with pytest.raises(SpoolWriteError):
        driver.engine.accepted(driver.there()["r3"])
    assert driver.engine.stats().balanced and driver.engine.stats().fresh_queued == 3
    fs.heal()
    assert accept_head(driver) == "r3" and driver.engine.stats().owed == 0


def test_many_that_are_owed_go_in_transactions_of_bounded_size(
    driver: Driver, fs: FaultFs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One transaction for thousands would need more of the log than a full disk has; a fault leaves the rest owed."""
    monkeypatch.setattr(tables, "EXPIRE_BATCH", 2)
    stop_writes(fs)
    for _ in range(5):
        accept_head(driver)
    fs.heal()
    before = driver.engine.stats().fsyncs
    driver.seal("next")
    assert driver.engine.stats().owed == 0 and driver.engine.stats().fsyncs - before == 4
    assert [*driver.there()] == ["r5", "next"]
