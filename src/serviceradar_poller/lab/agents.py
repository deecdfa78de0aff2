"""Run a fleet of simulated agents on one loop: each with its port, its identity, its faults and its counters."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from serviceradar_poller.errors import GrpcCode, PollerError
from serviceradar_poller.lab.answers import (
    Profile,
    RefusalError,
    answer_results,
    answer_status,
    distort,
    distorted_message,
    stream_results,
)
from serviceradar_poller.lab.datasets import Dataset
from serviceradar_poller.lab.errors import LabError
from serviceradar_poller.lab.faults import SOCKET_FAULTS, STREAM_FAULTS, Fault, FaultKind, expand_target
from serviceradar_poller.lab.http2 import Call, StreamItem
from serviceradar_poller.lab.server import AgentServer
from serviceradar_poller.lab.streams import distort_stream
from serviceradar_poller.lab.tls import server_context
from serviceradar_poller.wire.pb import monitoring_pb2 as pb

#: As many as there are ports to bind, with room for their connections.
AGENTS_MAX = 20_000
#: Calls of one agent that a fault may hold back at a time; more are answered RESOURCE_EXHAUSTED and counted.
HELD_CALLS_MAX = 1_000
#: Checks of one agent whose overlaps are counted.
CHECKS_COUNTED_MAX = 1_000

_SERVING = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING).SerializeToString()


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSettings:
    """
    What agents to simulate.

    Attributes:
        base_port: Port of the first agent, the others follow; 0: free ones.
        cert_dir: Directory with root.pem, agent.pem and agent-key.pem; None: plaintext.
        name_pattern: Holds one format field for the agent's number, from 1.
        sync: Targets (see faults.expand_target) that are sync services instead of agents.
        devices: Of every sync service, and of a ``grpc`` check whose name holds ``sync``; None: agents have none.
        sweep_hosts: What a sweep found; None: no sweep service is configured.
        results_period_s: Result sets change this often; 0: only by command.
    """

    count: int
    base_port: int = 0
    cert_dir: str | None = None
    name_pattern: str = "agent-{:04d}"
    sync: Sequence[str] = ()
    devices: int | None = None
    sweep_hosts: int | None = None
    results_period_s: float = 0.0
    faults: Sequence[tuple[str, Fault]] = ()


class SimulatedAgent:
    """
    One agent.

    Attributes:
        calls: By method: health, status, results, stream; chunks: of all streams, as far as clients took them.
        overlaps: By check, ``type:name``, how many calls of it were held back at the same time at most; only calls that
            a fault holds can overlap, all others are answered at once.
        last_call_s: Unix seconds of the last call; 0: none yet.
    """

    __slots__ = ("_held", "_loop", "calls", "fault", "last_call_s", "overlaps", "profile", "server")

    def __init__(self, profile: Profile, *, port: int, tls: ssl.SSLContext | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._held: list[tuple[Call, str]] = []
        self.profile = profile
        self.calls: Counter[str] = Counter()
        self.overlaps: dict[str, int] = {}
        self.fault: Fault | None = None
        self.last_call_s = 0.0
        self.server = AgentServer(port=port, tls=tls, on_call=self._on_call)

    @property
    def id(self) -> str:
        """The agent's configured id."""
        return self.profile.agent_id

    def set_fault(self, fault: Fault | None) -> None:
        """Replace the fault in force; None: none. Calls that hang stay unanswered, as in a process that lost them."""
        self.fault = fault
        self.server.set_fault(fault if fault is not None and fault.kind in SOCKET_FAULTS else None)

    def as_json(self) -> dict[str, object]:
        """Return what the control endpoint tells of the agent."""
        self._held = [held for held in self._held if not held[0].done]
        return {
            "id": self.id,
            "port": self.server.port,
            "role": "sync" if self.profile.sync else "agent",
            "fault": self.fault.as_json() if self.fault is not None else None,
            "listening": self.server.listening,
            "connections": len(self.server.connections),
            "counts": dict(self.server.counts),
            "calls": dict(self.calls),
            "held": len(self._held),
            "overlaps": dict(self.overlaps),
            "last_call_s": self.last_call_s,
            "last_error": self.server.last_error,
        }

    def _on_call(self, call: Call) -> None:
        entry = _METHODS.get(call.path)
        if entry is None:
            call.fail(GrpcCode.UNIMPLEMENTED, f"unknown method {call.path}")
            return
        method, group, answer = entry
        now = time.time()
        self.calls[method] += 1
        self.last_call_s = now
        fault = self.fault
        if fault is None:
            self._answer(answer, call, now)
        elif fault.hangs(group):
            self._hold(call)
        elif fault.delays(group):
            if self._hold(call):
                self._loop.call_later(fault.seconds, self._answer, answer, call, now)
        elif fault.fails(group):
            call.fail(fault.code, fault.message)
        else:
            self._answer(answer, call, now)

    def _hold(self, call: Call) -> bool:
        self._held = [held for held in self._held if not held[0].done]
        if len(self._held) >= HELD_CALLS_MAX:
            self.calls["over_limit"] += 1
            call.fail(GrpcCode.RESOURCE_EXHAUSTED, f"{HELD_CALLS_MAX} calls are held already")
            return False
        check = _check_of(call)
        self._held.append((call, check))
        if check in self.overlaps or len(self.overlaps) < CHECKS_COUNTED_MAX:
            now_held = sum(name == check for _, name in self._held)
            self.overlaps[check] = max(self.overlaps.get(check, 0), now_held)
        return True

    def _answer(self, answer: Callable[[SimulatedAgent, Call, float], None], call: Call, now: float) -> None:
        if call.done:
            return
        try:
            answer(self, call, now)
        except RefusalError as refusal:
            call.fail(refusal.code, refusal.detail)
        except DecodeError as error:
            call.fail(GrpcCode.INTERNAL, f"the request can't be read: {error}")

    def _health(self, call: Call, now: float) -> None:
        name = health_pb2.HealthCheckRequest.FromString(call.message).service if call.message else ""
        if name not in self.profile.health_names:
            raise RefusalError(GrpcCode.NOT_FOUND, "unknown service")
        call.reply(_SERVING)

    def _status(self, call: Call, now: float) -> None:
        response = answer_status(self.profile, pb.StatusRequest.FromString(call.message), now)
        if self.fault is not None:
            response = distort(response, self.fault)
        call.reply(response.SerializeToString())

    def _results(self, call: Call, now: float) -> None:
        response = answer_results(self.profile, pb.ResultsRequest.FromString(call.message), now)
        fault = self.fault
        if fault is not None:
            message = distorted_message(fault)
            if fault.kind is FaultKind.EMPTY:
                response = pb.ResultsResponse()
            elif fault.kind is FaultKind.WRONG_AGENT_ID:
                response.agent_id = fault.agent_id
            elif fault.kind is FaultKind.UNAVAILABLE:
                response.available = False
            elif message is not None:
                response.data = message
        call.reply(response.SerializeToString())

    def _stream(self, call: Call, now: float) -> None:
        fault = self.fault
        message = distorted_message(fault) if fault is not None else None
        chunks: Iterator[pb.ResultsChunk]
        if message is not None:
            chunks = iter((pb.ResultsChunk(data=message, is_final=True, total_chunks=1, timestamp=int(now)),))
        elif fault is not None and fault.kind is FaultKind.EMPTY:
            chunks = iter(())  # ends without a final chunk
        else:
            request = pb.ResultsRequest.FromString(call.message)
            chunks = stream_results(self.profile, request, now)
            if fault is not None and fault.kind in STREAM_FAULTS:
                self._send(call, distort_stream(chunks, request, fault, agent_id=self.id, now=now))
                return
        self._send(call, (chunk.SerializeToString() for chunk in chunks))

    def _send(self, call: Call, items: Iterator[StreamItem]) -> None:
        call.stream(self._counted(items))

    def _counted(self, items: Iterator[StreamItem]) -> Iterator[StreamItem]:
        for item in items:
            if isinstance(item, bytes):
                self.calls["chunks"] += 1
            yield item


