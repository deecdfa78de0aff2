"""What the start of a child gets: the running child's own view of itself."""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    from serviceradar_poller.otp.system import System

T = TypeVar("T")


class Child(abc.ABC):
    """
    A running child as it sees itself.

    Attributes:
        path: ``/``-joined ids from the root, such as ``poller/agents/edge-01/connection``.
        incarnation: Starts of this id within its supervisor, from 1.
        system: What the tree shares.
    """

    __slots__ = ("incarnation", "path", "system")

    path: str
    incarnation: int
    system: System

    @abc.abstractmethod
    def ready(self, handle: object = None) -> None:
        """End the init: the next sibling may start, and *handle* is what others get to see of this child."""

    @abc.abstractmethod
    def ignore(self) -> NoReturn:
        """Leave the init without a failure: the child is not wanted now; its spec stays."""

    @abc.abstractmethod
    def spawn(self, coro: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """
        Run *coro* as a helper task that this child owns.

        It is cancelled and awaited when the child ends. An exception that escapes it ends the child with
        HelperFailed; a helper that returns or is cancelled does not.
        """
