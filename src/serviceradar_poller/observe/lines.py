"""
The table of all log lines: what each event says and how much it matters.

Messages are fixed words, values are keys. Where a level depends on what was told before (a check that fails
again), :mod:`serviceradar_poller.observe.changes` decides.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from serviceradar_poller.events import kernel as k
from serviceradar_poller.events import polling as p
from serviceradar_poller.observe import own_events as o
from serviceradar_poller.observe.levels import Level
from serviceradar_poller.observe.own_events import ObservedEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """
    How an event type is told.

    Attributes:
        event: The type's name in snake case, the line's ``event`` key.
        fields: Pairs of the event's attribute and the line's key, in order.
    """

    event: str
    level: Callable[[Any], Level]
    message: Callable[[Any], str]
    fields: tuple[tuple[str, str], ...]


#: Keys that every line has; an event's field of that name gets an underscore behind it.
RESERVED_KEYS = frozenset({"level", "component", "time", "message", "event", "poller_id"})
#: Attributes whose key needs the unit that the event's docstring has.
_KEYS = {"size": "size_bytes"}


def _always(level: Level) -> Callable[[Any], Level]:
    return lambda event: level


def _exit_level(event: k.ChildExited) -> Level:
    match event.reason:
        case "normal" | "shutdown":
            return Level.DEBUG
        case "killed":
            return Level.WARN
        case _:
            return Level.ERROR


def _connected_text(event: p.AgentConnected) -> str:
    return "agent is back" if event.outage_s > 0 else "agent is connected"


def _server_text(event: p.ServerFailed) -> str:
    if event.serving:
        return "listener can not take the renewed certificate, goes on with the old one, tried again"
    return "listener can not be opened, tried again"


def _check_text(event: p.CheckFinished) -> str:
    match event.outcome:
        case "available":
            return "check is available"
        case "failed":
            return "check failed"
        case _:
            return "check is unavailable"


def _table() -> dict[type, tuple[Callable[[Any], Level], Callable[[Any], str]]]:
    rows: dict[type, tuple[Level | Callable[[Any], Level], str | Callable[[Any], str]]] = {
        # the kernel
        k.ChildStarted: (Level.DEBUG, "child started"),
        k.ChildExited: (_exit_level, lambda e: "child crashed" if e.reason == "error" else "child ended"),
        k.ChildStartFailed: (Level.ERROR, "child could not start"),
        k.ChildRestarting: (Level.WARN, "child is restarted"),
        k.ChildQuarantined: (Level.WARN, "child gave up, is built again later"),
        k.ChildKilled: (Level.WARN, "child did not stop in time, killed"),
        k.ChildZombie: (Level.ERROR, "child can not be stopped, left behind"),
        k.SupervisorGaveUp: (Level.ERROR, "supervisor gave up: too many restarts"),
        k.MailboxOverflow: (Level.WARN, "mailbox is full, messages are refused"),
        k.LoopBlocked: (Level.WARN, "event loop is blocked"),
        # polling
        p.PollerStarted: (Level.INFO, "poller started"),
        p.PollerStopping: (Level.INFO, "poller is stopping"),
        p.PollerStopped: (lambda e: Level.WARN if e.reports_unsent else Level.INFO, "poller stopped"),
        p.ConfigWarning: (Level.WARN, "configuration warning"),
        p.AgentMisconfigured: (Level.ERROR, "agent is misconfigured, not polled"),
        p.CheckFinished: (Level.DEBUG, _check_text),
        p.CheckMissed: (Level.WARN, "check missed its time"),
        p.CheckUnsupported: (lambda e: Level.WARN if e.first else Level.DEBUG, "check is not supported"),
        p.AgentLost: (Level.WARN, "agent is lost"),
        p.AgentConnected: (Level.INFO, _connected_text),
        p.AgentHealth: (Level.WARN, "agent says that it is not well"),
        p.AgentIdMismatch: (Level.WARN, "agent answers under another id"),
        p.BreakerChanged: (
            lambda e: Level.WARN if e.after == "OPEN" else Level.INFO,
            lambda e: f"breaker is {e.after}",
        ),
        p.ReportSent: (Level.DEBUG, "report accepted by core"),
        p.ReportFailed: (lambda e: Level.WARN if e.dropped else Level.DEBUG, "report did not reach core"),
        p.ReportDropped: (Level.ERROR, "report dropped, its statuses are lost"),
        p.ReportSetAside: (Level.ERROR, "report set aside, core does not take it"),
        p.ReportQueue: (Level.TRACE, "reports waiting for core"),
        p.SpoolRecovered: (Level.INFO, "spool is open"),
        p.SpoolSetAside: (Level.ERROR, "spool can not be used, set aside and begun anew"),
        p.SpoolWriteFailed: (Level.ERROR, "spool can not be written, polling goes on"),
        p.SpoolWritable: (Level.INFO, "spool can be written again"),
        p.SpoolFilling: (Level.WARN, "spool will soon be full"),
        p.SpoolNotFilling: (Level.INFO, "spool will not be full soon"),
        p.CoreLost: (Level.WARN, "core is lost, reports wait"),
        p.CoreConnected: (Level.INFO, lambda e: "core is back" if e.outage_s > 0 else "core is connected"),
        p.NameStale: (
            lambda e: Level.WARN if e.first else Level.DEBUG,
            "name is not answered, its last addresses are used",
        ),
        p.ServerFailed: (Level.ERROR, _server_text),
        p.ServerBusy: (Level.WARN, "listener has all the connections that it may have, others are refused"),
        p.CredentialsRenewed: (Level.INFO, "certificates renewed"),
        p.CredentialsRejected: (Level.ERROR, "new certificates can not be used, the old ones are kept"),
        p.OperatorRestart: (Level.WARN, "operator asked for a restart"),
        # observation itself
        o.SinkFailed: (Level.ERROR, "event sink failed, told once"),
        o.LogLinesDropped: (Level.WARN, "log lines are missing here"),
        o.LibraryLogged: (lambda e: Level[e.severity.upper()], lambda e: str(e.text)),
    }
    return {
        kind: (
            _always(level) if isinstance(level, Level) else level,
            message if callable(message) else _fixed(message),
        )
        for kind, (level, message) in rows.items()
    }


def _fixed(text: str) -> Callable[[Any], str]:
    return lambda event: text


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _keys(kind: type) -> tuple[tuple[str, str], ...]:
    omitted = {"severity", "text"} if kind is o.LibraryLogged else set()
    names = [field.name for field in dataclasses.fields(kind) if field.name not in omitted]
    return tuple(
        (name, _KEYS.get(name, name + "_" if name in RESERVED_KEYS - {"poller_id"} else name)) for name in names
    )


#: Every event type there is; complete, which a test holds.
LINES: Mapping[type, Line] = {
    kind: Line(event=_snake(kind.__name__), level=level, message=message, fields=_keys(kind))
    for kind, (level, message) in _table().items()
}


def line_of(event: ObservedEvent) -> Line:
    """Return how *event* is told."""
    return LINES[type(event)]
