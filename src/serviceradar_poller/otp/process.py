"""
Running one child: start, ready, helpers, stop with grace, kill, zombie.

A process has one task and one done-callback, or at rest none at all: what is idle for most of its life gives its task
up, and gets another one with the next message or the order to stop. A stop is a small state machine of timers:

    stop ─ cancel ─► grace ─ cancel ─► KILL_WAIT_S ─ cancel ─► … KILL_LIMIT times ─► zombie
             └──────────┴─────────────────┴── task and helpers done ──► ended

The end is told once: to the events, to whoever monitors it, to its owner.
"""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Callable, Coroutine
from typing import Any, Final, NoReturn, TypeVar

from serviceradar_poller.events import kernel as events
from serviceradar_poller.otp.child import Child
from serviceradar_poller.otp.errors import EndedEarly, HelperFailed, StartTimeout
from serviceradar_poller.otp.exits import (
    KILLED,
    NORMAL,
    SHUTDOWN,
    ExitReason,
    drop_frames,
    failed,
    format_traceback,
    one_line,
)
from serviceradar_poller.otp.roles import Body, Owner
from serviceradar_poller.otp.spec import BRUTAL_KILL, WORKER_SHUTDOWN_S, ChildSpec, KernelStart
from serviceradar_poller.otp.stacks import stack_of
from serviceradar_poller.otp.system import System

T = TypeVar("T")

#: Cancels after the grace, and the wait after each: code that swallows five in a row won't heed a sixth.
KILL_LIMIT: Final = 5
KILL_WAIT_S: Final = 0.05

INIT: Final = 0
UP: Final = 1
ENDED: Final = 2


class Ignored(BaseException):
    """Raised by ``ignore``; no handler for Exception may catch it."""


