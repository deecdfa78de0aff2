"""Putting a pipeline together, stage by stage, typed by what flows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar

from serviceradar_poller.flow.batching import BatchSettings
from serviceradar_poller.flow.events import Batch, Buffer, Event, Key, Policy, Skip
from serviceradar_poller.flow.ledger import Ledger
from serviceradar_poller.flow.link import BroadcastHop, Hop, PartitionHop
from serviceradar_poller.flow.pipeline import PRODUCER, MakeHop, Pipeline, Settings, StagePlan, Start
from serviceradar_poller.flow.run import OnPoison, Run
from serviceradar_poller.flow.source import Source
from serviceradar_poller.flow.stages import BatchConsumer, Batcher, Consumer, Handler, Processor

T = TypeVar("T")
R = TypeVar("R")

#: Events that a process asks for at a time, as Broadway's processors do.
MAX_DEMAND: Final = 10


def flow(
    source: Source[T],
    *,
    id: str,
    buffer: Buffer | None = None,
    tries: int = 3,
    on_poison: OnPoison | None = None,
    drain_s: float = 5.0,
    intensity: int = 3,
    period_s: float = 5.0,
    grace_s: float = 1.0,
) -> Flow[T]:
    """
    Begin a pipeline at *source*; end it with a ``consume…`` or ``broadcast``.

    Args:
        id: Of its supervisor, among its siblings.
        buffer: Between the source and the first stage; none if None: the source is asked for what was demanded.
        tries: Times that a handler may raise on an event before the event is given up.
        on_poison: Told of each event that is given up, before it counts as settled. If it raises, its stage
            crashes and the event is tried again.
        drain_s: Time to finish what was begun when the pipeline is told to stop; 0 drops it.
        intensity: Crashes of stages tolerated within *period_s*; one more ends the pipeline.
        grace_s: Time for a stage to stop.
    """
    settings = Settings(
        id=id,
        buffer=buffer if buffer is not None else Buffer(),
        tries=tries,
        on_poison=on_poison,
        drain_s=drain_s,
        intensity=intensity,
        period_s=period_s,
        grace_s=grace_s,
    )
    return Flow(source, settings, ())


class _Built:
    """What is put together so far."""

    def __init__(self, source: Source[Any], settings: Settings, stages: Sequence[StagePlan]) -> None:
        self._source = source
        self._settings = settings
        self._stages = tuple(stages)

    def _with(self, ids: Sequence[str], make_hop: MakeHop, make_start: Any) -> tuple[StagePlan, ...]:
        taken = {PRODUCER, *(id for stage in self._stages for id in stage.ids)}
        for id in ids:
            if id in taken:
                raise ValueError(f"pipeline {self._settings.id!r}: two processes are named {id!r}")
        return (*self._stages, StagePlan(ids=tuple(ids), make_hop=make_hop, make_start=make_start))

    def _end(self, stages: Sequence[StagePlan]) -> Pipeline:
        return Pipeline(self._source, self._settings, stages)


class Flow(_Built, Generic[T]):
    """
    Events of T so far.

    Common arguments:
        id: Of the stage; its processes are ``<id>-0`` … when there are several.
        concurrency: Processes of the stage.
        max_demand: Events that each of them asks for and has in hand together, at most.
        min_demand: It asks again when so many are left; half of *max_demand* if None. It takes
            ``max_demand - min_demand`` in hand at a time.
        key: Events with the same key go to the same process, in order; without it each event goes to the process
            that has most room. A key is of an event's data.
    """

    def process(
        self,
        handler: Callable[[Event[T]], Awaitable[R | Skip]],
        *,
        id: str = "processor",
        concurrency: int = 1,
        max_demand: int = MAX_DEMAND,
        min_demand: int | None = None,
        key: Callable[[T], Key] | None = None,
    ) -> Flow[R]:
        """Add a stage that makes one event of each, or SKIP; it works only while the next stage asks."""
        make_start = _starter(Processor, id, handler)
        ids = _ids(id, concurrency)
        stages = self._with(ids, _hop(id, ids, max_demand, min_demand, _by_data(key)), make_start)
        return Flow(self._source, self._settings, stages)

    def batch(
        self,
        *,
        size: int,
        timeout_s: float,
        bytes_max: int | None = None,
        size_of: Callable[[T], int] | None = None,
        key: Callable[[T], Key] | None = None,
        max_demand: int | None = None,
        id: str = "batcher",
    ) -> BatchFlow[T]:
        """
        Add a stage that puts events into batches, one for each key; see BatchSettings.

        Args:
            max_demand: Events in unfinished batches, over all keys, at most: at least *size*; twice that if None.
        """
        settings = BatchSettings(size=size, timeout_s=timeout_s, bytes_max=bytes_max, size_of=size_of, key_of=key)
        most = 2 * size if max_demand is None else max_demand
        if most < size:
            raise ValueError(f"stage {id!r}: max_demand {most} can't fill a batch of {size}")

        def make_start(run: Run, id_: str, source: Hop, sink: Hop | None) -> Start:
            assert sink is not None
            return Batcher(run, id, id_, source, sink, settings)

        # Renewed with every batch that leaves, however small: what is left may stay until its batch is old enough.
        stages = self._with([id], _hop(id, [id], most, most - 1, None), make_start)
        return BatchFlow(self._source, self._settings, stages)

    def consume(
        self,
        handler: Callable[[Event[T]], Awaitable[object]],
        *,
        id: str = "consumer",
        concurrency: int = 1,
        max_demand: int = MAX_DEMAND,
        min_demand: int | None = None,
        key: Callable[[T], Key] | None = None,
    ) -> Pipeline:
        """End with a stage that handles each event; its return acknowledges the event."""
        ids = _ids(id, concurrency)
        hop = _hop(id, ids, max_demand, min_demand, _by_data(key))
        return self._end(self._with(ids, hop, _starter(Consumer, id, handler)))

    def consume_many(
        self,
        handler: Callable[[Batch[T]], Awaitable[object]],
        *,
        id: str = "consumer",
        concurrency: int = 1,
        max_demand: int = MAX_DEMAND,
        min_demand: int | None = None,
        key: Callable[[T], Key] | None = None,
    ) -> Pipeline:
        """End with a stage that handles what has come, up to ``max_demand - min_demand`` events, as one batch."""
        ids = _ids(id, concurrency)
        hop = _hop(id, ids, max_demand, min_demand, _by_data(key))
        return self._end(self._with(ids, hop, _starter(BatchConsumer, id, handler)))

    def broadcast(
        self,
        handlers: Mapping[str, Callable[[Event[T]], Awaitable[object]]],
        *,
        max_demand: int = MAX_DEMAND,
        min_demand: int | None = None,
    ) -> Pipeline:
        """End with consumers, by id, each of which gets every event, as fast as the slowest of them asks."""
        if not self._stages and self._settings.buffer.policy is not Policy.BLOCK:
            raise ValueError("a broadcast right after a source that drops is not supported: put a stage between")
        ids = tuple(handlers)
        max_demand, min_demand = _demand("broadcast", max_demand, min_demand)

        def make_hop(ledger: Ledger, before: Sequence[str]) -> Hop:
            return BroadcastHop(ledger, before, ids, max_demand=max_demand, min_demand=min_demand)

        def make_start(run: Run, id: str, source: Hop, sink: Hop | None) -> Start:
            return Consumer(run, id, id, source, sink, handlers[id])

        if not ids:
            raise ValueError("a broadcast needs consumers")
        return self._end(self._with(ids, make_hop, make_start))


class BatchFlow(_Built, Generic[T]):
    """Batches of T so far."""

    def consume(
        self,
        handler: Callable[[Batch[T]], Awaitable[object]],
        *,
        id: str = "consumer",
        concurrency: int = 1,
        max_demand: int = 1,
        min_demand: int | None = None,
        by_key: bool = False,
    ) -> Pipeline:
        """
        End with a stage that handles each batch; its return acknowledges the events.

        Args:
            max_demand: As in Flow, in batches.
            by_key: Batches with the same key go to the same process, in order.
        """
        ids = _ids(id, concurrency)
        hop = _hop(id, ids, max_demand, min_demand, _by_batch_key if by_key else None)
        return self._end(self._with(ids, hop, _starter(BatchConsumer, id, handler)))


def _ids(id: str, concurrency: int) -> tuple[str, ...]:
    if concurrency < 1:
        raise ValueError(f"stage {id!r}: concurrency must be at least 1, not {concurrency}")
    return (id,) if concurrency == 1 else tuple(f"{id}-{index}" for index in range(concurrency))


def _demand(stage: str, max_demand: int, min_demand: int | None) -> tuple[int, int]:
    least = max_demand // 2 if min_demand is None else min_demand
    if not 0 <= least < max_demand:
        raise ValueError(f"stage {stage!r}: 0 <= min_demand < max_demand must hold, not {least}, {max_demand}")
    return max_demand, least


def _hop(
    stage: str, ids: Sequence[str], max_demand: int, min_demand: int | None, key_of: Callable[[Any], Key] | None
) -> MakeHop:
    most, least = _demand(stage, max_demand, min_demand)

    def make(ledger: Ledger, before: Sequence[str]) -> Hop:
        if key_of is None or len(ids) == 1:
            return Hop(ledger, before, ids, max_demand=most, min_demand=least)
        return PartitionHop(ledger, before, ids, max_demand=most, min_demand=least, key_of=key_of)

    return make


def _starter(worker: type[Processor | Consumer | BatchConsumer], stage: str, handler: Handler) -> Any:
    def make(run: Run, id: str, source: Hop, sink: Hop | None) -> Start:
        return worker(run, stage, id, source, sink, handler)

    return make


def _by_data(key: Callable[[Any], Key] | None) -> Callable[[Any], Key] | None:
    return None if key is None else lambda event: key(event.data)


def _by_batch_key(batch: Batch[Any]) -> Key:
    return 0 if batch.key is None else batch.key
