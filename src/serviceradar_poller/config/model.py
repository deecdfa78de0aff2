"""
What a checked configuration holds: values that the rest of the program may trust.

``XConfig`` is what an operator writes, defaults filled in and names normalised. Durations are seconds, sizes bytes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from serviceradar_poller.errors import ConfigProblem

#: Agents of one poller: with two checks each, every 10 s, they take about half of a core. A larger site needs a second
#: poller.
AGENTS_MAX = 20_000
#: New connections per second: a thousand agents are reached within two seconds, a handshake costing about 1 ms.
CONNECTS_PER_S_DEFAULT = 500.0


class SecurityMode(enum.StrEnum):
    """How a connection is secured."""

    NONE = "none"
    MTLS = "mtls"
    SPIFFE = "spiffe"


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsConfig:
    """Paths of PEM files, joined with cert_dir; empty where not given."""

    cert_file: str = ""
    key_file: str = ""
    ca_file: str = ""
    client_ca_file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityConfig:
    """The security block of core or of an agent."""

    mode: SecurityMode = SecurityMode.NONE
    cert_dir: str = ""
    server_name: str = ""
    role: str = "poller"
    tls: TlsConfig = field(default_factory=TlsConfig)
    trust_domain: str = ""
    server_spiffe_id: str = ""
    workload_socket: str = "unix:/run/spire/sockets/agent.sock"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckConfig:
    """
    One check of an agent.

    Attributes:
        port: Sent only when the type is ``port``.
        results_interval_s: Present (even 0) makes it a results check.
    """

    service_type: str
    service_name: str
    details: str = ""
    port: int = 0
    results_interval_s: float | None = None

    @property
    def is_results(self) -> bool:
        """Whether results are asked for instead of a status."""
        return self.results_interval_s is not None

    @property
    def is_streamed(self) -> bool:
        """Whether its results come as a stream."""
        return self.is_results and (self.service_type in ("sync", "sweep") or "sync" in self.service_name)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """
    One agent; ``name`` is the key of the ``agents`` map and the agent_id that is asked for.

    Attributes:
        checks: Those that can be understood, so that each gets an outcome even when ``problems`` is not empty.
        problems: What makes this agent unusable. Such an agent is down with the reason; the others are polled.
    """

    name: str
    address: str
    checks: tuple[CheckConfig, ...] = ()
    security: SecurityConfig | None = None
    problems: tuple[ConfigProblem, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OtelConfig:
    """OpenTelemetry export of logs; read and kept, not acted on yet."""

    enabled: bool = False
    endpoint: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    service_name: str = ""
    batch_timeout_s: float = 5.0
    insecure: bool = False
    tls: TlsConfig | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggingConfig:
    """Where log lines go and which."""

    level: str = "info"  # trace, debug, info, warn, error, fatal, panic, disabled
    debug: bool = False
    output: str = "stdout"
    time_format: str = ""
    otel: OtelConfig = field(default_factory=OtelConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulingConfig:
    """
    When checks run.

    Attributes:
        spread_window_s: Checks of a cycle start within this time after the tick.
        check_timeout_s: Deadline of one check, retries included; never above the poll interval.
        connects_per_s: New connections per second, all agents together.
    """

    spread_window_s: float
    check_timeout_s: float
    connects_per_s: float = CONNECTS_PER_S_DEFAULT


#: What may wait for core in memory, and on disk: three days of 100 agents with two checks every 30 s are 0.9 GB in
#: 8,640 reports. The disk's bound in reports is one a second for eleven days.
QUEUE_BYTES_IN_MEMORY = 64 * 1024 * 1024
QUEUE_BYTES_ON_DISK = 1024 * 1024 * 1024
QUEUE_REPORTS_IN_MEMORY = 10_000
QUEUE_REPORTS_ON_DISK = 1_000_000


class ReportMode(enum.StrEnum):
    """When outcomes leave for core."""

    CYCLE = "cycle"
    BATCH = "batch"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportingConfig:
    """
    How outcomes reach core.

    Attributes:
        deadline_s: After the tick, the report leaves with what there is.
        early_interval_s: At most one early snapshot in this time.
        queue_bytes_max, queue_reports_max: Bound of what waits for core; the oldest repeat is dropped and counted. The
            defaults are those of memory; with a state directory there is more room, see QUEUE_BYTES_ON_DISK.
    """

    mode: ReportMode = ReportMode.CYCLE
    deadline_s: float = 5.0
    early_interval_s: float = 5.0
    batch_size: int = 100
    batch_interval_s: float = 5.0
    call_timeout_s: float = 30.0
    queue_bytes_max: int = QUEUE_BYTES_IN_MEMORY
    queue_reports_max: int = QUEUE_REPORTS_IN_MEMORY


@dataclass(frozen=True, slots=True, kw_only=True)
class ResilienceConfig:
    """
    How failures of peers are met.

    Attributes:
        breaker_*: Failures within the window that open the breaker; security failures count apart.
        retry_*: Attempts of one check in all, the first delay, and retries as a share of calls.
        reconnect_*: Bounds of the delay between attempts to reach an agent that is down.
        quarantine_*: Bounds of the delay before a coordinator that gave up is built again.
    """

    breaker_failures: int = 10
    breaker_security_failures: int = 3
    breaker_window_s: float = 60.0
    breaker_open_s: float = 30.0
    retry_attempts: int = 3
    retry_delay_s: float = 0.2
    retry_budget_ratio: float = 0.1
    reconnect_min_s: float = 0.5
    reconnect_max_s: float = 30.0
    quarantine_min_s: float = 1.0
    quarantine_max_s: float = 300.0
    shutdown_timeout_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpConfig:
    """
    Where /metrics, /healthz, /readyz, /health and /tree are served; an empty address: nowhere.

    Attributes:
        control: An operator may restart a child of the tree by a POST.
    """

    listen_addr: str = "127.0.0.1:9610"
    control: bool = False


#: Where reports survive a restart when nothing else is said.
STATE_DIR_DEFAULT = "/var/lib/serviceradar"


class TransportBackend(enum.StrEnum):
    """What makes calls to agents and core."""

    GRPCIO = "grpcio"
    NATIVE = "native"


@dataclass(frozen=True, slots=True, kw_only=True)
class PollerConfig:
    """
    The whole configuration.

    Attributes:
        transport: What makes calls to agents and core.
        state_dir: An existing directory where reports wait for core; empty: in memory only.
    """

    agents: tuple[AgentConfig, ...]
    core_address: str
    poller_id: str
    poll_interval_s: float
    scheduling: SchedulingConfig
    partition: str = "default"
    source_ip: str = "auto"
    listen_addr: str = ""
    service_name: str = ""
    security: SecurityConfig | None = None
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    kv_address: str = ""
    kv_domain: str = ""
    workers: int = 0
    transport: TransportBackend = TransportBackend.NATIVE
    state_dir: str = STATE_DIR_DEFAULT
    reporting: ReportingConfig = field(default_factory=ReportingConfig)
    resilience: ResilienceConfig = field(default_factory=ResilienceConfig)
    http: HttpConfig = field(default_factory=HttpConfig)

    @property
    def kv_store_id(self) -> str:
        """What a status names as its key-value store."""
        return self.kv_domain or self.kv_address
