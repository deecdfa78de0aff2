"""A whole site for tests: the poller as a process among simulated agents and core as processes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from serviceradar_poller.lab.client import LabAgents, LabCore
from serviceradar_poller.lab.config import CHECKS_DEFAULT, make_config
from serviceradar_poller.lab.ports import free_port
from serviceradar_poller.testing.process import PATIENCE_S, PROGRAM, PollerProcess, eventually

POLLER_ID = "e2e-poller"
PARTITION = "site-a"
KV_STORE_ID = "hub"


@dataclass(kw_only=True)
class Site:
    """Agents, core and, once started, a poller."""

    agents: LabAgents
    core: LabCore
    directory: Path
    poller: PollerProcess

    def statuses(self, agent: str | None = None, service: str | None = None, since: int = 0) -> list[dict[str, Any]]:
        """Return what core was told, oldest first."""
        return self.core.statuses(agent, service, since)

    def latest(self, agent: str, service: str) -> dict[str, Any]:
        """Return the newest status of a check that core has."""
        found = self.core.state(agent, service)["latest"]
        assert len(found) == 1, found
        status: dict[str, Any] = found[0]
        return status

    def next_report(self) -> int:
        """Return the index that core's next report will have."""
        return int(self.core.counts()["reports"])

    def await_reports(self, count: int, *, since: int | None = None, timeout_s: float = PATIENCE_S) -> int:
        """Wait for *count* more reports; return the index of the first of them."""
        begin = self.next_report() if since is None else since
        self.core.wait(reports=begin + count, timeout_s=timeout_s)
        return begin

    def await_status(
        self, agent: str, service: str, holds: Callable[[dict[str, Any]], bool], *, timeout_s: float = PATIENCE_S
    ) -> dict[str, Any]:
        """Wait until the newest status of a check is as described, and return it."""
        last: list[dict[str, Any]] = []

        def look() -> dict[str, Any] | None:
            last[:] = self.core.state(agent, service)["latest"]
            return last[0] if last and holds(last[0]) else None

        found = eventually(look, f"{agent} {service} in core", timeout_s=timeout_s)
        assert found is not None
        return found

    def assert_nobody_late(self, *, since: int = 0, without: Sequence[str] = ()) -> None:
        """Assert that no check began more than 100 ms late by the poller's own fault."""
        late = self.poller.late_checks(since=since, without=without)
        assert not late, late[:10]

    def assert_no_crash(self, *, since: int = 0) -> None:
        """Assert that no child of the tree crashed, hung or gave up, and that the loop stood still only without CPU."""
        for name in ("child_exited", "child_start_failed", "supervisor_gave_up", "child_zombie"):
            told = [line for line in self.poller.events(name, since=since) if line["level"] in ("warn", "error")]
            assert not told, told[:3]
        blocked = self.poller.blocks(since=since)
        assert not blocked, blocked[:3]


class MakeSite(Protocol):
    """Makes sites that end with the test."""

    def __call__(
        self,
        agents: int = 3,
        *,
        interval: str = "1s",
        checks: Sequence[Mapping[str, object]] = CHECKS_DEFAULT,
        config: Mapping[str, object] | None = None,
        change: Callable[[dict[str, Any]], object] = lambda config: None,
        core_fault: str | None = None,
        cert_dir: Path | None = None,
        level: str = "debug",
        control: bool = False,
        ready: bool = True,
        **lab: Any,
    ) -> Site:
        """
        Make a site: *agents* is how many.

        Args:
            config: Further top-level keys.
            change: Edits the whole configuration before it is written.
            core_fault: In force before the poller starts.
            cert_dir: Instead of the session's own PKI.
            ready: Wait until the poller polls.
            lab: For LabAgents.start.
        """
        ...


def make_site(
    stack: contextlib.ExitStack,
    directory: Path,
    agents: int = 3,
    *,
    cert_dir: Path,
    interval: str = "1s",
    checks: Sequence[Mapping[str, object]] = CHECKS_DEFAULT,
    config: Mapping[str, object] | None = None,
    change: Callable[[dict[str, Any]], object] = lambda config: None,
    core_fault: str | None = None,
    level: str = "debug",
    control: bool = False,
    ready: bool = True,
    program: Sequence[str] = PROGRAM,
    **lab: Any,
) -> Site:
    """Start agents, core and poller, all of which end with *stack*; for the arguments see MakeSite, PollerProcess."""
    with ThreadPoolExecutor(1) as pool:  # both at once: a site costs half as much
        starting = pool.submit(LabCore.start, cert_dir=cert_dir)
        stack.callback(lambda: starting.result().stop())
        fleet = stack.enter_context(LabAgents.start(agents, cert_dir=cert_dir, **lab))
        core = starting.result()
    for peer in (fleet, core):
        stack.callback(peer.process.terminate)  # both before the first is waited for
    if core_fault is not None:
        core.set_fault(core_fault)
    http_port = free_port()
    extra: dict[str, object] = {
        "http": {"listen_addr": f"127.0.0.1:{http_port}", "control": control},
        "logging": {"level": level, "output": "stdout"},
        "kv_domain": KV_STORE_ID,
        **(config or {}),
    }
    state_dir = directory / "state"
    state_dir.mkdir()
    written: dict[str, Any] = make_config(
        None,
        agents=fleet.port_of,
        core_address=core.address,
        checks=checks,
        poll_interval=interval,
        poller_id=POLLER_ID,
        partition=PARTITION,
        cert_dir=cert_dir,
        state_dir=state_dir,
        extra=extra,
    )
    change(written)
    file = write_config(directory, written)
    poller = stack.enter_context(PollerProcess(file, http_port=http_port, program=program))
    site = Site(agents=fleet, core=core, directory=directory, poller=poller)
    if ready:
        poller.ready()
    return site


def write_config(directory: Path, config: Mapping[str, object]) -> Path:
    """Write a configuration as poller.json into *directory*, and return its path."""
    file = directory / "poller.json"
    file.write_text(json.dumps(config, indent=1), "utf-8")
    return file
