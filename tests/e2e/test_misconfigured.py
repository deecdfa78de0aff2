"""Settings that can't be used keep one agent down, with the reason; everybody else is polled from the start."""

from __future__ import annotations

from typing import Any

import pytest

from serviceradar_poller.testing.site import MakeSite

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

#: Agent to what core's message must say.
REASONS = {
    "agent-0001": "mode",
    "agent-0002": "no-such-file.pem",
    "agent-0003": "address",
    "agent-0004": "no-such-host.invalid",
    "agent-0005": "does not hold the expected name",
}


def spoil(config: dict[str, Any]) -> None:
    agents = config["agents"]
    agents["agent-0001"]["security"]["mode"] = "bogus"
    agents["agent-0002"]["security"]["tls"]["cert_file"] = "no-such-file.pem"
    agents["agent-0003"]["address"] = ""
    agents["agent-0004"]["address"] = "no-such-host.invalid:50051"
    agents["agent-0005"]["security"]["server_name"] = "agent.elsewhere"


def test_w18_each_unusable_agent_is_down_alone_and_core_is_told_why(site: MakeSite) -> None:
    """W18: a bad security block, file, address, name or server name costs no other agent anything, nor the start."""
    made = site(12, change=spoil)
    poller = made.poller
    polled = poller.await_event("check_finished", agent="agent-0012", outcome="available")[0]
    waited_s = poller.waits.waited_s(poller.wall_s, polled["wall_s"])  # for a CPU: others have the machine too
    assert polled["wall_s"] - poller.wall_s - waited_s < 5.0, "the start was slow"
    for agent, reason in REASONS.items():
        for service in ("ping", "agent-unit"):
            status = made.await_status(agent, service, lambda status: not status["available"])
            message = status["message"]
            assert reason in str(message["data"]), (agent, message)
            assert message["agent_id"] == agent
            assert status["valid_json"]
    for number in range(6, 13):
        assert made.latest(f"agent-{number:04d}", "ping")["available"]

    told = {line["agent"] for line in poller.events("agent_misconfigured")}
    assert told == {"agent-0001", "agent-0002", "agent-0003"}
    assert poller.json("/health")["agents"]["up"] == 7
    made.assert_nobody_late()
    made.assert_no_crash()
