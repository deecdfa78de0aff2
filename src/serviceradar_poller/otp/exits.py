"""Why a process ended, and how an exception is told without keeping its frames alive."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Literal

#: A traceback is for a reader: the innermost frames and this many characters say enough.
TRACEBACK_FRAMES_MAX = 24
TRACEBACK_CHARS_MAX = 8_000
ERROR_CHARS_MAX = 500
#: An exception chain longer than this is a loop or an accident.
CHAIN_MAX = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitReason:
    """
    Why a process ended.

    Attributes:
        kind: ``normal`` (it returned), ``shutdown`` (told to stop, or said so), ``killed`` (cancelled by
            somebody else than its supervisor, or it outlasted its grace), ``error`` (an exception).
        error: For ``error``, the exception; its traceback has been formatted into the event and dropped.
    """

    kind: Literal["normal", "shutdown", "killed", "error"]
    error: BaseException | None = None

    @property
    def abnormal(self) -> bool:
        """Whether a transient child is restarted after it."""
        return self.kind in ("killed", "error")

    def __str__(self) -> str:
        return self.kind if self.error is None else one_line(self.error)


NORMAL = ExitReason(kind="normal")
SHUTDOWN = ExitReason(kind="shutdown")
KILLED = ExitReason(kind="killed")


def failed(error: BaseException) -> ExitReason:
    """Make the reason of a process that *error* ended."""
    return ExitReason(kind="error", error=error)


def one_line(error: BaseException) -> str:
    """Say what *error* is in one bounded line."""
    text = " ".join(str(error).split())
    name = type(error).__qualname__
    return (f"{name}: {text}" if text else name)[:ERROR_CHARS_MAX]


def format_traceback(error: BaseException) -> str:
    """Format *error* with its causes as bounded text."""
    lines = traceback.format_exception(type(error), error, error.__traceback__, limit=-TRACEBACK_FRAMES_MAX)
    return "".join(lines)[-TRACEBACK_CHARS_MAX:]


def drop_frames(error: BaseException) -> None:
    """Drop the tracebacks of *error* and its causes: frames keep every local of a dead child alive."""
    todo: list[BaseException] = [error]
    seen: set[int] = set()
    while todo and len(seen) < CHAIN_MAX:
        item = todo.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        item.__traceback__ = None
        todo += [link for link in (item.__cause__, item.__context__) if link is not None]
        if isinstance(item, BaseExceptionGroup):
            todo += item.exceptions
