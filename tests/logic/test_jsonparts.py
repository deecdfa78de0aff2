from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serviceradar_poller.logic.jsonparts import (
    DenseJson,
    array_items,
    inside,
    joined,
    may_hold_whole_doubles,
    object_members,
    sound,
    with_integers,
)
from serviceradar_poller.logic.jsontext import UnreadableJson, decode

numbers = st.floats(allow_nan=False, allow_infinity=False)


def places(number: str) -> list[bytes]:
    """A number wherever JSON may hold one."""
    return [
        f"[{number}]".encode(),
        f"[ {number} ]".encode(),
        f"[true,{number},false]".encode(),
        f'{{"e":{number}}}'.encode(),
        f'{{"a" : {number} , "b":"x"}}'.encode(),
        f'[{{"a":[[0,{number}\n]]}}]'.encode(),
    ]


@given(numbers, st.sampled_from(["{!r}", "{:e}", "{:E}", "{:.1f}", "{:.3f}"]))
@example(1e21, "{!r}")
@example(-0.0, "{!r}")
def test_no_whole_double_is_missed(number: float, form: str) -> None:
    """A number that has to be written as an integer is found wherever and however it is written."""
    literal = form.format(number)
    for document in places(literal):
        if float(literal).is_integer() and not literal.lstrip("-").isdigit():
            assert may_hold_whole_doubles(document)


@pytest.mark.parametrize(
    "document",
    [
        b'[{"ip":"10.0.0.0","mac":"0e:1e:2e:e3:00:0e","at":"2025-01-01T00:00:00.000Z","up":true,"down":false}]',
        b'[{"id":"3e5-4e10","n":null,"port":10,"load":0.5}]',
        b'{"text":"the 3 words, one here","list":[1,22,-3,0.05]}',
    ],
)
def test_records_without_whole_doubles_are_left_alone(document: bytes) -> None:
    """Addresses, times, words and true fractions don't cost a second look."""
    assert not may_hold_whole_doubles(document)


@given(st.lists(numbers | st.integers() | st.booleans() | st.text() | st.lists(numbers)))
def test_integers(items: list[Any]) -> None:
    """Rewriting keeps every value and leaves no whole double below 1e21 with a point or exponent."""
    parts = array_items(json.dumps(items).encode())
    again = json.loads(joined(map(with_integers, parts)).join((b"[", b"]")))
    assert again == decode(json.dumps(items).encode())
    flat = [each for item in again for each in (item if isinstance(item, list) else [item])]
    assert not [each for each in flat if isinstance(each, float) and each.is_integer() and abs(each) < 1e21]


@given(st.lists(st.integers(), min_size=1), st.integers(1, 5))
def test_joined_in_groups(items: list[int], group: int) -> None:
    """The size of the groups in which parts are copied does not show."""
    parts = [msgspec.Raw(json.dumps(item).encode()) for item in items]
    assert json.loads(b"[" + joined(parts, group=group) + b"]") == items


def test_inside() -> None:
    """What stands between an array's brackets comes with its white space."""
    assert inside(b" [ [1] , 2 ]\n") == b" [1] , 2 "


@pytest.mark.parametrize("text", [b"", b"{}", b"[1", b"nope", b"[" * 50_000])
def test_no_array(text: bytes) -> None:
    """Anything but an array is unreadable as one."""
    with pytest.raises(UnreadableJson):
        array_items(text)


@pytest.mark.parametrize("text", [b"", b"[]", b'{"a":1', b"{1:2}"])
def test_no_object(text: bytes) -> None:
    """Anything but an object is unreadable as one."""
    with pytest.raises(UnreadableJson):
        object_members(text)


@given(st.binary())
def test_sound_is_json_or_unreadable(noise: bytes) -> None:
    """Any bytes become strict UTF-8 JSON or are refused."""
    for text in (noise, b'["' + noise + b'"]'):
        try:
            document = sound(text)
        except UnreadableJson:
            continue
        json.loads(document.decode())


@pytest.mark.slow
def test_density() -> None:
    """Large documents of nothing but tiny values are refused; large documents of records are not."""
    with pytest.raises(DenseJson):
        array_items(b"[" + b"0," * 1_100_000 + b"0]")
    assert len(array_items(b"[" + b'{"key":"value"},' * 1_100_000 + b"0]")) == 1_100_001
