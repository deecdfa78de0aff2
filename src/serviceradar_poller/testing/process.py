"""
Run the poller as a real process, and read what it says: log lines, HTTP answers, exit code. For tests only.

Lateness is judged against what the kernel says of the process: the time that its main thread was ready to run and had
no CPU is the machine's, and so is the time for which a hypervisor took the machine's CPUs away; all else is the
poller's own.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from serviceradar_poller.env import SystemClock

#: Longest wait for something that must come, unless a test names another.
PATIENCE_S = 30.0
#: Between two looks.
LOOK_S = 0.02
HTTP_TIMEOUT_S = 15.0
#: A poller that a test left running gets this long to end after a kill.
REAP_TIMEOUT_S = 20.0
#: Between two samples of how long the process waited for a CPU; they are kept for SAMPLES_MAX of them.
SAMPLE_S = 0.02
SAMPLES_MAX = 50_000
#: No other agent's check may be later than this.
LATENESS_S_MAX = 0.1
#: A loop that did not turn for this long had something else to do than to wait for a CPU.
BLOCKED_S_MAX = 0.25
#: What Python is given to run the poller.
PROGRAM = ("-m", "serviceradar_poller")
#: Of each output, when a test fails.
TAIL_BYTES = 4_000

T = TypeVar("T")

_CLOCK = SystemClock()


def eventually(
    look: Callable[[], T], what: str, *, timeout_s: float = PATIENCE_S, unless: Callable[[], str] = lambda: ""
) -> T:
    """
    Return what *look* gives as soon as that is truthy.

    Args:
        unless: Says why waiting is useless; empty while it is not.
    Raises:
        AssertionError: It never was.
    """
    pause = threading.Event()  # never set: it waits without being told by anybody
    until_s = _CLOCK.monotonic() + timeout_s
    while True:
        found = look()
        if found:
            return found
        hopeless = unless()
        assert not hopeless, f"{what}: {hopeless}"
        assert _CLOCK.monotonic() < until_s, f"not within {timeout_s:g} s: {what}; last look: {found!r:.500}"
        pause.wait(LOOK_S)


def clean_environment(**extra: str) -> dict[str, str]:
    """Return this process' environment without what would configure a poller, and *extra*."""
    ours = ("SERVICERADAR_", "CONFIG_", "KV_", "PINNED_")
    address = ("POD_IP", "HOST_IP", "NODE_IP")
    return {k: v for k, v in os.environ.items() if not k.startswith(ours) and k not in address} | extra


