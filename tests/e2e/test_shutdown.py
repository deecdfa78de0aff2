"""The end of the program, and what its log keeps to."""

from __future__ import annotations

import signal

import pytest

from serviceradar_poller.env import SystemClock
from serviceradar_poller.testing.site import MakeSite, Site

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CLOCK = SystemClock()


def with_pending_outcomes(site: MakeSite) -> Site:
    """Return a site where nine agents' outcomes wait for the tenth, which hangs, or for a far deadline."""
    made = site(
        10,
        interval="20s",
        faults={"agent-0010": "hang_status"},
        config={
            "scheduling": {"spread_window": "200ms", "check_timeout": "15s"},
            "reporting": {"deadline": "14s"},
        },
    )
    made.poller.await_event("check_finished", outcome="available", count=18)
    assert made.next_report() == 0, "the cycle must not be reported yet"
    return made


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_w25_outcomes_that_wait_at_a_signal_reach_core(site: MakeSite, number: signal.Signals) -> None:
    """W25: SIGTERM and SIGINT seal what core has not seen, send it and end with 0 within ten seconds."""
    made = with_pending_outcomes(site)
    begin_s = CLOCK.monotonic()
    made.poller.send(number)
    assert made.poller.wait(10.0) == 0
    assert CLOCK.monotonic() - begin_s < 10.0
    for agent in list(made.agents.port_of)[:9]:
        assert made.latest(agent, "ping")["available"]
        assert made.latest(agent, "agent-unit")["available"]
    assert made.poller.events("poller_stopping")[0]["cause"] == number.name
    assert made.poller.events("poller_stopped")[0]["reports_unsent"] == 0
    assert made.poller.stderr == ""


def test_w25_a_second_signal_cuts_at_once(site: MakeSite) -> None:
    """W25: while core hangs the stop waits for it; a second signal ends the program now, with 130."""
    made = site(5, core_fault="hang")
    made.poller.await_event("check_finished", outcome="available", count=10)
    made.poller.send(signal.SIGTERM)
    made.poller.await_event("poller_stopping")
    assert made.poller.alive
    begin_s = CLOCK.monotonic()
    made.poller.send(signal.SIGTERM)
    assert made.poller.wait(15.0) == 130
    assert CLOCK.monotonic() - begin_s < 5.0, "the stop has twice as long"


def test_w25_a_core_that_hangs_holds_the_stop_no_longer_than_the_shutdown_timeout(site: MakeSite) -> None:
    """W25: with core hanging the program ends by itself when its time to stop is over, and says what was not sent."""
    made = site(5, core_fault="hang", config={"resilience": {"shutdown_timeout": "2s"}})
    made.poller.await_event("check_finished", outcome="available", count=10)
    begin_s = CLOCK.monotonic()
    assert made.poller.stop(timeout_s=8.0) == 0
    assert CLOCK.monotonic() - begin_s < 6.0
    stopped = made.poller.events("poller_stopped")[0]
    assert stopped["reports_unsent"] >= 1 and stopped["level"] == "warn"


def test_w25_nothing_of_the_process_is_left(site: MakeSite) -> None:
    """W25: a stop closes every connection to agents and the HTTP port."""
    made = site(3)
    made.await_reports(2)
    assert made.poller.stop() == 0
    assert all(agent["connections"] == 0 for agent in made.agents.agents())
    with pytest.raises(OSError, match="refused"):
        made.poller.http("/healthz")


@pytest.mark.parametrize(("level", "kept"), [("warn", {"warn", "error"}), ("error", {"error"}), ("info", None)])
def test_w24_the_log_level_of_the_configuration_is_kept_to(site: MakeSite, level: str, kept: set[str] | None) -> None:
    """W24: ``warn`` writes warnings and errors, ``error`` errors only; ``info`` writes no debug line."""

    def spoil(config: dict[str, dict[str, dict[str, object]]]) -> None:
        config["agents"]["agent-0001"]["security"] = {"mode": "bogus"}

    made = site(3, level=level, change=spoil, faults={"agent-0002": "refuse"})
    made.await_status("agent-0002", "ping", lambda status: not status["available"])
    made.poller.await_event("agent_misconfigured", agent="agent-0001")
    if level != "error":
        made.poller.await_event("agent_lost", agent="agent-0002")
    made.await_reports(2)
    assert made.poller.stop() == 0
    told = {line["level"] for line in made.poller.lines()}
    assert told == (kept or {"info", "warn", "error"})
