"""
Where a configuration is read from: a file or the environment, and the pinned file that is merged last.

Nothing here knows what a setting means; types and ranges are checked on the merged document.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path as FilePath
from typing import cast

from serviceradar_poller.config.document import Document, clean_text, merge, read_json
from serviceradar_poller.config.schema import ROOT, Field, Kind, Path, scalar_paths
from serviceradar_poller.errors import ConfigError, ConfigProblem
from serviceradar_poller.events.polling import ConfigWarning

#: Where the packages put the file.
DEFAULT_PATH = "/etc/serviceradar/poller.json"
#: A thousand agents with fifty checks each take some 8 MiB; what is larger was named by mistake.
FILE_BYTES_MAX = 64 * 1024 * 1024
DEFAULT_PREFIX = "SERVICERADAR_"
#: Variables that say where the configuration is, not what is in it.
SOURCE_VARIABLE = "CONFIG_SOURCE"
PREFIX_VARIABLE = "CONFIG_ENV_PREFIX"
PINNED_VARIABLE = "PINNED_CONFIG_PATH"

_INTEGER = re.compile(r"[+-]?[0-9]{1,20}", re.ASCII)
_NUMBER = re.compile(r"[+-]?[0-9]{1,20}(\.[0-9]{1,20})?", re.ASCII)
_TRUE = frozenset({"1", "t", "true"})
_FALSE = frozenset({"0", "f", "false"})


def read_sources(path: str, environ: Mapping[str, str]) -> tuple[Document, tuple[str, ...]]:
    """
    Return the merged document and the names of what it was read from, the strongest last.

    Args:
        path: The configuration file; not looked at when the environment is the source.
    Raises:
        ConfigError: What can't be read, all of it at once.
    """
    documents: list[Document] = []
    problems: list[ConfigProblem] = []
    pinned = environ.get(PINNED_VARIABLE, "")
    readers: list[Callable[[], Document]] = [lambda: _read_base(path, environ)]
    if pinned:
        readers.append(lambda: read_file(pinned))
    for read in readers:
        try:
            documents.append(read())
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(tuple(problems))
    return functools.reduce(merge, documents), tuple(document.source for document in documents)


def read_file(path: str) -> Document:
    """
    Return the document in the file at *path*.

    Raises:
        ConfigError: One problem: no such file, not readable, too large, not JSON, not an object.
    """
    if not path:
        raise _unreadable("configuration file", "an empty path")
    try:
        with FilePath(path).open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError as error:
        raise _unreadable(path, "no such file") from error
    except IsADirectoryError as error:
        raise _unreadable(path, "a directory") from error
    except PermissionError as error:
        raise _unreadable(path, "a file that this user may not read") from error
    except OSError as error:
        raise _unreadable(path, f"a file that can't be read ({error.strerror or error})") from error
    except ValueError as error:  # a NUL or half a surrogate pair in the name
        raise _unreadable(path, "a name that no file can have") from error
    if len(data) > FILE_BYTES_MAX:
        raise _unreadable(path, "a larger file")
    return _object(read_json(data, path))


def read_environment(environ: Mapping[str, str]) -> Document:
    """
    Return the document that the variables hold: ``<prefix>CONFIG_JSON`` whole, else one variable for each key.

    Raises:
        ConfigError: A variable that should hold JSON doesn't.
    """
    prefix = environ.get(PREFIX_VARIABLE, "") or DEFAULT_PREFIX
    whole = environ.get(f"{prefix}CONFIG_JSON", "")
    if whole:
        return _object(read_json(whole, f"{prefix}CONFIG_JSON"))
    root: dict[str, object] = {}
    origins: dict[Path, str] = {}
    problems: list[ConfigProblem] = []
    warnings: list[ConfigWarning] = []
    known = {f"{prefix}{variable_suffix(path)}": (path, field) for path, field in scalar_paths()}
    for variable, (path, field) in known.items():
        text = environ.get(variable, "")
        if not text:
            continue
        origins[path] = variable
        value: object
        if field.kind is Kind.MAP:
            try:
                part = read_json(text, variable, path)
            except ConfigError as error:
                problems.extend(error.problems)
                continue
            warnings.extend(part.warnings)
            value = part.root
        else:
            value = _from_text(text, field)
        parent = root
        for name in path[:-1]:
            # Only this loop fills root, and no known key is both a value and an object.
            parent = cast("dict[str, object]", parent.setdefault(name, {}))
        parent[path[-1]] = value
    if problems:
        raise ConfigError(tuple(problems))
    warnings.extend(_misspelt(prefix, known.keys(), environ))
    return Document(root=root, source=f"environment ({prefix}*)", origins=origins, warnings=tuple(warnings))


def variable_suffix(path: tuple[str, ...]) -> str:
    """Return what follows the prefix in the variable of the key at *path*: ``SECURITY_TLS_CERT_FILE``."""
    return "_".join(path).upper()


def _read_base(path: str, environ: Mapping[str, str]) -> Document:
    chosen = environ.get(SOURCE_VARIABLE, "")
    match chosen.strip().lower():
        case "" | "file":
            return read_file(path)
        case "env":
            return read_environment(environ)
        case "kv":
            problem = ConfigProblem(
                source=SOURCE_VARIABLE,
                path="",
                text="KV is not available as a source in this version",
                found=chosen,
                accepted="file, env",
            )
        case _:
            problem = ConfigProblem(
                source=SOURCE_VARIABLE,
                path="",
                text=f"invalid {SOURCE_VARIABLE} value: {chosen} (expected 'file', 'kv', or 'env')",
                found=json.dumps(chosen),
                accepted="file, env",
            )
    raise ConfigError((problem,))


def _object(document: Document) -> Document:
    if isinstance(document.root, dict):
        return document
    found = "a list" if isinstance(document.root, list) else "a single value"
    raise ConfigError((ConfigProblem(source=document.source, path="", found=found, accepted="a JSON object"),))


def _from_text(text: str, field: Field) -> object:
    """Return the JSON value that *text* means; text that fits nothing stays a string, which its check refuses."""
    if field.kind is Kind.BOOL:
        word = text.strip().lower()
        return True if word in _TRUE else False if word in _FALSE else text
    if field.kind in (Kind.INT, Kind.DURATION) and _INTEGER.fullmatch(text.strip()):
        return int(text)
    if field.kind is Kind.NUMBER and _NUMBER.fullmatch(text.strip()):
        return float(text)
    return clean_text(text)


def _misspelt(prefix: str, known: Iterable[str], environ: Mapping[str, str]) -> list[ConfigWarning]:
    """Report variables that can only be meant for this poller's own sections, and that it doesn't know."""
    names = set(known)
    sections = tuple(
        f"{prefix}{variable_suffix((field.name,))}_" for field in ROOT.fields if field.own and field.kind is Kind.OBJECT
    )
    warnings = []
    for variable in sorted(environ):
        if variable.startswith(sections) and variable not in names:
            close = difflib.get_close_matches(variable, names, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            warnings.append(ConfigWarning(source=variable, path="", text=f"no such setting{hint}"))
    return warnings


def _unreadable(path: str, found: str) -> ConfigError:
    accepted = f"a readable JSON file of at most {FILE_BYTES_MAX // 2**20} MiB"
    return ConfigError((ConfigProblem(source=path, path="", found=found, accepted=accepted),))
