"""What libraries write to the standard library's logging, brought into the log as lines like all others."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable

from serviceradar_poller.observe.levels import Level
from serviceradar_poller.observe.own_events import LibraryLogged


class LoggingBridge(logging.Handler):
    """
    Emit a LibraryLogged for every record of at least *level*; warnings and errors by default.

    Use :meth:`install` and :meth:`remove` to attach it to the root logger.
    """

    def __init__(self, emit: Callable[[LibraryLogged], None], *, level: int = logging.WARNING) -> None:
        super().__init__(level)
        self._emit = emit
        self._inside = threading.local()
        self._root_level: int | None = None

    def install(self) -> None:
        """Attach to the root logger; without effect when attached already."""
        root = logging.getLogger()
        if self in root.handlers:
            return
        self._root_level = root.level
        # Records below our level are not even made.
        root.setLevel(self.level)
        root.addHandler(self)

    def remove(self) -> None:
        """Detach from the root logger and give it its level back."""
        root = logging.getLogger()
        root.removeHandler(self)
        if self._root_level is not None:
            root.setLevel(self._root_level)
            self._root_level = None

    def emit(self, record: logging.LogRecord) -> None:
        """Emit *record*; one that is made while another is emitted is left to logging's own last resort."""
        if getattr(self._inside, "busy", False):
            return
        self._inside.busy = True
        try:
            self._emit(_event(record))
        finally:
            self._inside.busy = False


def _event(record: logging.LogRecord) -> LibraryLogged:
    try:
        text = record.getMessage()
    except Exception as error:  # noqa: BLE001 - arguments that don't fit the format are the library's bug
        text = f"{record.msg!s} (arguments do not fit: {error})"
    trace = ""
    if record.exc_info is not None and record.exc_info[0] is not None:
        trace = "".join(traceback.format_exception(*record.exc_info))
    elif record.exc_text:
        trace = record.exc_text
    return LibraryLogged(logger=record.name, severity=Level.of_stdlib(record.levelno).text, text=text, traceback=trace)
