"""
Judge what a soak showed: put it into tables, and into promises that hold or don't. Pure.

Allowances are named here, with their reasons.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.flatness import Course, course
from benchmarks.report import MIB, Promise, Table, number

#: Of the run, from its beginning, that is not judged: caches fill, and each way to fail is gone for the first time.
WARM_UP_SHARE = 0.1
#: Until as many agents have a fault as ever after; a third of the run at most.
RUN_IN_S = 40.0
#: Growth of descriptors and tasks that is excused, times how many agents have a fault at a time.
GROWTH_PER_FLAPPING = 1.0
#: One of a pool may start late.
THREADS_GROWTH_MAX = 1.0
#: At rest nothing is excused but the connection of whoever is asking, and what runs just then.
REST_FDS_MAX, REST_TASKS_MAX, REST_CHILDREN_MAX = 2.0, 5.0, 0.0
#: Of a quarter of a million, after a collection: less than one for each fault of half an hour, and a lost connection
#: has hundreds. What is kept of an agent that has once failed, its breaker and reasons, is some 20 for each that flaps.
REST_BLOCKS_MAX = 5_000.0
#: Of memory from the first third to the last; and in an hour, which a few minutes can't tell from noise. What Python
#: frees of one size it keeps from all others: memory rises to the sum of what each size took at its worst moment.
RSS_GROWTH_MIB_MAX = 6.0
RSS_SLOPE_MIB_MAX = 10.0
#: Of the run, at its end, that the slope is of: by then nearly each size has had its worst moment.
SLOPE_SHARE = 0.5
SLOPE_MINUTES_MIN = 10.0
#: From the end of all faults until each agent is connected and good in core, which has everything.
GOOD_S_MAX = 15.0
#: Rows of the table.
BLOCKS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """
    What is run.

    Attributes:
        share: Of the agents, those that flap.
        seed: Of what flaps when.
        scale: Of the periods in which agents and core are well and not.
        settle_s: Between the moment when everybody is good again and the last looks at rest.
    """

    agents: int
    interval_s: float
    share: float
    seed: int
    length_s: float
    scale: float
    settle_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """
    The poller at one moment.

    Attributes:
        faulty: Agents that have a fault, by the plan.
        up: Agents that the poller is connected to.
        blocks: Of memory that Python has allocated: for what is alive, for garbage, for its free lists.
        imbalance: Statuses that are in no place, or in two.
        cpu_s: Since the start of the process.
    """

    at_s: float
    rss_bytes: int
    fds: int
    threads: int
    tasks: int
    blocks: int
    children: int
    faulty: int
    up: int
    reports: int
    polled: int
    delivered: int
    queued: int
    imbalance: int
    cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """The poller at rest, medians; every agent is connected and well. *blocks* are those of what is alive."""

    rss_bytes: float
    fds: float
    threads: float
    tasks: float
    blocks: float
    children: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """
    What happened.

    Attributes:
        faults: How often each kind was in force; those of core begin with ``core``.
        good_s: From the end of all faults until everybody is good; infinite when that was not within GOOD_TIMEOUT_S.
        bad: Checks that are not good in core at the very end.
        accounts: Where every status is at the end.
        accepted, recorded: Statuses in the calls that core accepted, by the poller's count and by core's.
        outcomes_dropped: Outcomes that never came into a report.
        failed: Failed checks, by which the faults were felt.
        steady_failed: Times that a check of an agent without a fault is told to have failed.
        restarts: Children of the tree that had to be started again.
        late_share: Of all checks, those that began more than 100 ms late.
        lag_max_s: No timer of the loop was later: the bound of its histogram's bucket.
    """

    faults: dict[str, int]
    samples: tuple[Sample, ...]
    before: Rest
    after: Rest
    good_s: float
    bad: int
    accounts: dict[str, int]
    accepted: int
    recorded: int
    outcomes_dropped: int
    failed: int
    steady_failed: int
    restarts: int
    late_share: float
    lag_max_s: float

    @property
    def lost(self) -> int:
        """Statuses that core does not have and will not get, whoever says so."""
        here = self.accounts
        gone = here["rejected"] + here["expired"] + here["dropped"] + self.outcomes_dropped
        return gone + abs(imbalance(here)) + max(self.accepted - self.recorded, 0)


def imbalance(accounts: dict[str, int]) -> int:
    """Return how many statuses more are somewhere than came in; 0 is right."""
    places = ("delivered", "queued", "rejected", "expired", "dropped")
    return sum(accounts[place] for place in places) - accounts["polled"] - accounts["recovered"]


def courses(run: Run, settings: Settings) -> list[Course]:
    """Return how the figures went that must not grow."""
    samples = run.samples
    times_s = [sample.at_s for sample in samples]
    swing = GROWTH_PER_FLAPPING * statistics.median(sample.faulty for sample in samples)
    slope_from_s = (1.0 - SLOPE_SHARE) * settings.length_s
    long_enough = settings.length_s - slope_from_s >= 60.0 * SLOPE_MINUTES_MIN
    run_in_s = min(RUN_IN_S * settings.scale, settings.length_s / 3)
    judge = functools.partial(
        course,
        times_s=times_s,
        warm_up_s=max(WARM_UP_SHARE * settings.length_s, run_in_s),
        slope_from_s=slope_from_s,
    )
    return [
        judge("open descriptors", "", values=[sample.fds for sample in samples], allowed=swing),
        judge("tasks", "", values=[sample.tasks for sample in samples], allowed=swing),
        judge("threads", "", values=[sample.threads for sample in samples], allowed=THREADS_GROWTH_MAX),
        judge(
            "RSS",
            "MiB",
            values=[sample.rss_bytes / MIB for sample in samples],
            allowed=RSS_GROWTH_MIB_MAX,
            slope_allowed_per_h=RSS_SLOPE_MIB_MAX if long_enough else math.inf,
        ),
    ]


def course_table(run: Run, settings: Settings) -> Table:
    """Return what the poller held in the course of the run."""
    rows = []
    size = max(len(run.samples) / BLOCKS, 1.0)
    edges = [round(index * size) for index in range(BLOCKS + 1)]
    for begin, end in itertools.pairwise(edges):
        block = run.samples[begin:end]
        if not block:
            continue
        first = run.samples[max(begin - 1, 0)]
        rows.append(
            (
                number(block[-1].at_s / 60),
                *(_median(block, name) for name in ("faulty", "up", "fds", "tasks", "threads", "children")),
                f"{statistics.median(sample.blocks for sample in block):,.0f}",
                number(statistics.median(sample.rss_bytes for sample in block) / MIB, 4),
                f"{max(sample.reports for sample in block)}",
                f"{block[-1].polled - block[-1].delivered:,}",
                number(100 * (block[-1].cpu_s - first.cpu_s) / max(block[-1].at_s - first.at_s, 1e-3)),
            )
        )
    flaps = sum(count for kind, count in run.faults.items() if not kind.startswith("core "))
    return Table(
        title=f"{settings.agents:,} agents, every {settings.interval_s:g} s, {100 * settings.share:g} % of which flap",
        columns=(
            "minute",
            "faulty",
            "connected",
            "descriptors",
            "tasks",
            "threads",
            "children",
            "blocks",
            "RSS MiB",
            "reports wait, most",
            "statuses on their way",
            "CPU %",
        ),
        rows=tuple(rows),
        notes=f"Medians of the looks until then. {flaps:,} faults of agents and {_core_faults(run)} of core.",
    )


def verdict_table(run: Run, judged: Sequence[Course]) -> Table:
    """Return what is flat and what grows, with the figures that say so."""
    rest = {
        "open descriptors": (run.before.fds, run.after.fds),
        "tasks": (run.before.tasks, run.after.tasks),
        "threads": (run.before.threads, run.after.threads),
        "RSS": (run.before.rss_bytes / MIB, run.after.rss_bytes / MIB),
    }
    rows = [
        (
            f"{each.name}, {each.unit}" if each.unit else each.name,
            number(each.first, 4),
            number(each.last, 4),
            _signed(each.growth),
            number(each.allowed),
            _signed(each.slope_per_h),
            "—" if math.isinf(each.slope_allowed_per_h) else number(each.slope_allowed_per_h),
            *(number(value, 4) for value in rest[each.name]),
            "FLAT" if each.flat else "GROWS",
        )
        for each in judged
    ]
    return Table(
        title="What grows",
        columns=(
            "",
            "first third",
            "last third",
            "growth",
            "allowed",
            "slope an hour",
            "allowed",
            "at rest before",
            "at rest after",
            "verdict",
        ),
        rows=tuple(rows),
        notes=f"Live blocks at rest: {run.before.blocks:,.0f} before, {run.after.blocks:,.0f} afterwards.",
    )


def account_table(run: Run) -> Table:
    """Return where every status is in the end, and how the agents fared."""
    here = run.accounts
    away = ", ".join(f"{here[place]:,}" for place in ("rejected", "expired", "dropped"))
    return Table(
        title="What became of the statuses",
        columns=("", "measured"),
        rows=(
            ("statuses polled", f"{here['polled']:,}"),
            ("delivered / queued", f"{here['delivered']:,} / {here['queued']:,}"),
            ("rejected, expired, dropped", away),
            ("looks at which a status was in no place or in two", f"{sum(s.imbalance != 0 for s in run.samples)}"),
            ("in calls that core accepted, repeats included", f"{run.accepted:,}"),
            ("recorded by core, answers that were lost included", f"{run.recorded:,}"),
            ("lost", f"{run.lost:,}"),
            ("every agent good again after the last fault, s", number(run.good_s)),
            ("checks not good in core at the end", f"{run.bad}"),
            ("failed checks", f"{run.failed:,}"),
            ("of these of agents that had no fault", f"{run.steady_failed}"),
            ("children that were restarted", f"{run.restarts}"),
            ("checks later than 100 ms, %", number(100 * run.late_share)),
            ("loop lag below, ms", number(1e3 * run.lag_max_s)),
        ),
        notes=f"Faults: {', '.join(f'{kind} {count}' for kind, count in run.faults.items())}.",
    )


def promises(run: Run, judged: Sequence[Course], settings: Settings) -> tuple[Promise, ...]:
    """Return all that the poller is held to."""
    minutes = f"{settings.length_s / 60:g} min of flapping"
    found = [
        Promise(text=f"{minutes}: {each.name}, from the first third to the last", limit=each.allowed,
                measured=each.growth, unit=each.unit or "more")
        for each in judged
    ]  # fmt: skip
    found += [
        Promise(text=f"{minutes}: {each.name}, an hour", limit=each.slope_allowed_per_h,
                measured=each.slope_per_h, unit=each.unit)
        for each in judged if not math.isinf(each.slope_allowed_per_h)
    ]  # fmt: skip
    before, after = run.before, run.after
    for text, limit, measured, unit in (
        ("descriptors at rest, afterwards", REST_FDS_MAX, after.fds - before.fds, "more"),
        ("tasks at rest, afterwards", REST_TASKS_MAX, after.tasks - before.tasks, "more"),
        ("live blocks at rest, afterwards", REST_BLOCKS_MAX, after.blocks - before.blocks, "more"),
        ("children at rest, afterwards", REST_CHILDREN_MAX, after.children - before.children, "more"),
        ("statuses in no place or in two", 0.0, max(abs(sample.imbalance) for sample in run.samples), "statuses"),
        ("statuses lost", 0.0, run.lost, "statuses"),
        ("statuses that still wait", 0.0, run.accounts["queued"], "statuses"),
        ("everybody good again after", GOOD_S_MAX, run.good_s, "s"),
        ("checks not good in the end", 0.0, run.bad, "checks"),
        ("failed checks of agents without a fault", 0.0, run.steady_failed, "checks"),
        ("children restarted", 0.0, run.restarts, "children"),
    ):
        found.append(Promise(text=f"{minutes}: {text}", limit=limit, measured=float(measured), unit=unit))
    return tuple(found)


def _median(block: Sequence[Sample], name: str) -> str:
    return f"{statistics.median(getattr(sample, name) for sample in block):g}"


def _signed(value: float) -> str:
    return f"-{number(-value)}" if value < 0 else number(value)


def _core_faults(run: Run) -> int:
    return sum(count for kind, count in run.faults.items() if kind.startswith("core "))
