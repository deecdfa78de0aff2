"""
A JSON document as a tree of plain values that knows where each of them came from, and how two are merged.

Keys are matched without regard to case, except where they are names that the operator chose (agents, headers).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from serviceradar_poller.config.schema import EXACT_KEY_PATHS, Path, fold
from serviceradar_poller.errors import ConfigError, ConfigProblem
from serviceradar_poller.events.polling import ConfigWarning

#: Deeper than any sensible document, shallower than the interpreter's stack.
NESTING_MAX = 100
#: Python turns text into an integer in quadratic time; no integer of a configuration has so many digits.
INTEGER_DIGITS_MAX = 400

_BOM = "\ufeff"
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]+")
_STRING_OR_CONSTANT = re.compile(r'"(?:[^"\\]|\\.)*"|(NaN|-?Infinity)', re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """
    A document, read and perhaps merged from several.

    Attributes:
        root: dict, list, str, int, float, bool or None; no two keys of a dict mean the same.
        source: The file or variable of everything that ``origins`` doesn't name.
        origins: Path of a value that another source gave, to that source. Keys in it are folded.
        warnings: What was odd in the text itself.
    """

    root: object
    source: str
    origins: Mapping[Path, str] = field(default_factory=dict)
    warnings: tuple[ConfigWarning, ...] = ()

    def origin_of(self, path: Path) -> str:
        """Return the file or variable that gave the value at *path*."""
        for size in range(len(path), 0, -1):
            source = self.origins.get(path[:size])
            if source is not None:
                return source
        return self.source


class _Object(list[tuple[str, object]]):
    """The members of a JSON object in the order of the text, repetitions included."""


def read_json(data: bytes | str, source: str, at: Path = ()) -> Document:
    """
    Return the document that *data* holds.

    A byte order mark is skipped; bytes that aren't UTF-8 become U+FFFD with a warning, as Go reads them.

    Args:
        at: Where in the configuration the text belongs, when it is a part of one.
    Raises:
        ConfigError: One problem, with line and column: *data* is not JSON.
    """
    warnings: list[ConfigWarning] = []
    if isinstance(data, bytes):
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            text = data.decode("utf-8", "replace")
            warnings.append(
                ConfigWarning(
                    source=source, path="", text=f"line {line} is not UTF-8: the character is replaced by U+FFFD"
                )
            )
    else:
        text = data
    text = text.removeprefix(_BOM)
    if not text.strip():
        raise _not_json(source, "an empty text")
    try:
        parsed: object = json.loads(text, object_pairs_hook=_Object, parse_int=_integer, parse_constant=str)
        _refuse_constants(text)
        root = _Reader(source, warnings).value(parsed, at, 0)
    except json.JSONDecodeError as error:
        found = f"a syntax error at line {error.lineno}, column {error.colno} ({error.msg})"
        raise _not_json(source, found) from error
    except (_TooDeepError, RecursionError) as error:
        raise _not_json(source, f"more than {NESTING_MAX} levels of nesting") from error
    return Document(root=root, source=source, warnings=tuple(warnings))


def merge(base: Document, overlay: Document) -> Document:
    """Return *base* with *overlay* put over it: objects are merged key by key, everything else is replaced."""
    origins = dict(base.origins)
    root = _Merger(base, overlay, origins).merge(base.root, overlay.root, ())
    return Document(root=root, source=base.source, origins=origins, warnings=base.warnings + overlay.warnings)


def render_path(path: Path) -> str:
    """Return *path* as operators write it: ``agents.edge-01.checks[2].port``, odd names quoted: ``agents["a.b"]``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif _PLAIN_NAME.fullmatch(part):
            text += f".{part}" if text else part
        else:
            text += f"[{json.dumps(part)}]"
    return text


def member(path: Path, key: str) -> Path:
    """Return the path of *key* in the object at *path*, in the spelling that all sources share."""
    return (*path, key if path in EXACT_KEY_PATHS else fold(key))


def clean_text(value: str) -> str:
    """Return *value* with U+FFFD for halves of surrogate pairs, which JSON can spell and UTF-8 can't, as in Go."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return value


class _TooDeepError(Exception):
    pass


class _Reader:
    def __init__(self, source: str, warnings: list[ConfigWarning]) -> None:
        self._source = source
        self._warnings = warnings

    def value(self, value: object, path: Path, depth: int) -> object:
        if depth > NESTING_MAX:
            raise _TooDeepError
        if isinstance(value, _Object):
            return self._object(value, path, depth)
        if isinstance(value, list):
            return [self.value(item, (*path, index), depth + 1) for index, item in enumerate(value)]
        if isinstance(value, str):
            return clean_text(value)
        return value

    def _object(self, members: _Object, path: Path, depth: int) -> dict[str, object]:
        by_place: dict[Path, tuple[str, object]] = {}
        for key, value in members:
            key = clean_text(key)
            place = member(path, key)
            earlier = by_place.pop(place, None)
            if earlier is not None:
                spelled = "" if earlier[0] == key else f" (also written {json.dumps(earlier[0])})"
                self._warnings.append(
                    ConfigWarning(
                        source=self._source,
                        path=render_path(place),
                        text=f"the key stands more than once{spelled}: the last one counts",
                    )
                )
            by_place[place] = (key, value)
        return {key: self.value(value, place, depth + 1) for place, (key, value) in by_place.items()}


class _Merger:
    def __init__(self, base: Document, overlay: Document, origins: dict[Path, str]) -> None:
        self._base = base
        self._overlay = overlay
        self._origins = origins

    def merge(self, base: object, overlay: object, path: Path) -> object:
        if not isinstance(base, dict) or not isinstance(overlay, dict):
            self._take(path)
            return overlay
        merged = {member(path, key): (key, value) for key, value in base.items()}
        for key, value in overlay.items():
            place = member(path, key)
            if place in merged:
                kept, before = merged[place]
                merged[place] = (kept, self.merge(before, value, place))
            else:
                merged[place] = (key, value)
                self._take(place)
        return dict(merged.values())

    def _take(self, path: Path) -> None:
        """Record that everything at *path* is the overlay's now."""
        for known in self._base.origins:
            if known[: len(path)] == path:
                self._origins.pop(known, None)
        for known, source in self._overlay.origins.items():
            if known[: len(path)] == path:
                self._origins[known] = source
        self._origins[path] = self._overlay.origin_of(path)


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= INTEGER_DIGITS_MAX else float(digits)


def _refuse_constants(text: str) -> None:
    """Raise JSONDecodeError at the first NaN or Infinity, which Python reads and JSON doesn't know."""
    if "NaN" not in text and "Infinity" not in text:
        return
    for match in _STRING_OR_CONSTANT.finditer(text):
        if match.group(1) is not None:
            raise json.JSONDecodeError(f"{match.group(1)} is not JSON", text, match.start())


def _not_json(source: str, found: str) -> ConfigError:
    return ConfigError(
        (ConfigProblem(source=source, path="", found=found, accepted="a JSON object"),),
    )
