"""Log levels: the ones that a configuration may name, in order."""

from __future__ import annotations

import enum
import logging


class Level(enum.IntEnum):
    """How much a line matters."""

    TRACE = 0
    DEBUG = 1
    INFO = 2
    WARN = 3
    ERROR = 4
    OFF = 5  # no event is that loud

    @property
    def text(self) -> str:
        """The name as a configuration and a log line write it."""
        return self.name.lower()

    @classmethod
    def parse(cls, text: str, *, debug: bool = False) -> Level:
        """
        Return the level that a configuration asks for; ``debug`` asks for at least DEBUG.

        Raises:
            ValueError: no level has this name.
        """
        names = {level.text: level for level in cls} | _OTHER_NAMES
        level = names.get(text.strip().lower())
        if level is None:
            raise ValueError(f"unknown log level {text!r}: {', '.join(filter(None, names))} exist")
        return min(level, cls.DEBUG) if debug else level

    @classmethod
    def of_stdlib(cls, levelno: int) -> Level:
        """Return the nearest level of a number of :mod:`logging`."""
        if levelno >= logging.ERROR:
            return cls.ERROR
        if levelno >= logging.WARNING:
            return cls.WARN
        if levelno >= logging.INFO:
            return cls.INFO
        return cls.DEBUG if levelno >= logging.DEBUG else cls.TRACE


#: ``fatal`` and ``panic`` are levels of the Go poller's logger; this program has no such lines.
_OTHER_NAMES = {
    "": Level.INFO,
    "warning": Level.WARN,
    "fatal": Level.OFF,
    "panic": Level.OFF,
    "disabled": Level.OFF,
}
