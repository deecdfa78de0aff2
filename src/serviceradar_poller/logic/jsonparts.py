"""
Take a JSON array or object apart at its top level, as the bytes that came, building nothing below.

Core's integer fields refuse ``10.0`` and ``1e5``, so whole doubles are rewritten as integers by the rule of
``logic.jsontext``. They are rare, and looking at every number would cost more than all the rest: a document is first
searched for what such numbers leave behind, and only the parts where it is found are decoded.

    {"load": 10.0, "ip": "10.0.0.1"}     fraction of zeros, then the end of a value: found by one search
    {"bytes": 1.5e+30}                   exponent: letters but e, digits, signs and points deleted, it reads  x:e,

Both searches may find too much, inside strings; they never miss a whole double as any encoder writes it. (A literal
such as ``0.99999999999999999999``, whole only by rounding, stays as it is.)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import islice

import msgspec

from serviceradar_poller.logic.jsontext import UnreadableJson, decode, verbatim

#: A document may hold this many values however small they are; every part found costs about 56 bytes.
VALUES_MAX = 1_000_000
#: Above VALUES_MAX, its commas must be at least this many bytes apart on average: records always are.
BYTES_PER_VALUE_MIN = 8

WHITE = b" \t\r\n"

Raws = Sequence[msgspec.Raw]

_ARRAY = msgspec.json.Decoder(list[msgspec.Raw])
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encode = msgspec.json.Encoder().encode

_ZERO_FRACTION = re.compile(rb"\.0+[,}\]\s]").search
_WHOLE_CANDIDATE = re.compile(rb"[0-9](?:\.0+|(?:\.[0-9]+)?[eE][-+]?[0-9]+)(?:[,}\]\s]|$)").search
# What may stand after a number, and before one within an array, becomes a comma; a colon stays, or MAC addresses
# would look like numbers. The letters kept tell true, false and the commonest English words from a lone e.
_SKELETON = bytes(
    ord(",") if byte in b",[]}" + WHITE else ord(":") if byte == ord(":") else ord("e") if byte in b"eE" else ord("x")
    for byte in range(256)
)
_SKELETON_WITHOUT = b"0123456789+-._" + bytes(
    letter for letter in range(128) if bytes((letter,)).isalpha() and letter not in b"eEushio"
)


class DenseJson(ValueError):  # noqa: N818 - says what the text is
    """The document holds so many tiny values that taking it apart would cost many times its size."""


def sound(document: bytes) -> bytes:
    """
    Return *document* as JSON in UTF-8, itself where it may be; else repaired, as core's decoder would read it.

    Raises:
        UnreadableJson: It is not JSON.
    """
    try:
        document.isascii() or str(document, "utf-8")
        _SPAN.decode(document)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        body = verbatim(document)
        if body is None:
            raise UnreadableJson("not JSON") from None
        return body
    return document


def array_items(array: bytes) -> Raws:
    """
    Return the items of a JSON array in UTF-8.

    Raises:
        UnreadableJson: It is something else.
        DenseJson: It is too dense.
    """
    _check_density(array)
    try:
        return _ARRAY.decode(array)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise UnreadableJson(str(error)) from error


def object_members(text: bytes) -> dict[str, msgspec.Raw]:
    """
    Return the members of a JSON object in UTF-8, the last of equal keys.

    Raises:
        UnreadableJson: It is something else.
        DenseJson: It is too dense.
    """
    _check_density(text)
    try:
        return _OBJECT.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise UnreadableJson(str(error)) from error


def may_hold_whole_doubles(document: bytes) -> bool:
    """Whether *document* has to be looked at number by number."""
    if _ZERO_FRACTION(document) is not None:
        return True
    skeleton = document.translate(_SKELETON, _SKELETON_WITHOUT)
    return b":e," in skeleton or b",e," in skeleton


def with_integers(part: msgspec.Raw) -> msgspec.Raw:
    """
    Return *part* with whole doubles as integers; itself when it has none.

    Raises:
        UnreadableJson: It holds a number that no double can hold.
    """
    text = bytes(part)
    if _WHOLE_CANDIDATE(text) is None:
        return part
    return msgspec.Raw(_encode(decode(text)))


def joined(parts: Iterable[msgspec.Raw], *, group: int = 4096) -> bytes:
    """Return *parts* with commas between them; a *group* of them at a time is copied."""
    iterator = iter(parts)
    groups = []
    while batch := tuple(islice(iterator, group)):
        groups.append(b",".join(batch))
    return b",".join(groups)


def inside(array: bytes) -> bytes:
    """Return what stands between the brackets of an array that is known to be one."""
    return array[array.index(b"[") + 1 : array.rindex(b"]")]


def _check_density(document: bytes) -> None:
    if len(document) <= 2 * VALUES_MAX:
        return
    commas = document.count(b",")
    if commas > VALUES_MAX and commas * BYTES_PER_VALUE_MIN > len(document):
        raise DenseJson(f"{commas} values in {len(document)} bytes")


_SPAN = msgspec.json.Decoder(msgspec.Raw)
