"""
What an outage of core costs: memory minute by minute, what is written, lateness, and how soon all of it is delivered.

A thousand agents are polled while core is gone; reports wait in the spool. Then core is back, and the backlog drains
while the polling goes on. The exact lateness of every check is in the poller's log at level debug.

Sketch before measuring: a report of 2,000 statuses is some 1 MB, six a minute: 6 MB a minute on disk and nothing in
memory but the report that is cut, which was there before. A seal is one sync and one more for each attempt to reach
core that is counted, every 5 to 10 s; 60 reports of 1 MB at what core takes, some 10 a second, drain in 6 s.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.measure import cpu_s, rss_bytes
from benchmarks.report import MIB, Promise, Result, Table, number
from benchmarks.site import running
from serviceradar_poller.testing.site import Site

AGENTS = 1_000
INTERVAL_S = 10.0
OUTAGE_S = 120.0
LONG_OUTAGE_S = 600.0
STEP_S = 60.0
DRAIN_TIMEOUT_S = 300.0
#: Before the outage: the report that registers, two cycles, and what malloc and the first seals take for good.
WARM_UP_REPORTS = 4
GROWTH_MIB_MAX = 16.0
DRAIN_S_MAX = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The poller at one moment; the totals are those since the start of the program."""

    at_s: float
    rss_bytes: int
    reports: int
    queue_bytes: int
    file_bytes: int
    cpu_s: float
    fsyncs: float
    cycles: int


def main(*, quick: bool = False, long: bool = False) -> Result:
    """Measure; quick: 30 agents and a few seconds; long: ten minutes instead of two."""
    agents, interval_s, outage_s, step_s = AGENTS, INTERVAL_S, LONG_OUTAGE_S if long else OUTAGE_S, STEP_S
    if quick:
        agents, interval_s, outage_s, step_s = 30, 1.0, 6.0, 2.0
    with running(agents, interval_s=interval_s, warm_up_reports=WARM_UP_REPORTS) as site:
        time.sleep(interval_s / 20)
        mark = site.poller.mark()
        samples = _outage(site, outage_s=outage_s, step_s=step_s)
        drained = _drain(site)
        late = site.poller.late_checks(since=mark)
        checks = site.poller.events("check_finished", since=mark)
        accounts = site.poller.json("/health")["statuses"]
    return _result(
        agents=agents, outage_s=outage_s, samples=samples, drained=drained, late=len(late), checks=checks,
        accounts=accounts, quick=quick,
    )  # fmt: skip


def _sample(site: Site, began_s: float) -> Sample:
    pid = site.poller.process.pid
    rss = rss_bytes(pid)
    used_s = cpu_s(pid)
    core = site.poller.json("/view?agents=0")["core"]
    return Sample(
        at_s=time.monotonic() - began_s,
        rss_bytes=rss,
        reports=core["queue_reports"],
        queue_bytes=core["queue_bytes"],
        file_bytes=sum(path.stat().st_size for path in (site.directory / "state" / "spool").iterdir()),
        cpu_s=used_s,
        fsyncs=site.poller.metric("spool_fsyncs_total"),
        cycles=core["cycles"],
    )


def _outage(site: Site, *, outage_s: float, step_s: float) -> list[Sample]:
    """Take core away, and sample at every step."""
    began_s = time.monotonic()
    samples = [_sample(site, began_s)]
    site.core.set_fault("disappear")
    while time.monotonic() - began_s < outage_s - step_s / 2:
        time.sleep(max(began_s + len(samples) * step_s - time.monotonic(), 0.0))
        samples.append(_sample(site, began_s))
    return samples


