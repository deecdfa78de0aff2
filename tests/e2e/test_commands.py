"""The command line as an operator meets it: exit codes, messages, what is printed and what is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serviceradar_poller.lab.client import LabAgents
from serviceradar_poller.lab.config import make_config
from serviceradar_poller.lab.ports import free_port
from serviceradar_poller.testing.process import PollerProcess, clean_environment, eventually, run_command
from serviceradar_poller.testing.site import write_config

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def good_config(pki: Path, agents: dict[str, int] | None = None) -> dict[str, Any]:
    return make_config(
        None, agents=agents or {"agent-0001": 50051}, core_address="127.0.0.1:9", cert_dir=pki, poll_interval="1s"
    )


@pytest.mark.parametrize("flag", ["--config", "-config"])
def test_a_missing_file_ends_with_1_and_one_line(tmp_path: Path, flag: str) -> None:
    """A configuration that isn't there is one line ``failed to load config: …`` on standard error, exit 1."""
    done = run_command(flag, str(tmp_path / "absent.json"))
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "failed to load config:" in line and "absent.json" in line


def test_an_unknown_flag_ends_with_2() -> None:
    """A command line that can't be understood ends with 2 and the usage."""
    done = run_command("--no-such-flag")
    assert done.returncode == 2
    assert "usage:" in done.stderr and "--no-such-flag" in done.stderr


def test_the_flag_with_one_dash_starts_the_poller(pki: Path, tmp_path: Path) -> None:
    """``-config FILE``, as the Go poller's unit files have it, runs the poller."""
    http_port = free_port()
    config = good_config(pki) | {
        "http": {"listen_addr": f"127.0.0.1:{http_port}"},
        "resilience": {"shutdown_timeout": "1s"},  # nobody is there to take the last report
    }
    file = write_config(tmp_path, config)
    with PollerProcess(file, http_port=http_port, flag="-config") as poller:
        poller.ready()
        assert poller.stop() == 0


def test_check_accepts_a_good_configuration_and_hides_secrets(pki: Path, tmp_path: Path) -> None:
    """``check`` prints the effective configuration with secrets hidden, and ends with 0."""
    config = good_config(pki)
    config["logging"] = {"level": "info", "otel": {"enabled": False, "headers": {"authorization": "Bearer s3cr3t"}}}
    done = run_command("check", str(write_config(tmp_path, config)))
    assert done.returncode == 0, done.stderr
    assert "s3cr3t" not in done.stdout + done.stderr
    effective = json.loads(done.stdout)
    assert effective["poller_id"] == "lab-poller"
    assert "agent-0001" in effective["agents"]
    assert "ok: 1 agents, 2 checks" in done.stderr


def test_check_tells_all_errors_at_once_with_their_places(pki: Path, tmp_path: Path) -> None:
    """``check`` ends with 1 and names every problem by its JSON path, one a line, no secret among them."""
    config = good_config(pki, {"agent-0001": 50051, "agent-0002": 50052, "agent-0003": 50053})
    config["agents"]["agent-0001"]["security"]["mode"] = "bogus"
    config["agents"]["agent-0002"]["security"]["tls"]["cert_file"] = "no-such-file.pem"
    config["agents"]["agent-0003"]["address"] = ""
    config["logging"] = {"level": "info", "otel": {"headers": {"authorization": "Bearer s3cr3t"}}}
    done = run_command("check", str(write_config(tmp_path, config)))
    assert done.returncode == 1
    assert "s3cr3t" not in done.stdout + done.stderr
    for place in (
        "agents.agent-0001.security.mode",
        "agents.agent-0002.security.tls.cert_file",
        "agents.agent-0003.address",
    ):
        assert sum(place in line for line in done.stderr.splitlines()) == 1, done.stderr

    config["poll_interval"] = "-1s"
    config["logging"]["level"] = "loud"
    done = run_command("check", str(write_config(tmp_path, config)))
    assert done.returncode == 1
    assert "failed to load config:" in done.stderr
    for place in ("poll_interval", "logging.level"):
        assert sum(place in line for line in done.stderr.splitlines()) == 1, done.stderr


