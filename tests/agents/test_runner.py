"""Checks on schedule: retried, never overlapping, always with an outcome."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

from serviceradar_poller.agents.messages import Probe
from serviceradar_poller.config.model import CheckConfig
from serviceradar_poller.errors import CallError, ConfigProblem, GrpcCode, Layer
from serviceradar_poller.events.polling import (
    AgentConnected,
    AgentIdMismatch,
    AgentLost,
    BreakerChanged,
    CheckFinished,
    CheckMissed,
    CheckUnsupported,
)
from serviceradar_poller.otp import Ref
from serviceradar_poller.testing.fakes import REFUSED
from serviceradar_poller.testing.simloop import run
from serviceradar_poller.testing.simsite import PING, SimSite, agent_config, site_config, until
from serviceradar_poller.wire.messages import ResultsRequest, ResultsResponse, StatusRequest, StatusResponse

SYSMON = CheckConfig(service_type="grpc", service_name="sysmon", details="10.0.0.1:1", results_interval_s=600.0)
SYNC = CheckConfig(service_type="sync", service_name="sync", results_interval_s=60.0)


def _error(code: GrpcCode) -> CallError:
    return CallError(layer=Layer.GRPC, code=code, reason=code.name.lower(), detail="no")


def test_w20_final_codes_are_not_retried_and_passing_ones_are() -> None:
    """W20: UNIMPLEMENTED costs one call; UNAVAILABLE is asked again within the attempts, and succeeds."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("final", PING), agent_config("passing", PING)]))
        site.agents["final"].error = _error(GrpcCode.UNIMPLEMENTED)
        left = 2

        def answer(request: StatusRequest) -> StatusResponse:
            nonlocal left
            left -= 1
            if left >= 0:
                raise _error(GrpcCode.UNAVAILABLE)
            return StatusResponse(available=True)

        site.agents["passing"].status = answer
        async with site.running():
            await asyncio.sleep(9.0)
        by_agent = {event.agent: event for event in site.of(CheckFinished)}
        assert (by_agent["final"].attempts, by_agent["final"].outcome) == (1, "failed")
        assert by_agent["final"].latency_s < 0.1
        assert (by_agent["passing"].attempts, by_agent["passing"].outcome) == (3, "available")

    run(main())


def test_w20_retries_have_a_budget() -> None:
    """An agent that is UNAVAILABLE for ever is not asked three times as often for ever."""

    async def main() -> None:
        checks = tuple(replace(PING, service_name=f"c{n}") for n in range(10))
        site = SimSite(site_config([agent_config("a", *checks)]))

        def answer(request: StatusRequest) -> StatusResponse:
            raise _error(GrpcCode.UNAVAILABLE)

        site.agents["a"].status = answer
        async with site.running():
            await asyncio.sleep(300.0)
        attempts = [event.attempts for event in site.of(CheckFinished)]
        assert len(attempts) > 200
        assert sum(attempts) - len(attempts) <= 10 + 0.1 * len(attempts)

    run(main())


def test_w3_a_check_never_overlaps_itself() -> None:
    """W3: while a check is under way its next ticks are missed and counted, never run beside it."""

    async def main() -> None:
        config = site_config([agent_config("a", PING)])
        config = replace(config, scheduling=replace(config.scheduling, check_timeout_s=10.0))
        site = SimSite(config)
        under_way, most = 0, 0
        agent = site.agents["a"]
        plain = agent.answer

        async def answer(name, make, timeout_s, closed):  # type: ignore[no-untyped-def]
            nonlocal under_way, most
            under_way += name == "status"
            most = max(most, under_way)
            try:
                return await plain(name, make, timeout_s, closed)
            finally:
                under_way -= name == "status"

        agent.answer = answer  # type: ignore[method-assign]
        async with site.running():
            await asyncio.sleep(5.0)
            agent.hang_methods = set()
            agent.hang = True
            await asyncio.sleep(95.0)
            agent.hang = False
        assert most == 1
        assert sum(event.count for event in site.of(CheckMissed)) >= 1

    run(main())


