"""
Where the CPU of one cycle goes, by part of the program and by function.

A thousand agents with two checks are polled every 10 s over the native transport and mutual TLS, by the whole poller
as a process, which runs under a sampler (see sampled.py). The sampler is off every fifth cycle: what is told is the
CPU of those cycles, split as the samples of the others are, and beside it what the sampler adds.

A sample counts for the part that its innermost function belongs to. Libraries that serve many parts (dataclasses,
json, collections, …) count for whoever called them. C code has no frames of its own: it counts for the Python
function that called it, and what a task or a future costs in C for the function that runs next.
"""

from __future__ import annotations

import json
import linecache
import os
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import cpu_s, main_thread_cpu_s
from benchmarks.report import Result, Table, number
from benchmarks.site import running
from serviceradar_poller.lab.config import CHECKS_DEFAULT

AGENTS = 1_000
#: Agents begin in steps of 20 ms, and CPU time is sampled at the kernel's ticks, mostly 4 ms apart: after ten seconds
#: sharp each would hit the same moment of a step again and again, and some never. So they move by a millisecond.
INTERVAL_S = 10.001
#: Whether the sampler is on, cycle by cycle: four in a row see every moment equally often. Off at last.
CYCLES = (True, True, True, True, False) * 4
QUICK_CYCLES = (True, True, False)
#: Connects everything and warms up.
WARM_UP_REPORTS = 3
#: After a report was accepted nothing happens until the next tick.
SETTLE_S = 0.5
FUNCTIONS = 15

KERNEL, WAITING, TLS, OTHER = "kernel: send, receive", "waiting for events", "TLS", "other"
LOOP = "event loop"
PACKAGE = "serviceradar_poller/"
#: What a file belongs to, by the longest begin of its path within the package.
PARTS = {
    "transport/native/tls": TLS,
    "transport/http2/": "HTTP/2",
    "transport/": "connections and calls",
    "otp/": "actors",
    "flow/": "actors",
    "agents/": "agents",
    "logic/": "decisions",
    "wire/": "protobuf",
    "events/": "events and metrics",
    "observe/": "events and metrics",
    "reporting/": "reports and spool",
}
#: The same for libraries, by what their path holds.
LIBRARIES = {
    "/ssl.py": TLS,
    "/asyncio/": LOOP,
    "/google/protobuf/": "protobuf",
    "/grpc/": "gRPC's library",
    "/uvicorn/": "events and metrics",
    "/starlette/": "events and metrics",
    "/prometheus_client/": "events and metrics",
}
_SYSTEM_CALLS = ("sock.send(", "sock.recv(", "sock.recv_into(", "sock.sendmsg(")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cycle:
    """CPU seconds of one cycle, of the process and of its main thread."""

    sampled: bool
    cpu_s: float
    main_cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One call in progress."""

    file: str
    function: str
    line: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Frames from the innermost on, and the CPU seconds that were used there."""

    frames: tuple[Frame, ...]
    seconds: float


def main(*, quick: bool = False) -> Result:
    """Measure; quick: 200 agents, three short cycles."""
    agents, interval_s, plan = (200, 1.0, QUICK_CYCLES) if quick else (AGENTS, INTERVAL_S, CYCLES)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        file = Path(name) / "samples.json"
        with running(
            agents,
            interval_s=interval_s,
            warm_up_reports=WARM_UP_REPORTS,
            level="info",
            config={"transport": "native"},
            program=("-m", "benchmarks.sampled", str(file)),
        ) as site:
            time.sleep(SETTLE_S if not quick else SETTLE_S / 10)
            process = site.poller.process
            cycles = _cycles(process.pid, interval_s, plan)
        samples, stacks = read_stacks(file)
    checks = agents * len(CHECKS_DEFAULT)
    plain = [cycle for cycle in cycles if not cycle.sampled]
    whole_s = statistics.median(cycle.cpu_s for cycle in plain)
    main_s = statistics.median(cycle.main_cpu_s for cycle in plain)
    sampled_s = statistics.median(cycle.cpu_s for cycle in cycles if cycle.sampled)
    note = f"{samples:,} samples. A cycle takes {number(whole_s)} s of CPU, {number(sampled_s)} s while it is sampled."
    return Result(
        suite="profile",
        tables=(
            _parts_table(stacks, agents=agents, checks=checks, main_s=main_s, whole_s=whole_s, note=note),
            _functions_table(stacks, checks=checks, main_s=main_s, whole_s=whole_s),
        ),
        raw={
            "agents": agents,
            "interval_s": interval_s,
            "samples": samples,
            "cycles": [asdict(cycle) for cycle in cycles],
            "parts_s": dict(by_part(stacks)),
            "functions_s": [
                {"file": short(file), "function": function, "seconds": seconds}
                for (file, function), seconds in by_function(stacks).most_common(4 * FUNCTIONS)
            ],
        },
    )


