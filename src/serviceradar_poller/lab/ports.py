"""Find a port to listen on that no outgoing connection will take meanwhile."""

from __future__ import annotations

import itertools
import os
import socket

from serviceradar_poller.lab.errors import LabError

#: Below what systems give to outgoing connections, above what services are used to.
PORT_MIN, PORT_MAX = 20_000, 30_000

_next = itertools.count(os.getpid() * 7)


def free_port(*, count: int = 1) -> int:
    """
    Return the first of *count* ports in a row that are free on loopback right now.

    Raises:
        LabError: There are none.
    """
    for _ in range(PORT_MAX - PORT_MIN):
        first = PORT_MIN + next(_next) * count % (PORT_MAX - PORT_MIN - count)
        if all(_is_free(first + offset) for offset in range(count)):
            return first
    raise LabError(f"no {count} free ports between {PORT_MIN} and {PORT_MAX}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
