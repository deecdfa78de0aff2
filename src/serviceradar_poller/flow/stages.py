"""
The processes of a pipeline: producer, processor, batcher, consumer.

Each is one task, and waits in one place. What it works on stands in its link, so that a crash, at any await,
loses nothing: an event leaves a link in the same step in which it enters the next one or the ledger.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from serviceradar_poller.flow.batching import Batches, BatchSettings
from serviceradar_poller.flow.events import (
    SKIP,
    Abort,
    BadSource,
    Batch,
    CannotRewind,
    End,
    Event,
    HandlerCancelled,
    Poison,
    Policy,
)
from serviceradar_poller.flow.link import Hop, Item, Link, Signal
from serviceradar_poller.flow.run import Run
from serviceradar_poller.otp import Child

Handler = Callable[[Any], Awaitable[Any]]

#: Items handled before others get a turn: a handler that never waits must not hold the loop.
ITEMS_PER_TURN: Final = 64


#: A shorter timer would only spin.
TIMER_S_MIN: Final = 0.001
#: What comes of an event that failed too often.
_GIVEN_UP: Final = object()


class _Turns:
    """Lets others run now and then."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = ITEMS_PER_TURN

    async def count(self, items: int) -> None:
        """Count work done without waiting."""
        self._left -= items
        if self._left <= 0:
            self._left = ITEMS_PER_TURN
            await asyncio.sleep(0)

    async def wait(self, signal: Signal) -> None:
        """Wait, which lets others run anyway."""
        self._left = ITEMS_PER_TURN
        await signal.wait()


class Producer:
    """Asks the source for what the first stage has asked for."""

    def __init__(self, run: Run, id: str) -> None:
        self._run = run
        self._id = id
        self._hop = run.hops[0]

    async def __call__(self, child: Child) -> None:
        """Live."""
        run = self._run
        child.ready()
        if run.opened and not run.source.rewinds:
            run.fail(CannotRewind(f"{child.path}: its source can't be read again"))
            return
        # Those below have stopped already: what they held comes from the source again.
        for hop in run.hops:
            hop.clear()
        offset = run.ledger.rewind()
        signal = Signal()
        self._hop.on_demand = [signal]
        self._hop.start(self._id)
        if self._end_if_draining():
            return
        run.opened = True
        try:
            try:
                await run.source.open(offset)
                await self._produce(signal)
            finally:
                await run.source.close()
        except Abort as error:
            run.fail(error)
        except Exception as error:
            if not run.source.rewinds:
                run.fail(error)
                return
            run.crashed(error)
            raise
        else:
            run.ledger.ended()
            self._end()
        finally:
            self._end_if_draining()

    async def _produce(self, signal: Signal) -> None:
        run, hop, turns = self._run, self._hop, _Turns()
        source, ledger = run.source, run.ledger
        while True:
            demand = run.source_demand()
            if demand <= 0:
                await turns.wait(signal)
                continue
            items = await source.produce(demand)
            if isinstance(items, End):
                return
            if not 0 < len(items) <= demand:
                raise BadSource(f"{type(source).__qualname__} gave {len(items)} events, was asked for {demand}")
            for event in ledger.admit(items, source.offset_of):
                hop.push(event)
            if run.buffer.policy is not Policy.BLOCK:
                for item in hop.trim(run.buffer.limit, oldest=run.buffer.policy is Policy.DROP_OLDEST):
                    ledger.dropped(item.offset)
            await turns.count(len(items))

    def _end_if_draining(self) -> bool:
        if self._run.draining:
            self._end()
        return self._run.draining

    def _end(self) -> None:
        self._hop.end(self._id)


class _Worker:
    """What the stages after the producer have in common."""

    def __init__(self, run: Run, stage: str, id: str, source: Hop, sink: Hop | None, handler: Handler) -> None:
        self._run = run
        self._stage = stage
        self._id = id
        self._hop = source
        self._next = sink
        self._handler = handler
        self._turns = _Turns()

    async def __call__(self, child: Child) -> None:
        """Live."""
        run = self._run
        if self._next is None:
            run.consumer_started(self._id)
        else:
            self._next.start(self._id)
        link = self._hop.open(self._id)
        child.ready()
        if self._next is not None:
            self._next.on_demand.append(link.signal)
        try:
            await self._work(link)
        except Abort as error:
            run.fail(error)
        except Exception as error:
            run.crashed(error)
            raise
        else:
            if link.is_up():
                self._hop.finish(link)
                if self._next is None:
                    run.consumer_finished(self._id)
                else:
                    self._next.end(self._id)
        finally:
            if self._next is not None:
                self._next.on_demand.remove(link.signal)
            self._hop.close(link)

    async def _work(self, link: Link) -> None:
        turns = self._turns
        while link.is_up():
            items = link.take()
            if items:
                await self._handle(link, items)
                await turns.count(len(items))
            elif link.ended:
                return
            else:
                await turns.wait(link.signal)

    async def _handle(self, link: Link, items: list[Item]) -> None:
        raise NotImplementedError

    async def _room(self, link: Link) -> None:
        """Wait until the next stage has asked for something."""
        assert self._next is not None
        while self._next.demand <= 0 and link.is_up():
            await self._turns.wait(link.signal)

    async def attempt(self, link: Link, event: Event[Any]) -> object:
        """Return what the handler makes of *event*; while it raises, again and in place; _GIVEN_UP in the end."""
        run = self._run
        while True:
            try:
                return await self._handler(event)
            except (Exception, asyncio.CancelledError) as raised:  # noqa: BLE001 — counted, told in the end
                error = self.failure(raised)
            if not link.is_up():
                return _GIVEN_UP
            self.failed(event)
            if event.tries >= run.tries:
                await self.give_up(event, error)
                return _GIVEN_UP
            await asyncio.sleep(0)

    def failure(self, raised: BaseException) -> Exception:
        """Return what a handler failed with; raise what is no failure of a handler."""
        if isinstance(raised, Abort):
            raise raised
        if isinstance(raised, Exception):
            return raised
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise raised
        # Not this process was cancelled, but what the handler waited for.
        return HandlerCancelled(f"{self._stage}: what the handler waited for was cancelled")

    def failed(self, event: Event[Any]) -> None:
        """Count a try that failed."""
        self._run.ledger.failed(event)
        event.redelivered = True

    async def give_up(self, event: Event[Any], error: Exception) -> None:
        """Tell of *event*, which failed too often."""
        on_poison = self._run.on_poison
        if on_poison is not None:
            await on_poison(
                Poison(stage=self._stage, offset=event.offset, data=event.data, tries=event.tries, error=error)
            )


