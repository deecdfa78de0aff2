"""Acceptance cases B1 to B4, B7, B9 and B11: demand, order, dispatchers, buffers, batches, memory."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serviceradar_poller.flow import Batch, Buffer, Event, Policy, SequenceSource, flow
from serviceradar_poller.testing import simloop
from serviceradar_poller.testing.flow import Numbers, check_links, settle, site


async def same(event: Event[int]) -> int:
    """Pass the number on."""
    return event.data


def test_b01_a_blocked_consumer_asks_once_and_begins_with_half() -> None:
    """With max_demand 10 and min_demand 5 a blocked consumer asks once, for 10; its first batch is 0 to 4."""

    async def main() -> None:
        source, batches, gate = Numbers(100), list[list[int]](), asyncio.Event()

        async def handle(batch: Batch[int]) -> None:
            batches.append([event.data for event in batch.events])
            await gate.wait()

        async with site() as here:
            pipeline = flow(source, id="p").consume_many(handle, max_demand=10, min_demand=5)
            await here.start(pipeline)
            await asyncio.sleep(60.0)
            assert source.asks == [10]
            assert batches == [[0, 1, 2, 3, 4]]
            [link] = pipeline.links()
            assert (link.calls, link.asked, link.delivered, link.in_hand) == (1, 10, 10, 10)
            gate.set()
            assert (await pipeline.wait()).reason == "ended"
        assert [number for batch in batches for number in batch] == list(range(100))
        assert {ask % 5 for ask in source.asks} == {0} and max(source.asks) == 10

    simloop.run(main())


def test_b01_demand_is_renewed_when_min_demand_is_left() -> None:
    """A consumer that works through 10 events asks for 5 more after the fifth and the tenth, and not in between."""

    async def main() -> None:
        asked: list[tuple[int, int]] = []

        async def handle(event: Event[int]) -> None:
            await asyncio.sleep(1.0)
            [link] = pipeline.links()
            asked.append((link.calls, link.asked))

        async with site() as here:
            pipeline = flow(Numbers(14), id="p").consume(handle, max_demand=10, min_demand=5)
            await here.run(pipeline)
        assert asked == [(1, 10)] * 5 + [(2, 15)] * 5 + [(3, 20)] * 4

    simloop.run(main())


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_b02_a_link_is_never_asked_for_more_than_its_demand(data: st.DataObject) -> None:
    """Whatever the speeds and crashes: 0 <= asked - delivered <= max_demand, and the source gives what was asked."""
    delay = st.sampled_from([0.0, 0.01, 0.1, 1.0])
    stages = data.draw(st.integers(0, 2))
    demands = [data.draw(st.integers(1, 12)) for _ in range(stages + 1)]
    least = [data.draw(st.integers(0, most - 1)) for most in demands]
    width = [data.draw(st.integers(1, 3)) for _ in range(stages + 1)]
    delays = [data.draw(delay) for _ in range(stages + 1)]
    source = Numbers(data.draw(st.integers(0, 60)), delay_s=data.draw(delay), most=data.draw(st.integers(1, 20)))
    crashes = data.draw(st.lists(st.tuples(delay, st.integers(0, stages)), max_size=5))

    seed = data.draw(st.integers(0, 1_000))

    async def main() -> None:
        seen: set[int] = set()

        def slow(index: int) -> Callable[[Event[int]], asyncio.Future[int]]:
            async def handle(event: Event[int]) -> int:
                check_links(pipeline)
                if delays[index]:
                    await asyncio.sleep(delays[index])
                check_links(pipeline)
                if index == stages:
                    seen.add(event.data)
                return event.data

            return handle  # type: ignore[return-value]

        built = flow(source, id="p", intensity=100)
        for index in range(stages):
            built = built.process(
                slow(index),
                id=f"s{index}",
                concurrency=width[index],
                max_demand=demands[index],
                min_demand=least[index],
            )
        pipeline = built.consume(
            slow(stages), id=f"s{stages}", concurrency=width[-1], max_demand=demands[-1], min_demand=least[-1]
        )
        async with site() as here:
            await here.start(pipeline)
            for delay_s, stage in crashes:
                await asyncio.sleep(delay_s)
                here.crash(pipeline, f"s{stage}" if width[stage] == 1 else f"s{stage}-0")
                check_links(pipeline)
            outcome = await pipeline.wait()
            assert outcome.reason == "ended" and outcome.unprocessed == 0
            assert seen == set(range(source.count))
            bound = sum(most * many for most, many in zip(demands, width, strict=True))
            assert max(source.asks) <= bound

    simloop.run(main(), seed=seed)


def test_b02_without_demand_the_source_is_not_called() -> None:
    """A source is called again only when the last stage has asked again; until then nothing runs, not even a timer."""

    async def main() -> None:
        source, gate = Numbers(1_000), asyncio.Event()

        async def handle(event: Event[int]) -> None:
            await gate.wait()

        async with site() as here:
            pipeline = flow(source, id="p").process(same, max_demand=4).consume(handle, max_demand=2)
            await here.start(pipeline)
            await settle()
            calls, loop = len(source.asks), asyncio.get_running_loop()
            assert isinstance(loop, simloop.SimLoop)
            assert not loop.pending_timers()
            await asyncio.sleep(3_600.0)
            assert len(source.asks) == calls
            assert source.given == 6  # what the processor may hold, and the consumer
            gate.set()
            await pipeline.wait()

    simloop.run(main())


def test_b03_a_consumer_that_resumes_loses_nothing_and_keeps_the_order() -> None:
    """A consumer that stops and goes on at random gets every event, in order."""

    async def main() -> None:
        seen: list[int] = []
        open_gate = asyncio.Event()
        open_gate.set()

        async def handle(event: Event[int]) -> None:
            await open_gate.wait()
            seen.append(event.data)
            if event.data % 37 == 0:
                open_gate.clear()
                asyncio.get_running_loop().call_later(10.0, open_gate.set)

        async with site() as here:
            built = flow(Numbers(500, most=7), id="p").process(same, id="a").process(same, id="b", max_demand=3)
            await here.run(built.consume(handle, max_demand=5))
        assert seen == list(range(500))

    simloop.run(main())


def test_b04_a_slow_consumer_does_not_throttle_a_fast_one() -> None:
    """Of two consumers, one ten times slower, each event reaches exactly one, and the fast one works all the time."""

    async def main() -> None:
        seen: list[tuple[str, int]] = []
        count = 1_100

        async def handle(event: Event[int]) -> None:
            task = asyncio.current_task()
            assert task is not None
            name = task.get_name().rpartition("/")[2]
            await asyncio.sleep(0.1 if name == "consumer-0" else 0.01)
            seen.append((name, event.data))

        async with site() as here:
            loop = asyncio.get_running_loop()
            begin_s = loop.time()
            await here.run(flow(Numbers(count), id="p").consume(handle, concurrency=2, max_demand=4))
            took_s = loop.time() - begin_s
        assert sorted(number for _, number in seen) == list(range(count))
        fast = sum(name == "consumer-1" for name, _ in seen)
        assert fast == pytest.approx(1_000, abs=10)
        # All the work shared ideally takes 10 s; what the slow one has in hand at the end takes 0.4 s more at most.
        assert took_s <= 10.5

    simloop.run(main())


def test_b04_partition_keeps_the_order_of_each_key() -> None:
    """Events of one key go to one process, in order, though a crash gives some of them again."""

    async def main() -> None:
        seen: dict[int, list[int]] = {}
        places: dict[int, set[str]] = {}

        async def handle(event: Event[int]) -> None:
            task = asyncio.current_task()
            assert task is not None
            await asyncio.sleep(0.01 * (event.data % 3))
            key = event.data % 7
            seen.setdefault(key, []).append(event.data)
            places.setdefault(key, set()).add(task.get_name())

        async with site() as here:
            built = flow(Numbers(700), id="p", intensity=10)
            pipeline = built.consume(handle, concurrency=3, max_demand=6, key=lambda number: number % 7)
            await here.start(pipeline)
            for _ in range(3):
                await asyncio.sleep(0.5)
                assert here.crash(pipeline, "consumer-1")
            await pipeline.wait()
        assert all(len(names) == 1 for names in places.values())
        for key, numbers in seen.items():
            assert numbers == sorted(numbers)
            assert set(numbers) == set(range(key, 700, 7))

    simloop.run(main())


def test_b04_broadcast_gives_every_consumer_all_as_fast_as_the_slowest() -> None:
    """Each consumer of a broadcast gets every event once, in order; the fast one is never far ahead."""

    async def main() -> None:
        seen: dict[str, list[int]] = {"fast": [], "slow": []}
        ahead: list[int] = []

        async def fast(event: Event[int]) -> None:
            seen["fast"].append(event.data)
            ahead.append(len(seen["fast"]) - len(seen["slow"]))

        async def slow(event: Event[int]) -> None:
            await asyncio.sleep(1.0)
            seen["slow"].append(event.data)

        async with site() as here:
            pipeline = flow(Numbers(200), id="p").broadcast({"fast": fast, "slow": slow}, max_demand=8)
            outcome = await here.run(pipeline)
        assert outcome.counts.acked == 200
        assert seen == {"fast": list(range(200)), "slow": list(range(200))}
        assert max(ahead) <= 8 + 1

    simloop.run(main())


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        (Policy.BLOCK, list(range(100))),
        (Policy.DROP_OLDEST, [0, 1, 95, 96, 97, 98, 99]),
        (Policy.DROP_NEWEST, [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_b07_a_full_buffer_follows_its_policy_and_counts(policy: Policy, kept: list[int]) -> None:
    """BLOCK asks for no more than fits, the others go on asking and drop at one end; every drop is counted."""

    async def main() -> None:
        source, seen, gate = Numbers(100, most=1), list[int](), asyncio.Event()

        async def handle(event: Event[int]) -> None:
            await gate.wait()
            seen.append(event.data)

        async with site() as here:
            built = flow(source, id="p", buffer=Buffer(limit=5, policy=policy))
            pipeline = built.consume(handle, max_demand=2)
            await here.start(pipeline)
            await settle(400)
            assert source.given == (7 if policy is Policy.BLOCK else 100)
            check_links(pipeline)
            gate.set()
            outcome = await pipeline.wait()
        assert seen == kept
        assert outcome.counts.dropped == 100 - len(kept)
        assert outcome.counts.produced == 100 and outcome.unprocessed == 0
        assert outcome.complete == (policy is Policy.BLOCK)

    simloop.run(main())


@pytest.mark.parametrize(
    ("size", "bytes_max", "delay_s", "expected"),
    [
        (4, 1_000, 0.0, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]),
        (100, 10, 0.0, [[0, 1, 2, 3, 4], [5], [6], [7], [8], [9]]),
        (100, 1_000, 1.0, [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]),
    ],
    ids=["size", "bytes", "timeout"],
)
def test_b09_a_batch_closes_on_size_bytes_or_timeout(
    size: int, bytes_max: int, delay_s: float, expected: list[list[int]]
) -> None:
    """Whichever comes first closes a batch: enough events, enough bytes, or the age of its first event."""

    async def main() -> None:
        batches: list[list[int]] = []
        closed_s: list[float] = []

        async def handle(batch: Batch[int]) -> None:
            batches.append([event.data for event in batch.events])
            closed_s.append(asyncio.get_running_loop().time())

        async with site() as here:
            built = flow(Numbers(10, delay_s=delay_s, most=1), id="p")
            flowing = built.batch(size=size, timeout_s=2.5, bytes_max=bytes_max, size_of=lambda number: number)
            outcome = await here.run(flowing.consume(handle))
        assert batches == expected
        assert outcome.complete and outcome.counts.acked == 10
        if delay_s:
            assert closed_s == pytest.approx([3.5, 6.5, 9.5, 11.0])

    simloop.run(main())


def test_b09_batches_of_different_keys_fill_side_by_side() -> None:
    """Each key has a batch of its own, which closes by itself and goes to the process of its key."""

    async def main() -> None:
        batches: list[tuple[object, list[int]]] = []

        async def handle(batch: Batch[int]) -> None:
            batches.append((batch.key, [event.data for event in batch.events]))

        async with site() as here:
            flowing = flow(Numbers(20), id="p").batch(size=5, timeout_s=60.0, key=lambda number: number % 2)
            await here.run(flowing.consume(handle, concurrency=2, by_key=True))
        even, odd = list(range(0, 20, 2)), list(range(1, 20, 2))
        assert sorted(batches) == [(0, even[:5]), (0, even[5:]), (1, odd[:5]), (1, odd[5:])]

    simloop.run(main())


@pytest.mark.slow
def test_b11_a_million_records_into_a_slow_sink_leave_memory_flat() -> None:
    """A sink that takes its time over a million records costs the memory of its demand, not of the records."""
    count, blocks = 1_000_000, list[int]()

    async def main() -> None:
        taken = 0

        async def write(batch: Batch[int]) -> None:
            nonlocal taken
            await asyncio.sleep(1.0)
            taken += len(batch.events)
            if taken % 100_000 == 0:
                assert pipeline.counts().open <= 6_000
                blocks.append(sys.getallocatedblocks())

        async with site() as here:
            pipeline = flow(SequenceSource(range(count)), id="p").consume_many(write, max_demand=2_000)
            outcome = await here.run(pipeline)
            assert outcome.complete and taken == count

    gc.collect()  # what other tests left behind would go at any time
    before = sys.getallocatedblocks()
    simloop.run(main())
    assert len(blocks) == 10
    # Each event in hand is a handful of blocks; a million that were kept would be millions.
    assert max(blocks) - before < 50_000
    assert max(blocks[1:]) - min(blocks[1:]) < 20_000