def test_w22_failed_results_are_asked_again_soon() -> None:
    """W22: a results check that fails runs again within seconds, not after its whole interval."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a", SYSMON)]))
        failures = 2

        def answer(request: ResultsRequest) -> ResultsResponse:
            nonlocal failures
            failures -= 1
            if failures >= 0:
                raise _error(GrpcCode.INTERNAL)
            return ResultsResponse(available=True, data=b'{"cpu":1}', has_new_data=True, current_sequence="9")

        site.agents["a"].results = answer
        async with site.running():
            took_s = await until(lambda: site.told().get(("a", "sysmon")), within_s=120.0)
            assert took_s < 40.0
            await asyncio.sleep(300.0)
            asked = [request for request in site.agents["a"].requests if isinstance(request, ResultsRequest)]
            assert len(asked) == 3

    run(main())


def test_results_that_the_agent_does_not_offer_are_told_once_and_counted() -> None:
    """UNIMPLEMENTED says so once in the log, is counted each time, and tells core nothing."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a", PING, SYNC)]))
        site.agents["a"].stream = lambda request: (_error(GrpcCode.UNIMPLEMENTED),)
        async with site.running():
            await asyncio.sleep(200.0)
        told = site.of(CheckUnsupported)
        assert len(told) >= 3
        assert [event.first for event in told].count(True) == 1
        assert set(site.told()) == {("a", "ping")}

    run(main())


def test_an_agent_that_answers_under_another_id_is_told_of_once() -> None:
    """Core files the answer under the agent's own word; the operator hears of it once."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a", PING)]))
        site.agents["a"].status = lambda request: StatusResponse(available=True, agent_id="impostor")
        async with site.running():
            await asyncio.sleep(60.0)
        assert [(event.agent, event.claimed) for event in site.of(AgentIdMismatch)] == [("a", "impostor")]
        assert ("impostor", "ping") in site.told()

    run(main())


def test_requests_carry_what_agents_expect() -> None:
    """agent_id is the configuration's key, and a port goes only with checks of type port."""

    async def main() -> None:
        port = CheckConfig(service_type="port", service_name="db", details="10.0.0.1:5432", port=5432)
        other = CheckConfig(service_type="icmp", service_name="ping", details="1.1.1.1", port=7)
        site = SimSite(site_config([agent_config("a", port, other)]))
        async with site.running():
            await asyncio.sleep(9.0)
        asked = {r.service_name: r for r in site.agents["a"].requests if isinstance(r, StatusRequest)}
        assert (asked["db"].port, asked["ping"].port) == (5432, 0)
        assert {request.agent_id for request in asked.values()} == {"a"}
        assert {request.poller_id for request in asked.values()} == {"p1"}

    run(main())


def test_checks_of_the_same_name_and_type_are_both_run() -> None:
    """Two checks that core could not tell apart are still both asked, each with its own details."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a", PING, replace(PING, details="8.8.8.8"))]))
        async with site.running():
            await asyncio.sleep(9.0)
        details = {r.details for r in site.agents["a"].requests if isinstance(r, StatusRequest)}
        assert details == {"9.9.9.9", "8.8.8.8"}
        unary = [statuses for _, transport, _, statuses in site.core.reports if transport == "unary"]
        assert len(unary[0]) == 2

    run(main())


def test_an_odd_name_is_one_agent_like_any_other() -> None:
    """A slash in an agent's name does not lead into another place of the tree."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("rack/1 %"), agent_config("ü")]))
        async with site.running():
            await asyncio.sleep(9.0)
        assert set(site.told().values()) == {True}
        assert {agent for agent, _ in site.told()} == {"rack/1 %", "ü"}

    run(main())


