"""
Be the client of many agents over one backend of the transport, and say what each piece of its work costs.

A process of its own, so that its memory and CPU are the client's alone: it takes one command a line from standard
input, answers each with a line of figures, and ends with its input. Between two commands its event loop stands
still. Nothing that it receives is decoded.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.measure import rss_bytes
from serviceradar_poller.app.backend import new_transport
from serviceradar_poller.config.model import SecurityConfig, SecurityMode, TlsConfig, TransportBackend
from serviceradar_poller.env import SystemClock
from serviceradar_poller.lab.config import CHECKS_DEFAULT
from serviceradar_poller.transport.clients import Channel
from serviceradar_poller.transport.resolver import SystemResolver
from serviceradar_poller.wire import codec
from serviceradar_poller.wire.messages import ResultsRequest, StatusRequest

#: Calls under way at a time.
CONCURRENCY = 64
TIMEOUT_S = 60.0
#: Connecting a thousand times, or fifty megabytes, beside whatever else the machine does.
ANSWER_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 10.0
_STATUS = "/monitoring.AgentService/GetStatus"
_RESULTS = "/monitoring.AgentService/StreamResults"
_SERVER_NAME = "agent.serviceradar"


class ClientProcess:
    """
    One client as a process; a context manager that ends it.

    Args:
        backend: As ``transport`` in a configuration.
        loop: ``asyncio`` or ``uvloop``.
        ports: Of the agents, each of which gets a connection.
    """

    def __init__(self, *, backend: str, loop: str, ports: Sequence[int], cert_dir: Path) -> None:
        settings = {"backend": backend, "loop": loop, "ports": list(ports), "cert_dir": str(cert_dir)}
        self.name = backend if loop == "asyncio" else f"{backend}, {loop}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.client", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        if kind is not None:
            self._process.kill()
        self._process.stdin.close()
        try:
            code = self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._process.stdout.close()
        if kind is None and code != 0:
            raise RuntimeError(f"the client over {self.name} ended with {code}")

    def do(self, command: str, **arguments: object) -> dict[str, float]:
        """
        Have one thing done and return its figures.

        Raises:
            RuntimeError: The process ended, or did not answer in time.
        """
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps({"do": command, **arguments}) + "\n")
        process.stdin.flush()
        # One answer to one command: nothing can wait in the file object's own buffer.
        ready, _, _ = select.select([process.stdout], [], [], ANSWER_TIMEOUT_S)
        line = process.stdout.readline() if ready else ""
        if not line:
            raise RuntimeError(f"the client over {self.name} gave no answer to {command}: {process.poll()}")
        figures: dict[str, float] = json.loads(line)
        return figures


def main() -> int:
    """Run one client until its input ends."""
    settings = json.loads(sys.argv[1])
    with asyncio.Runner(loop_factory=_loop_factory(settings["loop"])) as runner:
        client = runner.run(_open(settings))
        for line in sys.stdin:
            command = json.loads(line)
            print(json.dumps(runner.run(client.do(**command))), flush=True)
        runner.run(client.close())
    return 0


def _loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if name == "asyncio":
        return None
    assert name == "uvloop", name
    import uvloop

    return uvloop.new_event_loop


class Client:
    """Channels to all agents, and what can be done with them."""

    def __init__(self, channels: list[Channel]) -> None:
        self._channels = channels
        check = CHECKS_DEFAULT[0]
        self._request = codec.encode_status_request(
            StatusRequest(
                service_name=str(check["service_name"]),
                service_type=str(check["service_type"]),
                details=str(check["details"]),
                agent_id="agent",
                poller_id="benchmark",
            )
        )
        self._before_bytes = 0

    async def do(self, do: str, **arguments: Any) -> dict[str, float]:
        """Do what a command says."""
        match do:
            case "connect":
                return await self._connect()
            case "calls":
                return await self._calls(**arguments)
            case "lone":
                return await self._lone(**arguments)
            case "idle":
                return self._idle()
            case "stream":
                return await self._stream()
            case _:
                raise ValueError(do)

    async def close(self) -> None:
        """Close every connection."""
        for channel in self._channels:
            await channel.close()

    async def _connect(self) -> dict[str, float]:
        """Connect to all, and use every connection once."""
        # What the process needs anyway, one connection included, is not a connection's cost.
        await self._channels[0].unary(_STATUS, self._request, TIMEOUT_S)
        gc.collect()
        self._before_bytes, began_s = rss_bytes(os.getpid()), time.process_time()
        await self._spread(iter(self._channels[1:]))
        cpu_s = time.process_time() - began_s
        await self._spread(iter(self._channels))
        return {"cpu_s": cpu_s / max(len(self._channels) - 1, 1), "process_bytes": self._before_bytes}

    def _idle(self) -> dict[str, float]:
        """Say what a connection holds on to, now that nothing is under way."""
        gc.collect()
        return {"rss_bytes": (rss_bytes(os.getpid()) - self._before_bytes) / max(len(self._channels) - 1, 1)}

    async def _calls(self, count: int) -> dict[str, float]:
        """Make calls on all connections in turn, CONCURRENCY at a time."""
        channels = self._channels
        began_s, wall_s = time.process_time(), time.perf_counter()
        await self._spread(channels[index % len(channels)] for index in range(count))
        return {
            "cpu_s": (time.process_time() - began_s) / count,
            "wall_s": (time.perf_counter() - wall_s) / count,
        }

    async def _lone(self, count: int) -> dict[str, float]:
        """Make calls on one connection, one at a time."""
        began_s, wall_s = time.process_time(), time.perf_counter()
        for _ in range(count):
            await self._channels[0].unary(_STATUS, self._request, TIMEOUT_S)
        return {
            "cpu_s": (time.process_time() - began_s) / count,
            "wall_s": (time.perf_counter() - wall_s) / count,
        }

    async def _stream(self) -> dict[str, float]:
        """Read the first agent's devices to the end."""
        channel = self._channels[0]
        await channel.unary(_STATUS, self._request, TIMEOUT_S)
        request = codec.encode_results_request(
            ResultsRequest(service_name="sync", service_type="sync", agent_id="agent", poller_id="benchmark")
        )
        gc.collect()
        _reset_peak()
        before_bytes = _peak_bytes()
        began_s, wall_s = time.process_time(), time.perf_counter()
        stream = channel.receive_stream(_RESULTS, lambda: request, TIMEOUT_S)
        size = chunks = chunk_bytes_max = 0
        while (message := await stream.read()) is not None:
            size += len(message)
            chunks += 1
            chunk_bytes_max = max(chunk_bytes_max, len(message))
        return {
            "cpu_s": time.process_time() - began_s,
            "wall_s": time.perf_counter() - wall_s,
            "peak_bytes": _peak_bytes() - before_bytes,
            "size_bytes": size,
            "chunks": chunks,
            "chunk_bytes_max": chunk_bytes_max,
        }

    async def _spread(self, channels: Iterator[Channel]) -> None:
        """Make a call on each, so many at a time."""

        async def worker() -> None:
            for channel in channels:
                await channel.unary(_STATUS, self._request, TIMEOUT_S)

        async with asyncio.TaskGroup() as group:
            for _ in range(CONCURRENCY):
                group.create_task(worker())


async def _open(settings: dict[str, Any]) -> Client:
    folder = Path(settings["cert_dir"])
    block = SecurityConfig(
        mode=SecurityMode.MTLS,
        server_name=_SERVER_NAME,
        tls=TlsConfig(
            cert_file=str(folder / "poller.pem"),
            key_file=str(folder / "poller-key.pem"),
            ca_file=str(folder / "root.pem"),
        ),
    )
    transport = new_transport(TransportBackend(settings["backend"]), clock=SystemClock(), resolver=SystemResolver())
    return Client(
        [
            (await transport.agent(f"127.0.0.1:{port}", block))._channel  # type: ignore[attr-defined]
            for port in settings["ports"]
        ]
    )


def _reset_peak() -> None:
    """Let the kernel's peak of resident memory begin anew at what is resident now. [proc(5), clear_refs]"""
    Path("/proc/self/clear_refs").write_text("5", "ascii")


def _peak_bytes() -> int:
    """Return the most that was resident since the peak was reset."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel tells no peak")


if __name__ == "__main__":
    sys.exit(main())
