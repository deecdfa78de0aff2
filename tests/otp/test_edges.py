"""Where two ends meet: a stop during a failure, a cancel that init swallows, a halt deep in the tree."""

from __future__ import annotations

import asyncio
import contextlib
import math

import pytest

from serviceradar_poller.events.kernel import ChildExited
from serviceradar_poller.otp import (
    Child,
    ChildSpec,
    ExitReason,
    NoProcess,
    Restart,
    StartFailed,
    SupervisorRef,
    actor,
    start_tree,
    supervisor,
)
from serviceradar_poller.testing import simloop
from serviceradar_poller.testing.kernel import Journal, Member, ref_of, settle
from serviceradar_poller.testing.leaks import no_leaks


def test_a_stop_does_not_cut_the_cleanup_of_a_failed_plain_child_short() -> None:
    """A child that cleans up because its helper failed gets no second cancel from an order to stop."""

    async def main() -> None:
        journal = Journal()
        cleaned: list[float] = []

        async def fails() -> None:
            raise KeyError("helper")

        async def start(child: Child) -> None:
            child.ready()
            child.spawn(fails(), name="h")
            try:
                await asyncio.sleep(math.inf)
            finally:
                await asyncio.sleep(3)
                cleaned.append(asyncio.get_running_loop().time())

        tree = await start_tree(supervisor("r", [ChildSpec(id="p", start=start)]), journal.system())
        await asyncio.sleep(1)
        await tree.stop()
        assert cleaned == [3.0]
        assert [event.reason for event in journal.of(ChildExited)] == ["error", "shutdown"]

    simloop.run(main())


def test_a_cancel_that_an_init_swallows_is_not_lost() -> None:
    """An actor whose init eats the cancel of its stop leaves right after init, with its cleanup."""

    async def main() -> None:
        journal = Journal()

        class Deaf(Member):
            async def init(self) -> None:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(10)
                await super().init()

        with no_leaks():
            spec = supervisor("r", [actor("a", lambda: Deaf(journal, "a"))])
            starting = asyncio.create_task(start_tree(spec, journal.system()))
            await asyncio.sleep(1)
            starting.cancel()
            await asyncio.wait({starting})
            assert journal.take() == "↑a ↓a(shutdown)"
            assert asyncio.get_running_loop().time() == 1.0

    simloop.run(main())


def test_a_monitor_is_forgotten_with_its_owner() -> None:
    """Watchers that die leave nothing behind at a peer that lives on."""

    async def main() -> None:
        journal = Journal()

        def to_message(reason: ExitReason) -> object:
            raise AssertionError("told after its own end")

        async def watch(member: Member) -> None:
            member.monitor(peer, to_message)  # type: ignore[arg-type]
            member.stop()

        children = [journal.child("p"), journal.child("w", restart=Restart.PERMANENT)]
        tree = await start_tree(supervisor("r", children, intensity=100), journal.system())
        peer = ref_of(tree, "r/p")
        for _ in range(10):
            ref_of(tree, "r/w").cast(watch)
            await settle()
        process = tree.find("r/p")
        assert process is not None
        assert not process._watchers
        await tree.stop()

    simloop.run(main())


def test_a_halt_deep_in_the_tree_restarts_nobody_while_others_stop() -> None:
    """The child that raised SystemExit stays down though its supervisor's turn to stop comes later."""

    async def main() -> None:
        journal = Journal()

        async def leave(member: Member) -> None:
            raise SystemExit(2)

        children = [supervisor("s", [journal.child("a")]), journal.child("slow", cleanup_s=2.0)]
        tree = await start_tree(supervisor("r", children), journal.system())
        journal.take()
        ref_of(tree, "r/s/a").cast(leave)
        with pytest.raises(SystemExit):
            await tree.wait()
        assert journal.take() == "↓a(error) ↓slow(shutdown)"

    simloop.run(main())


def test_an_early_failure_is_not_mistaken_for_a_late_start() -> None:
    """An init that failed while its helper still cleans up reports its own error, not the start's timeout."""

    async def main() -> None:
        journal = Journal()

        async def lingers() -> None:
            try:
                await asyncio.sleep(math.inf)
            finally:
                await asyncio.sleep(3)

        async def start(child: Child) -> None:
            child.spawn(lingers(), name="h")
            await asyncio.sleep(1)
            raise KeyError("early")

        with no_leaks():
            with pytest.raises(StartFailed) as caught:
                await start_tree(ChildSpec(id="p", start=start, start_timeout_s=2.0), journal.system())
            assert isinstance(caught.value.cause, KeyError)
            assert asyncio.get_running_loop().time() == 4.0

    simloop.run(main())


def test_a_supervisor_that_stops_answers_no_more() -> None:
    """While its children still stop, an operation raises NoProcess at once."""

    async def main() -> None:
        journal = Journal()
        tree = await start_tree(supervisor("r", [journal.child("a", cleanup_s=2.0)]), journal.system())
        sup = tree.system.whereis("r")
        assert isinstance(sup, SupervisorRef)
        stopping = asyncio.create_task(tree.stop())
        await asyncio.sleep(1)
        with pytest.raises(NoProcess):
            await sup.which_children()
        assert asyncio.get_running_loop().time() == 1.0
        await asyncio.wait({stopping})

    simloop.run(main())
