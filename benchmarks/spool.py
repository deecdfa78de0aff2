"""
What sealing a report costs, how fast a large result goes in and out, and how soon a great backlog is open.

Sketch before measuring: a report of 2,000 statuses is some 600 KB, 150 pages of the log, one write and one fsync, a few
milliseconds on a disk that takes 2 ms for it; 60,000 small reports are 60,000 rows to add up, some 50 ms, and a file of
some 100 MB to check.

fsyncs are counted where SQLite asks for them, by a file system between it and the real one.
"""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import apsw

from benchmarks.measure import rss_bytes
from benchmarks.report import MIB, Promise, Result, Table, number
from serviceradar_poller.reporting.spool import NewCall, NewReport, Spool, SpoolSettings
from serviceradar_poller.reporting.spool.engine import Engine

#: Bytes of a report of one status, of 100 agents with 2 checks, and of 1,000 agents with 2 checks.
SIZES = (300, 60_000, 600_000)
SEALS = 300
#: A result of 100,000 devices.
PARTS = 13
PART_BYTES = 3 * MIB
#: Three days of a report every 4 s.
BACKLOG = 60_000
BACKLOG_SIZE = 1_000
OPEN_S_MAX = 2.0
LAG_MS_MAX = 50.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealing:
    """Seals one after the other."""

    size: int
    seals_per_s: float
    p50_ms: float
    p99_ms: float
    fsyncs_per_seal: float
    cpu_ms_per_seal: float
    accepts_per_s: float


class _CountingFs(apsw.VFS):
    """Counts syncs."""

    def __init__(self) -> None:
        self.name = "counting"
        self.syncs = 0
        super().__init__(self.name, "", iVersion=2)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        return _CountingFile(self, name, flags)


class _CountingFile(apsw.VFSFile):
    def __init__(self, fs: _CountingFs, name: Any, flags: list[int]) -> None:
        super().__init__("", name, flags)
        self.fs = fs

    def xSync(self, flags: int) -> None:  # noqa: N802
        self.fs.syncs += 1
        super().xSync(flags)


def main(*, quick: bool = False) -> Result:
    """Measure everything; quick: little of it."""
    return asyncio.run(_measure(seals=20 if quick else SEALS, backlog=500 if quick else BACKLOG, quick=quick))


async def _measure(*, seals: int, backlog: int, quick: bool) -> Result:
    fs = _CountingFs()
    sealing = [await _sealing(fs, size, seals) for size in SIZES]
    fs.unregister()
    result = await _large(parts=PARTS)
    opened = await _backlog(backlog)
    promises = (
        Promise(text=f"open a spool of {backlog:,} reports", limit=OPEN_S_MAX, measured=opened["open_s"], unit="s"),
        Promise(
            text="event loop held up while 37 MB are spooled", limit=LAG_MS_MAX, measured=result["lag_ms"], unit="ms"
        ),
    )
    return Result(
        suite="spool",
        tables=(
            Table(
                title="Sealing a report, one after the other",
                columns=("bytes", "seals/s", "p50, ms", "p99, ms", "fsyncs a seal", "CPU a seal, ms", "accepts/s"),
                rows=tuple(
                    (
                        f"{each.size:,}",
                        *map(
                            number,
                            (
                                each.seals_per_s,
                                each.p50_ms,
                                each.p99_ms,
                                each.fsyncs_per_seal,
                                each.cpu_ms_per_seal,
                                each.accepts_per_s,
                            ),
                        ),
                    )
                    for each in sealing
                ),
                notes="fsyncs include those of folding the log back. CPU is that of all threads.",
            ),
            Table(
                title=f"A result of {PARTS} parts of 3 MiB, and a backlog of {backlog:,} reports",
                columns=("", "measured"),
                rows=(
                    ("parts in, MB/s", number(result["in_mb_per_s"])),
                    ("parts out, MB/s", number(result["out_mb_per_s"])),
                    ("delete, ms", number(result["delete_ms"])),
                    ("event loop held up at most, ms", number(result["lag_ms"])),
                    ("peak memory above base, MiB", number(result["rss_mib"])),
                    ("open the backlog, s", number(opened["open_s"])),
                    ("memory for it, MiB", number(opened["rss_mib"])),
                    ("drain it, reports/s", number(opened["drain_per_s"])),
                ),
            ),
        ),
        promises=() if quick else promises,
        raw={"sealing": [asdict(each) for each in sealing], "result": result, "backlog": opened},
    )


