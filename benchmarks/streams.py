"""
A large result on its way from an agent to core: how long, at what cost, and who else notices.

One of 20 agents is a sync service. Its set of devices grows to 100,000 (37 MB in 74 chunks) and then to a million: each
is pulled as a stream, merged, written to the spool, and sent to core, over mutual TLS. The other agents are polled
every second meanwhile.

Time runs from the request's arrival at the agent to the arrival of the last part in core. Memory is the peak above
what the poller held before the first large result, sampled every 5 ms; lateness is that of every check of the others.

Sketch for 37 MB before measuring, CPU ms: received over TLS 150, decoded and merged 90, encoded 20, written twice
(log and database) with checksums 200, read and deleted 60, sent over TLS 150: 0.7 s. Memory: a chunk, a piece, a part,
the library's window and the store's cache: under 20 MiB, for any number of devices.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import cpu_s, percentile, rss_bytes
from benchmarks.report import MIB, Promise, Result, Table, number
from serviceradar_poller.lab.pki import make_pki
from serviceradar_poller.testing.site import Site, make_site

AGENTS = 20
SYNC_AGENT = "agent-0001"
SYNC = {"service_type": "sync", "service_name": "sync", "results_interval": "20s"}
PING = {"service_type": "icmp", "service_name": "ping", "details": "192.0.2.1"}
UNIT = {"service_type": "process", "service_name": "unit", "details": "sshd"}
#: How many devices, and how often they are pulled; a pull may take as long as its interval.
SIZES = ((100_000, 3), (1_000_000, 1))
SMALL = 10
SAMPLE_S = 0.005
#: After a pull, for what it left to do.
SETTLE_S = 1.0
PATIENCE_S = 120.0
PROMISED = 100_000
SECONDS_MAX = 1.5
CPU_S_MAX = 1.5
RSS_MIB_MAX = 64.0
LATENESS_MS_MAX = 100.0
GO = "485–855 MiB, 3.0–4.8 s, 3.9–6.1 CPU s for 100,000 devices"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pull:
    """
    One large result.

    Attributes:
        seconds: From the request's arrival at the agent to the last part's in core.
        pulled_s: Of these, until it was whole and sealed.
        peak_bytes: Above the poller's memory before the first of them.
        late_s, own_late_s: The latest check of the others meanwhile, and that less the wait for a CPU.
    """

    devices: int
    size: int
    chunks: int
    seconds: float
    pulled_s: float
    cpu_s: float
    peak_bytes: int
    late_s: float
    own_late_s: float
    late_p99_s: float


class Sampler:
    """Samples memory and CPU of a process while it is in use as a context."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.peak_bytes = 0
        self._cpu: list[tuple[float, float]] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def cpu_since(self, wall_s: float) -> float:
        """Return the CPU seconds used since a moment, unix seconds, until the last sample."""
        return self._cpu[-1][1] - next(used_s for at_s, used_s in self._cpu if at_s >= wall_s)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stopped.wait(SAMPLE_S):
            self.peak_bytes = max(self.peak_bytes, rss_bytes(self._pid))
            self._cpu.append((time.time(), cpu_s(self._pid)))


def main(*, quick: bool = False) -> Result:
    """Measure both sizes; quick: 5,000 devices, once."""
    sizes = ((5_000, 1),) if quick else SIZES
    pulls: list[Pull] = []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        make_pki(folder / "pki")
        with contextlib.ExitStack() as stack:
            site = _site(stack, folder)
            base_bytes = rss_bytes(site.poller.process.pid)
            for devices, rounds in sizes:
                pulls += [_pull(site, devices, base_bytes) for _ in range(rounds)]
            site.poller.stop()
    return Result(
        suite="streams",
        tables=(_table(pulls),),
        promises=() if quick else _promises(pulls),
        raw={"agents": AGENTS, "base_bytes": base_bytes, "pulls": [asdict(pull) for pull in pulls]},
    )


def _site(stack: contextlib.ExitStack, folder: Path) -> Site:
    def change(config: dict[str, Any]) -> None:
        config["agents"][SYNC_AGENT]["checks"] = [SYNC]

    site = make_site(
        stack,
        folder,
        AGENTS,
        cert_dir=folder / "pki",
        checks=[PING, UNIT],
        change=change,
        sync=[SYNC_AGENT],
        devices=SMALL,
    )
    site.await_status(SYNC_AGENT, "sync", lambda status: status["available"])
    site.await_reports(5)
    return site


