from __future__ import annotations

import contextlib
import importlib.util
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serviceradar_poller.config.model import SecurityConfig, SecurityMode, TlsConfig
from serviceradar_poller.lab.pki import make_pki
from serviceradar_poller.testing.conformance import PeerProcess, python_command

KINDS = ("grpcio", "grpclib", "grpc-js")
_JS = Path(__file__).parent / "grpcjs"
_NPM_TIMEOUT_S = 60.0

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
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("grpcjs")
    for name in ("package.json", "package-lock.json", "server.js"):
        shutil.copy(_JS / name, folder)
    command = [npm, "ci", "--ignore-scripts", "--prefer-offline", "--no-audit", "--no-fund", "--fetch-retries=0"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_NPM_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm did not install @grpc/grpc-js within {_NPM_TIMEOUT_S:g} s")
    if done.returncode:
        # A wrong hash is a failure: only a registry that can't be reached is none of ours.
        assert "EINTEGRITY" not in done.stderr, done.stderr
        why = [line for line in done.stderr.splitlines() if line.startswith("npm error")]
        pytest.skip(f"npm can't install @grpc/grpc-js: {'; '.join(why)[:200]}")
    return folder


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
