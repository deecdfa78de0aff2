"""The whole tree on virtual time, with agents and core that misbehave on command."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from itertools import pairwise

from serviceradar_poller.app.poller import OWN_ADDRESS_LOOK_S
from serviceradar_poller.events.kernel import ChildExited, ChildQuarantined
from serviceradar_poller.events.polling import AgentConnected, AgentLost, CheckFinished, CoreLost
from serviceradar_poller.otp import SupervisorRef
from serviceradar_poller.testing.fakes import REFUSED, FakeResolver
from serviceradar_poller.testing.simloop import SimLoop, run
from serviceradar_poller.testing.simsite import UNIT, SimSite, agent_config, now_s, site_config, until

INTERVAL_S = 10.0


def test_a_cycle_reaches_core_in_one_call() -> None:
    """The first report registers by a stream; then each cycle is one unary call with every check."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a"), agent_config("b")]))
        async with site.running():
            await asyncio.sleep(25.0)
        transports = [transport for _, transport, _, _ in site.core.reports]
        assert transports[:4] == ["stream", "unary", "unary", "unary"]
        assert {len(statuses) for _, kind, _, statuses in site.core.reports if kind == "unary"} == {4}
        assert set(site.told().values()) == {True}

    run(main())


def test_one_hung_agent_delays_nobody() -> None:
    """W4: an agent that accepts and never answers costs only its own checks."""

    async def main() -> None:
        site = SimSite(site_config([agent_config(f"a{n}") for n in range(20)]))
        site.agents["a7"].hang = True
        async with site.running():
            await asyncio.sleep(45.0)
        for event in site.of(CheckFinished):
            assert isinstance(event, CheckFinished)
            assert event.lateness_s < 0.1 or event.agent == "a7"
            if event.agent != "a7":
                assert event.latency_s < 0.1
        message = json.loads(site.core.latest()["a7", "ping"].message)
        assert message["data"]["reason"] in ("timeout", "breaker_open")
        assert site.told()["a7", "ping"] is False
        assert site.told()["a8", "ping"] is True

    run(main())


def test_every_agent_down_at_boot_is_a_state() -> None:
    """All agents unreachable: the start succeeds, every check has an outcome that says why, and all come back."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a"), agent_config("b")]))
        agents = site.agents
        for agent in agents.values():
            agent.error = REFUSED
        async with site.running():
            await asyncio.sleep(25.0)
            assert set(site.told().values()) == {False}
            assert len(site.of(AgentLost)) == 2
            for agent in agents.values():
                agent.error = None
            await until(lambda: set(site.told().values()) == {True}, within_s=5.0 + 3.6)
        assert len(site.of(AgentConnected)) == 2

    run(main())


def test_an_agent_back_after_20_s_is_told_good_within_5_s() -> None:
    """With a 30 s interval, the outage ends for core when it ends, not at the next tick."""

    async def main(seed: int) -> float:
        site = SimSite(site_config([agent_config(f"a{n}") for n in range(5)], interval_s=30.0), seed=seed)
        agent = site.agents["a2"]
        async with site.running():
            await asyncio.sleep(28.0)  # the next cycle notices the outage
            agent.error = REFUSED
            await asyncio.sleep(20.0)
            assert site.told()["a2", "ping"] is False
            agent.error = None
            return await until(lambda: site.told()["a2", "ping"])

    assert max(run(main(seed)) for seed in range(20)) < 5.0


def test_after_a_pause_of_the_program_core_is_told_of_no_failure() -> None:
    """A program that was stopped asks before it judges: nothing was silent but itself."""

    async def main(at_s: float, pause_s: float) -> None:
        site = SimSite(site_config([agent_config(f"a{n}") for n in range(5)], interval_s=30.0))
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        async with site.running():
            await asyncio.sleep(at_s)
            reports = len(site.core.reports)
            loop.skip(pause_s)
            await asyncio.sleep(40.0)
        told = [status.available for _, _, _, statuses in site.core.reports[reports:] for status in statuses]
        assert len(told) >= 20 and all(told)

    for seed in range(30):
        run(main(100.0 + seed, 60.0 + seed), seed=seed)


def test_core_down_is_reported_in_order_when_it_is_back() -> None:
    """While core is away reports wait, sealed, with their own timestamps; they arrive oldest first."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a")]))
        async with site.running():
            await asyncio.sleep(12.0)
            before = len(site.core.reports)
            site.core.error = REFUSED
            await asyncio.sleep(60.0)
            assert len(site.core.reports) == before
            site.core.error = None
            await asyncio.sleep(15.0)
            # The registering stream repeats the newest statuses, with their own time.
            later = [report for report in site.core.reports[before:] if report[1] == "unary"]
            stamps = [timestamp for _, _, timestamp, _ in later]
            assert stamps == sorted(stamps)
            assert stamps[-1] - stamps[0] >= 50
            assert len(set(stamps)) >= 6
        assert len(site.of(CoreLost)) == 1

    run(main())


