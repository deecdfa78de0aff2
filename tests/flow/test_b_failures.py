"""B10, B12 and B13: handlers that raise, poison, streams out of order, and crashes at random."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest

from serviceradar_poller.flow import (
    END,
    SKIP,
    Abort,
    Batch,
    End,
    Event,
    GaveUp,
    HandlerCancelled,
    InOrder,
    OutOfOrder,
    Poison,
    Skip,
    Source,
    flow,
)
from serviceradar_poller.testing import simloop
from serviceradar_poller.testing.flow import Numbers, check_links, site


async def same(event: Event[int]) -> int:
    """Pass the number on."""
    return event.data


def test_b10_a_handler_that_raises_fails_only_its_message() -> None:
    """An event on which a handler raises once passes at the next try; order and all others are untouched."""

    async def main() -> None:
        seen: list[tuple[int, int, bool]] = []

        async def handle(event: Event[int]) -> None:
            if event.data % 10 == 3 and event.tries < 2:
                raise ValueError(event.data)
            seen.append((event.data, event.tries, event.redelivered))

        async with site() as here:
            outcome = await here.run(flow(Numbers(50), id="p", tries=3).process(same).consume(handle))
            assert here.exits("error") == []
        assert seen == [(number, 2, True) if number % 10 == 3 else (number, 0, False) for number in range(50)]
        assert outcome.complete and outcome.counts.failures == 10

    simloop.run(main())


def test_b10_poison_is_set_aside_with_its_reason() -> None:
    """After the last try an event is told with its error and counted; whichever stage it was, the rest passes."""

    async def main() -> None:
        poisons: list[Poison] = []
        seen: list[int] = []

        async def on_poison(poison: Poison) -> None:
            poisons.append(poison)

        async def skip_odd(event: Event[int]) -> int | Skip:
            if event.data == 4:
                raise ValueError("four")
            return SKIP if event.data % 2 else event.data * 10

        async def handle(event: Event[int]) -> None:
            if event.data == 60:
                raise KeyError("sixty")
            if event.data == 80:
                asyncio.get_running_loop().call_soon(waiting.cancel)
                await waiting
            seen.append(event.data)

        async with site() as here:
            waiting = asyncio.get_running_loop().create_future()
            pipeline = flow(Numbers(12), id="p", tries=3, on_poison=on_poison).process(skip_odd).consume(handle)
            outcome = await here.run(pipeline)
        told = [(poison.stage, poison.offset, poison.data, poison.tries, type(poison.error)) for poison in poisons]
        assert (
            told
            == [
                ("processor", 4, 4, 3, ValueError),
                ("consumer", 6, 60, 3, KeyError),
                ("consumer", 8, 80, 3, HandlerCancelled),
            ]
            or sorted(told, key=lambda row: row[1]) == told
        )
        assert seen == [0, 20, 100]
        counts = outcome.counts
        assert (counts.acked, counts.skipped, counts.quarantined, counts.failures) == (3, 6, 3, 9)
        assert not outcome.complete and outcome.reason == "ended"

    simloop.run(main())


def test_b10_poison_in_a_batch_is_found() -> None:
    """A batch that goes on failing is taken apart: its poison is set aside, its other events are acknowledged."""

    async def main() -> None:
        calls: list[list[int]] = []
        poisons: list[int] = []

        async def on_poison(poison: Poison) -> None:
            poisons.append(poison.offset)

        async def handle(batch: Batch[int]) -> None:
            calls.append([event.data for event in batch.events])
            if 7 in calls[-1]:
                raise ValueError("seven")

        async with site() as here:
            flowing = flow(Numbers(10), id="p", tries=2, on_poison=on_poison).batch(size=5, timeout_s=1.0)
            outcome = await here.run(flowing.consume(handle))
        assert calls == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [5, 6, 7, 8, 9], [5], [6], [7], [8], [9]]
        assert poisons == [7]
        assert (outcome.counts.acked, outcome.counts.quarantined) == (9, 1)

    simloop.run(main())


def test_b10_a_handler_may_fail_some_of_a_batch() -> None:
    """Events that the handler names are tried again without the others, in order, and set aside in the end."""

    async def main() -> None:
        calls: list[list[int]] = []

        async def handle(batch: Batch[int]) -> None:
            calls.append([event.data for event in batch.events])
            for event in batch.events:
                if event.data == 3 or (event.data == 1 and event.tries == 0):
                    batch.fail(event, ValueError(event.data))

        async with site() as here:
            flowing = flow(Numbers(6), id="p", tries=3).batch(size=6, timeout_s=1.0)
            outcome = await here.run(flowing.consume(handle))
        assert calls == [[0, 1, 2, 3, 4, 5], [1, 3], [3]]
        assert (outcome.counts.acked, outcome.counts.quarantined, outcome.counts.failures) == (5, 1, 4)

    simloop.run(main())


def test_b10_a_callback_that_raises_loses_no_poison() -> None:
    """If telling of a poison event fails, its stage crashes, and the event is tried and told again."""

    async def main() -> None:
        told: list[int] = []

        async def on_poison(poison: Poison) -> None:
            told.append(poison.offset)
            if len(told) == 1:
                raise OSError("disk full")

        async def handle(event: Event[int]) -> None:
            if event.data == 2:
                raise ValueError("two")

        async with site() as here:
            outcome = await here.run(flow(Numbers(5), id="p", on_poison=on_poison).consume(handle))
            assert here.exits("error") == ["consumer"]
        assert told == [2, 2]
        assert (outcome.counts.acked, outcome.counts.quarantined) == (4, 1)

    simloop.run(main())


class Chunks(Source[tuple[int, int, bool]]):
    """Chunks of a result, as a peer sends them: index, total, last."""

    def __init__(self, chunks: Sequence[tuple[int, int, bool]]) -> None:
        self._chunks = iter(chunks)
        self._order = InOrder("chunk")

    async def produce(self, demand: int) -> Sequence[tuple[int, int, bool]] | End:
        """Return the next chunk, if it is the next one."""
        chunk = next(self._chunks, None)
        if chunk is None:
            self._order.end()
            return END
        index, total, last = chunk
        self._order.accept(index, total=total, last=last)
        return (chunk,)


GOOD = [(0, 4, False), (1, 4, False), (2, 4, False), (3, 4, True)]


@pytest.mark.parametrize(
    "chunks",
    [
        [GOOD[0], GOOD[2], GOOD[3]],
        [GOOD[0], GOOD[1], GOOD[1], GOOD[2], GOOD[3]],
        [GOOD[1], GOOD[0], GOOD[2], GOOD[3]],
        GOOD[:3],
        [*GOOD, (4, 4, False)],
        [GOOD[0], (1, 5, False), GOOD[2], GOOD[3]],
        [GOOD[0], (1, 4, True)],
        [*GOOD[:3], (3, 4, False), (4, 4, True)],
        [],
    ],
    ids=["missing", "duplicate", "reordered", "cut", "more", "other total", "early end", "no last", "none"],
)
def test_b12_chunks_out_of_order_fail_the_whole(chunks: list[tuple[int, int, bool]]) -> None:
    """A missing, duplicate or reordered chunk fails the pipeline; it is never complete, so nothing is merged."""

    async def main() -> None:
        async def write(event: Event[tuple[int, int, bool]]) -> None:
            await asyncio.sleep(0.01)

        async with site() as here:
            good = await here.run(flow(Chunks(GOOD), id="good").consume(write, max_demand=1))
            assert good.complete and good.counts.acked == 4
            outcome = await here.run(flow(Chunks(chunks), id="bad").consume(write, max_demand=1))
            assert outcome.reason == "failed" and not outcome.complete
            assert isinstance(outcome.error, OutOfOrder)

    simloop.run(main())


def test_b12_a_handler_can_abort() -> None:
    """A handler that finds garbage ends the pipeline at once: no try again, nothing after it is handled."""

    async def main() -> None:
        seen: list[int] = []

        async def check(event: Event[int]) -> int:
            if event.data == 5:
                raise Abort("garbage")
            return event.data

        async def handle(event: Event[int]) -> None:
            seen.append(event.data)

        async with site() as here:
            outcome = await here.run(flow(Numbers(100), id="p").process(check, max_demand=1).consume(handle))
        assert outcome.reason == "failed" and isinstance(outcome.error, Abort)
        assert outcome.counts.failures == 0 and set(seen) <= set(range(5))

    simloop.run(main())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_b13_random_crashes_neither_stall_nor_lose(seed: int) -> None:
    """A hundred crashes of any process at any moment, for each of ten seeds: all events are acknowledged."""
    chance = random.Random(seed)
    count = 4_000

    async def main() -> None:
        source, seen, crashes = Numbers(count, most=20), set[int](), 0

        async def work(event: Event[int]) -> int:
            await asyncio.sleep(chance.random() * 0.02)
            return event.data

        async def handle(batch: Batch[int]) -> None:
            await asyncio.sleep(chance.random() * 0.05)
            seen.update(event.data for event in batch.events)

        async with site() as here:
            built = flow(source, id="p", intensity=1_000_000)
            built = built.process(work, id="a", concurrency=3, key=lambda number: number % 5)
            built = built.process(work, id="b", concurrency=2, max_demand=5)
            pipeline = built.batch(size=8, timeout_s=0.1).consume(handle, id="c", concurrency=2)
            ids = ["producer", "a-0", "a-1", "a-2", "b-0", "b-1", "batcher", "c-0", "c-1"]
            await here.start(pipeline)
            while crashes < 100:
                await asyncio.sleep(chance.random() * 0.1)
                crashes += here.crash(pipeline, chance.choice(ids))
                check_links(pipeline)
            outcome = await pipeline.wait()
            assert len(here.exits("error")) >= 90  # two that hit the same moment are one
        assert seen == set(range(count))
        assert outcome.complete and outcome.counts.acked == count and outcome.counts.redelivered > 0

    simloop.run(main(), seed=seed)


def test_b13_stages_that_crash_too_often_end_the_pipeline() -> None:
    """More crashes than are tolerated: the pipeline ends, says so, and whoever waits for it learns it."""

    async def main() -> None:
        async def handle(event: Event[int]) -> None:
            await asyncio.sleep(1.0)

        async with site() as here:
            pipeline = flow(Numbers(100), id="p", intensity=2).consume(handle)
            await here.start(pipeline)
            for _ in range(3):
                await asyncio.sleep(0.1)
                assert here.crash(pipeline, "consumer")
            outcome = await pipeline.wait()
            assert outcome.reason == "failed" and isinstance(outcome.error, GaveUp)
            assert outcome.unprocessed == outcome.counts.produced > 0

    simloop.run(main())
