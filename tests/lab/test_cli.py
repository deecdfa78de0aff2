"""The lab as a program: readiness, signals, bad arguments, the client that starts it, and configurations for it."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serviceradar_poller.lab.cli import add_parser
from serviceradar_poller.lab.client import STOP_TIMEOUT_S, LabAgents, LabCore, LabProcess
from serviceradar_poller.lab.config import make_config
from serviceradar_poller.lab.errors import LabError
from serviceradar_poller.lab.ports import free_port
from serviceradar_poller.testing.lab_client import raw

#: Nearly every test here starts a process or two.
pytestmark = pytest.mark.slow

PROGRAM = [sys.executable, "-m", "serviceradar_poller.lab"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("peer", ["agents", "core"])
def test_signals_stop_at_once(peer: str, number: signal.Signals) -> None:
    """A signal ends a peer that has connections, which nobody closes, with code 0 and nothing on standard error."""
    with subprocess.Popen(
        [*PROGRAM, peer], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        ready = json.loads(process.stdout.readline())
        assert ready["ready"] is True
        assert ready["pid"] == process.pid
        with raw(ready["ports"][0]), raw(int(ready["control"].rpartition(":")[2])):
            process.send_signal(number)
            assert process.wait(STOP_TIMEOUT_S) == 0
        assert process.stderr.read() == b""


def test_ports_file_and_base_port(tmp_path: Path) -> None:
    """Ports follow the base port, and the file tells them by id once the program is ready."""
    base = free_port(count=2)
    path = tmp_path / "ports.json"
    arguments = ["agents", "--count", "2", "--base-port", str(base), "--ports-file", str(path)]
    with LabProcess([*arguments, "--name-pattern", "edge-{}"]) as agents:
        assert json.loads(path.read_text()) == {"edge-1": base, "edge-2": base + 1}
        assert agents.ports == [base, base + 1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["agents", "--count", "0"], "between 1 and"),
        (["agents", "--count", "30000"], "limit|between 1 and"),
        (["agents", "--fault", "agent-0001=odd"], "unknown fault"),
        (["agents", "--fault", "agent-9999=refuse"], "no agent is called"),
        (["agents", "--name-pattern", "same"], "same id"),
        (["agents", "--name-pattern", "{x}"], "not a pattern"),
        (["agents", "--devices", "-1"], "between 0 and"),
        (["agents", "--base-port", "65535"], "can't listen"),
        (["agents", "--cert-dir", "/nonexistent"], "can't be used"),
        (["agents", "--ports-file", "/nonexistent/ports"], "can't write"),
        (["agents", "--control-port", "70000"], "control endpoint"),
        (["core", "--cert-dir", "/nonexistent"], "can't be used"),
        (["core", "--port", "70000"], "can't have port"),
    ],
)
def test_bad_arguments(arguments: list[str], expected: str) -> None:
    """What can't be started says why in one line and exits with 1."""
    with pytest.raises(LabError, match=f"code 1 .*({expected})"):
        LabProcess(arguments).stop()


def test_taken_port_is_told() -> None:
    """A port that somebody has is named, not shared."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with pytest.raises(LabError, match=f"can't have port {port}"):
            LabProcess(["core", "--port", port]).stop()
        with pytest.raises(LabError, match="can't listen"):
            LabProcess(["agents", "--base-port", port]).stop()


def test_faults_from_the_start() -> None:
    """Faults of the command line are in force when the program is ready."""
    faults = {"agent-0002..agent-0003": "slow:seconds=2", "agent-0001": "refuse"}
    with LabAgents.start(4, faults=faults) as agents:
        shown = [agent["fault"] and agent["fault"]["fault"] for agent in agents.agents()]
        assert shown == ["refuse", "slow", "slow", None]
        with pytest.raises(ConnectionRefusedError):
            raw(agents.port_of["agent-0001"])


def test_peers_end_with_their_parent() -> None:
    """A peer stops when the process that started it is gone without a word."""
    code = (
        "import os\n"
        "from serviceradar_poller.lab.client import LabCore\n"
        "core = LabCore.start()\n"
        "print(core.process.pid, core.ports[0], flush=True)\n"
        "os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    pid, port = map(int, done.stdout.split())
    deadline = time.monotonic() + 20
    while True:
        try:
            raw(port).close()
        except (ConnectionRefusedError, ConnectionResetError):
            break
        assert time.monotonic() < deadline, f"process {pid} goes on"


def test_a_peer_that_dies_is_told() -> None:
    """Control of a killed peer fails as LabError, and stopping it twice is fine."""
    core = LabCore.start()
    os.kill(core.process.pid, signal.SIGKILL)
    core.process.wait(5)
    with pytest.raises(LabError):
        core.counts()
    assert core.stop() == -signal.SIGKILL
    assert core.stop() == -signal.SIGKILL


def test_a_program_that_says_nothing_is_given_up() -> None:
    """A program that is never ready is killed after the timeout."""
    with pytest.raises(LabError, match="not ready after"):
        LabProcess([], program=[sys.executable, "-c", "import time; time.sleep(60)"], timeout_s=0.1).stop()


def test_asynchronous_use() -> None:
    """In a coroutine, peers are steered without blocking the loop, and stopped at the end of the block."""

    async def use() -> int | None:
        async with LabCore.start() as core:
            counts = await core.awaited(core.counts)
            assert counts["reports"] == 0
            await core.awaited(core.set_fault, "hang", count=1)
        return core.process.poll()

    assert asyncio.run(use()) == 0


def test_mounts_in_a_larger_program(tmp_path: Path) -> None:
    """The parser mounts under ``lab`` and sets the function to run."""
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["lab", "certs", str(tmp_path / "pki"), "--name", "edge", "--days", "2"])
    assert args.func(args) == 0
    assert (tmp_path / "pki" / "poller.pem").exists()
    assert args.func(args) == 1
    assert parser.parse_args(["lab", "agents", "--count", "7"]).count == 7


def test_config(tmp_path: Path, pki: Path) -> None:
    """A configuration names every agent with its port and checks, with or without security; extra keys win."""
    path = tmp_path / "poller.json"
    made = make_config(path, agents={"a": 1, "b": 2}, core_address="127.0.0.1:3", extra={"partition": "x"})
    assert json.loads(path.read_text()) == made
    assert [path.name for path in tmp_path.iterdir()] == ["poller.json"]
    agents = json.loads(path.read_text())["agents"]
    assert {name: agent["address"] for name, agent in agents.items()} == {"a": "127.0.0.1:1", "b": "127.0.0.1:2"}
    assert agents["a"]["security"] is None
    assert len(agents["a"]["checks"]) == 2
    assert made["partition"] == "x"
    secure = json.loads(json.dumps(make_config(None, agents={"a": 1}, core_address="c:1", cert_dir=pki)))
    block = secure["agents"]["a"]["security"]
    assert (block["mode"], block["server_name"]) == ("mtls", "agent.serviceradar")
    assert secure["security"]["server_name"] == "core.serviceradar"
    for name in block["tls"].values():
        assert (Path(block["cert_dir"]) / name).exists()
