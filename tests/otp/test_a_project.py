"""Acceptance cases 39 to 43: this project's tree, and random trees."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serviceradar_poller.events.kernel import (
    ChildExited,
    ChildQuarantined,
    ChildStarted,
    KernelEvent,
    SupervisorGaveUp,
)
from serviceradar_poller.otp import (
    BRUTAL_KILL,
    Actor,
    ChildSpec,
    Quarantine,
    Restart,
    Strategy,
    SupervisorRef,
    System,
    Tree,
    actor,
    dynamic_supervisor,
    start_tree,
    supervisor,
)
from serviceradar_poller.testing import simloop
from serviceradar_poller.testing.kernel import Journal, Member, ref_of, settle, task_of
from serviceradar_poller.testing.leaks import no_leaks

PARTS = ("security", "connection", "scheduler", "streamer", "breaker")


class Connection(Member):
    """Tries to connect in the background, for ever: an agent that can't be reached is a state."""

    async def init(self) -> None:
        await super().init()
        self.spawn(self._connect(), name="connect")

    async def _connect(self) -> None:
        while True:  # noqa: ASYNC110 — it stands for attempts that are refused
            await asyncio.sleep(30)


def coordinator(journal: Journal, agent: str, **fields: Any) -> ChildSpec:
    """Shape one agent as the design does."""
    children = [
        journal.child("security"),
        actor("connection", lambda: Connection(journal, "connection")),
        journal.child("scheduler"),
        journal.child("streamer"),
        journal.child("breaker", restart=Restart.TRANSIENT),
    ]
    return supervisor(
        agent, children, strategy=Strategy.REST_FOR_ONE, intensity=5, period_s=60.0, shutdown_s=5.0, **fields
    )


async def start_poller(journal: Journal, agents: int, **fields: Any) -> tuple[Tree, SupervisorRef]:
    """Start a poller with *agents* agents."""
    spec = supervisor(
        "poller",
        [
            journal.child("reporter", shutdown_s=10.0),
            dynamic_supervisor("agents", intensity=3, period_s=5.0, max_children=agents),
        ],
        strategy=Strategy.ONE_FOR_ALL,
        intensity=1,
    )
    tree = await start_tree(spec, journal.system(**fields))
    sup = tree.system.whereis("poller/agents")
    assert isinstance(sup, SupervisorRef)
    quarantine = Quarantine(min_s=1.0, max_s=60.0)
    for n in range(agents):
        await sup.start_child(coordinator(journal, f"agent-{n}", quarantine=quarantine))
    return tree, sup


def incarnations(tree: Tree, agent: str) -> dict[str, int]:
    """Return the incarnation of each part of *agent*."""
    return {part: ref_of(tree, f"poller/agents/{agent}/{part}").incarnation for part in PARTS}


def test_a39_a_dead_connection_takes_only_what_depends_on_it() -> None:
    """agent-7's connection dies: what stands after it restarts; its security and all other agents stay."""

    async def main() -> None:
        journal = Journal()
        breaker_states: dict[str, str] = {"agent-7": "OPEN"}  # lives outside the task that uses it
        tree, _ = await start_poller(journal, 10)
        others = [incarnations(tree, f"agent-{n}") for n in range(10) if n != 7]
        journal.take()
        ref_of(tree, "poller/agents/agent-7/connection").cast("boom")
        await settle(60)
        assert journal.take() == (
            "↓connection(error) ↓breaker(shutdown) ↓streamer(shutdown) ↓scheduler(shutdown) "
            "↑connection ↑scheduler ↑streamer ↑breaker"
        )
        shown = incarnations(tree, "agent-7")
        assert shown == {"security": 1, "connection": 2, "scheduler": 2, "streamer": 2, "breaker": 2}
        assert [incarnations(tree, f"agent-{n}") for n in range(10) if n != 7] == others
        assert breaker_states == {"agent-7": "OPEN"}
        await tree.stop()

    simloop.run(main())


