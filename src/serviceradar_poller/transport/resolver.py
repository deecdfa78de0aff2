"""
Resolve names through the system's resolver, under a deadline and with a bounded number of threads.

getaddrinfo follows nsswitch (files, DNS, mDNS …) and blocks for as long as the servers keep silent, so each lookup
has a thread of its own. It is a daemon thread and not an executor's: a lookup that hangs must not delay the exit.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from typing import Final

#: Lookups at the same time; a thread that hangs keeps its place until the system gives up.
LOOKUPS_MAX: Final = 8


class SystemResolver:
    """
    The machine's name resolution; implements env.Resolver. Belongs to one event loop.

    Attributes:
        failures: Lookups that the system answered with an error.
        timeouts: Lookups that had no answer in time.
    """

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(LOOKUPS_MAX)
        self.failures = 0
        self.timeouts = 0

    async def resolve(self, host: str, *, timeout_s: float) -> tuple[str, ...]:
        """Return the addresses of *host* in the system's order; empty when it has none or time runs out."""
        with contextlib.suppress(ValueError):
            return (str(ipaddress.ip_address(host)),)
        if not host or "\x00" in host:
            self.failures += 1
            return ()
        # Waiting for a place says nothing about the name: only the look-up itself has a limit.
        await self._places.acquire()
        try:
            async with asyncio.timeout(max(timeout_s, 0.0)):
                return await self._lookup(host)
        except TimeoutError:
            self.timeouts += 1
            return ()

    async def _lookup(self, host: str) -> tuple[str, ...]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[str, ...] | None] = loop.create_future()

        def deliver(addresses: tuple[str, ...] | None) -> None:
            self._places.release()
            if not answer.done():
                answer.set_result(addresses)

        def work() -> None:
            addresses: tuple[str, ...] | None
            try:
                found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
                addresses = tuple(dict.fromkeys(str(entry[4][0]) for entry in found))
            except (OSError, UnicodeError):  # UnicodeError: a label that IDNA can't encode
                addresses = None
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(deliver, addresses)

        try:
            threading.Thread(target=work, name="resolve", daemon=True).start()
        except RuntimeError:  # no more threads on this machine
            deliver(None)
        addresses = await answer
        if addresses is None:
            self.failures += 1
            return ()
        return addresses
