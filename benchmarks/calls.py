"""
What a call and an idle connection cost in the client, for each backend of the transport.

The same agents, one connection each with mutual TLS, each backend in a process of its own: memory after the
connections stand and have been used, CPU of calls with so many under way at a time. Nothing is decoded.

    python -m benchmarks.calls [--agents 1000] [--calls 20000] [--backends grpcio,native] [--loop asyncio|uvloop]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import rss_bytes
from serviceradar_poller.app.backend import new_transport
from serviceradar_poller.config.model import SecurityConfig, SecurityMode, TlsConfig, TransportBackend
from serviceradar_poller.env import SystemClock
from serviceradar_poller.lab.client import LabAgents
from serviceradar_poller.lab.config import CHECKS_DEFAULT
from serviceradar_poller.lab.pki import make_pki
from serviceradar_poller.transport.clients import Channel
from serviceradar_poller.transport.resolver import SystemResolver
from serviceradar_poller.wire import codec
from serviceradar_poller.wire.messages import StatusRequest

CONCURRENCY = 64
METHOD = "/monitoring.AgentService/GetStatus"
SERVER_NAME = "agent.serviceradar"
TIMEOUT_S = 30.0
ROUNDS = 5


def main() -> int:
    """Compare the backends; print a line each."""
    args = _parser().parse_args()
    if args.client:
        return _client(json.loads(args.client))
    with tempfile.TemporaryDirectory(prefix="calls-") as folder:
        make_pki(folder)
        with LabAgents.start(args.agents, cert_dir=Path(folder)) as agents:
            found = {}
            for backend in args.backends.split(","):
                settings = {
                    "backend": backend, "ports": agents.ports, "cert_dir": folder, "calls": args.calls,
                    "loop": args.loop, "profile": args.profile,
                }  # fmt: skip
                done = subprocess.run(
                    [sys.executable, "-m", "benchmarks.calls", "--client", json.dumps(settings)],
                    stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1], timeout=600,
                )  # fmt: skip
                if done.returncode:
                    return done.returncode
                found[backend] = json.loads(done.stdout.splitlines()[-1])
                print(backend, found[backend], flush=True)
    if {"grpcio", "native"} <= found.keys():
        ratio = found["native"]["cpu_us"] / found["grpcio"]["cpu_us"]
        print(f"native / grpcio: {ratio:.3f} of the CPU a call")
    return 0


def _client(settings: dict[str, Any]) -> int:
    if settings["loop"] == "uvloop":
        import uvloop  # type: ignore[import-not-found]

        factory = uvloop.new_event_loop
    else:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        print(json.dumps(runner.run(_measure(settings))))
    return 0


async def _measure(settings: dict[str, Any]) -> dict[str, float]:
    folder = Path(settings["cert_dir"])
    block = SecurityConfig(
        mode=SecurityMode.MTLS,
        server_name=SERVER_NAME,
        tls=TlsConfig(
            cert_file=str(folder / "poller.pem"),
            key_file=str(folder / "poller-key.pem"),
            ca_file=str(folder / "root.pem"),
        ),
    )
    transport = new_transport(TransportBackend(settings["backend"]), clock=SystemClock(), resolver=SystemResolver())
    channels: list[Channel] = [
        (await transport.agent(f"127.0.0.1:{port}", block))._channel  # type: ignore[attr-defined]
        for port in settings["ports"]
    ]
    check = CHECKS_DEFAULT[0]
    request = codec.encode_status_request(
        StatusRequest(
            service_name=str(check["service_name"]),
            service_type=str(check["service_type"]),
            details=str(check["details"]),
            agent_id="agent",
            poller_id="benchmark",
        )
    )
    # What the process needs anyway, one connection included, is not a connection's cost.
    await channels[0].unary(METHOD, request, TIMEOUT_S)
    gc.collect()
    own_pid = os.getpid()
    before, began_s = rss_bytes(own_pid), time.process_time()
    await _spread(iter(channels[1:]), request)
    connect_s = time.process_time() - began_s
    await _spread(iter(channels), request)
    gc.collect()
    rss = (rss_bytes(own_pid) - before) / (len(channels) - 1)
    costs, walls = [], []
    profile = None
    if settings["profile"]:
        import cProfile

        profile = cProfile.Profile()
        profile.enable()
    for _ in range(ROUNDS):
        count = settings["calls"] // ROUNDS
        began_s, wall_s = time.process_time(), time.perf_counter()
        await _spread((channels[index % len(channels)] for index in range(count)), request)
        costs.append((time.process_time() - began_s) / count)
        walls.append((time.perf_counter() - wall_s) / count)
    if profile is not None:
        profile.disable()
        import pstats

        pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(35)
    # One connection, one call at a time: what a lone call costs.
    lone = []
    for _ in range(ROUNDS):
        began_s = time.process_time()
        for _ in range(400):
            await channels[0].unary(METHOD, request, TIMEOUT_S)
        lone.append((time.process_time() - began_s) / 400)
    found = {
        "cpu_us": statistics.median(costs) * 1e6,
        "wall_us": statistics.median(walls) * 1e6,
        "lone_cpu_us": statistics.median(lone) * 1e6,
        "rss_kib": rss / 1024,
        "connect_cpu_us": connect_s / (len(channels) - 1) * 1e6,
        "rss_after_kib": (rss_bytes(own_pid) - before) / 1024 / (len(channels) - 1),
        "process_mib": before / 1024 / 1024,
    }
    for channel in channels:
        await channel.close()
    return {name: round(value, 1) for name, value in found.items()}


async def _spread(channels: Iterator[Channel], request: bytes) -> None:
    """Make a call on each, so many at a time."""

    async def worker() -> None:
        for channel in channels:
            await channel.unary(METHOD, request, TIMEOUT_S)

    async with asyncio.TaskGroup() as group:
        for _ in range(CONCURRENCY):
            group.create_task(worker())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calls", description="Compare the transport's backends.")
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--backends", default="grpcio,native")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--client", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
