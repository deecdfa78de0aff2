"""Durations against Go's own answers and against themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serviceradar_poller.config.durations import (
    NS_MAX,
    NS_MIN,
    DurationError,
    duration_from_json,
    format_duration,
    nanoseconds,
    parse_duration,
    seconds,
)

VECTORS: list[dict[str, Any]] = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "data" / "duration-vectors.jsonl").read_text("utf-8").splitlines()
]
ALL_NS = st.integers(NS_MIN, NS_MAX) | st.integers(-(10**6), 10**6)


def test_vectors_are_there() -> None:
    """Go's answers are really compared: the file holds some right and some wrong durations."""
    assert sum("ns" in vector["expect"] for vector in VECTORS) >= 10
    assert sum("error" in vector["expect"] for vector in VECTORS) >= 5


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: repr(vector["text"]))
def test_gives_what_go_gives(vector: dict[str, Any]) -> None:
    """Each text gives Go's nanoseconds or Go's error."""
    expect = vector["expect"]
    if "error" in expect:
        with pytest.raises(DurationError) as caught:
            parse_duration(vector["text"])
        assert str(caught.value) == expect["error"]
    else:
        assert parse_duration(vector["text"]) == expect["ns"]


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1µs", 1000),
        ("1μs", 1000),
        ("-0", 0),
        ("+0", 0),
        ("1.s", 10**9),
        ("0.000000001s", 1),
        ("0.9999999999s", 999_999_999),
        ("1h1h", 2 * 3600 * 10**9),
        ("00000000000000000000000000005s", 5 * 10**9),
        ("9223372036854775807ns", NS_MAX),
        ("-9223372036854775808ns", NS_MIN),
        ("0.100000000000000000000h", 360 * 10**9),
        ("0.830103483285477580700h", 2988372539827),
    ],
)
def test_accepts(text: str, ns: int) -> None:
    """Both micro signs, signs before zero, bare points, leading zeros and the ends of int64 are fine."""
    assert parse_duration(text) == ns


@pytest.mark.parametrize(
    "text",
    [
        "9223372036854775808ns",
        "-9223372036854775809ns",
        "9223372037s",
        "2562048h",
        "1h9223372036854775807ns",
        "9" * 900 + "s",
        "1s" * 100_000,
        ".",
        "-.s",
        "+",
        " 1s",
        "１s",
        "1..5s",
    ],
)
def test_refuses(text: str) -> None:
    """What overflows int64, has no digit, or holds what isn't ASCII where a digit belongs is refused."""
    with pytest.raises(DurationError):
        parse_duration(text)


def test_error_quotes_odd_characters_as_go_does() -> None:
    """An error is one line of ASCII: bytes of other characters are hexadecimal, quotes have a backslash."""
    with pytest.raises(DurationError) as caught:
        parse_duration('1"\né')
    assert str(caught.value) == r'time: unknown unit "\"\x0a\xc3\xa9" in duration "1\"\x0a\xc3\xa9"'


@pytest.mark.parametrize(
    ("value", "ns"), [(30, 30), (0, 0), (-5, -5), (1.5e9, 1_500_000_000), (1.9, 1), ("30s", 30 * 10**9)]
)
def test_json_number_counts_nanoseconds(value: object, ns: int) -> None:
    """A JSON number is nanoseconds, cut to a whole one; a string goes by the grammar."""
    assert duration_from_json(value) == ns


@pytest.mark.parametrize("value", [None, True, False, [], {}, float("inf"), float("nan"), 2**63, -1e300])
def test_json_of_other_types_is_invalid(value: object) -> None:
    """null, booleans, containers and numbers beyond int64 have Go's short error."""
    with pytest.raises(DurationError, match=r"^invalid duration$"):
        duration_from_json(value)


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0s"),
        (30 * 10**9, "30s"),
        (5400 * 10**9, "1h30m"),
        (300 * 10**9, "5m"),
        (3601 * 10**9, "1h1s"),
        (1_500_000_000, "1.5s"),
        (250_000_000, "250ms"),
        (1_250, "1.25µs"),
        (7, "7ns"),
        (-90 * 10**9, "-1m30s"),
    ],
)
def test_formats_readably(ns: int, text: str) -> None:
    """Units that are zero are left out."""
    assert format_duration(ns) == text


@given(ALL_NS)
def test_format_is_read_back(ns: int) -> None:
    """Every duration that Go can hold is read back from its text."""
    assert parse_duration(format_duration(ns)) == ns


@given(ALL_NS)
def test_seconds_survive_nanoseconds(ns: int) -> None:
    """Seconds as a float give nanoseconds that give the same float."""
    value_s = seconds(ns)
    assert seconds(nanoseconds(value_s)) == value_s


@given(st.text(alphabet="0123456789.+-nuµmsh d") | st.text())
def test_any_text_gives_a_duration_or_the_error(text: str) -> None:
    """Nothing but DurationError leaves, and what is accepted lies within int64."""
    ns, said = 0, "time: "
    try:
        ns = parse_duration(text)
    except DurationError as error:
        said = str(error)
    assert NS_MIN <= ns <= NS_MAX
    assert said.startswith("time: ")
