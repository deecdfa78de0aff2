"""
What the whole poller costs and how fast it is, as a process among simulated agents and core over mutual TLS.

Once over gRPC's library and once over the poller's own HTTP/2. Beside each run, against the same agents, a bare
grpc.aio client that only makes the same calls.
Every figure is the median over the cycles measured, after two that connect and warm up.

Sketch before measuring (2 checks an agent; a call of gRPC's library 120 µs and its connection 98 KiB, of our own HTTP/2
35 µs and 35 KiB; a check of ours 90 µs, an agent 14 KiB; the program 66 MiB):

    agents   calls    grpcio: CPU a cycle, memory    native: CPU a cycle, memory
       100     200    0.04 s,  77 MiB                0.03 s,  71 MiB
     1,000   2,000    0.42 s, 176 MiB                0.25 s, 114 MiB
     4,000   8,000                                   1.0 s,  258 MiB
     8,000  16,000                                   2.0 s,  450 MiB
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

from benchmarks.measure import POLL_DURATION, POLL_LATENESS, cpu_s, histograms, process_age_s, rss_bytes
from benchmarks.reference import measure_reference
from benchmarks.report import MIB, Promise, Result, Table, number
from serviceradar_poller.config.durations import NS_PER_S
from serviceradar_poller.config.sections import DEADLINE_NS_DEFAULT, default_spread_ns
from serviceradar_poller.lab.config import CHECKS_DEFAULT
from serviceradar_poller.lab.pki import make_pki
from serviceradar_poller.testing.process import eventually
from serviceradar_poller.testing.site import Site, make_site

#: Transport and agents of each run.
RUNS = (("grpcio", 100), ("grpcio", 1_000), ("native", 100), ("native", 1_000), ("native", 4_000), ("native", 8_000))
QUICK_RUNS = (("native", 100),)
INTERVAL_S = 10.0
CYCLES = 5
REFERENCE_CYCLES = 4
#: Reports before anything is measured: the one that registers, that of the first cycle, and one more cycle.
WARM_UP_REPORTS = 3
#: After a report was accepted nothing happens until the next tick: between two such moments lies exactly one cycle.
SETTLE_S = 0.5
#: Latencies that the poller's view takes its percentiles from.
NEWEST = 1_024
START_TIMEOUT_S = 120.0
#: The size that promises are made for, and by transport: MiB and CPU seconds a cycle.
PROMISED = 1_000
RSS_MIB_MAX = {"grpcio": 200.0, "native": 100.0}
#: Go takes 0.45.
CPU_S_MAX = {"grpcio": 1.2, "native": 0.4}
#: From the start of a poller with 8,000 agents until all are connected.
LARGEST = 8_000
CONNECTED_S_MAX = 60.0
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
        transport: What makes the calls: ``grpcio`` or ``native``.
        connected_s: From the start of the process until every agent was connected.
        failed_at_start: Checks that failed until then.
        polls: Checks that finished while it was measured.
        p50_s, p99_s, lateness_p99_s: Of all these checks, linear within a histogram's bucket; 50 ms is the bound of
            one, so whether the p99 is below that is exact.
        within_50_ms, lateness_within_100_ms: Exact shares of these checks.
        failed: How many of these checks did not get an answer.
        handshakes: Connections that agents accepted in this time; anything but 0 says that the site was not at rest.
    """

    transport: str
    agents: int
    connected_s: float
    failed_at_start: int
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
    plan, interval_s, cycles = (QUICK_RUNS, 1.0, 2) if quick else (RUNS, INTERVAL_S, CYCLES)
    reference_cycles = 2 if quick else REFERENCE_CYCLES
    runs = []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        pki = Path(folder) / "pki"
        make_pki(pki)
        for transport, agents in plan:
            directory = Path(folder) / f"{transport}-{agents}"
            directory.mkdir()
            runs.append(
                measure(
                    agents,
                    transport=transport,
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


def measure(
    agents: int,
    *,
    transport: str,
    directory: Path,
    pki: Path,
    interval_s: float,
    cycles: int,
    reference_cycles: int,
) -> Run:
    """Run one site, poller first, then the bare client against the same agents."""
    with contextlib.ExitStack() as stack:
        site = make_site(
            stack,
            directory,
            agents,
            cert_dir=pki,
            interval=f"{round(interval_s * 1000)}ms",
            level="info",
            config={"transport": transport},
            ready=False,
        )
        site.poller.ready(timeout_s=START_TIMEOUT_S)
        connected_s = _connected(site, agents)
        failed_at_start = _failed(site)
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
        transport=transport,
        agents=agents,
        connected_s=connected_s,
        failed_at_start=failed_at_start,
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


def _connected(site: Site, agents: int) -> float:
    """Wait until every agent is connected; return the age of the poller's process then, in seconds."""

    def all_up() -> bool:
        return bool(site.poller.json("/health")["agents"]["up"] == agents)

    eventually(all_up, "every agent is connected", timeout_s=START_TIMEOUT_S)
    return process_age_s(site.poller.process.pid)


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
                run.transport,
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
                number(run.connected_s),
                f"{run.handshakes} / {run.failed_at_start} / {run.failed}",
            )
        )
    return Table(
        title=f"The poller and a bare grpc.aio client: 2 checks an agent, every {interval_s:g} s, mutual TLS",
        columns=(
            "transport",
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
            "all connected after s",
            "reconnects / failed checks at the start / later",
        ),
        rows=tuple(rows),
        notes=f"The Go poller with 1,000 agents on 2 cores, measured: {GO}.",
    )


def _promises(runs: Sequence[Run]) -> tuple[Promise, ...]:
    found = []
    for run in runs:
        if run.agents == PROMISED:
            found += [
                Promise(
                    text=f"memory of {PROMISED:,} agents over {run.transport} (Go: 270–311)",
                    limit=RSS_MIB_MAX[run.transport],
                    measured=run.median("rss_bytes") / MIB,
                    unit="MiB",
                ),
                Promise(
                    text=f"CPU of a cycle of {PROMISED:,} agents over {run.transport} (Go: 0.45)",
                    limit=CPU_S_MAX[run.transport],
                    measured=run.median("cpu_s"),
                    unit="s",
                ),
                Promise(
                    text=f"p99 of a check, {PROMISED:,} agents over {run.transport} (Go: 308–542)",
                    limit=P99_MS_MAX,
                    measured=1e3 * run.p99_s,
                    unit="ms",
                ),
            ]
        elif run.agents == LARGEST:
            found.append(
                Promise(
                    text=f"{LARGEST:,} agents connected after the start",
                    limit=CONNECTED_S_MAX,
                    measured=run.connected_s,
                    unit="s",
                )
            )
    return tuple(found)
