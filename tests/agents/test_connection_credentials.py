"""An agent's settings and certificate files: unusable, judged slowly, mended, renewed without a failed check."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from serviceradar_poller.agents.connection import FAULT_RETRY_S
from serviceradar_poller.agents.messages import Probe, RenewConnection
from serviceradar_poller.agents.roster import RenewConnections
from serviceradar_poller.agents.slot import Reach
from serviceradar_poller.config.model import SecurityConfig, SecurityMode, TlsConfig
from serviceradar_poller.errors import CallError, ConfigProblem, GrpcCode, Layer
from serviceradar_poller.events.polling import (
    AgentLost,
    AgentMisconfigured,
    CheckFinished,
    CredentialsRejected,
    CredentialsRenewed,
)
from serviceradar_poller.otp import Ref
from serviceradar_poller.testing.fakes import TIMEOUT, FakeAgent
from serviceradar_poller.testing.simloop import run
from serviceradar_poller.testing.simsite import SimSite, agent_config, site_config, until

MTLS = SecurityConfig(mode=SecurityMode.MTLS, tls=TlsConfig(cert_file="/c", key_file="/k", ca_file="/a"))
BAD_TLS = CallError(layer=Layer.TLS, code=GrpcCode.UNAVAILABLE, reason="tls", detail="certificate has expired")


def _calls(agent: FakeAgent, name: str, since_s: float = 0.0) -> list[float]:
    return [time_s for time_s, call in agent.calls if call == name and time_s >= since_s]


def test_w18_a_misconfigured_agent_is_down_alone_with_the_reason() -> None:
    """W18: an agent whose settings can't be used is told as unavailable, with what is wrong; others are polled."""

    async def main() -> None:
        problem = ConfigProblem(source="poller.json", path="agents.bad.address", found="empty", accepted="host:port")
        bad = replace(agent_config("bad"), problems=(problem,))
        site = SimSite(site_config([agent_config("good"), bad]))
        async with site.running():
            await asyncio.sleep(25.0)
        assert site.told() == {
            ("good", "ping"): True,
            ("good", "unit"): True,
            ("bad", "ping"): False,
            ("bad", "unit"): False,
        }
        message = json.loads(site.core.latest()["bad", "ping"].message)["data"]
        assert message["reason"] == "misconfigured"
        assert "agents.bad.address" in message["detail"]
        assert len(site.of(AgentMisconfigured)) == 1
        assert "bad:50051" not in site.transport.opened

    run(main())


def test_w18_certificates_that_come_later_bring_the_agent_up() -> None:
    """A missing certificate file is a state: when it is there, the agent is polled without a restart."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a", security=MTLS)]))
        site.transport.unusable["a:50051"] = CallError(
            layer=Layer.CONFIG, code=GrpcCode.FAILED_PRECONDITION, reason="credentials", detail="/c: no such file"
        )
        async with site.running():
            await asyncio.sleep(15.0)
            assert site.told()["a", "ping"] is False
            site.transport.unusable.clear()
            await until(lambda: site.told()["a", "ping"], within_s=FAULT_RETRY_S + 15.0)

    run(main())


def test_w23_new_certificates_are_used_without_a_failed_check() -> None:
    """W23: when the files change, a new connection is proven first, then swapped in; the old one ends its calls."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a", security=MTLS), agent_config("plain")]))
        async with site.running() as poller:
            assert poller.tree is not None
            await asyncio.sleep(5.0)
            roster = poller.tree.system.whereis("poller/fleet/roster")
            assert isinstance(roster, Ref)
            roster.cast(RenewConnections(frozenset({"/c"})))
            await until(lambda: site.of(CredentialsRenewed), within_s=5.0)
            assert (site.transport.opened["a:50051"], site.transport.opened["plain:50051"]) == (2, 1)
            await asyncio.sleep(30.0)
        assert {event.outcome for event in site.of(CheckFinished)} == {"available"}

    run(main())


