"""Acceptance cases 13 to 22: strategies, intensity."""

from __future__ import annotations

import asyncio
import math

import pytest

from serviceradar_poller.events.kernel import (
    ChildKilled,
    ChildRestarting,
    ChildStarted,
    ChildStartFailed,
    SupervisorGaveUp,
)
from serviceradar_poller.otp import (
    SHUTDOWN,
    AlreadyPresent,
    Child,
    ChildSpec,
    Restart,
    Restarting,
    Strategy,
    SupervisorRef,
    Tree,
    start_tree,
    supervisor,
)
from serviceradar_poller.testing import simloop
from serviceradar_poller.testing.kernel import Journal, ref_of, settle
from serviceradar_poller.testing.leaks import no_leaks


def sup_of(tree: Tree, path: str = "r") -> SupervisorRef:
    """Return the ref of a live supervisor."""
    sup = tree.system.whereis(path)
    assert isinstance(sup, SupervisorRef)
    return sup


@pytest.mark.parametrize(
    ("strategy", "log", "incarnations"),
    [
        (Strategy.ONE_FOR_ONE, "↓b(error) ↑b", [1, 2, 1, 1]),
        (
            Strategy.ONE_FOR_ALL,
            "↓b(error) ↓d(shutdown) ↓c(shutdown) ↓a(shutdown) ↑a ↑b ↑c ↑d",
            [2, 2, 2, 2],
        ),
        (Strategy.REST_FOR_ONE, "↓b(error) ↓d(shutdown) ↓c(shutdown) ↑b ↑c ↑d", [1, 2, 2, 2]),
    ],
)
def test_a13_strategies(strategy: Strategy, log: str, incarnations: list[int]) -> None:
    """b dies: only b, all, or b and what comes after it stop backwards and start forwards."""

    async def main() -> None:
        journal = Journal()
        children = [journal.child(id) for id in "abcd"]
        tree = await start_tree(supervisor("r", children, strategy=strategy), journal.system())
        journal.take()
        ref_of(tree, "r/b").cast("boom")
        await settle()
        assert journal.take() == log
        assert [info.incarnation for info in await sup_of(tree).which_children()] == incarnations
        [restarting] = journal.of(ChildRestarting)
        assert restarting.path == "r/b"
        await tree.stop()

    simloop.run(main())


def test_a14_a_group_restart_revives_what_is_down_and_drops_what_is_temporary() -> None:
    """A finished transient and a manually terminated child start again; a temporary one stops for good."""

    async def main() -> None:
        journal = Journal()
        children = [
            journal.child("a"),
            journal.child("t", restart=Restart.TRANSIENT),
            journal.child("m"),
            journal.child("x", restart=Restart.TEMPORARY),
            journal.child("z"),
        ]
        tree = await start_tree(supervisor("r", children, strategy=Strategy.ONE_FOR_ALL), journal.system())
        ref_of(tree, "r/t").cast("normal")
        await settle()
        await sup_of(tree).terminate_child("m")
        journal.take()
        ref_of(tree, "r/a").cast("boom")
        await settle()
        assert journal.take() == "↓a(error) ↓z(shutdown) ↓x(shutdown) ↑a ↑t ↑m ↑z"
        assert [info.id for info in await sup_of(tree).which_children()] == ["a", "t", "m", "z"]
        await tree.stop()

    simloop.run(main())


def test_a15_simultaneous_deaths_make_one_round_in_a_group_and_one_each_alone() -> None:
    """Three die at once: one_for_all counts one; one_for_one counts three and gives up at intensity 2."""

    async def main(strategy: Strategy, intensity: int) -> tuple[int, bool]:
        journal = Journal()
        children = [journal.child(id) for id in "abc"]
        tree = await start_tree(supervisor("r", children, strategy=strategy, intensity=intensity), journal.system())
        for id in "abc":
            ref_of(tree, f"r/{id}").cast("boom")
        await settle(100)
        alive = tree.alive
        await tree.stop()
        return len(journal.of(ChildRestarting)), alive

    assert simloop.run(main(Strategy.ONE_FOR_ALL, 1)) == (1, True)
    assert simloop.run(main(Strategy.ONE_FOR_ONE, 3)) == (3, True)
    assert simloop.run(main(Strategy.ONE_FOR_ONE, 2)) == (2, False)


def test_a16_no_start_before_the_last_stop() -> None:
    """one_for_all, b ignores its order to stop for 100 ms: it is killed at 100 ms, then all start."""

    async def main() -> None:
        journal = Journal()
        children = [
            journal.child("a"),
            journal.child("b", shutdown_s=0.1, cleanup_s=math.inf),
            journal.child("c"),
        ]
        loop = asyncio.get_running_loop()
        tree = await start_tree(supervisor("r", children, strategy=Strategy.ONE_FOR_ALL), journal.system())
        journal.take()
        ref_of(tree, "r/c").cast("boom")
        await settle()
        assert journal.take() == "↓c(error) ↓b(shutdown)"
        await asyncio.sleep(0.1)
        await settle()
        assert loop.time() == 0.1
        assert journal.take() == "↓a(shutdown) ↑a ↑b ↑c"
        [killed] = journal.of(ChildKilled)
        assert (killed.path, killed.incarnation, killed.grace_s) == ("r/b", 1, 0.1)
        await tree.stop()

    simloop.run(main())


