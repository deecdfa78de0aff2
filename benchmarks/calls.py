"""
What a call, an idle connection and a large streamed result cost in the client alone, over each backend.

The same agents over mutual TLS, each backend in a process of its own (see client.py). The backends take turns: each
round has all of them, so that a machine that is slow for a while is slow for all, and ratios are of one round.

    python -m benchmarks calls

Sketch before measuring, µs of CPU: a call is a record each way (send 8, receive 3, TLS 4), two rounds of the event
loop (6), and HTTP/2 with the caller's task (10): 30 with 64 under way, against 110 of gRPC's library. A connection is
OpenSSL's session, 30 KiB, and 4 KiB of objects. A megabyte of a stream is 64 records and frames: decrypted 400,
copied five times 300, received 200, called for 300: 1.2 ms.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.client import CONCURRENCY, ClientProcess
from benchmarks.report import MIB, Promise, Result, Table, number
from serviceradar_poller.lab.client import LabAgents
from serviceradar_poller.lab.pki import make_pki
from serviceradar_poller.transport.http2.limits import Limits
from serviceradar_poller.transport.native.connection import READ_BUFFER_BYTES

#: Backend and event loop; the first is what the others are compared with.
CLIENTS = (("grpcio", "asyncio"), ("native", "asyncio"), ("native", "uvloop"))
NATIVE = "native"
AGENTS = 1_000
ROUNDS = 7
#: A round's, spread over all connections, and one at a time over one.
CALLS = 4_000
LONE_CALLS = 400
#: Before the first round: what is loaded or grows only once.
WARM_UP_CALLS = 1_000
SYNC_AGENT = "agent-0001"
#: 50 MB, as a sync service sends them: 1,365 to a chunk.
DEVICES = 134_000
DEVICES_WARM_UP = 10
STREAM_ROUNDS = 5

CPU_RATIO_MAX = 0.55
CONNECTION_KIB_MAX = 45.0
#: Chunks that exist at a time: the one that the reader holds, the pieces of the next, and those put together.
CHUNKS_HELD = 3
#: As much as one read takes: the bytes as they came, decrypted, and joined.
READS_HELD = 3
#: malloc keeps of what is freed as much again before it gives it back. [mallopt(3), M_TRIM_THRESHOLD]
ALLOCATOR_FACTOR = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """
    Calls and connections over one backend; a value for each round.

    Attributes:
        rss_bytes: Of a connection that was used and rests.
        connect_s: CPU of making one.
        process_bytes: What the process needs before.
    """

    name: str
    cpu_s: tuple[float, ...]
    wall_s: tuple[float, ...]
    lone_cpu_s: tuple[float, ...]
    lone_wall_s: tuple[float, ...]
    rss_bytes: float
    connect_s: float
    process_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """
    One large result, read to its end by a new process.

    Attributes:
        peak_bytes: Resident beyond what was before it.
        agent_cpu_s: What it cost the agent to make and send.
    """

    name: str
    size_bytes: float
    chunks: float
    chunk_bytes_max: float
    wall_s: float
    cpu_s: float
    peak_bytes: float
    agent_cpu_s: float


def main(*, quick: bool = False) -> Result:
    """Measure; quick: 20 agents, two short rounds, 3,000 devices."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        make_pki(folder)
        agents = 20 if quick else AGENTS
        calls = measure_calls(folder, agents, rounds=2 if quick else ROUNDS, count=200 if quick else CALLS)
        streams = measure_streams(folder, 3_000 if quick else DEVICES, rounds=1 if quick else STREAM_ROUNDS)
    return Result(
        suite="calls",
        tables=(_calls_table(calls, agents), _streams_table(streams)),
        promises=() if quick else (*_calls_promises(calls, agents), _stream_promise(streams)),
        raw={
            "agents": agents,
            "concurrency": CONCURRENCY,
            "clients": [asdict(each) for each in calls],
            "streams": [asdict(each) for each in streams],
        },
    )


def measure_calls(cert_dir: Path, agents: int, *, rounds: int, count: int) -> list[Calls]:
    """Connect all clients to all agents, let them make *count* calls a round in turn, and look at what they hold."""
    with contextlib.ExitStack() as stack:
        fleet = stack.enter_context(LabAgents.start(agents, cert_dir=cert_dir))
        clients = [
            stack.enter_context(ClientProcess(backend=backend, loop=loop, ports=fleet.ports, cert_dir=cert_dir))
            for backend, loop in CLIENTS
        ]
        connected = [client.do("connect") for client in clients]
        for client in clients:
            client.do("calls", count=min(count, WARM_UP_CALLS))
        many = [[client.do("calls", count=count) for client in clients] for _ in range(rounds)]
        lone = [[client.do("lone", count=min(count, LONE_CALLS)) for client in clients] for _ in range(rounds)]
        idle = [client.do("idle") for client in clients]
    return [
        Calls(
            name=client.name,
            cpu_s=tuple(each[index]["cpu_s"] for each in many),
            wall_s=tuple(each[index]["wall_s"] for each in many),
            lone_cpu_s=tuple(each[index]["cpu_s"] for each in lone),
            lone_wall_s=tuple(each[index]["wall_s"] for each in lone),
            rss_bytes=idle[index]["rss_bytes"],
            connect_s=connected[index]["cpu_s"],
            process_bytes=connected[index]["process_bytes"],
        )
        for index, client in enumerate(clients)
    ]


