"""
Read JSON as core's decoder does: strict in grammar, forgiving in text, exact in integers.

Core is written in Go, whose ``encoding/json`` takes two things that msgspec refuses: bytes that are not UTF-8
inside strings, and escapes of half a surrogate pair. Both read as U+FFFD there, one for each bad byte or
escape. Messages nearly always need neither, so the repair runs only after a plain decode has failed.

Nesting is bounded by msgspec's recursion guard, which is the interpreter's (about a thousand levels, less
what the caller's stack holds); deeper documents count as unreadable here, never as a crash.
"""

from __future__ import annotations

import re
from decimal import Decimal

import msgspec

#: Whole doubles below this print as integers, above with an exponent (Go's and ECMAScript's rule for
#: doubles).
EXPONENT_FROM = 1e21
#: Every whole number below has a double of its own, so nothing was lost in reading it as one.
_DOUBLE_EXACT_BELOW = 2.0**53

_LONE_BYTE = re.compile("[\udc80-\udcff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
# Every escape is consumed as a unit, so that an escaped backslash never starts one; whole pairs come first.
_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)


class UnreadableJson(ValueError):  # noqa: N818 - says what the text is, not what went wrong here
    """The text is not JSON, is nested too deeply, or holds a number that no double can hold."""


def decode(message: bytes) -> object:
    """
    Return what *message* says, whole doubles as int, integers exact, the last of equal keys winning.

    Raises:
        UnreadableJson: It says nothing that core could read.
    """
    try:
        return _VALUES.decode(message)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pass  # most likely not JSON at all; the repaired text decides
    try:
        return _VALUES.decode(_repaired(message))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise UnreadableJson(str(error)) from error


def verbatim(message: bytes) -> bytes | None:
    """
    Return *message* without outer white space as UTF-8 that may be spliced into JSON, or None if it is not
    JSON.

    Nothing is built: the grammar is checked and the bytes are kept, numbers and key order included.
    """
    try:
        raw = _SPANS.decode(message)
        message.isascii() or str(message, "utf-8")
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pass
    else:
        return bytes(raw)
    try:
        return bytes(_SPANS.decode(_repaired(message)))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def text_of(message: bytes) -> str:
    """Return *message* as text, U+FFFD for each byte that is not UTF-8 (one a byte, as Go counts)."""
    try:
        return str(message, "utf-8")
    except UnicodeDecodeError:
        return _LONE_BYTE.sub("\ufffd", str(message, "utf-8", "surrogateescape"))


def encodable(text: str) -> str:
    """Return *text* with U+FFFD for each half of a surrogate pair, which UTF-8 can't carry."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def _repaired(message: bytes) -> bytes:
    text = text_of(message)
    if "\\u" in text:
        text = _ESCAPE.sub(lambda match: "\\ufffd" if match[1] else match[0], text)
    return text.encode()


def _number(literal: str) -> int | float:
    """Return a number with point or exponent; if it is whole, so that core's integer fields take it."""
    value = float(literal)
    if not value.is_integer():
        if value - value != 0.0:  # infinite: Go refuses it too
            raise ValueError("number out of range")
        return value
    size = abs(value)
    if size < _DOUBLE_EXACT_BELOW:
        return int(value)
    if size >= EXPONENT_FROM:
        return value
    exact = Decimal(literal)
    whole = int(exact)
    return whole if whole == exact else int(value)


_VALUES = msgspec.json.Decoder(float_hook=_number)
_SPANS = msgspec.json.Decoder(msgspec.Raw)
