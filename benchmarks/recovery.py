"""
How soon an agent that was away is good again in core.

Agents of one poller go away for 20 s each, at 30 s between polls. From the moment that one listens again, the time to
its first good status in core, as core's own clock saw it arrive.

A poller that asks every 30 s can't know of an outage between two polls: so each outage has a poll in it. The returns
lie 8 s apart, for core is told of changes at most every 5 s, and lie before, between and after the attempts of a
poller that tries ever less often.

    tick k                      tick k+1
      ├─ +2 s   ├─ +10 s  ├─ +18 s ├─ +6 s   ├─ +14 s      an agent listens again
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.report import Promise, Result, Table, number
from benchmarks.site import running
from serviceradar_poller.testing.site import Site

AGENTS = 25
INTERVAL_S = 30.0
OUTAGE_S = 20.0
#: Which tick, and how long after it an agent listens again.
RETURNS_S = ((0, 2.0), (0, 10.0), (0, 18.0), (1, 6.0), (1, 14.0))
#: Nothing is taken for lost that comes within this.
PATIENCE_S = 35.0
QUICK_SCALE = 0.15
RECOVERY_S_MAX = 5.0
GO_S = "7–10"


@dataclass(frozen=True, slots=True, kw_only=True)
class Return:
    """
    One agent's way back.

    Attributes:
        bad_reports: Statuses in core that said that it was away; 0 would mean that nobody noticed.
        first_s, all_s: From listening until the first good status, and until all its checks are good.
    """

    agent: str
    after_tick_s: float
    bad_reports: int
    first_s: float
    all_s: float


def main(*, quick: bool = False) -> Result:
    """Measure; quick: two agents, and a fraction of all times but the poller's own."""
    scale, plan = (QUICK_SCALE, RETURNS_S[1:3]) if quick else (1.0, RETURNS_S)
    with running(AGENTS, interval_s=INTERVAL_S * scale) as site:
        returns = _measure(site, INTERVAL_S * scale, scale, plan)
    first_s = [each.first_s for each in returns]
    rows = tuple((each.agent, number(each.after_tick_s), number(each.first_s), number(each.all_s)) for each in returns)
    summary = ("median / max", "", f"{number(statistics.median(first_s))} / {number(max(first_s))}", "")
    outage_s = OUTAGE_S * scale
    return Result(
        suite="recovery",
        tables=(
            Table(
                title=f"An agent is back after {outage_s:g} s, at {INTERVAL_S * scale:g} s between polls",
                columns=("agent", "s after the tick", "s to a good status in core", "s to all its checks"),
                rows=(*rows, summary),
                notes=f"The Go poller, measured: {GO_S} s.",
            ),
        ),
        promises=()
        if quick
        else (
            Promise(
                text=f"an agent back after {outage_s:g} s is good in core, the slowest (Go: {GO_S})",
                limit=RECOVERY_S_MAX,
                measured=max(first_s),
                unit="s",
            ),
        ),
        raw={"interval_s": INTERVAL_S * scale, "outage_s": outage_s, "returns": [asdict(each) for each in returns]},
    )


def _measure(site: Site, interval_s: float, scale: float, plan: Sequence[tuple[int, float]]) -> list[Return]:
    """Take agents away and bring them back at their times; then read in core how it went."""
    outage_s = OUTAGE_S * scale
    first_tick_s = _next_tick_s(site, interval_s)
    while first_tick_s - outage_s + min(at_s for _, at_s in plan) * scale < time.time():
        first_tick_s += interval_s
    agents = [f"agent-{1 + 4 * number:04d}" for number in range(len(plan))]
    back_s = {
        agent: first_tick_s + tick * interval_s + after_s * scale
        for agent, (tick, after_s) in zip(agents, plan, strict=True)
    }
    acts = sorted([(at_s - outage_s, agent) for agent, at_s in back_s.items()] + [(s, a) for a, s in back_s.items()])
    listening_s: dict[str, float] = {}
    away: set[str] = set()
    for at_s, agent in acts:
        time.sleep(max(at_s - time.time(), 0.0))
        if agent in away:
            site.agents.clear_fault(agent)
            listening_s[agent] = time.time()
        else:
            site.agents.set_fault(agent, "refuse")
            away.add(agent)
    return [
        _way_back(site, agent, listening_s[agent], outage_s, after_s * scale)
        for agent, (_, after_s) in zip(agents, plan, strict=True)
    ]


def _next_tick_s(site: Site, interval_s: float) -> float:
    """Return the wall time of the next tick, by the poller's own log."""
    line = site.poller.await_event("report_sent", kind="cycle")[-1]
    tick_s: float = line["wall_s"] - line["tick_s"]
    while tick_s < time.time():
        tick_s += interval_s
    return tick_s


def _way_back(site: Site, agent: str, listening_s: float, outage_s: float, after_tick_s: float) -> Return:
    def told(*, available: bool, since_s: float, until_s: float = float("inf")) -> list[dict[str, Any]]:
        return [
            status
            for status in site.statuses(agent)
            if status["available"] is available and since_s <= status["received_wall_s"] < until_s
        ]

    checks = {status["service_name"] for status in site.statuses(agent)}
    until_s = time.monotonic() + PATIENCE_S
    while {status["service_name"] for status in told(available=True, since_s=listening_s)} != checks:
        if time.monotonic() > until_s:
            raise RuntimeError(f"{agent} did not become good within {PATIENCE_S:g} s")
        time.sleep(0.1)
    good = told(available=True, since_s=listening_s)
    first = {name: min(s["received_wall_s"] for s in good if s["service_name"] == name) for name in checks}
    bad = told(available=False, since_s=listening_s - outage_s, until_s=min(first.values()))
    if not bad:
        raise RuntimeError(f"{agent}: core was never told that it was away, so this is no recovery")
    return Return(
        agent=agent,
        after_tick_s=after_tick_s,
        bad_reports=len(bad),
        first_s=min(first.values()) - listening_s,
        all_s=max(first.values()) - listening_s,
    )
