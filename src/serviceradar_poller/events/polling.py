"""What the poller tells of its own work: checks, agents, breakers, reports, configuration."""

from __future__ import annotations

from dataclasses import dataclass

from serviceradar_poller.values import quick


@dataclass(frozen=True, slots=True, kw_only=True)
class PollerStarted:
    """The tree is up; polling begins."""

    version: str
    poller_id: str
    agents: int
    checks: int
    core_address: str
    poll_interval_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PollerStopping:
    """The stop began."""

    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PollerStopped:
    """The stop is complete."""

    reports_unsent: int
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigWarning:
    """Something in the configuration is legal and probably not meant."""

    source: str
    path: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentMisconfigured:
    """An agent's own settings are unusable: it is down, the others are polled."""

    agent: str
    problem: str


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class CheckFinished:
    """
    One check has its outcome: the canonical line of a poll.

    Attributes:
        kind: ``status`` or ``results``.
        outcome: ``available``, ``unavailable`` (the agent's word) or ``failed`` (no usable answer).
        reason: For ``failed``, a stable token such as ``refused``; else empty.
        error: For ``failed``, what happened in words.
        lateness_s: Start behind schedule.
        latency_s: From start to outcome, retries included.
    """

    agent: str
    service_name: str
    service_type: str
    kind: str
    outcome: str
    reason: str = ""
    error: str = ""
    lateness_s: float
    latency_s: float
    attempts: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckMissed:
    """Intervals went by while a check was still under way or the program was late."""

    agent: str
    service_name: str
    service_type: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckUnsupported:
    """A check asks for what this version does not do; told once per check, counted at every interval."""

    agent: str
    service_name: str
    service_type: str
    why: str
    first: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentLost:
    """An agent can't be reached; told once per outage."""

    agent: str
    address: str
    layer: str
    reason: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConnected:
    """An agent is reached, at first or after an outage of ``outage_s`` seconds."""

    agent: str
    address: str
    outage_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentHealth:
    """An agent's own health answer, where it is not SERVING."""

    agent: str
    status: str
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentIdMismatch:
    """An agent answered under an id that is not the one asked for; told once per id."""

    agent: str
    claimed: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerChanged:
    """A breaker moved between CLOSED, OPEN and HALF_OPEN."""

    agent: str
    before: str
    after: str
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSent:
    """
    Core accepted a report.

    Attributes:
        kind: ``cycle``, ``early``, ``current``, ``result``, ``batch``, ``register``, ``heartbeat`` or ``final``.
        transport: ``unary`` or ``stream``.
        age_s: From the report's own time to core's acceptance.
        tick_s: From the cycle's tick to acceptance, where it belongs to one; else negative.
    """

    kind: str
    transport: str
    statuses: int
    size: int
    duration_s: float
    age_s: float
    tick_s: float = -1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFailed:
    """A report did not reach core this time; it waits and goes again unless ``dropped``."""

    kind: str
    reason: str
    error: str
    attempt: int
    retry_in_s: float
    dropped: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportDropped:
    """Reports of one kind were given up: there was no room, or core can never accept them."""

    kind: str
    statuses: int
    reason: str
    queued: int
    reports: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSetAside:
    """A report that core will never take is kept for the operator, out of the way of the others."""

    kind: str
    statuses: int
    reason: str
    report_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportQueue:
    """How much waits for core; told when it changes."""

    reports: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolRecovered:
    """
    The spool is open, with what an earlier run left in it.

    Attributes:
        statuses: Those that core has not seen.
        duration_s: Time that it took to open.
        checked: The whole file was checked; else time for it ran out.
    """

    reports: int
    statuses: int
    size: int
    positions: int
    duration_s: float
    checked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolSetAside:
    """
    The spool's file can't be used: it was moved away for the operator, and a new one began.

    Attributes:
        reason: ``corrupt``, ``unreadable``, ``newer_version`` or ``not_a_spool``; ``replaced``: it was put in the place
            of the one in use, which goes on.
        path: Where it is now.
        statuses: Lost with it, as far as this run knows.
    """

    reason: str
    error: str
    path: str
    statuses: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolWriteFailed:
    """The spool can't be written; polling goes on. Told once until it can."""

    reason: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolWritable:
    """The spool can be written again after ``outage_s`` seconds and ``errors`` failed attempts."""

    outage_s: float
    errors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolFilling:
    """
    What waits for core will soon have no room left; told once until that is over.

    Attributes:
        full_in_s: When that is, should it go on like this.
        bytes_per_s: At this rate.
        size: What waits on disk, or in memory where there is no disk, and *room_bytes* is what is left.
    """

    full_in_s: float
    bytes_per_s: float
    size: int
    room_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolNotFilling:
    """There is time enough again, or core takes more than comes in."""

    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreLost:
    """Core can't be reached or refuses; told once per outage."""

    address: str
    reason: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreConnected:
    """Core accepts reports, at first or after an outage."""

    address: str
    outage_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NameStale:
    """
    A name is not answered, and the addresses of its last answer are used.

    Attributes:
        age_s: Since that answer.
        first: It was answered before this.
    """

    host: str
    age_s: float
    error: str
    first: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFailed:
    """
    One of the poller's own listeners can't be opened, or can't take a renewed certificate; it is tried again.

    Attributes:
        serving: It is open, and goes on with the certificate that it has.
    """

    name: str
    address: str
    error: str
    serving: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerBusy:
    """
    One of the poller's own listeners refuses connections: it has all that it may have, each with its answer under way.

    Attributes:
        refused: How many, since this was told last.
    """

    name: str
    address: str
    refused: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialsRenewed:
    """A connection goes on with the certificates that are on disk now; no call was lost for it."""

    peer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialsRejected:
    """New certificates can't be used: the connection keeps the old ones."""

    peer: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorRestart:
    """An operator asked for a child of the tree to be restarted."""

    path: str


PollingEvent = (
    PollerStarted
    | PollerStopping
    | PollerStopped
    | ConfigWarning
    | AgentMisconfigured
    | CheckFinished
    | CheckMissed
    | CheckUnsupported
    | AgentLost
    | AgentConnected
    | AgentHealth
    | AgentIdMismatch
    | BreakerChanged
    | ReportSent
    | ReportFailed
    | ReportDropped
    | ReportSetAside
    | ReportQueue
    | SpoolRecovered
    | SpoolSetAside
    | SpoolWriteFailed
    | SpoolWritable
    | SpoolFilling
    | SpoolNotFilling
    | CoreLost
    | CoreConnected
    | NameStale
    | ServerFailed
    | ServerBusy
    | CredentialsRenewed
    | CredentialsRejected
    | OperatorRestart
)
