"""
The restart plan of one supervisor: every decision, and none of the doing.

The supervisor tells what happened (a child ended, a start failed) and gets back one decision, which it carries
out and reports on through the ``mark_…`` methods. No loop, no clock, no chance: the latter two are arguments.

    exited ──► None        nothing to do
           ├─► Round       stop these (last first), then start those (first first)
           │      └─ start_failed ──► TryAgain   by message, so that calls and a stop come in between
           ├─► Delay       quarantine: this one alone, later
           ├─► GiveUp      too many restarts within the period
           └─► Leave       auto_shutdown

Source: Erlang/OTP lib/stdlib/src/supervisor.erl, do_restart, restart, restart_multiple_children, add_restart.
Ours alone is the quarantine, which OTP leaves to whoever writes the child.
"""

from __future__ import annotations

import collections
import enum
from collections.abc import Iterable
from dataclasses import dataclass

from serviceradar_poller.otp.spec import (
    AutoShutdown,
    ChildSpec,
    ChildType,
    Restart,
    Strategy,
    SupervisorFlags,
    check_child,
)


class ChildState(enum.StrEnum):
    """What a supervisor holds of a child, in OTP's words."""

    UP = "up"  # started and, for all that the supervisor has heard, alive
    UNDEFINED = "undefined"  # not running, and nothing is planned
    RESTARTING = "restarting"  # not running; a start is planned, at once or after a quarantine


class Refusal(enum.Enum):
    """Why an operation on a child is refused."""

    ALREADY_STARTED = enum.auto()
    ALREADY_PRESENT = enum.auto()
    MAX_CHILDREN = enum.auto()
    NOT_FOUND = enum.auto()
    RUNNING = enum.auto()
    RESTARTING = enum.auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """
    Stop *stop* in its order, then start *start* in its order.

    Attributes:
        trigger: The child whose death or failed start it is.
        attempt: Rounds in a row that were tried for it, from 1.
        stop: Children other than the trigger, last started first.
        start: Children in start order. One that is gone by then (temporary, stopped above) is not listed.
    """

    trigger: str
    attempt: int
    stop: tuple[str, ...]
    start: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TryAgain:
    """Call ``retry`` after everything that waits already has been served."""

    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Delay:
    """Call ``rebuild`` after *delay_s*; *attempt* counts from 1."""

    id: str
    attempt: int
    delay_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """Stop everything and exit with ``shutdown``: *id* was one restart too many."""

    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """Stop everything and exit with ``shutdown``: the significant child *id* has done its work."""

    id: str


Decision = Round | TryAgain | Delay | GiveUp | Leave


class Entry:
    """One child as the plan sees it."""

    __slots__ = ("attempts", "failures", "incarnation", "spec", "state", "up_since_s")

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self.state = ChildState.UNDEFINED
        #: Starts so far.
        self.incarnation = 0
        #: Quarantines in a row.
        self.failures = 0
        #: Restart rounds in a row that did not bring it up.
        self.attempts = 0
        self.up_since_s = 0.0


