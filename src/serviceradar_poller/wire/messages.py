"""The messages of the contract as frozen values; proto/monitoring.proto gives fields, units and numbers."""

from __future__ import annotations

from dataclasses import dataclass

from serviceradar_poller.values import quick

#: What a status' ``source`` says about how it was asked for.
SOURCE_STATUS = "getStatus"
SOURCE_RESULTS = "results"


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class StatusRequest:
    """Ask an agent for the state of one check."""

    service_name: str = ""
    service_type: str = ""
    agent_id: str = ""
    poller_id: str = ""
    details: str = ""
    port: int = 0


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class StatusResponse:
    """An agent's answer; ``response_time`` in nanoseconds, ``message`` usually JSON."""

    available: bool = False
    message: bytes = b""
    service_name: str = ""
    service_type: str = ""
    response_time: int = 0
    agent_id: str = ""
    poller_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultsRequest:
    """Ask an agent for a result set newer than ``last_sequence``."""

    service_name: str = ""
    service_type: str = ""
    agent_id: str = ""
    poller_id: str = ""
    details: str = ""
    last_sequence: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultsResponse:
    """A result set in one message; ``timestamp`` in unix seconds."""

    available: bool = False
    data: bytes = b""
    service_name: str = ""
    service_type: str = ""
    response_time: int = 0
    agent_id: str = ""
    poller_id: str = ""
    timestamp: int = 0
    current_sequence: str = ""
    has_new_data: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultsChunk:
    """One part of a streamed result set."""

    data: bytes = b""
    is_final: bool = False
    chunk_index: int = 0
    total_chunks: int = 0
    current_sequence: str = ""
    timestamp: int = 0


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatus:
    """The outcome of one check, as core is told; ``response_time`` in nanoseconds."""

    service_name: str = ""
    available: bool = False
    message: bytes = b""
    service_type: str = ""
    response_time: int = 0
    agent_id: str = ""
    poller_id: str = ""
    partition: str = ""
    source: str = ""
    kv_store_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PollerStatusRequest:
    """A report in one call; ``timestamp`` in unix seconds."""

    services: tuple[ServiceStatus, ...] = ()
    poller_id: str = ""
    agent_id: str = ""
    timestamp: int = 0
    partition: str = ""
    source_ip: str = ""
    kv_store_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PollerStatusResponse:
    """Core's answer to a report."""

    received: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PollerStatusChunk:
    """One part of a streamed report; ``chunk_index`` counts from 0."""

    services: tuple[ServiceStatus, ...] = ()
    poller_id: str = ""
    agent_id: str = ""
    timestamp: int = 0
    partition: str = ""
    source_ip: str = ""
    is_final: bool = False
    chunk_index: int = 0
    total_chunks: int = 0
    kv_store_id: str = ""
