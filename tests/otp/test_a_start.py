"""Acceptance cases 1 to 12: start, restart types."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import pytest

from serviceradar_poller.events.kernel import ChildExited, ChildStartFailed, SupervisorGaveUp
from serviceradar_poller.otp import (
    BRUTAL_KILL,
    SHUTDOWN,
    Actor,
    AutoShutdown,
    Child,
    ChildSpec,
    ChildType,
    EndedEarly,
    Quarantine,
    Restart,
    SpecError,
    StartFailed,
    Strategy,
    SupervisorRef,
    actor,
    dynamic_supervisor,
    start_tree,
    supervisor,
)
from serviceradar_poller.testing import simloop
from serviceradar_poller.testing.kernel import InitFailed, Journal, Member, ref_of, settle, task_of
from serviceradar_poller.testing.leaks import no_leaks


def test_a01_children_start_one_after_another() -> None:
    """b's init begins only after a is ready, and the start returns after the last."""

    async def main() -> None:
        journal = Journal()
        loop = asyncio.get_running_loop()
        begun = {}

        async def start(child: Child) -> None:
            begun[child.path] = loop.time()
            await asyncio.sleep(1)
            journal.entries.append(child.path)
            child.ready()
            await asyncio.sleep(math.inf)

        tree = await start_tree(supervisor("r", [ChildSpec(id=id, start=start) for id in "abc"]), journal.system())
        assert journal.entries == ["r/a", "r/b", "r/c"]
        assert begun == {"r/a": 0.0, "r/b": 1.0, "r/c": 2.0}
        assert loop.time() == 3.0
        await tree.stop()

    simloop.run(main())


def test_a02_a_stop_goes_backwards() -> None:
    """A stop is the reverse of the start, and the supervisor exits with shutdown."""

    async def main() -> None:
        journal = Journal()
        with no_leaks():
            tree = await start_tree(supervisor("r", [journal.child(id) for id in "abc"]), journal.system())
            assert journal.take() == "↑a ↑b ↑c"
            assert await tree.stop() == SHUTDOWN
            assert journal.take() == "↓c(shutdown) ↓b(shutdown) ↓a(shutdown)"
            assert tree.process_count() == 0

    simloop.run(main())


def test_a03_a_failed_init_rolls_the_start_back() -> None:
    """c fails: b and a stop, d never starts, the error names c and keeps its cause, nothing is left or retried."""

    async def main() -> None:
        journal = Journal()
        journal.failing["c"] = 1
        with no_leaks():
            with pytest.raises(StartFailed) as caught:
                await start_tree(supervisor("r", [journal.child(id) for id in "abcd"]), journal.system())
            assert caught.value.path == "r/c"
            assert isinstance(caught.value.cause, InitFailed)
            assert caught.value.__cause__ is caught.value.cause
            assert "raise InitFailed" in caught.value.traceback
            assert journal.take() == "↑a ↑b ↓b(shutdown) ↓a(shutdown)"
            assert [event.path for event in journal.of(ChildStartFailed)] == ["r/c", "r"]
            assert journal.failing["c"] == 0

    simloop.run(main())


async def _raises(child: Child) -> None:
    raise KeyError(child.path)


async def _returns(child: Child) -> None:
    await asyncio.sleep(0)


async def _ready_twice(child: Child) -> None:
    child.ready()
    child.ready()


def _no_coroutine(child: Child) -> Any:
    return 42


@pytest.mark.parametrize(("start", "cause"), [(_raises, KeyError), (_returns, EndedEarly), (_no_coroutine, TypeError)])
def test_a04_an_init_that_raises_or_returns_nonsense_is_a_failed_start(
    start: Callable[[Child], Any], cause: type[Exception]
) -> None:
    """An exception, an early return and a start that is no coroutine all fail the start and name the child."""

    async def main() -> None:
        journal = Journal()
        with no_leaks():
            with pytest.raises(StartFailed) as caught:
                await start_tree(
                    supervisor("r", [journal.child("a"), ChildSpec(id="x", start=start)]), journal.system()
                )
            assert caught.value.path == "r/x"
            assert isinstance(caught.value.cause, cause)
            assert journal.take() == "↑a ↓a(shutdown)"

    simloop.run(main())


def test_a04_ready_twice_is_a_crash() -> None:
    """A second ready is a bug of the child, which ends it."""

    async def main() -> None:
        journal = Journal()
        spec = ChildSpec(id="x", start=_ready_twice, restart=Restart.TEMPORARY)
        tree = await start_tree(supervisor("r", [spec]), journal.system())
        await settle()
        [exited] = journal.of(ChildExited)
        assert "ready twice" in exited.error
        await tree.stop()

    simloop.run(main())


