"""
The way of log lines to their stream: a bounded queue and one thread; a reader who stalls, stalls nobody.

The event loop only appends to the queue. The thread asks the stream's file descriptor whether it takes more
before each write and writes no more than a pipe takes at once, so it never hangs inside a write either.
When the queue is full the newest lines are dropped and counted; what is written next tells how many.
A stream that fails (its reader is gone, the disk is full) costs lines, which are counted, and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
import threading
from collections import deque
from collections.abc import Callable
from itertools import accumulate
from typing import IO, Any

#: What may wait for a stalled reader: about half a minute of a busy poller at debug level.
QUEUE_LINES_MAX = 10_000
QUEUE_BYTES_MAX = 4 * 1024 * 1024
#: A pipe that poll() calls writable takes this much without blocking (PIPE_BUF, pipe(7)).
PIPE_WRITE_BYTES = 4_096
#: One write to a file or terminal takes at most this much.
BATCH_BYTES = 64 * 1024
#: How long close() waits for the stream.
CLOSE_GRACE_S = 1.0
#: How often a thread whose stream is stalled looks whether it is to leave.
_STALL_CHECK_MS = 100


class LineWriter:
    """
    Write lines to *stream* without ever making the caller wait.

    Args:
        stream: A file, pipe or terminal; something without a file descriptor is written to as it is (tests).
        dropped_line: Makes the line that tells of so many missing lines.
    """

    def __init__(
        self,
        stream: IO[Any],
        *,
        dropped_line: Callable[[int], bytes],
        lines_max: int = QUEUE_LINES_MAX,
        bytes_max: int = QUEUE_BYTES_MAX,
    ) -> None:
        self._stream = stream
        self._fd, self._regular = _descriptor(stream)
        self._poll = select.poll()
        if self._fd >= 0:
            self._poll.register(self._fd, select.POLLOUT)
        self._dropped_line = dropped_line
        self._lines_max = lines_max
        self._bytes_max = bytes_max
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._in_flight = 0
        self._dropped = 0
        self._untold = 0
        self._errors = 0
        self._in_flight_bytes = 0
        self._in_flight_untold = 0
        self._healthy = True
        self._mid_line = False
        self._closing = False
        self._abandoned = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Lines that were not written, for whatever cause."""
        return self._dropped

    @property
    def errors(self) -> int:
        """Writes that the stream refused."""
        return self._errors

    @property
    def waiting(self) -> int:
        """Lines not yet written."""
        return len(self._lines) + self._in_flight

    def put(self, line: bytes) -> bool:
        """Queue *line*, which ends in a newline; False when it was dropped."""
        with self._changed:
            if self._closing or len(self._lines) >= self._lines_max or self._bytes + len(line) > self._bytes_max:
                self._dropped += 1
                self._untold += 1
                return False
            self._lines.append(line)
            self._bytes += len(line)
            self._changed.notify()
            return True

    def close(self, *, grace_s: float = CLOSE_GRACE_S) -> int:
        """Write what waits, for at most *grace_s* seconds; return how many lines could not be written."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(grace_s)
        self._abandoned = True
        with self._changed:
            left = len(self._lines) + self._in_flight
            self._dropped += left
            self._lines.clear()
            self._in_flight = 0
            return left

    def _run(self) -> None:
        try:
            self._write_all()
        finally:
            if self._fd >= 0:
                os.close(self._fd)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                # After an error, missing lines are told with the next line; alone they would loop for ever.
                while not self._lines and not (self._untold and self._healthy) and not self._closing:
                    self._changed.wait()
                if self._abandoned or (not self._lines and not (self._untold and self._healthy)):
                    return
                batch = self._take()
            self._write_batch(batch)

    def _take(self) -> list[bytes]:
        """Take what is written next; when lines are missing, all before the gap and the line about it."""
        batch: list[bytes] = []
        size = 0
        while self._lines and (self._untold or size < BATCH_BYTES):
            line = self._lines.popleft()
            size += len(line)
            batch.append(line)
        self._in_flight = len(batch)
        self._in_flight_bytes = size
        self._in_flight_untold, self._untold = self._untold, 0
        if self._in_flight_untold:
            batch.append(self._dropped_line(self._in_flight_untold))
        return batch

    def _write_batch(self, batch: list[bytes]) -> None:
        data = b"\n" + b"".join(batch) if self._mid_line else b"".join(batch)
        ends = list(accumulate(map(len, batch), initial=len(data) - sum(map(len, batch))))[1:]
        written = 0
        failed = False
        try:
            while written < len(data) and not self._abandoned:
                written += self._write_some(data[written : written + BATCH_BYTES])
        except (OSError, ValueError):  # ValueError: the stream is closed
            failed = True
        with self._changed:
            if self._abandoned:  # close() has counted what was in flight
                return
            if written:
                self._mid_line = data[written - 1 : written] != b"\n"
            self._healthy = not failed
            if failed:
                self._errors += 1
                missing = sum(1 for end in ends[: self._in_flight] if end > written)
                self._dropped += missing
                self._untold += missing + (self._in_flight_untold if ends[-1] > written else 0)
            self._bytes -= self._in_flight_bytes
            self._in_flight = self._in_flight_bytes = self._in_flight_untold = 0

    def _write_some(self, data: bytes) -> int:
        if self._fd < 0:
            if hasattr(self._stream, "encoding"):
                self._stream.write(data.decode("utf-8", "replace"))
            else:
                self._stream.write(data)
            self._stream.flush()
            return len(data)
        if self._regular:
            return os.write(self._fd, data)
        if not self._poll.poll(_STALL_CHECK_MS):
            return 0
        with contextlib.suppress(BlockingIOError):
            return os.write(self._fd, data[:PIPE_WRITE_BYTES])
        return 0


def _descriptor(stream: IO[Any]) -> tuple[int, bool]:
    """Return the stream's descriptor, -1 when it has none, and whether it is a regular file."""
    try:
        # Written to directly: a stalled thread that holds a buffered writer's lock would abort Python's exit.
        fd = stream.fileno()
        stream.flush()
        # A descriptor of its own: a thread that outlives the stream must not write into what took its number.
        return os.dup(fd), stat.S_ISREG(os.fstat(fd).st_mode)
    except (OSError, ValueError, AttributeError):
        return -1, False
