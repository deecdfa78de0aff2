"""What the actors of one agent say to each other."""

from __future__ import annotations

from dataclasses import dataclass

from serviceradar_poller.env import AgentClient
from serviceradar_poller.errors import CallError
from serviceradar_poller.values import quick

#: An agent's actors that run checks, by the names under which they stand beside each other.
RUNNERS = ("scheduler", "results")


@dataclass(frozen=True, slots=True)
class CallSucceeded:
    """A call was answered, after it was not sure that one would be."""


@dataclass(frozen=True, slots=True)
class CallFailed:
    """A call got no usable answer; it began at ``began_s``, monotonic seconds."""

    error: CallError
    began_s: float


@dataclass(frozen=True, slots=True)
class Probe:
    """Find out whether the agent can be reached now; a silence counts from ``since_s``, or from the probe on."""

    since_s: float | None = None


@dataclass(frozen=True, slots=True)
class ProbeDone:
    """
    The probe's result: the agent's own health, or why it could not be asked.

    Attributes:
        client: The one that was asked.
        since_s: A silence counts from then.
    """

    client: AgentClient
    health: str
    error: CallError | None
    since_s: float


@dataclass(frozen=True, slots=True)
class DeviceResolved:
    """The names of the agent's machine were looked up."""

    addresses: dict[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class ClientMade:
    """A client stands ready, or why there can't be one."""

    error: CallError | None


@dataclass(frozen=True, slots=True)
class RenewConnection:
    """Build the connection anew from the credentials that are on disk now; swap when it is proven."""


@dataclass(frozen=True, slots=True)
class RenewalDone:
    """What came of proving the new connection: the agent's own health over it, or why it is not to be used."""

    health: str
    error: CallError | None


@dataclass(frozen=True, slots=True)
class BreakerFailure:
    """
    A call failed in a way that says something about the agent as a whole.

    Attributes:
        security: About identity or permission.
        forbidden: The agent itself answered so: that it can be reached disproves nothing.
    """

    security: bool
    forbidden: bool
    cause: str


@dataclass(frozen=True, slots=True)
class BreakerSuccess:
    """
    The agent answered.

    Attributes:
        probe: Only a health probe, no check.
        back: It was out of reach, so what failed is asked again, when that is good for it.
    """

    probe: bool
    back: bool


@dataclass(frozen=True, slots=True)
class BreakerTimer:
    """The breaker's open time may be over."""


@quick
@dataclass(frozen=True, slots=True)
class RunDue:
    """Checks may be due."""


@quick
@dataclass(frozen=True, slots=True)
class CheckDone:
    """A check's run ended; ``retry_delay_s`` says after how long a failed one is worth another before its time."""

    key: str
    ok: bool
    retry_delay_s: float | None


@dataclass(frozen=True, slots=True)
class RunFailing:
    """The agent is back: run what failed last time at once."""


@dataclass(frozen=True, slots=True)
class RunRefused:
    """The breaker lets calls through again: run at once what it refused last time."""


@dataclass(frozen=True, slots=True)
class RunTrial:
    """Run this check at once: it finds out for all of them."""

    key: str


@dataclass(frozen=True, slots=True)
class Rerun:
    """The agent has stayed for long enough to be asked again what failed."""


@dataclass(frozen=True, slots=True)
class AnsweredAs:
    """The agent answered under an id."""

    claimed: str


ConnectionMessage = (
    CallSucceeded | CallFailed | Probe | ProbeDone | DeviceResolved | ClientMade | RenewConnection | RenewalDone | Rerun
)
BreakerMessage = BreakerFailure | BreakerSuccess | BreakerTimer
RunnerMessage = RunDue | CheckDone | RunFailing | RunRefused | RunTrial
