"""An actor's bounded mailbox, and the reference through which others reach it."""

from __future__ import annotations

import asyncio
import collections
import math
from collections.abc import Coroutine
from typing import Any, Generic, Protocol, TypeVar

from serviceradar_poller.events.kernel import MailboxOverflow
from serviceradar_poller.otp.errors import CallTimeout, DeadlockError, MailboxFull, NoProcess, PeerExited
from serviceradar_poller.otp.exits import NORMAL, ExitReason
from serviceradar_poller.otp.process import Process

M = TypeVar("M")
M_contra = TypeVar("M_contra", contravariant=True)


class Call:
    """A message whose sender waits for an answer."""

    __slots__ = ("future", "message")

    def __init__(self, message: Any, future: asyncio.Future[Any]) -> None:
        self.message = message
        self.future = future


class Resumable(Protocol):
    """An actor, as its mailbox sees it."""

    def resume(self, process: Process) -> Coroutine[Any, Any, None]:
        """Return the coroutine of what comes after a rest."""
        ...


class Mailbox:
    """
    Messages that wait for one actor.

    The queue exists only while something waits: most actors are idle most of the time.

    Attributes:
        actor: Whose it is, while it lives.
        limit: Messages from others that may wait; timers and monitors come on top, as many as were set.
        dropped: Messages refused so far.
        leave: Why the actor wants to leave after the current message.
    """

    __slots__ = (
        "_overflowing",
        "actor",
        "current",
        "deferred",
        "dropped",
        "injected",
        "leave",
        "limit",
        "monitors",
        "process",
        "queue",
        "reason",
        "timers",
        "waiter",
    )

    def __init__(self, process: Process, actor: Resumable, limit: int) -> None:
        self.process: Process | None = process
        self.actor: Resumable | None = actor
        self.limit = limit
        self.dropped = 0
        self.queue: collections.deque[Any] | None = None
        self.waiter: asyncio.Future[None] | None = None
        self.leave: ExitReason | None = None
        self.injected: BaseException | None = None
        self.current: asyncio.Future[Any] | None = None
        self.deferred: set[asyncio.Future[Any]] | None = None
        self.timers: Timer | set[Timer] | None = None
        self.monitors: dict[object, Process] | None = None
        self.reason = NORMAL
        self._overflowing = False

    def __len__(self) -> int:
        return len(self.queue) if self.queue is not None else 0

    def put(self, item: object) -> bool:
        """Let *item* wait, or count it as dropped; False when it was dropped."""
        queue = self.queue
        waiting = len(queue) if queue is not None else 0
        if waiting >= self.limit:
            self._overflow()
            return False
        if self._overflowing and 2 * waiting <= self.limit:
            self._overflowing = False  # it caught up: the next overflow is a new episode
        if queue is None:
            queue = self.queue = collections.deque()
        queue.append(item)
        self.wake()
        return True

    def force(self, item: object) -> None:
        """Let *item* wait, whatever the limit: for what is bounded otherwise."""
        if self.process is None:
            return
        if self.queue is None:
            self.queue = collections.deque()
        self.queue.append(item)
        self.wake()

    def wake(self) -> None:
        """Have the actor look."""
        waiter = self.waiter
        if waiter is not None:
            if not waiter.done():
                waiter.set_result(None)
        elif self.process is not None and self.process.resting:
            self.process.rouse()

    def resume(self) -> Coroutine[Any, Any, None]:
        """Return the coroutine of what comes after a rest."""
        assert self.actor is not None
        assert self.process is not None
        return self.actor.resume(self.process)

    def answer(self, value: object) -> None:
        """Answer the current call, unless its caller has gone or its handler took it over."""
        future, self.current = self.current, None
        if future is not None and not future.done():
            future.set_result(value)

    def refuse(self) -> None:
        """Count a message that comes too late."""
        self.dropped += 1

    def inject(self, error: BaseException) -> None:
        """Raise *error* in the actor at the next message boundary."""
        self.injected = error
        self.wake()

    def ended(self, reason: ExitReason) -> None:
        """Refuse whatever waits for an answer, and stop the timers."""
        process = self.process
        self.process = self.actor = None
        self.reason = reason
        waiting = [self.current] if self.current is not None else []
        waiting += self.deferred or ()
        waiting += [item.future for item in self.queue or () if type(item) is Call]
        for future in waiting:
            if not future.done() and process is not None:
                future.set_exception(PeerExited(process.path, reason))
        timers = self.timers
        for timer in (timers,) if isinstance(timers, Timer) else timers or ():
            timer.stop()
        for token, peer in (self.monitors or {}).items():
            peer.unwatch(token)
        self.queue = self.deferred = self.timers = self.monitors = self.current = self.injected = None

    def _overflow(self) -> None:
        self.dropped += 1
        if not self._overflowing and self.process is not None:
            self._overflowing = True
            self.process.system.emit(MailboxOverflow(path=self.process.path, limit=self.limit))


