"""
What the supervision kernel costs, against plain asyncio that does the same minimum, in the same run.

Run with ``python -m benchmarks.kernel``. Each figure is the median of several rounds; the ratio is kernel / plain.

Sketch before measuring (CPython 3.11, per idle actor): task, coroutine frame and future some 0.9 KiB, path and name
0.1, process, mailbox, reference and actor 0.6, plan entry and two dict slots 0.4: about 2 KiB, against 0.9 for plain.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from serviceradar_poller.otp import (
    Actor,
    Ref,
    Restart,
    SupervisorRef,
    System,
    actor,
    dynamic_supervisor,
    start_tree,
    supervisor,
)

CHILDREN = 10_000
CRASHES = 1_000
CALLS = 20_000
IDLE_S = 5.0
ROUNDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the report."""

    name: str
    unit: str
    kernel: float
    plain: float

    def __str__(self) -> str:
        ratio = f"{self.kernel / self.plain:8.2f}" if self.plain > 0 else "       —"
        return f"{self.name:<34} {self.kernel:12.2f} {self.plain:12.2f} {ratio}  {self.unit}"


class Echo(Actor[str]):
    """Answers, and crashes on order."""

    async def handle(self, message: str) -> object:
        if message == "boom":
            raise ValueError(message)
        return message


class Resting(Echo):
    """Has no task while it has nothing to do."""

    rests = True


def rss_bytes() -> int:
    """Return the resident memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """What a population of idle children costs."""

    bytes_each: float
    start_s: float
    idle_cpu_percent: float
    stop_s: float


async def measure_idle(start: Callable[[], Awaitable[Callable[[], Awaitable[Any]]]]) -> Idle:
    """Start a population, leave it alone, stop it."""
    gc.collect()
    before = rss_bytes()
    begun = time.perf_counter()
    stop = await start()
    start_s = time.perf_counter() - begun
    gc.collect()
    held = rss_bytes() - before
    cpu = time.process_time()
    await asyncio.sleep(IDLE_S)
    cpu = time.process_time() - cpu
    begun = time.perf_counter()
    await stop()
    stop_s = time.perf_counter() - begun
    return Idle(bytes_each=held / CHILDREN, start_s=start_s, idle_cpu_percent=100 * cpu / IDLE_S, stop_s=stop_s)


def in_fresh_process(who: str) -> Idle:
    """Measure the population of *who* in a process of its own: a heap that was used before hides what it holds."""
    out = subprocess.run([sys.executable, "-m", "benchmarks.kernel", who], check=True, capture_output=True, text=True)
    return Idle(**json.loads(out.stdout))


async def start_resting() -> Callable[[], Awaitable[Any]]:
    """Start the population of actors that rest."""
    return await start_kernel(Resting)


async def start_kernel(kind: type[Echo] = Echo) -> Callable[[], Awaitable[Any]]:
    """Start the population under a dynamic supervisor."""
    spec = dynamic_supervisor("pool", intensity=1, period_s=5.0, max_children=CHILDREN)
    tree = await start_tree(spec, System(emit=lambda event: None))
    sup = tree.system.whereis("pool")
    assert isinstance(sup, SupervisorRef)
    for n in range(CHILDREN):
        await sup.start_child(actor(f"child-{n}", kind, restart=Restart.TRANSIENT))
    return tree.stop


async def start_plain() -> Callable[[], Awaitable[Any]]:
    """Start as many named tasks, one after another, that each wait for one message."""
    loop = asyncio.get_running_loop()
    tasks = set()

    async def wait(ready: asyncio.Future[None], message: asyncio.Future[str]) -> None:
        ready.set_result(None)
        await message

    for n in range(CHILDREN):
        ready = loop.create_future()
        tasks.add(loop.create_task(wait(ready, loop.create_future()), name=f"pool/child-{n}"))
        await ready

    async def stop() -> None:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    return stop


STARTS: dict[str, Callable[[], Awaitable[Callable[[], Awaitable[Any]]]]] = {
    "plain": start_plain,
    "kernel": start_kernel,
    "resting": start_resting,
}


async def crash_kernel() -> list[float]:
    """Measure from the crash of one of many to its next incarnation's readiness, in µs."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    class Fragile(Echo):
        async def init(self) -> None:
            if not done.done():
                done.set_result(None)

    spec = supervisor("r", [actor(str(n), Fragile) for n in range(CHILDREN)], intensity=10**9)
    tree = await start_tree(spec, System(emit=lambda event: None))
    times = []
    for n in range(CRASHES):
        ref = tree.system.whereis(f"r/{n * 7 % CHILDREN}")
        assert isinstance(ref, Ref)
        done = asyncio.get_running_loop().create_future()
        begun = time.perf_counter()
        ref.cast("boom")
        await done
        times.append(1e6 * (time.perf_counter() - begun))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await tree.stop()
    return times


