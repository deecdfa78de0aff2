"""
Demand between two stages, as plain bookkeeping: who has asked for how much, what waits, what is in whose hand.

A hop stands between a stage and the next; each process of the next stage has a link to it.

    upstream ── push ──► lane: queue ── deliver ──► link: inbox ── take ──► holding ── done ──► (next hop, ledger)
       ▲ demand                                       │ ask max_demand, again when min_demand is left │
       └──────────────────────────────────────────────┴───────────────────────────────────────────────┘

All of it outlives the processes: what a link held when its process ended goes back to the front of its lane.
Nothing here waits; a Signal tells the process concerned to look.
"""

from __future__ import annotations

import asyncio
import collections
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from serviceradar_poller.flow.events import Batch, Event, Key, LinkInfo
from serviceradar_poller.flow.ledger import Ledger

Item = Event[Any] | Batch[Any]

DOWN: Final = 0  # not started yet, or crashed: its supervisor starts it again
UP: Final = 1
FINISHED: Final = 2  # it got all there is


class Signal:
    """Wakes the one process that waits for it; whoever waits looks first whether it has to."""

    __slots__ = ("_waiter",)

    def __init__(self) -> None:
        self._waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        """Wake it."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def wait(self) -> None:
        """Wait for the next ``set``."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


class Link:
    """One incarnation of a process's end of a hop; a closed one can't do anything any more."""

    __slots__ = (
        "_hop",
        "asked",
        "calls",
        "delivered",
        "holding",
        "id",
        "inbox",
        "lane",
        "max_demand",
        "min_demand",
        "pending",
        "signal",
        "state",
    )

    def __init__(self, hop: Hop, id: str, lane: collections.deque[Item], max_demand: int, min_demand: int) -> None:
        self._hop = hop
        self.id = id
        self.lane = lane
        self.max_demand = max_demand
        self.min_demand = min_demand
        self.signal = Signal()
        self.state = DOWN
        self.pending = 0
        self.asked = 0
        self.calls = 0
        self.delivered = 0
        self.inbox: collections.deque[Item] = collections.deque()
        self.holding: dict[int, Item] = {}

    def is_up(self) -> bool:
        """Whether its process may use it."""
        return self.state == UP

    @property
    def ended(self) -> bool:
        """Whether nothing will come any more."""
        return self._hop.ended and not self.lane and not self.inbox

    def ask(self) -> None:
        """Ask for what may still come, once no more than min_demand is under way or in hand."""
        under_way = self.pending + len(self.inbox) + len(self.holding)
        if under_way <= self.min_demand:
            count = self.max_demand - under_way
            self.pending += count
            self.asked += count
            self.calls += 1
            self._hop.asked(self, count)

    def deliver(self, item: Item) -> None:
        """Get one of those asked for."""
        assert self.pending > 0
        self.pending -= 1
        self.delivered += 1
        self.inbox.append(item)
        self.signal.set()

    def take(self) -> list[Item]:
        """Take into hand what has come, at most max_demand - min_demand, so that more comes meanwhile."""
        inbox = self.inbox
        if not inbox:
            return []
        items = [inbox.popleft() for _ in range(min(len(inbox), self.max_demand - self.min_demand))]
        for item in items:
            self.holding[item.offset] = item
        return items

    def done(self, item: Item) -> bool:
        """Let go of *item*; False when the link is closed, and the item somebody else's."""
        if self.state != UP:
            return False
        del self.holding[item.offset]
        if self.pending + len(self.inbox) + len(self.holding) <= self.min_demand:
            self.ask()
        return True

    def done_all(self, items: Iterable[Item]) -> bool:
        """Let go of *items*, and ask once; False when the link is closed."""
        if self.state != UP:
            return False
        for item in items:
            del self.holding[item.offset]
        self.ask()
        return True

    def info(self) -> LinkInfo:
        """Describe it."""
        return LinkInfo(
            id=self.id,
            max_demand=self.max_demand,
            calls=self.calls,
            asked=self.asked,
            delivered=self.delivered,
            in_hand=len(self.inbox) + len(self.holding),
            queued=len(self.lane),
        )