def test_a05_ignore_keeps_the_spec() -> None:
    """The start goes on without a child that says ignore; its spec stays, a temporary one is dropped."""

    async def main() -> None:
        journal = Journal()
        journal.ignoring = {"b", "t"}
        children = [
            journal.child("a"),
            journal.child("b"),
            journal.child("t", restart=Restart.TEMPORARY),
            journal.child("c"),
        ]
        tree = await start_tree(supervisor("r", children), journal.system())
        assert journal.take() == "↑a ↑c"
        sup = tree.system.whereis("r")
        assert isinstance(sup, SupervisorRef)
        assert [(info.id, info.state) for info in await sup.which_children()] == [
            ("a", "up"),
            ("b", "undefined"),
            ("c", "up"),
        ]
        assert await sup.restart_child("b") is tree.system.whereis("r/b")
        await tree.stop()
        assert journal.take() == "↑b ↓c(shutdown) ↓b(shutdown) ↓a(shutdown)"

    simloop.run(main())


BAD: list[tuple[str, Callable[[], object]]] = [
    ("id", lambda: actor("", Actor)),
    ("id", lambda: actor("a/b", Actor)),
    ("id", lambda: actor(None, Actor)),  # type: ignore[arg-type]
    ("start", lambda: ChildSpec(id="a", start=7)),  # type: ignore[arg-type]
    ("restart", lambda: actor("a", Actor, restart="always")),
    ("type", lambda: actor("a", Actor, type="thing")),
    ("shutdown_s", lambda: actor("a", Actor, shutdown_s=-1)),
    ("shutdown_s", lambda: actor("a", Actor, shutdown_s="soon")),
    ("shutdown_s", lambda: actor("a", Actor, shutdown_s=math.nan)),
    ("start_timeout_s", lambda: actor("a", Actor, start_timeout_s=0)),
    ("significant", lambda: actor("a", Actor, significant=1)),
    ("significant", lambda: actor("a", Actor, significant=True)),
    ("quarantine", lambda: actor("a", Actor, quarantine=5)),
    (
        "quarantine",
        lambda: actor("a", Actor, restart=Restart.TEMPORARY, quarantine=Quarantine(min_s=1, max_s=2)),
    ),
    ("min_s", lambda: Quarantine(min_s=3, max_s=2)),
    ("factor", lambda: Quarantine(min_s=1, max_s=2, factor=0.5)),
    ("jitter", lambda: Quarantine(min_s=1, max_s=2, jitter=2)),
    ("reset_after_s", lambda: Quarantine(min_s=1, max_s=2, reset_after_s=-1)),
    ("max_s", lambda: Quarantine(min_s=1, max_s=None)),  # type: ignore[arg-type]
    ("intensity", lambda: supervisor("s", [], intensity=-1)),
    ("intensity", lambda: supervisor("s", [], intensity=1.5)),  # type: ignore[arg-type]
    ("period_s", lambda: supervisor("s", [], period_s=0)),
    ("strategy", lambda: supervisor("s", [], strategy="one")),  # type: ignore[arg-type]
    ("auto_shutdown", lambda: supervisor("s", [], auto_shutdown="any")),  # type: ignore[arg-type]
    ("max_children", lambda: dynamic_supervisor("s", intensity=1, period_s=5, max_children=-1)),
    ("id: used twice", lambda: supervisor("s", [actor("a", Actor), actor("a", Actor)])),
    ("ChildSpec", lambda: supervisor("s", ["a"])),  # type: ignore[list-item]
    (
        "significant",
        lambda: supervisor("s", [actor("a", Actor, restart=Restart.TRANSIENT, significant=True)]),
    ),
    ("unknown field", lambda: actor("a", Actor, shutdown=5)),
    ("unknown field", lambda: supervisor("s", [], max_restarts=5)),
]


@pytest.mark.parametrize(("field", "build"), BAD)
def test_a06_bad_specs_are_refused_where_they_are_built(field: str, build: Callable[[], object]) -> None:
    """What can't mean anything raises SpecError, which names the field, before any child starts."""
    with pytest.raises(SpecError, match=field):
        build()


