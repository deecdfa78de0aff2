"""Acceptance cases 35 to 38: operations, dynamic supervisors, auto_shutdown, events."""

from __future__ import annotations

import asyncio
import math

import pytest

from serviceradar_poller.events.kernel import ChildExited
from serviceradar_poller.otp import (
    NORMAL,
    SHUTDOWN,
    AlreadyPresent,
    AlreadyStarted,
    AutoShutdown,
    Child,
    ChildCounts,
    ChildSpec,
    ChildType,
    MaxChildren,
    NoProcess,
    NotFound,
    Quarantine,
    Restart,
    Running,
    SpecError,
    StartFailed,
    SupervisorRef,
    Tree,
    dynamic_supervisor,
    start_tree,
    supervisor,
)
from serviceradar_poller.testing import simloop
from serviceradar_poller.testing.kernel import InitFailed, Journal, ref_of, settle


def sup_of(tree: Tree, path: str = "r") -> SupervisorRef:
    """Return the ref of a live supervisor."""
    sup = tree.system.whereis(path)
    assert isinstance(sup, SupervisorRef)
    return sup


def test_a35_operations_answer_as_in_otp() -> None:
    """Each operation has OTP's answer for a child that is up, down, or not there."""

    async def main() -> None:
        journal = Journal()
        tree = await start_tree(supervisor("r", [journal.child("a")]), journal.system())
        sup = sup_of(tree)
        a = ref_of(tree, "r/a")

        with pytest.raises(AlreadyStarted) as started:
            await sup.start_child(journal.child("a"))
        assert started.value.handle is a
        with pytest.raises(Running):
            await sup.restart_child("a")
        with pytest.raises(Running):
            await sup.delete_child("a")
        for operation in (sup.terminate_child, sup.restart_child, sup.delete_child):
            with pytest.raises(NotFound):
                await operation("g")
        with pytest.raises(SpecError):
            await sup.start_child(journal.child("s", restart=Restart.TRANSIENT, significant=True))

        await sup.terminate_child("a")
        await sup.terminate_child("a")
        with pytest.raises(AlreadyPresent):
            await sup.start_child(journal.child("a"))
        [info] = await sup.which_children()
        assert (info.id, info.handle, info.state, info.type) == ("a", None, "undefined", ChildType.WORKER)
        again = await sup.restart_child("a")
        assert again is tree.system.whereis("r/a")
        assert again is not a

        journal.failing["b"] = 1
        with pytest.raises(StartFailed) as failure:
            await sup.start_child(journal.child("b"))
        assert isinstance(failure.value.cause, InitFailed)
        assert [info.id for info in await sup.which_children()] == ["a"], "nothing is kept of a failed start"
        await sup.start_child(journal.child("b"))
        await sup.start_child(supervisor("s", []))
        await sup.terminate_child("b")
        assert await sup.count_children() == ChildCounts(specs=3, active=2, supervisors=1, workers=2)
        journal.failing["b"] = 1
        with pytest.raises(StartFailed):
            await sup.restart_child("b")
        await sup.delete_child("b")
        assert [info.id for info in await sup.which_children()] == ["a", "s"]
        journal.ignoring.add("i")
        assert await sup.start_child(journal.child("i")) is None
        assert [info.state for info in await sup.which_children()] == ["up", "up", "undefined"]
        await tree.stop()

    simloop.run(main())


def test_a35_a_dead_supervisor_says_so_at_once() -> None:
    """Every operation on a dead supervisor raises NoProcess, and so does one that waits when it ends."""

    async def main() -> None:
        journal = Journal()
        tree = await start_tree(
            supervisor("r", [journal.child("a", cleanup_s=1.0), journal.child("b")]), journal.system()
        )
        sup = sup_of(tree)
        slow = asyncio.create_task(sup.terminate_child("a"))
        waits = asyncio.create_task(sup.which_children())
        await asyncio.sleep(0.5)
        stopping = asyncio.create_task(tree.stop())
        await asyncio.wait({slow, waits, stopping})
        assert isinstance(slow.exception(), NoProcess)
        assert isinstance(waits.exception(), NoProcess)
        assert not sup.alive
        now = asyncio.get_running_loop().time()
        for call in (
            sup.start_child(journal.child("x")),
            sup.restart_child("a"),
            sup.terminate_child("a"),
            sup.delete_child("a"),
            sup.which_children(),
            sup.count_children(),
        ):
            with pytest.raises(NoProcess):
                await call
        assert asyncio.get_running_loop().time() == now

    simloop.run(main())


