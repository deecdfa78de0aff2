"""
Supervisors: they perform what the plan decides.

A supervisor is itself a process: one task that works off its inbox (exits, operations, retries) and rests when that is
empty. While it starts or stops a child it waits for that child alone; all else waits in the inbox, as in OTP.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final

from serviceradar_poller.events import kernel as events
from serviceradar_poller.otp import plan as plans
from serviceradar_poller.otp.errors import (
    ChildError,
    NoProcess,
    SpecError,
    StartFailed,
)
from serviceradar_poller.otp.exits import KILLED, NORMAL, SHUTDOWN, ExitReason, failed
from serviceradar_poller.otp.plan import Plan, Refusal
from serviceradar_poller.otp.process import ENDED, INIT, Process
from serviceradar_poller.otp.spec import (
    PATH_SEPARATOR,
    ChildSpec,
    KernelStart,
    SupervisorFlags,
    check_children,
)
from serviceradar_poller.otp.supref import ChildCounts, ChildInfo, Request, SupervisorRef, error_of

Children = Sequence[ChildSpec] | Callable[[], Sequence[ChildSpec]]

#: Inbox items handled before others get a turn: a storm of exits must not hold the loop.
ITEMS_PER_TURN: Final = 32


@dataclass(frozen=True, slots=True)
class _Retry:
    """A TryAgain on its way through the inbox, with why the last start failed."""

    id: str
    reason: ExitReason


@dataclass(frozen=True, slots=True)
class _Rebuild:
    """A quarantine that is over."""

    id: str
    attempt: int


class _Leaving(Exception):  # noqa: N818 — a signal within this module
    """The supervisor ends by its own decision."""


class SupervisorStart(KernelStart):
    """Starts a supervisor."""

    __slots__ = ("children", "context", "flags")
    bounded = True

    def __init__(self, flags: SupervisorFlags, children: Children, context: object = None) -> None:
        self.flags = flags
        self.children = children
        self.context = context

    def run(self, process: Process) -> Coroutine[Any, Any, None]:
        """Return the coroutine of the supervisor's whole life."""
        return Supervisor(process, self).run()