def run_command(*arguments: str, timeout_s: float = 60.0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``serviceradar-poller`` with *arguments* to its end."""
    return subprocess.run(
        [sys.executable, "-m", "serviceradar_poller", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=clean_environment(**environment),
        check=False,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LateCheck:
    """A check that began late; ``own_s`` is what remains when the wait for a CPU is taken off."""

    agent: str
    service_name: str
    start_wall_s: float
    lateness_s: float
    own_s: float


class PollerProcess:
    """
    One poller; a context manager that ends it, if need be by force.

    Attributes:
        url: Of its HTTP server.
        wall_s: When it was started, unix seconds.
    """

    def __init__(
        self,
        config_file: Path,
        *,
        http_port: int,
        environment: Mapping[str, str] | None = None,
        flag: str = "--config",
        program: Sequence[str] = PROGRAM,
    ) -> None:
        """Start it; `ready` waits until it polls. *program*: what Python is given before the flag."""
        self.config_file = config_file
        self.url = f"http://127.0.0.1:{http_port}"
        self._log = config_file.with_suffix(".log")
        self._errors = config_file.with_suffix(".stderr")
        self._lines: list[dict[str, Any]] = []
        self._offset = 0
        self.wall_s = _CLOCK.wall()
        with self._log.open("wb") as log, self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, *program, flag, str(config_file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=errors,
                start_new_session=True,
                env=clean_environment(**(environment or {})),
            )
        self.waits = CpuWaits(self.process.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        if kind is not None:
            sys.stderr.write(f"--- {self._log.name}\n{_tail(self._log)}\n--- stderr\n{_tail(self._errors)}\n")

    # -- life

    def ready(self, *, timeout_s: float = PATIENCE_S) -> Self:
        """Wait until /readyz agrees."""
        eventually(self._is_ready, "the poller is ready", timeout_s=timeout_s, unless=self._death)
        return self

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def wait(self, timeout_s: float) -> int:
        """Return the exit code; fail when it does not end in time."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the poller did not end within {timeout_s:g} s") from None

    def stop(self, *, timeout_s: float = 15.0) -> int:
        """Ask it to stop, and return the exit code."""
        self.send(signal.SIGTERM)
        return self.wait(timeout_s)

    def end(self) -> None:
        """Kill it when it still runs; may be called twice."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(REAP_TIMEOUT_S)
        self.waits.stop()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    @property
    def stderr(self) -> str:
        """What it wrote to standard error."""
        return self._errors.read_text("utf-8", "replace")

    def _death(self) -> str:
        code = self.process.poll()
        return "" if code is None else f"the poller ended with {code}: {_tail(self._errors)}{_tail(self._log)}"

    def _is_ready(self) -> bool:
        try:
            return self.http("/readyz")[0] == 200
        except OSError:
            return False

    # -- log

    def lines(self) -> list[dict[str, Any]]:
        """Return every log line so far, decoded, with ``wall_s`` added: its time in unix seconds."""
        with self._log.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for text in whole.splitlines():
            line: dict[str, Any] = msgspec.json.decode(text)
            line["wall_s"] = datetime.fromisoformat(line["time"]).timestamp()
            self._lines.append(line)
        return self._lines

    def events(self, name: str, /, *, since: int = 0, **fields: object) -> list[dict[str, Any]]:
        """Return the lines of one event, from line number *since* on, whose fields are as given."""
        return [
            line
            for line in self.lines()[since:]
            if line["event"] == name and all(line.get(key) == value for key, value in fields.items())
        ]

    def await_event(
        self, name: str, /, *, count: int = 1, since: int = 0, timeout_s: float = PATIENCE_S, **fields: object
    ) -> list[dict[str, Any]]:
        """Wait until there are *count* such lines, and return all of them."""

        def look() -> list[dict[str, Any]]:
            found = self.events(name, since=since, **fields)
            return found if len(found) >= count else []

        return eventually(look, f"{count} log lines {name} {fields}", timeout_s=timeout_s, unless=self._death)

    def mark(self) -> int:
        """Return the number of lines so far, for ``since``."""
        return len(self.lines())

    def late_checks(
        self, *, since: int = 0, without: Sequence[str] = (), limit_s: float = LATENESS_S_MAX
    ) -> list[LateCheck]:
        """
        Return the checks that began later than *limit_s* by the poller's own fault; needs log level debug.

        Args:
            without: Agents that do not count.
        """
        late: list[LateCheck] = []
        for line in self.events("check_finished", since=since):
            lateness_s = line["lateness_s"]
            if lateness_s <= limit_s or line["agent"] in without:
                continue
            start_s = line["wall_s"] - line["latency_s"]
            own_s = lateness_s - self.waits.waited_s(start_s - lateness_s, start_s)
            if own_s > limit_s:
                late.append(
                    LateCheck(
                        agent=line["agent"],
                        service_name=line["service_name"],
                        start_wall_s=start_s,
                        lateness_s=lateness_s,
                        own_s=own_s,
                    )
                )
        return late

    def blocks(self, *, since: int = 0, limit_s: float = BLOCKED_S_MAX) -> list[dict[str, Any]]:
        """Return the lines of a loop that did not turn for longer than *limit_s* by the poller's own fault."""
        return [
            line
            for line in self.events("loop_blocked", since=since)
            if line["blocked_s"] - self.waits.waited_s(line["wall_s"] - line["blocked_s"], line["wall_s"]) > limit_s
        ]

    # -- http

    def http(self, path: str, body: Mapping[str, object] | None = None) -> tuple[int, bytes]:
        """Return status and body of a GET, or of a POST with a JSON *body*."""
        data = None if body is None else msgspec.json.encode(body)
        headers = {} if data is None else {"content-type": "application/json"}
        request = urllib.request.Request(self.url + path, data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=HTTP_TIMEOUT_S) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def json(self, path: str) -> Any:
        """Return the decoded body of a GET."""
        return msgspec.json.decode(self.http(path)[1])

    def metric(self, name: str, **labels: str) -> float:
        """Return a metric's value, summed over the series that have *labels*; 0.0 when there is none."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        text = self.http("/metrics")[1].decode()
        found = re.findall(rf"^serviceradar_poller_{re.escape(name)}(\{{.*\}})? (\S+)$", text, re.MULTILINE)
        return sum(float(value) for series, value in found if all(each in series for each in wanted))

    def restart(self, path: str) -> None:
        """Have the child at *path* crash; it needs ``http.control``."""
        status, body = self.http("/tree/restart", {"path": path})
        assert status == 202, (status, body)

    def child(self, path: str) -> dict[str, Any]:
        """Return the node of the supervision tree at *path*."""
        status, body = self.http(f"/tree?path={path}&depth=0")
        assert status == 200, (status, body)
        node: dict[str, Any] = msgspec.json.decode(body)
        return node


class CpuWaits:
    """
    Samples how long a process' main thread was ready to run without getting a CPU. [Linux: proc/<pid>/schedstat]

    A thread whose CPU is taken away by a hypervisor runs, as far as its own kernel can tell: what that steals is added,
    of whatever CPU. [proc(5), stat]
    """

    def __init__(self, pid: int) -> None:
        self._path = f"/proc/{pid}/schedstat"
        self._tick_s = 1.0 / os.sysconf("SC_CLK_TCK")
        self._times_s: list[float] = []
        self._waits_s: list[float] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="cpu-waits", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the sampling."""
        self._stopped.set()
        self._thread.join()

    def waited_s(self, begin_s: float, end_s: float) -> float:
        """Return the wait between two wall times, to the resolution of the samples; 0.0 where none are known."""
        times_s = self._times_s[:]
        first = max(bisect.bisect_left(times_s, begin_s) - 1, 0)
        # The wait is added up when it ends: the sample after next surely has it.
        last = min(bisect.bisect_right(times_s, end_s) + 1, len(times_s) - 1)
        return self._waits_s[last] - self._waits_s[first] if last > first else 0.0

    def _sample(self) -> None:
        while not self._stopped.wait(SAMPLE_S) and len(self._times_s) < SAMPLES_MAX:
            with contextlib.suppress(OSError, IndexError, ValueError):  # the process is gone, or the kernel has none
                with open(self._path, encoding="ascii") as file:
                    waited_ns = int(file.read().split()[1])
                with open("/proc/stat", encoding="ascii") as file:
                    stolen_ticks = int(file.readline().split()[8])
                self._waits_s.append(waited_ns / 1e9 + stolen_ticks * self._tick_s)
                self._times_s.append(_CLOCK.wall())


def _tail(file: Path) -> str:
    with contextlib.suppress(OSError):
        return file.read_bytes()[-TAIL_BYTES:].decode("utf-8", "replace")
    return ""
