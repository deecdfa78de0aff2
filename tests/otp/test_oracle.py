"""The supervisor against the outcomes of Erlang/OTP's own, scenario by scenario, line by line."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from serviceradar_poller.otp import (
    BRUTAL_KILL,
    SHUTDOWN,
    Actor,
    AlreadyPresent,
    AlreadyStarted,
    AutoShutdown,
    ChildSpec,
    ExitReason,
    NoProcess,
    NotFound,
    Ref,
    Restart,
    Restarting,
    Running,
    SpecError,
    StartFailed,
    Strategy,
    SupervisorRef,
    System,
    Tree,
    actor,
    start_tree,
    supervisor,
)
from serviceradar_poller.testing import simloop
from serviceradar_poller.testing.kernel import task_of

GOLDEN = Path(__file__).parents[1] / "data" / "supervisor-golden.jsonl"
SCENARIOS: list[dict[str, Any]] = [json.loads(line) for line in GOLDEN.read_text().splitlines()]
ANSWERS: dict[type[Exception], str] = {
    AlreadyPresent: "already_present",
    AlreadyStarted: "already_started",
    NotFound: "not_found",
    Restarting: "restarting",
    Running: "running",
    SpecError: "badspec",
}


class Boom(Exception):  # noqa: N818
    """What a child crashes with."""


class Bad(Exception):  # noqa: N818
    """What an init fails with."""


class World:
    """What the children of one scenario share: their log and their orders."""

    def __init__(self) -> None:
        self.log: list[list[str]] = []
        self.fails: dict[str, int] = {}
        self.ignores: set[str] = set()

    def take_log(self) -> list[list[str]]:
        log, self.log = self.log, []
        return log


class Scripted(Actor[str]):
    """A child that records its life and leaves as it is told."""

    def __init__(self, id: str, world: World) -> None:
        self.id = id
        self.world = world

    async def init(self) -> None:
        self.world.log.append(["init", self.id])
        if self.world.fails.get(self.id, 0) > 0:
            self.world.fails[self.id] -= 1
            self.world.log.append(["initfail", self.id, "bad"])
            raise Bad("bad")
        if self.id in self.world.ignores:
            self.world.ignores.remove(self.id)
            self.world.log.append(["ignore", self.id])
            self.child.ignore()
        self.world.log.append(["up", self.id])

    async def handle(self, message: str) -> None:
        if message == "boom":
            raise Boom("boom")
        self.stop(SHUTDOWN) if message == "shutdown" else self.stop()

    async def terminate(self, reason: ExitReason) -> None:
        self.world.log.append(["term", self.id, "boom" if isinstance(reason.error, Boom) else reason.kind])


def spec_of(child: dict[str, Any], world: World) -> ChildSpec:
    """Make the spec of one child; raises SpecError where OTP says badspec."""
    shutdown = child["shutdown"]
    return actor(
        child["id"],
        lambda: Scripted(child["id"], world),
        restart=Restart(child["restart"]),
        significant=child["significant"],
        shutdown_s=BRUTAL_KILL if shutdown == "brutal_kill" else shutdown / 1000,
    )


async def apply(event: dict[str, Any], tree: Tree, sup: SupervisorRef, world: World) -> str | None:
    """Let *event* happen and return what the supervisor answered."""
    child = event["child"]
    match event["event"]:
        case "exit" | "kill":
            ref = tree.system.whereis(f"sup/{child}")
            if isinstance(ref, Ref):
                if event["event"] == "kill":
                    task_of(tree, ref.path).cancel()
                else:
                    ref.cast(event["reason"])
            return None
        case "next_inits_fail":
            world.fails[child] = event["times"]
            return None
        case "next_init_ignores":
            world.ignores.add(child)
            return None
    try:
        match event["event"]:
            case "start_child":
                await sup.start_child(spec_of(child, world))
            case "terminate_child":
                await sup.terminate_child(child)
            case "restart_child":
                await sup.restart_child(child)
            case "delete_child":
                await sup.delete_child(child)
            case other:
                raise AssertionError(other)
    except StartFailed as error:
        return str(error.cause)
    except tuple(ANSWERS) as error:
        return ANSWERS[type(error)]
    return "ok"


async def children_of(sup: SupervisorRef) -> list[list[str]]:
    """List the children as the oracle does; none when the supervisor is dead."""
    try:
        return [[info.id, str(info.state)] for info in await sup.which_children()]
    except NoProcess:
        return []


async def play(scenario: dict[str, Any]) -> dict[str, Any]:
    """Run a scenario and return what the oracle has recorded of it."""
    world = World()
    spec = supervisor(
        "sup",
        [spec_of(child, world) for child in scenario["children"]],
        strategy=Strategy(scenario["strategy"]),
        intensity=scenario["intensity"],
        period_s=scenario["period"],
        auto_shutdown=AutoShutdown(scenario["auto_shutdown"]),
    )
    tree = await start_tree(spec, System(emit=lambda event: None))
    sup = tree.system.whereis("sup")
    assert isinstance(sup, SupervisorRef)
    start_log = world.take_log()
    steps = []
    for event in scenario["events"]:
        result = await apply(event, tree, sup, world)
        await asyncio.sleep(0.2)
        children = await children_of(sup)
        steps.append({"result": result, "log": world.take_log(), "alive": sup.alive, "children": children})
        if not sup.alive:
            break
    reason = await tree.stop()
    assert tree.process_count() == 0
    return {"start_log": start_log, "steps": steps, "end": {"reason": reason.kind, "log": world.take_log()}}


@pytest.mark.parametrize("seed", [None, 1])
def test_every_scenario_ends_as_in_otp(seed: int | None) -> None:
    """In all 500 scenarios every log line, answer, listing and end is OTP's, in whatever order tasks run."""
    assert len(SCENARIOS) == 500
    wrong = []
    for scenario in SCENARIOS:
        shown = simloop.run(play(scenario), seed=seed)
        expected = {key: scenario[key] for key in ("start_log", "steps", "end")}
        if shown != expected:
            wrong.append((scenario["n"], shown, expected))
    assert not wrong, f"{len(wrong)} differ, the first: {wrong[0]}"
