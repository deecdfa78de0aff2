"""
Demand-driven pipelines with acknowledgements, on the supervision kernel: GenStage's and Broadway's semantics.

What belongs here: demand, bounded buffers, stages, acknowledgements, drain. What does not: polling.

    source ─► producer ─► processor ×N ─► batcher ─► consumer ×M
       ◄── demand ──┴───◄── demand ──┴──◄─ demand ─┴──┘    └─► ledger: acknowledged, quarantined, dropped

- Nothing is asked of a source that was not asked for by the last stage, through all that stand between.
- On each link ``0 <= asked - delivered <= max_demand``. What a pipeline holds is the sum of its ``max_demand``,
  its buffer and one event a process: all stated where it is built.
- An event is open until the last stage has handled it. A stage that crashes starts again, with all after it
  (rest_for_one); what they held is delivered again, flagged, before what is newer, to the same stage: stages before
  it don't repeat their work. A producer that crashes has its source opened again at the oldest open offset.
- A handler that raises is called again at once, in place, so that order is kept: a handler that depends on the
  outside waits inside itself, and demand makes the rest wait. After ``tries`` the event is given up, and told.
- At least once: what was handled and not yet acknowledged at a crash is handled again.
- When the source ends, or the pipeline drains, partial batches are closed, and every consumer finishes.

A result that an agent streams, one chunk for one unit of demand, written in parts, sealed when it is whole::

    class Chunks(Source[Chunk]):                       # rewinds = False: a stream that breaks fails the pipeline
        def __init__(self, call): self._call, self._order = call, InOrder("chunk")
        async def produce(self, demand):               # no demand: no read, the agent stalls on its window
            chunk = await self._call.read()
            if chunk is None:
                self._order.end()                      # raises OutOfOrder: nothing half-sent
                return END
            self._order.accept(chunk.index, total=chunk.total, last=chunk.is_final)
            return (chunk,)
        async def close(self): self._call.cancel()

    async def split(chunk: Event[Chunk]) -> Part: ...  # raises Abort for garbage: trying again won't help
    async def write(part: Event[Part]) -> None: ...    # returns when the part is on disk

    pipeline = (
        flow(Chunks(call), id=f"result-{number}", drain_s=0.0, intensity=0)
        .process(split, max_demand=1)
        .consume(write, max_demand=1)
    )
    outcome = await pipeline.run(under=results_supervisor)
    await (spool.seal(number) if outcome.complete else spool.discard(number))

Sealed reports in batches to core, for as long as the poller runs::

    class Sealed(Source[Report]):
        rewinds = True
        async def open(self, offset): self._from = offset         # 0, or the oldest report that core has not taken
        async def produce(self, demand): ...                      # waits for a report, reads at most *demand* rows
        def offset_of(self, report): return report.row_id

    async def send(batch: Batch[Report]) -> None:
        await until_accepted(batch)                               # waits out core's absence in here
        await spool.delete(event.data.row_id for event in batch.events)

    pipeline = (
        flow(Sealed(spool), id="reports", on_poison=set_aside)
        .batch(size=100, timeout_s=0.05, bytes_max=3 << 20, size_of=Report.size)
        .consume(send)
    )
    supervisor("reporting", [pipeline.spec(restart=Restart.PERMANENT), …])
"""

from serviceradar_poller.flow.build import BatchFlow, Flow, flow
from serviceradar_poller.flow.events import (
    END,
    SKIP,
    Abort,
    BadSource,
    Batch,
    Buffer,
    CannotRewind,
    Counts,
    End,
    Event,
    FlowError,
    GaveUp,
    HandlerCancelled,
    Key,
    LinkInfo,
    Outcome,
    OutOfOrder,
    Poison,
    Policy,
    Skip,
)
from serviceradar_poller.flow.order import InOrder
from serviceradar_poller.flow.pipeline import Pipeline
from serviceradar_poller.flow.source import IteratorSource, SequenceSource, Source

__all__ = [
    "END",
    "SKIP",
    "Abort",
    "BadSource",
    "Batch",
    "BatchFlow",
    "Buffer",
    "CannotRewind",
    "Counts",
    "End",
    "Event",
    "Flow",
    "FlowError",
    "GaveUp",
    "HandlerCancelled",
    "InOrder",
    "IteratorSource",
    "Key",
    "LinkInfo",
    "OutOfOrder",
    "Outcome",
    "Pipeline",
    "Poison",
    "Policy",
    "SequenceSource",
    "Skip",
    "Source",
    "flow",
]
