"""
The reference that the poller is measured against: a bare grpc.aio client that only makes the same calls.

The same agents, one connection each with mutual TLS, the same checks as often, evenly spread over the same part of the
interval. No supervision, no decoding, no report, no log, gRPC's own settings: what is left is what calls cost.

    python -m benchmarks.reference '{"ports": [...], "cert_dir": "...", "interval_s": 10, "window_s": 2.5, "cycles": 4}'

prints one JSON line per cycle after the first two, which connect and warm up.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from benchmarks.measure import percentile, rss_bytes
from serviceradar_poller.lab.config import CHECKS_DEFAULT
from serviceradar_poller.wire.pb import monitoring_pb2 as pb

#: Cycles that aren't told.
WARM_UP_CYCLES = 2
SERVER_NAME = "agent.serviceradar"


def measure_reference(
    ports: list[int], cert_dir: Path, *, interval_s: float, window_s: float, cycles: int
) -> list[dict[str, float]]:
    """
    Run the client as a process of its own; return per cycle ``cpu_s``, ``rss_bytes``, ``p50_s``, ``p99_s``, ``failed``.

    Raises:
        RuntimeError: It failed.
    """
    settings = {
        "ports": ports, "cert_dir": str(cert_dir), "interval_s": interval_s, "window_s": window_s, "cycles": cycles
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.reference", json.dumps(settings)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        timeout=(cycles + WARM_UP_CYCLES + 2) * interval_s + 60.0,
    )
    if done.returncode:
        raise RuntimeError(f"the reference client ended with {done.returncode}: {done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


async def run(settings: dict[str, Any]) -> None:
    """Poll, and print a line per cycle."""
    loop = asyncio.get_running_loop()
    folder = Path(settings["cert_dir"])
    credentials = grpc.ssl_channel_credentials(
        (folder / "root.pem").read_bytes(),
        (folder / "poller-key.pem").read_bytes(),
        (folder / "poller.pem").read_bytes(),
    )
    options = [("grpc.ssl_target_name_override", SERVER_NAME), ("grpc.use_local_subchannel_pool", 1)]
    channels = [
        grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options) for port in settings["ports"]
    ]
    requests = [
        pb.StatusRequest(
            service_name=str(check["service_name"]),
            service_type=str(check["service_type"]),
            details=str(check["details"]),
            agent_id="agent",
            poller_id="reference",
        ).SerializeToString()
        for check in CHECKS_DEFAULT
    ]
    interval_s = float(settings["interval_s"])
    step_s = float(settings["window_s"]) / (len(channels) * len(requests))
    latencies: list[float] = []
    failed = 0
    begin_s = loop.time()

    async def poll(call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes], request: bytes, offset_s: float) -> None:
        nonlocal failed
        cycle = 0
        while True:
            await asyncio.sleep(max(begin_s + cycle * interval_s + offset_s - loop.time(), 0.0))
            called_s = loop.time()
            try:
                await call(request, timeout=interval_s)
            except grpc.aio.AioRpcError:
                failed += 1
            latencies.append(loop.time() - called_s)
            cycle += 1

    tasks = []
    for index, channel in enumerate(channels):
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/monitoring.AgentService/GetStatus")
        for which, request in enumerate(requests):
            offset_s = (which * len(channels) + index) * step_s
            tasks.append(loop.create_task(poll(call, request, offset_s)))
    cpu_before_s = 0.0
    for cycle in range(WARM_UP_CYCLES + settings["cycles"]):
        # A moment before the next cycle: everything of this one is done.
        await asyncio.sleep(begin_s + (cycle + 0.95) * interval_s - loop.time())
        cpu_now_s = time.process_time()
        if cycle >= WARM_UP_CYCLES:
            line = {
                "cpu_s": cpu_now_s - cpu_before_s,
                "rss_bytes": float(rss_bytes(_own_pid())),
                "p50_s": percentile(latencies, 0.5),
                "p99_s": percentile(latencies, 0.99),
                "calls": float(len(latencies)),
                "failed": float(failed),
            }
            print(json.dumps(line), flush=True)
        cpu_before_s, failed = cpu_now_s, 0
        latencies.clear()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for channel in channels:
        await channel.close()


def _own_pid() -> int:
    return int(Path("/proc/self").readlink().name)


if __name__ == "__main__":
    asyncio.run(run(json.loads(sys.argv[1])))
