"""Sources: where a pipeline's events come from, asked for no more than was demanded."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import ClassVar, Generic, TypeVar

from serviceradar_poller.flow.events import END, End

T = TypeVar("T")


class Source(Generic[T]):
    """
    Subclass it; one producer calls it, never two calls at a time.

    Attributes:
        rewinds: Whether ``open`` can go back to what was given but not acknowledged. If it can, a ``produce``
            that raises is a crash: the producer starts again. If it can't, it fails the pipeline.
    """

    rewinds: ClassVar[bool] = False

    async def open(self, offset: int) -> None:
        """
        Prepare to go on with the first event whose offset is at least *offset*; 0 at the first time.

        Called before the first ``produce`` of each producer, after its start: it may wait for the outside.
        """

    async def produce(self, demand: int) -> Sequence[T] | End:
        """
        Wait until there is at least one event and return at most *demand*, or END.

        A cancel while it waits must lose nothing that ``open`` could not bring back.
        """
        raise NotImplementedError

    def offset_of(self, data: T) -> int | None:
        """Return the offset of *data*, more than that of the one before; None to have events counted from 0."""
        return None

    async def close(self) -> None:
        """Let go of what ``open`` and ``produce`` hold; at the end and after a crash."""


class IteratorSource(Source[T]):
    """
    An asynchronous iterator, read one item at a time; it can't be read again.

    Its ``aclose`` is called at the end, if it has one.
    """

    def __init__(self, items: AsyncIterator[T]) -> None:
        self._items = items

    async def produce(self, demand: int) -> Sequence[T] | End:
        """Read one item."""
        try:
            return (await anext(self._items),)
        except StopAsyncIteration:
            return END

    async def close(self) -> None:
        """Close a generator."""
        aclose = getattr(self._items, "aclose", None)
        if aclose is not None:
            await aclose()


class SequenceSource(Source[T]):
    """What is in memory already."""

    rewinds = True

    def __init__(self, items: Sequence[T]) -> None:
        self._items = items
        self._next = 0

    async def open(self, offset: int) -> None:
        """Go to *offset*."""
        self._next = offset

    async def produce(self, demand: int) -> Sequence[T] | End:
        """Return the next items."""
        items = self._items[self._next : self._next + demand]
        self._next += len(items)
        return items if items else END