async def crash_plain() -> list[float]:
    """Measure a loop that starts a task again whenever its done-callback says that it failed, in µs."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    inbox: asyncio.Future[str]
    tasks: set[asyncio.Task[None]] = set()

    async def work() -> None:
        if not done.done():
            done.set_result(None)
        if await inbox == "boom":
            raise ValueError("boom")

    def again(task: asyncio.Task[None]) -> None:
        nonlocal inbox
        tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            inbox = loop.create_future()
            start()

    def start() -> None:
        task = loop.create_task(work(), name="r/0")
        tasks.add(task)
        task.add_done_callback(again)

    inbox = loop.create_future()
    start()
    await done
    times = []
    for _ in range(CRASHES):
        done = loop.create_future()
        begun = time.perf_counter()
        inbox.set_result("boom")
        await done
        times.append(1e6 * (time.perf_counter() - begun))
        await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    return times


async def call_kernel() -> float:
    """Measure one call and its answer, in µs."""
    tree = await start_tree(actor("echo", Echo), System(emit=lambda event: None))
    ref = tree.system.whereis("echo")
    assert isinstance(ref, Ref)
    begun = time.perf_counter()
    for _ in range(CALLS):
        await ref.call("x")
    took = time.perf_counter() - begun
    await tree.stop()
    return 1e6 * took / CALLS


async def call_plain() -> float:
    """Measure a queue, a future and a deadline that do the same, in µs."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[str, asyncio.Future[str]]] = asyncio.Queue(1_000)

    async def serve() -> None:
        while True:
            message, future = await queue.get()
            future.set_result(message)

    server = loop.create_task(serve())
    begun = time.perf_counter()
    for _ in range(CALLS):
        future: asyncio.Future[str] = loop.create_future()
        queue.put_nowait(("x", future))
        async with asyncio.timeout(5.0):
            await future
    took = time.perf_counter() - begun
    server.cancel()
    await asyncio.wait({server})
    return 1e6 * took / CALLS


def percentile(values: list[float], share: float) -> float:
    """Return the value that *share* of the values don't exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


def main() -> list[Figure]:
    """Measure, print and return the figures."""
    idle = {who: [in_fresh_process(who) for _ in range(ROUNDS)] for who in STARTS}
    crashes = {"plain": asyncio.run(crash_plain()), "kernel": asyncio.run(crash_kernel())}
    calls = {
        "plain": statistics.median(asyncio.run(call_plain()) for _ in range(ROUNDS)),
        "kernel": statistics.median(asyncio.run(call_kernel()) for _ in range(ROUNDS)),
    }

    def of_idle(name: str, unit: str, pick: Callable[[Idle], float], who: str = "kernel") -> Figure:
        kernel, plain = (statistics.median(map(pick, idle[each])) for each in (who, "plain"))
        return Figure(name=name, unit=unit, kernel=kernel, plain=plain)

    figures = [
        of_idle("idle child, RSS", "bytes", lambda one: one.bytes_each),
        of_idle("idle child that rests, RSS", "bytes", lambda one: one.bytes_each, "resting"),
        of_idle(f"start of {CHILDREN}", "s", lambda one: one.start_s),
        of_idle(f"stop of {CHILDREN}", "s", lambda one: one.stop_s),
        of_idle(f"CPU of {CHILDREN} idle", "% of a core", lambda one: one.idle_cpu_percent),
        *(
            Figure(
                name=f"crash to restart, p{round(100 * share)}",
                unit="µs",
                kernel=percentile(crashes["kernel"], share),
                plain=percentile(crashes["plain"], share),
            )
            for share in (0.5, 0.99)
        ),
        Figure(name="call and answer", unit="µs", kernel=calls["kernel"], plain=calls["plain"]),
    ]
    print(f"{'':<34} {'kernel':>12} {'plain':>12} {'ratio':>8}")
    for figure in figures:
        print(figure)
    return figures


if __name__ == "__main__":
    if len(sys.argv) == 2:
        print(json.dumps(dataclasses.asdict(asyncio.run(measure_idle(STARTS[sys.argv[1]])))))
    else:
        main()
