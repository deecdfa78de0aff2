"""The recent notable events, for whoever looks at the running poller."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from serviceradar_poller.events import kernel as k
from serviceradar_poller.events import polling as p
from serviceradar_poller.observe.figures import duration
from serviceradar_poller.observe.levels import Level
from serviceradar_poller.observe.lines import LINES
from serviceradar_poller.observe.own_events import ObservedEvent
from serviceradar_poller.observe.snapshot import Note
from serviceradar_poller.observe.text import clean

NOTES_MAX = 100


class Notes:
    """Keep the latest NOTES_MAX events that are worth a look."""

    def __init__(self) -> None:
        self._notes: deque[Note] = deque(maxlen=NOTES_MAX)

    def latest(self) -> tuple[Note, ...]:
        """Return them, the newest last."""
        return tuple(self._notes)

    def add(self, event: ObservedEvent, wall_s: float) -> None:
        """Keep *event*, where it is notable."""
        line = LINES[type(event)]
        level = line.level(event)
        if level < Level.INFO or not _notable(event):
            return
        self._notes.append(
            Note(
                time=wall_s,
                level=level.text,
                text=clean(line.message(event)),
                subject=clean(_first(event, _SUBJECTS)),
                detail=clean(_detail(event)),
            )
        )


_SUBJECTS = ("agent", "path", "peer", "address", "name", "sink", "logger")
_DETAILS = ("error", "cause", "problem", "reason", "text", "why", "status", "claimed", "core_address")


def _detail(event: ObservedEvent) -> str:
    match event:
        case k.LoopBlocked():
            return f"for {duration(event.blocked_s)}"
        case k.ChildQuarantined():
            return f"in {duration(event.delay_s)}: {event.error}"
        case p.AgentConnected() | p.CoreConnected() if event.outage_s > 0:
            return f"after {duration(event.outage_s)}"
    return _first(event, _DETAILS)


def _first(event: object, names: Iterable[str]) -> str:
    for name in names:
        value = getattr(event, name, "")
        if value:
            return str(value)
    return ""


def _notable(event: ObservedEvent) -> bool:
    """Whether *event* is worth a place among the recent ones: no first connections, no ordinary repeats."""
    match event:
        case p.AgentConnected():
            return event.outage_s > 0
        case p.CheckMissed() | p.AgentHealth():
            return False
    return True