def test_stop_flushes_what_core_has_not_seen() -> None:
    """W25: an outcome that came in after the last report still reaches core when the poller stops."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a"), agent_config("slow")]))
        site.agents["slow"].latency_s = 7.0
        async with site.running():
            await asyncio.sleep(9.0)
            assert ("slow", "ping") not in site.told()
        assert site.told()["slow", "ping"] is True

    run(main())


def test_a_crashing_child_disturbs_no_otheragent_config() -> None:
    """An exception injected into every kind of child of one agent: no other agent's check is late, all recover."""

    async def main() -> None:
        site = SimSite(site_config([agent_config(f"a{n}") for n in range(10)]))
        async with site.running() as poller:
            assert poller.tree is not None
            await asyncio.sleep(3.0)
            for kind in ("security", "connection", "scheduler", "results", "breaker", ""):
                path = f"poller/fleet/agents/a3/{kind}".rstrip("/")
                assert poller.tree.crash(path, RuntimeError("injected")), path
                await asyncio.sleep(INTERVAL_S)
            await asyncio.sleep(30.0)
            finished = [e for e in site.events if isinstance(e, CheckFinished)]
            assert all(e.lateness_s < 0.1 for e in finished if e.agent != "a3")
            assert site.told()["a3", "ping"]
            newest = max(time_s for time_s, _, _, _ in site.core.reports)
            assert asyncio.get_running_loop().time() - newest < INTERVAL_S + 5.0
        assert any(isinstance(e, ChildExited) and "a3" in e.path for e in site.events)

    run(main())


def test_every_supervisor_and_service_survives_a_crash() -> None:
    """Reporter, roster, agents' supervisor, and the parts of the root: each crash is followed by good reports."""

    async def main() -> None:
        site = SimSite(site_config([agent_config(f"a{n}") for n in range(5)]))
        async with site.running() as poller:
            assert poller.tree is not None
            await asyncio.sleep(3.0)
            for path in (
                "poller/reporting/core-reporter",
                "poller/reporting",
                "poller/fleet/roster",
                "poller/fleet/agents",
                "poller/fleet",
            ):
                assert poller.tree.crash(path, RuntimeError("injected")), path
                before = len(site.core.reports)
                await asyncio.sleep(3 * INTERVAL_S)
                assert len(site.core.reports) > before, path
                assert set(site.told().values()) == {True}, path

    run(main())


def test_an_agent_that_keeps_crashing_is_quarantined_alone() -> None:
    """A coordinator over its budget is built again later; core is told that its checks are silent."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("good"), agent_config("bad")]))

        async with site.running() as poller:
            assert poller.tree is not None
            await asyncio.sleep(3.0)
            for _ in range(400):
                poller.tree.crash("poller/fleet/agents/bad/scheduler", RuntimeError("again"))
                await asyncio.sleep(0.25)
            assert any(isinstance(event, ChildQuarantined) for event in site.events)
            assert all(e.lateness_s < 0.1 for e in site.events if isinstance(e, CheckFinished) and e.agent == "good")
            await asyncio.sleep(600.0)
            assert site.told()["bad", "ping"]

    run(main())


def test_a_roster_that_starts_again_lets_quarantined_agents_be() -> None:
    """A40: one bad agent in quarantine and a crash of the roster together still harm nobody else."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("good"), agent_config("bad")]))
        async with site.running() as poller:
            assert poller.tree is not None
            await asyncio.sleep(3.0)
            for _ in range(200):
                poller.tree.crash("poller/fleet/agents/bad/scheduler", RuntimeError("again"))
                await asyncio.sleep(0.25)
            assert any(isinstance(event, ChildQuarantined) for event in site.events)
            before = len(site.of(AgentConnected))
            for _ in range(4):
                poller.tree.crash("poller/fleet/roster", RuntimeError("injected"))
                await asyncio.sleep(1.0)
            await asyncio.sleep(30.0)
            assert not [e for e in site.of(AgentConnected)[before:] if e.agent == "good"]
            assert all(e.lateness_s < 0.1 for e in site.of(CheckFinished) if e.agent == "good")

    run(main())


def test_a_silent_check_is_told_of_under_its_agents_address() -> None:
    """What names were found to mean holds for an agent whose actors are gone, too."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a", UNIT)]))
        resolver = site.env.resolver
        assert isinstance(resolver, FakeResolver)
        resolver.names = {"a": ("10.9.8.7",)}

        def data() -> dict[str, str]:
            found: dict[str, str] = json.loads(site.core.latest()["a", "unit"].message)["data"]
            return found

        async with site.running() as poller:
            assert poller.tree is not None
            await asyncio.sleep(30.0)
            assert data()["host_ip"] == "10.9.8.7"
            agents = poller.tree.system.whereis("poller/fleet/agents")
            assert isinstance(agents, SupervisorRef)
            await agents.terminate_child("a")
            await until(lambda: data().get("reason") == "stale", within_s=60.0)
            assert data()["host_ip"] == "10.9.8.7"

    run(main())


def test_an_interface_that_comes_up_later_gives_poller_and_agents_their_address() -> None:
    """Reports and the agents whose names mean nothing get the poller's own address as soon as there is one."""

    async def main() -> None:
        up_s = 35.0
        site = SimSite(site_config([agent_config("a", UNIT), agent_config("b" * 300, UNIT)]))
        site.source_ip = ""
        looks: list[float] = []

        def interface_address() -> str:
            looks.append(now_s())
            return "192.0.2.7" if now_s() >= up_s else ""

        site.env = replace(site.env, interface_address=interface_address)
        async with site.running() as poller:
            await asyncio.sleep(up_s - 1.0)
            assert poller.head().source_ip == ""
            assert {slot.device.ip for slot in poller.slots.values()} == {""}
            await asyncio.sleep(20.0)
            assert poller.head().source_ip == "192.0.2.7"
            for status in site.core.latest().values():
                assert json.loads(status.message)["data"]["host_ip"] == "192.0.2.7"
        assert all(later - sooner >= OWN_ADDRESS_LOOK_S for sooner, later in pairwise(looks))
        assert looks[-1] < up_s + 10.0, "it is not looked for once it is known"

    run(main())
