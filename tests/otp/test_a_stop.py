"""Acceptance cases 23 to 34: stop, kill, zombies, cancellation."""

from __future__ import annotations

import asyncio
import math
import threading
from typing import Any

import pytest

from serviceradar_poller.events.kernel import (
    ChildExited,
    ChildKilled,
    ChildRestarting,
    ChildStartFailed,
    ChildZombie,
    LoopBlocked,
)
from serviceradar_poller.otp import (
    BRUTAL_KILL,
    KILLED,
    SHUTDOWN,
    Child,
    ChildSpec,
    DeadlockError,
    LoopWatchdog,
    Restart,
    StartFailed,
    StartTimeout,
    Strategy,
    SupervisorRef,
    actor,
    dynamic_supervisor,
    start_tree,
    supervisor,
)
from serviceradar_poller.testing import simloop
from serviceradar_poller.testing.kernel import Journal, Member, ref_of, settle, task_of
from serviceradar_poller.testing.leaks import no_leaks


def test_a23_hung_children_take_their_graces_one_after_another() -> None:
    """Two hung children with 300 ms each: 600 ms in all, both killed; brutal_kill grants no cleanup."""

    async def main() -> None:
        journal = Journal()
        children = [
            journal.child("a", shutdown_s=0.3, cleanup_s=math.inf),
            journal.child("b", shutdown_s=0.3, cleanup_s=math.inf),
            journal.child("k", shutdown_s=BRUTAL_KILL),
        ]
        with no_leaks():
            tree = await start_tree(supervisor("r", children), journal.system())
            journal.take()
            await tree.stop()
            assert asyncio.get_running_loop().time() == pytest.approx(0.6)
            assert journal.take() == "↓b(shutdown) ↓a(shutdown)"
            assert [event.path for event in journal.of(ChildKilled)] == ["r/b", "r/a"]
            reasons = {event.path: event.reason for event in journal.of(ChildExited)}
            assert reasons == {"r/a": "killed", "r/b": "killed", "r/k": "killed", "r": "shutdown"}

    simloop.run(main())


def test_a24_a_death_during_a_stop_restarts_nobody() -> None:
    """a crashes while b still stops: it is not restarted."""

    async def main() -> None:
        journal = Journal()
        children = [journal.child("a"), journal.child("b", cleanup_s=1.0)]
        tree = await start_tree(supervisor("r", children), journal.system())
        journal.take()
        a = ref_of(tree, "r/a")
        stopping = asyncio.create_task(tree.stop())
        await asyncio.sleep(0.5)
        a.cast("boom")
        assert await stopping == SHUTDOWN
        assert journal.take() == "↓b(shutdown) ↓a(error)"
        assert not journal.of(ChildRestarting)

    simloop.run(main())


@pytest.mark.parametrize("how", ["cancel", "crash"])
def test_a25_a_killed_supervisor_takes_its_children_along(how: str) -> None:
    """Killed by a stranger or crashed from within, a supervisor leaves no orphan and restarts no child."""

    async def main() -> None:
        journal = Journal()
        sub = supervisor("s", [journal.child("a"), journal.child("b")], restart=Restart.TEMPORARY)
        with no_leaks():
            tree = await start_tree(supervisor("r", [sub, journal.child("z")]), journal.system())
            journal.take()
            if how == "cancel":
                task_of(tree, "r/s").cancel()
            else:
                assert tree.crash("r/s", RuntimeError("injected"))
            await settle()
            assert journal.take() == "↓b(shutdown) ↓a(shutdown)"
            assert not journal.of(ChildRestarting)
            assert journal.of(ChildExited)[-1].reason == ("killed" if how == "cancel" else "error")
            assert tree.process_count() == 2
            await tree.stop()

    simloop.run(main())


@pytest.mark.parametrize("how", ["cancel", "stop(kill)", "stop_now", "stranger"])
def test_a26_a_second_cancel_turns_the_rest_into_kills(how: str) -> None:
    """A stop that is under way becomes a kill of all that is left, within bounded time."""

    async def main() -> None:
        journal = Journal()
        stuck = [journal.child(id, cleanup_s=math.inf, shutdown_s=math.inf) for id in "abc"]
        sub = supervisor("s", stuck)
        with no_leaks():
            tree = await start_tree(supervisor("r", [sub, *stuck]), journal.system())
            stopping = asyncio.create_task(tree.stop())
            await asyncio.sleep(10)
            assert not stopping.done()
            if how == "cancel":
                stopping.cancel()
            elif how == "stop(kill)":
                await tree.stop(kill=True)
            elif how == "stop_now":
                tree.stop_now()
            else:
                task_of(tree, "r").cancel()
            await asyncio.wait({stopping})
            assert stopping.cancelled() == (how == "cancel")
            assert asyncio.get_running_loop().time() < 11
            assert tree.process_count() == 0

    simloop.run(main())