class Supervisor:
    """One running supervisor."""

    __slots__ = (
        "_delays",
        "_inbox",
        "_injected",
        "_start_info",
        "_starting",
        "_waiter",
        "closed",
        "kids",
        "plan",
        "process",
    )

    def __init__(self, process: Process, start: SupervisorStart) -> None:
        self.process = process
        self.plan = Plan(start.flags, ())
        #: Processes by id, from launch until the supervisor has dealt with their end.
        self.kids: dict[str, Process] = {}
        #: Whether it serves no more operations.
        self.closed = False
        self._start_info = start
        self._inbox: collections.deque[Process | Request | _Retry | _Rebuild] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._starting: Process | None = None
        self._injected: BaseException | None = None
        self._delays: dict[str, asyncio.TimerHandle] | None = None

    # Life

    async def run(self) -> None:
        """Start the children unless it comes from a rest, serve, stop the children."""
        process = self.process
        cancelled = False
        try:
            if process.resting:
                process.resting = False
                if process.stopping or process.killed or process.fault is not None or process.exit is not None:
                    raise asyncio.CancelledError  # what a task that was not at rest would have got
            else:
                process.body = self
                await self._boot()
                process.ready(SupervisorRef(self, process.path, process.incarnation))
            await self._serve()
            return  # for a rest
        except _Leaving:
            reason = SHUTDOWN
        except asyncio.CancelledError:
            cancelled = True
            reason = process.fault or (SHUTDOWN if process.stopping else KILLED)
        except (SystemExit, KeyboardInterrupt) as error:  # out of a callable that lists the children
            reason = failed(error)
            process.system.halt(error)
        except Exception as error:  # noqa: BLE001 — an injected error, or a bug here: children must not outlive it
            reason = failed(error)
        self.closed = True
        process.begin_cleanup()
        await self._stop_all()
        process.exit = reason
        if cancelled:
            raise asyncio.CancelledError

    async def _boot(self) -> None:
        children = self._start_info.children
        specs = check_children(children() if callable(children) else children, self.plan.flags.auto_shutdown)
        self.plan = Plan(self.plan.flags, specs)
        for spec in specs:
            failure = await self._start(spec.id)
            if failure is not None:
                raise failure

    async def _serve(self) -> None:
        handled = 0
        while True:
            if self._injected is not None:
                error, self._injected = self._injected, None
                raise error
            inbox = self._inbox
            if not inbox:
                self._inbox = None
                handled = 0
                if self.process.rest():
                    return
                await self._wait()
                continue
            if handled >= ITEMS_PER_TURN:
                handled = 0
                await asyncio.sleep(0)
                continue
            handled += 1
            item = inbox.popleft()
            if isinstance(item, Process):
                await self._exited(item)
            elif isinstance(item, Request):
                await self._serve_request(item)
            elif isinstance(item, _Retry):
                await self._perform(self.plan.retry(item.id, now_s=self._now()), item.reason)
            else:
                await self._perform(self.plan.rebuild(item.id, item.attempt))

    # Restarts

    async def _exited(self, kid: Process) -> None:
        id = kid.spec.id
        if self.kids.get(id) is not kid or self.process.system.halt_error is not None:
            return  # dealt with already, or the tree is about to stop
        del self.kids[id]
        reason = kid.exit
        assert reason is not None
        decision = self.plan.exited(
            id, abnormal=reason.abnormal, now_s=self._now(), chance=self.process.system.random()
        )
        await self._perform(decision, reason)

    async def _perform(self, decision: plans.Decision | None, reason: ExitReason = NORMAL) -> None:
        match decision:
            case None:
                pass
            case plans.Round():
                await self._round(decision)
            case plans.TryAgain():
                self._post(_Retry(decision.id, reason))
            case plans.Delay():
                self._quarantine(decision, reason)
            case plans.GiveUp():
                flags = self.plan.flags
                self._emit(
                    events.SupervisorGaveUp(
                        path=self.process.path,
                        child=decision.id,
                        error=str(reason),
                        intensity=flags.intensity,
                        period_s=flags.period_s,
                    )
                )
                raise _Leaving
            case plans.Leave():
                raise _Leaving

    async def _round(self, round: plans.Round) -> None:
        group = tuple(id for id in round.start if id != round.trigger)
        self._emit(events.ChildRestarting(path=self._path(round.trigger), attempt=round.attempt, group=group))
        for id in round.stop:
            await self._stop(id)
        for id in round.start:
            failure = await self._start(id)
            if failure is None:
                continue
            decision = self.plan.start_failed(id, now_s=self._now(), chance=self.process.system.random())
            await self._perform(decision, failed(failure))
            if isinstance(decision, plans.TryAgain):
                return

    def _quarantine(self, delay: plans.Delay, reason: ExitReason) -> None:
        self._emit(
            events.ChildQuarantined(
                path=self._path(delay.id), attempt=delay.attempt, delay_s=delay.delay_s, error=str(reason)
            )
        )
        if self._delays is None:
            self._delays = {}
        self._delays[delay.id] = asyncio.get_running_loop().call_later(
            delay.delay_s, self._delay_over, delay.id, delay.attempt
        )

    def _delay_over(self, id: str, attempt: int) -> None:
        if self._delays is not None:
            self._delays.pop(id, None)
        self._post(_Rebuild(id, attempt))

    def _forget_delay(self, id: str) -> None:
        if self._delays:
            handle = self._delays.pop(id, None)
            if handle is not None:
                handle.cancel()

    # One child

    async def _start(self, id: str) -> StartFailed | None:
        """Start *id* and wait until it is ready; return why it did not start."""
        self._forget_delay(id)
        plan = self.plan
        spec = plan.children[id].spec
        process = self.process
        kid = Process(
            spec,
            path=f"{process.path}{PATH_SEPARATOR}{id}",
            incarnation=plan.mark_starting(id),
            system=process.system,
            owner=self,
        )
        self.kids[id] = kid
        kid.launch()
        self._starting = kid
        while kid.phase == INIT:
            await self._wait()
        self._starting = None
        if kid.was_up:  # if it is gone before we looked, its exit waits in the inbox
            plan.mark_up(id, self._now())
            return None
        del self.kids[id]
        if kid.ignored:
            plan.mark_ignored(id)
            return None
        error = None if kid.exit is None else kid.exit.error
        assert error is not None
        return error if isinstance(error, StartFailed) else StartFailed(kid.path, error, kid.trace)

    async def _stop(self, id: str) -> None:
        """Stop *id* and wait until it is gone."""
        self._forget_delay(id)
        kid = self.kids.get(id)
        if kid is not None:
            kid.stop()
            while kid.phase != ENDED:
                await self._wait()
            del self.kids[id]
        self.plan.mark_stopped(id)

    async def _stop_all(self) -> None:
        """Stop every child, backwards or all at once; a cancel meanwhile turns the rest into kills."""
        for handle in (self._delays or {}).values():
            handle.cancel()
        self._delays = None
        order = [self.kids[id] for id in self.plan.children if id in self.kids]
        if self._starting is not None and self._starting in order:
            order.remove(self._starting)
            order.append(self._starting)
        order.reverse()
        if self.process.killed:
            self._kill(order)
        elif self.plan.flags.parallel_stop:
            for kid in order:
                kid.stop()
        for kid in order:
            kid.stop()
            while kid.phase != ENDED:
                try:
                    await self._wait()
                except asyncio.CancelledError:  # raised again by run, when all are gone
                    self._kill(order)
        self.kids.clear()

    @staticmethod
    def _kill(kids: list[Process]) -> None:
        for kid in kids:
            kid.kill()

    # Operations

    async def _serve_request(self, request: Request) -> None:
        if request.future.done():  # the caller has gone
            return
        future = request.future
        try:
            answer = await self._operate(request)
            if not future.done():
                future.set_result(answer)
        except (ChildError, StartFailed, SpecError) as error:
            error.__traceback__ = None
            if not future.done():
                future.set_exception(error)
        finally:  # the supervisor itself ends in the middle of the operation
            if not future.done():
                future.set_exception(NoProcess(self.process.path))

    async def _operate(self, request: Request) -> object:
        match request.operation:
            case "start":
                return await self._start_new(request.argument)
            case "restart":
                return await self._start_again(request.argument)
            case "terminate":
                self._refuse(self.plan.refuse_terminate(request.argument), request.argument)
                await self._stop(request.argument)
                return None
            case "delete":
                self._refuse(self.plan.refuse_restart(request.argument), request.argument)
                self.plan.drop(request.argument)
                return None
            case "which":
                return self.which()
            case "count":
                specs, active, supervisors, workers = self.plan.counts()
                return ChildCounts(specs=specs, active=active, supervisors=supervisors, workers=workers)

    async def _start_new(self, spec: ChildSpec) -> object:
        self._refuse(self.plan.add(spec), getattr(spec, "id", ""))
        failure = await self._start(spec.id)
        if failure is not None:
            self.plan.drop(spec.id)
            raise failure
        return self._handle(spec.id)

    async def _start_again(self, id: str) -> object:
        self._refuse(self.plan.refuse_restart(id), id)
        failure = await self._start(id)
        if failure is not None:
            raise failure
        return self._handle(id)

    def which(self) -> list[ChildInfo]:
        """List the children in start order."""
        delays = self._delays or {}
        return [
            ChildInfo(
                id=id,
                handle=self._handle(id),
                state=entry.state,
                type=entry.spec.type,
                incarnation=entry.incarnation,
                quarantined=id in delays,
            )
            for id, entry in self.plan.children.items()
        ]

    def _handle(self, id: str) -> object | None:
        kid = self.kids.get(id)
        return None if kid is None else kid.handle

    def _refuse(self, refusal: Refusal | None, id: str) -> None:
        if refusal is not None:
            raise error_of(refusal, self._path(id), self._handle(id), self.plan.flags.max_children or 0)

    # What others ask and tell it

    @property
    def context(self) -> object:
        """What `member` makes actors from."""
        return self._start_info.context

    def sibling(self, id: str) -> object | None:
        """Return the handle of the live child *id*."""
        return self._handle(id)

    def child_ready(self, process: Process) -> None:
        """Learn that a child is ready."""
        self._wake()

    def child_ended(self, process: Process) -> None:
        """Learn that a child is gone."""
        if not self.closed and process.was_up:
            self._post(process)
        self._wake()

    def ask(self, request: Request) -> None:
        """Take an operation into the queue."""
        self._post(request)

    def waits_for(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether it waits for a start that *task* is part of, at any depth."""
        starting = self._starting
        while starting is not None and starting.phase == INIT:
            if task is not None and starting.task is task:
                return True
            body = starting.body
            starting = body._starting if isinstance(body, Supervisor) else None
        return False

    def resume(self) -> Coroutine[Any, Any, None]:
        """Return the coroutine of what comes after a rest."""
        return self.run()

    def inject(self, error: BaseException) -> None:
        """Raise *error* in the loop at the next message boundary."""
        self._injected = error
        self._wake()

    def ended(self, reason: ExitReason) -> None:
        """Refuse the operations that wait."""
        self.closed = True
        inbox, self._inbox = self._inbox, None
        for item in inbox or ():
            if isinstance(item, Request) and not item.future.done():
                item.future.set_exception(NoProcess(self.process.path))

    # Inside

    def _post(self, item: Process | Request | _Retry | _Rebuild) -> None:
        # Bounded by the number of children (exits, retries) and of callers that wait (operations).
        if self._inbox is None:
            self._inbox = collections.deque()
        self._inbox.append(item)
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        elif self.process.resting:
            self.process.rouse()

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _path(self, id: str) -> str:
        return f"{self.process.path}{PATH_SEPARATOR}{id}"

    def _now(self) -> float:
        return self.process.system.now()

    def _emit(self, event: events.KernelEvent) -> None:
        self.process.system.emit(event)
