"""The reference through which others ask a supervisor, and what it answers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Literal, Protocol, assert_never

from serviceradar_poller.otp.errors import (
    AlreadyPresent,
    AlreadyStarted,
    ChildError,
    DeadlockError,
    MaxChildren,
    NoProcess,
    NotFound,
    Restarting,
    Running,
)
from serviceradar_poller.otp.plan import ChildState, Refusal
from serviceradar_poller.otp.spec import ChildSpec, ChildType

Operation = Literal["start", "restart", "terminate", "delete", "which", "count"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildInfo:
    """
    One child as its supervisor lists it.

    Attributes:
        handle: What it gave to ready(); None unless it is up.
        incarnation: Starts so far.
        quarantined: Whether it waits for a delayed rebuild (its state is ``restarting``).
    """

    id: str
    handle: object | None
    state: ChildState
    type: ChildType
    incarnation: int
    quarantined: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildCounts:
    """A supervisor's children, counted."""

    specs: int
    active: int
    supervisors: int
    workers: int


class Request:
    """One operation that waits for a supervisor."""

    __slots__ = ("argument", "future", "operation")

    def __init__(self, operation: Operation, argument: Any, future: asyncio.Future[Any]) -> None:
        self.operation = operation
        self.argument = argument
        self.future = future


class Asked(Protocol):
    """The supervisor's side."""

    @property
    def closed(self) -> bool:
        """Whether it serves no more operations."""
        ...

    def waits_for(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether it can't go on before *task* does."""
        ...

    def ask(self, request: Request) -> None:
        """Take *request* into the queue."""
        ...


class SupervisorRef:
    """
    One incarnation of a supervisor, seen from outside.

    Operations are served one at a time, in order of arrival, between restarts. On a dead or ending supervisor
    all raise NoProcess at once; from a child whose start the supervisor waits for, DeadlockError. A caller that
    is cancelled before its operation's turn takes it back; one under way is completed.
    """

    __slots__ = ("_asked", "incarnation", "path")

    def __init__(self, asked: Asked, path: str, incarnation: int) -> None:
        self._asked = asked
        self.path = path
        self.incarnation = incarnation

    def __repr__(self) -> str:
        return f"<SupervisorRef {self.path}#{self.incarnation}{'' if self.alive else ' dead'}>"

    @property
    def alive(self) -> bool:
        """Whether it serves operations."""
        return not self._asked.closed

    async def start_child(self, spec: ChildSpec) -> object:
        """
        Start a child, last in order, and return its handle; None when it said ignore.

        Raises:
            AlreadyStarted: A child of that id is up; ``handle`` is its handle.
            AlreadyPresent: The spec is there, the child isn't up.
            MaxChildren: There are too many.
            StartFailed: Its init failed; nothing is kept.
            SpecError: The spec does not fit this supervisor.
        """
        return await self._ask("start", spec)

    async def restart_child(self, id: str) -> object:
        """
        Start a child that is not running, and return its handle; None when it said ignore.

        Raises:
            NotFound: There is none.
            Running: It is up.
            Restarting: Its start is planned already.
            StartFailed: Its init failed; it stays undefined.
        """
        return await self._ask("restart", id)

    async def terminate_child(self, id: str) -> None:
        """Stop a child or take back its restart; its spec stays unless it is temporary. Raises NotFound."""
        await self._ask("terminate", id)

    async def delete_child(self, id: str) -> None:
        """Forget a child that is not running. Raises NotFound, Running, Restarting."""
        await self._ask("delete", id)

    async def which_children(self) -> list[ChildInfo]:
        """List the children in start order."""
        answer: list[ChildInfo] = await self._ask("which", None)
        return answer

    async def count_children(self) -> ChildCounts:
        """Count the children."""
        answer: ChildCounts = await self._ask("count", None)
        return answer

    async def _ask(self, operation: Operation, argument: object) -> Any:
        asked = self._asked
        if asked.closed:
            raise NoProcess(self.path)
        if asked.waits_for(asyncio.current_task()):
            raise DeadlockError(self.path)
        future: asyncio.Future[Any] | None = asyncio.get_running_loop().create_future()
        assert future is not None
        asked.ask(Request(operation, argument, future))
        try:
            return await future
        finally:
            future = None  # else an exception holds this frame, which holds the exception


def error_of(refusal: Refusal, path: str, handle: object | None, limit: int) -> ChildError:
    """Make the exception that tells *refusal* of the child at *path*."""
    match refusal:
        case Refusal.ALREADY_STARTED:
            return AlreadyStarted(path, handle)
        case Refusal.ALREADY_PRESENT:
            return AlreadyPresent(path)
        case Refusal.MAX_CHILDREN:
            return MaxChildren(path, limit)
        case Refusal.NOT_FOUND:
            return NotFound(path)
        case Refusal.RUNNING:
            return Running(path)
        case Refusal.RESTARTING:
            return Restarting(path)
        case _:
            assert_never(refusal)