_METHODS: dict[str, tuple[str, str, Callable[[SimulatedAgent, Call, float], None]]] = {
    "/grpc.health.v1.Health/Check": ("health", "health", SimulatedAgent._health),
    "/monitoring.AgentService/GetStatus": ("status", "status", SimulatedAgent._status),
    "/monitoring.AgentService/GetResults": ("results", "results", SimulatedAgent._results),
    "/monitoring.AgentService/StreamResults": ("stream", "results", SimulatedAgent._stream),
}


def _check_of(call: Call) -> str:
    """Return ``type:name`` of the check that a call asks for; the method for any other call."""
    try:
        if call.path.endswith("/GetStatus"):
            status = pb.StatusRequest.FromString(call.message)
            return f"{status.service_type}:{status.service_name}"
        if call.path.endswith("Results"):
            results = pb.ResultsRequest.FromString(call.message)
            return f"{results.service_type}:{results.service_name}"
    except DecodeError:
        pass
    return call.path


class Fleet:
    """All agents of one process, by id, in order. Made within a running loop; close() it."""

    def __init__(self, settings: FleetSettings) -> None:
        """
        Bind every agent's port and apply the faults asked for.

        Raises:
            LabError: Too many agents, a bad pattern, a port that is taken, or unusable certificates.
            FaultError: A target names no agent.
        """
        if not 1 <= settings.count <= AGENTS_MAX:
            raise LabError(f"between 1 and {AGENTS_MAX} agents, not {settings.count}")
        ids = agent_ids(settings.count, settings.name_pattern)
        try:
            tls = server_context(settings.cert_dir, "agent") if settings.cert_dir is not None else None
        except (OSError, ssl.SSLError) as error:
            raise LabError(f"the certificates in {settings.cert_dir} can't be used: {error}") from error
        syncs = {name for target in settings.sync for name in expand_target(target, ids)}
        now = int(time.time())
        period = settings.results_period_s
        self.agents: dict[str, SimulatedAgent] = {}
        try:
            for index, name in enumerate(ids):
                profile = Profile(
                    agent_id=name,
                    sync=name in syncs,
                    devices=_dataset(settings.devices, now, period),
                    sweep=_dataset(settings.sweep_hosts, now, period) if name not in syncs else None,
                )
                port = settings.base_port + index if settings.base_port else 0
                self.agents[name] = SimulatedAgent(profile, port=port, tls=tls)
            for target, fault in settings.faults:
                self.set_fault(target, fault)
        except (OSError, OverflowError) as error:
            self.close()
            raise LabError(f"agent {len(self.agents) + 1} can't listen: {error}") from error
        except ValueError as error:
            self.close()
            raise LabError(str(error)) from error
        except PollerError:
            self.close()
            raise

    @property
    def ports(self) -> dict[str, int]:
        """Every agent's port."""
        return {name: agent.server.port for name, agent in self.agents.items()}

    def select(self, target: str) -> list[SimulatedAgent]:
        """
        Return the agents that *target* names.

        Raises:
            FaultError: It names none.
        """
        return [self.agents[name] for name in expand_target(target, self.agents)]

    def set_fault(self, target: str, fault: Fault | None) -> int:
        """Set or clear the fault of every agent that *target* names; return how many that are."""
        chosen = self.select(target)
        for agent in chosen:
            agent.set_fault(fault)
        return len(chosen)

    def touch_results(self, target: str, *, devices: int | None = None, hosts: int | None = None) -> dict[str, object]:
        """Change the result sets of *target*, or make them, in the given size; return the new sequences by agent."""
        now = time.time()
        changed: dict[str, object] = {}
        for agent in self.select(target):
            profile = agent.profile
            if profile.devices is None and devices is not None:
                profile.devices = Dataset(count=devices, sequence=int(now))
            elif profile.devices is not None:
                profile.devices.touch(now, count=devices)
            if profile.sweep is None and hosts is not None:
                profile.sweep = Dataset(count=hosts, sequence=int(now))
            elif profile.sweep is not None:
                profile.sweep.touch(now, count=hosts)
            changed[agent.id] = {
                "devices": profile.devices and str(profile.devices.sequence),
                "sweep": profile.sweep and str(profile.sweep.sequence),
            }
        return changed

    def close(self) -> None:
        """Close every port and connection."""
        for agent in self.agents.values():
            agent.server.close()


def agent_ids(count: int, pattern: str) -> list[str]:
    """
    Return the ids of *count* agents, numbered from 1.

    Raises:
        LabError: The pattern gives one id twice, or is no format string.
    """
    try:
        ids = [pattern.format(number) for number in range(1, count + 1)]
    except (IndexError, KeyError, ValueError) as error:
        raise LabError(f"{pattern!r} is not a pattern like agent-{{:04d}}: {error}") from error
    if len(set(ids)) != count:
        raise LabError(f"{pattern!r} gives the same id to several agents")
    return ids


def _dataset(count: int | None, now: int, period_s: float) -> Dataset | None:
    return Dataset(count=count, sequence=now, period_s=period_s) if count is not None else None
