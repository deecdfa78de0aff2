"""Actors: mailbox, calls, timers, monitors, deferred replies."""

from __future__ import annotations

import asyncio
import gc
import math
import weakref

import pytest

from serviceradar_poller.events.kernel import ChildExited, ChildKilled, MailboxOverflow
from serviceradar_poller.otp import (
    BRUTAL_KILL,
    CallTimeout,
    DeadlockError,
    ExitReason,
    MailboxFull,
    NoProcess,
    PeerExited,
    Reply,
    Restart,
    System,
    actor,
    quote_id,
    start_tree,
    supervisor,
)
from serviceradar_poller.testing import simloop
from serviceradar_poller.testing.kernel import Boom, Journal, Member, ref_of, settle
from serviceradar_poller.testing.leaks import no_leaks


def test_messages_keep_their_order_and_calls_get_answers() -> None:
    """Casts and calls of one sender are handled one at a time, in the order sent."""

    async def main() -> None:
        journal = Journal()
        seen: list[int] = []

        def note(n: int) -> object:
            async def run(member: Member) -> int:
                await asyncio.sleep(0.1)
                seen.append(n)
                return n

            return run

        tree = await start_tree(journal.child("a"), journal.system())
        ref = ref_of(tree, "a")
        for n in range(5):
            assert ref.cast(note(n))  # type: ignore[arg-type]
        assert await ref.call(note(5)) == 5  # type: ignore[arg-type]
        assert seen == [0, 1, 2, 3, 4, 5]
        await tree.stop()

    simloop.run(main())


def test_a_full_mailbox_refuses_counts_and_tells_once() -> None:
    """Beyond its limit a cast is False and a call raises; one event an episode, the count in inspection."""

    async def main() -> None:
        journal = Journal()

        class Small(Member):
            mailbox_limit = 3

        async def block(member: Member) -> None:
            await asyncio.sleep(10)

        tree = await start_tree(actor("a", lambda: Small(journal, "a")), journal.system())
        ref = ref_of(tree, "a")
        for _ in range(2):
            ref.cast(block)
            await settle()
            assert [ref.cast("x") for _ in range(5)] == [True, True, True, False, False]
            with pytest.raises(MailboxFull):
                await ref.call("x")
            await asyncio.sleep(20)
        assert [(event.path, event.limit) for event in journal.of(MailboxOverflow)] == [("a", 3)] * 2
        mailbox = tree.inspect().mailbox
        assert mailbox is not None
        assert (mailbox.length, mailbox.limit, mailbox.dropped) == (0, 3, 6)
        await tree.stop()

    simloop.run(main())


def test_a_call_fails_in_its_four_ways() -> None:
    """Too late, the peer ended, the peer is dead, and oneself: each has its error."""

    async def main() -> None:
        journal = Journal()

        async def slow(member: Member) -> None:
            await asyncio.sleep(10)

        async def oneself(member: Member) -> None:
            with pytest.raises(DeadlockError):
                await member.ref.call("x")

        tree = await start_tree(supervisor("r", [journal.child("a", restart=Restart.TEMPORARY)]), journal.system())
        with no_leaks():
            ref = ref_of(tree, "r/a")
            await ref.call(oneself)
            with pytest.raises(CallTimeout):
                await ref.call(slow, timeout_s=1.0)
            assert asyncio.get_running_loop().time() == 1.0
            assert await ref.call("still there", timeout_s=math.inf) == "still there"
            queued = asyncio.create_task(ref.call("boom"))
            behind = asyncio.create_task(ref.call("x"))
            await asyncio.wait({queued, behind})
            for task in (queued, behind):
                error = task.exception()
                assert isinstance(error, PeerExited)
                assert isinstance(error.reason.error, Boom)
            with pytest.raises(NoProcess):
                await ref.call("x")
            assert ref.exit_reason is not None
            assert ref.exit_reason.abnormal
        await tree.stop()

    simloop.run(main())