def test_a06_bad_children_of_a_callable_fail_the_start_before_any_child() -> None:
    """Children that a callable lists are checked all together, before the first one starts."""

    async def main() -> None:
        journal = Journal()
        spec = supervisor("r", lambda: [journal.child("a"), journal.child("a")])
        with pytest.raises(StartFailed) as caught:
            await start_tree(spec, journal.system())
        assert isinstance(caught.value.cause, SpecError)
        assert journal.take() == ""

    simloop.run(main())


def test_a07_defaults_are_otps() -> None:
    """Permanent, 5 s for a worker, infinity for a supervisor, one restart per 5 s, one_for_one."""
    worker = actor("a", Actor)
    assert (worker.restart, worker.grace_s, worker.type) == (Restart.PERMANENT, 5.0, ChildType.WORKER)
    assert actor("a", Actor, shutdown_s=BRUTAL_KILL).grace_s == 0.0
    sup = supervisor("s", [worker])
    assert (sup.restart, sup.grace_s, sup.type) == (Restart.PERMANENT, math.inf, ChildType.SUPERVISOR)

    async def main() -> None:
        journal = Journal()
        tree = await start_tree(supervisor("r", [journal.child("a"), journal.child("b")]), journal.system())
        ref_of(tree, "r/a").cast("boom")
        await settle()
        assert journal.take() == "↑a ↑b ↓a(error) ↑a"
        await asyncio.sleep(5.1)
        ref_of(tree, "r/a").cast("boom")
        await settle()
        ref_of(tree, "r/b").cast("boom")
        assert await tree.wait() == SHUTDOWN
        [gave_up] = journal.of(SupervisorGaveUp)
        assert (gave_up.intensity, gave_up.period_s) == (1, 5.0)

    simloop.run(main())


def test_a08_a_death_during_the_start_is_handled_after_it() -> None:
    """a dies while c still initialises: it is restarted after c is ready."""

    async def main() -> None:
        journal = Journal()

        async def start(child: Child) -> None:
            child.ready()
            await asyncio.sleep(0.5 if child.incarnation == 1 else math.inf)

        children = [
            ChildSpec(id="a", start=start),
            journal.child("b"),
            journal.child("c", init_s=1.0),
        ]
        tree = await start_tree(supervisor("r", children), journal.system())
        await settle()
        shown = [
            (type(event).__name__, getattr(event, "path", ""))
            for event in journal.events
            if getattr(event, "path", "r") != "r"
        ]
        assert shown == [
            ("ChildStarted", "r/a"),
            ("ChildStarted", "r/b"),
            ("ChildExited", "r/a"),
            ("ChildStarted", "r/c"),
            ("ChildRestarting", "r/a"),
            ("ChildStarted", "r/a"),
        ]
        await tree.stop()

    simloop.run(main())


def test_a09_a_new_incarnation_is_a_new_process() -> None:
    """A restarted child has fresh state, another Ref and the next number, and never overlaps with the old one."""

    async def main() -> None:
        journal = Journal()
        alive: list[int] = []

        async def start(child: Child) -> None:
            alive.append(child.incarnation)
            assert len(alive) == 1
            try:
                child.ready()
                await asyncio.sleep(1)
                raise KeyError
            finally:
                await asyncio.sleep(1)
                alive.remove(child.incarnation)

        async def count(member: Member) -> int:
            member.state += 1
            return member.state

        children = [journal.child("a"), ChildSpec(id="x", start=start, shutdown_s=3.0)]
        tree = await start_tree(supervisor("r", children, intensity=5, period_s=5), journal.system())
        first = ref_of(tree, "r/a")
        assert [await first.call(count), await first.call(count)] == [1, 2]
        first.cast("boom")
        await asyncio.sleep(6.5)
        second = ref_of(tree, "r/a")
        assert (first.incarnation, first.alive, second.incarnation, second.alive) == (1, False, 2, True)
        assert first != second
        assert not first.cast("hello")
        assert await second.call(count) == 1
        assert alive == [4]
        await tree.stop()
        assert alive == []

    simloop.run(main())


@pytest.mark.parametrize("how", ["normal", "shutdown", "boom", "kill"])
@pytest.mark.parametrize("restart", list(Restart))
def test_a10_restart_types(restart: Restart, how: str) -> None:
    """Permanent restarts after any exit, transient after an abnormal one, temporary never and its spec goes."""

    async def main() -> None:
        journal = Journal()
        tree = await start_tree(supervisor("r", [journal.child("a", restart=restart)]), journal.system())
        if how == "kill":
            task_of(tree, "r/a").cancel()
        else:
            ref_of(tree, "r/a").cast(how)
        await settle()
        sup = tree.system.whereis("r")
        assert isinstance(sup, SupervisorRef)
        shown = [(info.state, info.incarnation) for info in await sup.which_children()]
        if restart is Restart.TEMPORARY:
            assert shown == []
        elif restart is Restart.PERMANENT or how in ("boom", "kill"):
            assert shown == [("up", 2)]
        else:
            assert shown == [("undefined", 1)]
        await tree.stop()

    simloop.run(main())


