"""
An event loop on virtual time: deterministic, instantaneous, and able to tell a stuck program from a waiting one.

When nothing is ready, time jumps to the next timer. When there is no timer either, nothing can ever happen again:
SimDeadlock. With a seed, tasks that are ready at the same moment run in a drawn order; what one task or one callback
schedules keeps its order, and plain callbacks keep theirs, so every order drawn is one that a real loop could show.

Sets of tasks and futures iterate in a drawn order too, not in that of memory addresses, so that a seed gives the
same trace in every interpreter. Threads don't exist: what is sent to an executor runs at once, in place.
"""

from __future__ import annotations

import asyncio
import contextvars
import random  # noqa: TID251 — seeded, and the simulation's own
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Final, TypeVar

T = TypeVar("T")

#: Turns within which a program that was cancelled must have ended.
CANCEL_TURNS_MAX: Final = 100_000


class SimDeadlock(RuntimeError):  # noqa: N818 — names the state, as trio's and Go's do
    """Nothing is ready and no timer runs; the text lists the tasks and where they wait."""


class _SimTask(asyncio.Task[T]):
    """A task whose place in a set does not depend on its address."""

    def __init__(self, coro: Any, *, loop: SimLoop, name: str | None, context: Any, hash_value: int) -> None:
        self._hash_value = hash_value  # before the base's constructor, which puts the task into a set
        super().__init__(coro, loop=loop, name=name, context=context)

    def __hash__(self) -> int:
        return self._hash_value


class _SimFuture(asyncio.Future[T]):
    """A future whose place in a set does not depend on its address."""

    def __init__(self, *, loop: SimLoop, hash_value: int) -> None:
        self._hash_value = hash_value
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._hash_value


class _Selector:
    """Where a real loop would sleep, this one moves the clock."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        """Let *timeout* seconds go by; None is for ever."""
        if timeout is None:
            raise SimDeadlock(self._loop.describe())
        if timeout > 0:
            self._loop.advance()
        return []

    def close(self) -> None:
        """Nothing is held."""


class SimLoop(asyncio.BaseEventLoop):
    """
    The loop.

    Args:
        seed: Draws the order of tasks that are ready at the same moment; None keeps asyncio's own order.
        start_s: The first reading of the clock.
    """

    # Of BaseEventLoop, which typeshed does not show.
    _ready: Any
    _scheduled: list[asyncio.TimerHandle]

    def __init__(self, *, seed: int | None = None, start_s: float = 0.0) -> None:
        super().__init__()
        self._now_s = start_s
        self._random = None if seed is None else random.Random(seed)
        self._count = 0
        self._selector = _Selector(self)
        self._clock_resolution = 1e-9
        self.set_task_factory(self._make_task)  # type: ignore[arg-type]

    def time(self) -> float:
        """Virtual seconds."""
        return self._now_s

    def advance(self) -> None:
        """Move the clock to the next timer."""
        if self._scheduled:
            self._now_s = max(self._now_s, self._scheduled[0].when())

    def skip(self, seconds: float) -> None:
        """Let time pass in which nothing runs: the process was busy, or stopped."""
        self._now_s += seconds

    def create_future(self) -> asyncio.Future[Any]:
        """Make a future."""
        return _SimFuture(loop=self, hash_value=self._next_hash())

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Run *func* at once."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 — handed to whoever awaits
            future.set_exception(error)
        return future

    def pending_timers(self) -> list[asyncio.TimerHandle]:
        """List the timers that will fire."""
        return [handle for handle in self._scheduled if not handle.cancelled()]

    def describe(self) -> str:
        """List the tasks that have not ended, each with the place where it waits."""
        lines = [f"nothing is ready and no timer runs at {self._now_s:g} s"]
        for task in sorted(asyncio.all_tasks(self), key=lambda task: task.get_name()):
            frames = task.get_stack(limit=1)
            where = f"{frames[-1].f_code.co_filename}:{frames[-1].f_lineno}" if frames else "not started"
            lines.append(f"  {task.get_name()}: {where}")
        return "\n".join(lines)

    def _make_task(
        self, loop: SimLoop, coro: Coroutine[Any, Any, T] | Generator[Any, None, T], context: Any = None
    ) -> asyncio.Task[T]:
        if context is None:
            context = contextvars.copy_context()
        return _SimTask(coro, loop=self, name=None, context=context, hash_value=self._next_hash())

    def _next_hash(self) -> int:
        self._count += 1
        return self._count if self._random is None else self._random.getrandbits(60)

    def _run_once(self) -> None:
        if self._random is not None and len(self._ready) > 1:
            self._shuffle(self._random)
        super()._run_once()  # type: ignore[misc]

    def _shuffle(self, chance: random.Random) -> None:
        # Only steps of tasks change places, and only with each other: no task is ready twice, so none overtakes
        # itself; callbacks, which may rely on the order in which they were scheduled, stay where they are.
        ready = list(self._ready)
        places = [index for index, handle in enumerate(ready) if _is_task_step(handle)]
        drawn = places[:]
        chance.shuffle(drawn)
        shuffled = ready[:]
        for place, source in zip(places, drawn, strict=True):
            shuffled[place] = ready[source]
        self._ready.clear()
        self._ready.extend(shuffled)

    def _process_events(self, event_list: list[Any]) -> None:
        assert not event_list

    def _write_to_self(self) -> None:
        """Everything runs in one thread: there is nobody to wake."""


def run(main: Coroutine[Any, Any, T], *, seed: int | None = None, start_s: float = 0.0) -> T:
    """
    Run *main* on a fresh SimLoop, end what it left running, and return its result.

    Raises:
        SimDeadlock: It is stuck.
    """
    loop = SimLoop(seed=seed, start_s=start_s)
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(main)
    finally:
        try:
            _cancel_rest(loop)
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            asyncio.set_event_loop(None)
            loop.close()


def _cancel_rest(loop: SimLoop) -> None:
    rest = asyncio.all_tasks(loop)
    for task in rest:
        task.cancel()
    turns = 0
    while any(not task.done() for task in rest) and turns < CANCEL_TURNS_MAX:
        turns += 1
        loop.call_soon(loop.stop)
        loop.run_forever()


def _is_task_step(handle: asyncio.Handle) -> bool:
    callback = handle._callback  # type: ignore[attr-defined]
    return isinstance(getattr(callback, "__self__", None), asyncio.Task)
