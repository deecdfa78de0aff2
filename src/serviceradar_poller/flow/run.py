"""One run of a pipeline, as its processes share it: what connects them, and whether it is over."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from serviceradar_poller.flow.events import Buffer, Poison, Policy
from serviceradar_poller.flow.ledger import Ledger
from serviceradar_poller.flow.link import Hop, Signal
from serviceradar_poller.flow.source import Source

OnPoison = Callable[[Poison], Awaitable[None]]


class Run:
    """
    What the processes of a running pipeline share; touched by one at a time, never across an await.

    Attributes:
        hops: In order, from the source to the last stage.
        draining: The source is not asked any more.
        ended: The last stage has finished.
        error: Why it failed, or what the last crash was.
        failed: It can't go on.
        change: Told to the keeper.
    """

    __slots__ = (
        "_finished",
        "buffer",
        "change",
        "draining",
        "ended",
        "error",
        "failed",
        "hops",
        "ledger",
        "on_poison",
        "opened",
        "source",
        "tries",
        "wanted_drain_s",
    )

    def __init__(
        self,
        *,
        source: Source[Any],
        ledger: Ledger,
        hops: list[Hop],
        buffer: Buffer,
        tries: int,
        on_poison: OnPoison | None,
        opened: bool,
    ) -> None:
        self.source = source
        self.ledger = ledger
        self.hops = hops
        self.buffer = buffer
        self.tries = tries
        self.on_poison = on_poison
        #: Whether the source was ever opened.
        self.opened = opened
        self.draining = False
        self.ended = False
        self.failed = False
        self.error: Exception | None = None
        self.change = Signal()
        #: Set to have the keeper drain.
        self.wanted_drain_s: float | None = None
        self._finished: set[str] = set()  # processes of the last stage

    @property
    def over(self) -> bool:
        """Whether there is nothing left to do."""
        return self.ended or self.failed

    def source_demand(self) -> int:
        """Events that the source may be asked for now."""
        if not self.hops[0].met:
            return 0
        room = self.hops[0].demand + self.buffer.limit
        if room > 0:
            return room
        # A source that is not to be stalled is always asked; what comes is dropped by the policy.
        return 0 if self.buffer.policy is Policy.BLOCK else self.buffer.limit

    def fail(self, error: Exception) -> None:
        """End the run: it can't go on; the first error counts."""
        if not self.over:
            self.failed = True
            self.error = error
            self.freeze()
            self.change.set()

    def crashed(self, error: Exception) -> None:
        """Learn of a crash that the supervisor is about to heal."""
        if not self.over:
            self.error = error

    def freeze(self) -> None:
        """Count and hand over nothing any more."""
        for hop in self.hops:
            hop.freeze()

    def consumer_started(self, id: str) -> None:
        """Learn that a process of the last stage is there (again)."""
        self._finished.discard(id)

    def consumer_finished(self, id: str) -> None:
        """Learn that a process of the last stage has got all there is."""
        self._finished.add(id)
        if len(self._finished) == len(self.hops[-1].links) and not self.failed:
            assert self.draining or not self.ledger.open_count, f"{self.ledger.open_count} events went missing"
            self.ended = True
            self.change.set()
