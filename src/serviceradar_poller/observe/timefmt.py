"""
Time stamps of log lines: RFC 3339 unless the configuration's ``time_format`` asks for another form.

``time_format`` is what the Go poller's logger takes: a layout made of Go's reference time
(``2006-01-02T15:04:05.000Z07:00``) or one of ``UNIX``, ``UNIXMS``, ``UNIXMICRO``. Times are UTC.
Source: the table of layout elements in the documentation of Go's package time.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime

#: Turns unix seconds into what stands in the line; numbers for the UNIX forms.
TimeFormat = Callable[[float], "str | int"]

_PIECES: dict[str, Callable[[datetime], str]] = {
    "2006": lambda t: f"{t.year:04d}",
    "January": lambda t: t.strftime("%B"),
    "Jan": lambda t: t.strftime("%b"),
    "Monday": lambda t: t.strftime("%A"),
    "Mon": lambda t: t.strftime("%a"),
    "MST": lambda t: "UTC",
    "Z07:00": lambda t: "Z",
    "Z0700": lambda t: "Z",
    "-07:00": lambda t: "+00:00",
    "-0700": lambda t: "+0000",
    "002": lambda t: f"{t.timetuple().tm_yday:03d}",
    "01": lambda t: f"{t.month:02d}",
    "02": lambda t: f"{t.day:02d}",
    "03": lambda t: f"{t.hour % 12 or 12:02d}",
    "04": lambda t: f"{t.minute:02d}",
    "05": lambda t: f"{t.second:02d}",
    "06": lambda t: f"{t.year % 100:02d}",
    "15": lambda t: f"{t.hour:02d}",
    "PM": lambda t: "AM" if t.hour < 12 else "PM",
    "pm": lambda t: "am" if t.hour < 12 else "pm",
    "_2": lambda t: f"{t.day:2d}",
    "1": lambda t: str(t.month),
    "2": lambda t: str(t.day),
    "3": lambda t: str(t.hour % 12 or 12),
    "4": lambda t: str(t.minute),
    "5": lambda t: str(t.second),
}
_LAYOUT = re.compile(
    "|".join(re.escape(piece) for piece in sorted(_PIECES, key=len, reverse=True)) + r"|[.,](?:0+|9+)(?!\d)"
)


def rfc3339(unix_s: float) -> str:
    """Return *unix_s* as RFC 3339 in UTC with milliseconds."""
    second, milliseconds = divmod(round(unix_s * 1000), 1000)
    return f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}.{milliseconds:03d}Z"


class _CachedRfc3339:
    """RFC 3339 where all but the milliseconds is made once a second."""

    def __init__(self) -> None:
        self._last: tuple[int, str] = (-1, "")

    def __call__(self, unix_s: float) -> str:
        second, milliseconds = divmod(round(unix_s * 1000), 1000)
        cached = self._last  # one read: log lines are also made on other threads
        if cached[0] != second:
            cached = (second, f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}")
            self._last = cached
        return f"{cached[1]}.{milliseconds:03d}Z"


def time_format(layout: str) -> TimeFormat:
    """Return what formats a time as *layout* says; an empty one means RFC 3339."""
    match layout.strip():
        case "" | "RFC3339" | "rfc3339":
            return _CachedRfc3339()
        case "UNIX":
            return int
        case "UNIXMS":
            return lambda unix_s: int(unix_s * 1_000)
        case "UNIXMICRO":
            return lambda unix_s: int(unix_s * 1_000_000)
    return _go_layout(layout.strip())


def _go_layout(layout: str) -> TimeFormat:
    parts: list[str | Callable[[datetime], str]] = []
    position = 0
    for match in _LAYOUT.finditer(layout):
        parts.append(layout[position : match.start()])
        text = match.group()
        parts.append(_PIECES[text] if text in _PIECES else _fraction(text))
        position = match.end()
    parts.append(layout[position:])

    def render(unix_s: float) -> str:
        moment = datetime.fromtimestamp(unix_s, UTC)
        return "".join(part if isinstance(part, str) else part(moment) for part in parts)

    return render


def _fraction(text: str) -> Callable[[datetime], str]:
    separator, digits = text[0], min(len(text) - 1, 9)

    def render(moment: datetime) -> str:
        fraction = f"{moment.microsecond:06d}000"[:digits]
        if text[1] == "9":
            fraction = fraction.rstrip("0")
        return separator + fraction if fraction else ""

    return render
