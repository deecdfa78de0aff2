"""What one check of an agent costs the others, and the agent: no more than it has to."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from serviceradar_poller.agents.slot import Reach
from serviceradar_poller.errors import CallError, GrpcCode, Layer
from serviceradar_poller.events.kernel import ChildExited
from serviceradar_poller.events.polling import AgentConnected, AgentLost, BreakerChanged, CheckFinished
from serviceradar_poller.testing.fakes import REFUSED
from serviceradar_poller.testing.simloop import run
from serviceradar_poller.testing.simsite import PING, SimSite, agent_config, site_config
from serviceradar_poller.wire.messages import StatusRequest, StatusResponse

DENIED = CallError(layer=Layer.GRPC, code=GrpcCode.PERMISSION_DENIED, reason="permission_denied", detail="no")
BUSY = CallError(layer=Layer.GRPC, code=GrpcCode.UNAVAILABLE, reason="unavailable", detail="busy")
ODD = CallError(layer=Layer.HTTP2, code=GrpcCode.UNKNOWN, reason="protocol", detail="that is no gRPC")


def site_of(
    checks: int, interval_s: float, fails: Callable[[str], CallError | None], latency_s: float = 0.05
) -> SimSite:
    """Make a site of one agent with checks c0, c1, …, of which some fail by themselves."""
    plans = (replace(PING, service_name=f"c{number}") for number in range(checks))
    site = SimSite(site_config([agent_config("a", *plans)], interval_s=interval_s))
    agent = site.agents["a"]
    agent.latency_s = latency_s
    answer = agent.status

    def status(request: StatusRequest) -> StatusResponse:
        if error := fails(request.service_name):
            raise error.with_traceback(None)
        return answer(request)

    agent.status = status
    return site


def asked(site: SimSite) -> Counter[str]:
    """Count what the agent was asked."""
    return Counter(request.service_name for request in site.agents["a"].requests if isinstance(request, StatusRequest))


@pytest.mark.parametrize("bad", [{"c0", "c1", "c2"}, {"c9", "c10", "c11"}])
@pytest.mark.parametrize("latency_s", [0.001, 0.5])
def test_checks_that_are_denied_take_nothing_from_the_others(bad: set[str], latency_s: float) -> None:
    """A denial is the check's own affair while others are answered, wherever it stands among them."""

    async def main() -> None:
        site = site_of(12, 30.0, lambda name: DENIED if name in bad else None, latency_s)
        async with site.running():
            await asyncio.sleep(605.0)
        good = [event for event in site.of(CheckFinished) if event.service_name not in bad]
        assert {event.outcome for event in good} == {"available"}
        assert len(good) >= 9 * 20
        assert site.of(BreakerChanged) == []

    run(main())


def test_an_agent_that_denies_everything_opens_its_breaker_and_is_there() -> None:
    """Three denials, when no check is answered: and yet the agent was reached, whatever its interval."""

    async def main() -> None:
        site = site_of(2, 300.0, lambda name: DENIED)
        async with site.running() as poller:
            await asyncio.sleep(10.0)
            assert poller.slots["a"].reach is Reach.UP
            await asyncio.sleep(900.0)
            assert [event.after for event in site.of(BreakerChanged)][:1] == ["OPEN"]
        assert len(site.of(AgentConnected)) == 1

    run(main())


@pytest.mark.parametrize("bad", ["c0", "c2"])
def test_every_failing_check_has_its_turn_as_the_trial(bad: str) -> None:
    """After an outage of an agent without a health service, one check that goes on failing keeps no other from it."""

    async def main() -> None:
        site = site_of(3, 30.0, lambda name: BUSY if name == bad else None)
        agent = site.agents["a"]
        agent.hang_methods = {"health"}
        async with site.running():
            await asyncio.sleep(100.0)
            agent.error = REFUSED
            await asyncio.sleep(60.0)
            agent.error = None
            await asyncio.sleep(120.0)
            before = asked(site)
            await asyncio.sleep(600.0)
        now = asked(site)
        assert all(now[name] - before[name] >= 19 for name in ("c0", "c1", "c2"))

    run(main())


@pytest.mark.parametrize("checks", [12, 40])
@pytest.mark.parametrize("latency_s", [0.05, 1.0])
def test_a_breaker_that_closes_asks_only_what_it_refused(checks: int, latency_s: float) -> None:
    """Checks that fail by themselves while health is good are not asked over and over."""

    async def main() -> None:
        site = site_of(checks, 30.0, lambda name: BUSY, latency_s)
        async with site.running():
            await asyncio.sleep(300.0)
        assert len(site.of(CheckFinished)) <= 1.5 * checks * 11
        assert sum(asked(site).values()) <= 1.5 * checks * 11  # and retries have a budget

    run(main())


@pytest.mark.parametrize("deadly", ["breaks the connection", "ends the agent"])
def test_a_check_that_the_agent_does_not_survive_is_not_asked_whenever_it_is_back(deadly: str) -> None:
    """At most one time more in each interval than it is due, and the first outage ends at once all the same."""

    async def main() -> None:
        def fails(name: str) -> CallError | None:
            if name != "c1":
                return None
            if deadly == "breaks the connection":
                return ODD
            site.agents["a"].error = REFUSED
            asyncio.get_running_loop().call_later(0.3, setattr, site.agents["a"], "error", None)
            return BUSY

        site = site_of(2, 30.0, fails)
        async with site.running():
            await asyncio.sleep(600.0)
        assert asked(site)["c1"] <= 40
        assert len(site.of(AgentLost)) <= 40
        good = [event for event in site.of(CheckFinished) if event.service_name == "c0"]
        assert sum(event.outcome == "available" for event in good) >= 20

    run(main())


@pytest.mark.parametrize("size", [5_000, 4_000_000])
def test_an_id_beyond_all_bounds_fails_its_check_and_nothing_else(size: int) -> None:
    """All that an agent gives goes into reports: what is too long for a name is told as the check's failure."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a", PING), agent_config("b", PING)]))
        site.agents["a"].status = lambda request: StatusResponse(available=True, message=b"{}", agent_id="x" * size)
        async with site.running():
            await asyncio.sleep(35.0)
            assert site.told() == {("a", "ping"): False, ("b", "ping"): True}
        assert {event.reason for event in site.of(CheckFinished) if event.agent == "a"} == {"too_large"}
        assert len(site.core.reports) >= 4
        assert [event for event in site.of(ChildExited) if event.reason == "error"] == []

    run(main())