def test_w23_bad_new_certificates_keep_the_old_connection() -> None:
    """W23: what can't be read, or is refused by the agent, is told, and the old connection goes on."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a", security=MTLS)]))
        async with site.running() as poller:
            assert poller.tree is not None
            await asyncio.sleep(5.0)
            connection = poller.tree.system.whereis("poller/fleet/agents/a/connection")
            assert isinstance(connection, Ref)
            site.transport.unusable["a:50051"] = BAD_TLS
            connection.cast(RenewConnection())
            await until(lambda: len(site.of(CredentialsRejected)) == 1, within_s=5.0)
            site.transport.unusable.clear()
            refusing = FakeAgent("a")
            refusing.error = CallError(layer=Layer.TLS, code=GrpcCode.UNAVAILABLE, reason="tls", detail="unknown CA")
            honest, site.transport.agents["a:50051"] = site.transport.agents["a:50051"], refusing
            connection.cast(RenewConnection())
            await until(lambda: len(site.of(CredentialsRejected)) == 2, within_s=5.0)
            site.transport.agents["a:50051"] = honest
            assert not site.of(CredentialsRenewed)
            await until(lambda: site.of(CredentialsRenewed), within_s=60.0)  # it goes on trying
        assert {event.outcome for event in site.of(CheckFinished)} == {"available"}

    run(main())


def test_w23_a_bad_certificate_while_the_agent_is_away_does_not_replace_a_good_one() -> None:
    """New files that can't be used keep the old connection also when the agent is down at that moment."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a", security=MTLS)]))
        agent = site.agents["a"]
        async with site.running() as poller:
            assert poller.tree is not None
            await asyncio.sleep(5.0)
            agent.hang = True
            await until(lambda: site.of(AgentLost), within_s=60.0)
            site.transport.unusable["a:50051"] = CallError(
                layer=Layer.CONFIG, code=GrpcCode.FAILED_PRECONDITION, reason="credentials", detail="key mismatch"
            )
            roster = poller.tree.system.whereis("poller/fleet/roster")
            assert isinstance(roster, Ref)
            roster.cast(RenewConnections(frozenset({"/c"})))
            await asyncio.sleep(60.0)
            agent.hang = False
            await until(lambda: site.told()["a", "ping"], within_s=40.0)
        assert site.of(CredentialsRejected)
        assert not site.of(AgentMisconfigured)

    run(main())


def test_w23_a_rotation_during_a_proof_is_not_forgotten() -> None:
    """Files that change while the last ones are being proven are proven too."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a", security=MTLS)]))
        async with site.running() as poller:
            assert poller.tree is not None
            await asyncio.sleep(5.0)
            connection = poller.tree.system.whereis("poller/fleet/agents/a/connection")
            assert isinstance(connection, Ref)
            connection.cast(RenewConnection())
            connection.cast(RenewConnection())
            await until(lambda: len(site.of(CredentialsRenewed)) == 2, within_s=10.0)

    run(main())


def test_w23_certificates_replaced_on_both_sides_bring_the_agent_back() -> None:
    """An agent that refuses our certificates is tried with those that are on disk by then."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a", security=MTLS)]))
        agent = site.agents["a"]
        async with site.running():
            await asyncio.sleep(5.0)
            opened = site.transport.opened["a:50051"]
            agent.error = BAD_TLS
            await until(lambda: site.transport.opened["a:50051"] > opened, within_s=20.0)
            agent.error = None
            await until(lambda: site.told()["a", "ping"], within_s=60.0)

    run(main())


def _unusable(detail: str) -> CallError:
    return CallError(layer=Layer.CONFIG, code=GrpcCode.FAILED_PRECONDITION, reason="credentials", detail=detail)


def test_certificates_that_are_judged_slowly_delay_no_other_agent() -> None:
    """Where an agent's client takes its time, the others are polled, and it is once it has one."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("slow", security=MTLS), agent_config("a"), agent_config("b")]))
        site.transport.latency_s["slow:50051"] = 12.0
        async with site.running():
            await until(lambda: len(site.told()) >= 4, within_s=8.0)
            assert all(available for (agent, _), available in site.told().items() if agent != "slow")
            await until(lambda: site.told().get(("slow", "ping")), within_s=12.0)
        assert site.transport.opened["slow:50051"] == 1
        assert all(client.closed for client in site.transport.clients)

    run(main())


def test_many_certificates_that_are_judged_slowly_delay_no_other_agent() -> None:
    """An agent that starts after many whose clients take their time is polled as soon as it would be alone."""

    async def main() -> None:
        slow = [agent_config(f"slow-{i}", security=MTLS) for i in range(300)]
        site = SimSite(site_config([*slow, agent_config("z")]))
        for agent in slow:
            site.transport.latency_s[agent.address] = 1_000.0
        async with site.running():
            await until(lambda: _calls(site.agents["z"], "health"), within_s=12.0)

    run(main())


@pytest.mark.parametrize("after_s", [0.05, 1.0, 2.9999, 3.0, 3.0001])
def test_a_stop_while_a_client_is_made_leaves_none(after_s: float) -> None:
    """Whenever the order to stop comes, no client stays open and none is being made afterwards."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a", security=MTLS)]))
        site.transport.latency_s["a:50051"] = 3.0
        async with site.running():
            await asyncio.sleep(after_s)
        await asyncio.sleep(10.0)
        assert site.transport.making == {"a:50051": 0}
        assert all(client.closed for client in site.transport.clients)

    run(main())