def test_a36_max_children_counts_the_restarting_ones() -> None:
    """A dynamic supervisor refuses the child beyond its limit, also while one waits for its restart."""

    async def main() -> None:
        journal = Journal()
        spec = dynamic_supervisor("r", intensity=1, period_s=5, max_children=2)
        tree = await start_tree(spec, journal.system())
        sup = sup_of(tree)
        await sup.start_child(journal.child("a", quarantine=Quarantine(min_s=5, max_s=60)))
        await sup.start_child(journal.child("b", restart=Restart.TEMPORARY))
        ref_of(tree, "r/a").cast("boom")
        await settle()
        [a, _] = await sup.which_children()
        assert (a.state, a.quarantined) == ("restarting", True)
        with pytest.raises(MaxChildren) as refused:
            await sup.start_child(journal.child("c"))
        assert refused.value.limit == 2
        ref_of(tree, "r/b").cast("normal")
        await settle()
        await sup.start_child(journal.child("c"))
        await tree.stop()

    simloop.run(main())


@pytest.mark.parametrize("mode", [AutoShutdown.ANY_SIGNIFICANT, AutoShutdown.ALL_SIGNIFICANT])
def test_a37_auto_shutdown(mode: AutoShutdown) -> None:
    """The supervisor ends with shutdown when any, or the last, significant child has ended by itself."""

    async def main() -> None:
        journal = Journal()
        children = [
            journal.child("a", restart=Restart.TRANSIENT, significant=True),
            journal.child("b", restart=Restart.TEMPORARY, significant=True),
            journal.child("c"),
            journal.child("d", restart=Restart.TRANSIENT),
        ]
        tree = await start_tree(supervisor("r", children, auto_shutdown=mode, intensity=3), journal.system())
        journal.take()
        ref_of(tree, "r/d").cast("normal")
        ref_of(tree, "r/a").cast("boom")
        await settle()
        assert journal.take() == "↓d(normal) ↓a(error) ↑a", "neither d nor a restart ends it"
        ref_of(tree, "r/a").cast("normal")
        if mode is AutoShutdown.ALL_SIGNIFICANT:
            await settle()
            assert tree.alive
            ref_of(tree, "r/b").cast("boom")
        assert await tree.wait() == SHUTDOWN

    simloop.run(main())


def test_a37_a_manual_stop_is_no_reason_to_end() -> None:
    """terminate_child of a significant child does not shut the supervisor down."""

    async def main() -> None:
        journal = Journal()
        child = journal.child("a", restart=Restart.TRANSIENT, significant=True)
        tree = await start_tree(supervisor("r", [child], auto_shutdown=AutoShutdown.ANY_SIGNIFICANT), journal.system())
        await sup_of(tree).terminate_child("a")
        await settle()
        assert tree.alive
        await tree.stop()

    simloop.run(main())


