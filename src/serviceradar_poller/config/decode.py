"""
Check the JSON types and plain ranges of a document against the schema, and collect everything that is wrong.

Strict as Go's decoder: a number is no string, ``1.0`` is no integer, and null leaves a key as if it were absent.
"""

from __future__ import annotations

import difflib
import enum
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from serviceradar_poller.config.document import Document, member, render_path
from serviceradar_poller.config.durations import (
    NS_PER_S,
    DurationError,
    duration_from_json,
    format_duration,
)
from serviceradar_poller.config.schema import INT64_MAX, Field, Kind, Path
from serviceradar_poller.errors import ConfigError, ConfigProblem
from serviceradar_poller.events.polling import ConfigWarning

#: What is quoted of a wrong value, and of a text that quotes one.
FOUND_CHARS_MAX = 60
TEXT_CHARS_MAX = 200
#: What stands for a value that may be a secret.
HIDDEN = "***"

_SECRET_WORDS = ("password", "passwd", "passphrase", "token", "secret", "credential", "authorization", "key")


class _Invalid(enum.Enum):
    INVALID = "invalid"


_INVALID = _Invalid.INVALID
_Decoded: TypeAlias = "str | bool | int | float | Node | tuple[Node, ...] | dict[str, Node] | dict[str, str]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """
    An object of the document whose members have their schema's types; durations are nanoseconds.

    A member that is absent, null or wrong gives the default; `has` and `wrong` tell them apart.
    """

    path: Path
    values: Mapping[str, _Decoded]
    invalid: frozenset[str] = frozenset()

    def string(self, key: str, default: str = "") -> str:
        """Return the string under *key*; an empty one counts as absent."""
        value = self.values.get(key)
        return value if isinstance(value, str) and value else default

    def boolean(self, key: str, *, default: bool) -> bool:
        """Return the flag under *key*."""
        value = self.values.get(key)
        return value if isinstance(value, bool) else default

    def integer(self, key: str, default: int) -> int:
        """Return the integer, or the nanoseconds, under *key*."""
        value = self.values.get(key)
        return value if isinstance(value, int) else default

    def number(self, key: str, default: float) -> float:
        """Return the number under *key*."""
        value = self.values.get(key)
        return float(value) if isinstance(value, int | float) else default

    def node(self, key: str) -> Node:
        """Return the object under *key*, an empty one when there is none."""
        value = self.values.get(key)
        return value if isinstance(value, Node) else Node(path=(*self.path, key), values={})

    def nodes(self, key: str) -> tuple[Node, ...]:
        """Return the usable objects in the list under *key*."""
        value = self.values.get(key)
        return value if isinstance(value, tuple) else ()

    def named_nodes(self, key: str) -> dict[str, Node]:
        """Return the objects in the map under *key* by name."""
        value = self.values.get(key)
        return {n: v for n, v in value.items() if isinstance(v, Node)} if isinstance(value, dict) else {}

    def named_strings(self, key: str) -> dict[str, str]:
        """Return the strings in the map under *key* by name."""
        value = self.values.get(key)
        return {n: v for n, v in value.items() if isinstance(v, str)} if isinstance(value, dict) else {}

    def has(self, key: str) -> bool:
        """Whether a usable value stands under *key*."""
        return key in self.values

    def wrong(self, key: str) -> bool:
        """Whether *key* holds something that was refused."""
        return key in self.invalid


class Findings:
    """
    Collects what is wrong and what is odd, each with the source it came from.

    Neither list has a bound of its own: both are bounded by the document's size.
    """

    def __init__(self, document: Document) -> None:
        self._document = document
        self._required: list[ConfigProblem] = []
        self._problems: list[ConfigProblem] = []
        self._agents: dict[str, list[ConfigProblem]] = {}
        self.warnings: list[ConfigWarning] = list(document.warnings)
        self.fatal = False

    def require(self, key: str, *, found: str, accepted: str, text: str) -> None:
        """Report that a key nothing works without is missing; such problems come first, in order of the calls."""
        self.fatal = True
        self._required.append(self._problem((key,), found, accepted, text))

    def problem(self, path: Path, *, found: str, accepted: str, text: str = "") -> None:
        """Report what makes the agent that *path* lies in unusable, or else the whole configuration."""
        problem = self._problem(path, found, accepted, text)
        self._problems.append(problem)
        if len(path) > 1 and path[0] == "agents":
            self._agents.setdefault(str(path[1]), []).append(problem)
        else:
            self.fatal = True

    def warn(self, path: Path, text: str) -> None:
        """Report what is legal and probably not meant."""
        self.warnings.append(ConfigWarning(source=self._document.origin_of(path), path=render_path(path), text=text))

    def of_agent(self, name: str) -> tuple[ConfigProblem, ...]:
        """Return what is wrong with one agent."""
        return tuple(self._agents.get(name, ()))

    def raise_if_fatal(self) -> None:
        """
        Refuse the configuration when a problem lies outside every agent.

        Raises:
            ConfigError: With every problem, those of agents too.
        """
        if self.fatal:
            raise ConfigError((*self._required, *self._problems))

    def _problem(self, path: Path, found: str, accepted: str, text: str) -> ConfigProblem:
        return ConfigProblem(
            source=self._document.origin_of(path),
            path=render_path(path),
            found=found,
            accepted=accepted,
            text=shorten(text, TEXT_CHARS_MAX),
        )


def decode(document: Document, schema: Field, findings: Findings) -> Node:
    """Return what the document says in the schema's types; what it says wrongly goes to *findings*."""
    if not isinstance(document.root, dict):
        found = _found(document.root, secret=True)
        findings.problem((), found=found, accepted="a JSON object")
        return Node(path=(), values={})
    return _Decoder(findings).members(document.root, schema, ())