@pytest.mark.parametrize(("flush_s", "completes"), [(9.9, True), (10.1, False)])
def test_a27_the_reporter_has_ten_seconds_to_flush(flush_s: float, completes: bool) -> None:
    """A flush of 9.9 s completes, one of 10.1 s is killed and told; the agents have stopped before it began."""

    async def main() -> None:
        journal = Journal()
        flushed: list[float] = []

        class Reporter(Member):
            async def terminate(self, reason: object) -> None:
                assert tree.system.whereis("r/agents") is None
                await asyncio.sleep(flush_s)
                flushed.append(asyncio.get_running_loop().time())

        reporter = actor("reporter", lambda: Reporter(journal, "reporter"), shutdown_s=10.0)
        agents = dynamic_supervisor("agents", intensity=1, period_s=5, max_children=10)
        tree = await start_tree(supervisor("r", [reporter, agents], strategy=Strategy.ONE_FOR_ALL), journal.system())
        sup = tree.system.whereis("r/agents")
        assert isinstance(sup, SupervisorRef)
        await sup.start_child(journal.child("agent-1", cleanup_s=1.0))
        await tree.stop()
        assert (flushed == [pytest.approx(10.9)]) == completes
        assert [event.path for event in journal.of(ChildKilled)] == ([] if completes else ["r/reporter"])

    simloop.run(main())


def test_a28_a_dynamic_supervisor_stops_its_children_in_parallel() -> None:
    """Five hundred children that take 1 s each take about 1 s together."""

    async def main() -> None:
        journal = Journal()
        spec = dynamic_supervisor("r", intensity=1, period_s=5, max_children=1_000)
        with no_leaks():
            tree = await start_tree(spec, journal.system())
            sup = tree.system.whereis("r")
            assert isinstance(sup, SupervisorRef)
            for n in range(500):
                await sup.start_child(journal.child(str(n), cleanup_s=1.0))
            await tree.stop()
            assert asyncio.get_running_loop().time() == pytest.approx(1.0)
            assert journal.take().count("shutdown") == 500

    simloop.run(main())


@pytest.mark.parametrize("where", ["actor", "plain", "helper"])
def test_a29_a_child_that_swallows_every_cancel_becomes_a_zombie(where: str) -> None:
    """After its grace and five kills it is reported with its stack and listed; the stop goes on without it."""

    async def main() -> None:
        journal = Journal()
        release = asyncio.Event()

        async def stubborn() -> None:
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    continue

        async def plain(child: Child) -> None:
            child.ready()
            if where == "helper":
                child.spawn(stubborn(), name="h")
                await asyncio.sleep(math.inf)
            await stubborn()

        spec = (
            journal.child("z", cleanup_s=100.0, swallows=True, shutdown_s=1.0)
            if where == "actor"
            else ChildSpec(id="z", start=plain, shutdown_s=1.0)
        )
        with no_leaks():
            tree = await start_tree(supervisor("r", [journal.child("a"), spec]), journal.system())
            await settle()
            journal.take()
            await tree.stop()
            assert asyncio.get_running_loop().time() == pytest.approx(1.25)
            assert journal.take().endswith("↓a(shutdown)")
            [zombie] = journal.of(ChildZombie)
            assert (zombie.path, zombie.kills) == ("r/z", 5)
            assert ("terminate" if where == "actor" else "stubborn") in zombie.stack
            assert tree.zombies() == ["r/z"]
            release.set()
            await asyncio.sleep(200)
            assert tree.zombies() == []

    simloop.run(main())