def test_poll_once_explains_by_layer_why_an_agent_does_not_answer(pki: Path, tmp_path: Path) -> None:
    """``poll-once --json`` ends with 4 and names the layer: refused at TCP, a wrong name at TLS, no such host."""
    with LabAgents.start(4, cert_dir=pki, faults={"agent-0002": "refuse"}) as agents:
        config = good_config(pki, agents.port_of)
        config["agents"]["agent-0003"]["security"]["server_name"] = "agent.elsewhere"
        config["agents"]["agent-0004"]["address"] = "no-such-host.invalid:50051"
        file = write_config(tmp_path, config)
        done = run_command("poll-once", str(file), "--json")
        only_good = run_command("poll-once", str(file), "--json", "--agent", "agent-0001")
        table = run_command("poll-once", str(file))
    assert done.returncode == 4, done.stderr
    found = {one["agent"]: one for one in json.loads(done.stdout)}
    assert [answer["available"] for answer in found["agent-0001"]["answers"]] == [True, True]
    assert found["agent-0001"]["steps"] == []
    layers = {agent: {answer["layer"] for answer in one["answers"]} for agent, one in found.items()}
    assert layers == {"agent-0001": {""}, "agent-0002": {"tcp"}, "agent-0003": {"tls"}, "agent-0004": {"resolve"}}
    failed = {
        agent: next(step["name"] for step in one["steps"] if step["state"] == "failed")
        for agent, one in found.items()
        if one["steps"]
    }
    assert failed == {"agent-0002": "tcp", "agent-0003": "tls", "agent-0004": "resolve"}
    assert only_good.returncode == 0
    assert table.returncode == 4
    assert "layer by layer" in table.stdout and "agent-0003" in table.stdout


def test_poll_once_looks_at_an_agent_without_checks(pki: Path, tmp_path: Path) -> None:
    """There is nothing to ask it, but whether it could be asked is told, and why not."""
    with LabAgents.start(1, cert_dir=pki) as agents:
        config = good_config(pki, agents.port_of)
        config["agents"]["agent-0001"]["checks"] = []
        good = run_command("poll-once", str(write_config(tmp_path, config)), "--json")
        config["agents"]["agent-0001"]["security"]["server_name"] = "agent.elsewhere"
        bad = run_command("poll-once", str(write_config(tmp_path, config)), "--json", "--agent", "agent-0001")
    assert (good.returncode, bad.returncode) == (0, 4), (good.stderr, bad.stderr)
    states = [{step["name"]: step["state"] for step in json.loads(done.stdout)[0]["steps"]} for done in (good, bad)]
    assert states[0]["grpc"] == "ok"
    assert (states[1]["tcp"], states[1]["tls"], states[1]["grpc"]) == ("ok", "failed", "skipped")


def test_output_that_nobody_takes_is_one_line_or_none(pki: Path, tmp_path: Path) -> None:
    """A reader that has gone is no error to speak of, a full disk is one line; the exit code is the same."""
    agents = {f"agent-{number:04d}": 50051 for number in range(3_000)}  # more than a pipe holds
    file = str(write_config(tmp_path, good_config(pki, agents)))
    command = [sys.executable, "-m", "serviceradar_poller", "check", file]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_environment()
    ) as gone:
        assert gone.stdout is not None
        gone.stdout.readline()
        gone.stdout.close()
        assert gone.stderr is not None
        assert [line for line in gone.stderr.read().splitlines() if "warning" not in line] == []
    assert gone.returncode == 5
    with open("/dev/full", "w", encoding="ascii") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=clean_environment())
    told = [line for line in done.stderr.splitlines() if "warning" not in line]
    assert (done.returncode, told) == (5, ["serviceradar-poller: can't write the output: No space left on device"])
    everything_closed = subprocess.run(f"exec {' '.join(command)} >&- 2>&-", shell=True, env=clean_environment())
    assert everything_closed.returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("certs", "DIR", "--days", "0"),
        ("certs", "DIR", "--days", "-5"),
        ("certs", "DIR", "--days", "99999999"),
        ("certs", "DIR", "--name", "日本"),
        ("demo", "--seconds", "-1"),
        ("demo", "--seconds", "nan"),
    ],
)
def test_numbers_and_names_that_make_no_sense_are_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """The line says what was found and what is accepted; nothing is made."""
    done = run_command(*(str(tmp_path / "pki") if argument == "DIR" else argument for argument in arguments))
    assert done.returncode in (1, 2)
    assert "accepted:" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert not (tmp_path / "pki").exists()


