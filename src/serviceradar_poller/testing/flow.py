"""A place to run pipelines in, sources that record what was asked of them, and a check of every link, for tests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from serviceradar_poller.events.kernel import ChildExited, KernelEvent
from serviceradar_poller.flow import END, End, Outcome, Pipeline, Source
from serviceradar_poller.otp import NoProcess, NotFound, SupervisorRef, System, Tree, dynamic_supervisor, start_tree
from serviceradar_poller.testing.leaks import no_leaks


class Crash(Exception):  # noqa: N818 — what a stage is told to crash with
    """A crash on order."""


class Numbers(Source[int]):
    """
    Numbers from 0 to *count*; each is its own offset.

    Attributes:
        asks: The demand of every call.
        opened: The offset of every open.
        closed: Times that it was closed.
        fail_at: Numbers before which ``produce`` raises, once each.
        most: It gives at most so many at a time.
        delay_s: Before it gives anything.
    """

    rewinds = True

    def __init__(self, count: int, *, delay_s: float = 0.0, most: int | None = None) -> None:
        self.count = count
        self.delay_s = delay_s
        self.most = most
        self.asks: list[int] = []
        self.opened: list[int] = []
        self.closed = 0
        self.fail_at: set[int] = set()
        self.given = 0
        self._next = 0

    async def open(self, offset: int) -> None:
        """Go to *offset*."""
        self.opened.append(offset)
        self._next = offset

    async def produce(self, demand: int) -> Sequence[int] | End:
        """Return the next numbers."""
        self.asks.append(demand)
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self._next in self.fail_at:
            self.fail_at.discard(self._next)
            raise Crash(f"before {self._next}")
        size = demand if self.most is None else min(demand, self.most)
        numbers = range(self._next, min(self._next + size, self.count))
        self._next += len(numbers)
        self.given += len(numbers)
        return numbers if numbers else END

    async def close(self) -> None:
        """Count it."""
        self.closed += 1


class Stream(Numbers):
    """The same, but it can't be read again."""

    rewinds = False


class Site:
    """A supervisor that pipelines run under, and what the kernel told."""

    def __init__(self, tree: Tree, events: list[KernelEvent]) -> None:
        self.tree = tree
        self.events = events

    @property
    def under(self) -> SupervisorRef:
        """Where pipelines go."""
        ref = self.tree.system.whereis("site")
        assert isinstance(ref, SupervisorRef)
        return ref

    async def start(self, pipeline: Pipeline, **fields: Any) -> None:
        """Start *pipeline* and return."""
        await self.under.start_child(pipeline.spec(**fields))

    async def run(self, pipeline: Pipeline) -> Outcome:
        """Run *pipeline* to its end."""
        return await pipeline.run(self.under)

    async def stop(self, pipeline: Pipeline) -> Outcome:
        """Have its supervisor stop *pipeline*; return how it ended."""
        try:
            await self.under.terminate_child(pipeline.id)
        except (NoProcess, NotFound):
            pass  # it has ended by itself
        return await pipeline.wait()

    def crash(self, pipeline: Pipeline, id: str) -> bool:
        """Crash a process of *pipeline*; False when it is not alive."""
        return self.tree.crash(f"site/{pipeline.id}/stages/{id}", Crash(id))

    def exits(self, reason: str) -> list[str]:
        """List the processes that ended for *reason*, in order, each by its id."""
        return [
            event.path.rpartition("/")[2]
            for event in self.events
            if isinstance(event, ChildExited) and event.reason == reason
        ]


@contextlib.asynccontextmanager
async def site(*, strict: bool = True) -> AsyncIterator[Site]:
    """Run a tree for pipelines; assert in the end that nothing is left, unless others share the loop (not *strict*)."""
    with no_leaks() if strict else contextlib.nullcontext():
        events: list[KernelEvent] = []
        tree = await start_tree(
            dynamic_supervisor("site", intensity=1_000_000, period_s=1.0, max_children=1_000),
            System(emit=events.append),
        )
        try:
            yield Site(tree, events)
        finally:
            await tree.stop()


def check_links(pipeline: Pipeline) -> None:
    """Assert that every link keeps within its demand, and that every event is accounted for."""
    for link in pipeline.links():
        assert 0 <= link.asked - link.delivered <= link.max_demand, link
        assert link.in_hand <= link.max_demand, link
    counts = pipeline.counts()
    settled = counts.acked + counts.skipped + counts.quarantined + counts.dropped
    assert counts.produced == settled + counts.open, counts


async def settle(turns: int = 50) -> None:
    """Let everything that is ready run; no time goes by."""
    for _ in range(turns):
        await asyncio.sleep(0)
