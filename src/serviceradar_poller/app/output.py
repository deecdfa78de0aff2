"""Where commands print to: a stream whose own failures are told from those of the work."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any, TextIO, cast

from serviceradar_poller.errors import PollerError


class OutputError(PollerError):
    """
    What a command has to say can't be written.

    Attributes:
        reader_gone: Whoever read it has ended, as ``head`` does; nobody needs to be told.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(f"can't write the output: {error.strerror or error}")
        self.reader_gone = isinstance(error, BrokenPipeError)


class Output:
    """A text stream that raises OutputError where *stream* raises OSError: a command's work may raise that too."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or raise OutputError."""
        try:
            return self._stream.write(text)
        except OSError as error:
            raise OutputError(error) from error

    def writelines(self, lines: Iterable[str]) -> None:
        """Write them all, or raise OutputError."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Hand over what is kept back, or raise OutputError."""
        try:
            self._stream.flush()
        except OSError as error:
            raise OutputError(error) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def standard_output() -> TextIO:
    """Return the standard output of a command."""
    return cast("TextIO", Output(sys.stdout))


def open_closed_streams() -> None:
    """Give standard streams that were closed before the start somewhere to go: Python has None for them."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - as long as the process


def discard_output() -> None:
    """Let what could not be written go: at its end Python would try, and complain, once more."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
