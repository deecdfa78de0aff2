"""A pipeline as its owner sees it: the spec to put under a supervisor, its end, its drain, its figures."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from serviceradar_poller.flow.events import Buffer, Counts, FlowError, GaveUp, LinkInfo, Outcome
from serviceradar_poller.flow.ledger import Ledger
from serviceradar_poller.flow.link import Hop
from serviceradar_poller.flow.run import OnPoison, Run
from serviceradar_poller.flow.source import Source
from serviceradar_poller.flow.stages import Producer
from serviceradar_poller.otp import (
    AutoShutdown,
    Child,
    ChildSpec,
    KernelError,
    NoProcess,
    NotFound,
    Restart,
    Strategy,
    SupervisorRef,
    supervisor,
)

#: Names within a pipeline.
PRODUCER: Final = "producer"
STAGES: Final = "stages"
KEEPER: Final = "keeper"
#: Grace of the keeper after its drain, and of a stage: enough to let go, not to work.
GRACE_S: Final = 2.0

Start = Callable[[Child], Any]
#: Makes a stage's hop from the ids of the processes before it.
MakeHop = Callable[[Ledger, Sequence[str]], Hop]
#: Makes the start of a process from the run, its id, the hop before its stage and the one after, if any.
MakeStart = Callable[[Run, str, Hop, "Hop | None"], Start]


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """One stage after the source."""

    ids: tuple[str, ...]
    make_hop: MakeHop
    make_start: MakeStart


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What holds for a pipeline as a whole; see ``flow``."""

    id: str
    buffer: Buffer
    tries: int
    on_poison: OnPoison | None
    drain_s: float
    intensity: int
    period_s: float
    grace_s: float

    def __post_init__(self) -> None:
        if self.tries < 1:
            raise ValueError(f"pipeline {self.id!r}: tries must be at least 1, not {self.tries}")
        if not 0 <= self.drain_s < math.inf or not 0 <= self.grace_s < math.inf:
            raise ValueError(f"pipeline {self.id!r}: drain_s and grace_s must be finite and not negative")


