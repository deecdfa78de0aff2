"""
Name the faults of simulated peers, and read them from the command line and the control endpoint. Pure.

A fault is written ``kind`` or ``kind:key=value,key=value``; the targets of one are agent ids, ``*``,
or a range ``agent-0010..agent-0019``.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields

from serviceradar_poller.errors import GrpcCode
from serviceradar_poller.lab.errors import FaultError

#: Longest delay or period that a fault may ask for.
SECONDS_MAX = 86_400.0
#: Largest message that a fault may ask for.
SIZE_BYTES_MAX = 256 * 1024 * 1024
#: Largest streamed result that a fault may ask for.
STREAM_BYTES_MAX = 4 * 1024 * 1024 * 1024
PER_MINUTE_MAX = 60_000.0
#: What the ``methods`` of a fault may name.
METHODS = ("health", "status", "results")


class FaultKind(enum.StrEnum):
    """What an agent does wrong."""

    # the socket
    REFUSE = "refuse"  # the listener is gone, connections are closed
    MUTE = "mute"  # accepts and never sends a byte
    FREEZE = "freeze"  # connections, old and new, stay open and fall silent, pings included
    RESET = "reset"  # RST on accept
    FLAP = "flap"  # up for up_s, refusing for down_s, and again
    TLS_GARBAGE = "tls_garbage"  # answers the first bytes with something that is neither TLS nor HTTP/2
    # the call
    HANG_HEALTH = "hang_health"
    HANG_STATUS = "hang_status"
    HANG_RESULTS = "hang_results"
    SLOW = "slow"  # answers after ``seconds``
    ERROR = "error"  # answers with ``code`` and ``message``
    # the answer
    WRONG_AGENT_ID = "wrong_agent_id"  # claims to be ``agent_id``
    EMPTY = "empty"  # a response with no field set
    NON_JSON = "non_json"  # the message is ``message`` as plain text
    NULL = "null"  # the message is ``null``
    HUGE = "huge"  # the message is JSON of ``size_bytes``
    CHECK_FAILED = "check_failed"  # the agent's own word that a check failed: {"error": message}
    UNAVAILABLE = "unavailable"  # available=false, with the usual message
    # the streamed result; ``chunk`` is an index from 0, or the last where there are fewer
    STREAM_GARBAGE = "stream_garbage"  # that chunk is cut-off JSON
    STREAM_GAP = "stream_gap"  # that chunk is missing
    STREAM_DUPLICATE = "stream_duplicate"  # that chunk comes twice
    STREAM_REORDER = "stream_reorder"  # that chunk comes after the next
    STREAM_STOP = "stream_stop"  # ends before that chunk, with OK
    STREAM_RESET = "stream_reset"  # the call is broken off before that chunk
    STREAM_DRIP = "stream_drip"  # ``per_minute`` chunks a minute
    STREAM_ENDLESS = "stream_endless"  # goes on with more of the last chunk, never final
    STREAM_HUGE = "stream_huge"  # device updates of ``size_bytes`` in all
    STREAM_UNCHANGED = "stream_unchanged"  # one final {} at the sequence that was asked about


#: Faults of the socket; the others need a working connection.
SOCKET_FAULTS = frozenset(
    {
        FaultKind.REFUSE,
        FaultKind.MUTE,
        FaultKind.FREEZE,
        FaultKind.RESET,
        FaultKind.FLAP,
        FaultKind.TLS_GARBAGE,
    }
)
#: Faults of StreamResults alone.
STREAM_FAULTS = frozenset(kind for kind in FaultKind if kind.value.startswith("stream_"))
_HANGS = {
    FaultKind.HANG_HEALTH: ("health",),
    FaultKind.HANG_STATUS: ("status",),
    FaultKind.HANG_RESULTS: ("results",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """
    One fault; what a kind does not use is ignored.

    Attributes:
        seconds: Delay of ``slow``.
        up_s, down_s: Periods of ``flap``.
        chunk: Which chunk of a stream is concerned.
        per_minute: Chunks a minute of ``stream_drip``.
        methods: Which calls ``slow`` and ``error`` touch: health, status, results.
    """

    kind: FaultKind
    seconds: float = 1.0
    up_s: float = 1.0
    down_s: float = 1.0
    code: GrpcCode = GrpcCode.UNAVAILABLE
    message: str = "simulated fault"
    size_bytes: int = 5 * 1024 * 1024
    agent_id: str = "agent-impostor"
    methods: tuple[str, ...] = ("status", "results")
    chunk: int = 1
    per_minute: float = 10.0

    def __post_init__(self) -> None:
        for name in ("seconds", "up_s", "down_s"):
            if not 0.0 <= getattr(self, name) <= SECONDS_MAX:
                raise FaultError(f"{name} must be between 0 and {SECONDS_MAX:g}, not {getattr(self, name)}")
        if self.kind is FaultKind.FLAP and min(self.up_s, self.down_s) < 0.01:
            raise FaultError("up_s and down_s of flap must be at least 0.01")
        size_bytes_max = STREAM_BYTES_MAX if self.kind is FaultKind.STREAM_HUGE else SIZE_BYTES_MAX
        if not 0 <= self.size_bytes <= size_bytes_max:
            raise FaultError(f"size_bytes must be between 0 and {size_bytes_max}, not {self.size_bytes}")
        if self.chunk < 0:
            raise FaultError(f"chunk must not be below 0, as {self.chunk} is")
        if not 60.0 / SECONDS_MAX <= self.per_minute <= PER_MINUTE_MAX:
            raise FaultError(f"per_minute must be between 1 a day and {PER_MINUTE_MAX:g}, not {self.per_minute}")
        unknown = set(self.methods) - set(METHODS)
        if unknown:
            raise FaultError(f"methods may name {', '.join(METHODS)}, not {', '.join(sorted(unknown))}")
        if self.code is GrpcCode.OK:
            raise FaultError("code must be an error")

    def hangs(self, method: str) -> bool:
        """Whether a call of *method* is never answered."""
        return method in _HANGS.get(self.kind, ())

    def delays(self, method: str) -> bool:
        """Whether a call of *method* is answered late."""
        return self.kind is FaultKind.SLOW and method in self.methods

    def fails(self, method: str) -> bool:
        """Whether a call of *method* is answered with an error."""
        return self.kind is FaultKind.ERROR and method in self.methods

    def as_json(self) -> dict[str, object]:
        """Return the fault as the control endpoint shows and takes it."""
        body: dict[str, object] = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "kind"}
        return {"fault": self.kind.value, **body, "code": self.code.name, "methods": list(self.methods)}


def fault_from_json(body: Mapping[str, object]) -> Fault:
    """
    Read ``{"fault": "slow", "seconds": 2}``.

    Raises:
        FaultError: An unknown kind or key, or a value of the wrong type or out of range.
    """
    values = dict(body)
    kind = _kind(values.pop("fault", None))
    defaults = Fault(kind=kind)
    if kind is FaultKind.SLOW and "methods" not in values:
        values["methods"] = list(METHODS)  # a slow agent is slow in all it does
    arguments: dict[str, object] = {}
    for key, value in values.items():
        if key == "kind" or not hasattr(defaults, key) or key not in {f.name for f in fields(Fault)}:
            raise FaultError(f"unknown key {key!r} of a fault")
        arguments[key] = _value(key, value, getattr(defaults, key))
    return Fault(kind=kind, **arguments)  # type: ignore[arg-type]


def parse_fault(text: str) -> Fault:
    """
    Read ``slow:seconds=2,methods=status+health``.

    Raises:
        FaultError: As for fault_from_json.
    """
    kind, _, rest = text.partition(":")
    body: dict[str, object] = {"fault": kind.strip()}
    for part in rest.split(",") if rest else ():
        key, equals, value = part.partition("=")
        if not equals:
            raise FaultError(f"{part!r} in fault {text!r} is not key=value")
        key = key.strip()
        body[key] = value.split("+") if key == "methods" else _number_or_text(value.strip())
    return fault_from_json(body)


def parse_assignment(text: str) -> tuple[str, Fault]:
    """
    Read ``agent-0010..agent-0019=refuse`` into the target and the fault.

    Raises:
        FaultError: No ``=``, or a bad fault.
    """
    target, equals, fault = text.partition("=")
    if not equals or not target.strip():
        raise FaultError(f"{text!r} is not AGENT=FAULT")
    return target.strip(), parse_fault(fault)


def expand_target(target: str, ids: Collection[str]) -> list[str]:
    """
    Return the ids that *target* names, in the order of *ids*.

    Raises:
        FaultError: It names none, or the ends of a range differ in more than their number.
    """
    if target == "*":
        return list(ids)
    first, dots, last = target.partition("..")
    if not dots:
        wanted = {target}
    else:
        head, low = _split_number(first)
        tail, high = _split_number(last)
        if head != tail or low > high:
            raise FaultError(f"{target!r} is not a range like agent-0010..agent-0019")
        found = [name for name in ids if (split := _try_split(name)) and split[0] == head and low <= split[1] <= high]
        wanted = set(found)
    chosen = [name for name in ids if name in wanted]
    if not chosen:
        raise FaultError(f"no agent is called {target!r}")
    return chosen


def _kind(value: object) -> FaultKind:
    try:
        return FaultKind(str(value))
    except ValueError:
        known = ", ".join(kind.value for kind in FaultKind)
        raise FaultError(f"unknown fault {value!r}; known: {known}") from None


def _value(key: str, value: object, default: object) -> object:
    match default:
        case GrpcCode():
            return grpc_code(value)
        case tuple():
            if isinstance(value, list) and all(isinstance(item, str) for item in value):
                return tuple(value)
        case float():
            if isinstance(value, int | float) and not isinstance(value, bool):
                return float(value)
        case int():
            if isinstance(value, int) and not isinstance(value, bool):
                return value
        case _:
            if not isinstance(value, dict | list | bool) and value is not None:
                return str(value)
    raise FaultError(f"{key} of a fault can't be {value!r}")


def grpc_code(value: object) -> GrpcCode:
    """
    Read a gRPC code by name or number.

    Raises:
        FaultError: There is no such code.
    """
    try:
        return GrpcCode(value) if isinstance(value, int) else GrpcCode[str(value).upper()]
    except (KeyError, ValueError):
        raise FaultError(f"unknown gRPC code {value!r}") from None


def _number_or_text(text: str) -> object:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text


def _try_split(name: str) -> tuple[str, int] | None:
    match = re.fullmatch(r"(.*?)(\d+)", name)
    return (match[1], int(match[2])) if match else None


def _split_number(name: str) -> tuple[str, int]:
    split = _try_split(name)
    if split is None:
        raise FaultError(f"{name!r} has no number at its end")
    return split