@pytest.mark.parametrize(
    ("strategy", "log"),
    [
        (
            Strategy.ONE_FOR_ALL,
            "↓b(error) ↓d(shutdown) ↓c(shutdown) ↓a(shutdown) ↑a ↑b ↓b(shutdown) ↓a(shutdown) ↑a ↑b ↑c ↑d",
        ),
        # c failed, so c is what the next round starts at: a and b stay.
        (Strategy.REST_FOR_ONE, "↓b(error) ↓d(shutdown) ↓c(shutdown) ↑b ↑c ↑d"),
    ],
)
def test_a17_a_failed_restart_is_tried_again(strategy: Strategy, log: str) -> None:
    """c fails once in the restart: the whole group again, or only the rest again."""

    async def main() -> None:
        journal = Journal()
        tree = await start_tree(
            supervisor("r", [journal.child(id) for id in "abcd"], strategy=strategy, intensity=2),
            journal.system(),
        )
        journal.take()
        journal.failing["c"] = 1
        ref_of(tree, "r/b").cast("boom")
        await settle(60)
        assert journal.take() == log
        assert len(journal.of(ChildStartFailed)) == 1
        await tree.stop()

    simloop.run(main())


def test_a17_calls_and_a_stop_are_served_between_attempts() -> None:
    """While restarts fail again and again, operations get OTP's answers and a stop gets through."""

    async def main() -> None:
        journal = Journal()
        with no_leaks():
            tree = await start_tree(
                supervisor("r", [journal.child("a"), journal.child("b")], intensity=10_000), journal.system()
            )
            journal.failing["b"] = 1_000_000
            ref_of(tree, "r/b").cast("boom")
            await settle()
            sup = sup_of(tree)
            [a, b] = await sup.which_children()
            assert (a.state, b.state, b.handle) == ("up", "restarting", None)
            with pytest.raises(Restarting):
                await sup.restart_child("b")
            with pytest.raises(Restarting):
                await sup.delete_child("b")
            with pytest.raises(AlreadyPresent):
                await sup.start_child(journal.child("b"))
            await sup.terminate_child("b")
            failures = len(journal.of(ChildStartFailed))
            await settle()
            assert len(journal.of(ChildStartFailed)) == failures, "a terminated child is not tried again"
            assert [info.state for info in await sup.which_children()] == ["up", "undefined"]
            journal.failing["b"] = 0
            await sup.restart_child("b")
            journal.failing["b"] = 1_000_000
            ref_of(tree, "r/b").cast("boom")
            await settle()
            journal.take()
            await tree.stop()
            assert journal.take() == "↓a(shutdown)"

    simloop.run(main())


def test_a18_the_third_restart_within_the_period_is_one_too_many() -> None:
    """Intensity 2 tolerates two, from whichever child; what is older than the period is forgotten."""

    async def main() -> None:
        journal = Journal()
        tree = await start_tree(
            supervisor("r", [journal.child(id) for id in "abc"], intensity=2, period_s=10), journal.system()
        )
        ref_of(tree, "r/a").cast("boom")
        await asyncio.sleep(9)
        ref_of(tree, "r/b").cast("boom")
        await asyncio.sleep(2)
        ref_of(tree, "r/c").cast("boom")
        await settle()
        assert tree.alive, "the first is out of the period"
        ref_of(tree, "r/a").cast("boom")
        assert await tree.wait() == SHUTDOWN
        [gave_up] = journal.of(SupervisorGaveUp)
        assert (gave_up.path, gave_up.child, gave_up.error) == ("r", "a", "Boom: a")

    simloop.run(main())


def test_a18_failed_restarts_count_and_manual_operations_never_do() -> None:
    """A start that fails in a restart uses the budget up; terminate and restart by hand cost nothing."""

    async def main() -> None:
        journal = Journal()
        tree = await start_tree(supervisor("r", [journal.child("a")], intensity=3), journal.system())
        sup = sup_of(tree)
        for _ in range(10):
            await sup.terminate_child("a")
            await sup.restart_child("a")
        assert tree.alive
        journal.failing["a"] = 10
        ref_of(tree, "r/a").cast("boom")
        assert await tree.wait() == SHUTDOWN
        assert len(journal.of(ChildStartFailed)) == 3
        [gave_up] = journal.of(SupervisorGaveUp)
        assert gave_up.error == "StartFailed: r/a: InitFailed: a"

    simloop.run(main())


