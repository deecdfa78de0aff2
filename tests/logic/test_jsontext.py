from __future__ import annotations

import json
import math
import re
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serviceradar_poller.logic.jsontext import UnreadableJson, decode, encodable, text_of, verbatim

#: The largest whole number that no rounding takes to 1e21, where exponents begin.
WHOLE_MAX = 10**21 - 2**17

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**80), 2**80), st.floats(allow_nan=False, allow_infinity=False), st.text()
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
)
# Pieces of which documents are made, well-formed and not.
pieces = st.sampled_from(
    [
        b'{"a":', b"}", b"[", b"]", b",", b'"', b'"x"', b"1", b"-", b"0", b".5", b"e5", b"E+2", b"null", b"true", b" ",
        b"\n", b"\x00", b"\xff", b"\xe2\x82", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\\ud800", b"\\udc00", b"\\u0041",
        b"\\\\", b"\\n", b"\\x", b"NaN", b"Infinity", b"9007199254740993", b"1e400", "é".encode(),
    ]
)  # fmt: skip
documents = st.one_of(
    st.binary(max_size=40),
    st.lists(pieces, max_size=10).map(b"".join),
    st.lists(pieces, max_size=4).map(lambda parts: b'{"a":"' + b"".join(parts) + b'"}'),
    values.map(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")),
)


def reference(message: bytes) -> Any:
    """Read *message* with the standard library, as Go would; ValueError where Go refuses."""
    text = "".join(
        "\ufffd" if "\udc80" <= char <= "\udcff" else char for char in message.decode("utf-8", "surrogateescape")
    )

    def refuse(name: str) -> None:
        raise ValueError(name)

    def number(literal: str) -> int | float:
        value = float(literal)
        if math.isinf(value):
            raise ValueError(literal)
        if value != int(value) or abs(value) >= 1e21:
            return value
        exact = Fraction(literal)
        return exact.numerator if exact.denominator == 1 else int(value)

    def mended(value: Any) -> Any:
        if isinstance(value, str):
            return re.sub("[\ud800-\udfff]", "\ufffd", value)
        if isinstance(value, list):
            return [mended(item) for item in value]
        if isinstance(value, dict):
            return {mended(key): mended(item) for key, item in value.items()}
        return value

    return mended(json.loads(text, parse_constant=refuse, parse_float=number))


def exactly(value: object) -> str:
    """Return a form in which 1, 1.0 and True differ, and nothing else does."""
    return repr(value)


@given(documents)
@example(b"\xef\xbb\xbf{}")
@example(b'{"a":"\\\\ud800"}')
@example(b'{"a":"\\\\\\ud800\\udc00\\udc00"}')
@example(b'"\\ud800\\ud800\\udc00"')
@example(b'{"\\ud800":1,"\\udfff":2}')
@example(b"[1E5,10.0,1e300,-0.0,1e21,1e20,9007199254740993.0,9007199254740993.5,1e-400]")
def test_decode_reads_what_the_standard_library_reads(message: bytes) -> None:
    """The same values, types and refusals as the standard library's strict reading of the mended text."""
    try:
        expected = reference(message)
    except ValueError:
        with pytest.raises(UnreadableJson):
            decode(message)
    else:
        assert exactly(decode(message)) == exactly(expected)


@given(documents)
@example(b'"\xff"')
@example(b'["\\ud800"]')
def test_verbatim_keeps_exactly_what_is_json(message: bytes) -> None:
    """What comes back is UTF-8, says the same as the message, and comes back just for JSON."""
    body = verbatim(message)
    try:
        expected = reference(re.sub(rb"1e400", b"1e300", message))
    except ValueError:
        assert body is None
    else:
        assert body is not None
        body.decode()
        assert exactly(reference(body.replace(b"1e400", b"1e300"))) == exactly(expected)


@given(values)
def test_verbatim_leaves_the_bytes_of_sound_json_alone(value: object) -> None:
    """Only outer white space goes."""
    message = json.dumps(value, indent=1, ensure_ascii=True).encode()
    assert verbatim(b"\r\n" + message + b"\t ") == message


@given(st.binary())
def test_text_counts_one_replacement_for_each_bad_byte(message: bytes) -> None:
    """Text is what UTF-8 says; every byte that is not of it becomes one U+FFFD, as Go counts."""
    text = text_of(message)
    bad = sum("\udc80" <= char <= "\udcff" for char in message.decode("utf-8", "surrogateescape"))
    good = message.decode("utf-8", "ignore")
    assert len(text) == len(good) + bad
    assert text.replace("\ufffd", "") == good.replace("\ufffd", "")


@given(st.text(st.characters(categories=["Cs", "Lu", "Ll", "Cc", "So"])))
def test_encodable_text_can_always_be_sent(text: str) -> None:
    """Half surrogate pairs go, everything else stays."""
    sent = encodable(text).encode().decode()
    assert len(sent) == len(text)
    assert all(a == b or (b == "\ufffd" and "\ud800" <= a <= "\udfff") for a, b in zip(text, sent, strict=True))


@given(st.integers(-(10**300), 10**300))
def test_integers_stay_exact(number: int) -> None:
    """An integer of any size keeps every digit."""
    assert decode(b"%d" % number) == number


@given(st.integers(-WHOLE_MAX, WHOLE_MAX), st.integers(0, 5))
def test_whole_numbers_stay_exact_however_they_are_written(number: int, zeros: int) -> None:
    """A whole number below 1e21 is the same integer with a fraction of zeros, or with an exponent."""
    forms = (b"%d.%s" % (number, b"0" * (zeros + 1)), b"%de0" % number, b"%de-%d" % (number * 10**zeros, zeros))
    value = decode(b"[" + b",".join(forms) + b"]")
    assert exactly(value) == exactly([number] * 3)


@pytest.mark.parametrize("depth", [2_000, 200_000])
@pytest.mark.parametrize("brackets", [(b"[", b"]"), (b'{"a":', b"}")])
def test_deep_nesting_is_refused_and_does_not_crash(depth: int, brackets: tuple[bytes, bytes]) -> None:
    """Documents deeper than the guard are unreadable, with the reason; none crashes."""
    message = brackets[0] * depth + b"1" + brackets[1] * depth
    assert verbatim(message) is None
    with pytest.raises(UnreadableJson) as caught:
        decode(message)
    assert isinstance(caught.value.__cause__, RecursionError)


def test_numbers_that_no_double_holds_are_refused() -> None:
    """Core could not read them either."""
    for message in (b"1e309", b"[-1e999]", b"9" * 5000):
        with pytest.raises(UnreadableJson):
            decode(message)