class Timer:
    """A message to oneself that is under way."""

    __slots__ = ("_handle", "_mailbox", "_message")

    def __init__(self, mailbox: Mailbox, delay_s: float, message: object) -> None:
        self._mailbox = mailbox
        self._message = message
        context = None if mailbox.process is None else mailbox.process.system.context
        self._handle: asyncio.TimerHandle | None = asyncio.get_running_loop().call_later(
            delay_s, self._fire, context=context
        )
        timers = mailbox.timers
        if timers is None:
            mailbox.timers = self  # a set for one would be three times the timer's size
        elif isinstance(timers, set):
            timers.add(self)
        else:
            mailbox.timers = {timers, self}

    def cancel(self) -> None:
        """Take the message back, unless it is in the mailbox already."""
        self.stop()
        self._forget()

    def stop(self) -> None:
        """Stop with the actor."""
        if self._handle is not None:
            self._handle.cancel()

    def _fire(self) -> None:
        self._handle = None  # it holds this method: a cycle, which only the garbage collector would find
        self._forget()
        self._mailbox.force(self._message)

    def _forget(self) -> None:
        timers = self._mailbox.timers
        if timers is self:
            self._mailbox.timers = None
        elif isinstance(timers, set):
            timers.discard(self)


class Reply:
    """The answer to a call that its handler gives later; without a caller it does nothing."""

    __slots__ = ("_future", "_mailbox")

    def __init__(self, mailbox: Mailbox, future: asyncio.Future[Any] | None) -> None:
        self._mailbox = mailbox
        self._future = future
        if future is not None:
            if mailbox.deferred is None:
                mailbox.deferred = set()
            mailbox.deferred.add(future)

    def ok(self, value: object) -> None:
        """Answer with *value*; the first answer counts."""
        future = self._take()
        if future is not None:
            future.set_result(value)

    def error(self, error: Exception) -> None:
        """Raise *error* at the caller; the first answer counts."""
        future = self._take()
        if future is not None:
            future.set_exception(error)

    def _take(self) -> asyncio.Future[Any] | None:
        future, self._future = self._future, None
        if future is None:
            return None
        if self._mailbox.deferred is not None:
            self._mailbox.deferred.discard(future)
        return None if future.done() else future


class Ref(Generic[M_contra]):
    """
    One incarnation of an actor, seen from outside.

    Messages of one sender arrive in the order sent. A Ref never comes to mean a later incarnation.
    """

    __slots__ = ("_mailbox", "incarnation", "path")

    def __init__(self, mailbox: Mailbox, path: str, incarnation: int) -> None:
        self._mailbox = mailbox
        self.path = path
        self.incarnation = incarnation

    def __repr__(self) -> str:
        return f"<Ref {self.path}#{self.incarnation}{'' if self.alive else ' dead'}>"

    @property
    def alive(self) -> bool:
        """Whether the actor has not ended."""
        return self._mailbox.process is not None

    @property
    def exit_reason(self) -> ExitReason | None:
        """Why the actor ended, once it has."""
        return None if self.alive else self._mailbox.reason

    def cast(self, message: M_contra) -> bool:
        """Send *message*; False, and counted, when the mailbox is full or the actor is dead."""
        mailbox = self._mailbox
        if mailbox.process is None:
            mailbox.refuse()
            return False
        return mailbox.put(message)

    async def call(self, message: M_contra, *, timeout_s: float = 5.0) -> Any:
        """
        Send *message* and return the handler's answer.

        Raises:
            NoProcess: The actor is dead.
            MailboxFull: Too many messages wait.
            CallTimeout: No answer within *timeout_s*; the message may still be handled.
            PeerExited: The actor ended first, of this message or of another.
            DeadlockError: The caller is the actor itself.
        """
        mailbox = self._mailbox
        process = mailbox.process
        if process is None:
            mailbox.refuse()
            raise NoProcess(self.path)
        if process.task is asyncio.current_task():
            raise DeadlockError(self.path)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] | None = loop.create_future()
        assert future is not None
        if not mailbox.put(Call(message, future)):
            raise MailboxFull(self.path, mailbox.limit)
        timer = None
        if timeout_s < math.inf:
            timer = loop.call_later(timeout_s, _expire, future, self.path, timeout_s)
        try:
            return await future
        finally:
            if timer is not None:
                timer.cancel()
            future = None  # else an exception holds this frame, which holds the exception

    def watch(self, watcher: Mailbox, token: object, deliver: Any) -> ExitReason | None:
        """Have *deliver* called with the reason at the end; return the reason when it is dead already."""
        process = self._mailbox.process
        if process is None:
            return self._mailbox.reason
        process.watch(token, deliver)
        if watcher.monitors is None:
            watcher.monitors = {}
        watcher.monitors[token] = process
        return None


def _expire(future: asyncio.Future[Any], path: str, timeout_s: float) -> None:
    if not future.done():
        future.set_exception(CallTimeout(path, timeout_s))
