from __future__ import annotations

import asyncio
import threading

from serviceradar_poller.events.kernel import LoopBlocked
from serviceradar_poller.events.polling import PollerStopping
from serviceradar_poller.observe import bus as bus_module
from serviceradar_poller.observe.bus import EventBus
from serviceradar_poller.observe.own_events import ObservedEvent, SinkFailed

EVENT = PollerStopping(cause="test")
BLOCKED = LoopBlocked(blocked_s=1.0, stack="")


def broken(event: ObservedEvent) -> None:
    raise RuntimeError("sink is broken")


def test_a_failing_sink_is_told_once_to_the_others_and_counted_every_time() -> None:
    """Emit never raises: a sink's failure reaches the other sinks once, and each one is counted."""
    seen: list[ObservedEvent] = []
    last_resort: list[str] = []
    bus = EventBus(last_resort=last_resort.append)
    bus.add(broken, name="broken")
    bus.add(seen.append)
    for _ in range(3):
        bus.emit(EVENT)
    assert bus.failures == 3
    assert seen.count(EVENT) == 3
    reports = [event for event in seen if isinstance(event, SinkFailed)]
    assert [(r.sink, r.event, r.error) for r in reports] == [
        ("broken", "PollerStopping", "RuntimeError: sink is broken")
    ]
    assert last_resort == []


def test_when_every_sink_fails_it_is_told_on_the_last_resort() -> None:
    """Two broken sinks don't call each other for ever, and what happened is said once for each."""
    last_resort: list[str] = []
    bus = EventBus(last_resort=last_resort.append)
    bus.add(broken, name="first")
    bus.add(broken, name="second")
    bus.emit(EVENT)
    bus.emit(EVENT)
    assert len(last_resort) == 2
    assert "sink is broken" in last_resort[0]


def test_a_removed_sink_gets_nothing_more() -> None:
    """After remove, events pass a sink by."""
    seen: list[ObservedEvent] = []
    bus = EventBus()
    bus.add(seen.append)
    bus.emit(EVENT)
    bus.remove(seen.append)
    bus.emit(EVENT)
    assert seen == [EVENT]


def test_events_of_other_threads_reach_sinks_on_the_loops_thread() -> None:
    """A bound bus runs ordinary sinks on the loop's thread, and thread-safe ones at once where they are emitted."""
    threads: dict[str, int] = {}
    emitted_on: list[int] = []

    async def main() -> None:
        arrived = asyncio.Event()

        def on_loop(event: ObservedEvent) -> None:
            threads["loop"] = threading.get_ident()
            arrived.set()

        def anywhere(event: ObservedEvent) -> None:
            threads["any"] = threading.get_ident()

        bus = EventBus()
        bus.add(on_loop)
        bus.add(anywhere, any_thread=True)
        bus.bind(asyncio.get_running_loop())

        def watchdog() -> None:
            emitted_on.append(threading.get_ident())
            bus.emit(BLOCKED)

        thread = threading.Thread(target=watchdog)
        thread.start()
        thread.join()
        assert "any" in threads, "told while the loop did not turn"
        assert "loop" not in threads
        await asyncio.wait_for(arrived.wait(), 5)

    asyncio.run(main())
    assert threads["loop"] == threading.get_ident()
    assert threads["any"] == emitted_on[0]


def test_a_loop_that_does_not_turn_bounds_what_waits_for_it() -> None:
    """Events of other threads beyond FOREIGN_EVENTS_MAX are dropped and counted, none is handed over twice."""
    seen: list[ObservedEvent] = []

    async def main() -> None:
        bus = EventBus()
        bus.add(seen.append)
        bus.bind(asyncio.get_running_loop())
        extra = 5

        def flood() -> None:
            for _ in range(bus_module.FOREIGN_EVENTS_MAX + extra):
                bus.emit(BLOCKED)

        thread = threading.Thread(target=flood)
        thread.start()
        thread.join()
        assert bus.dropped == extra
        await asyncio.sleep(0)
        assert len(seen) == bus_module.FOREIGN_EVENTS_MAX

    asyncio.run(main())


def test_after_the_loop_is_closed_events_are_delivered_where_they_are_emitted() -> None:
    """A stopped loop costs no event: the last words of other threads are still written."""
    seen: list[ObservedEvent] = []
    bus = EventBus()
    bus.add(seen.append)

    async def main() -> None:
        bus.bind(asyncio.get_running_loop())

    asyncio.run(main())
    thread = threading.Thread(target=bus.emit, args=(BLOCKED,))
    thread.start()
    thread.join()
    assert seen == [BLOCKED]
