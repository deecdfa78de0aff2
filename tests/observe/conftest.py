"""Events to feed to sinks: one fixed value and arbitrary ones of every type."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable

import pytest
from hypothesis import strategies as st

from serviceradar_poller.observe.own_events import LibraryLogged, ObservedEvent

EVENT_TYPES: tuple[type, ...] = typing.get_args(ObservedEvent)

_ANY_TEXT = st.text(st.characters(), max_size=60)
_BY_HINT: dict[object, st.SearchStrategy[typing.Any]] = {
    str: _ANY_TEXT,
    int: st.integers(),
    bool: st.booleans(),
    float: st.floats(),
    tuple[str, ...]: st.lists(_ANY_TEXT, max_size=3).map(tuple),
}


def arbitrary(kind: type) -> st.SearchStrategy[typing.Any]:
    hints = typing.get_type_hints(kind)
    fields = {field.name: _BY_HINT[hints[field.name]] for field in dataclasses.fields(kind)}
    if kind is LibraryLogged:
        fields["severity"] = st.sampled_from(["debug", "info", "warn", "error"])
    return st.builds(kind, **fields)


def plain(kind: type) -> typing.Any:
    values: dict[object, object] = {str: "x", int: 1, bool: True, float: 1.0, tuple[str, ...]: ("x",)}
    hints = typing.get_type_hints(kind)
    made = {field.name: values[hints[field.name]] for field in dataclasses.fields(kind)}
    if kind is LibraryLogged:
        made["severity"] = "warn"
    return kind(**made)


@pytest.fixture
def event_types() -> tuple[type, ...]:
    return EVENT_TYPES


@pytest.fixture
def plain_event() -> Callable[[type], typing.Any]:
    return plain


@pytest.fixture(scope="session")
def any_event() -> st.SearchStrategy[typing.Any]:
    return st.one_of([arbitrary(kind) for kind in EVENT_TYPES])