@pytest.mark.slow
def test_a40_an_agent_over_its_budget_is_quarantined_alone() -> None:
    """agent-7 is rebuilt alone, after growing, capped, jittered delays; no other agent ever notices."""

    async def main() -> None:
        journal = Journal()
        draw = random.Random(5)
        tree, sup = await start_poller(journal, 2_000, random=draw.random)
        path = "poller/agents/agent-7"
        started = len(journal.of(ChildStarted))
        loop = asyncio.get_running_loop()
        rebuilds = 0
        deadline_s = loop.time() + 600
        while loop.time() < deadline_s:
            process = tree.system.whereis(f"{path}/security")
            if process is not None:
                rebuilds += 1
                for _ in range(6):
                    if tree.system.whereis(f"{path}/security") is not None:
                        ref_of(tree, f"{path}/security").cast("boom")
                    await settle(60)
            await asyncio.sleep(0.5)
        delays = [event.delay_s for event in journal.of(ChildQuarantined)]
        assert {event.path for event in journal.of(ChildQuarantined)} == {path}
        assert [event.attempt for event in journal.of(ChildQuarantined)] == list(range(1, len(delays) + 1))
        assert len(delays) >= 10
        for attempt, delay_s in enumerate(delays):
            plain = min(60.0, 2.0**attempt)
            assert 0.8 * plain <= delay_s <= min(60.0, 1.2 * plain)
        assert len({delay_s / 2**n for n, delay_s in enumerate(delays[:6])}) == 6, "jittered"
        assert {event.path for event in journal.of(SupervisorGaveUp)} == {path}
        later = journal.of(ChildStarted)[started:]
        assert all(event.path.startswith(path) for event in later), "no other agent was touched"
        assert sup.alive
        await tree.stop()

    simloop.run(main())


def test_a40_a_quarantine_forgets_after_a_long_life() -> None:
    """A child that was up for reset_after_s has its next exit counted as the first."""

    async def main() -> None:
        journal = Journal()
        child = journal.child("a", quarantine=Quarantine(min_s=1, max_s=60, jitter=0, reset_after_s=100))
        tree = await start_tree(supervisor("r", [child], intensity=0), journal.system())
        for pause_s in (5, 5, 5, 200, 5):
            ref_of(tree, "r/a").cast("boom")
            await asyncio.sleep(pause_s)
        assert [event.delay_s for event in journal.of(ChildQuarantined)] == [1, 2, 4, 8, 1]
        await tree.stop()

    simloop.run(main())


def test_a41_a_boot_with_every_agent_unreachable_succeeds() -> None:
    """No init connects, so the start succeeds at once and nobody exits, however long the agents are away."""

    async def main() -> None:
        journal = Journal()
        tree, sup = await start_poller(journal, 50)
        assert asyncio.get_running_loop().time() == 0.0
        await asyncio.sleep(3_600)
        assert (await sup.count_children()).active == 50
        assert not journal.of(ChildExited)
        await tree.stop()

    simloop.run(main())


