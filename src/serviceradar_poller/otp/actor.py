"""Actors: a loop of receive, decide, do, whose state no other task touches."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, Final, Generic, TypeVar

from serviceradar_poller.otp.build import build_spec
from serviceradar_poller.otp.child import Child
from serviceradar_poller.otp.exits import NORMAL, SHUTDOWN, ExitReason, failed
from serviceradar_poller.otp.mailbox import Call, Mailbox, Ref, Reply, Timer
from serviceradar_poller.otp.process import Process
from serviceradar_poller.otp.spec import ChildSpec, KernelStart
from serviceradar_poller.otp.system import System

M = TypeVar("M")
T = TypeVar("T")

#: Messages handled before others get a turn: a handler that never waits must not hold the loop.
MESSAGES_PER_TURN: Final = 64


class Actor(Generic[M]):
    """
    Subclass it: ``handle`` gets one message at a time, in the order of arrival.

    An order to stop cancels the handler that runs; then ``terminate`` runs, within the grace of the spec.

    Attributes:
        mailbox_limit: Messages from others that may wait.
        rests: It has no task while it has nothing to do. That saves a kilobyte, and costs some 5 µs whenever it gets
            something to do: for actors that are many, and seldom spoken to.
        child: The running child, from before init.
        ref: What others reach this incarnation by, from before init.
    """

    __slots__ = ("_mailbox", "child", "ref")

    mailbox_limit: int = 1_000
    rests: bool = False
    child: Child
    ref: Ref[M]
    _mailbox: Mailbox

    async def init(self) -> None:
        """Prepare; the next sibling starts after it. Nothing that may take long or depends on the outside."""

    async def handle(self, message: M) -> object:
        """Handle one message; what it returns answers a call. An exception that escapes ends the actor."""
        raise NotImplementedError

    async def terminate(self, reason: ExitReason) -> None:
        """Clean up, after an order to stop, an exit or a crash; not after a kill or a failed init."""

    @property
    def path(self) -> str:
        """Its place in the tree."""
        return self.child.path

    @property
    def system(self) -> System:
        """What the tree shares."""
        return self.child.system

    def send_after(self, delay_s: float, message: M) -> Timer:
        """Send *message* to oneself after *delay_s*; never dropped, gone with the actor."""
        return Timer(self._mailbox, delay_s, message)

    def send_self(self, message: M) -> None:
        """Send *message* to oneself; never dropped: for the results of one's own helpers, which bound it."""
        self._mailbox.force(message)

    def monitor(self, ref: Ref[Any], to_message: Callable[[ExitReason], M]) -> None:
        """Get ``to_message(reason)`` as a message when *ref* ends, at once when it has; never dropped."""
        mailbox = self._mailbox
        token = object()

        def deliver(reason: ExitReason) -> None:
            if mailbox.monitors is not None:
                mailbox.monitors.pop(token, None)
            mailbox.force(to_message(reason))

        reason = ref.watch(mailbox, token, deliver)
        if reason is not None:
            mailbox.force(to_message(reason))

    def spawn(self, coro: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Run *coro* as a helper task that ends with this actor; an exception that escapes it ends both."""
        return self.child.spawn(coro, name=name)

    def sibling(self, id: str) -> object | None:
        """Return the handle of the live child *id* of the same supervisor."""
        return self._mailbox.process.owner.sibling(id) if self._mailbox.process is not None else None

    def resume(self, process: Process) -> Coroutine[Any, Any, None]:
        """For the kernel: return the coroutine of the life after a rest."""
        return _live(process, self)

    def stop(self, reason: ExitReason = NORMAL) -> None:
        """Leave with *reason* after the current message."""
        self._mailbox.leave = reason
        self._mailbox.wake()

    def defer_reply(self) -> Reply:
        """Take over the answer to the current call; what ``handle`` returns no longer answers it."""
        mailbox = self._mailbox
        future, mailbox.current = mailbox.current, None
        return Reply(mailbox, future)


def actor(id: str, factory: Callable[[], Actor[Any]], **spec_fields: Any) -> ChildSpec:
    """
    Make the spec of an actor; its handle is its Ref.

    Args:
        factory: Makes a fresh actor for each start.
        spec_fields: Further fields of ChildSpec.
    Raises:
        SpecError: A field is unknown or can't be used.
    """
    return build_spec(id, ActorStart(factory), spec_fields)


def member(id: str, make: Callable[[Any], Actor[Any]], **spec_fields: Any) -> ChildSpec:
    """
    Make the spec of an actor that is made from its supervisor's context, so that many supervisors can share it.

    Args:
        make: Makes a fresh actor for each start.
        spec_fields: Further fields of ChildSpec.
    Raises:
        SpecError: A field is unknown or can't be used.
    """
    return build_spec(id, MemberStart(make), spec_fields)


class MemberStart(KernelStart):
    """Starts an actor made from its supervisor's context."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[Any], Actor[Any]]) -> None:
        self.make = make

    def run(self, process: Process) -> Coroutine[Any, Any, None]:
        """Return the coroutine of the actor's whole life."""
        return _live(process, functools.partial(self.make, process.owner.context))


class ActorStart(KernelStart):
    """Starts an actor."""

    __slots__ = ("factory",)

    def __init__(self, factory: Callable[[], Actor[Any]]) -> None:
        self.factory = factory

    def run(self, process: Process) -> Coroutine[Any, Any, None]:
        """Return the coroutine of the actor's whole life."""
        return _live(process, self.factory)


async def _live(process: Process, start: Actor[Any] | Callable[[], Actor[Any]]) -> None:
    """Init unless it comes from a rest, loop, terminate: one frame for an idle actor, none below it."""
    cancelled = False
    try:
        if isinstance(start, Actor):
            process.resting = False
            actor = start
            mailbox = actor._mailbox
        else:
            actor = start()
            mailbox = actor._mailbox = Mailbox(process, actor, actor.mailbox_limit)
            actor.child = process
            actor.ref = Ref(mailbox, process.path, process.incarnation)
            process.body = mailbox
            await actor.init()
            process.ready(actor.ref)
        handled = 0
        while not process.stopping and process.fault is None:
            if mailbox.injected is not None:
                raise mailbox.injected
            if mailbox.leave is not None:
                break
            queue = mailbox.queue
            if not queue:
                mailbox.queue = queue = None  # an empty deque is 760 bytes, of which an idle tree needs none
                item = answer = None  # nor the last message, which may be large
                handled = 0
                if actor.rests and process.rest():
                    return
                mailbox.waiter = process.loop.create_future()
                await mailbox.waiter
                mailbox.waiter = None
                continue
            if handled >= MESSAGES_PER_TURN:
                handled = 0
                await asyncio.sleep(0)
                continue
            handled += 1
            item = queue.popleft()
            if type(item) is not Call:
                await actor.handle(item)
                continue
            if item.future.done():  # the caller has gone
                continue
            mailbox.current = item.future
            answer = await actor.handle(item.message)
            mailbox.answer(answer)
        reason = process.fault or (SHUTDOWN if process.stopping else mailbox.leave or NORMAL)
    except asyncio.CancelledError:
        if process.killed or not process.is_up:
            raise
        if process.fault is not None:
            reason = process.fault
        elif process.stopping:
            reason = SHUTDOWN
        else:
            raise  # cancelled by a stranger: killed, no cleanup
        cancelled = True
    except (SystemExit, KeyboardInterrupt) as error:
        reason = failed(error)
        process.system.halt(error)
    except Exception as error:  # noqa: BLE001 — it becomes the exit reason
        reason = failed(error)
    process.exit = reason
    if not process.is_up:
        return
    process.begin_cleanup()
    try:
        await actor.terminate(reason)
    except (SystemExit, KeyboardInterrupt) as error:
        process.exit = failed(error)
        process.system.halt(error)
    except Exception as error:  # noqa: BLE001 — it becomes the exit reason
        process.exit = failed(error)
    if cancelled:
        raise asyncio.CancelledError  # a new one: the old one's frames would keep this one alive
