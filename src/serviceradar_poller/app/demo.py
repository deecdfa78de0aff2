"""
The ``demo`` command: simulated agents and core as processes of their own, the real poller among them, shown live.

Peers misbehave on a script, so that a minute shows what matters: agents that hang, refuse, answer nonsense and come
back, a core that goes away for a while. Everything ends with the view: by Ctrl-C, or after a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from serviceradar_poller.config.durations import DurationError, parse_duration
from serviceradar_poller.errors import PollerError
from serviceradar_poller.lab.client import LabAgents, LabCore
from serviceradar_poller.lab.config import make_config
from serviceradar_poller.lab.pki import make_pki
from serviceradar_poller.lab.ports import free_port
from serviceradar_poller.observe.snapshot import ViewSnapshot, decode_snapshot
from serviceradar_poller.observe.view import final_summary, render, summary_line

#: Without a terminal the demonstration ends by itself.
SECONDS_WITHOUT_TERMINAL = 30.0
#: Between two pictures.
FRAME_S = 0.5
#: Poller, agents and core get this long to end; then they are killed.
STOP_TIMEOUT_S = 8.0
#: The poller serves its view within this time of its start.
START_TIMEOUT_S = 20.0

#: A shorter interval shows nothing but noise.
INTERVAL_S_MIN = 0.5
#: The poller, told by the kernel to end when this program does, however that happens (prctl's PR_SET_PDEATHSIG).
_CHILD = f"""
import ctypes, sys
ctypes.CDLL(None).prctl(1, {int(signal.SIGTERM)})
sys.argv = sys.argv[1:]
from serviceradar_poller.cli import main
sys.exit(main())
"""

#: What goes wrong when, in seconds after the start; agents are named by number, the last of the fleet included.
Script = list[tuple[float, str, Callable[[LabAgents, LabCore], object]]]


def demo(*, agents: int, interval: str, seconds: float) -> int:
    """
    Run the demonstration; return the exit code.

    Args:
        seconds: End after so long; 0: when interrupted, or after 30 s without a terminal.
    Raises:
        PollerError: A part could not be started.
    """
    if agents < 8:
        raise PollerError(f"--agents: found {agents}; accepted: 8 or more, some of them are to be faulty")
    try:
        interval_s = parse_duration(interval) / 1e9
    except DurationError as error:
        raise PollerError(f"--interval: {error}; accepted: a duration such as 5s") from None
    if interval_s < INTERVAL_S_MIN:
        raise PollerError(f"--interval: found {interval}; accepted: {INTERVAL_S_MIN:g}s or more")
    live = sys.stdout.isatty()
    if not seconds and not live:
        seconds = SECONDS_WITHOUT_TERMINAL
    with tempfile.TemporaryDirectory(prefix="serviceradar-poller-demo-") as directory:
        return asyncio.run(_demo(Path(directory), agents, interval, interval_s, seconds, live=live))


async def _demo(directory: Path, count: int, interval: str, interval_s: float, seconds: float, *, live: bool) -> int:
    loop = asyncio.get_running_loop()
    end = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, end.set)
    pki = directory / "certs"
    await asyncio.to_thread(make_pki, pki)
    async with contextlib.AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(
            await asyncio.to_thread(LabAgents.start, count, cert_dir=pki, faults=_faults())
        )
        core = await stack.enter_async_context(await asyncio.to_thread(LabCore.start, cert_dir=pki, record="summary"))
        http_port = free_port()
        config_file = directory / "poller.json"
        state_dir = directory / "state"
        state_dir.mkdir()
        make_config(
            config_file,
            agents=fleet.port_of,
            core_address=core.address,
            poll_interval=interval,
            poller_id="demo-poller",
            cert_dir=pki,
            state_dir=state_dir,
            extra={
                "listen_addr": "127.0.0.1:0",
                "http": {"listen_addr": f"127.0.0.1:{http_port}"},
                "logging": {"level": "info", "output": "stderr"},
            },
        )
        log_file = directory / "poller.log"
        poller = await stack.enter_async_context(_poller(config_file, log_file))
        view_url = f"http://127.0.0.1:{http_port}/view"
        snapshot = await _first_view(view_url, poller, log_file, end)
        if snapshot is None:
            return 0
        show = _show_live if live else _show_lines
        try:
            async with asyncio.TaskGroup() as group:
                script = group.create_task(_play(_script(count), fleet, core))
                snapshot = await show(view_url, poller, end, seconds, interval_s, snapshot)
                script.cancel()
        except* PollerError as failures:
            raise PollerError(f"the demonstration broke off: {failures.exceptions[0]}") from None
        if poller.poll() is not None:
            raise PollerError(f"the poller ended with exit code {poller.returncode}: {_tail(log_file)}")
        reports = (await asyncio.to_thread(core.counts)).get("reports", 0)
    print(final_summary(snapshot))
    print(f"core received {reports} reports; everything is stopped.")
    return 0


def _faults() -> dict[str, str]:
    return {
        "agent-0002": "refuse",
        "agent-0003": "hang_status",
        "agent-0004": "non_json",
        "agent-0005": "mute",
        "agent-0006": "flap:up_s=12,down_s=8",
        "agent-0007": "slow:seconds=1.5",
    }


def _script(count: int) -> Script:
    last = f"agent-{count:04d}"
    return [
        (8.0, "freeze", lambda fleet, core: fleet.set_fault(last, "freeze")),
        (12.0, "core away", lambda fleet, core: core.set_fault("disappear")),
        (18.0, "core back", lambda fleet, core: core.clear_fault()),
        (20.0, "thaw", lambda fleet, core: fleet.clear_fault(last)),
        (22.0, "mend", lambda fleet, core: fleet.clear_fault("agent-0002")),
    ]


async def _play(script: Script, fleet: LabAgents, core: LabCore) -> None:
    begin_s = asyncio.get_running_loop().time()
    for at_s, _, act in script:
        await asyncio.sleep(max(begin_s + at_s - asyncio.get_running_loop().time(), 0.0))
        await asyncio.to_thread(act, fleet, core)


@contextlib.asynccontextmanager
async def _poller(config_file: Path, log_file: Path) -> AsyncIterator[subprocess.Popen[bytes]]:
    with log_file.open("wb") as log:
        process = subprocess.Popen(  # noqa: ASYNC220 — it takes a millisecond, and nothing else runs yet
            [sys.executable, "-c", _CHILD, "serviceradar-poller", "--config", str(config_file)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)


async def _first_view(
    url: str, poller: subprocess.Popen[bytes], log_file: Path, end: asyncio.Event
) -> ViewSnapshot | None:
    """Return the poller's first view; None when the end came before it."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_TIMEOUT_S):
            while not end.is_set() and poller.poll() is None:
                snapshot = await asyncio.to_thread(_fetch, url)
                if snapshot is not None:
                    return snapshot
                await _pause(end, 0.1)
    if end.is_set():
        return None
    raise PollerError(f"the poller did not start: {_tail(log_file)}")


