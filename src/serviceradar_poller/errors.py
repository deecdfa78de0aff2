"""
What a caller may catch: the operating errors of the poller, typed by whose fault they are and what to do.

Bugs are not here: they are assertions, they crash the actor that holds them, and its supervisor decides.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class PollerError(Exception):
    """Base of every operating error."""


class Layer(enum.StrEnum):
    """Where a call to a peer failed, from the wire upwards."""

    CONFIG = "config"  # our own settings for this peer are unusable
    RESOLVE = "resolve"  # name resolution
    TCP = "tcp"  # refused, unreachable, no answer to SYN, reset
    TLS = "tls"  # handshake or certificate
    HTTP2 = "http2"  # the connection speaks something else, or broke
    GRPC = "grpc"  # the peer answered with a status code
    DEADLINE = "deadline"  # connected, but no answer in time
    APPLICATION = "application"  # answered, and the answer is unusable
    BREAKER = "breaker"  # not asked at all


class GrpcCode(enum.IntEnum):
    """gRPC status codes, https://grpc.io/docs/guides/status-codes/."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


#: Codes that a later, identical call may turn into success.
RETRYABLE_CODES = frozenset({GrpcCode.UNAVAILABLE, GrpcCode.RESOURCE_EXHAUSTED, GrpcCode.ABORTED})
#: Codes that say who we are, not how the peer is.
SECURITY_CODES = frozenset({GrpcCode.UNAUTHENTICATED, GrpcCode.PERMISSION_DENIED})


class CallError(PollerError):
    """
    A call to an agent or core failed.

    Attributes:
        layer: Where it failed.
        code: The gRPC status, the peer's or the one that the client library gave.
        detail: What happened, in words for an operator; never holds a secret.
        reason: A short stable token for metrics and grouping: ``refused``, ``timeout``, ``tls``, ``unavailable`` …
        begun: Part of the answer had come.
    """

    def __init__(self, *, layer: Layer, code: GrpcCode, detail: str, reason: str, begun: bool = False) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.layer = layer
        self.code = code
        self.detail = detail
        self.reason = reason
        self.begun = begun

    @property
    def retryable(self) -> bool:
        """Whether the same call may succeed when it is made again soon, and costs no more than it did."""
        return (
            self.code in RETRYABLE_CODES
            and self.layer not in (Layer.TLS, Layer.CONFIG, Layer.BREAKER, Layer.APPLICATION)
            and not self.begun
        )

    @property
    def security(self) -> bool:
        """Whether the failure is about identity or permission, not about reachability."""
        return self.layer is Layer.TLS or self.code in SECURITY_CODES

    @property
    def unreachable(self) -> bool:
        """Whether no request can have reached the peer's application."""
        return self.layer in (Layer.CONFIG, Layer.RESOLVE, Layer.TCP, Layer.TLS, Layer.HTTP2)


class ResolveError(PollerError):
    """A name gave no address; the text says whether it has none, or why that is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigProblem:
    """
    One thing wrong in a configuration.

    Attributes:
        source: The file or variable it stands in.
        path: JSON path from the root, such as ``agents.edge-01.checks[2].port``; empty for the whole document.
        found: What stands there, shortened, secrets hidden.
        accepted: What may stand there.
        text: A fixed sentence that other programs know, such as ``core address is required``; may be empty.
    """

    source: str
    path: str
    found: str
    accepted: str
    text: str = ""

    def __str__(self) -> str:
        head = f"{self.source}: {self.path}" if self.path else self.source
        if self.text:
            head = f"{head}: {self.text}"
        return f"{head}: found {self.found}; accepted: {self.accepted}"


class ConfigError(PollerError):
    """
    The configuration can't be used; every problem at once.

    Attributes:
        problems: In the order of the document; never empty.
    """

    def __init__(self, problems: tuple[ConfigProblem, ...]) -> None:
        assert problems
        super().__init__("; ".join(str(p) for p in problems))
        self.problems = problems


class SpoolError(PollerError):
    """
    The spool could not do what it was asked.

    Raised as itself only by an open, when the directory can't be used at all.

    Attributes:
        reason: A short stable token for metrics and grouping: ``missing``, ``read_only``, ``locked``, ``disk_full`` …
        detail: What happened, in words for an operator.
    """

    def __init__(self, *, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class SpoolWriteError(SpoolError):
    """Nothing was stored or changed, as far as this process sees; the same call may succeed later."""


class SpoolReadError(SpoolError):
    """What was asked for can't be read: ``gone``, ``damaged``, or the disk's own fault, which may pass."""
