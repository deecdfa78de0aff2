"""
What the whole poller costs and how fast it is, as a process among simulated agents and core over mutual TLS.

Beside it, in the same run and against the same agents, a bare grpc.aio client that only makes the same calls.
Every figure is the median over the cycles measured, after two that connect and warm up.

Sketch before measuring (2 checks an agent, grpcio's client at 235 µs a call and 107 KiB a connection):

    agents   calls    CPU a cycle: calls + ours 60 %    memory: 45 MiB program + connections + 20 KiB an agent
       100     200    0.047 + 0.028 s                   45 + 10 + 2 MiB
     1,000   2,000    0.47 + 0.28 s                     45 + 104 + 20 MiB
     2,000   4,000    0.94 + 0.56 s                     45 + 209 + 39 MiB
"""

from __future__ import annotations

import contextlib
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.measure import POLL_DURATION, POLL_LATENESS, cpu_s, histograms, rss_bytes
from benchmarks.reference import measure_reference
from benchmarks.report import MIB, Promise, Result, Table, number
from serviceradar_poller.config.durations import NS_PER_S
from serviceradar_poller.config.sections import DEADLINE_NS_DEFAULT, default_spread_ns
from serviceradar_poller.lab.config import CHECKS_DEFAULT
from serviceradar_poller.lab.pki import make_pki
from serviceradar_poller.testing.site import Site, make_site

SIZES = (100, 1_000, 2_000)
INTERVAL_S = 10.0
CYCLES = 5
REFERENCE_CYCLES = 4
#: Reports before anything is measured: the one that registers, that of the first cycle, and one more cycle.
WARM_UP_REPORTS = 3
#: After a report was accepted nothing happens until the next tick: between two such moments lies exactly one cycle.
SETTLE_S = 0.5
#: Latencies that the poller's view takes its percentiles from.
NEWEST = 1_024
START_TIMEOUT_S = 60.0
#: The size that promises are made for.
PROMISED = 1_000
RSS_MIB_MAX = 200.0
P99_MS_MAX = 50.0
#: Another program's figures on such a machine (2 cores), for 1,000 agents.
GO = "270–311 MiB, 0.45 s a cycle, p99 308–542 ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cycle:
    """
    One cycle of the poller.

    Attributes:
        p99_newest_s: Of the latencies of its newest 1,024 checks, exact.
        tick_s: From the tick until core has accepted the report.
    """

    cpu_s: float
    rss_bytes: int
    p99_newest_s: float
    tick_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """
    One size of site.

    Attributes:
        polls: Checks that finished while it was measured.
        p50_s, p99_s, lateness_p99_s: Of all these checks, linear within a histogram's bucket; 50 ms is the bound of
            one, so whether the p99 is below that is exact.
        within_50_ms, lateness_within_100_ms: Exact shares of these checks.
        failed: How many of these checks did not get an answer.
        handshakes: Connections that agents accepted in this time; anything but 0 says that the site was not at rest.
    """

    agents: int
    cycles: tuple[Cycle, ...]
    polls: float
    p50_s: float
    p99_s: float
    within_50_ms: float
    lateness_p99_s: float
    lateness_within_100_ms: float
    failed: int
    handshakes: int
    reference: tuple[dict[str, float], ...]

    def median(self, name: str) -> float:
        """Return a figure of the poller, the median over the cycles."""
        return statistics.median(float(getattr(cycle, name)) for cycle in self.cycles)

    @property
    def p99_newest_s(self) -> float:
        """Return the exact p99 of the newest checks; NaN where they reach back to the time before the measurement."""
        known = self.agents * len(CHECKS_DEFAULT) >= NEWEST
        return self.median("p99_newest_s") if known else math.nan

    def bare(self, name: str) -> float:
        """Return a figure of the bare client, the median over the cycles."""
        return statistics.median(cycle[name] for cycle in self.reference)


def main(*, quick: bool = False) -> Result:
    """Measure every size; quick: a hundred agents, two short cycles."""
    sizes, interval_s, cycles = ((100,), 1.0, 2) if quick else (SIZES, INTERVAL_S, CYCLES)
    reference_cycles = 2 if quick else REFERENCE_CYCLES
    runs = []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        pki = Path(folder) / "pki"
        make_pki(pki)
        for agents in sizes:
            directory = Path(folder) / str(agents)
            directory.mkdir()
            runs.append(
                measure(
                    agents,
                    directory=directory,
                    pki=pki,
                    interval_s=interval_s,
                    cycles=cycles,
                    reference_cycles=reference_cycles,
                )
            )
    return Result(
        suite="poller",
        tables=(_table(runs, interval_s),),
        promises=_promises(runs),
        raw={"interval_s": interval_s, "runs": [asdict(run) for run in runs]},
    )


