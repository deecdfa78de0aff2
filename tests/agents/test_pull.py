"""Large streamed results: told by themselves, in parts, whole or not at all, and at nobody else's expense."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from serviceradar_poller.agents import pull
from serviceradar_poller.app.poller import AGENTS_PATH, REPORTER_PATH, Poller
from serviceradar_poller.config.model import CheckConfig
from serviceradar_poller.errors import CallError, GrpcCode, Layer, SpoolWriteError
from serviceradar_poller.events.polling import CheckFinished, ReportSent
from serviceradar_poller.logic.streamed import feed
from serviceradar_poller.reporting import results
from serviceradar_poller.reporting.spool import (
    MemoryStore,
    NewCall,
    NewReport,
    ReportStore,
    ResultWriter,
    SpoolSettings,
)
from serviceradar_poller.testing.fakes import REFUSED, FakeAgent
from serviceradar_poller.testing.simloop import run
from serviceradar_poller.testing.simsite import PING, SimSite, agent_config, now_s, site_config, until
from serviceradar_poller.wire.messages import PollerStatusChunk, ResultsChunk, ResultsRequest

SYNC = CheckConfig(service_type="sync", service_name="sync", results_interval_s=600.0)
STREAMER = f"{AGENTS_PATH}/a/results"
CHUNKS = 12
BROKEN = CallError(layer=Layer.GRPC, code=GrpcCode.INTERNAL, detail="x", reason="internal")

Items = Iterable[ResultsChunk | float | CallError]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is large begins at 2 KB, and a part is 1 KB: every path is taken by little data."""
    monkeypatch.setattr(pull, "SMALL_BYTES_MAX", 2_000)
    monkeypatch.setattr(results, "PART_BYTES", 1_000)


def chunks(count: int = CHUNKS, *, each: int = 40) -> list[ResultsChunk]:
    return [
        ResultsChunk(
            data=json.dumps([{"ip": f"10.0.{index}.{host}"} for host in range(each)]).encode(),
            chunk_index=index,
            total_chunks=count,
            is_final=index == count - 1,
            current_sequence="7",
        )
        for index in range(count)
    ]


def items(count: int = CHUNKS, *, each: int = 40) -> list[object]:
    return [{"ip": f"10.0.{index}.{host}"} for index in range(count) for host in range(each)]


class BrokenStore(MemoryStore):
    """
    A store in memory.

    Attributes:
        fail_at: The operation of a result that fails, counted from 0 over begin, add and seal.
        steps: Such operations so far.
        step_s: How long each takes.
    """

    fail_at = -1
    steps = 0
    step_s = 0.0

    async def step(self) -> None:
        number, self.steps = self.steps, self.steps + 1
        await asyncio.sleep(self.step_s)
        if number == self.fail_at:
            raise SpoolWriteError(reason="disk_full", detail="by the test")

    async def begin_result(self, meta: NewReport) -> ResultWriter:  # type: ignore[override]
        await self.step()
        return BrokenWriter(self, await super().begin_result(meta))


class BrokenWriter:
    def __init__(self, store: BrokenStore, writer: ResultWriter) -> None:
        self._store = store
        self._writer = writer

    @property
    def size(self) -> int:
        return self._writer.size

    async def add(self, part: bytes) -> None:
        await self._store.step()
        await self._writer.add(part)

    async def seal(
        self, *, fresh: int, positions: tuple[tuple[str, str, str], ...] = (), status_count: int | None = None
    ) -> int:
        await self._store.step()
        report_id = await self._writer.seal(fresh=fresh, positions=positions, status_count=status_count)
        await asyncio.sleep(self._store.step_s)  # sealed, and who asked does not know it yet
        return report_id

    async def abandon(self) -> None:
        await self._writer.abandon()


class LargeSite(SimSite):
    """Agent ``a`` streams large results, agent ``b`` has plain checks."""

    store: BrokenStore

    def __init__(self, *, agents: Iterable[str] = ("a",), bytes_max: int = 1 << 30) -> None:
        super().__init__(site_config([*(agent_config(name, PING, SYNC) for name in agents), agent_config("b")]))
        self._bytes_max = bytes_max
        self.agent: FakeAgent = self.agents["a"]
        for name in agents:
            self.agents[name].stream = lambda request: chunks()

    def make_store(self) -> ReportStore:
        settings = SpoolSettings(directory=Path(), bytes_max=self._bytes_max)
        self.store = BrokenStore(settings, emit=self.env.emit, wall=self.env.clock.wall)
        return self.store

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Poller]:
        async with super().running() as poller:
            self.poller = poller
            yield poller
        self.assert_nothing_left()

    def large(self) -> list[tuple[PollerStatusChunk, ...]]:
        """Return the streams that hold a result."""
        return [stream for stream in self.core.streams if stream[0].services[0].source == "results"]

    def finished(self) -> list[CheckFinished]:
        return [event for event in self.of(CheckFinished) if event.kind == "results"]

    def assert_nothing_left(self) -> None:
        """No result is being written, no place is taken, the accounts balance, and nobody else was late."""
        assert self.store.stats().writing_bytes == 0
        assert self.poller.results.writing == 0
        assert self.poller.reporting.sealer.accounts().balanced
        assert all(event.lateness_s < 0.1 for event in self.of(CheckFinished) if event.agent == "b")


