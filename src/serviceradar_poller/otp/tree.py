"""A running tree: its start, stop and inspection."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from serviceradar_poller.otp.errors import StartFailed
from serviceradar_poller.otp.exits import ExitReason
from serviceradar_poller.otp.mailbox import Mailbox
from serviceradar_poller.otp.plan import ChildState
from serviceradar_poller.otp.process import ENDED, INIT, Process
from serviceradar_poller.otp.spec import PATH_SEPARATOR, ChildSpec, ChildType
from serviceradar_poller.otp.stacks import stack_of
from serviceradar_poller.otp.supervisor import Supervisor
from serviceradar_poller.otp.system import System

#: The stack of a child that has nothing to do.
AT_REST = "at rest: waits for a message, without a task\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class MailboxInfo:
    """An actor's mailbox."""

    length: int
    limit: int
    dropped: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeNode:
    """
    One child and those below it, at one moment.

    Attributes:
        state: ``up``, ``undefined``, ``restarting``, ``starting`` (in its init) or ``stopping``.
        restarts: Starts after the first, within the life of its supervisor.
        age_s: Since this incarnation was launched; 0 when there is none.
        mailbox: Of an actor.
        helpers: Helper tasks that run.
    """

    path: str
    id: str
    type: ChildType
    state: str
    incarnation: int
    restarts: int
    age_s: float
    mailbox: MailboxInfo | None
    helpers: int
    children: tuple[TreeNode, ...]


class Tree:
    """A tree of processes; made by start_tree."""

    def __init__(self, spec: ChildSpec, system: System) -> None:
        self.system = system
        self._root = Process(spec, path=spec.id, incarnation=1, system=system, owner=self)
        self._waiters: set[asyncio.Future[None]] = set()
        system.adopt(self)

    async def wait(self) -> ExitReason:
        """
        Wait until the root has ended, by itself or stopped, and return why.

        Raises:
            SystemExit, KeyboardInterrupt: A child raised it; the tree has stopped in order before.
        """
        while self._root.phase != ENDED:
            await self._change()
        if self.system.halt_error is not None:
            raise self.system.halt_error
        assert self._root.exit is not None
        return self._root.exit

    async def stop(self, *, kill: bool = False) -> ExitReason:
        """
        Stop the tree, children before their elders' siblings, and return why the root ended.

        A cancel of the waiting task turns what remains into kills, and is raised again when all are gone.

        Args:
            kill: Do so at once.
        """
        self._root.stop()
        if kill:
            self.stop_now()
        cancelled = False
        while self._root.phase != ENDED:
            try:
                await self._change()
            except asyncio.CancelledError:
                cancelled = True
                self.stop_now()
        if cancelled:
            raise asyncio.CancelledError
        assert self._root.exit is not None
        return self._root.exit

    def stop_now(self) -> None:
        """Turn what remains of the tree into kills."""
        self._root.kill()

    def inspect(self) -> TreeNode:
        """Describe the tree as it is now."""
        root = self._root
        return _node(root.spec, root if root.alive else None, ChildState.UP, 1, root.path, self.system.now())

    def stack(self, path: str) -> str:
        """Say where the task of the child at *path* is now, as text; empty when it is not alive."""
        process = self.find(path)
        if process is None:
            return ""
        return AT_REST if process.task is None else stack_of(process.task)

    def crash(self, path: str, error: Exception) -> bool:
        """
        Have the child at *path* fail with *error*; False when it is not alive.

        Actors and supervisors raise it in their loop at the next message boundary; others are cancelled.
        """
        process = self.find(path)
        if process is None:
            return False
        if process.body is not None:
            process.body.inject(error)
        else:
            process.fail(error)
        return True

    def process_count(self) -> int:
        """Count the live children, the root included."""
        return self.system.live

    def zombies(self) -> list[str]:
        """List the paths of children that outlived every kill and still run."""
        return list(self.system.zombies.values())

    @property
    def alive(self) -> bool:
        """Whether the root has not ended."""
        return self._root.alive

    # For the system and the root process

    @property
    def context(self) -> object:
        """None: a root starts from nothing."""
        return None

    def sibling(self, id: str) -> object | None:
        """Return None: a root has no siblings."""
        return None

    def find(self, path: str) -> Process | None:
        """Return the live process at *path*."""
        head, *rest = path.split(PATH_SEPARATOR)
        process = self._root if head == self._root.path and self._root.alive else None
        for id in rest:
            if process is None or not isinstance(process.body, Supervisor):
                return None
            process = process.body.kids.get(id)
        return process if process is not None and process.alive else None

    def halt(self) -> None:
        """Begin an orderly stop."""
        self._root.stop()

    def child_ready(self, process: Process) -> None:
        """Learn that the root is ready."""
        self._wake()

    def child_ended(self, process: Process) -> None:
        """Learn that the root is gone."""
        self._wake()

    async def start(self) -> None:
        """Launch the root and wait until it is ready."""
        root = self._root
        root.launch()
        while root.phase == INIT:
            try:
                await self._change()
            except asyncio.CancelledError:
                await self._abandon()
                raise
        if root.was_up:
            return
        if self.system.halt_error is not None:
            raise self.system.halt_error
        assert root.exit is not None
        error = root.exit.error
        if isinstance(error, StartFailed):
            raise error
        raise StartFailed(root.path, error if error is not None else RuntimeError(str(root.exit)), root.trace)

    async def _abandon(self) -> None:
        """Stop a tree whose starter was cancelled."""
        try:
            await self.stop()
        except asyncio.CancelledError:  # the starter raises its own
            return

    async def _change(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


async def start_tree(spec: ChildSpec, system: System) -> Tree:
    """
    Start *spec* as the root of a tree and return when it is ready.

    Raises:
        StartFailed: It, or a child below it, did not start; nothing is left running.
        SystemExit, KeyboardInterrupt: A child raised it during the start; nothing is left running.
    """
    tree = Tree(spec, system)
    await tree.start()
    return tree


def _node(
    spec: ChildSpec, process: Process | None, state: ChildState, incarnation: int, path: str, now_s: float
) -> TreeNode:
    body = None if process is None else process.body
    children: tuple[TreeNode, ...] = ()
    if isinstance(body, Supervisor):
        kids = body.kids
        children = tuple(
            _node(entry.spec, kids.get(id), entry.state, entry.incarnation, f"{path}{PATH_SEPARATOR}{id}", now_s)
            for id, entry in body.plan.children.items()
        )
    return TreeNode(
        path=path,
        id=spec.id,
        type=spec.type,
        state=_state(process, state),
        incarnation=incarnation,
        restarts=max(0, incarnation - 1),
        age_s=0.0 if process is None else now_s - process.started_s,
        mailbox=(
            MailboxInfo(length=len(body), limit=body.limit, dropped=body.dropped) if isinstance(body, Mailbox) else None
        ),
        helpers=0 if process is None else process.helper_count,
        children=children,
    )


def _state(process: Process | None, state: ChildState) -> str:
    if process is None or not process.alive:
        return state.value if process is None and state is not ChildState.UP else ChildState.UNDEFINED.value
    if process.stopping or process.killed or process.shielded:
        return "stopping"
    return "starting" if process.phase == INIT else ChildState.UP.value
