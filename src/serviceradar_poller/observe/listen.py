"""Listen addresses: what ``host:port`` means, and the socket for it."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from dataclasses import dataclass

#: Names of this machine that resolve to a loopback address everywhere.
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
#: Name resolution of a listen address; it is local, so anything slower is broken.
RESOLVE_TIMEOUT_S = 2.0
BACKLOG = 128


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where to listen; an empty host is every interface, port 0 any free port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> ListenAddress:
        """
        Read ``host:port``, ``:port`` or ``[v6]:port``.

        Raises:
            ValueError: it is none of these.
        """
        host, colon, port = text.strip().rpartition(":")
        if not colon or not port.isascii() or not port.isdecimal() or int(port) > 65_535:
            raise ValueError(f"{text!r} is not host:port")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ValueError(f"{text!r}: an IPv6 address stands in brackets")
        return cls(host, int(port))

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def is_loopback(host: str) -> bool:
    """Whether *host*, a name or address, is this machine's loopback."""
    if host.lower().rstrip(".") in LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def open_listener(address: ListenAddress) -> socket.socket:
    """
    Return a bound, listening, non-blocking socket.

    Raises:
        OSError: the address is in use, not this machine's, or its name does not resolve.
    """
    if not address.host:
        if socket.has_dualstack_ipv6():
            listener = socket.create_server(
                ("::", address.port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=BACKLOG
            )
        else:
            listener = socket.create_server(("0.0.0.0", address.port), backlog=BACKLOG)
    else:
        try:
            async with asyncio.timeout(RESOLVE_TIMEOUT_S):
                found = await asyncio.get_running_loop().getaddrinfo(
                    address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
                )
        except TimeoutError as error:
            raise OSError(f"name {address.host} did not resolve within {RESOLVE_TIMEOUT_S:.0f} s") from error
        # IPv4 first: ``localhost`` is 127.0.0.1 for most of what scrapes.
        family, _, _, _, target = sorted(found, key=lambda item: item[0] != socket.AF_INET)[0]
        listener = socket.create_server((str(target[0]), address.port), family=family, backlog=BACKLOG)
    listener.setblocking(False)  # noqa: FBT003 - its only parameter
    return listener