def whole(stream: tuple[PollerStatusChunk, ...]) -> object:
    """Return what core makes of a stream: the joined message of its only service."""
    first = stream[0].services[0]
    for index, chunk in enumerate(stream):
        (status,) = chunk.services
        assert (chunk.chunk_index, chunk.total_chunks) == (index, len(stream))
        assert chunk.is_final == (index == len(stream) - 1)
        assert (chunk.poller_id, chunk.timestamp, chunk.agent_id) == ("p1", stream[0].timestamp, "a")
        assert (status.agent_id, status.service_name, status.service_type) == ("a", "sync", "sync")
        assert (status.poller_id, status.partition, status.source) == ("p1", "default", "results")
        assert status.available and status.response_time == first.response_time > 0
    return json.loads(b"".join(chunk.services[0].message for chunk in stream))


def test_a_large_result_is_a_report_of_its_own_and_a_current_one_follows() -> None:
    """Core joins the parts to the whole; its view then shows all checks again; the position moves."""

    async def main() -> None:
        site = LargeSite()
        async with site.running() as poller:
            await until(site.large, within_s=20.0)
            await asyncio.sleep(5.0)
            (stream,) = site.large()
            assert len(stream) > 5
            assert whole(stream) == items()
            kinds = [event.kind for event in site.of(ReportSent)]
            assert kinds[kinds.index("result") + 1] in ("current", "cycle")
            assert poller.reporting.store.positions()["a", "sync:sync"] == "7"
            accounts = poller.reporting.sealer.accounts()
            assert accounts.balanced and accounts.delivered == accounts.polled
            assert site.finished()[0].outcome == "available"
            assert poller.results.stored_total == 1

    run(main())


def test_results_of_many_agents_make_no_storm_of_current_reports() -> None:
    """However many large results there are, current reports keep to the interval of early ones."""

    async def main() -> None:
        names = [f"a{number}" for number in range(10)]
        site = LargeSite(agents=("a", *names))
        async with site.running():
            await until(lambda: len(site.large()) == 11, within_s=20.0)
            await asyncio.sleep(20.0)
        current = [event for event in site.of(ReportSent) if event.kind == "current"]
        assert len(current) <= 2
        assert site.told()["b", "ping"] is True

    run(main())


@pytest.mark.parametrize("at", range(CHUNKS + 1))
def test_a_stream_that_breaks_at_any_chunk_leaves_nothing(at: int) -> None:
    """Nothing half-sent, whichever chunk it breaks at; it is told, and pulled again soon."""

    async def main() -> None:
        site = LargeSite()
        answers: list[Items] = [[*chunks()[:at], BROKEN], chunks()]
        site.agent.stream = lambda request: answers.pop(0) if len(answers) > 1 else answers[0]
        async with site.running():
            await until(lambda: site.large() and whole(site.large()[0]) == items(), within_s=40.0)
            await asyncio.sleep(2.0)
            assert len(site.large()) == 1
            assert site.store.stats().writing_bytes == 0
        first = site.finished()[0]
        if at < CHUNKS:
            assert (first.outcome, first.reason) == ("failed", "internal")
        else:
            assert first.outcome == "available"  # what follows the final chunk is not read

    run(main())


@pytest.mark.parametrize("at", [*range(13), "seal"])
def test_a_store_that_fails_at_any_write_leaves_nothing(at: int | str) -> None:
    """A full disk is the reason that core is told; the result is pulled again, from where core is."""

    async def main() -> None:
        clean = LargeSite()
        async with clean.running():
            await until(clean.large, within_s=20.0)
            steps = clean.store.steps
        assert steps > 10
        site = LargeSite()
        async with site.running():
            site.store.fail_at = steps - 1 if at == "seal" else min(int(at), steps - 2)
            await until(site.finished, within_s=20.0)
            await asyncio.sleep(0.5)
            assert site.store.stats().writing_bytes == 0
            assert site.poller.reporting.sealer.accounts().balanced
            failed = site.finished()[0]
            assert (failed.outcome, failed.reason) == ("failed", "disk_full")
            assert "by the test" in failed.error
            await until(site.large, within_s=20.0)
            assert whole(site.large()[0]) == items()
            asked = [request for request in site.agent.requests if isinstance(request, ResultsRequest)]
            assert [request.last_sequence for request in asked] == ["", ""]

    run(main())