def describe(value: object, path: Path) -> str:
    """Return *value* as an operator may read it: shortened, and hidden where *path* looks like a secret's."""
    return _found(value, secret=is_secret(path))


def is_secret(path: Path) -> bool:
    """Whether what stands at *path* may be a secret, by the names of the keys; file names are none."""
    if path[:3] == ("logging", "otel", "headers"):
        return True
    chosen_name = 1 if path[:1] == ("agents",) else -1
    for index, part in enumerate(path):
        if index == chosen_name or not isinstance(part, str):
            continue
        word = part.lower()
        if not word.endswith("_file") and any(secret in word for secret in _SECRET_WORDS):
            return True
    return False


def shorten(text: str, chars_max: int) -> str:
    """Return *text*, cut to *chars_max* characters with an ellipsis."""
    return text if len(text) <= chars_max else text[: chars_max - 1] + "…"


class _Decoder:
    def __init__(self, findings: Findings) -> None:
        self._findings = findings

    def members(self, value: Mapping[str, object], schema: Field, path: Path) -> Node:
        fields = {field.name: field for field in schema.fields}
        given: dict[str, object] = {}
        for key, item in value.items():
            place = member(path, key)
            name = str(place[-1])
            if name in fields:
                given[name] = item
            elif schema.own:
                close = difflib.get_close_matches(name[:FOUND_CHARS_MAX], fields, n=1)
                hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(fields)}"
                self._findings.warn((*path, shorten(name, FOUND_CHARS_MAX)), f"unknown key, ignored: {hint}")
        values: dict[str, _Decoded] = {}
        invalid: set[str] = set()
        for name, field in fields.items():
            if name not in given:
                continue
            decoded = self._value(given[name], field, (*path, name))
            if decoded is _INVALID:
                invalid.add(name)
            elif decoded is not None:
                values[name] = decoded
        return Node(path=path, values=values, invalid=frozenset(invalid))

    def _value(self, value: object, field: Field, path: Path) -> _Decoded | _Invalid | None:
        if value is None and (field.kind is not Kind.DURATION or field.nullable):
            return None
        match field.kind:
            case Kind.DURATION:
                return self._duration(value, field, path)
            case Kind.STRING if isinstance(value, str):
                return value
            case Kind.BOOL if isinstance(value, bool):
                return value
            case Kind.INT if isinstance(value, int) and not isinstance(value, bool):
                return self._ranged(value, field, path)
            case Kind.NUMBER if isinstance(value, int | float) and not isinstance(value, bool):
                return self._number(value, field, path)
            case Kind.OBJECT if isinstance(value, dict):
                return self.members(value, field, path)
            case Kind.MAP if isinstance(value, dict):
                return self._map(value, field, path)
            case Kind.LIST if isinstance(value, list):
                return self._list(value, field, path)
            case _:
                return self._refuse(value, path, field.kind.value)

    def _duration(self, value: object, field: Field, path: Path) -> int | _Invalid:
        try:
            ns = duration_from_json(value)
        except DurationError as error:
            text = "invalid duration" if is_secret(path) else str(error)
            return self._refuse(value, path, field.kind.value, text)
        if not isinstance(value, str) and 0 < ns < NS_PER_S:
            text = f"a number counts nanoseconds: this is {format_duration(ns)}; write it as a string with a unit"
            self._findings.warn(path, text)
        if field.minimum is not None and ns < field.minimum:
            accepted = f"{field.kind.value}, at least {format_duration(int(field.minimum))}"
            return self._refuse(value, path, accepted)
        return ns

    def _number(self, value: float, field: Field, path: Path) -> float | _Invalid:
        if isinstance(value, int) and abs(value) > INT64_MAX:
            return self._refuse(value, path, _range(field))
        if not math.isfinite(value):
            return self._refuse(value, path, _range(field))
        return self._ranged(float(value), field, path)

    def _ranged(self, value: float, field: Field, path: Path) -> float | _Invalid:
        low, high = field.minimum, field.maximum
        if (low is not None and value < low) or (high is not None and value > high):
            return self._refuse(value, path, _range(field))
        return value

    def _map(self, value: Mapping[str, object], field: Field, path: Path) -> _Decoded:
        element = field.element
        assert element is not None
        if element.kind is Kind.OBJECT:
            return {name: self._named(item, element, (*path, name)) for name, item in value.items()}
        strings: dict[str, str] = {}
        for name, item in value.items():
            decoded = self._value("" if item is None else item, element, (*path, name))
            if isinstance(decoded, str):
                strings[name] = decoded
        return strings

    def _named(self, value: object, element: Field, path: Path) -> Node:
        """Every name stands for something: what is no object leaves an empty one whose every member is wrong."""
        decoded = self._value({} if value is None else value, element, path)
        return decoded if isinstance(decoded, Node) else _unusable(element, path)

    def _list(self, value: list[object], field: Field, path: Path) -> _Decoded:
        assert field.element is not None
        nodes: list[Node] = []
        for index, item in enumerate(value):
            decoded = self._value({} if item is None else item, field.element, (*path, index))
            if isinstance(decoded, Node):
                nodes.append(decoded)
        return tuple(nodes)

    def _refuse(self, value: object, path: Path, accepted: str, text: str = "") -> _Invalid:
        self._findings.problem(path, found=describe(value, path), accepted=accepted, text=text)
        return _INVALID


def _unusable(element: Field, path: Path) -> Node:
    return Node(path=path, values={}, invalid=frozenset(field.name for field in element.fields))


def _range(field: Field) -> str:
    low, high = field.minimum, field.maximum
    if low is None or high is None:
        return field.kind.value
    return f"{field.kind.value} from {low} to {high}"


def _found(value: object, *, secret: bool) -> str:
    match value:
        case None:
            return "null"
        case dict():
            return "an object"
        case list():
            return "a list"
        case _ if secret:
            return HIDDEN
        case bool():
            return "true" if value else "false"
        case str():
            return shorten(json.dumps(value, ensure_ascii=False), FOUND_CHARS_MAX)
        case _:
            return shorten(str(value), FOUND_CHARS_MAX)