class Pipeline:
    """
    A pipeline; made by ``flow(…)…consume(…)``. It has one place in one tree at a time.

    What is settled is remembered here, so that a pipeline that is started again (by its supervisor, or with
    ``spec`` under another) goes on where it was, if its source can.
    """

    def __init__(self, source: Source[Any], settings: Settings, stages: Sequence[StagePlan]) -> None:
        self.id = settings.id
        self._source = source
        self._settings = settings
        self._stages = tuple(stages)
        self._ledger = Ledger()
        self._run: Run | None = None
        self._outcome: Outcome | None = None
        self._waiters: set[asyncio.Future[None]] = set()
        self._opened = False

    def spec(self, *, restart: Restart = Restart.TEMPORARY) -> ChildSpec:
        """
        Return the spec of its supervisor.

        Args:
            restart: TEMPORARY for what ends by itself and belongs to a caller that waits for it; PERMANENT for
                what is to run as long as its supervisor does.
        """
        return supervisor(
            self.id,
            self._children,
            intensity=0,
            period_s=self._settings.period_s,
            auto_shutdown=AutoShutdown.ANY_SIGNIFICANT,
            restart=restart,
        )

    async def run(self, under: SupervisorRef) -> Outcome:
        """
        Start it under *under*, wait for its end and return how it ended; a cancel stops it, drain included.

        Raises:
            NoProcess, MaxChildren, AlreadyStarted, StartFailed: It was not started.
        """
        await under.start_child(self.spec())
        try:
            return await self.wait()
        finally:
            try:
                await under.terminate_child(self.id)  # its processes are gone when this returns
            except (NoProcess, NotFound):
                pass  # they are, or *under* is about to end them

    async def wait(self) -> Outcome:
        """Wait until it has ended and return how; at once when it is not running but was."""
        while self._outcome is None:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)
        return self._outcome

    async def drain(self, timeout_s: float | None = None) -> Outcome:
        """
        Stop the source, have all that it gave processed, acknowledged, and the pipeline ended; return how it ended.

        Args:
            timeout_s: After it, what is left is left unprocessed; ``drain_s`` if None.
        """
        run = self._run
        if run is not None and not run.over and run.wanted_drain_s is None:
            run.wanted_drain_s = self._settings.drain_s if timeout_s is None else timeout_s
            run.change.set()
        return await self.wait()

    @property
    def outcome(self) -> Outcome | None:
        """How it ended; None before."""
        return self._outcome

    def counts(self) -> Counts:
        """Return what became of the events so far."""
        return self._ledger.counts()

    @property
    def resume_offset(self) -> int:
        """Where the source would go on: every event before it is settled."""
        return self._ledger.resume_offset

    def links(self) -> list[LinkInfo]:
        """Describe the demand between the stages, in order; empty when it is not running."""
        if self._run is None:
            return []
        return [link.info() for hop in self._run.hops for link in hop.links.values()]

    # Its processes

    def _children(self) -> list[ChildSpec]:
        """Make a fresh run."""
        settings = self._settings
        hops: list[Hop] = []
        before: Sequence[str] = (PRODUCER,)
        for stage in self._stages:
            hops.append(stage.make_hop(self._ledger, before))
            before = stage.ids
        run = Run(
            source=self._source,
            ledger=self._ledger,
            hops=hops,
            buffer=settings.buffer,
            tries=settings.tries,
            on_poison=settings.on_poison,
            opened=self._opened,
        )
        self._run = run
        self._outcome = None
        children = [_child(PRODUCER, Producer(run, PRODUCER), settings.grace_s)]
        for index, stage in enumerate(self._stages):
            after = hops[index + 1] if index + 1 < len(hops) else None
            children += [
                _child(id, stage.make_start(run, id, hops[index], after), settings.grace_s) for id in stage.ids
            ]
        stages = supervisor(
            STAGES,
            children,
            strategy=Strategy.REST_FOR_ONE,
            intensity=settings.intensity,
            period_s=settings.period_s,
            restart=Restart.TEMPORARY,
            significant=True,
        )
        keeper = ChildSpec(
            id=KEEPER,
            start=lambda child: self._keep(child, run),
            restart=Restart.TEMPORARY,
            significant=True,
            shutdown_s=settings.drain_s + settings.grace_s + GRACE_S,
        )
        return [stages, keeper]

    async def _keep(self, child: Child, run: Run) -> None:
        """
        End the pipeline when its work is done, and drain it when it is told to stop.

        Started last, so stopped first; its end, whatever it is, ends the pipeline.
        """
        stages = child.path.removesuffix(KEEPER) + STAGES
        child.ready(self)
        try:
            while not run.over and run.wanted_drain_s is None:
                await run.change.wait()
            if run.wanted_drain_s is not None:
                await self._drain(child, stages, run, run.wanted_drain_s)
        except asyncio.CancelledError:
            if run.over:
                pass
            elif isinstance(child.system.whereis(stages), SupervisorRef):
                await self._drain(child, stages, run, self._settings.drain_s)
            else:
                run.fail(run.error or GaveUp(f"{stages}: ended"))
            raise
        finally:
            self._close(run)

    async def _drain(self, child: Child, stages: str, run: Run, timeout_s: float) -> None:
        run.draining = True
        try:
            async with asyncio.timeout(timeout_s):
                ref = child.system.whereis(stages)
                if isinstance(ref, SupervisorRef):
                    try:
                        await ref.terminate_child(PRODUCER)
                    except KernelError as error:  # the stages have just ended
                        run.fail(FlowError(f"could not be drained: {error}"))
                while not run.over:
                    await run.change.wait()
        except TimeoutError:
            pass  # the outcome says how much is left

    def _close(self, run: Run) -> None:
        run.freeze()
        self._opened = run.opened
        left = self._ledger.open_count
        if run.failed:
            reason = "failed"
        elif not run.draining and run.ended:
            reason = "ended"
        else:
            reason = "drained" if run.ended and not left else "stopped"
        self._outcome = Outcome(
            reason=reason,  # type: ignore[arg-type]
            resume_offset=self._ledger.resume_offset,
            unprocessed=left,
            counts=self._ledger.counts(),
            error=run.error if run.failed else None,
        )
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


def _child(id: str, start: Start, grace_s: float) -> ChildSpec:
    return ChildSpec(id=id, start=start, restart=Restart.TRANSIENT, shutdown_s=grace_s)
