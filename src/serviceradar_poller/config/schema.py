"""
Every key of the configuration: its name, its JSON type and its plain range.

One table serves the decoder, the environment variables and the test of the documentation, so they can't differ.
Rules that need more than one key stand in ``rules``.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from serviceradar_poller.config.durations import NS_PER_MS

#: A place in a document: names of keys and indexes of lists, from the root.
Path = tuple[str | int, ...]


class Kind(enum.Enum):
    """What JSON type a key takes."""

    STRING = "a string"
    BOOL = "true or false"
    INT = "an integer"
    NUMBER = "a number"
    DURATION = 'a duration such as "30s" or "1m30s"'
    OBJECT = "an object"
    MAP = "an object with names of your choice as keys"
    LIST = "a list"


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """
    One key.

    Attributes:
        fields: Keys of an OBJECT.
        element: What a MAP or a LIST holds.
        own: Belongs to this poller alone: Go ignores it, and a key in it that nobody knows is reported.
        nullable: null means the same as absence although the type would refuse it.
        minimum, maximum: Inclusive range of an INT, a NUMBER, or (nanoseconds) a DURATION.
    """

    name: str
    kind: Kind
    fields: tuple[Field, ...] = ()
    element: Field | None = None
    own: bool = False
    nullable: bool = False
    minimum: float | None = None
    maximum: float | None = None


INT32_MIN = -(2**31)
INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1
#: A check that fails is asked for at most this often.
RETRY_ATTEMPTS_MAX = 100
#: Below 1 in 10 s agents would take hours to be reached; above the upper bound it is no limit at all.
CONNECTS_PER_S_MIN = 0.1
CONNECTS_PER_S_MAX = 100_000.0
#: Own durations are at least this: shorter than a timer's resolution only spins the loop.
DURATION_NS_MIN = NS_PER_MS


def _string(name: str) -> Field:
    return Field(name=name, kind=Kind.STRING)


def _bool(name: str) -> Field:
    return Field(name=name, kind=Kind.BOOL)


def _object(name: str, *fields: Field) -> Field:
    return Field(name=name, kind=Kind.OBJECT, fields=fields)


def _own(name: str, *fields: Field) -> Field:
    return Field(name=name, kind=Kind.OBJECT, fields=fields, own=True)


def _duration(name: str, *, minimum: float | None = DURATION_NS_MIN, nullable: bool = False) -> Field:
    return Field(name=name, kind=Kind.DURATION, minimum=minimum, nullable=nullable)


def _count(name: str, *, maximum: int = INT32_MAX) -> Field:
    return Field(name=name, kind=Kind.INT, minimum=1, maximum=maximum)


def _security() -> Field:
    return _object(
        "security",
        _string("mode"),
        _string("cert_dir"),
        _string("server_name"),
        _string("role"),
        _object("tls", _string("cert_file"), _string("key_file"), _string("ca_file"), _string("client_ca_file")),
        _string("trust_domain"),
        _string("server_spiffe_id"),
        _string("workload_socket"),
    )


CHECK = _object(
    "check",
    _string("service_type"),
    _string("service_name"),
    _string("details"),
    Field(name="port", kind=Kind.INT, minimum=INT32_MIN, maximum=INT32_MAX),
    _duration("results_interval", minimum=None, nullable=True),
)

AGENT = _object(
    "agent",
    _string("address"),
    Field(name="checks", kind=Kind.LIST, element=CHECK),
    _security(),
)

ROOT = _object(
    "",
    Field(name="agents", kind=Kind.MAP, element=AGENT),
    _string("core_address"),
    _string("poller_id"),
    _duration("poll_interval", minimum=0),
    _string("partition"),
    _string("source_ip"),
    _string("listen_addr"),
    _string("service_name"),
    _security(),
    _object(
        "logging",
        _string("level"),
        _bool("debug"),
        _string("output"),
        _string("time_format"),
        _object(
            "otel",
            _bool("enabled"),
            _string("endpoint"),
            Field(name="headers", kind=Kind.MAP, element=_string("header")),
            _string("service_name"),
            _duration("batch_timeout", minimum=None),
            _bool("insecure"),
            _object("tls", _string("cert_file"), _string("key_file"), _string("ca_file")),
        ),
    ),
    _string("kv_address"),
    _string("kv_domain"),
    Field(name="workers", kind=Kind.INT, own=True),
    Field(name="transport", kind=Kind.STRING, own=True),
    Field(name="state_dir", kind=Kind.STRING, own=True),
    _own(
        "scheduling",
        _duration("spread_window", minimum=0),
        _duration("check_timeout"),
        Field(
            name="connects_per_s",
            kind=Kind.NUMBER,
            minimum=CONNECTS_PER_S_MIN,
            maximum=CONNECTS_PER_S_MAX,
        ),
    ),
    _own(
        "reporting",
        _string("mode"),
        _duration("deadline"),
        _duration("early_interval"),
        _count("batch_size"),
        _duration("batch_interval"),
        _duration("call_timeout"),
        _count("queue_bytes", maximum=INT64_MAX),
        _count("queue_reports"),
    ),
    _own(
        "resilience",
        _own(
            "breaker",
            _count("failures"),
            _count("security_failures"),
            _duration("window"),
            _duration("open"),
        ),
        _own(
            "retry",
            _count("attempts", maximum=RETRY_ATTEMPTS_MAX),
            _duration("delay"),
            Field(name="budget_ratio", kind=Kind.NUMBER, minimum=0.0, maximum=1.0),
        ),
        _own("reconnect", _duration("min"), _duration("max")),
        _own("quarantine", _duration("min"), _duration("max")),
        _duration("shutdown_timeout"),
    ),
    _own("http", _string("listen_addr"), _bool("control")),
)

#: Objects whose keys are data, not names of settings: they are told apart by case.
EXACT_KEY_PATHS: frozenset[Path] = frozenset({("agents",), ("logging", "otel", "headers")})


def fold(key: str) -> str:
    """Return what two spellings of one key have in common, as Go's JSON decoder sees it."""
    return key.lower().replace("ſ", "s")


def key_names() -> Iterator[str]:
    """Yield every key as the documentation writes it: ``agents.<name>.checks[].port``; parents before children."""
    yield from _names(ROOT, "")


def scalar_paths() -> Iterator[tuple[tuple[str, ...], Field]]:
    """Yield every key that one environment variable can hold, with its path: no list and no member of a map."""
    yield from _scalars(ROOT, ())


def _names(field: Field, prefix: str) -> Iterator[str]:
    for child in field.fields:
        name = f"{prefix}{child.name}"
        yield name
        if child.kind is Kind.MAP and child.element is not None:
            yield from _names(child.element, f"{name}.<name>.")
        elif child.kind is Kind.LIST and child.element is not None:
            yield from _names(child.element, f"{name}[].")
        else:
            yield from _names(child, f"{name}.")


def _scalars(field: Field, prefix: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Field]]:
    for child in field.fields:
        path = (*prefix, child.name)
        if child.kind is Kind.OBJECT:
            yield from _scalars(child, path)
        else:
            yield path, child
