"""
How late everybody else's checks are while one agent hangs.

A thousand agents are polled, one of them goes mute, freezes, or never answers, for three cycles each; before that come
three cycles in which nothing is wrong. The exact lateness of every check is in the poller's log at level debug, which
costs some CPU: no other benchmark has it on.

Beside it stands how late the event loop ran its timers in the same time, and the lateness that remains when the time
is taken off in which the poller was ready to run and the machine gave it no CPU.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

from benchmarks.measure import LOOP_LAG, histograms, percentile
from benchmarks.report import Promise, Result, Table, number
from benchmarks.site import running
from serviceradar_poller.testing.site import Site

AGENTS = 1_000
INTERVAL_S = 10.0
CYCLES = 3
FAULTS = ("mute", "freeze", "hang_status")
LATENESS_MS_MAX = 100.0
WARM_UP_REPORTS = 3
#: The latest checks of a phase, for which the wait for a CPU is looked up.
LATEST = 20
GO = "every agent silent for 26 s, 156 s, or for ever"


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """
    Three cycles with one fault.

    Attributes:
        checks: Of the other agents.
        own_max_s: The greatest lateness less the wait for a CPU, among the latest checks.
        lag_max_s: No timer of the loop was later, of one a second: the bound of its histogram's bucket.
        failed: Checks of the other agents that failed: there must be none.
    """

    fault: str
    checks: int
    failed: int
    p50_s: float
    p999_s: float
    max_s: float
    own_max_s: float
    lag_max_s: float


def main(*, quick: bool = False) -> Result:
    """Measure; quick: 30 agents, one fault, short cycles."""
    agents, interval_s, faults = (30, 1.0, FAULTS[:1]) if quick else (AGENTS, INTERVAL_S, FAULTS)
    with running(agents, interval_s=interval_s, warm_up_reports=WARM_UP_REPORTS) as site:
        phases = [_phase(site, "", "", interval_s)]
        for index, fault in enumerate(faults):
            phases.append(_phase(site, fault, f"agent-{7 * (index + 1):04d}", interval_s))
    hung = [phase for phase in phases if phase.fault]
    return Result(
        suite="isolation",
        tables=(
            Table(
                title=f"One of {agents:,} agents hangs: lateness of everybody else's checks during {CYCLES} cycles",
                columns=(
                    "fault",
                    "checks",
                    "failed",
                    "p50 ms",
                    "p99.9 ms",
                    "max ms",
                    "max ms without waits for a CPU",
                    "loop lag below ms",
                ),
                rows=tuple(
                    (
                        phase.fault or "none",
                        f"{phase.checks:,}",
                        str(phase.failed),
                        *(number(1e3 * value) for value in (phase.p50_s, phase.p999_s, phase.max_s)),
                        number(1e3 * phase.own_max_s),
                        number(1e3 * phase.lag_max_s),
                    )
                    for phase in phases
                ),
                notes=f"The Go poller, measured: {GO}.",
            ),
        ),
        promises=()
        if quick
        else (
            Promise(
                text=f"one of {agents:,} agents hangs: the latest check of the others (Go: silent)",
                limit=LATENESS_MS_MAX,
                measured=1e3 * max(phase.max_s for phase in hung),
                unit="ms",
            ),
        ),
        raw={"agents": agents, "interval_s": interval_s, "phases": [asdict(phase) for phase in phases]},
    )


def _phase(site: Site, fault: str, agent: str, interval_s: float) -> Phase:
    poller = site.poller
    mark = poller.mark()
    before = histograms(poller)[LOOP_LAG]
    if fault:
        site.agents.set_fault(agent, fault)
    # The view is asked, not the log: reading that over and over would take CPU from the poller.
    until = _cycles_reported(site) + CYCLES
    until_s = time.monotonic() + (CYCLES + 3) * interval_s
    while _cycles_reported(site) < until:
        if time.monotonic() > until_s:
            raise RuntimeError(f"{fault or 'no fault'}: {CYCLES} cycles took more than {(CYCLES + 3) * interval_s:g} s")
        time.sleep(interval_s / 20)
    lag = histograms(poller)[LOOP_LAG].since(before)
    if fault:
        site.agents.clear_fault(agent)
    lines = [line for line in poller.events("check_finished", since=mark) if line["agent"] != agent]
    latest = sorted(lines, key=lambda line: -line["lateness_s"])[:LATEST]
    own_s = []
    for line in latest:
        start_s = line["wall_s"] - line["latency_s"]
        own_s.append(line["lateness_s"] - poller.waits.waited_s(start_s - line["lateness_s"], start_s))
    lateness_s = [line["lateness_s"] for line in lines]
    return Phase(
        fault=fault,
        checks=len(lines),
        failed=sum(line["outcome"] == "failed" for line in lines),
        p50_s=percentile(lateness_s, 0.5),
        p999_s=percentile(lateness_s, 0.999),
        max_s=max(lateness_s),
        own_max_s=max(0.0, *own_s),
        lag_max_s=lag.bound_of_max(),
    )


def _cycles_reported(site: Site) -> int:
    return int(site.poller.json("/view?agents=0")["core"]["cycles"])
