"""
Whether descriptors, tasks or memory grow while agents flap and core comes and goes, and whether a status is lost.

Run by hand for half an hour or more: ``python -m benchmarks.soak --minutes 30``.

The whole poller over its own HTTP/2 and mutual TLS. A share of the agents that a seed chooses is well for some seconds,
has a fault for some seconds, and so on, each at its own times; core goes away now and then. Every few seconds the
poller is looked at from outside. Three judgements:

- in the course of the run: medians of its first and last third, and for memory the slope as well;
- at rest, before the first fault and after the last, with every agent connected: the finer sieve, for nothing that
  still comes or goes excuses a difference;
- of the statuses: each is in one place at every look, all are delivered in the end, and core counts as many.

Sketch before measuring (300 agents, a fifth of which flap): a connection is one descriptor, an agent that can't be
reached or doesn't answer is one task or two, so both swing by the some 30 agents that have a fault at a time; a fault
an agent every 19 s, 3 a second, 5,700 in half an hour: one descriptor lost in a hundred of them would show as 57.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.collected import PROGRAM
from benchmarks.flapping import CORE, Act, choose, plan
from benchmarks.measure import LOOP_LAG, POLL_LATENESS, cpu_s, histograms, open_fds, plain_metrics, rss_bytes, threads
from benchmarks.report import MIB, Result, as_text, keep, machine, promises_table
from benchmarks.site import running
from benchmarks.soak_report import (
    BLOCKS,
    Rest,
    Run,
    Sample,
    Settings,
    account_table,
    course_table,
    courses,
    imbalance,
    promises,
    verdict_table,
)
from serviceradar_poller.lab.config import CHECKS_DEFAULT
from serviceradar_poller.testing.site import Site

AGENTS = 300
INTERVAL_S = 3.0
FLAPPING_SHARE = 0.2
SEED = 1
#: Within all the other benchmarks, and by hand.
MINUTES, HAND_MINUTES = 2.0, 30.0
#: Between two looks, unless that gives fewer than SAMPLES_MIN of them.
SAMPLE_S = 10.0
SAMPLES_MIN = 60
#: The report that registers, two cycles, and what malloc and the first seals take for good.
WARM_UP_REPORTS = 4
#: Looks at rest, over two intervals.
REST_LOOKS = 20
REST_INTERVALS = 2.0
#: After everybody is good again, until all that an outage leaves for a while is gone: a breaker's window is 60 s, which
#: holds no descriptor and no task; a connection that is drained is closed within seconds.
SETTLE_S = 10.0
#: Whoever is not good by then is given up.
GOOD_TIMEOUT_S = 120.0
#: How long a quick run's agents are well or not, of the usual times, and what it consists of.
QUICK_SCALE = 0.1
QUICK_AGENTS, QUICK_INTERVAL_S, QUICK_S, QUICK_SETTLE_S = 30, 1.0, 15.0, 1.0


def main(*, quick: bool = False) -> Result:
    """Measure two minutes; quick: some seconds with 30 agents."""
    settings = Settings(
        agents=QUICK_AGENTS if quick else AGENTS,
        interval_s=QUICK_INTERVAL_S if quick else INTERVAL_S,
        share=FLAPPING_SHARE,
        seed=SEED,
        length_s=QUICK_S if quick else 60.0 * MINUTES,
        scale=QUICK_SCALE if quick else 1.0,
        settle_s=QUICK_SETTLE_S if quick else SETTLE_S,
    )
    return measure(settings, judged=not quick)


def measure(settings: Settings, *, judged: bool = True, say: Callable[[str], object] = lambda text: None) -> Result:
    """
    Run a site and return what it showed.

    Args:
        judged: With promises.
        say: Is told now and then how it goes.
    """
    with running(
        settings.agents,
        interval_s=settings.interval_s,
        warm_up_reports=WARM_UP_REPORTS,
        level="info",
        config={"transport": "native"},
        program=PROGRAM,
    ) as site:
        run = _run(site, settings, say)
    went = courses(run, settings)
    return Result(
        suite="soak",
        tables=(course_table(run, settings), verdict_table(run, went), account_table(run)),
        promises=promises(run, went, settings) if judged else (),
        raw={
            "settings": asdict(settings),
            **asdict(run),
            "lost": run.lost,
            "courses": [{**asdict(each), "growth": each.growth, "flat": each.flat} for each in went],
        },
    )


def _run(site: Site, settings: Settings, say: Callable[[str], object]) -> Run:
    names = list(site.agents.port_of)
    flapping = choose(names, share=settings.share, seed=settings.seed)
    acts = plan(flapping, seed=settings.seed, length_s=settings.length_s, scale=settings.scale)
    before = _rest(site, settings)
    figures = histograms(site.poller)
    mark = site.poller.mark()
    samples = _flap(site, acts, settings.length_s, say)
    good_s = _await_good(site, len(names))
    time.sleep(settings.settle_s)
    after = _rest(site, settings)
    changed = histograms(site.poller)
    metrics = plain_metrics(site.poller)
    steady = set(names) - set(flapping)
    faults = Counter(act.fault if act.target != CORE else f"core {act.fault}" for act in acts if act.fault)
    return Run(
        faults=dict(sorted(faults.items())),
        samples=tuple(samples),
        before=before,
        after=after,
        good_s=good_s,
        bad=_not_good(site, len(names), since=0),
        accounts=_accounts(metrics),
        accepted=round(metrics["report_statuses_total"]),
        recorded=int(site.core.counts()["counts"].get("statuses", 0)),
        outcomes_dropped=round(metrics["outcomes_dropped_total"]),
        failed=round(site.poller.metric("polls_total", outcome="failed")),
        steady_failed=sum(
            line["agent"] in steady for line in site.poller.events("check_finished", since=mark, outcome="failed")
        ),
        restarts=round(site.poller.metric("child_restarts_total")),
        late_share=1.0 - changed[POLL_LATENESS].since(figures[POLL_LATENESS]).share_within(0.1),
        lag_max_s=changed[LOOP_LAG].since(figures[LOOP_LAG]).bound_of_max(),
    )


def _flap(site: Site, acts: Sequence[Act], length_s: float, say: Callable[[str], object]) -> list[Sample]:
    """Do what is planned, and look at the poller in between; everything is well in the end."""
    period_s = min(SAMPLE_S, length_s / SAMPLES_MIN)
    looks = [(number * period_s, None) for number in range(int(length_s / period_s) + 1)]
    moments: list[tuple[float, Act | None]] = [*looks, *((act.at_s, act) for act in acts)]
    faulty: set[str] = set()
    samples: list[Sample] = []
    said_s = 0.0
    began_s = time.monotonic()
    for at_s, act in sorted(moments, key=lambda moment: moment[0]):
        time.sleep(max(began_s + at_s - time.monotonic(), 0.0))
        if act is None:
            samples.append(_look(site, began_s, len(faulty)))
            if at_s - said_s >= length_s / BLOCKS:
                said_s = at_s
                say(_words(samples[-1]))
        else:
            _do(site, act)
            if act.target != CORE:
                (faulty.add if act.fault else faulty.discard)(act.target)
    return samples


def _do(site: Site, act: Act) -> None:
    if act.target == CORE and act.fault:
        site.core.set_fault(act.fault, **act.values)
    elif act.target == CORE:
        site.core.clear_fault()
    elif act.fault:
        site.agents.set_fault(act.target, act.fault, **act.values)
    else:
        site.agents.clear_fault(act.target)


def _look(site: Site, began_s: float, faulty: int) -> Sample:
    """Look at the poller: first what asking it would change."""
    pid = site.poller.process.pid
    fds, used_s, rss = open_fds(pid), cpu_s(pid), rss_bytes(pid)
    metrics = plain_metrics(site.poller)
    accounts = _accounts(metrics)
    return Sample(
        at_s=time.monotonic() - began_s,
        rss_bytes=rss,
        fds=fds,
        threads=threads(pid),
        tasks=round(metrics["loop_tasks"]),
        blocks=round(metrics["python_blocks"]),
        children=round(metrics["tree_children"]),
        faulty=faulty,
        up=round(metrics["agents_connected"]),
        reports=round(metrics["queue_reports"]),
        polled=accounts["polled"],
        delivered=accounts["delivered"],
        queued=accounts["queued"],
        imbalance=imbalance(accounts),
        cpu_s=used_s,
    )


def _accounts(metrics: dict[str, float]) -> dict[str, int]:
    """Return where every status is; of one scrape, for else they would move between two looks."""
    names = {
        "polled": "statuses_polled_total",
        "recovered": "statuses_recovered_total",
        "delivered": "statuses_delivered_total",
        "queued": "statuses_queued",
        "rejected": "statuses_rejected_total",
        "expired": "statuses_expired_total",
        "dropped": "statuses_discarded_total",
    }
    return {place: round(metrics[name]) for place, name in names.items()}


def _rest(site: Site, settings: Settings) -> Rest:
    """Look at a poller that has nothing to do but its checks, at each look without its garbage."""
    period_s = REST_INTERVALS * settings.interval_s / REST_LOOKS
    looks = []
    for _ in range(REST_LOOKS):
        time.sleep(period_s)
        os.kill(site.poller.process.pid, signal.SIGUSR1)
        looks.append(_look(site, 0.0, 0))
    return Rest(
        rss_bytes=statistics.median(look.rss_bytes for look in looks),
        fds=statistics.median(look.fds for look in looks),
        threads=statistics.median(look.threads for look in looks),
        tasks=statistics.median(look.tasks for look in looks),
        blocks=statistics.median(look.blocks for look in looks),
        children=statistics.median(look.children for look in looks),
    )


def _await_good(site: Site, agents: int) -> float:
    """Wait until all agents are connected, core has everything, and the newest it knows of each check is good."""
    began_s = time.monotonic()
    begin = site.next_report()
    while True:
        metrics = plain_metrics(site.poller)
        delivered = metrics["core_up"] == 1 and metrics["queue_reports"] == 0
        if delivered and metrics["agents_connected"] == agents and _not_good(site, agents, since=begin) == 0:
            return time.monotonic() - began_s
        if time.monotonic() - began_s > GOOD_TIMEOUT_S:
            return math.inf
        time.sleep(0.1)


def _not_good(site: Site, agents: int, *, since: int) -> int:
    """Return how many checks are not good in core by a report from number *since* on, unknown ones included."""
    latest = site.core.state()["latest"]
    good = [status for status in latest if status["available"] and status["report"] >= since]
    return agents * len(CHECKS_DEFAULT) - len(good)


def _words(sample: Sample) -> str:
    return (
        f"{sample.at_s / 60:6.1f} min  {sample.rss_bytes / MIB:6.1f} MiB  {sample.fds} descriptors  "
        f"{sample.tasks} tasks  {sample.up} up  {sample.faulty} faulty  {sample.reports} reports wait"
    )


def _main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description="Let agents flap for a long time.")
    parser.add_argument("--minutes", type=float, default=HAND_MINUTES, help=f"default: {HAND_MINUTES:g}")
    parser.add_argument("--agents", type=int, default=AGENTS, help=f"default: {AGENTS}")
    parser.add_argument("--interval", type=float, default=INTERVAL_S, help=f"seconds, default: {INTERVAL_S:g}")
    parser.add_argument("--share", type=float, default=FLAPPING_SHARE, help=f"that flaps, default: {FLAPPING_SHARE:g}")
    parser.add_argument("--seed", type=int, default=SEED, help=f"of what flaps when, default: {SEED}")
    parser.add_argument("--results", metavar="DIR", help="keep every look here")
    args = parser.parse_args(arguments)
    settings = Settings(
        agents=args.agents,
        interval_s=args.interval,
        share=args.share,
        seed=args.seed,
        length_s=60.0 * args.minutes,
        scale=1.0,
        settle_s=SETTLE_S,
    )
    began_s = time.monotonic()
    result = measure(settings, say=lambda text: print(text, file=sys.stderr, flush=True))
    result = replace(result, took_s=time.monotonic() - began_s)
    for table in (*result.tables, promises_table([result])):
        print(as_text(table), end="\n\n")
    if args.results:
        folder, date = Path(args.results), f"{datetime.now(UTC):%Y-%m-%d}"
        folder.mkdir(parents=True, exist_ok=True)
        keep(folder / f"soak-{date}.json", [result], machine(date))
    return 0 if all(promise.kept for promise in result.promises) else 1


if __name__ == "__main__":
    sys.exit(_main())