def test_a_crash_in_a_run_leads_to_another_run_not_to_silence() -> None:
    """A check that was under way when its runner died runs again at once: every due check has an outcome."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a", PING)]))
        agent = site.agents["a"]
        async with site.running() as poller:
            assert poller.tree is not None
            await asyncio.sleep(5.0)
            agent.hang = True
            await until(lambda: any(name == "status" for time_s, name in agent.calls if time_s > 5.0), within_s=20.0)
            poller.tree.crash("poller/fleet/agents/a/scheduler", RuntimeError("injected"))
            agent.hang = False
            before = len(site.of(CheckFinished))
            await until(lambda: len(site.of(CheckFinished)) > before, within_s=3.0)
            assert json.loads(site.core.latest()["a", "ping"].message)

    run(main())


def test_a_check_that_hung_with_the_old_connection_runs_again_with_the_new_one() -> None:
    """A call that waits on a dead connection when the agent comes back does not cost a whole interval."""

    async def main() -> None:
        config = site_config([agent_config("a", PING)], interval_s=300.0)
        config = replace(config, scheduling=replace(config.scheduling, check_timeout_s=30.0))
        site = SimSite(config)
        agent = site.agents["a"]
        async with site.running() as poller:
            await asyncio.sleep(290.0)
            agent.hang_methods = {"status"}
            await until(lambda: any(name == "status" for time_s, name in agent.calls if time_s > 290.0), within_s=20.0)
            agent.error = REFUSED
            assert poller.tree is not None
            connection = poller.tree.system.whereis("poller/fleet/agents/a/connection")
            assert isinstance(connection, Ref)
            connection.cast(Probe())
            await until(lambda: site.of(AgentLost), within_s=5.0)
            await asyncio.sleep(15.0)
            agent.error, agent.hang_methods = None, set()
            await asyncio.sleep(40.0)
            assert site.told()["a", "ping"]
            assert [event.outcome for event in site.of(CheckFinished)][-1] == "available"

    run(main())


def test_a_burst_of_finished_checks_loses_none() -> None:
    """More checks than a mailbox holds end at once, and each of them runs again at the next tick."""
    count = 1_500

    async def main() -> None:
        checks = tuple(replace(PING, service_name=f"c{n}") for n in range(count))
        problem = ConfigProblem(source="f", path="agents.a.address", found="empty", accepted="host:port")
        config = site_config([replace(agent_config("a", *checks), problems=(problem,))])
        config = replace(config, scheduling=replace(config.scheduling, spread_window_s=0.0))
        site = SimSite(config)
        async with site.running():
            await asyncio.sleep(25.0)
        assert len(site.of(CheckFinished)) == 3 * count

    run(main())


def test_connections_wait_their_turn_and_not_on_account_of_the_agents() -> None:
    """A limit on new connections neither counts against agents nor is used up by the checks of one of them."""

    async def main() -> None:
        checks = tuple(replace(PING, service_name=f"c{n}") for n in range(5))
        config = site_config([agent_config(f"a{n}", *checks) for n in range(100)])
        config = replace(config, scheduling=replace(config.scheduling, connects_per_s=20.0))
        site = SimSite(config)
        async with site.running():
            await asyncio.sleep(9.9)
            assert {event.reason for event in site.of(CheckFinished)} <= {"", "connect_limited"}
            assert len(site.of(AgentConnected)) == 100
            await asyncio.sleep(20.0)
            assert set(site.told().values()) == {True}
        assert not site.of(AgentLost)
        assert not site.of(BreakerChanged)

    run(main())


def test_a_fleet_that_is_down_has_its_outcomes_in_time() -> None:
    """With every agent away, checks fail at once with the reason; nothing waits behind the limit of connections."""

    async def main() -> None:
        config = site_config([agent_config(f"a{n}") for n in range(200)])
        config = replace(config, scheduling=replace(config.scheduling, connects_per_s=10.0))
        site = SimSite(config)
        async with site.running():
            await asyncio.sleep(45.0)
            for agent in site.agents.values():
                agent.error = REFUSED
            await asyncio.sleep(25.0)
            from_now = len(site.events)
            await asyncio.sleep(40.0)
            late = [e for e in site.events[from_now:] if isinstance(e, CheckFinished)]
            assert {event.reason for event in late} <= {"refused", "breaker_open"}
            assert max(event.latency_s for event in late) < 2.0
            for agent in site.agents.values():
                agent.error = None
            await until(lambda: set(site.told().values()) == {True}, within_s=90.0)

    run(main())
