"""What is known of one agent and its checks."""

from __future__ import annotations

from serviceradar_poller.observe.ring import Ring
from serviceradar_poller.observe.snapshot import AgentView, CheckView

#: Latencies of an agent that its percentiles are taken from.
AGENT_LATENCIES = 32


class CheckState:
    """The last outcome of a check."""

    __slots__ = ("at", "error", "failures", "latency_s", "outcome", "reason")

    def __init__(self) -> None:
        self.outcome = ""
        self.reason = ""
        self.error = ""
        self.latency_s = 0.0
        self.at = 0.0
        self.failures = 0


class AgentState:
    """What is known of an agent; ``since`` is when its state began."""

    __slots__ = (
        "address",
        "breaker",
        "checks",
        "error",
        "failures",
        "last_s",
        "latencies",
        "reason",
        "since",
        "state",
    )

    def __init__(self, address: str = "") -> None:
        self.address = address
        self.state = "unknown"
        self.reason = ""
        self.error = ""
        self.since = 0.0
        self.breaker = "CLOSED"  # where every breaker begins
        self.failures = 0
        self.last_s = -1.0
        self.latencies = Ring(AGENT_LATENCIES)
        self.checks: dict[tuple[str, str, str], CheckState] = {}

    @property
    def rank(self) -> int:
        """How much attention it needs: 0 most."""
        if self.state in ("down", "misconfigured"):
            return 0
        if self.breaker in ("OPEN", "HALF_OPEN"):
            return 1
        if any(check.failures for check in self.checks.values()):
            return 2
        return 3 if self.state == "unknown" else 4

    def view(self, name: str, now: float) -> AgentView:
        """Return what is shown of it."""
        return AgentView(
            name=name,
            address=self.address,
            state=self.state,
            reason=self.reason,
            error=self.error,
            outage_s=now - self.since if self.state == "down" else 0.0,
            breaker=self.breaker,
            failures=self.failures,
            latency_p50_s=self.latencies.quantile(0.5),
            latency_last_s=self.last_s,
            checks=tuple(_check_view(key, check, now) for key, check in self.checks.items()),
        )


def _check_view(key: tuple[str, str, str], check: CheckState, now: float) -> CheckView:
    return CheckView(
        service_name=key[0],
        service_type=key[1],
        kind=key[2],
        outcome=check.outcome,
        reason=check.reason,
        error=check.error,
        latency_s=check.latency_s,
        age_s=now - check.at,
        failures=check.failures,
    )
