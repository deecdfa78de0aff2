"""An agent's connection: lost, probed, replaced, back; and its breaker."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from serviceradar_poller.agents.connection import SILENT_PROBES_MAX
from serviceradar_poller.agents.messages import CallFailed
from serviceradar_poller.agents.slot import Reach
from serviceradar_poller.errors import CallError, GrpcCode, Layer
from serviceradar_poller.events.polling import (
    AgentConnected,
    AgentHealth,
    AgentLost,
    BreakerChanged,
    CheckFinished,
)
from serviceradar_poller.logic.breaker import BreakerState
from serviceradar_poller.otp import Ref
from serviceradar_poller.testing.fakes import REFUSED, TIMEOUT, FakeAgent, FakeResolver
from serviceradar_poller.testing.simloop import run
from serviceradar_poller.testing.simsite import SimSite, agent_config, now_s, site_config, until

DENIED = CallError(layer=Layer.GRPC, code=GrpcCode.PERMISSION_DENIED, reason="permission_denied", detail="who are you")
BAD_TLS = CallError(layer=Layer.TLS, code=GrpcCode.UNAVAILABLE, reason="tls", detail="certificate has expired")


def _calls(agent: FakeAgent, name: str, since_s: float = 0.0) -> list[float]:
    return [time_s for time_s, call in agent.calls if call == name and time_s >= since_s]


def test_w21_health_is_asked_once_per_connection() -> None:
    """W21: an agent is asked for its health when it is first reached, and not every cycle."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a")]))
        site.agents["a"].health = "SERVICE_UNKNOWN"
        async with site.running():
            await asyncio.sleep(100.0)
        assert len(_calls(site.agents["a"], "health")) == 1
        assert not site.of(AgentHealth)
        assert len(site.of(AgentConnected)) == 1

    run(main())


def test_an_agent_that_says_it_is_not_serving_is_told_of() -> None:
    """What an agent says of itself is told when it is bad news; it is polled all the same."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a")]))
        site.agents["a"].health = "NOT_SERVING"
        async with site.running():
            await asyncio.sleep(30.0)
        assert [event.status for event in site.of(AgentHealth)] == ["NOT_SERVING"]
        assert site.told()["a", "ping"]

    run(main())


def test_probes_grow_apart_with_the_outage_and_stay_bounded() -> None:
    """A short outage is noticed at once, a long one costs little, and no probe comes too early."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a")]))
        agent = site.agents["a"]
        async with site.running():
            await asyncio.sleep(5.0)
            agent.error = REFUSED
            await until(lambda: site.of(AgentLost), within_s=11.0)
            lost_s = now_s()
            await asyncio.sleep(1_000.0)
            probes = [time_s - lost_s for time_s in _calls(agent, "health", lost_s)]
            early = [time_s for time_s in probes if time_s < 20.0]
            late = [time_s for time_s in probes if time_s > 500.0]
            assert len(early) >= 6
            assert 500.0 / 40.0 <= len(late) <= 500.0 / 12.0
        assert len(site.of(AgentLost)) == 1

    run(main())


def test_the_breaker_opens_says_so_and_closes_with_the_first_answer() -> None:
    """A dead agent's checks are answered without asking it, with the reason; its first sign of life ends that."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a")]))
        agent = site.agents["a"]
        async with site.running() as poller:
            slot = poller.slots["a"]
            await asyncio.sleep(5.0)
            agent.error = REFUSED
            await until(lambda: slot.breaker.state is BreakerState.OPEN, within_s=60.0)
            asked = len(agent.requests)
            await asyncio.sleep(20.0)
            assert len(agent.requests) <= asked + 2
            message = json.loads(site.core.latest()["a", "ping"].message)["data"]
            assert message["reason"] == "breaker_open"
            assert "breaker open since 2027-" in message["detail"]
            assert "connection refused" in message["detail"]
            agent.error = None
            await until(lambda: site.told()["a", "ping"], within_s=12.0)
            assert slot.breaker.state is BreakerState.CLOSED
        states = [(event.before, event.after) for event in site.of(BreakerChanged)]
        assert states[0] == ("CLOSED", "OPEN")
        assert states[-1][1] == "CLOSED"

    run(main())


@pytest.mark.parametrize("error", [BAD_TLS, DENIED])
def test_security_failures_open_the_breaker_sooner(error: CallError) -> None:
    """Three refusals of who we are open it, where ten of any other kind would be needed."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a")]))
        site.agents["a"].error = error
        async with site.running() as poller:
            slot = poller.slots["a"]
            await until(lambda: slot.breaker.state is BreakerState.OPEN, within_s=25.0)
            assert len(site.of(CheckFinished)) <= 4
            site.agents["a"].error = None
            await until(lambda: slot.breaker.state is BreakerState.CLOSED, within_s=70.0)
            await until(lambda: site.told().get(("a", "ping")), within_s=20.0)

    run(main())


