"""Children that record their lives and do as they are told, for tests of supervision."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from serviceradar_poller.events.kernel import KernelEvent
from serviceradar_poller.otp import SHUTDOWN, Actor, ChildSpec, ExitReason, Ref, System, Tree, actor

E = TypeVar("E")

#: What a member accepts: the name of an exit, or something to do within its task.
Order = str | Callable[["Member"], Awaitable[object]]


class Boom(Exception):  # noqa: N818 — what a child is told to crash with
    """A crash on order."""


class InitFailed(Exception):  # noqa: N818 — what an init is told to fail with
    """A failed init on order."""


class Journal:
    """
    What the members of one tree write and read.

    Attributes:
        entries: ``↑a`` for ready, ``↓a(reason)`` for cleanup, in order.
        events: All that the kernel emitted.
        failing: Inits of an id that are still to fail.
        ignoring: Ids whose next init says ignore.
    """

    def __init__(self) -> None:
        self.entries: list[str] = []
        self.events: list[KernelEvent] = []
        self.failing: dict[str, int] = {}
        self.ignoring: set[str] = set()

    def system(self, **fields: Any) -> System:
        """Make a System whose events land here."""
        return System(emit=self.events.append, **fields)

    def child(
        self,
        id: str,
        *,
        init_s: float = 0.0,
        cleanup_s: float = 0.0,
        swallows: bool = False,
        **spec_fields: Any,
    ) -> ChildSpec:
        """
        Make the spec of a member.

        Args:
            init_s: How long its init takes.
            cleanup_s: How long its cleanup takes.
            swallows: Whether its cleanup goes on after every cancel.
        """
        return actor(id, lambda: Member(self, id, init_s=init_s, cleanup_s=cleanup_s, swallows=swallows), **spec_fields)

    def take(self) -> str:
        """Return the entries since the last time, as one line."""
        text = " ".join(self.entries)
        self.entries.clear()
        return text

    def of(self, kind: type[E]) -> list[E]:
        """Return the events of one type."""
        return [event for event in self.events if isinstance(event, kind)]


class Member(Actor[Order]):
    """A child on orders."""

    def __init__(
        self,
        journal: Journal,
        id: str,
        *,
        init_s: float = 0.0,
        cleanup_s: float = 0.0,
        swallows: bool = False,
    ) -> None:
        self.journal = journal
        self.id = id
        self.init_s = init_s
        self.cleanup_s = cleanup_s
        self.swallows = swallows
        self.state = 0

    async def init(self) -> None:
        """Become ready, fail or ignore, as ordered."""
        if self.init_s:
            await asyncio.sleep(self.init_s)
        if self.journal.failing.get(self.id, 0) > 0:
            self.journal.failing[self.id] -= 1
            raise InitFailed(self.id)
        if self.id in self.journal.ignoring:
            self.journal.ignoring.discard(self.id)
            self.child.ignore()
        self.journal.entries.append(f"↑{self.id}")

    async def handle(self, message: Order) -> object:
        """Obey."""
        match message:
            case "boom":
                raise Boom(self.id)
            case "normal":
                self.stop()
            case "shutdown":
                self.stop(SHUTDOWN)
            case str():
                return message
            case _:
                return await message(self)
        return None

    async def terminate(self, reason: ExitReason) -> None:
        """Clean up, as slowly as ordered."""
        shown = "error" if reason.error is not None else reason.kind
        self.journal.entries.append(f"↓{self.id}({shown})")
        left_s = asyncio.get_running_loop().time() + self.cleanup_s
        while (rest_s := left_s - asyncio.get_running_loop().time()) > 0:
            try:
                await asyncio.sleep(rest_s)
            except asyncio.CancelledError:
                if not self.swallows:
                    raise


def ref_of(tree: Tree, path: str) -> Ref[Order]:
    """Return the Ref of the live member at *path*."""
    ref = tree.system.whereis(path)
    assert isinstance(ref, Ref), f"{path} is not alive"
    return ref


def task_of(tree: Tree, path: str) -> asyncio.Task[Any]:
    """Find the task of a live child, which may have to be woken for that, to do what only a stranger does."""
    process = tree.find(path)
    assert process is not None, f"{path} is not alive"
    process.rouse()
    assert process.task is not None
    return process.task


async def settle(turns: int = 30) -> None:
    """Let everything that is ready run, for *turns* turns of the loop; no time goes by."""
    for _ in range(turns):
        await asyncio.sleep(0)