async def _sealing(fs: _CountingFs, size: int, seals: int) -> Sealing:
    async with _spool(fs.name) as (spool, _):
        report = _report(size)
        await spool.seal(report)
        fs.syncs = 0
        took: list[float] = []
        cpu_s = time.process_time()
        for _ in range(seals):
            began_s = time.perf_counter()
            await spool.seal(report)
            took.append(time.perf_counter() - began_s)
        cpu_s = time.process_time() - cpu_s
        syncs = fs.syncs
        began_s = time.perf_counter()
        count = await _drain(spool)
        accepts_s = time.perf_counter() - began_s
    took.sort()
    return Sealing(
        size=size,
        seals_per_s=seals / sum(took),
        p50_ms=statistics.median(took) * 1e3,
        p99_ms=took[int(len(took) * 0.99)] * 1e3,
        fsyncs_per_seal=syncs / seals,
        cpu_ms_per_seal=cpu_s / seals * 1e3,
        accepts_per_s=count / accepts_s,
    )


async def _large(*, parts: int) -> dict[str, float]:
    async with _spool() as (spool, _):
        base = _peak_mib()
        lags: list[float] = []
        watching = asyncio.get_running_loop().create_task(_watch(lags))
        part = b"x" * PART_BYTES
        began_s = time.perf_counter()
        writer = await spool.begin_result(NewReport(kind="result", timestamp=0, change=True, fresh=0, calls=()))
        for _ in range(parts):
            await writer.add(part)
        report_id = await writer.seal(fresh=1)
        in_s = time.perf_counter() - began_s
        began_s = time.perf_counter()
        await spool.head()
        for index in range(parts):
            await spool.part(report_id, 0, index)
        out_s = time.perf_counter() - began_s
        began_s = time.perf_counter()
        await spool.accepted(report_id)
        delete_s = time.perf_counter() - began_s
        watching.cancel()
        await asyncio.wait({watching})
        megabytes = parts * PART_BYTES / 1e6
        return {
            "in_mb_per_s": megabytes / in_s,
            "out_mb_per_s": megabytes / out_s,
            "delete_ms": delete_s * 1e3,
            "lag_ms": max(lags, default=0.0) * 1e3,
            "rss_mib": _peak_mib() - base,
        }


async def _backlog(count: int) -> dict[str, float]:
    async with _spool() as (spool, settings):
        report = _report(BACKLOG_SIZE)
        # Many at a time: how fast they come in is not what is measured here.
        for _ in range(0, count, 500):
            await asyncio.gather(*(spool.seal(report) for _ in range(500)))
        await spool.close()
        base = rss_bytes(os.getpid())
        began_s = time.perf_counter()
        again = await Spool.open(settings, emit=lambda event: None, wall=time.time)
        open_s = time.perf_counter() - began_s
        rss_mib = (rss_bytes(os.getpid()) - base) / MIB
        assert again.stats().reports == count
        began_s = time.perf_counter()
        drained = await _drain(again, limit=2_000)
        drain_s = time.perf_counter() - began_s
        await again.close()
        return {"open_s": open_s, "rss_mib": rss_mib, "drain_per_s": drained / drain_s}


async def _drain(spool: Spool, limit: int = 10**9) -> int:
    count = 0
    while count < limit and (head := await spool.head()) is not None:
        await spool.part(head.id, 0, 0)
        await spool.accepted(head.id)
        count += 1
    return count


async def _watch(lags: list[float]) -> None:
    """Record how late a timer of 1 ms is."""
    while True:
        began_s = time.perf_counter()
        await asyncio.sleep(0.001)
        lags.append(time.perf_counter() - began_s - 0.001)


@asynccontextmanager
async def _spool(vfs: str = "") -> AsyncIterator[tuple[Spool, SpoolSettings]]:
    folder = Path(tempfile.mkdtemp(prefix="spool-"))
    settings = SpoolSettings(directory=folder)
    engine = Engine(settings, wall=time.time, monotonic=time.monotonic, vfs=vfs)
    spool = await Spool.open_engine(engine, emit=lambda event: None)
    try:
        yield spool, settings
    finally:
        await spool.close()
        shutil.rmtree(folder)


def _report(size: int) -> NewReport:
    call = NewCall(kind="unary", parts=(b"x" * size,), status_count=1)
    return NewReport(kind="cycle", timestamp=0, change=False, fresh=1, calls=(call,))


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