@pytest.mark.slow
def test_a30_a_blocked_loop_is_reported_with_its_stack() -> None:
    """A child in synchronous code is named by the watchdog within its bound, once per episode."""
    events: list[LoopBlocked] = []
    seen = threading.Event()
    main_may_go = threading.Event()

    def emit(event: LoopBlocked) -> None:
        if "a_function_that_blocks" in event.stack:  # a busy machine may hold the loop up elsewhere
            events.append(event)
            seen.set()

    async def blocks(child: Child) -> None:
        child.ready()
        await asyncio.sleep(0.05)
        a_function_that_blocks()
        await asyncio.sleep(math.inf)

    def a_function_that_blocks() -> None:
        assert seen.wait(10)
        assert not main_may_go.wait(0.1), "still blocked: it must not be reported twice"

    async def main() -> None:
        journal = Journal()
        watchdog = LoopWatchdog(emit=emit, threshold_s=0.1, interval_s=0.02)
        watchdog.start(asyncio.get_running_loop())
        try:
            with pytest.raises(RuntimeError, match="runs already"):
                watchdog.start(asyncio.get_running_loop())
            tree = await start_tree(supervisor("r", [ChildSpec(id="x", start=blocks)]), journal.system())
            await asyncio.sleep(0.25)
            await tree.stop()
        finally:
            watchdog.stop()
            watchdog.stop()

    asyncio.run(main())
    assert "loop-watchdog" not in {thread.name for thread in threading.enumerate()}
    [blocked] = events
    assert 0.1 <= blocked.blocked_s < 5


@pytest.mark.slow
def test_the_watchdog_lets_a_sleeping_loop_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that waits for events is not woken to prove that it lives."""
    asked = threading.Event()

    async def main() -> int:
        loop = asyncio.get_running_loop()
        wakes = 0
        wake = loop.call_soon_threadsafe

        def counted(*args: Any, **options: Any) -> asyncio.Handle:
            nonlocal wakes
            wakes += 1
            asked.set()
            return wake(*args, **options)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        watchdog = LoopWatchdog(emit=lambda _: None, threshold_s=0.1, interval_s=0.01)
        watchdog.start(loop)
        try:
            assert asked.wait(5)  # the loop is held here: it looks at work, and is asked
            await asyncio.sleep(0.05)
            wakes = 0
            await asyncio.sleep(0.3)
        finally:
            watchdog.stop()
        return wakes

    assert asyncio.run(main()) <= 6  # of 30 looks; some may find the loop as it goes to sleep, without a CPU


@pytest.mark.parametrize("end", ["normal", "boom", "kill", "stop", "brutal", "helper", "restart"])
def test_a31_helpers_die_with_their_child(end: str) -> None:
    """In every way to end, the helpers are cancelled and awaited first, and no task or timer is left."""

    async def main() -> None:
        journal = Journal()
        running = [0]

        async def helper() -> None:
            running[0] += 1
            try:
                await asyncio.sleep(math.inf)
            finally:
                await asyncio.sleep(0.01)
                running[0] -= 1

        async def fails() -> None:
            await asyncio.sleep(0.5)
            raise KeyError("helper")

        async def prepare(member: Member) -> None:
            for name in ("one", "two"):
                member.spawn(helper(), name=name)
            if end == "helper":
                member.spawn(fails(), name="third")
            member.send_after(1_000.0, "late")

        async def spawn_and_leave(member: Member) -> None:
            await prepare(member)
            member.spawn(helper(), name="never starts")
            member.stop()

        grace: Any = BRUTAL_KILL if end == "brutal" else 1.0
        with no_leaks():
            tree = await start_tree(
                supervisor("r", [journal.child("a", restart=Restart.TEMPORARY, shutdown_s=grace)]),
                journal.system(),
            )
            ref = ref_of(tree, "r/a")
            await ref.call(prepare)
            await settle()
            assert running == [2]
            assert tree.inspect().children[0].helpers == (3 if end == "helper" else 2)
            if end == "kill":
                task_of(tree, "r/a").cancel()
            elif end == "restart":
                ref.cast(spawn_and_leave)
            elif end in ("normal", "boom"):
                ref.cast(end)
            if end not in ("stop", "brutal"):
                await asyncio.sleep(1)
                assert not ref.alive
                assert running == [0]
            await tree.stop()
            assert running == [0]
            last = [event for event in journal.of(ChildExited) if event.path == "r/a"]
            assert len(last) == 1
            if end == "helper":
                assert "third" in last[0].error
                assert "KeyError" in last[0].error
                assert "in fails" in last[0].traceback

    simloop.run(main())


def test_a32_a_cancel_while_an_init_hangs_rolls_back() -> None:
    """The supervisor is cancelled while c's init hangs: c is cancelled, b and a stop, d never starts."""

    async def main() -> None:
        journal = Journal()
        children = [journal.child(id) for id in "ab"]
        children += [journal.child("c", init_s=math.inf), journal.child("d")]
        with no_leaks():
            starting = asyncio.create_task(start_tree(supervisor("r", children), journal.system()))
            await asyncio.sleep(1)
            assert journal.take() == "↑a ↑b"
            starting.cancel()
            await asyncio.wait({starting})
            assert starting.cancelled()
            assert journal.take() == "↓b(shutdown) ↓a(shutdown)"
            assert [event.path for event in journal.of(ChildExited)] == ["r/c", "r/b", "r/a", "r"]

    simloop.run(main())