def _drain(site: Site) -> dict[str, float]:
    """Bring core back, and wait until it has everything."""
    pid = site.poller.process.pid
    waiting = _sample(site, 0.0)
    site.core.clear_fault()
    began_s = time.monotonic()
    first_s = peak = 0.0
    while True:
        core = site.poller.json("/view?agents=0")["core"]
        peak = max(peak, rss_bytes(pid))
        at_s = time.monotonic() - began_s
        if core["connected"] and not first_s:
            first_s = at_s
        if core["connected"] and core["queue_reports"] == 0:
            break
        if at_s > DRAIN_TIMEOUT_S:
            raise RuntimeError(f"core does not have everything after {DRAIN_TIMEOUT_S:g} s")
        time.sleep(0.05)
    now = _sample(site, 0.0)
    return {
        "reports": waiting.reports,
        "mb": waiting.queue_bytes / 1e6,
        "first_s": first_s,
        "drain_s": at_s,
        "cpu_s": now.cpu_s - waiting.cpu_s,
        "fsyncs": now.fsyncs - waiting.fsyncs,
        "peak_rss_bytes": peak,
        "rss_bytes": now.rss_bytes,
    }


def _result(
    *,
    agents: int,
    outage_s: float,
    samples: list[Sample],
    drained: dict[str, float],
    late: int,
    checks: list[dict[str, Any]],
    accounts: dict[str, Any],
    quick: bool,
) -> Result:
    first, last = samples[0], samples[-1]
    growth = (max(sample.rss_bytes for sample in samples) - first.rss_bytes) / MIB
    lateness_s = max((line["lateness_s"] for line in checks), default=0.0)
    failed = sum(line["outcome"] == "failed" for line in checks)
    seals = last.reports - first.reports
    lost = accounts["polled"] - accounts["delivered"] - accounts["queued"]
    rows = []
    before = first
    for sample in samples:
        rows.append(
            (
                number(sample.at_s / 60),
                number(sample.rss_bytes / MIB, 4),
                f"{sample.reports}",
                number(sample.queue_bytes / 1e6),
                number(sample.file_bytes / 1e6),
                number(sample.cpu_s - before.cpu_s),
                number((sample.fsyncs - before.fsyncs) / max(sample.reports - before.reports, 1)),
            )
        )
        before = sample
    return Result(
        suite="outage",
        tables=(
            Table(
                title=f"Core is away for {outage_s / 60:g} min, {agents:,} agents with 2 checks",
                columns=("minute", "RSS MiB", "reports wait", "MB wait", "MB of files", "CPU s since", "fsyncs a seal"),
                rows=tuple(rows),
                notes="The files include the reserve of 16 MiB. Attempts to reach core are syncs as well.",
            ),
            Table(
                title="Core is back",
                columns=("", "measured"),
                rows=(
                    ("reports that waited", f"{drained['reports']:.0f}"),
                    ("their size, MB", number(drained["mb"])),
                    ("core accepts the first after, s", number(drained["first_s"])),
                    ("core has everything after, s", number(drained["drain_s"])),
                    ("CPU for it, polling included, s", number(drained["cpu_s"])),
                    ("fsyncs", f"{drained['fsyncs']:.0f}"),
                    ("peak RSS, MiB", number(drained["peak_rss_bytes"] / MIB, 4)),
                    ("RSS afterwards, MiB", number(drained["rss_bytes"] / MIB, 4)),
                    ("seals/s during the outage", number(seals / max(last.at_s - first.at_s, 1.0))),
                    ("checks from the outage to the end", f"{len(checks):,}"),
                    ("of them failed", f"{failed}"),
                    ("late by more than 100 ms, waits for a CPU apart", f"{late}"),
                    ("the latest, ms, waits for a CPU included", number(1e3 * lateness_s)),
                    ("statuses neither delivered nor queued", f"{lost}"),
                ),
            ),
        ),
        promises=()
        if quick
        else (
            Promise(
                text=f"core away for {outage_s / 60:g} min, {agents:,} agents: growth of memory",
                limit=GROWTH_MIB_MAX,
                measured=growth,
                unit="MiB",
            ),
            Promise(
                text="checks late meanwhile and while core catches up", limit=0.0, measured=float(late), unit="checks"
            ),
            Promise(text="core has everything after", limit=DRAIN_S_MAX, measured=drained["drain_s"], unit="s"),
            Promise(text="statuses lost by the outage", limit=0.0, measured=float(lost), unit="statuses"),
        ),
        raw={
            "agents": agents,
            "outage_s": outage_s,
            "samples": [asdict(sample) for sample in samples],
            "drained": drained,
            "late": late,
            "checks": len(checks),
            "accounts": accounts,
        },
    )
