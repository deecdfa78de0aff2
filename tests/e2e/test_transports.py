"""The whole program over each transport: statuses, streamed results, an outage, a refused certificate."""

from __future__ import annotations

import pytest

from serviceradar_poller.config.model import TransportBackend
from serviceradar_poller.testing.site import MakeSite

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

each_transport = pytest.mark.parametrize("transport", [backend.value for backend in TransportBackend])
PING = {"service_type": "icmp", "service_name": "ping", "details": "192.0.2.1"}
SYNC = {"service_type": "sync", "service_name": "sync", "results_interval": "0s"}


@each_transport
def test_every_transport_does_the_work(site: MakeSite, transport: str) -> None:
    """Every agent is polled over mTLS, a large sync comes as a stream, and an agent that was away is back soon."""
    made = site(4, checks=[PING, SYNC], sync=["*"], devices=2_000, config={"transport": transport}, interval="500ms")
    for number in range(1, 5):
        made.await_status(f"agent-{number:04d}", "ping", lambda status: status["available"])
        made.await_status(f"agent-{number:04d}", "sync", lambda status: status["available"])
    made.agents.set_fault("agent-0002", "refuse")
    lost = made.poller.await_event("agent_lost", agent="agent-0002")[0]
    assert lost["reason"] in ("refused", "reset")
    made.await_status("agent-0002", "ping", lambda status: not status["available"])
    made.agents.clear_fault()
    made.await_status("agent-0002", "ping", lambda status: status["available"])
    made.assert_no_crash()


@each_transport
def test_one_handshake_for_many_cycles(site: MakeSite, transport: str) -> None:
    """A connection is kept: cycle after cycle uses the one that the first made."""
    # A check that runs out of time costs its connection, and may take as long as an interval.
    made = site(2, checks=[PING], config={"transport": transport}, interval="1s")
    made.await_reports(6)
    for agent in made.agents.agents():
        assert agent["counts"]["handshakes"] == 1, agent


def test_a_wrong_certificate_is_told_as_that(site: MakeSite) -> None:
    """An agent whose certificate is someone else's is down with the cause; the others are polled."""
    made = site(
        2,
        checks=[PING],
        change=lambda config: config["agents"]["agent-0001"]["security"].update(server_name="wrong.example"),
    )
    lost = made.poller.await_event("agent_lost", agent="agent-0001")[0]
    assert lost["reason"] == "tls"
    assert "expected name" in str(lost)
    made.await_status("agent-0002", "ping", lambda status: status["available"])
