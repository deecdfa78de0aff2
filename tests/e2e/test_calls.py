"""How often an agent is called: retries only where they can help, health once a connection, results again soon."""

from __future__ import annotations

import pytest

from serviceradar_poller.testing.process import eventually
from serviceradar_poller.testing.site import MakeSite, Site

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SYSMON = {"service_type": "grpc", "service_name": "sysmon", "details": "192.0.2.7:50083"}


def status_calls(made: Site, agent: str) -> int:
    """Return how many GetStatus calls the agent has had."""
    return int(made.agents.agent(agent)["calls"].get("status", 0))


def test_w20_codes_that_a_retry_can_not_help_cost_one_call_and_no_delay(site: MakeSite) -> None:
    """W20: an agent that answers with such a code is called once per check and cycle."""
    codes = ("UNIMPLEMENTED", "NOT_FOUND", "INVALID_ARGUMENT", "INTERNAL", "PERMISSION_DENIED")
    agents = {f"agent-{number:04d}": code for number, code in enumerate(codes, 1)}
    faults = {agent: f"error:code={code},message=not here" for agent, code in agents.items()}
    made = site(len(codes), checks=[SYSMON], faults=faults)
    for agent in agents:
        lines = made.poller.await_event("check_finished", agent=agent, count=3)
        asked = [line for line in lines if line["reason"] != "breaker_open"]
        assert all(line["outcome"] == "failed" and line["attempts"] == 1 for line in asked), asked
        # What a retry waits for at least, were there one; a busy machine may delay some, and connecting the first.
        assert min(line["latency_s"] for line in asked) < 0.15, asked
        calls = status_calls(made, agent)
        assert calls <= len(made.poller.events("check_finished", agent=agent)) + 1
        status = made.await_status(agent, "sysmon", lambda status: not status["available"])
        assert "not here" in str(status["message"]["data"])
    # An agent that refuses us is asked no more for a while, one that answers nonsense goes on being asked.
    assert made.poller.json("/view")["agent_counts"]["up"] >= len(codes) - 1


def test_w20_unavailable_is_tried_again_within_a_budget(site: MakeSite) -> None:
    """W20: UNAVAILABLE is retried, and when it lasts the retries become a fraction of the calls."""
    made = site(
        1,
        faults={"agent-0001": "error:code=UNAVAILABLE"},
        config={"resilience": {"breaker": {"failures": 10_000}, "retry": {"delay": "20ms"}}},
    )
    lines = made.poller.await_event("check_finished", agent="agent-0001", count=16)[:16]
    retries = [line["attempts"] - 1 for line in lines]
    assert retries[0] == 2, "three attempts at first"
    assert sum(retries) <= 10 + 0.1 * len(lines) + 1, retries
    assert sum(retries[-4:]) <= 2, "the budget is used up"

    made.agents.clear_fault()
    made.await_status("agent-0001", "ping", lambda status: status["available"])


def test_w20_a_retry_hides_a_moment_of_trouble(site: MakeSite) -> None:
    """W20: where the agent is well again by the second attempt, core never sees the check fail."""
    made = site(1, checks=[SYSMON], config={"resilience": {"retry": {"delay": "1500ms"}}}, interval="4s")
    made.await_status("agent-0001", "sysmon", lambda status: status["available"])
    calls = status_calls(made, "agent-0001")
    mark = made.poller.mark()
    made.agents.set_fault("agent-0001", "error", code="UNAVAILABLE")
    eventually(lambda: status_calls(made, "agent-0001") > calls, "the agent is called")
    made.agents.clear_fault()
    line = made.poller.await_event("check_finished", agent="agent-0001", since=mark)[0]
    assert (line["outcome"], line["attempts"]) == ("available", 2)


def test_w21_health_is_asked_once_a_connection_even_where_its_name_is_unknown(site: MakeSite) -> None:
    """W21: a sync service knows no ``AgentService``; that costs one health call when it connects, none per cycle."""
    made = site(2, checks=[SYSMON], sync=["agent-0001"])
    made.poller.await_event("check_finished", agent="agent-0001", outcome="available")
    made.await_reports(5)
    for agent in ("agent-0001", "agent-0002"):
        shown = made.agents.agent(agent)
        assert shown["calls"]["health"] <= 2, shown["calls"]
        assert shown["calls"]["status"] >= 4
    lines = made.poller.events("check_finished", agent="agent-0001")
    assert all(line["outcome"] == "available" for line in lines)
    assert max(line["latency_s"] for line in lines[1:]) < 0.3


def test_w22_results_that_failed_are_asked_for_again_soon(site: MakeSite) -> None:
    """W22: with an interval of ten minutes, results that failed are in core seconds after the agent is well."""
    made = site(
        1, checks=[{**SYSMON, "results_interval": "10m"}], faults={"agent-0001": "error:code=INTERNAL,methods=results"}
    )
    made.poller.await_event("check_finished", kind="results", outcome="failed")
    told = made.await_status("agent-0001", "sysmon", lambda status: not status["available"])
    assert "simulated fault" in str(told["message"]["data"])
    made.agents.clear_fault()
    good = made.poller.await_event("check_finished", kind="results", outcome="available", timeout_s=40.0)[0]
    failed = made.poller.events("check_finished", kind="results", outcome="failed")
    # Five seconds the first time and twice as many the second, give or take a fifth; more were not needed.
    assert good["wall_s"] - failed[-1]["wall_s"] < 9.0 * len(failed) and len(failed) <= 2
    made.await_status("agent-0001", "sysmon", lambda status: status["available"])
