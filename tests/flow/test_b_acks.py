"""B5, B6 and B8: acknowledgements, ends and drain."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serviceradar_poller.flow import (
    Batch,
    CannotRewind,
    Event,
    flow,
)
from serviceradar_poller.otp import Restart
from serviceradar_poller.testing import simloop
from serviceradar_poller.testing.flow import Crash, Numbers, Stream, check_links, settle, site


async def same(event: Event[int]) -> int:
    """Pass the number on."""
    return event.data


def test_b05_unacknowledged_events_come_again_once_flagged_before_newer_ones() -> None:
    """What a crashed consumer had got and not acknowledged comes again, once, flagged, then what is newer."""

    async def main() -> None:
        seen: list[tuple[int, bool]] = []
        gate = asyncio.Event()

        async def handle(event: Event[int]) -> None:
            if event.data == 12 and not event.redelivered:
                await gate.wait()
            seen.append((event.data, event.redelivered))

        async with site() as here:
            pipeline = flow(Numbers(30), id="p").process(same).consume(handle, max_demand=10, min_demand=5)
            await here.start(pipeline)
            await settle()
            [_, link] = pipeline.links()
            first, last = 12, link.delivered - 1
            assert here.crash(pipeline, "consumer")
            outcome = await pipeline.wait()
            assert here.exits("error") == ["consumer"]
        assert seen == [(number, first <= number <= last) for number in range(30)]
        assert last > first
        assert outcome.complete and outcome.counts.redelivered == last - first + 1
        assert outcome.counts.failures == 0  # a crash from outside is nobody's try

    simloop.run(main())


def test_b05_siblings_that_go_down_together_get_what_they_held_once() -> None:
    """A crash that takes siblings along gives what all of them held again, once, and not from one to the other."""

    async def main() -> None:
        begun: list[tuple[int, bool]] = []

        async def handle(event: Event[int]) -> None:
            begun.append((event.data, event.redelivered))
            await asyncio.sleep(1.0)

        async with site() as here:
            pipeline = flow(Numbers(30), id="p").consume(handle, concurrency=3, max_demand=4)
            await here.start(pipeline)
            await asyncio.sleep(0.5)
            held = sum(link.in_hand for link in pipeline.links())
            assert held == 12
            assert here.crash(pipeline, "consumer-0")
            outcome = await pipeline.wait()
            assert sorted(here.exits("shutdown")) == ["consumer-1", "consumer-2"]
        assert outcome.complete and outcome.counts.redelivered == held
        assert sorted(number for number, flagged in begun if flagged) == list(range(held))
        assert len(begun) == 30 + 3  # those in a handler at the crash were begun twice

    simloop.run(main())


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 80),
    crashes=st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.05, 0.3]), st.sampled_from(["producer", "a-0", "a-1", "batcher", "c-0", "c-1"])
        ),
        max_size=8,
    ),
    delay_s=st.sampled_from([0.0, 0.02, 0.1]),
    seed=st.integers(0, 1_000),
)
def test_b05_the_sink_gets_what_the_source_gave(
    count: int, crashes: list[tuple[float, str]], delay_s: float, seed: int
) -> None:
    """Whoever crashes, whenever: every event is acknowledged, and what came twice was flagged."""

    async def main() -> None:
        source, done, begun = Numbers(count, most=9), list[int](), set[int]()

        async def pause(event: Event[int]) -> int:
            if delay_s:
                await asyncio.sleep(delay_s)
            return event.data

        async def handle(batch: Batch[int]) -> None:
            for event in batch.events:
                assert event.redelivered or event.data not in begun
            begun.update(event.data for event in batch.events)
            await asyncio.sleep(delay_s)
            done.extend(event.data for event in batch.events)
            check_links(pipeline)

        async with site() as here:
            built = flow(source, id="p", intensity=100).process(pause, id="a", concurrency=2, max_demand=4)
            pipeline = built.batch(size=5, timeout_s=0.2).consume(handle, id="c", concurrency=2)
            await here.start(pipeline)
            for wait_s, id in crashes:
                await asyncio.sleep(wait_s)
                here.crash(pipeline, id)
            outcome = await pipeline.wait()
        assert set(done) == set(range(count))
        assert outcome.complete and outcome.counts.acked == outcome.counts.produced == count

    simloop.run(main(), seed=seed)


def test_b06_every_consumer_finishes_when_the_source_ends() -> None:
    """The end of the source reaches every process, partial batches included; the pipeline ends by itself."""

    async def main() -> None:
        sizes: list[int] = []

        async def handle(batch: Batch[int]) -> None:
            sizes.append(len(batch.events))

        async with site() as here:
            source = Numbers(23)
            built = flow(source, id="p").process(same, concurrency=3).batch(size=10, timeout_s=3_600.0)
            pipeline = built.consume(handle, concurrency=2)
            outcome = await here.run(pipeline)
            assert asyncio.get_running_loop().time() < 1.0
            names = ["batcher", "consumer-0", "consumer-1", "processor-0", "processor-1", "processor-2", "producer"]
            assert sorted(set(here.exits("normal")) - {"keeper"}) == names
            assert source.closed == 1
            assert await here.under.which_children() == []
        assert outcome.reason == "ended" and outcome.complete and outcome.resume_offset == 23
        assert sum(sizes) == 23 and min(sizes) == 3

    simloop.run(main())


def test_b06_an_empty_source_ends_too() -> None:
    """A source without events: nobody is called, everybody finishes."""

    async def main() -> None:
        async def handle(event: Event[int]) -> None:
            raise AssertionError("there is nothing to handle")

        async with site() as here:
            outcome = await here.run(flow(Numbers(0), id="p").process(same).consume(handle))
        assert outcome.complete and outcome.counts.produced == 0

    simloop.run(main())


def test_b06_a_producer_that_crashes_goes_on_from_what_was_acknowledged() -> None:
    """The source is opened again at the oldest open offset; what it gives again is flagged, what is settled is not."""

    async def main() -> None:
        source, seen = Numbers(100, most=3), list[tuple[int, bool]]()
        source.fail_at = {30, 60}

        async def handle(event: Event[int]) -> None:
            await asyncio.sleep(0.1)
            seen.append((event.data, event.redelivered))

        async with site() as here:
            outcome = await here.run(flow(source, id="p").process(same).consume(handle))
            assert here.exits("error") == ["producer", "producer"]
        [zero, *again] = source.opened
        assert zero == 0 and all(offset in (number for number, _ in seen) for offset in again)
        assert source.closed == 3
        numbers = [number for number, _ in seen]
        # What was in hand at the crash is handled to its end by nobody, and so comes once all the same.
        assert numbers == list(range(100))
        assert [number for number, flagged in seen if flagged] == [*range(again[0], 30), *range(again[1], 60)]
        assert outcome.complete and outcome.counts.produced == 100

    simloop.run(main())


def test_b06_out_of_order_acknowledgements_are_not_given_again() -> None:
    """With a slow event at the front, a source that is read again gives only what is still open."""

    async def main() -> None:
        source, seen = Numbers(40), list[int]()
        source.fail_at = {20}

        async def handle(event: Event[int]) -> None:
            await asyncio.sleep(100.0 if event.data == 2 and not event.redelivered else 0.1)
            seen.append(event.data)

        async with site() as here:
            outcome = await here.run(flow(source, id="p").consume(handle, concurrency=2, max_demand=2))
        assert source.opened == [0, 2]
        assert sorted(seen) == list(range(40))
        assert outcome.complete

    simloop.run(main())


def test_b06_a_permanent_pipeline_goes_on_where_it_was() -> None:
    """A pipeline whose stages gave up is started again by its supervisor, and settles every event once."""

    async def main() -> None:
        source, seen = Numbers(200), set[int]()

        async def handle(event: Event[int]) -> None:
            await asyncio.sleep(0.1)
            seen.add(event.data)

        async with site() as here:
            pipeline = flow(source, id="p", intensity=0).consume(handle)
            await here.start(pipeline, restart=Restart.PERMANENT)
            await asyncio.sleep(5.05)
            assert here.crash(pipeline, "consumer")
            await settle()
            assert pipeline.outcome is None and source.opened == [0, 50]
            assert (await pipeline.wait()).complete
            assert seen == set(range(200))
            assert pipeline.counts().acked == 200

    simloop.run(main())


def test_b06_a_source_that_cannot_rewind_fails_the_pipeline() -> None:
    """A stream that breaks, or whose producer is killed, ends the pipeline with the reason and is not read again."""

    async def main() -> None:
        async def handle(event: Event[int]) -> None:
            await asyncio.sleep(1.0)

        async with site() as here:
            source = Stream(100)
            source.fail_at = {10}
            outcome = await here.run(flow(source, id="broken").consume(handle))
            assert outcome.reason == "failed" and isinstance(outcome.error, Crash)
            assert outcome.counts.produced == 10 == outcome.counts.acked + outcome.unprocessed
            killed = flow(Stream(100), id="killed").consume(handle)
            await here.start(killed)
            await asyncio.sleep(3.5)
            assert here.crash(killed, "producer")
            outcome = await killed.wait()
            assert isinstance(outcome.error, CannotRewind)
            assert outcome.unprocessed == outcome.counts.produced - outcome.counts.acked > 0

    simloop.run(main())


def test_b08_a_stop_drains() -> None:
    """Told to stop: the source is left, all it gave is processed, partial batches too, and acknowledged."""

    async def main() -> None:
        source, seen = Numbers(10_000, delay_s=0.1, most=1), list[int]()

        async def handle(batch: Batch[int]) -> None:
            await asyncio.sleep(0.5)
            seen.extend(event.data for event in batch.events)

        async with site() as here:
            built = flow(source, id="p", drain_s=10.0).process(same)
            pipeline = built.batch(size=7, timeout_s=3_600.0).consume(handle)
            await here.start(pipeline)
            await asyncio.sleep(5.05)
            outcome = await here.stop(pipeline)
            assert here.exits("killed") == []
        assert outcome.reason == "drained" and outcome.unprocessed == 0
        assert seen == list(range(50)) and outcome.resume_offset == 50
        assert source.closed == 1

    simloop.run(main())


def test_b08_at_the_deadline_the_rest_is_reported() -> None:
    """A drain that takes too long ends at its deadline, and says exactly how much is left."""

    async def main() -> None:
        seen: list[int] = []

        async def handle(event: Event[int]) -> None:
            await asyncio.sleep(1.0)
            seen.append(event.data)

        async with site() as here:
            pipeline = flow(Numbers(1_000), id="p").process(same).consume(handle)
            await here.start(pipeline)
            await asyncio.sleep(3.5)
            begin_s = asyncio.get_running_loop().time()
            outcome = await pipeline.drain(2.0)
            assert asyncio.get_running_loop().time() - begin_s == pytest.approx(2.0)
            assert outcome.reason == "stopped"
            assert outcome.counts.acked == len(seen) == 5
            assert outcome.unprocessed == outcome.counts.produced - 5 > 0
            assert await here.stop(pipeline) is outcome

    simloop.run(main())


def test_b08_a_drain_survives_a_crash() -> None:
    """A stage that crashes while the pipeline drains starts again, and the drain completes."""

    async def main() -> None:
        seen: list[int] = []

        async def handle(event: Event[int]) -> None:
            await asyncio.sleep(0.5)
            seen.append(event.data)

        async with site() as here:
            pipeline = flow(Numbers(1_000), id="p").process(same).consume(handle)
            await here.start(pipeline)
            await asyncio.sleep(1.2)
            asyncio.get_running_loop().call_later(0.8, here.crash, pipeline, "consumer")
            outcome = await pipeline.drain(60.0)
            assert here.exits("error") == ["consumer"]
        assert outcome.reason == "drained"
        assert seen == list(range(outcome.counts.produced))

    simloop.run(main())


def test_b08_a_caller_that_is_cancelled_takes_its_pipeline_along() -> None:
    """Without drain time, a cancel of who runs the pipeline drops what is under way; nothing is left running."""

    async def main() -> None:
        source = Stream(1_000, delay_s=0.1)

        async def handle(event: Event[int]) -> None:
            await asyncio.sleep(3_600.0)

        async with site() as here:
            pipeline = flow(source, id="p", drain_s=0.0).consume(handle)
            task = asyncio.create_task(here.run(pipeline))
            await asyncio.sleep(1.0)
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled() and source.closed == 1
            assert pipeline.outcome is not None and pipeline.outcome.reason == "stopped"
            assert await here.under.which_children() == []

    simloop.run(main())
