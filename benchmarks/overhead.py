"""
What the poller costs by itself: the whole program with a transport that answers at once and costs next to nothing.

Run with ``python -m benchmarks.overhead``, where ``cpu`` or ``memory`` behind it shows where that goes. Each figure is
the median of its cycles; what an agent takes is the difference between a large site and one of a single agent.

Sketch before measuring (2 checks an agent, 10 s): six processes at rest 0.8 KiB each, slot, schedule and subjects 2,
what is shown and reported of two checks 3: 10 KiB an agent. A check: half a timer and two halves of a task for the
actor, a task of its own, JSON twice, four events' worth of counting: 80 µs.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gc
import itertools
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from benchmarks.instant import serve
from benchmarks.measure import cpu_s, rss_bytes
from benchmarks.report import MIB, Promise, Result, Table, number
from serviceradar_poller.lab.config import CHECKS_DEFAULT, make_config

AGENTS = 1_000
INTERVAL_S = 10.0
CYCLES = 4
#: Names of figures that promises are made of, and their limits.
AGENT_KIB, CHECK_US, BASE_MIB = "an agent more, RSS, KiB", "a check more, CPU, µs", "one agent, RSS, MiB"
AGENT_KIB_MAX = 18.0
CHECK_US_MAX = 120.0
BASE_MIB_MAX = 70.0
STOP_TIMEOUT_S = 60.0
#: After a tick, when a whole cycle is over and the next one not begun, as a share of the interval.
QUIET_SHARE = 0.9
#: Between two samples of the profile.
SAMPLE_S = 0.0005


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One size of site at rest: its memory, and the CPU of its cycles."""

    agents: int
    rss_bytes: int
    cycles_cpu_s: tuple[float, ...]

    @property
    def cpu_s(self) -> float:
        """The median."""
        return statistics.median(self.cycles_cpu_s)


def main(*, quick: bool = False) -> Result:
    """Measure the program with one agent and with many."""
    agents, interval_s, cycles = (50, 1.0, 2) if quick else (AGENTS, INTERVAL_S, CYCLES)
    one, many = measure_both(agents, interval_s=interval_s, cycles=cycles)
    found = figures(one, many)
    promises = (
        Promise(
            text="memory of an agent, transport left out", limit=AGENT_KIB_MAX, measured=found[AGENT_KIB], unit="KiB"
        ),
        Promise(text="CPU of a check, transport left out", limit=CHECK_US_MAX, measured=found[CHECK_US], unit="µs"),
        Promise(text="memory of a poller of one agent", limit=BASE_MIB_MAX, measured=found[BASE_MIB], unit="MiB"),
    )
    return Result(
        suite="overhead",
        tables=(
            Table(
                title=f"The poller without its transport: 2 checks an agent, every {interval_s:g} s",
                columns=("", "measured"),
                rows=tuple((name, number(value)) for name, value in found.items()),
            ),
        ),
        promises=() if quick else promises,
        raw={"interval_s": interval_s, "sites": [asdict(one), asdict(many)]},
    )


def figures(one: Site, many: Site) -> dict[str, float]:
    """Return what is told of a site of one agent and of a large one."""
    more = many.agents - one.agents
    return {
        BASE_MIB: one.rss_bytes / MIB,
        f"{many.agents:,} agents, RSS, MiB": many.rss_bytes / MIB,
        AGENT_KIB: (many.rss_bytes - one.rss_bytes) / more / 1024,
        "a cycle of one agent, CPU, ms": 1e3 * one.cpu_s,
        f"a cycle of {many.agents:,} agents, CPU, ms": 1e3 * many.cpu_s,
        CHECK_US: 1e6 * (many.cpu_s - one.cpu_s) / (more * len(CHECKS_DEFAULT)),
    }


def measure_both(agents: int, *, interval_s: float, cycles: int) -> tuple[Site, Site]:
    """Measure a site of one agent and one of many, at the same time: the small one takes no CPU worth the name."""
    with ThreadPoolExecutor() as pool:
        one, many = (pool.submit(measure, count, interval_s=interval_s, cycles=cycles) for count in (1, agents))
        return one.result(), many.result()