@pytest.mark.parametrize("after_s", [1.0, 3.0, 3.05])
def test_a_crash_while_a_client_is_made_leaves_none(after_s: float) -> None:
    """An actor that dies meanwhile has its successor make another one; the first is never left open."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a", security=MTLS)]))
        site.transport.latency_s["a:50051"] = 3.0
        async with site.running() as poller:
            assert poller.tree is not None
            await asyncio.sleep(after_s)
            poller.tree.crash("poller/fleet/agents/a/connection", RuntimeError("injected"))
            await asyncio.sleep(5.0)
            await until(lambda: site.told().get(("a", "ping")), within_s=30.0)
            in_use = [client for client in site.transport.clients if not client.closed]
            assert len(in_use) == 2  # the agent's and core's
        assert all(client.closed for client in site.transport.clients)

    run(main())


def test_w23_files_that_change_while_a_renewal_is_judged_are_not_forgotten() -> None:
    """A rotation during a slow judgement of the last one is renewed as well, and polling goes on meanwhile."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a", security=MTLS)]))
        async with site.running() as poller:
            assert poller.tree is not None
            await asyncio.sleep(5.0)
            connection = poller.tree.system.whereis("poller/fleet/agents/a/connection")
            assert isinstance(connection, Ref)
            site.transport.latency_s["a:50051"] = 14.0
            connection.cast(RenewConnection())
            await asyncio.sleep(2.0)
            connection.cast(RenewConnection())
            connection.cast(RenewConnection())
            await until(lambda: len(site.of(CredentialsRenewed)) == 2, within_s=40.0)
            await asyncio.sleep(40.0)
            assert len(site.of(CredentialsRenewed)) == 2
        assert {event.outcome for event in site.of(CheckFinished)} == {"available"}
        assert all(client.closed for client in site.transport.clients)

    run(main())


def test_w23_files_that_change_while_the_first_client_is_made_are_not_forgotten() -> None:
    """A rotation while there is no connection yet is renewed when there is one."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a", security=MTLS)]))
        site.transport.latency_s["a:50051"] = 5.0
        async with site.running() as poller:
            assert poller.tree is not None
            await asyncio.sleep(2.0)
            connection = poller.tree.system.whereis("poller/fleet/agents/a/connection")
            assert isinstance(connection, Ref)
            connection.cast(RenewConnection())
            await until(lambda: site.of(CredentialsRenewed), within_s=15.0)
        assert site.transport.opened["a:50051"] == 2
        assert all(client.closed for client in site.transport.clients)

    run(main())


def test_w23_files_that_are_mended_while_they_are_judged_are_used_at_once() -> None:
    """A rotation while bad files are being judged has the new ones judged right after, not when a fault is retried."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a", security=MTLS)]))
        site.transport.latency_s["a:50051"] = 4.0
        site.transport.unusable["a:50051"] = _unusable("key mismatch")
        async with site.running() as poller:
            assert poller.tree is not None
            await asyncio.sleep(2.0)
            site.transport.unusable.clear()
            connection = poller.tree.system.whereis("poller/fleet/agents/a/connection")
            assert isinstance(connection, Ref)
            connection.cast(RenewConnection())
            await until(lambda: poller.slots["a"].client is not None, within_s=8.0)
            await asyncio.sleep(20.0)
            assert site.transport.opened["a:50051"] == 2

    run(main())