class Plan:
    """A supervisor's children and its restart budget."""

    __slots__ = ("_quarantined", "_restarts", "children", "flags")

    def __init__(self, flags: SupervisorFlags, children: Iterable[ChildSpec]) -> None:
        self.flags = flags
        #: In start order.
        self.children: dict[str, Entry] = {spec.id: Entry(spec) for spec in children}
        # None while there is nothing to remember: thousands of supervisors never restart a child.
        self._restarts: collections.deque[float] | None = None
        self._quarantined: dict[str, int] | None = None

    # What the supervisor reports

    def mark_starting(self, id: str) -> int:
        """Note that *id* is being started and return its incarnation."""
        entry = self.children[id]
        entry.incarnation += 1
        return entry.incarnation

    def mark_up(self, id: str, now_s: float) -> None:
        """Note that *id* became ready."""
        entry = self.children[id]
        entry.state = ChildState.UP
        entry.up_since_s = now_s
        entry.attempts = 0
        self._release(id)

    def mark_ignored(self, id: str) -> None:
        """Note that *id* said ignore: its spec stays, unless it is temporary."""
        self._down(id)

    def mark_stopped(self, id: str) -> None:
        """Note that *id* was stopped on purpose: its spec stays, unless it is temporary."""
        if id in self.children:
            self._down(id)

    # Decisions

    def exited(self, id: str, *, abnormal: bool, now_s: float, chance: float) -> Decision | None:
        """
        Decide what the end of *id* means.

        Args:
            abnormal: False for the reasons normal and shutdown.
            now_s: Monotonic seconds.
            chance: Uniform in 0..1, for the jitter of a quarantine.
        """
        entry = self.children[id]
        restart = entry.spec.restart
        if restart is Restart.PERMANENT or (restart is Restart.TRANSIENT and abnormal):
            if entry.spec.quarantine is not None:
                return self._delay(entry, now_s, chance)
            return self._restart(entry, now_s)
        self._down(id)
        return self._auto_shutdown(entry.spec)

    def start_failed(self, id: str, *, now_s: float, chance: float) -> TryAgain | Delay:
        """Decide what the failed start of *id* within a round means; a TryAgain ends the round."""
        entry = self.children[id]
        if entry.spec.quarantine is not None:
            return self._delay(entry, now_s, chance)
        entry.state = ChildState.RESTARTING
        return TryAgain(id=id)

    def retry(self, id: str, *, now_s: float) -> Decision | None:
        """Decide on a TryAgain that came back; None when the child was stopped or started meanwhile."""
        entry = self.children.get(id)
        if entry is None or entry.state is not ChildState.RESTARTING or id in (self._quarantined or ()):
            return None
        return self._restart(entry, now_s)

    def rebuild(self, id: str, attempt: int) -> Round | None:
        """Decide on a Delay that is over; None when the child was stopped, removed or started meanwhile."""
        if (self._quarantined or {}).get(id) != attempt:
            return None
        return Round(trigger=id, attempt=attempt, stop=(), start=(id,))

    # Operations

    def add(self, spec: ChildSpec) -> Refusal | None:
        """
        Take a new child, last in order, or say why not.

        Raises:
            SpecError: The spec does not fit this supervisor.
        """
        check_child(spec, self.flags.auto_shutdown)
        entry = self.children.get(spec.id)
        if entry is not None:
            up = entry.state is ChildState.UP
            return Refusal.ALREADY_STARTED if up else Refusal.ALREADY_PRESENT
        limit = self.flags.max_children
        if limit is not None and len(self.children) >= limit:
            return Refusal.MAX_CHILDREN
        self.children[spec.id] = Entry(spec)
        return None

    def drop(self, id: str) -> None:
        """Forget *id*: its first start failed, or it is deleted."""
        self.children.pop(id, None)
        self._release(id)

    def refuse_terminate(self, id: str) -> Refusal | None:
        """Say why *id* can't be terminated."""
        return None if id in self.children else Refusal.NOT_FOUND

    def refuse_restart(self, id: str) -> Refusal | None:
        """Say why *id* can't be restarted or deleted by hand: only an undefined child can."""
        entry = self.children.get(id)
        if entry is None:
            return Refusal.NOT_FOUND
        if entry.state is ChildState.UP:
            return Refusal.RUNNING
        return Refusal.RESTARTING if entry.state is ChildState.RESTARTING else None

    def counts(self) -> tuple[int, int, int, int]:
        """Count specs, active children, supervisors and workers."""
        active = sum(1 for entry in self.children.values() if entry.state is ChildState.UP)
        supervisors = sum(1 for entry in self.children.values() if entry.spec.type is ChildType.SUPERVISOR)
        specs = len(self.children)
        return specs, active, supervisors, specs - supervisors

    # Inside

    def _down(self, id: str) -> None:
        entry = self.children[id]
        entry.state = ChildState.UNDEFINED
        entry.attempts = entry.failures = 0
        self._release(id)
        if entry.spec.restart is Restart.TEMPORARY:
            del self.children[id]

    def _release(self, id: str) -> None:
        if self._quarantined is not None:
            self._quarantined.pop(id, None)
            self._quarantined = self._quarantined or None

    def _auto_shutdown(self, spec: ChildSpec) -> Leave | None:
        mode = self.flags.auto_shutdown
        if mode is AutoShutdown.NEVER or not spec.significant:
            return None
        if mode is AutoShutdown.ALL_SIGNIFICANT and any(
            entry.spec.significant and entry.state is not ChildState.UNDEFINED for entry in self.children.values()
        ):
            return None
        return Leave(id=spec.id)

    def _delay(self, entry: Entry, now_s: float, chance: float) -> Delay:
        quarantine = entry.spec.quarantine
        assert quarantine is not None
        if entry.state is ChildState.UP and now_s - entry.up_since_s >= quarantine.reset_after_s:
            entry.failures = 0
        entry.failures += 1
        entry.state = ChildState.RESTARTING
        if self._quarantined is None:
            self._quarantined = {}
        self._quarantined[entry.spec.id] = entry.failures
        return Delay(id=entry.spec.id, attempt=entry.failures, delay_s=quarantine.delay_s(entry.failures, chance))

    def _restart(self, entry: Entry, now_s: float) -> Round | GiveUp:
        id = entry.spec.id
        if not self._add_restart(now_s):
            self._down(id)
            return GiveUp(id=id)
        entry.attempts += 1
        if self.flags.strategy is Strategy.ONE_FOR_ONE:
            entry.state = ChildState.RESTARTING
            return Round(trigger=id, attempt=entry.attempts, stop=(), start=(id,))
        group = list(self.children)
        if self.flags.strategy is Strategy.REST_FOR_ONE:
            group = group[group.index(id) :]
        attempts = entry.attempts
        entry.state = ChildState.UNDEFINED
        return Round(
            trigger=id,
            attempt=attempts,
            stop=tuple(other for other in reversed(group) if other != id),
            start=tuple(other for other in group if self.children[other].spec.restart is not Restart.TEMPORARY),
        )

    def _add_restart(self, now_s: float) -> bool:
        if self._restarts is None:
            self._restarts = collections.deque()
        restarts = self._restarts
        restarts.append(now_s)
        while restarts[0] + self.flags.period_s < now_s:
            restarts.popleft()
        return len(restarts) <= self.flags.intensity
