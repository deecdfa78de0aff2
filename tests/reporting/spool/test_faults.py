"""The spool on a file system that fails at the k-th operation, for every k, and after every crash."""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from serviceradar_poller.errors import SpoolError
from serviceradar_poller.events.polling import SpoolSetAside
from serviceradar_poller.reporting.spool.database import SEALS_TO_TRUST
from serviceradar_poller.reporting.spool.files import DATABASE, FOLDER
from serviceradar_poller.reporting.spool.inspect import look
from serviceradar_poller.testing.faultfs import Fault, FaultFs
from serviceradar_poller.testing.spool_model import BYTES_MAX_SMALL, Driver, Model


def script(driver: Driver) -> None:
    """Use every operation once or more."""
    engine = driver.engine
    if not driver.attempt(engine.open):
        return
    old = driver.seal("old")
    driver.attempt(lambda: engine.expire(0.0))
    if old is not None:
        driver.lose(["old"], lambda: engine.expire(1_000.0))
    a = driver.seal("a", sequence="1")
    b = driver.seal("b", sequence="2")
    c = driver.seal("c")
    driver.attempt(engine.head)
    if a is not None:
        driver.attempt(lambda: engine.part(a, 0, 0))
        driver.attempt(lambda: engine.call_accepted(a, 0))
        driver.attempt(lambda: engine.failed(a))
    driver.accept("a", a)
    driver.result("big", end="seal")
    driver.result("cut", end="leave")
    driver.result("off", end="abandon")
    driver.aside("c", c)
    driver.attempt(engine.maintain)
    driver.attempt(lambda: engine.expire(1_000.0))
    driver.seal("d", size=12_000)
    driver.attempt(engine.second)
    driver.accept("b", b)
    driver.attempt(engine.maintain)
    repeat = driver.seal("repeat", change=False)
    f = driver.seal("f")
    if repeat is not None:
        driver.lose(["repeat"], lambda: engine._give_way(1))
    if f is not None:
        driver.lose(["f"], lambda: engine.drop(f))
    # The second run finds all that the first one left, orphans included.
    driver.result("orphan", end="leave")
    if not driver.reopen():
        return
    driver.seal("g", size=9_000, change=False)
    driver.attempt(driver.engine.maintain)
    driver.crowd()
    driver.attempt(driver.engine.close)
    driver.reopen()
    driver.seal("e")


def reopen_and_check(folder: Path, model: Model) -> None:
    """Open with a file system that works, and compare; then it works as any other."""
    driver = Driver(folder)
    driver.engine.open()
    events = driver.engine.take_events()
    assert not [event for event in events if isinstance(event, SpoolSetAside)], events
    try:
        with look(folder) as inspection:
            rows = [row for row in inspection.rows() if not row.reason]
            texts = [next(inspection.parts(row.id))[1].split(b" ")[0].decode() for row in rows]
            assert inspection.verify() == []
            model.check(texts, inspection.positions())
        stats = driver.engine.stats()
        assert (stats.reports, stats.bytes) == (len(rows), sum(row.size for row in rows))
        assert stats.recovered == stats.fresh_queued == sum(row.fresh for row in rows)
        assert stats.writing_bytes == 0
        with contextlib.closing(apsw.Connection(str(folder / FOLDER / DATABASE))) as raw:
            bodies = raw.execute("SELECT count(*) FROM bodies").get
            owned = raw.execute("SELECT (SELECT count(*) FROM reports) + (SELECT count(*) FROM set_aside)").get
            assert bodies == owned, "nothing is left of results that were not sealed"
        assert driver.seal("after") is not None
        head = driver.engine.head()
        assert head is not None and head.id == (rows[0].id if rows else head.id)
    finally:
        driver.engine.close()


NUMBER = iter(range(10**9))


@pytest.fixture
def fs() -> Iterator[FaultFs]:
    """Return a file system that is registered for this test."""
    made = FaultFs(f"faulty-{next(NUMBER)}")
    yield made
    made.unregister()


def folder_of(tmp_path: Path) -> Path:
    folder = tmp_path / f"state-{next(NUMBER)}"
    folder.mkdir()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["eio", "enospc", "short"])
@pytest.mark.parametrize("sticky", [False, True], ids=["once", "on"])
def test_every_operation_may_fail(tmp_path: Path, fault: Fault, *, sticky: bool) -> None:
    """Whichever operation fails, only typed errors come of it, and what was promised is there after the next open."""
    fired = True
    k = 0
    while fired:
        k += 1
        folder = folder_of(tmp_path)
        fs = FaultFs(f"faulty-{next(NUMBER)}")
        fs.arm(fault, k, sticky=sticky)
        driver = Driver(folder, fs.name, bytes_max=BYTES_MAX_SMALL)
        script(driver)
        fired = fs.fired
        fs.heal()
        if fired and not sticky:
            assert driver.errors <= 8, "one failure costs little"
        for number in range(SEALS_TO_TRUST):
            assert driver.seal(f"healed{number}") is not None, "it works again without a restart"
        assert driver.engine.stats().writable
        driver.engine.close()
        fs.unregister()
        aside = [event for event in driver.events if isinstance(event, SpoolSetAside)]
        if not aside:
            reopen_and_check(folder, driver.model)
        shutil.rmtree(folder)
    assert k > 20


