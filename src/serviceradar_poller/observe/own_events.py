"""
What observation has to say about itself: sinks that fail, lines that were lost, libraries that log.

These join the program's events on the way to the sinks; nothing outside this package sends them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from serviceradar_poller.env import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkFailed:
    """A sink raised; told once per sink, counted every time."""

    sink: str
    event: str
    error: str
    traceback: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLinesDropped:
    """The log's reader did not keep up, or went away: so many lines are missing before this one."""

    lines: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryLogged:
    """
    A library wrote to the standard library's logging.

    Attributes:
        severity: A level name of :mod:`serviceradar_poller.observe.levels`.
    """

    logger: str
    severity: str
    text: str
    traceback: str = ""


OwnEvent = SinkFailed | LogLinesDropped | LibraryLogged
ObservedEvent = Event | OwnEvent
#: Takes an event, quickly; the bus deals with what it raises.
Sink = Callable[[ObservedEvent], None]
