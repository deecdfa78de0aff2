from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from serviceradar_poller.config.model import SecurityConfig, SecurityMode, TlsConfig
from serviceradar_poller.lab.pki import make_pki
from serviceradar_poller.testing.conformance import PeerProcess, python_command
from serviceradar_poller.testing.conformance_npm import UnreachedError, install

KINDS = ("grpcio", "grpclib", "grpc-js")
_JS = Path(__file__).parent / "grpcjs"
#: Set by continuous integration, so that the tests with grpc-js can't go missing unseen.
_REQUIRED = "CONFORMANCE_NODE_REQUIRED"

NewPeer = Callable[[str], PeerProcess]


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    make_pki(folder)
    return folder


@pytest.fixture(scope="session")
def mtls(pki: Path) -> SecurityConfig:
    return SecurityConfig(
        mode=SecurityMode.MTLS,
        server_name="",
        tls=TlsConfig(
            cert_file=str(pki / "poller.pem"), key_file=str(pki / "poller-key.pem"), ca_file=str(pki / "root.pem")
        ),
    )


@pytest.fixture(scope="session")
def grpcjs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the JavaScript server and what it needs; the versions and hashes are those of its lock file."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        _do_without("node and npm are not installed")
    folder = tmp_path_factory.mktemp("grpcjs")
    for name in ("package.json", "package-lock.json", "server.js"):
        shutil.copy(_JS / name, folder)
    try:
        install(npm, folder)
    except UnreachedError as error:
        _do_without(str(error))
    return folder


def _do_without(why: str) -> NoReturn:
    """Skip for want of grpc-js, or fail where it must not be wanting."""
    if os.environ.get(_REQUIRED):
        pytest.fail(f"{why}, and {_REQUIRED} is set")
    pytest.skip(f"no grpc-js: {why}")


@pytest.fixture(scope="session")
def new_peer(pki: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NewPeer]:
    """Start server processes, which end with the tests at the latest."""
    folder = tmp_path_factory.mktemp("peers")
    with contextlib.ExitStack() as stack:
        count = 0

        def start(kind: str) -> PeerProcess:
            nonlocal count
            count += 1
            if kind == "grpc-js":
                where: Path = request.getfixturevalue("grpcjs")
                command = ["node", str(where / "server.js"), str(pki)]
            else:
                if importlib.util.find_spec(kind if kind == "grpclib" else "grpc") is None:
                    pytest.skip(f"{kind} is not installed")
                where, command = folder, python_command(f"conformance_{kind}", pki)
            return stack.enter_context(PeerProcess(command, folder=where, errors=folder / f"{kind}-{count}.log"))

        yield start


@pytest.fixture(scope="session")
def peers(new_peer: NewPeer) -> Callable[[str], PeerProcess]:
    """One process of each kind, for tests that don't harm it."""
    running: dict[str, PeerProcess] = {}

    def peer(kind: str) -> PeerProcess:
        if kind not in running:
            running[kind] = new_peer(kind)
        return running[kind]

    return peer


@pytest.fixture(params=KINDS)
def peer(request: pytest.FixtureRequest, peers: Callable[[str], PeerProcess]) -> PeerProcess:
    """Each kind of server, in a process that all tests share."""
    return peers(request.param)


@pytest.fixture
def grpcio(peers: Callable[[str], PeerProcess]) -> PeerProcess:
    return peers("grpcio")


@pytest.fixture(params=[False, True], ids=["plain", "mtls"])
def security(request: pytest.FixtureRequest, mtls: SecurityConfig) -> SecurityConfig | None:
    return mtls if request.param else None