def test_a38_the_events_tell_the_life_of_every_child_in_order() -> None:
    """Started, exit with reason and traceback, restart, kill, give-up: each once, in order, with its incarnation."""

    async def main() -> None:
        journal = Journal()
        children = [journal.child("a"), journal.child("h", cleanup_s=math.inf, shutdown_s=1.0)]
        tree = await start_tree(supervisor("r", children, intensity=1), journal.system())
        ref_of(tree, "r/a").cast("boom")
        await settle()
        ref_of(tree, "r/a").cast("boom")
        await tree.wait()
        shown = []
        for event in journal.events:
            name, path = type(event).__name__, getattr(event, "path", "")
            shown.append((name, path, getattr(event, "incarnation", 0)))
        assert shown == [
            ("ChildStarted", "r/a", 1),
            ("ChildStarted", "r/h", 1),
            ("ChildStarted", "r", 1),
            ("ChildExited", "r/a", 1),
            ("ChildRestarting", "r/a", 0),
            ("ChildStarted", "r/a", 2),
            ("ChildExited", "r/a", 2),
            ("SupervisorGaveUp", "r", 0),
            ("ChildKilled", "r/h", 1),
            ("ChildExited", "r/h", 1),
            ("ChildExited", "r", 1),
        ]
        first = journal.of(ChildExited)[0]
        assert (first.reason, first.error) == ("error", "Boom: a")
        assert "raise Boom(self.id)" in first.traceback

    simloop.run(main())


def test_inspection_shows_every_child() -> None:
    """inspect lists path, state, incarnation, age, mailbox and helpers of all, in start order; stack says where."""

    async def main() -> None:
        journal = Journal()

        async def start(child: Child) -> None:
            child.ready()
            await asyncio.sleep(math.inf)

        quarantined = journal.child("q", quarantine=Quarantine(min_s=100, max_s=100))
        sub = supervisor("s", [journal.child("a"), ChildSpec(id="p", start=start), quarantined])
        tree = await start_tree(supervisor("r", [sub]), journal.system())
        ref_of(tree, "r/s/q").cast("boom")
        await asyncio.sleep(5)
        await sup_of(tree, "r/s").start_child(journal.child("i", restart=Restart.TRANSIENT))
        await sup_of(tree, "r/s").terminate_child("i")
        root = tree.inspect()
        [s] = root.children
        shown = [(node.path, node.state, node.incarnation, node.age_s) for node in (root, s, *s.children)]
        assert shown == [
            ("r", "up", 1, 5.0),
            ("r/s", "up", 1, 5.0),
            ("r/s/a", "up", 1, 5.0),
            ("r/s/p", "up", 1, 5.0),
            ("r/s/q", "restarting", 1, 0.0),
            ("r/s/i", "undefined", 1, 0.0),
        ]
        assert s.children[0].mailbox is not None
        assert (s.children[0].mailbox.length, s.children[0].mailbox.limit) == (0, 1_000)
        assert tree.process_count() == 4
        assert "start" in tree.stack("r/s/p")
        assert tree.stack("r/s/q") == ""
        assert tree.system.whereis("r/s/none") is None
        assert tree.system.whereis("x") is None
        assert tree.crash("r/s/none", KeyError()) is False
        await tree.stop()
        assert tree.inspect().state == "undefined"

    simloop.run(main())


def test_an_injected_crash_is_a_crash() -> None:
    """crash ends an actor with cleanup, a plain child by cancel, and each is restarted."""

    async def main() -> None:
        journal = Journal()

        async def start(child: Child) -> None:
            child.ready()
            await asyncio.sleep(math.inf)

        children = [journal.child("a"), ChildSpec(id="p", start=start)]
        tree = await start_tree(supervisor("r", children, intensity=5), journal.system())
        for path in ("r/a", "r/p"):
            assert tree.crash(path, RuntimeError("operator"))
        await settle()
        assert [(event.path, event.reason, event.error) for event in journal.of(ChildExited)] == [
            ("r/a", "error", "RuntimeError: operator"),
            ("r/p", "error", "RuntimeError: operator"),
        ]
        assert journal.take() == "↑a ↓a(error) ↑a"
        assert [node.restarts for node in tree.inspect().children] == [1, 1]
        await tree.stop()

    simloop.run(main())


def test_a_tree_without_a_supervisor_is_one_child() -> None:
    """The root may be an actor; its normal end is the tree's."""

    async def main() -> None:
        journal = Journal()
        tree = await start_tree(journal.child("a"), journal.system())
        ref_of(tree, "a").cast("normal")
        assert await tree.wait() == NORMAL

    simloop.run(main())