def test_a_tls_outage_ends_with_the_first_connection_too() -> None:
    """A breaker that TLS failures opened closes as soon as a probe gets through: the handshake proves the identity."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a")]))
        site.agents["a"].error = BAD_TLS
        async with site.running() as poller:
            slot = poller.slots["a"]
            await until(lambda: slot.breaker.state is BreakerState.OPEN, within_s=25.0)
            site.agents["a"].error = None
            await until(lambda: site.told().get(("a", "ping")), within_s=6.0)
            assert slot.breaker.state is BreakerState.CLOSED

    run(main())


def test_one_hung_check_harms_no_other_check_of_its_agent() -> None:
    """An agent that answers health and some checks is up; the check that hangs fails alone, for ever."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a")]))
        agent = site.agents["a"]
        answer = agent.status
        async with site.running() as poller:
            await asyncio.sleep(5.0)
            agent.hang_methods = {"status"}
            await until(lambda: not site.told()["a", "ping"], within_s=40.0)
            assert poller.slots["a"].reach is Reach.UP
            assert poller.slots["a"].breaker.state is BreakerState.CLOSED
            agent.hang_methods = set()
            agent.status = answer
            await until(lambda: site.told()["a", "ping"], within_s=30.0)
        assert not site.of(AgentLost)

    run(main())


def test_a_silent_connection_is_replaced() -> None:
    """After several unanswered probes the connection itself is distrusted: a peer may be gone without a word."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a")]))
        agent = site.agents["a"]
        async with site.running():
            await asyncio.sleep(5.0)
            opened = site.transport.opened["a:50051"]
            agent.hang = True
            await until(lambda: site.transport.opened["a:50051"] > opened, within_s=60.0)
            assert len(_calls(agent, "health", 5.0)) >= SILENT_PROBES_MAX
            agent.hang = False
            await until(lambda: site.told()["a", "ping"] and site.of(AgentConnected), within_s=15.0)

    run(main())


def test_w18_slow_name_service_delays_no_other_agent() -> None:
    """W18: names are looked up beside each other, each within its time; an agent without its address is told of."""

    async def main() -> None:
        site = SimSite(site_config([agent_config(f"a{n}") for n in range(20)]))
        resolver = site.env.resolver
        assert isinstance(resolver, FakeResolver)
        resolver.latency_s = 1.9
        resolver.names = {f"a{n}": (f"10.0.0.{n}",) for n in range(20)}
        ping = replace(agent_config("x").checks[0], details="")
        site.config = replace(site.config, agents=tuple(replace(agent, checks=(ping,)) for agent in site.config.agents))
        async with site.running():
            await until(lambda: len(site.told()) == 20, within_s=6.0)
        message = json.loads(site.core.latest()["a7", "ping"].message)["data"]
        assert message["host_ip"] == "10.0.0.7"

    run(main())


def test_the_breaker_survives_the_connection_that_it_belongs_to() -> None:
    """A39: the connection dies: what follows it starts again, the security context does not, the breaker remembers."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a"), agent_config("b")]))
        async with site.running() as poller:
            assert poller.tree is not None
            await asyncio.sleep(5.0)
            site.agents["a"].error = REFUSED
            slot = poller.slots["a"]
            await until(lambda: slot.breaker.state is BreakerState.OPEN, within_s=60.0)
            opened = slot.breaker
            whereis = poller.tree.system.whereis
            names = ("security", "connection", "scheduler", "results", "breaker")
            before = {name: whereis(f"poller/fleet/agents/a/{name}") for name in names}
            other = whereis("poller/fleet/agents/b/connection")
            poller.tree.crash("poller/fleet/agents/a/connection", RuntimeError("injected"))
            await until(lambda: whereis("poller/fleet/agents/a/breaker") not in (None, before["breaker"]), within_s=1.0)
            after = {name: whereis(f"poller/fleet/agents/a/{name}") for name in names}
            assert after["security"] is before["security"]
            assert all(after[name] is not before[name] for name in names[1:])
            assert whereis("poller/fleet/agents/b/connection") is other
            assert slot.breaker is opened

    run(main())


