"""Child specs and supervisor flags, refused where they are built if they can't mean anything."""

from __future__ import annotations

import enum
import math
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from serviceradar_poller.otp.errors import SpecError

if TYPE_CHECKING:
    from serviceradar_poller.otp.child import Child
    from serviceradar_poller.otp.process import Process

WORKER_SHUTDOWN_S: Final = 5.0  # OTP's default for a worker
PATH_SEPARATOR: Final = "/"


class Restart(enum.StrEnum):
    """When a child that ended is started again."""

    PERMANENT = "permanent"  # always
    TRANSIENT = "transient"  # after an abnormal exit
    TEMPORARY = "temporary"  # never; its spec goes with it


class Strategy(enum.StrEnum):
    """Whom a child's death takes along."""

    ONE_FOR_ONE = "one_for_one"
    ONE_FOR_ALL = "one_for_all"
    REST_FOR_ONE = "rest_for_one"


class AutoShutdown(enum.StrEnum):
    """Whether a supervisor ends when significant children have ended by themselves."""

    NEVER = "never"
    ANY_SIGNIFICANT = "any_significant"
    ALL_SIGNIFICANT = "all_significant"


class ChildType(enum.StrEnum):
    """What a child is, for inspection and for the default of shutdown_s."""

    WORKER = "worker"
    SUPERVISOR = "supervisor"