def test_sighup_before_the_first_poll_ends_nothing(pki: Path, tmp_path: Path) -> None:
    """While the configuration is read it asks for what happens anyway; later it is a warning."""
    http_port = free_port()
    config = good_config(pki) | {
        "http": {"listen_addr": f"127.0.0.1:{http_port}"},
        "resilience": {"shutdown_timeout": "1s"},
    }
    with PollerProcess(write_config(tmp_path, config), http_port=http_port) as poller:
        status = Path(f"/proc/{poller.process.pid}/status")
        eventually(lambda: _ignores(status, signal.SIGHUP), "SIGHUP is harmless")
        for _ in range(20):
            poller.send(signal.SIGHUP)
        poller.ready()
        poller.send(signal.SIGHUP)
        eventually(lambda: any("SIGHUP" in line.get("text", "") for line in poller.events("config_warning")), "told")
        assert poller.stop() == 0


def _ignores(status: Path, number: signal.Signals) -> bool:
    masks = dict(line.split(":\t") for line in status.read_text().splitlines() if line.startswith(("SigIgn", "SigCgt")))
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks.values())


def test_an_address_of_its_own_that_is_none_is_told(pki: Path, tmp_path: Path) -> None:
    """A source_ip that does not resolve is a warning with what core is told instead."""
    http_port = free_port()
    config = good_config(pki) | {
        "http": {"listen_addr": f"127.0.0.1:{http_port}"},
        "source_ip": "no-such-host.invalid",
        "resilience": {"shutdown_timeout": "1s"},
    }
    with PollerProcess(write_config(tmp_path, config), http_port=http_port) as poller:
        poller.ready()
        (warning,) = [line for line in poller.events("config_warning") if line.get("path") == "source_ip"]
        assert "no-such-host.invalid" in warning["text"] and "core is told" in warning["text"]
        poller.stop()


def test_certs_makes_a_pki_that_check_accepts(tmp_path: Path) -> None:
    """``certs DIR`` writes a root and three pairs, refuses to overwrite; ``check`` finds nothing wrong with them."""
    folder = tmp_path / "certs"
    done = run_command("certs", str(folder))
    assert done.returncode == 0, done.stderr
    assert {path.name for path in folder.iterdir()} >= {"root.pem", "poller.pem", "poller-key.pem", "core.pem"}
    assert run_command("certs", str(folder)).returncode == 1
    assert run_command("check", str(write_config(tmp_path, good_config(folder)))).returncode == 0


def demo_processes(home: Path) -> list[str]:
    """Return the command lines of the processes whose temporary directory is *home*."""
    wanted = f"TMPDIR={home}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue  # it ended, or is another user's
    return [command for command in found if command]


def test_demo_without_a_terminal_ends_by_itself_and_leaves_nothing(tmp_path: Path) -> None:
    """``demo --seconds 6`` ends with 0, tells what it saw, and leaves no process and no file behind."""
    done = run_command("demo", "--seconds", "6", "--interval", "2s", "--agents", "20", TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "core received" in done.stdout
    assert demo_processes(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_demo_ends_in_order_at_a_signal(tmp_path: Path) -> None:
    """SIGINT ends the demonstration with 0 and leaves nothing, too."""
    process = subprocess.Popen(
        [sys.executable, "-m", "serviceradar_poller", "demo", "--interval", "2s", "--agents", "10"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=clean_environment(TMPDIR=str(tmp_path)),
    )
    try:
        eventually(lambda: len(demo_processes(tmp_path)) == 4, "demo, agents, core and poller run")
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60.0)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, output
    eventually(lambda: not demo_processes(tmp_path), "no process is left")
    assert list(tmp_path.iterdir()) == []