class Process(Child):
    """The kernel's side of a Child."""

    __slots__ = (
        "_helpers",
        "_kills",
        "_owner",
        "_timer",
        "_trace",
        "_watchers",
        "body",
        "exit",
        "fault",
        "handle",
        "ignored",
        "killed",
        "phase",
        "resting",
        "shielded",
        "spec",
        "started_s",
        "stopping",
        "task",
        "was_up",
    )

    def __init__(self, spec: ChildSpec, *, path: str, incarnation: int, system: System, owner: Owner) -> None:
        self.path = path
        self.incarnation = incarnation
        self.system = system
        self.spec = spec
        self.phase = INIT
        self.handle: object = None
        self.task: asyncio.Task[None] | None = None
        self.body: Body | None = None
        #: Why it ended, once it has; a body may set it before its coroutine returns.
        self.exit: ExitReason | None = None
        #: Why it must end: a helper's error, an injected one.
        self.fault: ExitReason | None = None
        self.ignored = False
        #: True from the end of a task that left for a rest to the first step of the next one.
        self.resting = False
        self.stopping = False
        self.killed = False
        #: True while the body cleans up by itself: an order to stop then only starts the grace.
        self.shielded = False
        #: Whether it ever was ready.
        self.was_up = False
        self.started_s = 0.0
        self._owner: Owner = owner
        self._helpers: dict[asyncio.Task[Any], None] | None = None
        self._watchers: dict[object, Callable[[ExitReason], None]] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._kills = 0
        self._trace = ""

    # Child

    def ready(self, handle: object = None) -> None:
        """End the init."""
        if self.phase != INIT:
            raise RuntimeError(f"{self.path}: ready twice, or after the end")
        if self.fault is not None or self.killed:
            return  # too late: the end is under way, and a start that timed out has failed
        self.phase = UP
        self.was_up = True
        self.handle = handle
        if self._timer is not None and not self.stopping:
            self._disarm()
        self.system.emit(events.ChildStarted(path=self.path, incarnation=self.incarnation))
        self._owner.child_ready(self)

    def ignore(self) -> NoReturn:
        """Leave the init without a failure."""
        if self.phase != INIT:
            raise RuntimeError(f"{self.path}: ignore after ready")
        self.ignored = True
        raise Ignored

    def spawn(self, coro: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Run *coro* as a helper task."""
        if self.phase == ENDED or ((self.task is None or self.task.done()) and not self.resting):
            coro.close()
            raise RuntimeError(f"{self.path}: has ended, can't spawn {name}")
        task = asyncio.get_running_loop().create_task(_guard(self, coro), name=f"{self.path}:{name}")
        if self._helpers is None:
            self._helpers = {}
        self._helpers[task] = None
        task.add_done_callback(functools.partial(self._helper_done, name, coro), context=self.system.context)
        return task

    # Life

    def launch(self) -> None:
        """Create the task; the owner hears of ready or of the end."""
        loop = asyncio.get_running_loop()
        start = self.spec.start
        coro = start.run(self) if isinstance(start, KernelStart) else _run(self)
        self.started_s = self.system.now()
        self.system.live += 1
        self.task = loop.create_task(coro, name=self.path)
        self.task.add_done_callback(self._task_done, context=self.system.context)
        if self.spec.start_timeout_s < math.inf:
            self._arm(self.spec.start_timeout_s, self._start_expired)

    def rest(self) -> bool:
        """Live on without a task, the caller's, which is about to return; False when there is an end to attend to."""
        task = self.task
        if self.stopping or self.killed or self.fault is not None or task is None or task.cancelling():
            return False
        self.resting = True
        self.task = None
        return True

    def rouse(self) -> None:
        """Give a process at rest a task; no effect on any other."""
        if self.resting and self.task is None and self.body is not None:
            loop = asyncio.get_running_loop()
            # Whoever wakes it does not give it his context.
            self.task = loop.create_task(self.body.resume(), name=self.path, context=self.system.context.copy())
            self.task.add_done_callback(self._task_done, context=self.system.context)

    def stop(self) -> None:
        """Order the process to stop; after its grace it is killed."""
        if self.phase == ENDED or self.stopping or self.killed:
            return
        if self.spec.shutdown_s is BRUTAL_KILL:
            self.kill()
            return
        self.stopping = True
        if self.fault is None:  # else it has its cancel already, and a second one would cut its cleanup short
            self._cancel()
        self._start_grace()

    def fail(self, error: BaseException) -> None:
        """End the process with *error* as its reason, once it can be cancelled; after its grace it is killed."""
        if self.phase == ENDED or self.fault is not None:
            return
        self.fault = failed(error)
        if self.stopping or self.killed:
            return
        self._cancel()
        self._start_grace()

    def kill(self) -> None:
        """End the process without cleanup, as far as Python allows."""
        if self.phase == ENDED or self.killed:
            return
        self.killed = True
        self._kill_again()

    def watch(self, token: object, callback: Callable[[ExitReason], None]) -> None:
        """Have *callback* called when the process has ended; *token* is for unwatch."""
        assert self.phase != ENDED
        if self._watchers is None:
            self._watchers = {}
        self._watchers[token] = callback

    def unwatch(self, token: object) -> None:
        """Forget the callback under *token*."""
        if self._watchers is not None:
            self._watchers.pop(token, None)

    @property
    def owner(self) -> Owner:
        """Who started it."""
        return self._owner

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self.phase != ENDED

    @property
    def trace(self) -> str:
        """The traceback of the error that ended it, as text."""
        return self._trace

    @property
    def helper_count(self) -> int:
        """Helper tasks that run now."""
        return len(self._helpers) if self._helpers else 0

    @property
    def is_up(self) -> bool:
        """Whether it is past its init."""
        return self.phase == UP

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that its task runs on."""
        return asyncio.get_running_loop()

    def begin_cleanup(self) -> None:
        """From here an order to stop starts the grace only; the cancel that led here is used up."""
        self.shielded = True
        if not self.stopping and not self._bounded:
            self._start_grace()
        task = self.task
        while task is not None and task.cancelling():
            task.uncancel()

    # The end

    def _task_done(self, task: asyncio.Task[None]) -> None:
        if self.phase == ENDED:  # a zombie after all
            self.system.zombies.pop(task, None)
            if not task.cancelled():
                task.exception()  # retrieved: its end was reported when it was given up
            return
        if task is not self.task:  # it left for a rest
            return
        if self.resting and self._bounded:  # cancelled before its first step: it has children to stop all the same
            self.task, self.exit = None, KILLED
            self.rouse()
            return
        self.resting = False
        self.exit = self._reason_of(task)
        if self._helpers:
            self._reap_helpers()
        else:
            self._finish()

    def _reason_of(self, task: asyncio.Task[None]) -> ExitReason:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Ignored):
            drop_frames(error)
            if self.ignored and not self.stopping and not self.killed and self.fault is None:
                return NORMAL
            error = None
        if error is not None:
            reason = self._told(failed(error))
            return KILLED if self.killed else reason
        if self.killed:
            return KILLED
        if self.exit is not None:
            return self._told(self.exit)
        if self.fault is not None:
            return self._told(self.fault)
        if self.stopping:
            return SHUTDOWN
        return KILLED if task.cancelled() else NORMAL

    def _told(self, reason: ExitReason) -> ExitReason:
        if reason.error is not None:
            if not self._trace:
                self._trace = format_traceback(reason.error)
            drop_frames(reason.error)
        return reason

    def _reap_helpers(self) -> None:
        assert self._helpers is not None
        for helper in self._helpers:
            helper.cancel()
        if not self.stopping and not self.killed:  # a helper that won't end must not hide that its owner did
            self._start_grace()

    def _helper_done(self, name: str, coro: Coroutine[Any, Any, Any], task: asyncio.Task[Any]) -> None:
        coro.close()  # no effect unless it was cancelled before its first step
        error = None if task.cancelled() else task.exception()
        if self.phase == ENDED:
            self.system.zombies.pop(task, None)
            return
        assert self._helpers is not None
        self._helpers.pop(task, None)
        self._helpers = self._helpers or None  # an empty dictionary keeps the table that it had
        if error is not None:
            failure = HelperFailed(name, error)
            if self.exit is None:
                self.fail(failure)
            elif not self.exit.abnormal:
                self.exit = self._told(failed(failure))
        if self.exit is not None and self.task is not None and self.task.done() and not self._helpers:
            self._finish()

    def _finish(self) -> None:
        reason = self.exit
        assert reason is not None
        self.phase = ENDED
        self._disarm()
        self.system.live -= 1
        if self.was_up or self.stopping or (self.killed and self.fault is None):
            self._emit_exit(reason)
        elif not self.ignored:
            self.exit = reason = self._start_failure(reason)
            assert reason.error is not None
            self.system.emit(
                events.ChildStartFailed(
                    path=self.path,
                    incarnation=self.incarnation,
                    error=one_line(reason.error),
                    traceback=self._trace,
                )
            )
        body, self.body, self.handle, self.task, self._helpers = self.body, None, None, None, None
        watchers, self._watchers = self._watchers, None
        if body is not None:
            body.ended(reason)
        if watchers is not None:
            for callback in watchers.values():
                callback(reason)
        self._owner.child_ended(self)

    def _emit_exit(self, reason: ExitReason) -> None:
        self.system.emit(
            events.ChildExited(
                path=self.path,
                incarnation=self.incarnation,
                reason=reason.kind,
                error="" if reason.error is None else one_line(reason.error),
                traceback=self._trace,
            )
        )

    def _start_failure(self, reason: ExitReason) -> ExitReason:
        if self.fault is not None:
            return self.fault
        return reason if reason.error is not None else failed(EndedEarly(self.path, reason))

    # Timers and cancels

    def _cancel(self) -> None:
        if self.resting:  # nothing of it runs; its first step will see why it was roused
            self.rouse()
            return
        assert self.task is not None
        if not self.shielded and not self.task.done():
            self.task.cancel()

    def _start_expired(self) -> None:
        self._timer = None
        self.fault = failed(StartTimeout(self.path, self.spec.start_timeout_s))
        self.kill()

    @property
    def _grace_s(self) -> float:
        # An end of its own has a grace too where the spec grants none to an order: cleanup is always bounded.
        return WORKER_SHUTDOWN_S if self.spec.shutdown_s is BRUTAL_KILL else self.spec.grace_s

    @property
    def _bounded(self) -> bool:
        start = self.spec.start
        return isinstance(start, KernelStart) and start.bounded

    def _start_grace(self) -> None:
        self._disarm()
        if self._grace_s < math.inf:
            self._arm(self._grace_s, self._grace_over)

    def _grace_over(self) -> None:
        self._timer = None
        self.system.emit(events.ChildKilled(path=self.path, incarnation=self.incarnation, grace_s=self._grace_s))
        self.kill()

    def _kill_again(self) -> None:
        self._disarm()
        self.rouse()
        assert self.task is not None
        if self._bounded:
            if not self.resting and not self.task.done():
                self.task.cancel()
            return
        if self._kills >= KILL_LIMIT:
            self._give_up()
            return
        self._kills += 1
        if self.task.done():
            for helper in self._helpers or ():
                helper.cancel()
        else:
            self.task.cancel()
        self._arm(KILL_WAIT_S, self._kill_again)

    def _give_up(self) -> None:
        assert self.task is not None
        left = [task for task in (self.task, *(self._helpers or ())) if not task.done()]
        for task in left:
            self.system.zombies[task] = self.path
            task.cancel()
        self.system.emit(
            events.ChildZombie(
                path=self.path,
                incarnation=self.incarnation,
                kills=self._kills,
                stack="\n".join(stack_of(task) for task in left),
            )
        )
        if self.exit is None:
            self.exit = KILLED
        self._finish()

    def _arm(self, delay_s: float, callback: Callable[[], None]) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay_s, callback, context=self.system.context)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


async def _run(process: Process) -> None:
    """Run a stranger's start."""
    try:
        await process.spec.start(process)
    except (SystemExit, KeyboardInterrupt) as error:
        # Past this point they would tear down the loop itself, and with it every cleanup.
        process.exit = failed(error)
        process.system.halt(error)


async def _guard(process: Process, coro: Coroutine[Any, Any, T]) -> T:
    """Run a helper."""
    try:
        return await coro
    except (SystemExit, KeyboardInterrupt) as error:
        process.system.halt(error)
        raise HelperExit(one_line(error)) from None


class HelperExit(Exception):  # noqa: N818 — stands for a SystemExit within a task
    """A helper raised SystemExit or KeyboardInterrupt; the tree stops."""