class Hop:
    """
    What stands between a stage and the next.

    Each event goes to one link, whichever has asked for most (one lane for all), unless a kind of hop has a lane
    for each link. While a process of the next stage is down nothing is delivered, so that what it held comes
    before what is newer, and is given anew once and not to each sibling that goes down with it.

    Args:
        upstream: The processes that push.
        ids: The processes of the next stage.
    """

    __slots__ = (
        "_ended",
        "_frozen",
        "_lanes",
        "_ledger",
        "_up",
        "_upstream",
        "links",
        "max_demand",
        "met",
        "min_demand",
        "on_demand",
        "pending",
        "queued",
    )

    def __init__(
        self, ledger: Ledger, upstream: Iterable[str], ids: Sequence[str], *, max_demand: int, min_demand: int
    ) -> None:
        self._ledger = ledger
        self.max_demand = max_demand
        self.min_demand = min_demand
        self._upstream: dict[str, bool] = dict.fromkeys(upstream, False)  # whether it has finished
        self._lanes = self._make_lanes(ids)
        self._ended = False
        self._frozen = False
        self._up = 0
        self.pending = 0
        self.queued = 0
        #: Whether all processes of the next stage were there once.
        self.met = False
        #: Signals of the processes that push.
        self.on_demand: list[Signal] = []
        self.links = {
            id: Link(self, id, lane, max_demand, min_demand) for id, lane in zip(ids, self._lanes, strict=True)
        }

    def _make_lanes(self, ids: Sequence[str]) -> list[collections.deque[Item]]:
        lane: collections.deque[Item] = collections.deque()
        return [lane] * len(ids)

    @property
    def demand(self) -> int:
        """Events that upstream may hand over now; negative when more wait than were asked for."""
        return self.pending - self.queued

    @property
    def ended(self) -> bool:
        """Whether nothing will be pushed any more and no process is down that may have to give something back."""
        return self._ended and self._up == len(self.links)

    # Downstream

    def open(self, id: str) -> Link:
        """Give the process *id*, which starts, a link of its own; it gets what its predecessor held."""
        old = self.links[id]
        self.close(old)
        if old.state == FINISHED:  # a sibling's crash brings it back
            self._up -= 1
        link = self.links[id] = Link(self, id, old.lane, self.max_demand, self.min_demand)
        link.state = UP
        self._up += 1
        if self._up == len(self.links):
            self.met = True
        link.ask()
        self._deliver_all()
        if self._ended:
            self._wake_links()
        return link

    def close(self, link: Link) -> None:
        """Take back all that *link* held, to be delivered again."""
        if link.state != UP:
            return
        link.state = DOWN
        self._up -= 1
        self.pending -= link.pending
        link.pending = 0
        items = [*link.holding.values(), *link.inbox]
        link.holding.clear()
        link.inbox.clear()
        if items:
            self._give_back(link, items)

    def finish(self, link: Link) -> None:
        """Learn that the process of *link* has got all there is and ends."""
        assert not link.holding and not link.inbox
        if link.state == UP:
            link.state = FINISHED
            self.pending -= link.pending
            link.pending = 0

    def asked(self, link: Link, count: int) -> None:
        """Learn that *link* asked for *count* more."""
        self.pending += count
        if self.queued:
            self._deliver_all()
        for signal in self.on_demand:
            signal.set()

    def _give_back(self, link: Link, items: list[Item]) -> None:
        count = 0
        for item in items:
            item.redelivered = True
            count += 1
            if isinstance(item, Batch):
                count += len(item.events) - 1
                for event in item.events:
                    event.redelivered = True
        self._ledger.returned(count)
        # What else waits may have been given back by a sibling: older ones come first, whosoever they were.
        merged = sorted([*items, *link.lane], key=lambda item: item.offset)
        link.lane.clear()
        link.lane.extend(merged)
        self.queued += len(items)

    # Upstream

    def push(self, item: Item) -> None:
        """Hand *item* over; it waits if nobody has asked for it."""
        self._lane_of(item).append(item)
        self.queued += 1
        if self.pending:
            self._deliver_all()

    def start(self, id: str) -> None:
        """Learn that the upstream process *id* is there (again)."""
        self._upstream[id] = False
        self._ended = False

    def end(self, id: str) -> None:
        """Learn that the upstream process *id* will push no more."""
        self._upstream[id] = True
        if all(self._upstream.values()):
            self._ended = True
            self._wake_links()

    def trim(self, limit: int, *, oldest: bool) -> list[Item]:
        """Take out what waits beyond *limit*, from the front or from the back of the longest lane."""
        taken = []
        while self.queued > limit:
            lane = max(self._lanes, key=len)
            taken.append(lane.popleft() if oldest else lane.pop())
            self.queued -= 1
        return taken

    def clear(self) -> None:
        """Forget all that waits: the source is read again. No process of the next stage may be up."""
        for lane in self._lanes:
            lane.clear()
        self.queued = 0

    def freeze(self) -> None:
        """Deliver and take back nothing any more."""
        self._frozen = True
        for link in self.links.values():
            link.state = DOWN

    def _lane_of(self, item: Item) -> collections.deque[Item]:
        return self._lanes[0]

    def _deliver_all(self) -> None:
        if self._frozen or self._up < len(self.links):
            return
        lane = self._lanes[0]
        if len(self.links) == 1:
            for link in self.links.values():
                self._deliver(link, lane)
            return
        links = self.links.values()
        while lane and self.pending:
            link = max(links, key=_pending)
            self.queued -= 1
            self.pending -= 1
            link.deliver(lane.popleft())

    def _deliver(self, link: Link, lane: collections.deque[Item]) -> None:
        count = min(link.pending, len(lane))
        self.queued -= count
        self.pending -= count
        for _ in range(count):
            link.deliver(lane.popleft())

    def _wake_links(self) -> None:
        for link in self.links.values():
            link.signal.set()