def test_a11_every_end_has_its_reason() -> None:
    """A return is normal, an exception error, a stranger's cancel killed without cleanup, an order shutdown."""

    async def main() -> None:
        journal = Journal()

        async def start(child: Child) -> None:
            child.ready()
            await asyncio.sleep(1)
            if child.path == "r/raise":
                raise KeyError("x")
            if child.path != "r/return":
                await asyncio.sleep(math.inf)

        children = [
            ChildSpec(id=id, start=start, restart=Restart.TEMPORARY) for id in ("return", "raise", "kill", "stop")
        ]
        children.append(journal.child("actor", restart=Restart.TEMPORARY))
        tree = await start_tree(supervisor("r", children), journal.system())
        await asyncio.sleep(2)
        task_of(tree, "r/kill").cancel()
        task_of(tree, "r/actor").cancel()
        await settle()
        await tree.stop()
        reasons = {event.path: event.reason for event in journal.of(ChildExited)}
        assert reasons == {
            "r/return": "normal",
            "r/raise": "error",
            "r/kill": "killed",
            "r/actor": "killed",
            "r/stop": "shutdown",
            "r": "shutdown",
        }
        assert journal.take() == "↑actor"

    simloop.run(main())


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["handle", "helper", "plain", "terminate"])
def test_a11_system_exit_stops_the_tree_and_is_raised_again(kind: type[BaseException], where: str) -> None:
    """SystemExit or KeyboardInterrupt in any child stops the tree in order; then wait raises it."""

    async def main() -> None:
        journal = Journal()

        async def leave(member: Member) -> None:
            raise kind(3)

        async def spawn(member: Member) -> None:
            member.spawn(leave(member), name="leaver")

        async def end(member: Member) -> None:
            async def terminate(reason: object) -> None:
                raise kind(3)

            member.terminate = terminate  # type: ignore[method-assign]
            member.stop()

        async def start(child: Child) -> None:
            child.ready()
            await asyncio.sleep(1)
            if where == "plain":
                raise kind(3)
            await asyncio.sleep(math.inf)

        children = [journal.child("a"), journal.child("b"), ChildSpec(id="p", start=start), journal.child("c")]
        with no_leaks():
            tree = await start_tree(supervisor("r", children), journal.system())
            journal.take()
            order = {"handle": leave, "helper": spawn, "plain": None, "terminate": end}[where]
            if order is not None:
                ref_of(tree, "r/b").cast(order)
            with pytest.raises(kind):
                await tree.wait()
            entries = journal.take().split()
            assert [entry for entry in entries if entry[1] in "ac"] == ["↓c(shutdown)", "↓a(shutdown)"]
            assert not any(entry.startswith("↑") for entry in entries)
            assert tree.process_count() == 0

    simloop.run(main())


def test_a11_system_exit_in_an_init_ends_the_start() -> None:
    """SystemExit in an init rolls the start back and is raised by start_tree."""

    async def main() -> None:
        journal = Journal()

        async def start(child: Child) -> None:
            raise SystemExit(4)

        with no_leaks():
            with pytest.raises(SystemExit):
                await start_tree(
                    supervisor("r", [journal.child("a"), ChildSpec(id="x", start=start)]), journal.system()
                )
            assert journal.take() == "↑a ↓a(shutdown)"

    simloop.run(main())


def test_a12_a_temporary_childs_crash_is_not_counted() -> None:
    """With intensity 0, a temporary child may crash without an end to its supervisor."""

    async def main() -> None:
        journal = Journal()
        children = [journal.child(id, restart=Restart.TEMPORARY) for id in "ab"] + [journal.child("c")]
        tree = await start_tree(
            supervisor("r", children, intensity=0, strategy=Strategy.ONE_FOR_ALL, auto_shutdown=AutoShutdown.NEVER),
            journal.system(),
        )
        ref_of(tree, "r/a").cast("boom")
        ref_of(tree, "r/b").cast("boom")
        await settle()
        assert tree.system.whereis("r/c") is not None
        ref_of(tree, "r/c").cast("boom")
        assert await tree.wait() == SHUTDOWN

    simloop.run(main())
