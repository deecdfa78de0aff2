"""Numbers in the words of a person: durations, sizes, counts."""

from __future__ import annotations

import math

_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def duration(seconds: float) -> str:
    """Return *seconds* with two or three digits that matter; ``–`` for a negative, unknown one."""
    if not 0 <= seconds < math.inf:
        return "–"
    if seconds < 0.00995:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86_400:
        return f"{whole // 3600}h {whole // 60 % 60:02d}m"
    return f"{whole // 86_400}d {whole // 3600 % 24:02d}h"


def size(bytes_: float) -> str:
    """Return a number of bytes in binary units; ``–`` for a negative, unknown one."""
    if bytes_ < 0:
        return "–"
    for unit in _BYTE_UNITS:
        if bytes_ < 1023.5 or unit == _BYTE_UNITS[-1]:
            break
        bytes_ /= 1024
    if unit == "B":
        return f"{bytes_:.0f} B"
    return f"{bytes_:.1f} {unit}" if bytes_ < 99.95 else f"{bytes_:.0f} {unit}"


def count(number: int) -> str:
    """Return *number* with its thousands apart."""
    return f"{number:,}"


def plural(number: int, one: str, many: str = "") -> str:
    """Return ``1 report``, ``2 reports``."""
    return f"{count(number)} {one if number == 1 else many or one + 's'}"
