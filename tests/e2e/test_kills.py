"""Two hundred kills at instants that a seed decides, under load, with core up, gone, hanging and flapping."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from serviceradar_poller.lab.client import LabAgents, LabCore
from serviceradar_poller.lab.config import make_config
from serviceradar_poller.lab.ports import free_port
from serviceradar_poller.testing.process import PollerProcess, clean_environment, eventually
from serviceradar_poller.testing.site import write_config

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(500)]

POLLERS = 5
LIVES = 40
SEED = 20_251
#: Longest that the lives of one poller may take, on a machine that is busy.
LIVES_TIMEOUT_S = 360.0


@dataclass
class Killed:
    """One poller with a state directory of its own."""

    name: str
    directory: Path
    config: Path
    http_port: int
    process: subprocess.Popen[str]
    lives: list[dict[str, Any]] = field(default_factory=list)

    def promised(self) -> list[int]:
        """Return the times of the reports whose seal returned."""
        file = self.directory / "promises"
        return [int(line.split()[1]) for line in file.read_text("ascii").splitlines()] if file.exists() else []


class Trouble(threading.Thread):
    """Makes core's life as hard as a seed says; counts how often a call may have been cut."""

    def __init__(self, core: LabCore) -> None:
        super().__init__(name="trouble", daemon=True)
        self.cuts = 0
        self._core = core
        self._over = threading.Event()

    def end(self) -> None:
        """Make core good again."""
        self._over.set()
        self.join()
        self._core.clear_fault()

    def run(self) -> None:
        rng = random.Random(SEED)
        while not self._over.is_set():
            match rng.randrange(5):
                case 0 | 1:
                    self._core.clear_fault()
                    self._over.wait(rng.uniform(1.0, 3.0))
                case 2:
                    self._fault("disappear")
                    self._over.wait(rng.uniform(0.5, 2.0))
                case 3:
                    self._fault(rng.choice(("hang", "ack_lost", "die")), count=3, seconds=0.2)
                    self._over.wait(rng.uniform(0.3, 1.0))
                case 4:
                    for _ in range(6):
                        self._fault("disappear")
                        self._over.wait(0.1)
                        self._core.clear_fault()
                        self._over.wait(0.2)

    def _fault(self, fault: str, **values: object) -> None:
        self.cuts += POLLERS * int(str(values.get("count", 1)))
        self._core.set_fault(fault, **values)


@contextlib.contextmanager
def killed_pollers(pki: Path, tmp_path: Path, agents: LabAgents, core: LabCore) -> Iterator[list[Killed]]:
    """Start them, each with all agents, a cycle every 250 ms and a core that gets 1 s for a call."""
    made: list[Killed] = []
    with contextlib.ExitStack() as stack:
        for number in range(POLLERS):
            directory = tmp_path / f"poller-{number}"
            (directory / "state").mkdir(parents=True)
            http_port = free_port()
            written = make_config(
                None,
                agents=agents.port_of,
                core_address=core.address,
                poll_interval="250ms",
                poller_id=f"poller-{number}",
                cert_dir=pki,
                state_dir=directory / "state",
                extra={"http": {"listen_addr": f"127.0.0.1:{http_port}"}, "reporting": {"call_timeout": "1s"}},
            )
            config = write_config(directory, written)
            errors = stack.enter_context((directory / "lives.stderr").open("w"))
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "serviceradar_poller.testing.lives", str(config)),
                    *(str(directory / "promises"), str(SEED + number), str(LIVES)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=clean_environment(),
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            made.append(Killed(f"poller-{number}", directory, config, http_port, process))
        yield made


def last_life(killed: Killed) -> dict[str, Any]:
    """Let it live until core has everything, and stop in order; return its accounts."""
    with PollerProcess(killed.config, http_port=killed.http_port) as poller:
        poller.ready()
        recovered = poller.await_event("spool_recovered")[0]
        waiting = killed.lives[-1]["waiting"]
        assert recovered["reports"] == len(waiting)
        assert recovered["statuses"] == sum(fresh for _, _, fresh in waiting)

        def settled() -> dict[str, Any]:
            found: dict[str, Any] = poller.json("/health")["statuses"]
            return found if found["queued"] == 0 and found["delivered"] else {}

        accounts = eventually(settled, "core has everything", timeout_s=30.0)
        assert accounts["recovered"] == recovered["statuses"]
        assert accounts["polled"] + accounts["recovered"] == accounts["delivered"], accounts
        assert poller.stop() == 0
        return accounts


def test_two_hundred_kills_lose_nothing_that_was_sealed(pki: Path, tmp_path: Path) -> None:
    """What a seal promised reaches core, in order; twice only what was in flight when a call or a poller was cut."""
    with (
        LabAgents.start(3, cert_dir=pki) as agents,
        LabCore.start(cert_dir=pki) as core,
        killed_pollers(pki, tmp_path, agents, core) as pollers,
    ):
        trouble = Trouble(core)
        trouble.start()
        try:
            for killed in pollers:
                out, _ = killed.process.communicate(timeout=LIVES_TIMEOUT_S)
                errors = (killed.directory / "lives.stderr").read_text()
                assert killed.process.returncode == 0, errors[-2_000:]
                killed.lives = [json.loads(line) for line in out.splitlines()]
        finally:
            trouble.end()
        for killed in pollers:
            last_life(killed)
        reports = core.reports(services=False)
        lives = [life for killed in pollers for life in killed.lives]
        assert len(lives) == POLLERS * LIVES and not [life for life in lives if life["by_itself"]]
        waited = [len(life["waiting"]) for life in lives]
        assert sum(count >= 2 for count in waited) >= len(lives) / 20, "some were killed while a backlog waited"
        duplicates = 0
        for killed in pollers:
            times = [
                report["timestamp"]
                for report in reports
                if report["poller_id"] == killed.name and report["transport"] == "unary"
            ]
            assert times == sorted(times), killed.name
            received, promised = Counter(times), Counter(killed.promised())
            assert len(times) > LIVES / 2, "core was told of few lives"
            # The last life ran as the program itself: what it sealed is not among the promises.
            assert not promised - received, (killed.name, promised - received)
            seen = {(report_id, time) for life in killed.lives for report_id, time, _ in life["waiting"]}
            assert {time for _, time in seen} <= set(times)
            last = max(promised)
            duplicates += sum((Counter(time for time in times if time <= last) - promised).values())
        assert duplicates <= len(lives) + trouble.cuts, duplicates