def _pull(site: Site, devices: int, base_bytes: int) -> Pull:
    """Have one large result pulled, and the ones after it small again."""
    poller, pid = site.poller, site.poller.process.pid
    _calls(site)
    mark, begin = poller.mark(), site.next_report()
    chunks = site.agents.agent(SYNC_AGENT)["calls"].get("chunks", 0)
    site.agents.change_results(SYNC_AGENT, devices=devices)
    with Sampler(pid) as samples:
        called_s = _calls(site)
        site.agents.change_results(SYNC_AGENT, devices=SMALL)
        report = _stream(site, begin)
        chunks = site.agents.agent(SYNC_AGENT)["calls"]["chunks"] - chunks
        time.sleep(SETTLE_S)
    finished = poller.await_event("check_finished", since=mark, agent=SYNC_AGENT, kind="results")
    pulled = max(finished, key=lambda line: line["latency_s"])
    others = [line for line in poller.events("check_finished", since=mark) if line["agent"] != SYNC_AGENT]
    lateness_s = [line["lateness_s"] for line in others]
    own_s = []
    for line in sorted(others, key=lambda line: -line["lateness_s"])[:20]:
        start_s = line["wall_s"] - line["latency_s"]
        own_s.append(line["lateness_s"] - poller.waits.waited_s(start_s - line["lateness_s"], start_s))
    return Pull(
        devices=devices,
        size=report["size"],
        chunks=chunks,
        seconds=report["wall_s"] - called_s,
        pulled_s=pulled["latency_s"],
        cpu_s=samples.cpu_since(called_s),
        peak_bytes=max(samples.peak_bytes - base_bytes, 0),
        late_s=max(lateness_s),
        own_late_s=max(0.0, *own_s),
        late_p99_s=percentile(lateness_s, 0.99),
    )


def _calls(site: Site) -> float:
    """Wait for the agent's next streamed result to be asked for; return when it was, unix seconds."""
    before = site.agents.agent(SYNC_AGENT)["calls"].get("stream", 0)
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s:
        agent = site.agents.agent(SYNC_AGENT)
        if agent["calls"].get("stream", 0) > before:
            return float(agent["last_call_s"])
        time.sleep(SAMPLE_S)
    raise RuntimeError(f"no result was asked for within {PATIENCE_S:g} s")


def _stream(site: Site, begin: int) -> dict[str, Any]:
    """Wait for the streamed report of the result, and return it."""
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s:
        for report in site.core.reports(begin, services=False):
            if report["transport"] == "stream" and report["size"] > MIB:
                return report
        time.sleep(0.05)
    raise RuntimeError(f"the result did not reach core within {PATIENCE_S:g} s")


def _table(pulls: list[Pull]) -> Table:
    return Table(
        title=f"A sync result of one of {AGENTS} agents, to core as a stream",
        columns=(
            "devices",
            "MB",
            "chunks",
            "s to core",
            "of these pulled",
            "CPU s",
            "peak MiB above base",
            "latest other check ms",
            "without waits for a CPU",
        ),
        rows=tuple(
            (
                f"{pull.devices:,}",
                number(pull.size / 1e6),
                str(pull.chunks),
                number(pull.seconds),
                number(pull.pulled_s),
                number(pull.cpu_s),
                number(pull.peak_bytes / MIB),
                number(1e3 * pull.late_s),
                number(1e3 * pull.own_late_s),
            )
            for pull in pulls
        ),
        notes=f"The Go poller, measured: {GO}.",
    )


def _promises(pulls: list[Pull]) -> tuple[Promise, ...]:
    promised = [pull for pull in pulls if pull.devices == PROMISED]
    what = f"{PROMISED:,} devices from an agent to core"
    return (
        Promise(
            text=f"{what}, median (Go: 3.0–4.8)",
            limit=SECONDS_MAX,
            measured=statistics.median(pull.seconds for pull in promised),
            unit="s",
        ),
        Promise(
            text=f"{what}, CPU, median (Go: 3.9–6.1)",
            limit=CPU_S_MAX,
            measured=statistics.median(pull.cpu_s for pull in promised),
            unit="s",
        ),
        Promise(
            text="any number of devices: peak memory above base (Go: 485–855 for 100,000)",
            limit=RSS_MIB_MAX,
            measured=max(pull.peak_bytes for pull in pulls) / MIB,
            unit="MiB",
        ),
        Promise(
            text="the latest check of other agents meanwhile",
            limit=LATENESS_MS_MAX,
            measured=1e3 * max(pull.late_s for pull in pulls),
            unit="ms",
        ),
    )
