"""Processes that have no task while they have nothing to do: nobody can tell, but by their memory."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable

import pytest

from serviceradar_poller.events.kernel import ChildExited
from serviceradar_poller.otp import Ref, SupervisorRef, Tree, start_tree, supervisor
from serviceradar_poller.otp.process import Process
from serviceradar_poller.otp.tree import AT_REST
from serviceradar_poller.testing import simloop
from serviceradar_poller.testing.kernel import Journal, Member, Order, ref_of, settle
from serviceradar_poller.testing.leaks import no_leaks

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="nobody")


@pytest.fixture
def rests() -> bool:
    """Take the place of the fixture that runs every test twice: here it has to be said."""
    return True


@pytest.fixture(autouse=True)
def _resting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Member, "rests", True, raising=False)


def play(scenario: Callable[[Tree, Ref[Order], Journal], Awaitable[None]]) -> None:
    """Run *scenario* on a supervisor ``r`` of one actor ``a``, both at rest."""

    async def main() -> None:
        journal = Journal()
        with no_leaks():
            tree = await start_tree(supervisor("r", [journal.child("a", shutdown_s=1.0)]), journal.system())
            await settle()
            journal.take()
            await scenario(tree, ref_of(tree, "r/a"), journal)
            await tree.stop()
            assert tree.process_count() == 0

    simloop.run(main())


def process_of(tree: Tree, path: str) -> Process:
    """Return the kernel's side of a live child."""
    process = tree.find(path)
    assert process is not None
    return process


def test_who_has_nothing_to_do_has_no_task() -> None:
    """Actor and supervisor are up without a task; a message is answered, and they rest again."""

    async def scenario(tree: Tree, ref: Ref[Order], journal: Journal) -> None:
        for _ in range(3):
            assert [process_of(tree, path).task for path in ("r", "r/a")] == [None, None]
            assert tree.stack("r/a") == AT_REST
            assert [tree.inspect().state, tree.inspect().children[0].state] == ["up", "up"]
            assert await ref.call("hello") == "hello"
            await settle()
        assert ref.incarnation == 1
        assert journal.take() == ""
        assert not journal.of(ChildExited)

    play(scenario)


def test_messages_are_handled_in_order_across_rests() -> None:
    """Those that come before, while and after it is woken are handled once each, in the order sent."""

    async def scenario(tree: Tree, ref: Ref[Order], journal: Journal) -> None:
        seen: list[int] = []

        def note(number: int) -> Callable[[Member], Awaitable[object]]:
            async def handle(member: Member) -> object:
                seen.append(number)
                return None

            return handle

        for number in range(100):
            assert ref.cast(note(number))
            await settle(number % 5)
        await settle()
        assert seen == list(range(100))

    play(scenario)


@pytest.mark.parametrize("turns", range(4))
def test_a_stop_finds_it_wherever_it_is(turns: int) -> None:
    """Stopped at rest, just woken or at work, it cleans up once, and a supervisor stops its children in order."""

    async def scenario(tree: Tree, ref: Ref[Order], journal: Journal) -> None:
        if turns:
            ref.cast("hello")
            await settle(turns - 1)
        await tree.stop()
        assert journal.take() == "↓a(shutdown)"
        assert [event.reason for event in journal.of(ChildExited)] == ["shutdown", "shutdown"]

    play(scenario)


@pytest.mark.parametrize("turns", range(4))
def test_a_kill_finds_it_wherever_it_is(turns: int) -> None:
    """Killed at rest, just woken or at work, it is gone at once, without cleanup."""

    async def scenario(tree: Tree, ref: Ref[Order], journal: Journal) -> None:
        if turns:
            ref.cast("hello")
            await settle(turns - 1)
        await tree.stop(kill=True)
        assert journal.take() == ""
        assert {event.reason for event in journal.of(ChildExited)} <= {"killed", "shutdown"}
        assert not ref.alive

    play(scenario)


def test_a_supervisor_at_rest_restarts_and_serves() -> None:
    """It is woken by the end of a child, and by an operation."""

    async def scenario(tree: Tree, ref: Ref[Order], journal: Journal) -> None:
        ref.cast("boom")
        await settle()
        assert journal.take() == "↓a(error) ↑a"
        sup = tree.system.whereis("r")
        assert isinstance(sup, SupervisorRef)
        assert [info.state for info in await sup.which_children()] == ["up"]
        await sup.start_child(journal.child("b"))
        await settle()
        assert process_of(tree, "r").task is None
        tree.crash("r", RuntimeError("injected"))
        assert (await tree.wait()).kind == "error"
        assert journal.take() == "↑b ↓b(shutdown) ↓a(shutdown)"

    play(scenario)


def test_helpers_timers_and_stop_reach_it_at_rest() -> None:
    """A helper outlives the message that spawned it, spawns another one, and a timer's message makes it leave."""

    async def scenario(tree: Tree, ref: Ref[Order], journal: Journal) -> None:
        done: list[str] = []

        async def second() -> None:
            await asyncio.sleep(1)
            done.append("second")

        async def first(member: Member) -> None:
            await asyncio.sleep(1)
            done.append("first")
            member.spawn(second(), name="second")

        async def begin(member: Member) -> object:
            member.spawn(first(member), name="first")
            member.send_after(5.0, "normal")
            return None

        await ref.call(begin)
        await settle()
        assert process_of(tree, "r/a").task is None
        assert tree.inspect().children[0].helpers == 1
        await asyncio.sleep(3)
        assert done == ["first", "second"]
        await asyncio.sleep(3)
        assert journal.take() == "↓a(normal) ↑a"

    play(scenario)


def test_it_does_not_take_over_the_context_of_who_wakes_it() -> None:
    """A context variable of the sender is not seen by the actor, and not kept by it."""

    async def scenario(tree: Tree, ref: Ref[Order], journal: Journal) -> None:
        async def look(member: Member) -> object:
            return VARIABLE.get()

        VARIABLE.set("the sender")
        assert await ref.call(look) == "nobody"

    play(scenario)