class Processor(_Worker):
    """Turns each event into another one, or none, while the next stage asks."""

    async def _handle(self, link: Link, items: list[Item]) -> None:
        ledger, sink = self._run.ledger, self._next
        assert sink is not None
        for event in items:
            assert isinstance(event, Event)
            if sink.demand <= 0:
                await self._room(link)
            result = await self.attempt(link, event)
            if not link.done(event):
                return
            if result is _GIVEN_UP:
                ledger.quarantined(event.offset)
            elif result is SKIP:
                ledger.skipped(event.offset)
            else:
                sink.push(Event(event.offset, result, event.redelivered))


class Consumer(_Worker):
    """Handles each event, and acknowledges it."""

    async def _handle(self, link: Link, items: list[Item]) -> None:
        ledger = self._run.ledger
        for event in items:
            assert isinstance(event, Event)
            result = await self.attempt(link, event)
            if not link.done(event):
                return
            if result is _GIVEN_UP:
                ledger.quarantined(event.offset)
            else:
                ledger.ack(event.offset)


class BatchConsumer(_Worker):
    """
    Handles each batch, and acknowledges its events.

    A batch that goes on failing is taken apart: each of its events gets a last try on its own, so that the poison
    is found and the others pass. Without a batcher before it, what has come makes a batch.
    """

    async def _handle(self, link: Link, items: list[Item]) -> None:
        events = [item for item in items if isinstance(item, Event)]
        if events:
            await self._batch(link, Batch(tuple(events), redelivered=_redelivered(events)), events)
            return
        for batch in items:
            assert isinstance(batch, Batch)
            await self._batch(link, batch, (batch,))

    async def _batch(self, link: Link, batch: Batch[Any], items: Iterable[Item]) -> None:
        given_up: set[int] = set()
        todo = [batch]
        while todo and link.is_up():
            part = todo.pop()
            error: Exception | None = None
            try:
                await self._handler(part)
            except (Exception, asyncio.CancelledError) as raised:  # noqa: BLE001 — counted, told in the end
                error = self.failure(raised)
            if not link.is_up():
                return
            if error is not None or part.failed:
                todo += reversed(await self._again(part, error, given_up))
                await asyncio.sleep(0)
        # All at once: a crash before this gives the whole batch again.
        if not link.done_all(items):
            return
        ledger = self._run.ledger
        for event in batch.events:
            if event.offset in given_up:
                ledger.quarantined(event.offset)
            else:
                ledger.ack(event.offset)

    async def _again(self, part: Batch[Any], error: Exception | None, given_up: set[int]) -> list[Batch[Any]]:
        """Return what of *part* is to be tried again, in which batches."""
        errors = part.failed if error is None else dict.fromkeys((event.offset for event in part.events), error)
        again: list[Event[Any]] = []
        alone: list[Event[Any]] = []
        for event in part.events:
            if event.offset not in errors:
                continue
            self.failed(event)
            if event.tries < self._run.tries:
                again.append(event)
            elif error is not None and len(part.events) > 1:
                alone.append(event)
            else:
                await self.give_up(event, errors[event.offset])
                given_up.add(event.offset)
        batches = [Batch((event,), part.key, redelivered=True) for event in alone]
        if again:
            batches.append(Batch(tuple(again), part.key, redelivered=True))
        return batches


class Batcher(_Worker):
    """Puts events into batches for the next stage."""

    def __init__(self, run: Run, stage: str, id: str, source: Hop, sink: Hop, settings: BatchSettings) -> None:
        super().__init__(run, stage, id, source, sink, _no_handler)
        self._settings = settings

    async def _work(self, link: Link) -> None:
        sink, turns = self._next, self._turns
        assert sink is not None
        loop = asyncio.get_running_loop()
        batches = Batches(self._settings)
        while link.is_up():
            now_s = loop.time()
            for batch in batches.due(now_s):
                self._pass_on(link, batch)
            items = link.take() if sink.demand > 0 else []
            for event in items:
                assert isinstance(event, Event)
                for batch in batches.add(event, now_s):
                    self._pass_on(link, batch)
            if items:
                await turns.count(len(items))
                continue
            if link.ended:
                for batch in batches.flush():
                    self._pass_on(link, batch)
                return
            close_s = batches.next_s
            if close_s is None:
                await turns.wait(link.signal)
                continue
            # A loop may run a timer a hair before its time: never look again within the same instant.
            timer = loop.call_at(max(close_s, now_s + TIMER_S_MIN), link.signal.set)
            try:
                await turns.wait(link.signal)
            finally:
                timer.cancel()

    def _pass_on(self, link: Link, batch: Batch[Any]) -> None:
        assert self._next is not None
        if link.done_all(batch.events):
            self._next.push(batch)


async def _no_handler(item: object) -> None:
    """Stand where a batcher has no handler."""


def _redelivered(events: Iterable[Event[Any]]) -> bool:
    return any(event.redelivered for event in events)