@pytest.mark.slow
def test_a42_constant_crashes_do_not_wear_the_poller_down() -> None:
    """Agents of which each crashes once a minute at random: the poller is up after an hour of virtual time."""

    agents, minutes = 2_000, 60
    counts: dict[type[KernelEvent], int] = {}

    async def main() -> None:
        draw = random.Random(42)
        spec = dynamic_supervisor("agents", intensity=3, period_s=5.0, max_children=agents)
        tree = await start_tree(supervisor("poller", [spec]), _counting(counts))
        sup = tree.system.whereis("poller/agents")
        assert isinstance(sup, SupervisorRef)
        quarantine = Quarantine(min_s=1.0, max_s=60.0)
        for n in range(agents):
            children = [actor("connection", Quiet)]
            await sup.start_child(
                supervisor(
                    f"agent-{n}",
                    children,
                    strategy=Strategy.REST_FOR_ONE,
                    intensity=3,
                    period_s=60.0,
                    quarantine=quarantine,
                )
            )
        for _ in range(minutes):
            for _ in range(60):
                for _ in range(agents // 60 + 1):
                    path = f"poller/agents/agent-{draw.randrange(agents)}/connection"
                    if tree.system.whereis(path) is None:
                        continue
                    if draw.random() < 0.1:
                        tree.crash(path, RuntimeError("at random"))
                    else:
                        task_of(tree, path).cancel()  # a kill is abnormal too, and costs the test no traceback
                await asyncio.sleep(1.0)
        assert tree.alive
        assert counts[ChildExited] > 0.9 * agents * minutes * 0.9
        await asyncio.sleep(60)
        assert (await sup.count_children()).active == agents, "all have healed"
        await tree.stop()
        assert tree.process_count() == 0

    simloop.run(main())


class Quiet(Actor[str]):
    """Has nothing to do."""


def _counting(counts: dict[type[KernelEvent], int]) -> System:
    def emit(event: KernelEvent) -> None:
        counts[type(event)] = counts.get(type(event), 0) + 1

    return System(emit=emit)


@st.composite
def trees(draw: st.DrawFn, journal: Journal, depth: int = 0, prefix: str = "n") -> ChildSpec:
    """Draw a supervisor with workers and, two levels deep at most, supervisors."""
    children = []
    for index in range(draw(st.integers(0, 4))):
        id = f"{prefix}{index}"
        restart = draw(st.sampled_from(list(Restart)))
        if depth < 2 and draw(st.integers(0, 3)) == 0:
            children.append(draw(trees(journal, depth + 1, id)))
            continue
        children.append(
            journal.child(
                id,
                restart=restart,
                init_s=draw(st.sampled_from([0.0, 0.0, 0.1])),
                cleanup_s=draw(st.sampled_from([0.0, 0.0, 0.2])),
                shutdown_s=draw(st.sampled_from([1.0, 0.1, BRUTAL_KILL])),
            )
        )
    return supervisor(
        prefix,
        children,
        strategy=draw(st.sampled_from(list(Strategy))),
        intensity=draw(st.integers(0, 4)),
        restart=draw(st.sampled_from(list(Restart))) if depth else Restart.PERMANENT,
    )


@given(data=st.data())
@settings(max_examples=150, deadline=None)
@pytest.mark.slow
def test_a43_random_trees_under_random_events(data: st.DataObject) -> None:
    """Whatever happens, two incarnations never overlap, stops are the reverse of starts, and nobody is left."""

    async def main() -> None:
        journal = Journal()
        spec = data.draw(trees(journal))
        with no_leaks():
            tree = await start_tree(spec, journal.system())
            try:
                for _ in range(data.draw(st.integers(0, 8))):
                    live = [node.path for node in _walk(tree) if node.path != "n"]
                    if not live or not tree.alive:
                        break
                    path = data.draw(st.sampled_from(live))
                    how = data.draw(st.sampled_from(["boom", "normal", "shutdown", "kill", "crash", "fail"]))
                    handle = tree.system.whereis(path)
                    id = path.rsplit("/", 1)[-1]
                    if how == "fail":
                        journal.failing[id] = data.draw(st.integers(1, 3))
                    elif how == "crash":
                        tree.crash(path, KeyError("injected"))
                    elif how == "kill" and tree.system.whereis(path) is not None:
                        task_of(tree, path).cancel()
                    elif how in ("boom", "normal", "shutdown") and hasattr(handle, "cast"):
                        handle.cast(how)
                    await asyncio.sleep(data.draw(st.sampled_from([0.0, 0.05, 0.5, 20.0])))
                await asyncio.sleep(20.0)
                standing = [node.path for node in _walk(tree)]
                began = len(journal.events)
                await tree.stop()
                assert tree.process_count() == 0
                ended = [event.path for event in journal.events[began:] if isinstance(event, ChildExited)]
                assert ended == standing[::-1], "a stop is the reverse of the start"
            finally:  # hypothesis may give an example up in the middle of it
                await tree.stop(kill=True)
        up: dict[str, int] = {}
        for event in journal.events:
            if isinstance(event, ChildStarted):
                assert event.path not in up, "two incarnations overlap"
                up[event.path] = event.incarnation
            elif isinstance(event, ChildExited) and event.path in up:
                assert up.pop(event.path) == event.incarnation
        assert not up

    simloop.run(main(), seed=data.draw(st.none() | st.integers(0, 100)))


def _walk(tree: Tree) -> list[Any]:
    """List live nodes in the order in which a stop takes them, backwards: a parent ends after its children."""

    def walk(node: Any) -> list[Any]:
        return [node, *(below for child in node.children for below in walk(child))]

    return [node for node in walk(tree.inspect()) if tree.system.find(node.path) is not None]