def test_a_replacement_that_comes_too_late_is_not_used() -> None:
    """An agent that answers again on its old connection keeps it: calls under way are not cut for a new one."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a", security=MTLS)]))
        agent = site.agents["a"]
        async with site.running() as poller:
            await asyncio.sleep(5.0)
            before = poller.slots["a"].client
            site.transport.latency_s["a:50051"] = 60.0
            agent.error = BAD_TLS
            await until(lambda: site.transport.making.get("a:50051"), within_s=20.0)
            agent.error = None
            await until(lambda: poller.slots["a"].reach is Reach.UP, within_s=50.0)
            await until(lambda: not site.transport.making["a:50051"], within_s=70.0)
            await asyncio.sleep(5.0)
            assert poller.slots["a"].client is before
            assert site.transport.opened["a:50051"] == 2
        assert all(client.closed for client in site.transport.clients)

    run(main())


def test_a_fault_that_takes_long_to_find_is_told_once() -> None:
    """Slow and bad: the agent is down with the reason, asked about again in time, and up when it is mended."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a", security=MTLS)]))
        site.transport.latency_s["a:50051"] = 2.0
        site.transport.unusable["a:50051"] = _unusable("/c: no such file")
        async with site.running():
            await asyncio.sleep(100.0)
            assert [event.problem for event in site.of(AgentMisconfigured)] == ["/c: no such file"]
            assert site.transport.opened["a:50051"] <= 1 + 100.0 / FAULT_RETRY_S
            site.transport.unusable.clear()
            await until(lambda: site.told()["a", "ping"], within_s=FAULT_RETRY_S + 15.0)

    run(main())


def test_checks_wait_for_certificates_that_are_being_judged() -> None:
    """A judgement that takes seconds fails no check: those that are due meanwhile run with the client."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a", security=MTLS)]))
        site.transport.latency_s["a:50051"] = 4.0
        async with site.running():
            await asyncio.sleep(30.0)
        assert {event.outcome for event in site.of(CheckFinished)} == {"available"}

    run(main())


def test_w23_rotations_that_fail_are_one_retry_together() -> None:
    """However often bad files change, they are tried again as often as after one change, and renewed once mended."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a", security=MTLS)]))
        async with site.running() as poller:
            assert poller.tree is not None
            await asyncio.sleep(5.0)
            connection = poller.tree.system.whereis("poller/fleet/agents/a/connection")
            assert isinstance(connection, Ref)
            site.transport.unusable["a:50051"] = _unusable("key mismatch")
            for _ in range(12):
                connection.cast(RenewConnection())
                await asyncio.sleep(1.0)
            await asyncio.sleep(1_200.0)
            before = site.transport.opened["a:50051"]
            await asyncio.sleep(3_000.0)
            assert 1 <= site.transport.opened["a:50051"] - before <= 12
            site.transport.unusable.clear()
            await asyncio.sleep(1_300.0)
            assert len(site.of(CredentialsRenewed)) == 1

    run(main())


@pytest.mark.parametrize("reach", [Reach.UP, Reach.DOWN])
def test_w23_a_probe_of_a_connection_that_was_renewed_says_nothing(reach: Reach) -> None:
    """An old connection that turns out dead loses no agent whose new one was proven; a proof finds a lost agent."""

    async def main() -> None:
        site = SimSite(site_config([agent_config("a", security=MTLS)], interval_s=60.0))
        agent = site.agents["a"]
        async with site.running() as poller:
            assert poller.tree is not None
            await asyncio.sleep(30.0)
            connection = poller.tree.system.whereis("poller/fleet/agents/a/connection")
            assert isinstance(connection, Ref)
            old = poller.slots["a"].client

            async def silent(*, timeout_s: float) -> str:
                await asyncio.sleep(timeout_s)
                raise TIMEOUT.with_traceback(None)

            old.check_health = silent  # type: ignore[method-assign, union-attr]
            connection.cast(Probe())
            if reach is Reach.DOWN:
                await until(lambda: site.of(AgentLost), within_s=6.0)
            await asyncio.sleep(1.0)
            connection.cast(RenewConnection())
            await until(lambda: site.of(CredentialsRenewed), within_s=1.0)
            assert poller.slots["a"].reach is Reach.UP
            await asyncio.sleep(15.0)
            assert poller.slots["a"].reach is Reach.UP
            assert len(_calls(agent, "health", 30.0)) <= 3
        assert len(site.of(AgentLost)) == (reach is Reach.DOWN)

    run(main())