class BrutalKill:
    """The type of BRUTAL_KILL."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "BRUTAL_KILL"


#: A child's shutdown_s that grants no cleanup.
BRUTAL_KILL: Final = BrutalKill()


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantine:
    """
    How a child that exits is rebuilt alone: after a growing, capped, jittered delay.

    Attributes:
        min_s: The first delay.
        max_s: No delay is longer, jitter included.
        factor: From one delay to the next.
        jitter: Part of the delay by which it varies either way, 0..1.
        reset_after_s: After it was up for so long, an exit counts as the first again.
    """

    min_s: float
    max_s: float
    factor: float = 2.0
    jitter: float = 0.2
    reset_after_s: float = 600.0

    def __post_init__(self) -> None:
        for name in ("min_s", "max_s", "factor", "jitter", "reset_after_s"):
            if not _is_number(getattr(self, name)):
                raise SpecError(f"quarantine: {name} must be a number, not {getattr(self, name)!r}")
        if not 0 <= self.min_s <= self.max_s < math.inf:
            raise SpecError(f"quarantine: 0 <= min_s <= max_s must hold, not {self.min_s}, {self.max_s}")
        if self.factor < 1:
            raise SpecError(f"quarantine: factor must be at least 1, not {self.factor}")
        if not 0 <= self.jitter <= 1:
            raise SpecError(f"quarantine: jitter must be within 0..1, not {self.jitter}")
        if self.reset_after_s < 0:
            raise SpecError(f"quarantine: reset_after_s must not be negative, not {self.reset_after_s}")

    def delay_s(self, attempt: int, chance: float) -> float:
        """
        Return the delay before rebuild *attempt* (counted from 1).

        Args:
            attempt: 1 after the first exit.
            chance: Uniform in 0..1; 0.5 is the undisturbed delay.
        """
        # The exponent is bounded because a float overflows near 2**1024, long after every cap.
        plain = min(self.max_s, self.min_s * self.factor ** min(attempt - 1, 64))
        return min(self.max_s, plain * (1 + self.jitter * (2 * chance - 1)))


class KernelStart:
    """A start that the kernel itself runs, one coroutine frame shallower than a stranger's."""

    __slots__ = ()
    #: Whether its stop is bounded by construction, so that a kill need not be repeated (supervisors).
    bounded: bool = False

    def __call__(self, child: Child) -> Awaitable[None]:
        """Refuse to be run by anyone else."""
        raise TypeError("this start is run by the kernel only")

    def run(self, process: Process) -> Coroutine[Any, Any, None]:
        """Return the coroutine of the process's whole life."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """
    How a child is started, stopped and restarted.

    Attributes:
        id: Its name among its siblings; no ``/``, see ``quote_id``.
        start: Runs the whole life of the child: init, ``child.ready(handle)``, then work until it returns.
        shutdown_s: Grace between the order to stop and the kill; None is 5 s for a worker, infinity for a
            supervisor.
        significant: Counts for the supervisor's auto_shutdown.
        start_timeout_s: A child not ready by then is killed, and its start has failed.
        quarantine: Exits restart this child alone and later, at no cost to the supervisor's intensity. A
            restart that fails counts as an exit; a first start that fails is the starter's.
    """

    id: str
    start: Callable[[Child], Awaitable[None]]
    restart: Restart = Restart.PERMANENT
    shutdown_s: float | BrutalKill | None = None
    type: ChildType = ChildType.WORKER
    significant: bool = False
    start_timeout_s: float = math.inf
    quarantine: Quarantine | None = None

    def __post_init__(self) -> None:
        check_id(self.id)
        where = f"child {self.id!r}"
        if not callable(self.start):
            raise SpecError(f"{where}: start must be callable, not {self.start!r}")
        if not isinstance(self.restart, Restart):
            raise SpecError(f"{where}: restart must be a Restart, not {self.restart!r}")
        if not isinstance(self.type, ChildType):
            raise SpecError(f"{where}: type must be a ChildType, not {self.type!r}")
        if not isinstance(self.significant, bool):
            raise SpecError(f"{where}: significant must be a bool, not {self.significant!r}")
        shutdown_s = self.shutdown_s
        if not (
            shutdown_s is None or isinstance(shutdown_s, BrutalKill) or (_is_number(shutdown_s) and shutdown_s >= 0)
        ):
            raise SpecError(f"{where}: shutdown_s must be >= 0, BRUTAL_KILL or None, not {shutdown_s!r}")
        if not _is_number(self.start_timeout_s) or self.start_timeout_s <= 0:
            raise SpecError(f"{where}: start_timeout_s must be > 0, not {self.start_timeout_s!r}")
        if self.significant and self.restart is Restart.PERMANENT:
            raise SpecError(f"{where}: significant: a permanent child never ends by itself")
        if self.quarantine is not None and not isinstance(self.quarantine, Quarantine):
            raise SpecError(f"{where}: quarantine must be a Quarantine, not {self.quarantine!r}")
        if self.quarantine is not None and self.restart is Restart.TEMPORARY:
            raise SpecError(f"{where}: quarantine: a temporary child is never restarted")

    @property
    def grace_s(self) -> float:
        """Seconds between the order to stop and the kill; 0 for BRUTAL_KILL."""
        if self.shutdown_s is None:
            return math.inf if self.type is ChildType.SUPERVISOR else WORKER_SHUTDOWN_S
        return 0.0 if isinstance(self.shutdown_s, BrutalKill) else self.shutdown_s


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorFlags:
    """
    How a supervisor reacts.

    Attributes:
        intensity: Restarts tolerated within any period; one more and the supervisor gives up.
        max_children: Bound on the number of specs; None for a fixed set.
        parallel_stop: Whether all children are stopped at once, rather than one by one backwards.
    """

    strategy: Strategy = Strategy.ONE_FOR_ONE
    intensity: int = 1
    period_s: float = 5.0
    auto_shutdown: AutoShutdown = AutoShutdown.NEVER
    max_children: int | None = None
    parallel_stop: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.strategy, Strategy):
            raise SpecError(f"supervisor: strategy must be a Strategy, not {self.strategy!r}")
        if not isinstance(self.auto_shutdown, AutoShutdown):
            raise SpecError(f"supervisor: auto_shutdown must be an AutoShutdown, not {self.auto_shutdown!r}")
        if not _is_count(self.intensity):
            raise SpecError(f"supervisor: intensity must be a count >= 0, not {self.intensity!r}")
        if not _is_number(self.period_s) or self.period_s <= 0:
            raise SpecError(f"supervisor: period_s must be > 0, not {self.period_s!r}")
        if self.max_children is not None and not _is_count(self.max_children):
            raise SpecError(f"supervisor: max_children must be a count >= 0, not {self.max_children!r}")


def check_child(spec: ChildSpec, auto_shutdown: AutoShutdown) -> None:
    """Raise SpecError if a supervisor with *auto_shutdown* can't take *spec*."""
    given: object = spec
    if not isinstance(given, ChildSpec):
        raise SpecError(f"children: a ChildSpec is needed, not {spec!r}")
    if spec.significant and auto_shutdown is AutoShutdown.NEVER:
        raise SpecError(f"child {spec.id!r}: significant: the supervisor's auto_shutdown is never")


def check_children(specs: Iterable[ChildSpec], auto_shutdown: AutoShutdown) -> tuple[ChildSpec, ...]:
    """Return *specs* as a tuple, or raise SpecError if a supervisor can't take them together."""
    children = tuple(specs)
    seen: set[str] = set()
    for spec in children:
        check_child(spec, auto_shutdown)
        if spec.id in seen:
            raise SpecError(f"child {spec.id!r}: id: used twice")
        seen.add(spec.id)
    return children


def check_id(value: object) -> None:
    """Raise SpecError if *value* can't be a child's id."""
    if not isinstance(value, str) or not value or not value.isprintable() or PATH_SEPARATOR in value:
        raise SpecError(f"child {value!r}: id must be printable text without {PATH_SEPARATOR!r}")


def quote_id(name: str) -> str:
    """Make an id from any name, reversibly and readably: ``/``, ``%`` and unprintable characters as %XX."""
    if not name:
        return "%"
    return "".join(
        char if char.isprintable() and char not in "/%" else "".join(f"%{byte:02X}" for byte in _bytes(char))
        for char in name
    )


def _bytes(char: str) -> bytes:
    return char.encode("utf-8", "surrogatepass")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
