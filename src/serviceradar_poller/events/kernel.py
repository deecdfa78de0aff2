"""
What the supervision kernel tells: the life of every child, in order.

``path`` is the child's place in the tree, such as ``poller/agents/edge-01/connection``;
``incarnation`` counts the starts of one child id, from 1.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildStarted:
    """A child's init reached ready."""

    path: str
    incarnation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildExited:
    """
    A child ended.

    Attributes:
        reason: ``normal``, ``shutdown``, ``killed`` or ``error``.
        error: For ``error``, the exception in one line.
        traceback: For ``error``, the traceback.
    """

    path: str
    incarnation: int
    reason: str
    error: str = ""
    traceback: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildStartFailed:
    """A child's init raised, ended early or did not become ready in time."""

    path: str
    incarnation: int
    error: str
    traceback: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildRestarting:
    """A supervisor begins to restart a child, or the group that a child's death takes along."""

    path: str
    attempt: int
    delay_s: float = 0.0
    group: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildQuarantined:
    """A child that gave up is built again later, alone, at no cost to its siblings' restart budget."""

    path: str
    attempt: int
    delay_s: float
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildKilled:
    """A child did not stop within its grace and was killed."""

    path: str
    incarnation: int
    grace_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildZombie:
    """A child swallows every cancellation; the stop goes on without it."""

    path: str
    incarnation: int
    kills: int
    stack: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorGaveUp:
    """A supervisor exceeded its restart intensity."""

    path: str
    child: str
    error: str
    intensity: int
    period_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MailboxOverflow:
    """An actor's mailbox is full; sent once per overflow episode, the count follows in inspection."""

    path: str
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopBlocked:
    """The event loop did not turn for a while; ``stack`` is what it was doing."""

    blocked_s: float
    stack: str


KernelEvent = (
    ChildStarted
    | ChildExited
    | ChildStartFailed
    | ChildRestarting
    | ChildQuarantined
    | ChildKilled
    | ChildZombie
    | SupervisorGaveUp
    | MailboxOverflow
    | LoopBlocked
)