def _tail(log_file: Path) -> str:
    return log_file.read_text(errors="replace")[-2000:]


def _fetch(url: str) -> ViewSnapshot | None:
    try:
        with urllib.request.urlopen(url, timeout=2.0) as answer:
            return decode_snapshot(answer.read())
    except OSError:
        return None


async def _newer(url: str, snapshot: ViewSnapshot) -> ViewSnapshot:
    fetched = await asyncio.to_thread(_fetch, url)
    return snapshot if fetched is None else fetched


async def _pause(end: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await end.wait()


async def _show_live(
    url: str, poller: Any, end: asyncio.Event, seconds: float, interval_s: float, snapshot: ViewSnapshot
) -> ViewSnapshot:
    """Draw the view until the end, in place."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + seconds if seconds else float("inf")
    console = Console()

    def picture() -> Any:
        return render(snapshot, width=console.width, height=console.height)

    with Live(picture(), console=console, screen=True, auto_refresh=False) as view:
        while not end.is_set() and loop.time() < until_s and poller.poll() is None:
            snapshot = await _newer(url, snapshot)
            view.update(picture(), refresh=True)
            await _pause(end, FRAME_S)
    return snapshot


async def _show_lines(
    url: str, poller: Any, end: asyncio.Event, seconds: float, interval_s: float, snapshot: ViewSnapshot
) -> ViewSnapshot:
    """Print a line a cycle until the end."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + seconds if seconds else float("inf")
    while not end.is_set() and loop.time() < until_s and poller.poll() is None:
        await _pause(end, min(interval_s, max(until_s - loop.time(), 0.0)))
        snapshot = await _newer(url, snapshot)
        print(summary_line(snapshot), flush=True)
    return snapshot
