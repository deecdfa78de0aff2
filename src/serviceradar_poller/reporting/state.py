"""What the reporter is told at its start, and what outlives it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from serviceradar_poller.config.model import SecurityConfig
from serviceradar_poller.logic.calls import ReportHead
from serviceradar_poller.logic.reports import ReportBook
from serviceradar_poller.reporting.inbox import OutcomeInbox
from serviceradar_poller.reporting.sealing import Sealer
from serviceradar_poller.reporting.spool import ReportStore
from serviceradar_poller.wire.messages import ServiceStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class ReporterSettings:
    """
    Where core is and how it is spoken to.

    Attributes:
        head: What every report carries, as it is known by now.
    """

    core_address: str
    security: SecurityConfig | None
    head: Callable[[], ReportHead]
    call_timeout_s: float
    flush_timeout_s: float


@dataclass(slots=True, kw_only=True)
class ReportingState:
    """
    What outlives the actor.

    Attributes:
        store: Sealed reports; it also keeps where each results check goes on.
        registered: Core has had a stream of this process since it was last lost.
        lost_s: Monotonic seconds since when core does not accept; None while it does.
        connected_once: Core has accepted anything since the start.
        accepted_s: Monotonic seconds of the last acceptance.
        cycle_s: Monotonic seconds at which the last cycle's report was cut.
        newest: What a registering stream shows of the newest cut, and the cut's unix seconds.
    """

    inbox: OutcomeInbox
    book: ReportBook
    store: ReportStore
    sealer: Sealer
    registered: bool = False
    lost_s: float | None = None
    connected_once: bool = False
    accepted_s: float | None = None
    cycle_s: float | None = None
    newest: tuple[ServiceStatus, ...] = ()
    newest_timestamp: int = 0
