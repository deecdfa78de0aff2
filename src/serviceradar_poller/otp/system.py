"""What a tree shares: where events go, time, chance, and what became of its processes."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from serviceradar_poller.events.kernel import KernelEvent

if TYPE_CHECKING:
    from serviceradar_poller.otp.process import Process

_GOLDEN: Final = 0.6180339887498949  # fractional part of the golden ratio: the most even of all sequences


class Root(Protocol):
    """What a system knows of its tree."""

    def find(self, path: str) -> Process | None:
        """Return the live process at *path*."""
        ...

    def halt(self) -> None:
        """Begin an orderly stop."""
        ...

    @property
    def alive(self) -> bool:
        """Whether the root has not ended."""
        ...


class System:
    """
    What a tree shares.

    Args:
        emit: Takes every event, in order; must neither block nor raise.
        clock: Monotonic seconds; the running loop's time if None.
        random: Uniform in 0..1, for jitter; an evenly spread sequence if None.
    """

    __slots__ = ("_emit", "_root", "context", "halt_error", "live", "now", "random", "zombies")

    def __init__(
        self,
        *,
        emit: Callable[[KernelEvent], None],
        clock: Callable[[], float] | None = None,
        random: Callable[[], float] | None = None,
    ) -> None:
        self._emit = emit
        #: Monotonic seconds.
        self.now: Callable[[], float] = clock if clock is not None else _loop_time
        self._root: Root | None = None
        self.random: Callable[[], float] = random if random is not None else _EvenSpread()
        #: Processes alive now.
        self.live = 0
        #: Paths of processes that outlived every kill, with the tasks that still run.
        self.zombies: dict[asyncio.Task[None], str] = {}
        #: The SystemExit or KeyboardInterrupt that ends the tree.
        self.halt_error: BaseException | None = None
        # One context for all of the kernel's callbacks: a copy for each would cost every child memory.
        self.context = contextvars.copy_context()

    def emit(self, event: KernelEvent) -> None:
        """Hand *event* out; a receiver that raises is reported to the loop and harms nobody."""
        try:
            self._emit(event)
        except Exception as error:  # noqa: BLE001 — reported; supervision must not depend on a receiver
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"the receiver of kernel events raised on {event!r}", "exception": error}
            )

    def whereis(self, path: str) -> object | None:
        """Return the handle of the live child at *path* (Ref, SupervisorRef or what ready() was given)."""
        process = self.find(path)
        return None if process is None else process.handle

    def find(self, path: str) -> Process | None:
        """Return the live process at *path*."""
        return None if self._root is None else self._root.find(path)

    def adopt(self, root: Root) -> None:
        """Make *root* this system's tree."""
        if self._root is not None and self._root.alive:
            raise RuntimeError("a System has one tree at a time")
        self._root = root

    def halt(self, error: BaseException) -> None:
        """Stop the tree in order because of a SystemExit or KeyboardInterrupt; the first one counts."""
        if self.halt_error is None:
            self.halt_error = error
        if self._root is not None:
            self._root.halt()


def _loop_time() -> float:
    return asyncio.get_running_loop().time()


class _EvenSpread:
    """Numbers in 0..1, never close to their neighbours: better for jitter than a die, and reproducible."""

    __slots__ = ("_value",)

    def __init__(self) -> None:
        self._value = 0.0

    def __call__(self) -> float:
        self._value = (self._value + _GOLDEN) % 1.0
        return self._value