def test_an_answer_may_come_later() -> None:
    """A deferred reply answers after the handler has returned; at the actor's end it becomes PeerExited."""

    async def main() -> None:
        journal = Journal()
        replies: list[Reply] = []

        async def defer(member: Member) -> str:
            replies.append(member.defer_reply())
            return "not this"

        tree = await start_tree(journal.child("a"), journal.system())
        ref = ref_of(tree, "a")
        first, second, third = (asyncio.create_task(ref.call(defer)) for _ in range(3))
        await settle()
        assert len(replies) == 3
        assert await ref.call("meanwhile") == "meanwhile"
        replies[1].ok("two")
        replies[1].ok("twice is harmless")
        replies[0].error(KeyError("one"))
        await asyncio.wait({first, second})
        assert second.result() == "two"
        assert isinstance(first.exception(), KeyError)
        ref.cast(defer)
        await settle()
        replies[3].ok("to nobody")
        await tree.stop()
        await asyncio.wait({third})
        assert isinstance(third.exception(), PeerExited)

    simloop.run(main())


def test_timers_are_messages_that_die_with_the_actor() -> None:
    """A timer arrives once at its time, not after cancel, not after the end, and not refused when full."""

    async def main() -> None:
        journal = Journal()
        times: list[float] = []

        async def note(member: Member) -> None:
            times.append(asyncio.get_running_loop().time())

        async def prepare(member: Member) -> None:
            member.send_after(1.0, note)
            member.send_after(2.0, note).cancel()
            member.send_after(3.0, note)
            member.send_after(50.0, note)

        class Closed(Member):
            mailbox_limit = 1

        tree = await start_tree(actor("a", lambda: Closed(journal, "a")), journal.system())
        with no_leaks():
            ref = ref_of(tree, "a")
            await ref.call(prepare)
            await asyncio.sleep(10)
            assert times == [1.0, 3.0]
            await tree.stop()

    simloop.run(main())


def test_a_timer_that_fired_leaves_no_garbage() -> None:
    """What a timer brought is gone when it has been handled: actors set one for each thing they do, for years."""

    async def main() -> None:
        journal = Journal()

        class Note:
            async def __call__(self, member: Member) -> None:
                pass

        notes: list[weakref.ref[Note]] = []

        async def prepare(member: Member) -> None:
            for delay_s in (1.0, 2.0, 3.0):
                note = Note()
                notes.append(weakref.ref(note))
                timer = member.send_after(delay_s, note)
            timer.cancel()

        tree = await start_tree(journal.child("a"), journal.system())
        gc.collect()
        gc.disable()
        try:
            await ref_of(tree, "a").call(prepare)
            await asyncio.sleep(10)
            assert [note() for note in notes] == [None] * 3
        finally:
            gc.enable()
        await tree.stop()

    simloop.run(main())


def test_a_monitor_tells_the_end_once() -> None:
    """The monitor's message comes at the peer's end, at once when it is dead, and never after one's own end."""

    async def main() -> None:
        journal = Journal()
        told: list[str] = []

        def to_message(reason: ExitReason) -> object:
            async def note(member: Member) -> None:
                told.append(str(reason))

            return note

        children = [journal.child(id, restart=Restart.TEMPORARY) for id in "abc"]
        tree = await start_tree(supervisor("r", children), journal.system())
        a, b, c = (ref_of(tree, f"r/{id}") for id in "abc")

        async def watch_b(member: Member) -> None:
            member.monitor(b, to_message)  # type: ignore[arg-type]

        await a.call(watch_b)
        await c.call(watch_b)
        c.cast("normal")
        await settle()
        assert told == []
        b.cast("boom")
        await settle()
        assert told == ["Boom: b"]
        await a.call(watch_b)
        await settle()
        assert told == ["Boom: b", "Boom: b"]
        await tree.stop()

    simloop.run(main())