def test_a32_a_start_that_takes_too_long_has_failed() -> None:
    """A child not ready within its start timeout is killed, and that is a failed start."""

    async def main() -> None:
        journal = Journal()
        slow = journal.child("c", init_s=math.inf, start_timeout_s=3.0)
        with no_leaks():
            with pytest.raises(StartFailed) as caught:
                await start_tree(supervisor("r", [journal.child("a"), slow]), journal.system())
            assert isinstance(caught.value.cause, StartTimeout)
            assert caught.value.path == "r/c"
            assert asyncio.get_running_loop().time() == 3.0
            assert journal.take() == "↑a ↓a(shutdown)"
            assert [event.path for event in journal.of(ChildStartFailed)] == ["r/c", "r"]

    simloop.run(main())


@pytest.mark.parametrize("who", ["starter", "supervisor", "caller", "child"])
@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_a33_a_cancel_near_readiness_is_never_lost(who: str, seed: int | None) -> None:
    """Cancelled 0 to 20 ticks after the start began, all is registered and stopped, or never was."""

    async def main(ticks: int) -> None:
        journal = Journal()
        slow = dynamic_supervisor("r", intensity=5, period_s=5, max_children=5)
        with no_leaks():
            system = journal.system()
            if who == "starter":
                spec = supervisor("r", [supervisor("s", [journal.child("a")]), journal.child("b")])
                starting = asyncio.create_task(start_tree(spec, system))
                await settle(ticks)
                starting.cancel()
                await asyncio.wait({starting})
                if not starting.cancelled():
                    await starting.result().stop()
            else:
                tree = await start_tree(slow, system)
                sup = system.whereis("r")
                assert isinstance(sup, SupervisorRef)
                caller = asyncio.create_task(sup.start_child(journal.child("a", restart=Restart.TEMPORARY)))
                await settle(ticks)
                if who == "caller":
                    caller.cancel()
                elif who == "child":
                    for task in asyncio.all_tasks():
                        if task.get_name() == "r/a":
                            task.cancel()
                else:
                    task_of(tree, "r").cancel()
                await asyncio.wait({caller})
                if not caller.cancelled():
                    caller.exception()  # retrieved: NoProcess and StartFailed are both fair answers here
                await settle()
                if who == "caller":
                    registered = [info.state for info in await sup.which_children()]
                    assert registered == (["up"] if "↑a" in journal.entries else [])
                reason = await tree.stop()
                assert reason == (KILLED if who == "supervisor" else SHUTDOWN)
            assert system.live == 0
            ups = journal.entries.count("↑a")
            downs = sum(entry.startswith("↓a") for entry in journal.entries)
            assert downs <= ups <= 1
            if who != "child":
                assert downs == ups

    for ticks in range(21):
        simloop.run(main(ticks), seed=seed)


def test_a34_a_call_to_a_supervisor_that_waits_for_the_caller_is_refused_at_once() -> None:
    """In init, one's own supervisor, or one above that waits for it, raises DeadlockError; others answer."""

    async def main() -> None:
        journal = Journal()
        asked: list[tuple[str, str]] = []

        async def ask(child: Child, path: str) -> None:
            sup = child.system.whereis(path)
            assert isinstance(sup, SupervisorRef)
            try:
                await sup.which_children()
                asked.append((path, "answered"))
            except DeadlockError:
                asked.append((path, "deadlock"))

        async def start(child: Child) -> None:
            await ask(child, "r")
            await ask(child, "r/s")
            child.ready()
            await ask(child, "r")
            await ask(child, "r/s")
            await asyncio.sleep(math.inf)

        dynamic = dynamic_supervisor("s", intensity=1, period_s=5, max_children=5)
        tree = await start_tree(supervisor("r", [dynamic]), journal.system())
        top, sub = tree.system.whereis("r"), tree.system.whereis("r/s")
        assert isinstance(top, SupervisorRef)
        assert isinstance(sub, SupervisorRef)
        await sub.start_child(ChildSpec(id="x", start=start))
        await settle()
        own = [("r", "answered"), ("r/s", "deadlock"), ("r", "answered"), ("r/s", "answered")]
        assert asked == own
        asked.clear()
        await top.start_child(supervisor("t", [ChildSpec(id="y", start=start)]))
        await settle()
        assert asked == [("r", "deadlock"), ("r/s", "answered"), ("r", "answered"), ("r/s", "answered")]
        await tree.stop()

    simloop.run(main())
