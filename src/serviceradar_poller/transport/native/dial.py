"""
Open a TCP connection to a name or an address: resolve, then race the addresses as RFC 8305 says.

Families alternate, beginning with the one that the resolver names first; the next address is tried a stagger after
the one before, or at once when that failed. The first that connects wins, the others are closed.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Final

from serviceradar_poller.env import Resolver
from serviceradar_poller.errors import CallError, GrpcCode, ResolveError
from serviceradar_poller.transport import failures
from serviceradar_poller.transport.failures import ConnectStep

#: Addresses of one name that are tried in one attempt.
ADDRESSES_MAX: Final = 8
#: RFC 8305 section 5, "Connection Attempt Delay".
STAGGER_S = 0.25
#: A lookup that takes longer leaves too little of the time to connect. The same as c-ares has in the other backend.
RESOLVE_TIMEOUT_S: Final = 5.0
#: A peer that vanished without a word while no call was under way is noticed after 60 + 3 * 10 s, by the probes at 60,
#: 70 and 80 s; one or two of them may be lost.
KEEPALIVE_IDLE_S = 60
KEEPALIVE_INTERVAL_S = 10
KEEPALIVE_PROBES = 3
#: Sent and not acknowledged for so long means lost; retransmissions alone would go on for a quarter of an hour. So does
#: a peer that acknowledges but takes nothing, its window zero, for so long. Linux asks this, and not KEEPALIVE_PROBES,
#: also when probes go unanswered, and counts from what was heard last: anything less than the sum of the above would
#: end an idle connection sooner, with 30 s at the first lost probe.
UNACKNOWLEDGED_MS_MAX = 1000 * (KEEPALIVE_IDLE_S + KEEPALIVE_PROBES * KEEPALIVE_INTERVAL_S)

_UNREACHABLE: Final = frozenset(
    {
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.ENETDOWN,
        errno.EACCES,
        errno.EPERM,
        errno.EINVAL,
        errno.EADDRNOTAVAIL,
        errno.EAFNOSUPPORT,
    }
)
_RESET: Final = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED})
#: Which of several addresses' failures is told first: the one that came nearest to a connection.
_TELLING: Final = ("reset", "refused", "connect_timeout", "unreachable", "connect")


async def dial(
    host: str, port: int, *, peer: str, resolver: Resolver, at: Callable[[ConnectStep], None]
) -> socket.socket:
    """
    Return a connected, non-blocking socket that has its options; the caller sets the time limit.

    Args:
        peer: How a failure names it.
        at: Told of each step as it begins.
    Raises:
        CallError: reasons ``resolve``, ``refused``, ``unreachable``, ``connect_timeout``, ``reset``, ``connect``.
    """
    addresses = await _addresses(host, peer, resolver, at)
    at(ConnectStep.TCP)
    if len(addresses) == 1:
        return await _connect(addresses[0], port, peer)
    return await _race(addresses, port, peer)


def connect_failure(peer: str, error: OSError) -> CallError:
    """Classify what the system says of an attempt to connect."""
    number = error.errno
    # asyncio replaces the system's words by its own.
    words = os.strerror(number) if number else str(error)
    if number == errno.ECONNREFUSED:
        return failures.refused(peer)
    if number in _UNREACHABLE:
        return failures.unreachable(peer, words)
    if number == errno.ETIMEDOUT:
        return failures.connect_timeout(peer, ConnectStep.TCP, GrpcCode.UNAVAILABLE)
    if number in _RESET:
        return failures.connect_reset(peer, in_handshake=False)
    return failures.unconnected(peer, words)


def interleave(addresses: Sequence[str]) -> tuple[str, ...]:
    """Alternate the families, keeping the order within each; RFC 8305 section 4."""
    distinct = tuple(dict.fromkeys(addresses))
    first_is_v6 = ":" in distinct[0] if distinct else False
    first = [address for address in distinct if (":" in address) is first_is_v6]
    other = [address for address in distinct if (":" in address) is not first_is_v6]
    return tuple(address for pair in zip_longest(first, other) for address in pair if address is not None)


async def _addresses(host: str, peer: str, resolver: Resolver, at: Callable[[ConnectStep], None]) -> tuple[str, ...]:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return (host,)
    at(ConnectStep.RESOLVE)
    try:
        found = await resolver.resolve(host, timeout_s=RESOLVE_TIMEOUT_S)
    except ResolveError as error:
        raise failures.unresolved(peer, str(error)) from error
    return interleave(found)[:ADDRESSES_MAX]


async def _connect(address: str, port: int, peer: str) -> socket.socket:
    """Connect to one address. Raises CallError."""
    sock: socket.socket | None = None
    try:
        sock = socket.socket(
            socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC
        )
        sock.setblocking(False)  # noqa: FBT003
        await asyncio.get_running_loop().sock_connect(sock, _sockaddr(address, port))
        _set_options(sock)
    except OSError as error:
        if sock is not None:
            sock.close()
        raise connect_failure(peer, error) from error
    except BaseException:
        if sock is not None:
            sock.close()
        raise
    return sock


def _sockaddr(address: str, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    host, _, zone = address.partition("%")
    if not zone:
        return host, port
    return host, port, 0, int(zone) if zone.isdigit() else socket.if_nametoindex(zone)


def _set_options(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS_MAX)


async def _race(addresses: Sequence[str], port: int, peer: str) -> socket.socket:
    """Connect to whichever address answers first. Raises CallError."""
    left = list(addresses)
    running: dict[asyncio.Task[CallError | None], str] = {}
    failed: dict[str, CallError] = {}
    won: list[socket.socket] = []
    try:
        async with asyncio.TaskGroup() as group:
            while not won and (left or running):
                if left:
                    address = left.pop(0)
                    task = group.create_task(_contend(address, port, peer, won), name=f"connect {peer} {address}")
                    running[task] = address
                done, _ = await asyncio.wait(
                    running, timeout=STAGGER_S if left else None, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    address = running.pop(task)
                    if (failure := task.result()) is not None:
                        failed[address] = failure
            for task in running:
                task.cancel()
    except BaseException:
        for sock in won:
            sock.close()
        raise
    if won:
        return won[0]
    raise _all_failed(addresses, failed, peer)


async def _contend(address: str, port: int, peer: str, won: list[socket.socket]) -> CallError | None:
    """Connect, and keep the socket if no other was first; a failure must not end the race for the others."""
    try:
        sock = await _connect(address, port, peer)
    except CallError as error:
        return error
    if won:
        sock.close()
    else:
        won.append(sock)
    return None


def _all_failed(addresses: Sequence[str], failed: dict[str, CallError], peer: str) -> CallError:
    telling = min(failed.values(), key=lambda error: _TELLING.index(error.reason))
    each = "; ".join(f"{address}: {failed[address].detail.removeprefix(f'{peer}: ')}" for address in addresses)
    return failures.failed(telling.layer, telling.code, telling.reason, f"{telling.detail} ({each})")