@pytest.mark.parametrize("shutdown_s", [2.0, BRUTAL_KILL])
def test_a_crashed_actors_cleanup_is_bounded(shutdown_s: object) -> None:
    """A cleanup after a crash that never ends is killed after the grace, and the restart goes on."""

    async def main() -> None:
        journal = Journal()
        child = journal.child("a", cleanup_s=math.inf, shutdown_s=shutdown_s)
        tree = await start_tree(supervisor("r", [child]), journal.system())
        ref_of(tree, "r/a").cast("boom")
        await asyncio.sleep(6)
        [killed] = journal.of(ChildKilled)
        assert killed.grace_s == (5.0 if shutdown_s is BRUTAL_KILL else 2.0)
        assert ref_of(tree, "r/a").incarnation == 2
        tree.stop_now()
        await tree.wait()

    simloop.run(main())


def test_an_order_to_stop_does_not_cut_a_cleanup_short() -> None:
    """A stop that arrives while a crash is being cleaned up waits for it, within the grace."""

    async def main() -> None:
        journal = Journal()
        done: list[float] = []

        class Careful(Member):
            async def terminate(self, reason: ExitReason) -> None:
                await asyncio.sleep(3)
                done.append(asyncio.get_running_loop().time())

        tree = await start_tree(supervisor("r", [actor("a", lambda: Careful(journal, "a"))]), journal.system())
        ref_of(tree, "r/a").cast("boom")
        await asyncio.sleep(1)
        await tree.stop()
        assert done == [3.0]
        assert [event.reason for event in journal.of(ChildExited)] == ["error", "shutdown"]

    simloop.run(main())


def test_an_endless_supply_of_messages_leaves_turns_to_others() -> None:
    """An actor that always has a message, and never waits, still yields to the loop."""

    async def main() -> None:
        journal = Journal()

        async def again(member: Member) -> None:
            member.state += 1
            member.ref.cast(again)

        tree = await start_tree(journal.child("a"), journal.system())
        ref_of(tree, "a").cast(again)
        await settle(20)
        await tree.stop()

    simloop.run(main())


def test_the_dead_are_forgotten() -> None:
    """Neither a kept Ref nor a kept exit reason keeps a crashed actor's state alive, without the help of gc."""

    async def main() -> None:
        journal = Journal()

        class Heavy(Member):
            pass

        made: list[weakref.ref[Heavy]] = []

        def factory() -> Heavy:
            heavy = Heavy(journal, "a")
            made.append(weakref.ref(heavy))
            return heavy

        tree = await start_tree(supervisor("r", [actor("a", factory)], intensity=9), journal.system())
        ref = ref_of(tree, "r/a")
        gc.collect()
        gc.disable()
        try:
            with pytest.raises(PeerExited) as caught:
                await ref.call("boom")
            await settle()
            assert ref.exit_reason is not None
            assert caught.value.reason.error is not None
            assert caught.value.reason.error.__traceback__ is None
            assert [heavy() is not None for heavy in made] == [False, True]
        finally:
            gc.enable()
        await tree.stop()

    simloop.run(main())


def test_a_receiver_of_events_that_raises_harms_nobody() -> None:
    """An emit that raises is reported to the loop; supervision goes on."""

    async def main() -> None:
        reported: list[object] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))
        journal = Journal()

        def emit(event: object) -> None:
            raise ZeroDivisionError

        tree = await start_tree(supervisor("r", [journal.child("a")]), System(emit=emit))
        ref_of(tree, "r/a").cast("boom")
        await settle()
        assert journal.take() == "↑a ↓a(error) ↑a"
        await tree.stop()
        assert reported
        assert all(isinstance(error, ZeroDivisionError) for error in reported)

    simloop.run(main())


def test_any_name_makes_an_id() -> None:
    """quote_id turns every name into an id, different names into different ones, and leaves plain ones alone."""
    names = ["edge-01", "a/b", "a%2Fb", "", "%", "tab\there", "ünïcode", "a%b"]
    ids = [quote_id(name) for name in names]
    assert ids[0] == "edge-01"
    assert ids[6] == "ünïcode"
    assert len(set(ids)) == len(names)
    for id in ids:
        actor(id, lambda: Member(Journal(), "x"))
