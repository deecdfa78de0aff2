"""
Start simulated peers as processes and steer them, for tests, benchmarks and the demonstration.

    with LabAgents.start(3, cert_dir=pki) as agents, LabCore.start(cert_dir=pki) as core:
        agents.set_fault("agent-0002", "hang_status")
        core.wait(reports=1)

Every method blocks for one HTTP round trip; in a coroutine: ``await agents.awaited(agents.set_fault, …)``.
"""

from __future__ import annotations

import asyncio
import os
import selectors
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from serviceradar_poller.lab.errors import LabError

#: Four thousand agents need about a second; a loaded machine more.
READY_TIMEOUT_S = 30.0
CONTROL_TIMEOUT_S = 10.0
#: After SIGTERM; then SIGKILL.
STOP_TIMEOUT_S = 5.0
#: Of the process' standard error in an error message.
_ERROR_TAIL_BYTES = 2000

_P = ParamSpec("_P")
_T = TypeVar("_T")


class LabProcess:
    """
    One running peer; a context manager, synchronous or asynchronous, that stops it.

    Attributes:
        control: URL of the control endpoint.
        ports: What it listens on.
    """

    def __init__(
        self, arguments: Sequence[str], *, program: Sequence[str] = (), timeout_s: float = READY_TIMEOUT_S
    ) -> None:
        """
        Start the process and wait until it is ready; it stops when this process ends, too.

        Args:
            arguments: After ``lab``, such as ``["core", "--port", "0"]``.
            program: What to run instead of this Python with ``-m serviceradar_poller.lab``.
        Raises:
            LabError: It ended, or was not ready in time; with what it wrote to standard error.
        """
        command = [*(program or (sys.executable, "-m", "serviceradar_poller.lab")), *arguments, "--stop-on-eof"]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed by stop()
        # In a session of its own: Ctrl-C is for whoever started it, which then ends it in order.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )
        try:
            self.ready: dict[str, Any] = self._await_ready(timeout_s)
        except BaseException:
            self.process.kill()
            self.stop()
            raise
        self.control: str = self.ready["control"]
        self.ports: list[int] = self.ready["ports"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)

    async def awaited(self, method: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call a blocking method without blocking the loop."""
        return await asyncio.to_thread(method, *args, **kwargs)

    def request(
        self, method: str, path: str, body: Mapping[str, object] | None = None, *, timeout_s: float = CONTROL_TIMEOUT_S
    ) -> Any:
        """
        Make one control request and return the decoded answer.

        Raises:
            LabError: The process refuses, or does not answer.
        """
        data = msgspec.json.encode(body) if body is not None else None
        request = urllib.request.Request(self.control + path, data=data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as response:
                return msgspec.json.decode(response.read())
        except urllib.error.HTTPError as error:
            with error:
                detail = error.read().decode("utf-8", "replace")
            raise LabError(f"{method} {path}: {error.code}: {detail}") from error
        except OSError as error:
            raise LabError(f"{method} {path}: {error}{self._error_tail()}") from error

    def stats(self) -> dict[str, Any]:
        """Return CPU seconds and resident bytes of the process, and its counters."""
        stats: dict[str, Any] = self.request("GET", "/stats")
        return stats

    def stop(self) -> int:
        """Stop the process: SIGTERM, then SIGKILL; return its exit code. May be called twice."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        code = self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self._errors.close()
        return code

    def _await_ready(self, timeout_s: float) -> dict[str, Any]:
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout_s
        descriptor = self.process.stdout.fileno()
        line = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise LabError(f"not ready after {timeout_s:g} s{self._error_tail()}")
                part = os.read(descriptor, 65536)
                if not part:
                    code = self.process.wait(STOP_TIMEOUT_S)
                    raise LabError(f"ended with code {code} before it was ready{self._error_tail()}")
                line += part
        ready: dict[str, Any] = msgspec.json.decode(line)
        return ready

    def _error_tail(self) -> str:
        if self._errors.closed:
            return ""
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - _ERROR_TAIL_BYTES))
        text = self._errors.read().decode("utf-8", "replace").strip()
        self._errors.seek(0, os.SEEK_END)
        return f": {text}" if text else ""