def read_stacks(file: Path) -> tuple[int, list[Stack]]:
    """Return how many samples the sampler took, and the stacks that it found."""
    found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return found["samples"], [
        Stack(
            frames=tuple(Frame(file=file, function=function, line=line) for file, function, line in each["frames"]),
            seconds=each["seconds"],
        )
        for each in found["stacks"]
    ]


def part_of(frame: Frame) -> str | None:
    """Return the part of the program that a frame belongs to; None for a library that serves many."""
    file = frame.file.replace("\\", "/")
    _, package, inside = file.rpartition(PACKAGE)
    if package:
        begins = [begin for begin in PARTS if inside.startswith(begin)]
        return PARTS[max(begins, key=len)] if begins else OTHER
    if file.endswith("/selectors.py"):
        return WAITING if frame.function.endswith(".select") else LOOP
    if file.endswith("/asyncio/selector_events.py") and frame.line is not None:
        text = linecache.getline(frame.file, frame.line)
        if any(call in text for call in _SYSTEM_CALLS):
            return KERNEL
    return next((part for mark, part in LIBRARIES.items() if mark in file), None)


def by_part(stacks: Sequence[Stack]) -> Counter[str]:
    """Return the CPU seconds of each part."""
    found: Counter[str] = Counter()
    for stack in stacks:
        parts = (part_of(frame) for frame in stack.frames)
        found[next((part for part in parts if part is not None), OTHER)] += stack.seconds  # type: ignore[assignment]
    return found


def by_function(stacks: Sequence[Stack]) -> Counter[tuple[str, str]]:
    """Return the CPU seconds of each innermost function, by file and name."""
    found: Counter[tuple[str, str]] = Counter()
    for stack in stacks:
        if stack.frames:
            found[stack.frames[0].file, stack.frames[0].function] += stack.seconds  # type: ignore[assignment]
    return found


def _cycles(pid: int, interval_s: float, plan: Sequence[bool]) -> list[Cycle]:
    """Measure one cycle after the other, with the sampler on in those that *plan* says."""
    found: list[Cycle] = []
    on = False
    next_s = time.monotonic()
    for wanted in plan:
        before = cpu_s(pid), main_thread_cpu_s(pid)
        if wanted is not on:
            os.kill(pid, signal.SIGUSR1)
            on = wanted
        next_s += interval_s
        time.sleep(max(next_s - time.monotonic(), 0.0))
        main_s = main_thread_cpu_s(pid) - before[1]  # read within what the whole process is measured over
        found.append(Cycle(sampled=wanted, cpu_s=cpu_s(pid) - before[0], main_cpu_s=main_s))
    return found


def _parts_table(
    stacks: Sequence[Stack], *, agents: int, checks: int, main_s: float, whole_s: float, note: str
) -> Table:
    parts = by_part(stacks)
    share_s = main_s / parts.total() if parts.total() else 0.0
    rows = [(part, seconds * share_s) for part, seconds in parts.most_common()]
    rows += [("other threads: spool, log", max(whole_s - main_s, 0.0)), ("whole process", whole_s)]
    return Table(
        title=f"Where the CPU of a cycle goes: {agents:,} agents, {checks:,} checks over native and mutual TLS",
        columns=("part", "µs a check", "%"),
        rows=tuple((name, number(1e6 * seconds / checks), number(100 * seconds / whole_s)) for name, seconds in rows),
        notes=note,
    )


def _functions_table(stacks: Sequence[Stack], *, checks: int, main_s: float, whole_s: float) -> Table:
    functions = by_function(stacks)
    share_s = main_s / functions.total() if functions.total() else 0.0
    return Table(
        title="The dearest functions of a cycle, what they call in Python not counted",
        columns=("function", "µs a check", "%"),
        rows=tuple(
            (
                f"{short(file)} {function}",
                number(1e6 * seconds * share_s / checks),
                number(100 * seconds * share_s / whole_s),
            )
            for (file, function), seconds in functions.most_common(FUNCTIONS)
        ),
    )


def short(file: str) -> str:
    """Return a path from the package or the library on: where they are is the machine's business."""
    for mark in (PACKAGE, "site-packages/"):
        _, found, rest = file.rpartition(mark)
        if found:
            return rest
    path = Path(file)
    return "/".join(path.parts[-2:]) if path.parent.name in ("asyncio", "json", "concurrent") else path.name
