"""A status that is nowhere, or twice, or that core never had, is told as such."""

from __future__ import annotations

import dataclasses
import math

import pytest

from benchmarks.soak_report import Rest, Run, Sample, Settings, courses, imbalance, promises

ACCOUNTS = {"polled": 10, "recovered": 2, "delivered": 7, "queued": 1, "rejected": 1, "expired": 1, "dropped": 2}
DELIVERED = {"polled": 9, "recovered": 0, "delivered": 9, "queued": 0, "rejected": 0, "expired": 0, "dropped": 0}
REST = Rest(rss_bytes=1e8, fds=30.0, threads=9.0, tasks=12.0, blocks=250_000.0, children=300.0)
SETTINGS = Settings(agents=50, interval_s=3.0, share=0.2, seed=1, length_s=1800.0, scale=1.0, settle_s=10.0)


def _sample(at_s: float) -> Sample:
    return Sample(
        at_s=at_s,
        rss_bytes=100_000_000,
        fds=30,
        threads=9,
        tasks=12,
        blocks=250_000,
        children=300,
        faulty=4,
        up=50,
        reports=0,
        polled=9,
        delivered=9,
        queued=0,
        imbalance=0,
        cpu_s=1.0,
    )


GOOD = Run(
    faults={"refuse": 3},
    samples=tuple(_sample(10.0 * index) for index in range(181)),
    before=REST,
    after=REST,
    good_s=2.0,
    bad=0,
    accounts=DELIVERED,
    accepted=20,
    recorded=21,
    outcomes_dropped=0,
    failed=5,
    steady_failed=0,
    restarts=0,
    late_share=0.0,
    lag_max_s=0.0025,
)


def _broken(run: Run) -> list[str]:
    return [each.text.partition(": ")[2] for each in promises(run, courses(run, SETTINGS), SETTINGS) if not each.kept]


@pytest.mark.parametrize("place", list(ACCOUNTS))
def test_every_place_counts_in_the_account(place: str) -> None:
    """The account is even, and one status more anywhere makes it uneven by one, whichever way."""
    assert imbalance(ACCOUNTS) == 0
    assert imbalance({**ACCOUNTS, place: ACCOUNTS[place] + 1}) == (-1 if place in ("polled", "recovered") else 1)


def test_a_run_in_which_nothing_went_wrong_breaks_no_promise() -> None:
    """Core may have recorded more than was accepted: the answer to a report can be lost."""
    assert GOOD.lost == 0
    assert _broken(GOOD) == []


@pytest.mark.parametrize(
    "change",
    [
        {"accounts": {**DELIVERED, "delivered": 8, "expired": 1}},
        {"accounts": {**DELIVERED, "delivered": 8}},
        {"recorded": 19},
        {"outcomes_dropped": 1},
    ],
)
def test_whoever_says_that_a_status_is_lost_is_believed(change: dict[str, object]) -> None:
    """The poller's account, a hole in it, its inbox or core: one lost status breaks the promise."""
    run = dataclasses.replace(GOOD, **change)  # type: ignore[arg-type]
    assert run.lost == 1
    assert _broken(run) == ["statuses lost"]


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({"good_s": math.inf}, "everybody good again after"),
        ({"bad": 1}, "checks not good in the end"),
        ({"steady_failed": 1}, "failed checks of agents without a fault"),
        ({"restarts": 1}, "children restarted"),
        ({"after": dataclasses.replace(REST, fds=33.0)}, "descriptors at rest, afterwards"),
        ({"after": dataclasses.replace(REST, tasks=18.0)}, "tasks at rest, afterwards"),
        ({"after": dataclasses.replace(REST, blocks=256_000.0)}, "live blocks at rest, afterwards"),
        ({"after": dataclasses.replace(REST, children=301.0)}, "children at rest, afterwards"),
        (
            {"samples": (*GOOD.samples[:90], dataclasses.replace(GOOD.samples[90], imbalance=-1), *GOOD.samples[91:])},
            "statuses in no place or in two",
        ),
    ],
)
def test_each_thing_that_goes_wrong_breaks_its_promise(change: dict[str, object], broken: str) -> None:
    """It breaks that one and no other."""
    assert _broken(dataclasses.replace(GOOD, **change)) == [broken]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "step", "broken"),
    [
        ("fds", 1, ["open descriptors, from the first third to the last"]),
        ("tasks", 1, ["tasks, from the first third to the last"]),
        ("threads", 1, ["threads, from the first third to the last"]),
        ("rss_bytes", 100_000, ["RSS, from the first third to the last", "RSS, an hour"]),
        ("rss_bytes", 40_000, ["RSS, an hour"]),
    ],
)
def test_what_grows_with_every_look_breaks_its_promise(name: str, step: int, broken: list[str]) -> None:
    """A figure that is greater by the same at each look grows, and no other does."""
    samples = tuple(
        dataclasses.replace(sample, **{name: getattr(sample, name) + step * index})
        for index, sample in enumerate(GOOD.samples)
    )
    assert _broken(dataclasses.replace(GOOD, samples=samples)) == broken


def test_memory_that_fills_up_and_then_stays_is_flat() -> None:
    """What comes ever closer to a bound has no slope in the second half; the same rise all along has one."""
    filling = [round(100_000_000 + 5_500_000 * (1.0 - math.exp(-index / 30))) for index in range(181)]
    rising = [100_000_000 + 5_500_000 * index // 180 for index in range(181)]
    for values, broken in ((filling, []), (rising, ["RSS, an hour"])):
        samples = tuple(
            dataclasses.replace(sample, rss_bytes=value) for sample, value in zip(GOOD.samples, values, strict=True)
        )
        assert _broken(dataclasses.replace(GOOD, samples=samples)) == broken
