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
from serviceradar_poller.logic.breaker import allows
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


@pytest.mark.parametrize("outage_s", [0.0, 0.3, 40.0])
def test_a_check_that_the_agent_does_not_survive_is_not_asked_whenever_it_is_back(outage_s: float) -> None:
    """At most one time more in each interval than it is due; so too where the outage opens the breaker."""

    async def main() -> None:
        def fails(name: str) -> CallError | None:
            if name != "c1":
                return None
            if not outage_s:
                return ODD  # which costs the connection
            site.agents["a"].error = REFUSED
            asyncio.get_running_loop().call_later(outage_s, setattr, site.agents["a"], "error", None)
            return BUSY

        site = site_of(2, 30.0, fails)
        async with site.running():
            await asyncio.sleep(1_800.0)
        lost = site.of(AgentLost)
        assert len(lost) <= (75 if outage_s < 1 else 35)
        good = [event for event in site.of(CheckFinished) if event.service_name == "c0"]
        assert sum(event.outcome == "available" for event in good) >= min(len(lost), 50)

    run(main())


@pytest.mark.parametrize("outage_s", [20.0, 50.0, 80.0, 110.0])
def test_a_trial_that_is_denied_closes_the_breaker_where_others_may_be_answered(outage_s: float) -> None:
    """What may be one check's own affair is an answer: a breaker that waits for another would wait for ever."""

    async def main() -> None:
        denied = {"c0", "c1"}
        site = site_of(2, 30.0, lambda name: DENIED if name in denied else None)
        agent = site.agents["a"]
        async with site.running() as poller:
            await asyncio.sleep(100.0)
            slot = poller.slots["a"]
            assert not allows(slot.breaker)
            denied.discard("c1")
            agent.error = REFUSED
            await asyncio.sleep(outage_s)
            agent.error = None
            await asyncio.sleep(200.0)
            assert allows(slot.breaker)
            assert site.told() == {("a", "c0"): False, ("a", "c1"): True}

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
