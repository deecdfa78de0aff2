"""
Durations as Go's ``time.ParseDuration`` reads them, in integer nanoseconds.

The grammar is a sign, then one or more of a decimal and a unit (``1h30m``, ``.5s``); the lone text ``0`` needs none.
Everything is followed to the letter, overflow and error texts too, since one file serves both pollers; only
the length of a text is limited here and not there.
"""

from __future__ import annotations

import math
from decimal import Decimal

NS_PER_US = 1_000
NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000
NS_PER_MINUTE = 60 * NS_PER_S
NS_PER_HOUR = 60 * NS_PER_MINUTE

#: Range of Go's ``time.Duration``, an int64.
NS_MIN = -(2**63)
NS_MAX = 2**63 - 1

_UNITS_NS = {
    "ns": 1,
    "us": NS_PER_US,
    "µs": NS_PER_US,  # U+00B5, micro sign
    "μs": NS_PER_US,  # U+03BC, Greek small letter mu
    "ms": NS_PER_MS,
    "s": NS_PER_S,
    "m": NS_PER_MINUTE,
    "h": NS_PER_HOUR,
}
#: Longer texts are refused, whatever they add up to: reading one takes quadratic time.
DURATION_CHARS_MAX = 1000
_DIGITS = frozenset("0123456789")
_NUMBER = _DIGITS | {"."}


class DurationError(ValueError):
    """The value is not a duration; the message is Go's."""


def parse_duration(text: str) -> int:
    """
    Return the nanoseconds that *text* stands for.

    Raises:
        DurationError: With the text of Go's error.
    Source: Go ``time.ParseDuration``, including its rounding of fractions towards zero.
    """
    if len(text) > DURATION_CHARS_MAX:
        raise _invalid(f"{text[:DURATION_CHARS_MAX]}...")
    rest, negative = text, False
    if rest[:1] in ("-", "+"):
        negative, rest = rest[0] == "-", rest[1:]
    if rest == "0":
        return 0
    if not rest:
        raise _invalid(text)
    total = 0
    while rest:
        if rest[0] not in _NUMBER:
            raise _invalid(text)
        whole_digits = _leading(rest, _DIGITS)
        rest = rest[len(whole_digits) :]
        fraction_digits = ""
        if rest[:1] == ".":
            fraction_digits = _leading(rest[1:], _DIGITS)
            rest = rest[1 + len(fraction_digits) :]
        if not whole_digits and not fraction_digits:
            raise _invalid(text)
        # More digits than this overflow whatever the unit; it also keeps int() away from endless texts.
        significant = whole_digits.lstrip("0")
        if len(significant) > 19 or (significant and int(significant) > 2**63):
            raise _invalid(text)
        name = _unit_name(rest)
        if not name:
            raise DurationError(f"time: missing unit in duration {_quote(text)}")
        rest = rest[len(name) :]
        unit_ns = _UNITS_NS.get(name)
        if unit_ns is None:
            raise DurationError(f"time: unknown unit {_quote(name)} in duration {_quote(text)}")
        total += int(significant or "0") * unit_ns + _fraction_ns(fraction_digits, unit_ns)
        if total > 2**63:
            raise _invalid(text)
    if negative:
        return -total
    if total > NS_MAX:
        raise _invalid(text)
    return total


def duration_from_json(value: object) -> int:
    """
    Return the nanoseconds of a JSON value: a string in Go's grammar, or a number of nanoseconds.

    Fractions of a nanosecond are cut off.

    Raises:
        DurationError: *value* is anything else, or out of range.
    """
    if isinstance(value, str):
        return parse_duration(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DurationError("invalid duration")
    if isinstance(value, float):
        if not math.isfinite(value):
            raise DurationError("invalid duration")
        value = int(value)
    if not NS_MIN <= value <= NS_MAX:
        raise DurationError("invalid duration")
    return value


def format_duration(ns: int) -> str:
    """
    Return the shortest readable text that `parse_duration` reads back as *ns*: ``30s``, ``1h30m``, ``250ms``.

    Unlike Go's ``Duration.String`` it leaves out units that are zero.
    """
    if ns == 0:
        return "0s"
    sign, rest = ("-", -ns) if ns < 0 else ("", ns)
    for unit, unit_ns in (("ns", NS_PER_US), ("µs", NS_PER_MS), ("ms", NS_PER_S)):
        if rest < unit_ns:
            return f"{sign}{_decimal(rest, _UNITS_NS[unit])}{unit}"
    hours, rest = divmod(rest, NS_PER_HOUR)
    minutes, rest = divmod(rest, NS_PER_MINUTE)
    parts = [f"{hours}h" if hours else "", f"{minutes}m" if minutes else ""]
    parts.append(f"{_decimal(rest, NS_PER_S)}s" if rest else "")
    return sign + "".join(parts)


def seconds(ns: int) -> float:
    """Return *ns* as seconds, correctly rounded."""
    return ns / NS_PER_S


def nanoseconds(value_s: float) -> int:
    """
    Return the nanoseconds of *value_s* such that ``seconds(nanoseconds(x)) == x`` for every x that `seconds` made.

    Goes by the shortest decimal that means the same float, which has at most nine decimals then; multiplying
    the float instead would be off by some nanoseconds above 2^53.
    """
    return int((Decimal(repr(value_s)) * NS_PER_S).to_integral_value())


def _decimal(value: int, unit: int) -> str:
    whole, part = divmod(value, unit)
    if not part:
        return str(whole)
    return f"{whole}.{str(part).rjust(len(str(unit)) - 1, '0').rstrip('0')}"


def _leading(text: str, accepted: frozenset[str]) -> str:
    end = 0
    while end < len(text) and text[end] in accepted:
        end += 1
    return text[:end]


def _unit_name(text: str) -> str:
    end = 0
    while end < len(text) and text[end] not in _NUMBER:
        end += 1
    return text[:end]


def _fraction_ns(digits: str, unit_ns: int) -> int:
    """Value of the digits after the point; those beyond int64 count for nothing, as in Go."""
    value, scale = 0, 1.0
    for digit in digits:
        following = value * 10 + int(digit)
        if value > NS_MAX // 10 or following > 2**63:
            break
        value, scale = following, scale * 10
    return int(float(value) * (float(unit_ns) / scale)) if value else 0


def _invalid(text: str) -> DurationError:
    return DurationError(f"time: invalid duration {_quote(text)}")


def _quote(text: str) -> str:
    """Quote as Go's time package does: printable ASCII as is, the bytes of everything else in hexadecimal."""
    out: list[str] = []
    for char in text:
        if char in ('"', "\\"):
            out.append("\\" + char)
        elif char < " " or char >= "\x80":
            out.extend(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogatepass"))
        else:
            out.append(char)
    return f'"{"".join(out)}"'
