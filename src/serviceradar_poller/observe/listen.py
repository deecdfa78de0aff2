"""Open the socket for a listen address."""

from __future__ import annotations

import asyncio
import socket

from serviceradar_poller.config.addresses import ListenAddress

#: Name resolution of a listen address; it is local, so anything slower is broken.
RESOLVE_TIMEOUT_S = 2.0
BACKLOG = 128


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