def test_a18_a_group_restart_counts_once() -> None:
    """one_for_all with intensity 1 and many children survives one death."""

    async def main() -> None:
        journal = Journal()
        children = [journal.child(id) for id in "abcdefgh"]
        tree = await start_tree(supervisor("r", children, strategy=Strategy.ONE_FOR_ALL, intensity=1), journal.system())
        ref_of(tree, "r/d").cast("boom")
        await settle(100)
        assert tree.alive
        ref_of(tree, "r/d").cast("boom")
        assert await tree.wait() == SHUTDOWN

    simloop.run(main())


@pytest.mark.parametrize("restart", [Restart.PERMANENT, Restart.TRANSIENT])
def test_a19_a_supervisor_gives_up_with_shutdown(restart: Restart) -> None:
    """A permanent sub-supervisor that gave up starts again with a fresh budget; a transient one does not."""

    async def main() -> None:
        journal = Journal()
        sub = supervisor("s", [journal.child("a")], intensity=1, restart=restart)
        tree = await start_tree(supervisor("r", [sub], intensity=1), journal.system())
        for _ in range(2):
            ref_of(tree, "r/s/a").cast("boom")
            await settle(60)
        assert len(journal.of(SupervisorGaveUp)) == 1
        if restart is Restart.TRANSIENT:
            assert [info.state for info in await sup_of(tree).which_children()] == ["undefined"]
            await tree.stop()
            return
        assert ref_of(tree, "r/s/a").incarnation == 1, "a new supervisor counts anew"
        ref_of(tree, "r/s/a").cast("boom")
        await settle(60)
        assert sup_of(tree, "r/s").incarnation == 2, "within the fresh budget"
        ref_of(tree, "r/s/a").cast("boom")
        assert await tree.wait() == SHUTDOWN
        assert [event.path for event in journal.of(SupervisorGaveUp)] == ["r/s", "r/s", "r"]

    simloop.run(main())


def test_a20_only_the_injected_clock_counts() -> None:
    """The budget follows the clock that was given, not the loop's and not the machine's."""

    async def main() -> None:
        journal = Journal()
        now_s = [100.0]
        tree = await start_tree(
            supervisor("r", [journal.child("a")], intensity=1, period_s=5),
            journal.system(clock=lambda: now_s[0]),
        )
        for _ in range(5):
            ref_of(tree, "r/a").cast("boom")
            await settle()
            now_s[0] += 5.1
        assert tree.alive, "each is alone in its period, though no loop time went by"
        await asyncio.sleep(1_000)
        now_s[0] -= 5.0
        ref_of(tree, "r/a").cast("boom")
        assert await tree.wait() == SHUTDOWN

    simloop.run(main())


def test_a21_the_root_gives_up_in_order() -> None:
    """The root that gives up stops its children backwards; the reason tells a caller to exit non-zero."""

    async def main() -> None:
        journal = Journal()
        with no_leaks():
            tree = await start_tree(supervisor("r", [journal.child(id) for id in "abc"], intensity=0), journal.system())
            journal.take()
            ref_of(tree, "r/b").cast("boom")
            assert await tree.wait() == SHUTDOWN
            assert journal.take() == "↓b(error) ↓c(shutdown) ↓a(shutdown)"
            assert len(journal.of(SupervisorGaveUp)) == 1
            assert await tree.stop() == SHUTDOWN, "a stop after the end is an answer, not an error"

    simloop.run(main())


def test_a22_a_restart_storm_leaves_turns_to_others() -> None:
    """While one child dies in every init under a huge budget, another task runs at least every few turns."""

    async def main() -> None:
        journal = Journal()
        tree = await start_tree(
            supervisor("r", [journal.child("a"), journal.child("b")], intensity=10**9), journal.system()
        )
        journal.failing["a"] = 10**9
        ref_of(tree, "r/a").cast("boom")
        per_turn = []
        for _ in range(500):
            before = len(journal.of(ChildStartFailed))
            await asyncio.sleep(0)
            per_turn.append(len(journal.of(ChildStartFailed)) - before)
        assert sum(per_turn) > 50, "the storm is on"
        assert max(per_turn) <= 1
        await tree.stop()

    simloop.run(main())


@pytest.mark.slow
def test_a22_ten_thousand_deaths_at_once_leave_turns_to_others() -> None:
    """5,000 children die in the same moment: no turn of the loop restarts more than a bounded number of them."""

    async def main() -> None:
        journal = Journal()
        gate = asyncio.get_running_loop().create_future()
        started = [0]

        async def start(child: Child) -> None:
            started[0] += 1
            child.ready()
            if child.incarnation == 1:
                await asyncio.shield(gate)
            else:
                await asyncio.sleep(math.inf)

        children = [ChildSpec(id=str(n), start=start) for n in range(5_000)]
        tree = await start_tree(supervisor("r", children, intensity=10**6), journal.system())
        gate.set_result(None)
        most = 0
        while len(journal.of(ChildStarted)) < 10_001:
            before = started[0]
            for _ in range(100):
                await asyncio.sleep(0)
            most = max(most, started[0] - before)
        assert most <= 100, "at most one a turn"
        await tree.stop()

    simloop.run(main())