def measure(agents: int, *, interval_s: float, cycles: int) -> Site:
    """Run a poller of *agents* as a process and measure *cycles* after two that warm it up."""
    with (
        _site(agents, interval_s=interval_s) as path,
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.instant", path], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
        ) as process,
    ):
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"polling\n"
            next_s = time.monotonic() + (2 + QUIET_SHARE) * interval_s
            used: list[float] = []
            for _ in range(cycles + 1):
                time.sleep(max(next_s - time.monotonic(), 0.0))
                used.append(cpu_s(process.pid))
                next_s += interval_s
            rss = rss_bytes(process.pid)
        finally:
            process.terminate()
        assert process.wait(STOP_TIMEOUT_S) == 0
    return Site(
        agents=agents,
        rss_bytes=rss,
        cycles_cpu_s=tuple(after - before for before, after in itertools.pairwise(used)),
    )


@contextlib.contextmanager
def _site(agents: int, *, interval_s: float) -> Iterator[str]:
    """Write the configuration of a site; give its path."""
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        path = Path(folder) / "poller.json"
        make_config(
            path,
            agents={f"agent-{number:04d}": 50_051 for number in range(agents)},
            core_address="127.0.0.1:50052",
            poll_interval=f"{round(1000 * interval_s)}ms",
            state_dir=folder,
            extra={"logging": {"level": "warn", "output": "stderr"}},  # its standard output says that it polls
        )
        yield str(path)


def profile(path: str, *, memory: bool, interval_s: float, cycles: int) -> int:
    """Run the program for a few cycles in this process and print where its CPU, or its memory, went."""
    samples: collections.Counter[tuple[str, ...]] = collections.Counter()
    begin_s = time.monotonic() + (1 + QUIET_SHARE) * interval_s
    end_s = begin_s + cycles * interval_s

    def sample(number: int, frame: FrameType | None) -> None:
        # Of the real time: the kernel measures that of the CPU in steps of 4 ms. What waits is left out.
        now_s = time.monotonic()
        if now_s >= end_s:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            if memory:
                gc.collect()
                _print_memory(tracemalloc.take_snapshot())
            os.kill(os.getpid(), signal.SIGTERM)
        elif now_s >= begin_s and frame is not None and frame.f_code.co_name != "select":
            samples[tuple(_names(frame))] += 1

    signal.signal(signal.SIGALRM, sample)
    step_s = interval_s if memory else SAMPLE_S
    if memory:
        tracemalloc.start(1)
    signal.setitimer(signal.ITIMER_REAL, step_s, step_s)
    code = serve(path)
    if not memory:
        _print_samples(samples)
    return code


def _names(frame: FrameType | None) -> Iterator[str]:
    while frame is not None:
        code = frame.f_code
        yield f"{_short(code.co_filename)}:{code.co_qualname}"
        frame = frame.f_back


def _print_samples(samples: collections.Counter[tuple[str, ...]]) -> None:
    total = sum(samples.values())
    own: collections.Counter[str] = collections.Counter()
    within: collections.Counter[str] = collections.Counter()
    for names, count in samples.items():
        own[names[0]] += count
        for name in set(names):
            within[name] += count
    for title, counts in (("own", own), ("with what it calls", within)):
        print(f"-- {title}: % of {total} samples")
        for name, count in counts.most_common(60):
            print(f"{100 * count / total:6.1f}  {name}")


def _print_memory(snapshot: tracemalloc.Snapshot) -> None:
    lines = snapshot.statistics("lineno")
    print(f"-- {sum(line.size for line in lines) / MIB:.1f} MiB by line: KiB, blocks")
    for line in lines[:90]:
        frame = line.traceback[0]
        print(f"{line.size / 1024:9.0f} {line.count:8}  {_short(frame.filename)}:{frame.lineno}")


def _short(path: str) -> str:
    return "/".join(path.split("/")[-2:])


def _main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead")
    parser.add_argument("what", choices=("measure", "cpu", "memory"), nargs="?", default="measure")
    parser.add_argument("--agents", type=int, default=AGENTS)
    parser.add_argument("--interval", type=float, default=INTERVAL_S, help="seconds")
    parser.add_argument("--cycles", type=int, default=CYCLES)
    args = parser.parse_args(arguments)
    if args.what != "measure":
        with _site(args.agents, interval_s=args.interval) as path:
            return profile(path, memory=args.what == "memory", interval_s=args.interval, cycles=args.cycles)
    one, many = measure_both(args.agents, interval_s=args.interval, cycles=args.cycles)
    for name, value in figures(one, many).items():
        print(f"{name:<40} {number(value)}")
    return 0


if __name__ == "__main__":
    sys.exit(_main())