class PartitionHop(Hop):
    """Each event goes to the link that its key chooses, always the same: events of one key keep their order."""

    __slots__ = ("_key_of",)

    def __init__(
        self,
        ledger: Ledger,
        upstream: Iterable[str],
        ids: Sequence[str],
        *,
        max_demand: int,
        min_demand: int,
        key_of: Callable[[Item], Key],
    ) -> None:
        super().__init__(ledger, upstream, ids, max_demand=max_demand, min_demand=min_demand)
        self._key_of = key_of

    def _make_lanes(self, ids: Sequence[str]) -> list[collections.deque[Item]]:
        return [collections.deque() for _ in ids]

    def _lane_of(self, item: Item) -> collections.deque[Item]:
        return self._lanes[_hash(self._key_of(item)) % len(self._lanes)]

    def _deliver_all(self) -> None:
        if self._frozen or self._up < len(self.links):
            return
        for link in self.links.values():
            if link.lane and link.pending:
                self._deliver(link, link.lane)


class BroadcastHop(PartitionHop):
    """Each event goes to every link; upstream may hand over as much as the slowest has asked for."""

    __slots__ = ()

    def __init__(
        self, ledger: Ledger, upstream: Iterable[str], ids: Sequence[str], *, max_demand: int, min_demand: int
    ) -> None:
        super().__init__(ledger, upstream, ids, max_demand=max_demand, min_demand=min_demand, key_of=_no_key)

    @property
    def demand(self) -> int:
        """As much as the slowest has asked for."""
        return min(link.pending - len(link.lane) for link in self.links.values())

    def push(self, item: Item) -> None:
        """Hand a copy to every link."""
        assert isinstance(item, Event)
        self._ledger.copies(item.offset, len(self._lanes))
        for lane in self._lanes:
            lane.append(Event(item.offset, item.data, item.redelivered, item.tries))
        self.queued += len(self._lanes)
        self._deliver_all()


def _pending(link: Link) -> int:
    return link.pending


def _no_key(item: Item) -> Key:
    return 0


def _hash(key: Key) -> int:
    # Not hash(): it differs from one interpreter to the next, and a run must be repeatable.
    if isinstance(key, int):
        return key
    return zlib.crc32(key.encode() if isinstance(key, str) else key)