@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.2, 0.45, 0.8, 1.2])
@pytest.mark.parametrize("victim", [STREAMER, REPORTER_PATH, "pipeline", "stop"])
def test_a_crash_or_a_stop_at_any_moment_leaves_nothing(victim: str, after_s: float) -> None:
    """Whatever part dies while a result comes in, core gets it whole, and the store holds no rest of it."""

    async def main() -> None:
        site = LargeSite()
        site.agent.stream = lambda request: (item for chunk in chunks() for item in (0.05, chunk))
        async with site.running() as poller:
            site.store.step_s = 0.02
            await until(lambda: site.agent.streamed > 0, within_s=20.0)
            await asyncio.sleep(after_s)
            tree = poller.tree
            assert tree is not None
            if victim == "stop":
                return
            path = f"{AGENTS_PATH}/a/pull-1/stages/merge" if victim == "pipeline" else victim
            tree.crash(path, RuntimeError("by the test"))  # where it runs at this moment
            accounts = poller.reporting.sealer.accounts
            until_s = now_s() + 60.0
            while not any(whole(stream) == items() for stream in site.large()):
                assert accounts().balanced, accounts()
                assert now_s() < until_s
                await asyncio.sleep(0.003)
            await asyncio.sleep(2.0)
            assert accounts().balanced
            assert site.store.stats().writing_bytes == 0
            assert all(whole(stream) == items() for stream in site.large())

    run(main())


def test_a_bug_in_the_pipeline_is_that_result_s_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash is told as failed with what it was; the agent's actors and its other checks go on."""

    async def main() -> None:
        site = LargeSite()
        calls = 0

        def crash_once(*args: object) -> object:
            nonlocal calls
            calls += 1
            if calls == 6:
                raise RuntimeError("a bug")
            return feed(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(pull, "feed", crash_once)
        async with site.running() as poller:
            await until(site.finished, within_s=20.0)
            (failed,) = site.finished()
            assert (failed.outcome, failed.reason) == ("failed", "crashed")
            assert "RuntimeError: a bug" in failed.error
            await until(site.large, within_s=20.0)
            assert whole(site.large()[0]) == items()
            assert poller.tree is not None
            (node,) = (node for node in poller.tree.inspect().children[2].children[0].children if node.id == "a")
            assert [child.incarnation for child in node.children] == [1] * 5

    run(main())


@pytest.mark.slow
def test_a_store_that_hangs_fails_the_check_in_its_time() -> None:
    """A write that does not end takes the check's time and no more; the write itself is left to end."""

    async def main() -> None:
        site = LargeSite()
        async with site.running():
            site.store.step_s = 400.0
            await until(site.finished, within_s=330.0)
            (failed,) = site.finished()
            assert (failed.outcome, failed.reason) == ("failed", "timeout")
            site.store.step_s = 0.0
            await until(site.large, within_s=500.0)
            await until(lambda: not site.poller.results.writing, within_s=500.0)

    run(main())


def test_only_so_many_write_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait for their turn, counted; all of them come through."""
    monkeypatch.setattr(results, "WRITES_MAX", 2)

    async def main() -> None:
        names = [f"a{number}" for number in range(5)]
        site = LargeSite(agents=("a", *names))
        most = 0
        async with site.running() as poller:
            site.store.step_s = 0.05
            while len(site.large()) < 6:
                most = max(most, poller.results.writing)
                assert now_s() < 60.0
                await asyncio.sleep(0.01)
            assert most == 2
            assert poller.results.waits_total >= 3

    run(main())


@pytest.mark.parametrize(("bytes_max", "reason"), [(10_000, "too_large"), (22_000, "spool_full")])
def test_a_result_pushes_nothing_out(bytes_max: int, reason: str) -> None:
    """Without room a result fails, with what to do about it; what waits for core stays."""

    async def main() -> None:
        site = LargeSite(bytes_max=bytes_max)
        async with site.running() as poller:
            site.core.error = REFUSED
            if reason == "spool_full":
                await poller.reporting.store.seal(_filler(15_000))
            await until(site.finished, within_s=20.0)
            failed = site.finished()[0]
            assert (failed.outcome, failed.reason) == ("failed", reason)
            assert "raise reporting.queue_bytes" in failed.error
            assert not poller.reporting.sealer.accounts().dropped
            assert site.store.stats().writing_bytes == 0
            site.core.error = None

    run(main())


def test_core_away_keeps_results_in_order_and_counts_them() -> None:
    """A result waits like any report, delivered once; its position moves only then."""

    async def main() -> None:
        site = LargeSite()
        async with site.running() as poller:
            site.core.error = REFUSED
            await until(site.finished, within_s=20.0)
            assert poller.reporting.sealer.accounts().balanced
            assert poller.reporting.store.positions() == {}
            await asyncio.sleep(30.0)
            site.core.error = None
            await until(site.large, within_s=30.0)
            await until(poller.reporting.store.positions, within_s=5.0)
            assert poller.reporting.sealer.accounts().balanced

    run(main())


def _filler(size: int) -> NewReport:
    call = NewCall(kind="unary", parts=(b"." * size,), status_count=1)
    return NewReport(kind="cycle", timestamp=1_800_000_000, change=False, fresh=0, calls=(call,))
