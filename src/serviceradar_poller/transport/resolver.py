"""
Resolve names through the system's resolver, under a deadline, and remember what it said for when it does not answer.

getaddrinfo follows nsswitch (files, DNS, mDNS …) and blocks for as long as the servers keep silent, so each look-up
has a thread of its own. It is a daemon thread and not an executor's: a look-up that hangs must not delay the exit.
Which one begins when, lookups.py says: names that hang delay no others.

Where the system does not answer in time or can't tell, the last addresses that it gave serve on, as RFC 8767 has it
for resolvers: most names keep their addresses longer than an outage of their servers lasts. A name that the system
says not to exist has none.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from serviceradar_poller.env import Emit
from serviceradar_poller.errors import ResolveError
from serviceradar_poller.events.polling import NameStale
from serviceradar_poller.logic.lookups import rank_of
from serviceradar_poller.transport.lookups import Answer, Ask, Lookup, Lookups

#: Names of which is known how they were answered; the least recently used is forgotten. Every agent's and some.
NAMES_MAX: Final = 32_768
#: Who has addresses of an earlier answer waits no longer for a new one; RFC 8767 section 5, "client response timer".
STALE_AFTER_S: Final = 1.8
#: Addresses that are older are not used; RFC 8767 section 4, the upper end of what it suggests.
STALE_S_MAX: Final = 3 * 86_400.0

#: What says that the name has no address; all else says that nobody could tell.
_FINAL: Final = frozenset({socket.EAI_NONAME, socket.EAI_NODATA, socket.EAI_ADDRFAMILY})


@dataclass(slots=True)
class _Name:
    """How a name was answered: late or not, its last addresses, when they came, and whether their use was told."""

    late: bool = False
    addresses: tuple[str, ...] = ()
    answered_s: float = 0.0
    told: bool = False


def ask_system(host: str, deliver: Callable[[Answer], None]) -> None:
    """Look *host* up in a thread of its own, and have *deliver* called with the answer on the running loop."""
    loop = asyncio.get_running_loop()

    def work() -> None:
        answer = _system_answer(host)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(deliver, answer)

    try:
        threading.Thread(target=work, name="resolve", daemon=True).start()
    except RuntimeError as error:  # no more threads on this machine
        loop.call_soon(deliver, Answer(error=str(error)))


def _system_answer(host: str) -> Answer:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        return Answer(error=error.strerror or str(error), final=error.errno in _FINAL)
    except OSError as error:
        return Answer(error=error.strerror or str(error))
    except UnicodeError:
        return Answer(error="a part of it is empty or too long", final=True)  # IDNA can't encode it
    return Answer(addresses=tuple(dict.fromkeys(str(entry[4][0]) for entry in found)), error="no address", final=True)


class SystemResolver:
    """
    The machine's name resolution; implements env.Resolver. Belongs to one event loop.

    Args:
        emit: Told of addresses that are used though their name was not answered.
        ask: Does one look-up; the system's unless given.

    Attributes:
        failures: Times that nobody had an address: the system said so, or could not tell.
        timeouts: Times that there was none because there was no answer in time.
    """

    def __init__(self, *, emit: Emit | None = None, ask: Ask = ask_system) -> None:
        self._emit = emit
        self._names: OrderedDict[str, _Name] = OrderedDict()
        self._lookups = Lookups(ask, on_late=self._take_late, on_answer=self._take_answer)
        self.failures = 0
        self.timeouts = 0

    async def resolve(self, host: str, *, timeout_s: float, urgent: bool = False) -> tuple[str, ...]:
        """Return the addresses of *host* in the system's order. Raises ResolveError."""
        with contextlib.suppress(ValueError):
            return (str(ipaddress.ip_address(host)),)
        try:
            if not host or "\x00" in host:
                raise ResolveError("that is no name")
            if timeout_s <= 0:
                raise ResolveError("no time left to look it up")
            return await self._resolve(host, timeout_s, urgent=urgent)
        except ResolveError:
            self.failures += 1
            raise

    async def _resolve(self, host: str, timeout_s: float, *, urgent: bool) -> tuple[str, ...]:
        loop = asyncio.get_running_loop()
        name = self._names.get(host)
        if name is not None:
            self._names.move_to_end(host)
        stale = self._stale(name)
        asked_s = loop.time()
        lookup = self._lookups.join(host, rank_of(urgent=urgent, late=None if name is None else name.late))
        try:
            await asyncio.wait({lookup.answer}, timeout=min(timeout_s, STALE_AFTER_S) if stale else timeout_s)
            if lookup.answer.done():
                answer = lookup.answer.result()
                if answer.addresses:
                    return answer.addresses
                error = self._unknown(answer)
                final = answer.final
            else:
                error = self._unanswered(lookup, asked_s)
                final = False
        finally:
            self._lookups.leave(lookup)
        if stale and not final:
            self._tell(host, error)
            return stale
        self.timeouts += not lookup.answer.done()
        raise ResolveError(error)

    def _stale(self, name: _Name | None) -> tuple[str, ...]:
        if name is None or asyncio.get_running_loop().time() - name.answered_s > STALE_S_MAX:
            return ()
        return name.addresses

    @staticmethod
    def _unknown(answer: Answer) -> str:
        what = "the name has no address" if answer.final else "the name could not be looked up"
        return f"{what}: {answer.error}"

    def _unanswered(self, lookup: Lookup, asked_s: float) -> str:
        """Say what the time went by with: waiting for the answer, for a place, or one after the other."""
        now_s = asyncio.get_running_loop().time()
        others = f"{self._lookups.late} look-ups of other names do not end"
        if lookup.began_s is None:
            return f"the look-up of the name did not begin within {now_s - asked_s:.3g} s: {others}"
        text = f"no answer to the look-up of the name within {now_s - max(asked_s, lookup.began_s):.3g} s"
        if lookup.began_s - asked_s < 0.1:
            return text
        return f"{text}, after {lookup.began_s - asked_s:.3g} s of waiting for others"

    def _tell(self, host: str, error: str) -> None:
        name = self._names.get(host)
        if name is None:
            return  # forgotten meanwhile
        age_s = asyncio.get_running_loop().time() - name.answered_s
        first, name.told = not name.told, True
        if self._emit is not None:
            self._emit(NameStale(host=host, age_s=age_s, error=error, first=first))

    # what look-ups tell

    def _take_late(self, host: str) -> None:
        self._name(host).late = True

    def _take_answer(self, host: str, answer: Answer, late: bool) -> None:
        name = self._name(host)
        name.late = late
        if answer.addresses or answer.final:
            name.addresses = answer.addresses
            name.answered_s = asyncio.get_running_loop().time()
            name.told = False

    def _name(self, host: str) -> _Name:
        name = self._names.setdefault(host, _Name())
        self._names.move_to_end(host)
        if len(self._names) > NAMES_MAX:
            self._names.popitem(last=False)
        return name
