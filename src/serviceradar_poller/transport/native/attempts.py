"""Know how far an attempt to connect has come, and whether it is worth joining."""

from __future__ import annotations

import asyncio
from typing import Final

from serviceradar_poller.errors import CallError
from serviceradar_poller.transport.failures import ConnectStep
from serviceradar_poller.transport.native.connection import Connection

#: A call does not join an attempt that is older and in which another has waited in vain: its next SYN may be many
#: seconds away.
ATTEMPT_AGE_S_MAX: Final = 2.0


class Attempt:
    """
    One attempt to connect.

    Attributes:
        task: Gives the connection, or why there is none; None once it has ended.
        connection: From the connected socket on.
        doubted: A call ran out of time while it waited.
    """

    __slots__ = ("_began_at", "_step", "connection", "doubted", "task")

    def __init__(self, began_at: float) -> None:
        self._began_at = began_at
        self._step = ConnectStep.TCP
        self.connection: Connection | None = None
        self.doubted = False
        self.task: asyncio.Task[Connection | CallError] | None = None

    @property
    def step(self) -> ConnectStep:
        """What it waits for."""
        return self.connection.step if self.connection is not None else self._step

    def at(self, step: ConnectStep) -> None:
        """Note the next step before there is a connection."""
        self._step = step

    def stale(self, now: float) -> bool:
        """Whether a call had better begin another."""
        return self.doubted and now - self._began_at > ATTEMPT_AGE_S_MAX
