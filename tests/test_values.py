"""Quick values are what they would be without it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import pytest

from serviceradar_poller.values import quick


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Has every kind of field."""

    x: int
    y: int = 2
    names: list[str] = field(default_factory=list)


@quick
@dataclass(frozen=True, slots=True)
class Pair:
    """Takes its fields by position."""

    left: int
    right: int


def test_a_quick_value_behaves_as_a_dataclass() -> None:
    """It has its defaults, its fields, equality, hash and replace."""
    point = Point(x=1)
    assert (point.x, point.y, point.names) == (1, 2, [])
    assert point.names is not Point(x=1).names
    assert point == Point(x=1, y=2) != replace(point, y=3)
    assert [each.name for each in fields(point)] == ["x", "y", "names"]
    assert hash(Pair(1, 2)) == hash(Pair(1, 2))
    assert repr(Pair(1, 2)) == "Pair(left=1, right=2)"
    assert not hasattr(point, "__dict__")


def test_wrong_arguments_are_refused() -> None:
    """A field that is missing, unknown or given by position where it must not be is a TypeError."""
    for arguments, named in (((), {}), ((), {"x": 1, "z": 2}), ((1,), {})):
        with pytest.raises(TypeError):
            Point(*arguments, **named)  # type: ignore[arg-type]


def test_only_frozen_values_with_slots_are_taken() -> None:
    """Another dataclass would lose what it has."""
    with pytest.raises(AssertionError, match="not frozen"):

        @quick
        @dataclass(slots=True)
        class Loose:
            x: int