def test_health_that_hangs_makes_no_good_agent_flap() -> None:
    """An agent that answers its checks and never its health is up, stays connected, and is told of once."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a")]))
        site.agents["a"].hang_methods = {"health"}
        async with site.running():
            await asyncio.sleep(600.0)
            assert site.told()["a", "ping"]
        assert not site.of(AgentLost)
        assert [event.status for event in site.of(AgentHealth)] == ["NO_ANSWER"]
        assert site.transport.opened["a:50051"] == 1

    run(main())


def test_a_silence_that_comes_up_while_a_probe_waits_is_looked_into_after_it() -> None:
    """An agent that freezes right after its first answer is lost with the first call that fails, not with the next."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a")], interval_s=60.0))
        site.agents["a"].hang_methods = {"health"}
        async with site.running() as poller:
            await until(lambda: site.of(AgentConnected), within_s=5.0)  # and what it says of itself is asked
            assert poller.tree is not None
            connection = poller.tree.system.whereis("poller/fleet/agents/a/connection")
            assert isinstance(connection, Ref)
            await asyncio.sleep(2.0)
            connection.cast(CallFailed(TIMEOUT.with_traceback(None), began_s=now_s() - 1.0))
            await until(lambda: site.of(AgentLost), within_s=9.0)

    run(main())


@pytest.mark.parametrize("health", ["hangs", "forbidden"])
def test_the_breaker_closes_although_health_gives_no_answer(health: str) -> None:
    """After an outage the checks themselves are the trial: an agent without usable health is not lost for ever."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a")]))
        agent = site.agents["a"]
        plain = agent.answer

        async def answer(name, make, timeout_s, closed):  # type: ignore[no-untyped-def]
            if name == "health" and health == "forbidden" and agent.error is None and not agent.hang:
                agent.calls.append((now_s(), name))
                raise DENIED.with_traceback(None)
            return await plain(name, make, timeout_s, closed)

        agent.answer = answer  # type: ignore[method-assign]
        if health == "hangs":
            agent.hang_methods = {"health"}
        async with site.running() as poller:
            await asyncio.sleep(9.0)
            agent.error = REFUSED
            agent.hang = True
            await until(lambda: poller.slots["a"].breaker.state is BreakerState.OPEN, within_s=200.0)
            agent.error = None
            agent.hang = False
            await until(lambda: site.told()["a", "ping"], within_s=60.0)
            await asyncio.sleep(60.0)
            assert poller.slots["a"].breaker.state is BreakerState.CLOSED
            assert site.told() == {("a", "ping"): True, ("a", "unit"): True}

    run(main())


@pytest.mark.parametrize("crashes", [False, True])
def test_names_that_resolve_later_are_used_then(crashes: bool) -> None:
    """An agent whose name has no address at first is told of with the poller's, and with its own once it has one."""

    async def main() -> None:
        ping = replace(agent_config("x").checks[0], details="")
        site = SimSite(site_config([agent_config("a", ping)]))
        resolver = site.env.resolver
        assert isinstance(resolver, FakeResolver)

        def host_ip() -> str:
            data: dict[str, str] = json.loads(site.core.latest()["a", "ping"].message)["data"]
            return data["host_ip"]

        async with site.running() as poller:
            assert poller.tree is not None
            await asyncio.sleep(9.0)
            assert host_ip() == "127.0.0.1"
            if crashes:
                poller.tree.crash("poller/fleet/agents/a/connection", RuntimeError("injected"))
                await asyncio.sleep(1.0)
            resolver.names = {"a": ("10.9.8.7",)}
            await until(lambda: host_ip() == "10.9.8.7", within_s=90.0)

    run(main())


def test_a_connection_actor_that_starts_again_finds_out_where_it_stands() -> None:
    """After a crash while the agent is down its way back is watched again at once."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a")], interval_s=60.0))
        agent = site.agents["a"]
        async with site.running() as poller:
            assert poller.tree is not None
            await asyncio.sleep(30.0)
            agent.error = REFUSED
            await until(lambda: site.of(AgentLost), within_s=70.0)
            await asyncio.sleep(5.0)
            poller.tree.crash("poller/fleet/agents/a/connection", RuntimeError("injected"))
            await asyncio.sleep(5.0)
            agent.error = None
            await until(lambda: site.told()["a", "ping"], within_s=8.0)

    run(main())


def test_names_that_were_found_are_not_looked_up_again() -> None:
    """What is known of the agent's machine outlives the actor that found it."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a")]))
        resolver = site.env.resolver
        assert isinstance(resolver, FakeResolver)
        resolver.names = {"a": ("10.9.8.7",)}
        async with site.running() as poller:
            assert poller.tree is not None
            await asyncio.sleep(9.0)
            resolver.names = {"a": ("10.9.8.8",)}
            poller.tree.crash("poller/fleet/agents/a/connection", RuntimeError("injected"))
            await asyncio.sleep(90.0)
            assert poller.slots["a"].device.ip == "10.9.8.7"

    run(main())
