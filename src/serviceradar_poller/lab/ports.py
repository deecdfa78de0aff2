"""Find a port to listen on that neither an outgoing connection nor another process of ours will take meanwhile."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections import deque

from serviceradar_poller.lab.errors import LabError

#: Below what systems give to outgoing connections, above what services are used to.
PORT_MIN, PORT_MAX = 20_000, 30_000
#: Ports that a process keeps for itself; the oldest claim goes first, when its port has long been listened on.
CLAIMS_MAX = 256

#: A claim is a UDP socket at the same number: no obstacle to who listens on TCP, one to every other claim, and gone
#: with the process.
_claims: deque[socket.socket] = deque()
_random = random.Random(os.urandom(8))


def free_port(*, count: int = 1) -> int:
    """
    Return the first of *count* ports in a row that are free on loopback, and that no other call here is told.

    That holds between processes, for the newest CLAIMS_MAX ports of each.

    Raises:
        LabError: There are none.
    """
    places = PORT_MAX - PORT_MIN - count + 1
    start = _random.randrange(places) if places > 0 else 0
    for place in range(places):
        first = PORT_MIN + (start + place) % places
        with contextlib.ExitStack() as stack:
            claims = [_claim(first + offset, stack) for offset in range(count)]
            if None in claims:
                continue
            stack.pop_all()
            _claims.extend(claim for claim in claims if claim is not None)
        while len(_claims) > max(CLAIMS_MAX, count):
            _claims.popleft().close()
        return first
    raise LabError(f"no {count} free ports between {PORT_MIN} and {PORT_MAX}")


def _claim(port: int, stack: contextlib.ExitStack) -> socket.socket | None:
    """Return what holds the port for us until *stack* ends; None: it is taken."""
    claim = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    try:
        claim.bind(("127.0.0.1", port))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
    except OSError:
        return None
    return claim
