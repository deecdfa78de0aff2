"""What the operating system says of this process."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass

_PAGE_BYTES = resource.getpagesize()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFigures:
    """Resident memory, CPU time of all threads, open file descriptors; -1 where it can't be told."""

    rss_bytes: int = -1
    cpu_s: float = 0.0
    open_fds: int = -1


def process_figures() -> ProcessFigures:
    """Read the figures of this process; some ten microseconds, and more with many descriptors."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return ProcessFigures(rss_bytes=_rss_bytes(), cpu_s=usage.ru_utime + usage.ru_stime, open_fds=_open_fds())


def _rss_bytes() -> int:
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return -1


def _open_fds() -> int:
    try:
        # One is the directory's own.
        return len(os.listdir("/proc/self/fd")) - 1
    except OSError:
        return -1
