"""Ports that are told are free, and told to nobody else."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from serviceradar_poller.lab import ports
from serviceradar_poller.lab.errors import LabError
from serviceradar_poller.lab.ports import free_port

#: Leaves so few ports that processes which don't know of each other would meet; other tests are told none of these.
NARROW_MIN, NARROW_MAX = 30_000, 30_120
TAKERS, TAKES = 4, 13


def test_processes_are_never_told_the_same_port() -> None:
    """Several processes that take their ports at the same time, and live on, have different ones."""
    program = (
        "import sys; from serviceradar_poller.lab import ports; "
        f"ports.PORT_MIN, ports.PORT_MAX = {NARROW_MIN}, {NARROW_MAX}; "
        f"print(*[ports.free_port() for _ in range({TAKES})], flush=True); sys.stdin.read()"
    )
    takers = [
        subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(TAKERS)
    ]
    told = []
    for taker in takers:
        assert taker.stdout is not None
        told += taker.stdout.readline().split()
    for taker in takers:
        taker.communicate(timeout=60.0)
    assert len(told) == len(set(told)) == TAKERS * TAKES


def test_a_port_can_be_listened_on_at_once() -> None:
    """The claim is no obstacle to who was told."""
    with socket.create_server(("127.0.0.1", free_port())):
        pass


def test_a_port_that_somebody_listens_on_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all ports are taken, that is said."""
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(ports, "PORT_MIN", port)
        monkeypatch.setattr(ports, "PORT_MAX", port + 1)
        with pytest.raises(LabError, match="no 1 free ports"):
            free_port()
        with pytest.raises(LabError, match="no 2 free ports"):
            free_port(count=2)


def test_ports_in_a_row_and_few_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row is told whole and only once; old claims are given up."""
    monkeypatch.setattr(ports, "CLAIMS_MAX", 8)
    rows = [free_port(count=3) for _ in range(5)]
    assert len({first + offset for first in rows for offset in range(3)}) == 15
    assert len(ports._claims) <= 8