def measure_streams(cert_dir: Path, devices: int, *, rounds: int) -> list[Stream]:
    """Have a new process of each client read *devices*, round by round."""
    found = []
    with LabAgents.start(1, cert_dir=cert_dir, sync=[SYNC_AGENT], devices=devices) as fleet:
        for _ in range(rounds):
            for backend, loop in CLIENTS:
                with ClientProcess(backend=backend, loop=loop, ports=fleet.ports, cert_dir=cert_dir) as client:
                    # The code of a stream is resident after a small one, which leaves no memory of large chunks.
                    fleet.change_results(SYNC_AGENT, devices=DEVICES_WARM_UP)
                    client.do("stream")
                    fleet.change_results(SYNC_AGENT, devices=devices)
                    before_s = fleet.stats()["cpu_s"]
                    figures = client.do("stream")
                    agent_cpu_s = fleet.stats()["cpu_s"] - before_s
                found.append(Stream(name=client.name, agent_cpu_s=agent_cpu_s, **figures))
    return found


def ratio(calls: Calls, reference: Calls) -> float:
    """Return the CPU of a call against the reference's, the median over the rounds."""
    return statistics.median(own / other for own, other in zip(calls.cpu_s, reference.cpu_s, strict=True))


def peak_bytes_max(chunk_bytes: float, limits: Limits) -> float:
    """
    Return how much memory reading a stream may take at most.

    The peer may send one window ahead of what was asked for; beside that stand the chunks that are being handed on,
    a frame that has not come whole, and what one read took.
    """
    held = limits.stream_window_bytes + CHUNKS_HELD * chunk_bytes
    held += limits.frame_bytes_max + READS_HELD * READ_BUFFER_BYTES
    return ALLOCATOR_FACTOR * held


def _calls_table(calls: Sequence[Calls], agents: int) -> Table:
    return Table(
        title=f"Calls over {agents:,} connections with mutual TLS, {CONCURRENCY} under way, medians",
        columns=(
            "client",
            "CPU µs a call",
            "of the first's",
            "µs a call",
            "a lone call: CPU µs",
            "µs",
            "KiB a connection",
            "CPU µs to connect",
            "process MiB",
        ),
        rows=tuple(
            (
                each.name,
                number(1e6 * statistics.median(each.cpu_s)),
                number(ratio(each, calls[0])),
                number(1e6 * statistics.median(each.wall_s)),
                number(1e6 * statistics.median(each.lone_cpu_s)),
                number(1e6 * statistics.median(each.lone_wall_s)),
                number(each.rss_bytes / 1024),
                number(1e6 * each.connect_s),
                number(each.process_bytes / MIB),
            )
            for each in calls
        ),
        notes="µs a call is the wall's share of one call; agents that answer on the same cores are in it.",
    )


def _streams_table(streams: Sequence[Stream]) -> Table:
    size = statistics.median(each.size_bytes for each in streams)
    by_name: dict[str, list[Stream]] = {}
    for each in streams:
        by_name.setdefault(each.name, []).append(each)
    return Table(
        title=f"A streamed result of {number(size / 1e6)} MB, medians",
        columns=(
            "client",
            "MB/s",
            "CPU ms a MB",
            "agent's CPU ms a MB",
            "chunks",
            "peak MiB above base",
            "largest peak",
        ),
        rows=tuple(
            (
                name,
                number(_median(each.size_bytes / 1e6 / each.wall_s for each in found)),
                number(_median(1e9 * each.cpu_s / each.size_bytes for each in found)),
                number(_median(1e9 * each.agent_cpu_s / each.size_bytes for each in found)),
                number(found[0].chunks),
                number(_median(each.peak_bytes for each in found) / MIB),
                number(max(each.peak_bytes for each in found) / MIB),
            )
            for name, found in by_name.items()
        ),
        notes="Nothing is decoded. The agent makes its result as it sends it.",
    )


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


def _calls_promises(calls: Sequence[Calls], agents: int) -> tuple[Promise, ...]:
    native = [each for each in calls if each.name.startswith(NATIVE)]
    return (
        Promise(
            text=f"CPU of a call over native against gRPC's library, {agents:,} connections, either loop",
            limit=CPU_RATIO_MAX,
            measured=max(ratio(each, calls[0]) for each in native),
            unit="of its",
        ),
        Promise(
            text="memory of an idle connection over native, either loop",
            limit=CONNECTION_KIB_MAX,
            measured=max(each.rss_bytes for each in native) / 1024,
            unit="KiB",
        ),
    )


def _stream_promise(streams: Sequence[Stream]) -> Promise:
    native = [each for each in streams if each.name.startswith(NATIVE)]
    chunk_bytes = max(each.chunk_bytes_max for each in native)
    return Promise(
        text=f"peak memory of a stream of any size over native, chunks of {number(chunk_bytes / 1024)} KiB",
        limit=peak_bytes_max(chunk_bytes, Limits()) / MIB,
        measured=max(each.peak_bytes for each in native) / MIB,
        unit="MiB",
    )
