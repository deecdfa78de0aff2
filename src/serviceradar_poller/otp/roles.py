"""What a process asks of the two it stands between: who started it, and what runs in it."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from serviceradar_poller.otp.exits import ExitReason
    from serviceradar_poller.otp.process import Process


class Owner(Protocol):
    """Who started a process; *context* is what it gives its children to start from."""

    @property
    def context(self) -> object:
        """What `member` makes actors from."""
        ...

    def sibling(self, id: str) -> object | None:
        """Return the handle of the live child *id*."""
        ...

    def child_ready(self, process: Process) -> None:
        """Learn that the process left its init for work."""
        ...

    def child_ended(self, process: Process) -> None:
        """Learn that the process and its helpers are gone."""
        ...


class Body(Protocol):
    """What runs in a process where the kernel knows it: an actor's mailbox or a supervisor."""

    def inject(self, error: BaseException) -> None:
        """Raise *error* in the loop at the next message boundary."""
        ...

    def resume(self) -> Coroutine[Any, Any, None]:
        """Return the coroutine of what comes after a rest."""
        ...

    def ended(self, reason: ExitReason) -> None:
        """Refuse whatever still waits for an answer."""
        ...
