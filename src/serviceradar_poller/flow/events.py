"""What passes through a pipeline, what a pipeline tells of itself, and what its code may raise."""

# ruff: noqa: N818 — they say what is the case, or what to do

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final, Generic, Literal, TypeVar

from serviceradar_poller.errors import PollerError

T = TypeVar("T")


class End(enum.Enum):
    """The type of END."""

    END = "end"


class Skip(enum.Enum):
    """The type of SKIP."""

    SKIP = "skip"


#: What a source returns when nothing follows.
END: Final = End.END
#: What a processor returns for an event that goes no further: it is acknowledged at once.
SKIP: Final = Skip.SKIP

#: What a partition is chosen by.
Key = str | int | bytes


@dataclass(slots=True, eq=False)
class Event(Generic[T]):
    """
    One event on its way; to be read only.

    Attributes:
        offset: Its place in the source, the same in every stage; ascending, not necessarily by one.
        redelivered: It was given to a stage before, which crashed or raised.
        tries: Times that a handler has raised on it.
    """

    offset: int
    data: T
    redelivered: bool = False
    tries: int = 0


@dataclass(slots=True, eq=False)
class Batch(Generic[T]):
    """
    Events that are handled together; to be read only.

    A handler that raises fails all of them; ``fail`` fails some and lets the others be acknowledged.

    Attributes:
        events: At least one, in the order of arrival.
        key: What they have in common; None without a key.
        redelivered: It was given to a stage before.
    """

    events: tuple[Event[T], ...]
    key: Key | None = None
    redelivered: bool = False
    failed: dict[int, Exception] = field(default_factory=dict)

    @property
    def offset(self) -> int:
        """The first event's."""
        return self.events[0].offset

    def fail(self, event: Event[T], error: Exception) -> None:
        """Fail one event of the batch; to be called by the handler, before it returns."""
        self.failed[event.offset] = error


class Policy(enum.StrEnum):
    """What becomes of events for which nobody has asked."""

    BLOCK = "block"  # the source is not asked until there is room
    DROP_OLDEST = "drop_oldest"  # the source is always asked; what has waited longest goes
    DROP_NEWEST = "drop_newest"  # the source is always asked; what came last goes


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffer:
    """
    Room between the source and the first stage, on top of what that stage has asked for.

    Attributes:
        limit: Events that may wait; 0 (with BLOCK) asks the source for exactly what was asked for.
    """

    limit: int = 0
    policy: Policy = Policy.BLOCK

    def __post_init__(self) -> None:
        if self.limit < 0 or (self.policy is not Policy.BLOCK and self.limit < 1):
            raise ValueError(f"buffer: limit {self.limit} makes no sense with {self.policy}")


@dataclass(slots=True, kw_only=True)
class Counts:
    """
    What became of the events; ``produced = acked + skipped + quarantined + dropped + open``, at any instant.

    Attributes:
        produced: Events that the source gave, each once.
        acked: Handled by the last stage, by each of its consumers where it broadcasts.
        skipped: Handled by a processor that said SKIP.
        quarantined: Set aside after too many tries.
        dropped: Lost to a full buffer, or missing when the source was read again.
        open: Not settled yet.
        failures: Times that a handler raised.
        redelivered: Times that an event was taken back from a process that ended, or read again from the source.
    """

    produced: int = 0
    acked: int = 0
    skipped: int = 0
    quarantined: int = 0
    dropped: int = 0
    open: int = 0
    failures: int = 0
    redelivered: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """
    How a pipeline ended.

    Attributes:
        reason: ``ended``: the source ended and all is settled. ``drained``: stopped, and all that the source had
            given is settled. ``stopped``: stopped with events left over. ``failed``: see ``error``.
        resume_offset: Where the source would go on: everything before it is settled.
        unprocessed: Events that the source gave and that are not settled.
    """

    reason: Literal["ended", "drained", "stopped", "failed"]
    resume_offset: int
    unprocessed: int
    counts: Counts
    error: Exception | None = None

    @property
    def complete(self) -> bool:
        """Whether all of the source went through, nothing set aside or dropped."""
        return self.reason == "ended" and not self.counts.quarantined and not self.counts.dropped


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkInfo:
    """
    The demand between a stage and one process of the next, since that process last started.

    Attributes:
        id: The process.
        calls: Times that it asked.
        asked: Events, or batches, that it asked for.
        delivered: Those that it got; ``0 <= asked - delivered <= max_demand``.
        in_hand: Those that it got and has neither passed on nor acknowledged.
        queued: Those that wait for it, or for it and its siblings, without having been asked for.
    """

    id: str
    max_demand: int
    calls: int
    asked: int
    delivered: int
    in_hand: int
    queued: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Poison:
    """
    An event that was given up.

    Attributes:
        data: As the stage that gave it up got it.
        error: Why it failed the last time.
    """

    stage: str
    offset: int
    data: object
    tries: int
    error: Exception


class FlowError(PollerError):
    """Base of what a pipeline itself raises."""


class Abort(FlowError):
    """
    Raise it in a handler or a source to fail the whole pipeline, at once and without another try.

    For what makes all that came before worthless, such as a gap in a result that comes in parts.
    """


class BadSource(FlowError):
    """A source broke its contract: nothing, more than was asked for, or offsets that don't ascend."""


class CannotRewind(FlowError):
    """The producer has to start again and its source can't."""


class GaveUp(FlowError):
    """The stages crashed more often than their supervisor tolerates."""


class HandlerCancelled(FlowError):
    """A handler ended as cancelled although nobody cancelled its stage."""


class OutOfOrder(Abort):
    """A part of a whole is missing, came twice or came at the wrong place."""
