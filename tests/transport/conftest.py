from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import serviceradar_poller.transport  # noqa: F401  (before anything loads gRPC)
from serviceradar_poller.config.model import SecurityConfig, SecurityMode, TlsConfig
from serviceradar_poller.env import SystemClock, Transport
from serviceradar_poller.lab.pki import Flaw, make_leaf, make_pki
from serviceradar_poller.transport.grpcio_client import GrpcioTransport
from serviceradar_poller.transport.native.transport import NativeTransport
from serviceradar_poller.transport.resolver import SystemResolver

#: Every backend passes the same contract.
BACKENDS: dict[str, Callable[[], Transport]] = {
    "grpcio": lambda: GrpcioTransport(clock=SystemClock()),
    "native": lambda: NativeTransport(clock=SystemClock(), resolver=SystemResolver()),
}


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PKI whose flawed leaves are named after their flaw."""
    folder = tmp_path_factory.mktemp("pki")
    make_pki(folder)
    make_pki(folder / "other")
    for flaw in Flaw:
        if flaw is not Flaw.NONE:
            make_leaf(folder, flaw.value, role="agent", flaw=flaw)
    return folder


@pytest.fixture
def block(pki: Path) -> Callable[..., SecurityConfig]:
    """Build an mtls block; ``leaf`` and ``root`` are stems in the PKI's folder."""

    def build(*, leaf: str = "poller", root: str = "root", server_name: str = "") -> SecurityConfig:
        return SecurityConfig(
            mode=SecurityMode.MTLS,
            server_name=server_name,
            tls=TlsConfig(
                cert_file=str(pki / f"{leaf}.pem"),
                key_file=str(pki / f"{leaf}-key.pem"),
                ca_file=str(pki / f"{root}.pem"),
            ),
        )

    return build


@pytest.fixture(params=BACKENDS)
def transport(request: pytest.FixtureRequest) -> Transport:
    """One backend at a time."""
    return BACKENDS[request.param]()
