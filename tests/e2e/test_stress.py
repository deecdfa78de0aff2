"""W17: many agents come and go while reports flow, and nothing is ever inconsistent."""

from __future__ import annotations

import itertools
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from serviceradar_poller.env import SystemClock
from serviceradar_poller.testing.site import MakeSite, Site

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

AGENTS = 60
SECONDS = 8.0
FAULTS: list[tuple[str, dict[str, object]]] = [
    ("refuse", {}),
    ("mute", {}),
    ("freeze", {}),
    ("reset", {}),
    ("flap", {"up_s": 0.3, "down_s": 0.3}),
    ("tls_garbage", {}),
    ("hang_status", {}),
    ("hang_health", {}),
    ("slow", {"seconds": 0.4}),
    ("error", {"code": "UNAVAILABLE"}),
    ("error", {"code": "INTERNAL"}),
    ("wrong_agent_id", {}),  # another id for each agent, see below
    ("empty", {}),
    ("non_json", {}),
    ("null", {}),
    ("huge", {"size_bytes": 200_000}),
    ("check_failed", {}),
    ("unavailable", {}),
]


def torment(made: Site, names: list[str], seed: int) -> int:
    """Change the faults of *names* at random until the time is over; return how many changes there were."""
    chance = random.Random(seed)
    clock = SystemClock()
    until_s = clock.monotonic() + SECONDS
    changes = 0
    while clock.monotonic() < until_s:
        name = chance.choice(names)
        if chance.random() < 0.4:
            made.agents.clear_fault(name)
        else:
            kind, values = chance.choice(FAULTS)
            own = {"agent_id": f"other-{name}"} if kind == "wrong_agent_id" else {}
            made.agents.set_fault(name, kind, **values, **own)
        changes += 1
    return changes


def test_w17_reports_stay_consistent_while_agents_flap(site: MakeSite) -> None:
    """W17: each check is at most once in a report, times never go back, nobody is unknown, nothing crashes."""
    made = site(AGENTS, config={"scheduling": {"check_timeout": "900ms"}})
    names = list(made.agents.port_of)
    steady = names[:10]
    with ThreadPoolExecutor(2) as pool:
        changes = sum(pool.map(torment, [made, made], [names[10:35], names[35:]], [1, 2]))
    assert changes > 50
    made.agents.clear_fault()
    made.await_reports(3)

    reports = made.core.reports()
    assert len(reports) >= SECONDS
    known = {(agent, service) for agent in names for service in ("ping", "agent-unit")}
    full = [report for report in reports if report["transport"] == "unary"]
    for report in full:
        told = [(status["agent_id"], status["service_name"]) for status in report["services"]]
        assert report["duplicates"] == 0 and len(set(told)) == len(told)
        assert {(agent.removeprefix("other-"), service) for agent, service in told} <= known
        assert all(status["message"]["agent_id"] == status["agent_id"] for status in report["services"])
        assert all(status["valid_json"] and status["poller_id"] == "e2e-poller" for status in report["services"])
        mine = {status["agent_id"]: status for status in report["services"] if status["agent_id"] in steady}
        assert all(status["available"] for status in mine.values())
    assert all(report["merged"] == 0 for report in reports)
    assert all(a["timestamp"] <= b["timestamp"] for a, b in itertools.pairwise(reports))
    assert len(full[-1]["services"]) == len(known)

    made.assert_no_crash()
    assert not [line for line in made.poller.lines() if line["level"] == "error"]
    made.assert_nobody_late(without=names[10:])
    assert made.poller.stop() == 0
    assert made.poller.stderr == ""