def measure(agents: int, *, directory: Path, pki: Path, interval_s: float, cycles: int, reference_cycles: int) -> Run:
    """Run one site, poller first, then the bare client against the same agents."""
    with contextlib.ExitStack() as stack:
        site = make_site(
            stack,
            directory,
            agents,
            cert_dir=pki,
            interval=f"{round(interval_s * 1000)}ms",
            level="info",
            ready=False,
        )
        site.poller.ready(timeout_s=START_TIMEOUT_S)
        site.await_reports(WARM_UP_REPORTS, since=0, timeout_s=START_TIMEOUT_S)
        time.sleep(SETTLE_S if interval_s >= INTERVAL_S else 0.05)
        pid = site.poller.process.pid
        before, handshakes, failed = histograms(site.poller), _handshakes(site), _failed(site)
        measured = _cycles(site, pid, interval_s, cycles)
        after = histograms(site.poller)
        handshakes, failed = _handshakes(site) - handshakes, _failed(site) - failed
        site.poller.stop()
        interval_ns = round(interval_s * NS_PER_S)
        window_ns = default_spread_ns(
            agents * len(CHECKS_DEFAULT), interval_ns, min(DEADLINE_NS_DEFAULT, interval_ns // 2)
        )
        reference = measure_reference(
            site.agents.ports,
            pki,
            interval_s=interval_s,
            window_s=window_ns / NS_PER_S,
            cycles=reference_cycles,
        )
    duration = after[POLL_DURATION].since(before[POLL_DURATION])
    lateness = after[POLL_LATENESS].since(before[POLL_LATENESS])
    return Run(
        agents=agents,
        cycles=tuple(measured),
        polls=duration.total,
        p50_s=duration.quantile(0.5),
        p99_s=duration.quantile(0.99),
        within_50_ms=duration.share_within(0.05),
        lateness_p99_s=lateness.quantile(0.99),
        lateness_within_100_ms=lateness.share_within(0.1),
        failed=failed,
        handshakes=handshakes,
        reference=tuple(reference),
    )


def _cycles(site: Site, pid: int, interval_s: float, count: int) -> list[Cycle]:
    """Sample once per interval, at a phase at which the poller is idle; the cost of looking is taken off."""
    found = []
    next_s = time.monotonic()
    used_s = cpu_s(pid)
    for _ in range(count):
        next_s += interval_s
        time.sleep(max(next_s - time.monotonic(), 0.0))
        now_s = cpu_s(pid)
        rss = rss_bytes(pid)
        view = site.poller.json("/view?agents=0")
        found.append(
            Cycle(
                cpu_s=now_s - used_s,
                rss_bytes=rss,
                p99_newest_s=view["polls"]["latency_p99_s"],
                tick_s=view["core"]["last_tick_s"],
            )
        )
        used_s = cpu_s(pid)
    return found


def _handshakes(site: Site) -> int:
    return int(site.agents.stats()["counts"].get("handshakes", 0))


def _failed(site: Site) -> int:
    return int(site.poller.json("/view?agents=0")["polls"]["failed"])


def _table(runs: Sequence[Run], interval_s: float) -> Table:
    rows = []
    for run in runs:
        cpu, bare_cpu = run.median("cpu_s"), run.bare("cpu_s")
        rss, bare_rss = run.median("rss_bytes") / MIB, run.bare("rss_bytes") / MIB
        rows.append(
            (
                f"{run.agents:,}",
                number(rss),
                number(bare_rss),
                number(rss / bare_rss),
                number(cpu),
                number(bare_cpu),
                number(cpu / bare_cpu),
                number(1e3 * run.p50_s),
                number(1e3 * run.p99_s),
                number(1e3 * run.p99_newest_s),
                number(1e3 * run.bare("p50_s")),
                number(1e3 * run.bare("p99_s")),
                number(1e3 * run.lateness_p99_s),
                number(run.median("tick_s")),
                f"{run.handshakes} / {run.failed}",
            )
        )
    return Table(
        title=f"The poller and a bare grpc.aio client: 2 checks an agent, every {interval_s:g} s, mutual TLS",
        columns=(
            "agents",
            "RSS MiB",
            "bare",
            "ratio",
            "CPU s a cycle",
            "bare",
            "ratio",
            "p50 ms",
            "p99 ms",
            "p99 of the newest 1,024",
            "bare p50",
            "bare p99",
            "lateness p99 ms",
            "tick to accepted s",
            "reconnects / failed checks",
        ),
        rows=tuple(rows),
        notes=f"The Go poller with 1,000 agents on 2 cores, measured: {GO}.",
    )


def _promises(runs: Sequence[Run]) -> tuple[Promise, ...]:
    found = []
    for run in runs:
        if run.agents == PROMISED:
            found = [
                Promise(
                    text=f"memory of {PROMISED:,} agents (Go: 270–311)",
                    limit=RSS_MIB_MAX,
                    measured=run.median("rss_bytes") / MIB,
                    unit="MiB",
                ),
                Promise(
                    text=f"p99 of a check, {PROMISED:,} agents (Go: 308–542)",
                    limit=P99_MS_MAX,
                    measured=1e3 * run.p99_s,
                    unit="ms",
                ),
            ]
    return tuple(found)
