"""
The log: every event as one line, JSON for machines or words for a terminal.

A JSON line has level, component, time, message, poller_id and event, then the event's own fields; durations
and sizes carry their unit in the key. What is written, and how loud, is in ``lines`` and ``changes``.
A LogSink may be called on any thread, and never waits: lines go through a bounded queue to a writer thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import IO, Any

import msgspec

from serviceradar_poller.events.polling import AgentConnected, AgentHealth, CheckFinished, CheckMissed
from serviceradar_poller.observe.changes import Changes
from serviceradar_poller.observe.levels import Level
from serviceradar_poller.observe.lines import LINES, Line
from serviceradar_poller.observe.own_events import LogLinesDropped, ObservedEvent
from serviceradar_poller.observe.text import MASK, clean, secret_key
from serviceradar_poller.observe.timefmt import time_format as parse_time_format
from serviceradar_poller.observe.writer import CLOSE_GRACE_S, LineWriter

_COLOURS = {
    Level.TRACE: "\x1b[2mTRACE\x1b[0m",
    Level.DEBUG: "\x1b[2mDEBUG\x1b[0m",
    Level.INFO: "\x1b[32mINFO \x1b[0m",
    Level.WARN: "\x1b[33mWARN \x1b[0m",
    Level.ERROR: "\x1b[31mERROR\x1b[0m",
}
#: Values that are blocks of lines; a terminal shows them below the line.
_BLOCKS = frozenset({"traceback", "stack"})


class LogSink:
    """
    Write events to *stream*.

    Args:
        level: The least that is written: a Level or its name.
        component: What the lines' ``component`` key says.
        human: Words for a terminal instead of JSON; ``colour`` only matters then.
        time: The wall clock, unix seconds.
        time_format: See ``timefmt``; empty means RFC 3339, UTC, milliseconds.
    """

    def __init__(
        self,
        stream: IO[Any],
        *,
        level: Level | str,
        component: str = "poller",
        poller_id: str = "",
        human: bool = False,
        colour: bool = True,
        time: Callable[[], float],
        time_format: str = "",
    ) -> None:
        self.level = Level.parse(level) if isinstance(level, str) else level
        self._component = component
        self._poller_id = poller_id
        self._human = human
        self._colour = colour
        self._time = time
        self._format_time = parse_time_format(time_format)
        self._changes = Changes()
        self._writer = LineWriter(stream, dropped_line=self._dropped_line)

    @property
    def dropped(self) -> int:
        """Lines that were not written."""
        return self._writer.dropped

    def __call__(self, event: ObservedEvent) -> None:
        """Write *event*, where its level is loud enough."""
        # By far the most frequent event, and nearly always one that is not written.
        if type(event) is CheckFinished:
            change = self._changes.check(event)
            level, message = change or (Level.DEBUG, None)
            if level >= self.level:
                line = LINES[CheckFinished]
                self._writer.put(self._render(event, line, level, message or line.message(event)))
            return
        line = LINES[type(event)]
        level = self._level(event, line)
        if level >= self.level:
            self._writer.put(self._render(event, line, level, line.message(event)))

    def forget_agent(self, agent: str) -> None:
        """Forget what was told of an agent that is no longer configured."""
        self._changes.forget_agent(agent)

    def close(self, *, grace_s: float = CLOSE_GRACE_S) -> int:
        """Write what waits, for at most *grace_s* seconds; return how many lines were lost."""
        return self._writer.close(grace_s=grace_s)

    def _level(self, event: ObservedEvent, line: Line) -> Level:
        match event:
            case CheckMissed():
                return line.level(event) if self._changes.missed(event) else Level.DEBUG
            case AgentHealth():
                return line.level(event) if self._changes.health(event) else Level.DEBUG
            case AgentConnected():
                self._changes.connected(event)
        return line.level(event)

    def _dropped_line(self, count: int) -> bytes:
        event = LogLinesDropped(lines=count)
        line = LINES[LogLinesDropped]
        return self._render(event, line, line.level(event), line.message(event))

    def _render(self, event: ObservedEvent, line: Line, level: Level, message: str) -> bytes:
        fields = _fields(event, line)
        now = self._format_time(self._time())
        if self._human:
            return _human(now, level, clean(message), fields, colour=self._colour).encode("utf-8", "replace")
        record = {
            "level": level.text,
            "component": self._component,
            "time": now,
            "message": clean(message),
            "poller_id": self._poller_id,
            "event": line.event,
        }
        record.update(fields)
        return msgspec.json.encode(record) + b"\n"


def _fields(event: ObservedEvent, line: Line) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for attribute, key in line.fields:
        value = getattr(event, attribute)
        if value == "" or value == ():
            continue
        fields[key] = MASK if secret_key(key) else _value(value, lines=key in _BLOCKS)
    return fields


def _value(value: object, *, lines: bool) -> object:
    if type(value) is str:
        return clean(value, lines=lines)
    if type(value) is float:
        return round(value, 6)
    if type(value) is bool or value is None:
        return value
    if type(value) is int:
        return value if -(2**63) <= value < 2**64 else str(value)
    if isinstance(value, tuple | list):
        return [_value(item, lines=False) for item in value]
    return clean(str(value))


def _human(now: str | int, level: Level, message: str, fields: Mapping[str, Any], *, colour: bool) -> str:
    name = _COLOURS[level] if colour else f"{level.name:<5}"
    dim, normal = ("\x1b[2m", "\x1b[0m") if colour else ("", "")
    pairs = "".join(f" {dim}{key}={normal}{_quoted(value)}" for key, value in fields.items() if key not in _BLOCKS)
    blocks = "".join(
        f"    {text}\n" for key in fields if key in _BLOCKS for text in str(fields[key]).rstrip("\n").split("\n")
    )
    return f"{now} {name} {message}{pairs}\n{blocks}"


def _quoted(value: object) -> str:
    if isinstance(value, list):
        return "[" + ",".join(_quoted(item) for item in value) + "]"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    if text and not any(c in text for c in " =\"'\t"):
        return text
    return '"' + text.replace('"', '\\"') + '"'
