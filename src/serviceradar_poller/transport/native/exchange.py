"""Join a call of the HTTP/2 session with the task that waits for it."""

from __future__ import annotations

import asyncio

from serviceradar_poller.errors import CallError
from serviceradar_poller.transport.http2 import Call


class Exchange:
    """
    One call on a connection and who waits for it.

    Attributes:
        began_at: Before it waited for anything.
        failure: Why it ended, where that was not the peer's doing; the call's outcome tells the rest.
        waiter: What the caller awaits; set when something happened.
        each: Whether every message matters to the caller, not only the end.
    """

    __slots__ = ("began_at", "call", "deadline", "each", "failure", "timeout_s", "waiter")

    def __init__(self, call: Call, waiter: asyncio.Future[None], began_at: float, deadline: float) -> None:
        self.call = call
        self.waiter = waiter
        self.began_at = began_at
        self.deadline = deadline
        self.timeout_s = deadline - began_at
        self.each = False
        self.failure: CallError | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen; messages may still be taken."""
        return self.failure is not None or self.call.outcome is not None

    def wake(self) -> None:
        """Let the caller look."""
        if not self.waiter.done():
            self.waiter.set_result(None)

    def fail(self, failure: CallError) -> None:
        """End it on this side."""
        if self.failure is None:
            self.failure = failure
        self.wake()