class LabAgents(LabProcess):
    """A fleet of simulated agents in one process."""

    @classmethod
    def start(
        cls,
        count: int,
        *,
        cert_dir: Path | str | None = None,
        base_port: int = 0,
        name_pattern: str = "agent-{:04d}",
        faults: Mapping[str, str] | None = None,
        sync: Sequence[str] = (),
        devices: int | None = None,
        sweep_hosts: int | None = None,
        results_period_s: float = 0.0,
        program: Sequence[str] = (),
    ) -> Self:
        """
        Start *count* agents and wait until they listen.

        Args:
            faults: Target to fault, written as on the command line.
            sync, devices, sweep_hosts, results_period_s: As the fields of FleetSettings.
        """
        arguments = ["agents", "--count", str(count), "--base-port", str(base_port), "--name-pattern", name_pattern]
        if cert_dir is not None:
            arguments += ["--cert-dir", str(cert_dir)]
        for target, fault in (faults or {}).items():
            arguments += ["--fault", f"{target}={fault}"]
        for target in sync:
            arguments += ["--sync", target]
        if devices is not None:
            arguments += ["--devices", str(devices)]
        if sweep_hosts is not None:
            arguments += ["--sweep-hosts", str(sweep_hosts)]
        arguments += ["--results-period", str(results_period_s)]
        agents = cls(arguments, program=program)
        agents.port_of = {name_pattern.format(number): port for number, port in enumerate(agents.ports, 1)}
        return agents

    #: Port by agent id.
    port_of: dict[str, int]

    def address(self, agent: str) -> str:
        """Return ``127.0.0.1:port`` of an agent."""
        return f"127.0.0.1:{self.port_of[agent]}"

    def set_fault(self, target: str | Sequence[str], fault: str, **values: object) -> int:
        """Give one fault to all agents that *target* (id, range, ``*``, or several) names; return how many."""
        targets = [target] if isinstance(target, str) else list(target)
        answer = self.request("POST", "/agents/fault", {"agents": targets, "fault": fault, **values})
        return int(answer["agents"])

    def clear_fault(self, target: str = "*") -> int:
        """Make the agents that *target* names good again."""
        return int(self.request("DELETE", f"/agents/fault?agents={quote(target)}")["agents"])

    def agents(self) -> list[dict[str, Any]]:
        """Return every agent with port, fault and counters."""
        found: list[dict[str, Any]] = self.request("GET", "/agents")
        return found

    def agent(self, agent: str) -> dict[str, Any]:
        """Return one agent."""
        found: dict[str, Any] = self.request("GET", f"/agents/{quote(agent)}")
        return found

    def change_results(self, agent: str, **sizes: int) -> dict[str, Any]:
        """Give an agent new results (``devices``, ``hosts``: how many); return the new sequences."""
        changed: dict[str, Any] = self.request("POST", f"/agents/{quote(agent)}/results", sizes)
        return changed


class LabCore(LabProcess):
    """A simulated core in a process."""

    @classmethod
    def start(
        cls,
        *,
        cert_dir: Path | str | None = None,
        port: int = 0,
        record: str = "full",
        strict_registration: bool = False,
        known_pollers: Sequence[str] = (),
        keep_reports: int | None = None,
        keep_statuses: int | None = None,
        receive_bytes_max: int | None = None,
        program: Sequence[str] = (),
    ) -> Self:
        """Start core and wait until it listens; the arguments are the flags of ``lab core``."""
        arguments = ["core", "--port", str(port), "--record", record]
        if cert_dir is not None:
            arguments += ["--cert-dir", str(cert_dir)]
        if strict_registration:
            arguments.append("--strict-registration")
        for poller in known_pollers:
            arguments += ["--known-poller", poller]
        for flag, value in (
            ("--keep-reports", keep_reports),
            ("--keep-statuses", keep_statuses),
            ("--receive-bytes-max", receive_bytes_max),
        ):
            if value is not None:
                arguments += [flag, str(value)]
        return cls(arguments, program=program)

    @property
    def address(self) -> str:
        """``127.0.0.1:port``."""
        return str(self.ready["address"])

    def set_fault(self, fault: str, **values: object) -> None:
        """Put a fault in force."""
        self.request("POST", "/fault", {"fault": fault, **values})

    def clear_fault(self) -> None:
        """Make core good again."""
        self.request("DELETE", "/fault")

    def reports(self, since: int = 0, *, services: bool = True) -> list[dict[str, Any]]:
        """Return the reports from index *since* on, with their statuses where those are kept."""
        found: list[dict[str, Any]] = self.request(
            "GET", f"/reports?since={since}&services={int(services)}", timeout_s=60.0
        )
        return found

    def statuses(self, agent: str | None = None, service: str | None = None, since: int = 0) -> list[dict[str, Any]]:
        """Return the kept statuses of an agent or service, oldest first."""
        found: list[dict[str, Any]] = self.request("GET", f"/statuses?{_query(agent, service)}&since={since}")
        return found

    def state(self, agent: str | None = None, service: str | None = None) -> dict[str, Any]:
        """Return the latest status of every service, and the counters."""
        found: dict[str, Any] = self.request("GET", f"/state?{_query(agent, service)}")
        return found

    def counts(self) -> dict[str, Any]:
        """Return the counters."""
        found: dict[str, Any] = self.request("GET", "/counts")
        return found

    def wait(
        self,
        *,
        reports: int = 0,
        agent: str | None = None,
        service: str | None = None,
        available: bool | None = None,
        since: int = 0,
        timeout_s: float = 10.0,
    ) -> dict[str, Any]:
        """
        Wait until core has seen *reports* reports and holds a latest status like the one described.

        Raises:
            LabError: It does not come in time.
        """
        wanted = {"agent": agent, "service": service, "available": available}
        body: dict[str, object] = {key: value for key, value in wanted.items() if value is not None}
        body |= {"reports": reports, "since": since, "timeout_s": timeout_s}
        answer: dict[str, Any] = self.request("POST", "/wait", body, timeout_s=timeout_s + CONTROL_TIMEOUT_S)
        if not answer["met"]:
            raise LabError(f"core did not see {body}; it has {answer['reports']} reports")
        return answer

    def clear(self) -> None:
        """Forget what is recorded; indices go on."""
        self.request("POST", "/clear")


def _query(agent: str | None, service: str | None) -> str:
    return urlencode({key: value for key, value in (("agent", agent), ("service", service)) if value is not None})
