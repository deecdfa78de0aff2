"""
Look names up: one look-up of a name at a time, for all who ask, begun in the order that logic/lookups.py gives.

::

    join ─► waits in the queue of its rank ─► runs, young ─► late ─► ended: all who joined have the answer
              └ dropped when nobody waits          └──────────────────┘
                                                   the system goes on, whoever waits
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from serviceradar_poller.errors import ResolveError
from serviceradar_poller.logic.lookups import QUICK_S, ZONE_LATE_MIN, Load, Rank, may_begin, zone_of

#: Names that wait to be looked up: every agent's and some.
WAITING_MAX: Final = 32_768
#: Who asks for a name whose look-up has run for so long begins a second one, but no third: the first may never end.
JOIN_S_MAX: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """
    What the system said of a name.

    Attributes:
        addresses: In its order; empty where there are none.
        error: Its words where there are none.
        final: It is known that the name has none; else nobody could tell.
    """

    addresses: tuple[str, ...] = ()
    error: str = ""
    final: bool = False


#: Begins a look-up of a name, and has the function called with the answer, once, on the loop and not at once.
Ask = Callable[[str, Callable[[Answer], None]], None]


class Lookup:
    """
    The look-up of one name, shared by all who wait for it.

    Attributes:
        answer: Never fails.
        began_s: In the loop's time; None while it waits for a place.
        older: One of the same name that runs on; None where there is none.
        overtaken: A newer one of the same name has told something: what this one says is of the past.
    """

    __slots__ = ("answer", "began_s", "host", "late", "older", "overtaken", "rank", "timer", "waiters")

    def __init__(self, host: str, rank: Rank) -> None:
        self.host = host
        self.rank = rank
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.began_s: float | None = None
        self.late = False
        self.older: Lookup | None = None
        self.overtaken = False
        self.waiters = 0
        self.timer: asyncio.TimerHandle | None = None


class Lookups:
    """
    All look-ups of a process. Belongs to one event loop.

    Args:
        ask: Does one.
        on_late: Told of a name whose look-up takes long, as soon as it does.
        on_answer: Told of every answer that was not overtaken and whether it was late, before those who wait for it.

    Attributes:
        load: Those that run.
        late: How many of them are late.
    """

    def __init__(
        self, ask: Ask, *, on_late: Callable[[str], None], on_answer: Callable[[str, Answer, bool], None]
    ) -> None:
        self._ask = ask
        self._on_late = on_late
        self._on_answer = on_answer
        self._lookups: dict[str, Lookup] = {}  # the newest of each name
        self._queues: dict[Rank, OrderedDict[str, Lookup]] = {rank: OrderedDict() for rank in Rank}
        self._zones_late: Counter[str] = Counter()  # late look-ups that run, by zone; at most LOOKUPS_MAX
        self.load = Load()
        self.late = 0

    @property
    def waiting(self) -> int:
        """Names that wait for a place."""
        return sum(map(len, self._queues.values()))

    def join(self, host: str, rank: Rank) -> Lookup:
        """
        Return the look-up of *host* that is under way, or a new one; leave() it whatever comes of it.

        Raises:
            ResolveError: WAITING_MAX names wait already.
        """
        lookup = self._lookups.get(host)
        if lookup is None or self._is_old(lookup):
            if self.waiting >= WAITING_MAX:
                raise ResolveError(f"too many names wait to be looked up, {WAITING_MAX:,} of them")
            older, lookup = lookup, Lookup(host, rank)
            lookup.older = older
            self._lookups[host] = lookup
            self._queues[rank][host] = lookup
            self._begin_others()
        elif lookup.began_s is None and rank < lookup.rank and (lookup.rank is not Rank.DOUBTED or rank is Rank.URGENT):
            # From DOUBTED the others would come back to it, each time behind all who wait there.
            del self._queues[lookup.rank][host]
            lookup.rank = rank
            self._queues[rank][host] = lookup
            self._begin_others()
        lookup.waiters += 1
        return lookup

    def leave(self, lookup: Lookup) -> None:
        """Wait no longer; what nobody waits for is not begun."""
        lookup.waiters -= 1
        if lookup.waiters == 0 and lookup.began_s is None:
            del self._queues[lookup.rank][lookup.host]
            if lookup.older is None:
                del self._lookups[lookup.host]
            else:
                self._lookups[lookup.host] = lookup.older

    # inside

    @staticmethod
    def _is_old(lookup: Lookup) -> bool:
        now_s = asyncio.get_running_loop().time()
        return lookup.began_s is not None and now_s - lookup.began_s >= JOIN_S_MAX and lookup.older is None

    def _begin_others(self) -> None:
        for rank, queue in self._queues.items():
            while queue and may_begin(rank, self.load):
                host, lookup = queue.popitem(last=False)
                if rank in (Rank.PROVEN, Rank.NEW) and self._zones_late[zone_of(host)] >= ZONE_LATE_MIN:
                    lookup.rank = Rank.DOUBTED
                    self._queues[Rank.DOUBTED][host] = lookup
                else:
                    self._begin(lookup)

    def _begin(self, lookup: Lookup) -> None:
        loop = asyncio.get_running_loop()
        lookup.began_s = loop.time()
        self.load.running += 1
        self.load.young += lookup.rank in (Rank.PROVEN, Rank.NEW)
        self.load.doubtful += lookup.rank in (Rank.DOUBTED, Rank.LATE)
        lookup.timer = loop.call_later(QUICK_S, self._grow_late, lookup)
        self._ask(lookup.host, functools.partial(self._end, lookup))

    def _grow_late(self, lookup: Lookup) -> None:
        lookup.late = True
        self.late += 1
        self.load.young -= lookup.rank in (Rank.PROVEN, Rank.NEW)
        if zone := zone_of(lookup.host):
            self._zones_late[zone] += 1
        self._on_late(lookup.host)
        self._begin_others()

    def _end(self, lookup: Lookup, answer: Answer) -> None:
        assert lookup.timer is not None
        lookup.timer.cancel()
        self.load.running -= 1
        self.load.doubtful -= lookup.rank in (Rank.DOUBTED, Rank.LATE)
        if lookup.late:
            self.late -= 1
            if zone := zone_of(lookup.host):
                self._zones_late[zone] -= 1
                if not self._zones_late[zone]:
                    del self._zones_late[zone]
        else:
            self.load.young -= lookup.rank in (Rank.PROVEN, Rank.NEW)
        newest, older = self._lookups.get(lookup.host), lookup.older
        if newest is lookup and older is not None:
            # It runs on, and is the one beside which the next begins: not a third.
            self._lookups[lookup.host] = older
            older.overtaken = older.overtaken or bool(answer.addresses) or answer.final
        elif newest is lookup:
            del self._lookups[lookup.host]
        elif newest is not None and newest.older is lookup:
            newest.older = None
        if not lookup.overtaken:
            self._on_answer(lookup.host, answer, lookup.late)
        lookup.answer.set_result(answer)
        self._begin_others()