@pytest.mark.slow
def test_power_may_go_at_every_operation(tmp_path: Path) -> None:
    """Whatever part of the unsynced writes reached the disk, what was promised is there, and nothing unsealed is."""
    fired = True
    k = 0
    while fired:
        k += 1
        folder = folder_of(tmp_path)
        fs = FaultFs(f"faulty-{next(NUMBER)}")
        fs.arm("crash", k)
        driver = Driver(folder, fs.name, bytes_max=BYTES_MAX_SMALL)
        script(driver)
        fired = fs.fired
        fs.crash()
        for seed in range(3):
            after = folder_of(tmp_path)
            (after / FOLDER).mkdir(mode=0o700)
            fs.restore(after / FOLDER, random.Random(f"{k}-{seed}"))
            reopen_and_check(after, driver.model)
            shutil.rmtree(after)
        driver.engine.close()
        fs.unregister()
        shutil.rmtree(folder)
    assert k > 40


class SpoolMachine(RuleBasedStateMachine):
    """Any sequence of operations, faults and crashes."""

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp(prefix="spool-machine-"))
        self.count = 0
        self.model = Model()
        self.start(self.new_folder())

    def new_folder(self) -> Path:
        folder = self.base / f"state-{next(NUMBER)}"
        (folder / FOLDER).mkdir(parents=True, mode=0o700)
        return folder

    def start(self, folder: Path) -> None:
        """Open what is in *folder* with a file system that works, and compare it with the model."""
        self.fs = FaultFs(f"faulty-{next(NUMBER)}")
        self.driver = Driver(folder, self.fs.name, model=self.model)
        self.driver.engine.open()
        self.compare()

    def compare(self) -> None:
        texts = list(self.driver.there())
        self.model.check(texts, self.driver.engine.positions())
        self.model.settle(texts)
        assert not [event for event in self.driver.engine.take_events() if isinstance(event, SpoolSetAside)]
        stats = self.driver.engine.stats()
        assert (stats.reports, stats.fresh_queued) == (len(texts), len(texts))

    def stop(self) -> None:
        self.driver.engine.close()
        self.fs.unregister()

    def new_text(self) -> str:
        self.count += 1
        return f"t{self.count}"

    @rule(size=st.sampled_from([50, 3_000, 40_000]), change=st.booleans(), moves=st.booleans())
    def seal(self, size: int, *, change: bool, moves: bool) -> None:
        text = self.new_text()
        self.driver.seal(text, size=size, change=change, sequence=text if moves else "")

    @rule(end=st.sampled_from(["seal", "abandon", "leave"]))
    def result(self, end: str) -> None:
        self.driver.result(self.new_text(), end=end)

    @rule(what=st.sampled_from(["accept", "aside", "fail", "call"]))
    def head(self, what: str) -> None:
        engine = self.driver.engine
        found: list[tuple[str, int]] = []

        def look_at() -> None:
            head = engine.head()
            if head is not None:
                found.append((engine.part(head.id, 0, 0).split(b" ")[0].decode(), head.id))

        if not self.driver.attempt(look_at) or not found:
            return
        text, report_id = found[0]
        match what:
            case "accept":
                self.driver.accept(text, report_id)
            case "aside":
                self.driver.aside(text, report_id)
            case "fail":
                self.driver.attempt(lambda: engine.failed(report_id))
            case "call":
                self.driver.attempt(lambda: engine.call_accepted(report_id, 0))

    @rule(what=st.sampled_from(["drop", "give way"]))
    def lose(self, what: str) -> None:
        engine = self.driver.engine
        try:
            with look(self.driver.folder) as inspection:
                rows = [row for row in inspection.rows() if not row.reason]
                if what == "give way":
                    rows = [row for row in rows if not row.change and row.id != engine._busy]
                texts = [next(inspection.parts(row.id))[1].split(b" ")[0].decode() for row in rows[:1]]
        except SpoolError:
            return  # the file is not made yet
        if rows and what == "drop":
            self.driver.lose(texts, lambda: engine.drop(rows[0].id))
        elif rows:
            self.driver.lose(texts, lambda: engine._give_way(1))

    @rule()
    def maintain(self) -> None:
        self.driver.attempt(self.driver.engine.maintain)

    @rule(fault=st.sampled_from(["eio", "enospc", "short", "crash"]), at=st.integers(1, 12), sticky=st.booleans())
    def arm(self, fault: Fault, at: int, *, sticky: bool) -> None:
        self.fs.arm(fault, at, sticky=sticky)

    @rule()
    def heal(self) -> None:
        self.fs.heal()

    @rule(seed=st.integers(0, 2**32))
    def lose_power(self, seed: int) -> None:
        self.fs.crash()
        after = self.new_folder()
        self.fs.restore(after / FOLDER, random.Random(seed))
        self.stop()
        self.start(after)

    @rule()
    def restart(self) -> None:
        self.fs.heal()
        folder = self.driver.folder
        self.stop()
        if self.fs.dead:
            after = self.new_folder()
            self.fs.restore(after / FOLDER, random.Random(0))
            folder = after
        self.start(folder)

    def teardown(self) -> None:
        try:
            self.lose_power(1)
            self.stop()
        finally:
            shutil.rmtree(self.base)


SpoolMachine.TestCase.settings = settings(
    max_examples=100, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
test_any_sequence_of_operations_faults_and_crashes = pytest.mark.slow(SpoolMachine.TestCase)
