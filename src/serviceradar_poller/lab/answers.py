"""
Say what a simulated agent answers to each call, as the Go agents and checkers do. Pure: no clock, no socket.

Agents answer under their own id, whatever id was asked for; an answer is available even when its check failed;
an unknown type or missing details give an empty response.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from zlib import crc32

import msgspec

from serviceradar_poller.errors import GrpcCode
from serviceradar_poller.lab.datasets import Chunk, Dataset, device_chunks, sweep_chunks, sweep_summary
from serviceradar_poller.lab.faults import Fault, FaultKind
from serviceradar_poller.wire.pb import monitoring_pb2 as pb

NETWORK = "10.0.0.0/8"


class RefusalError(Exception):
    """The agent answers with a gRPC error."""

    def __init__(self, code: GrpcCode, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


@dataclass(slots=True, kw_only=True)
class Profile:
    """
    What one agent is.

    Attributes:
        sync: It is a sync service: health name ``sync``, result type ``sync``; else an agent.
        devices: What its sync holds; None: it has none.
        sweep: What its sweep found; None: no sweep service is configured.
    """

    agent_id: str
    sync: bool = False
    devices: Dataset | None = None
    sweep: Dataset | None = None

    @property
    def health_names(self) -> tuple[str, str]:
        """The names for which health says SERVING."""
        return ("", "sync" if self.sync else "AgentService")


def answer_status(profile: Profile, request: pb.StatusRequest, now: float) -> pb.StatusResponse:
    """Answer GetStatus at *now* (unix seconds)."""
    build = _STATUS.get(request.service_type)
    answer = build(profile, request, now) if build is not None else None
    if answer is None:
        return pb.StatusResponse()
    message, response_time_ns = answer
    return pb.StatusResponse(
        available=True,
        message=msgspec.json.encode(message),
        service_name=request.service_name,
        service_type=request.service_type,
        response_time=response_time_ns,
        agent_id=profile.agent_id,
        poller_id=request.poller_id,
    )


def distort(response: pb.StatusResponse, fault: Fault) -> pb.StatusResponse:
    """Return the answer that *fault* makes of a good one."""
    match fault.kind:
        case FaultKind.EMPTY:
            return pb.StatusResponse()
        case FaultKind.WRONG_AGENT_ID:
            response.agent_id = fault.agent_id
        case FaultKind.UNAVAILABLE:
            response.available = False
        case _:
            message = distorted_message(fault)
            if message is not None:
                response.message = message
    return response


def distorted_message(fault: Fault) -> bytes | None:
    """Return what *fault* puts in the place of a message or result; None: it leaves it."""
    match fault.kind:
        case FaultKind.NON_JSON:
            return fault.message.encode()
        case FaultKind.NULL:
            return b"null"
        case FaultKind.HUGE:
            return b'{"blob":"' + b"x" * max(0, fault.size_bytes - 11) + b'"}'
        case FaultKind.CHECK_FAILED:
            return msgspec.json.encode({"error": fault.message})
        case _:
            return None


def answer_results(profile: Profile, request: pb.ResultsRequest, now: float) -> pb.ResultsResponse:
    """
    Answer GetResults: a sweep or sync in one message, or the checker's own JSON for ``grpc``.

    Raises:
        RefusalError: UNIMPLEMENTED for other types, NOT_FOUND without a sweep service.
    """
    dataset, chunks = _result_set(profile, request, now)
    response = pb.ResultsResponse(
        available=True,
        service_name=request.service_name,
        service_type=request.service_type,
        response_time=_response_time_ns(profile, request.service_name, now),
        agent_id=profile.agent_id,
        poller_id=request.poller_id,
        timestamp=int(now),
    )
    if dataset is None:
        response.data = msgspec.json.encode(_checker(profile, request.service_name, request.details, now))
        response.current_sequence = str(int(now))
        response.has_new_data = True
        return response
    response.current_sequence = dataset.sequence_at(now)
    response.has_new_data = response.current_sequence != request.last_sequence
    if response.has_new_data:
        response.data = _join([chunk.data for chunk in chunks()])
    return response


def stream_results(profile: Profile, request: pb.ResultsRequest, now: float) -> Iterator[pb.ResultsChunk]:
    """
    Answer StreamResults, chunk by chunk; an unchanged set is one final ``{}``.

    Raises:
        RefusalError: At once, not at the first chunk; as for answer_results.
    """
    dataset, chunks = _result_set(profile, request, now)
    if dataset is None:
        data = msgspec.json.encode(_checker(profile, request.service_name, request.details, now))
        return iter((_chunk(Chunk(data=data, index=0, total=1), str(int(now)), now),))
    sequence = dataset.sequence_at(now)
    if sequence == request.last_sequence:
        return iter((_chunk(Chunk(data=b"{}", index=0, total=1), sequence, now),))
    return (_chunk(chunk, sequence, now) for chunk in chunks())


def _result_set(
    profile: Profile, request: pb.ResultsRequest, now: float
) -> tuple[Dataset | None, Callable[[], Iterator[Chunk]]]:
    kind = request.service_type
    served = ("sync",) if profile.sync else ("sweep", "grpc")
    if kind not in served:
        raise RefusalError(GrpcCode.UNIMPLEMENTED, f"results of service type {kind!r} are not supported")
    if kind == "sweep":
        sweep = profile.sweep
        if sweep is None:
            raise RefusalError(GrpcCode.NOT_FOUND, "No sweep service configured")
        sequence = sweep.sequence_at(now)
        return sweep, lambda: sweep_chunks(sweep.count, network=NETWORK, last_sweep=sweep.sequence, sequence=sequence)
    if kind == "sync" or "sync" in request.service_name:
        devices = profile.devices
        if devices is None:
            devices = Dataset(count=0, sequence=int(now))
        return devices, lambda: device_chunks(
            devices.count, agent_id=profile.agent_id, poller_id=request.poller_id, timestamp=str(devices.sequence)
        )
    return None, lambda: iter(())


def _chunk(chunk: Chunk, sequence: str, now: float) -> pb.ResultsChunk:
    return pb.ResultsChunk(
        data=chunk.data,
        is_final=chunk.is_final,
        chunk_index=chunk.index,
        total_chunks=chunk.total,
        current_sequence=sequence,
        timestamp=int(now),
    )


def _join(parts: list[bytes]) -> bytes:
    """Put the chunks of one result set back into one document."""
    if len(parts) == 1:
        return parts[0]
    documents = [msgspec.json.decode(part) for part in parts]
    if isinstance(documents[0], list):
        return msgspec.json.encode([item for document in documents for item in document])
    documents[0]["hosts"] = [host for document in documents for host in document["hosts"]]
    return msgspec.json.encode(documents[0])


_Answer = tuple[object, int] | None


def _response_time_ns(profile: Profile, name: str, now: float) -> int:
    """A plausible time: stable per check, moving a little."""
    return 400_000 + crc32(f"{profile.agent_id}/{name}".encode()) % 3_000_000 + int(now * 1000) % 97_000


def _icmp(profile: Profile, request: pb.StatusRequest, now: float) -> _Answer:
    host = request.details
    if not host:
        return None
    time_ns = _response_time_ns(profile, request.service_name, now)
    return {"host": host, "response_time": time_ns, "packet_loss": 0, "available": True}, time_ns


def _port(profile: Profile, request: pb.StatusRequest, now: float) -> _Answer:
    host, colon, port = request.details.rpartition(":")
    if not colon or not port.isdecimal():
        return None
    time_ns = _response_time_ns(profile, request.service_name, now)
    return {"host": host, "port": int(port), "response_time": time_ns}, time_ns


def _process(profile: Profile, request: pb.StatusRequest, now: float) -> _Answer:
    name = request.details or request.service_name
    if not name:
        return None
    body = {
        "status": "running",
        "process_name": name,
        "active": True,
        "agent_id": profile.agent_id,
        "poller_id": request.poller_id,
    }
    return body, _response_time_ns(profile, request.service_name, now)


def _snmp(profile: Profile, request: pb.StatusRequest, now: float) -> _Answer:
    if ":" not in request.details:
        return None
    host = request.details.rpartition(":")[0]
    oid = {"last_value": int(now) % 2**32, "last_update": int(now), "error_count": 0}
    body = {
        f"router-{index}": {
            "available": True,
            "last_poll": int(now),
            "oid_status": {"ifInOctets_1": oid, "sysUpTime": oid},
            "host_ip": host,
            "host_name": f"router-{index}",
        }
        for index in (1, 2)
    }
    return body, _response_time_ns(profile, request.service_name, now)


def _sweep(profile: Profile, request: pb.StatusRequest, now: float) -> _Answer:
    sweep = profile.sweep
    if sweep is None:
        return {"error": "No sweep service configured"}, 0
    body = sweep_summary(sweep.count, network=NETWORK, last_sweep=sweep.sequence, sequence=sweep.sequence_at(now))
    return body, _response_time_ns(profile, request.service_name, now)


def _grpc(profile: Profile, request: pb.StatusRequest, now: float) -> _Answer:
    if ":" not in request.details:
        return None
    body = _checker(profile, request.service_name, request.details, now)
    return body, _response_time_ns(profile, request.service_name, now)


def _checker(profile: Profile, name: str, details: str, now: float) -> dict[str, object]:
    """What a checker behind the agent says of itself."""
    time_ns = _response_time_ns(profile, name, now)
    load = time_ns % 100
    if "sysmon" in name:
        host = details.rpartition(":")[0] or "127.0.0.1"
        return {
            "available": True,
            "response_time": time_ns,
            "status": {
                "timestamp": int(now),
                "host_id": profile.agent_id,
                "host_ip": host,
                "cpus": [{"core_id": core, "usage_percent": (load + core * 7) % 100 + 0.5} for core in range(4)],
                "disks": [{"mount_point": "/", "used_bytes": 21_474_836_480, "total_bytes": 107_374_182_400}],
                "memory": {"used_bytes": 4_294_967_296, "total_bytes": 17_179_869_184},
            },
        }
    if "rperf" in name:
        return {"results": [{"target": details, "success": True, "summary": {"bits_per_second": 9.4e8 + load}}]}
    if "mapper" in name:
        return {"status": "idle", "devices_discovered": load, "jobs_completed": int(now) // 600}
    return {"status": "ok", "service": name, "version": "1.0.0", "load": load}


def _sync(profile: Profile, request: pb.StatusRequest, now: float) -> _Answer:
    count = profile.devices.count if profile.devices is not None else 0
    return {"status": "ok", "devices": count}, _response_time_ns(profile, request.service_name, now)


def _mapper_discovery(profile: Profile, request: pb.StatusRequest, now: float) -> _Answer:
    if not request.details:
        return None
    device = {"device_id": "default:10.0.0.1", "ip": "10.0.0.1", "hostname": "router-1"}
    interface = {"device_ip": "10.0.0.1", "if_index": 1, "if_name": "ge-0/0/0", "if_oper_status": 1}
    link = {"local_device_ip": "10.0.0.1", "local_if_index": 1, "neighbor_system_name": "router-2"}
    body = {
        "devices": [device],
        "interfaces": [interface],
        "topology": [link],
        "agent_id": profile.agent_id,
        "poller_id": request.poller_id,
    }
    return body, _response_time_ns(profile, request.service_name, now)


_STATUS: dict[str, Callable[[Profile, pb.StatusRequest, float], _Answer]] = {
    "icmp": _icmp,
    "port": _port,
    "process": _process,
    "snmp": _snmp,
    "sweep": _sweep,
    "grpc": _grpc,
    "sync": _sync,
    "mapper_discovery": _mapper_discovery,
}
