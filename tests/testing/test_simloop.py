"""The simulator itself: virtual time, determinism, stuck programs, leaks."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from serviceradar_poller.testing import simloop
from serviceradar_poller.testing.leaks import no_leaks

TRACE = """
import asyncio, sys
from serviceradar_poller.testing import simloop

async def main():
    trace = []
    async def worker(name):
        for step in range(5):
            await asyncio.sleep(0 if step % 2 else 0.5)
            trace.append(f"{name}{step}")
    async with asyncio.TaskGroup() as group:
        tasks = {group.create_task(worker(name)) for name in "abcdefgh"}
    async def late(name):
        try:
            await asyncio.sleep(100)
        finally:
            trace.append(f"cancelled {name}")
    try:
        async with asyncio.TaskGroup() as group:
            for name in "abcdefgh":
                group.create_task(late(name))
            await asyncio.sleep(1)
            raise KeyError
    except* KeyError:
        pass
    done, _ = await asyncio.wait({asyncio.create_task(worker(name)) for name in "xyz"})
    trace.append(str(len(done)))
    return trace

seed = None if sys.argv[1] == "none" else int(sys.argv[1])
print(" ".join(simloop.run(main(), seed=seed)))
"""


def trace_of(seed: str, hash_seed: str) -> str:
    """Run the trace in an interpreter of its own."""
    return subprocess.run(
        [sys.executable, "-c", TRACE, seed],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


@pytest.mark.slow
def test_one_seed_gives_one_trace_in_separate_interpreters() -> None:
    """The same seed gives the same order in every interpreter; another seed gives another; none gives asyncio's."""
    seven = {trace_of("7", hash_seed) for hash_seed in ("1", "2", "3")}
    assert len(seven) == 1
    plain = {trace_of("none", hash_seed) for hash_seed in ("1", "2")}
    assert len(plain) == 1
    assert len(seven | plain | {trace_of("8", "1")}) == 3


def test_time_is_virtual() -> None:
    """A day goes by at once, and timers fire at their own times, in order."""

    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        fired: list[float] = []
        for delay_s in (3.0, 1.0, 2.0):
            loop.call_later(delay_s, lambda: fired.append(loop.time()))
        await asyncio.sleep(86_400 * 3)
        return [*fired, loop.time()]

    begun = time.perf_counter()
    assert simloop.run(main(), start_s=10.0) == [11.0, 12.0, 13.0, 10.0 + 3 * 86_400]
    assert time.perf_counter() - begun < 5


def test_a_stuck_program_is_told_from_a_waiting_one() -> None:
    """Nothing ready and no timer raises SimDeadlock, which names the task that waits."""

    async def main() -> None:
        task = asyncio.create_task(asyncio.Event().wait(), name="stuck one")
        await asyncio.sleep(5)
        await task

    with pytest.raises(simloop.SimDeadlock, match=r"at 5 s(.|\n)*stuck one"):
        simloop.run(main())


@pytest.mark.parametrize("seed", range(20))
def test_a_seed_keeps_the_order_of_causes(seed: int) -> None:
    """However tasks are drawn, each task's own steps and all plain callbacks keep their order."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        steps: dict[str, list[int]] = {"a": [], "b": [], "c": []}
        called: list[int] = []

        async def walk(name: str) -> None:
            for step in range(10):
                steps[name].append(step)
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(walk(name)) for name in steps]
        for n in range(10):
            loop.call_soon(called.append, n)
        await asyncio.wait(tasks)
        assert called == list(range(10))
        assert all(taken == list(range(10)) for taken in steps.values())

    simloop.run(main(), seed=seed)


def test_threads_run_in_place() -> None:
    """What is sent to a thread runs at once, and its exception reaches the caller."""

    def fails() -> None:
        raise KeyError("in a thread")

    async def main() -> None:
        assert await asyncio.to_thread(sum, [1, 2, 3]) == 6
        with pytest.raises(KeyError):
            await asyncio.to_thread(fails)

    simloop.run(main())


def test_what_is_left_running_is_ended() -> None:
    """run cancels the tasks that its main left behind and lets them clean up."""
    cleaned = []

    async def rest() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            cleaned.append(True)

    async def main() -> asyncio.Task[None]:
        task = asyncio.create_task(rest())
        await asyncio.sleep(1)
        return task

    assert simloop.run(main()).cancelled()
    assert cleaned == [True]


@pytest.mark.parametrize("what", ["task", "timer", "descriptor"])
def test_a_leak_is_found(what: str) -> None:
    """A task, a timer and a file descriptor that were not there before are named."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with no_leaks():
            await asyncio.create_task(asyncio.sleep(1))
        undo: list[Callable[[], object]] = []

        def leak() -> None:
            if what == "task":
                undo.append(asyncio.create_task(asyncio.sleep(1), name="forgotten").cancel)
            elif what == "timer":
                undo.append(loop.call_later(5, print).cancel)
            else:
                undo.append(open(__file__).close)  # noqa: SIM115 — the leak

        with pytest.raises(AssertionError, match=what), no_leaks():
            leak()
        for action in undo:
            action()

    simloop.run(main())
