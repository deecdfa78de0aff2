"""Simulated peers shared by the tests of this directory, plaintext and mTLS, and gRPC clients for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from serviceradar_poller.lab.client import LabAgents, LabCore
from serviceradar_poller.lab.pki import make_pki
from serviceradar_poller.testing.lab_client import Client, credentials


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    make_pki(folder)
    return folder


Connect = Callable[..., Client]


@pytest.fixture
def connect(pki: Path) -> Iterator[Connect]:
    """
    Make clients; ``connect(port)`` is plaintext, ``connect(port, tls=True)`` mTLS.

    They give up an attempt to connect after 200 ms and make another, unless they are *patient*.
    """
    channels: list[grpc.Channel] = []

    def make(
        port: int,
        *,
        tls: bool = False,
        with_credentials: grpc.ChannelCredentials | None = None,
        patient: bool = False,
    ) -> Client:
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.min_reconnect_backoff_ms", 60_000 if patient else 200),
            ("grpc.max_reconnect_backoff_ms", 200),
            ("grpc.max_receive_message_length", -1),
        ]
        chosen = with_credentials or (credentials(pki) if tls else None)
        target = f"127.0.0.1:{port}"
        channel = grpc.secure_channel(target, chosen, options) if chosen else grpc.insecure_channel(target, options)
        channels.append(channel)
        return Client(channel)

    yield make
    for channel in channels:
        channel.close()


@pytest.fixture(scope="session")
def plain_agents() -> Iterator[LabAgents]:
    with LabAgents.start(3, sync=["agent-0003"], devices=3000, sweep_hosts=40) as agents:
        yield agents


@pytest.fixture(scope="session")
def tls_agents(pki: Path) -> Iterator[LabAgents]:
    with LabAgents.start(3, sync=["agent-0003"], devices=3000, sweep_hosts=40, cert_dir=pki) as agents:
        yield agents


@pytest.fixture(params=["plaintext", "mtls"])
def security(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def agents(security: str, request: pytest.FixtureRequest) -> Iterator[LabAgents]:
    """Three good agents, the third a sync service; faults are cleared afterwards."""
    fleet: LabAgents = request.getfixturevalue("tls_agents" if security == "mtls" else "plain_agents")
    yield fleet
    fleet.clear_fault()


@pytest.fixture
def agent(agents: LabAgents, security: str, connect: Connect) -> Client:
    """A client of the first agent."""
    return connect(agents.ports[0], tls=security == "mtls")


@pytest.fixture(scope="session")
def shared_core() -> Iterator[LabCore]:
    with LabCore.start() as core:
        yield core


@pytest.fixture
def core(shared_core: LabCore) -> Iterator[LabCore]:
    """A good core with nothing recorded; its indices go on from test to test."""
    shared_core.clear()
    yield shared_core
    shared_core.clear_fault()
