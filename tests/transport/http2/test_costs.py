"""What a peer's bytes may cost: lines executed for one read, which are the same on every machine."""

from __future__ import annotations

import pytest

from serviceradar_poller.testing import http2_frames as wire
from serviceradar_poller.testing.http2_search import traced
from serviceradar_poller.transport.http2 import Limits, Session

CALLS = 50
READ_BYTES = 64 * 1024
#: The dearest byte that is honest: of a message of no bytes, or of one byte in a frame of its own.
LINES_A_BYTE_MAX = 6
#: SETTINGS may change the window of every call, and let each send; how often is limited.
LINES_A_CALL_MAX = 30
MANY_VALUES = wire.HEADERS_OK + wire.block([(b"a-bin", b"," * 9000)])


def filled(*frames: bytes) -> bytes:
    once = b"".join(frames)
    return once * (READ_BYTES // len(once))


READS = {
    "credit": filled(wire.window(0, 1)),
    "credit of a call": filled(wire.window(3, 1)),
    "credit of calls that are over": wire.rst(1, 8) + filled(wire.window(1, 1)),
    "pings": filled(wire.ping()),
    "pongs": filled(wire.ping(ack=True)),
    "empty data": wire.headers(1) + filled(wire.data(1)),
    "small data": wire.headers(1) + wire.data(1, b"\0\0\1\0\0") + filled(wire.data(1, b"x")),
    "padding": wire.headers(1) + filled(wire.data(1, b"", padding=0)),
    "empty messages": wire.headers(1) + wire.datas(1, filled(wire.prefixed(b""))),
    "small messages": wire.headers(1) + wire.datas(1, filled(wire.prefixed(b"ab"))),
    "goodbyes": filled(wire.goaway(2**31 - 1)),
    "resets": b"".join(wire.rst(1 + 2 * index, 8) for index in range(CALLS)) + filled(wire.rst(1, 8)),
    "interim answers": filled(
        *(wire.headers(1 + 2 * index, wire.block([(b":status", b"103")])) for index in range(CALLS))
    ),
    "binary values": b"".join(wire.headers(1 + 2 * index, MANY_VALUES) for index in range(7)),
    "indexed fields": b"".join(wire.headers(1 + 2 * index, b"\x88" + b"\x90" * 16_000) for index in range(4)),
    "empty fields": b"".join(wire.headers(1 + 2 * index, b"\x88" + b"\0\1a\0" * 4000) for index in range(4)),
    "changes of the table": wire.headers(1, b"\x20" * 16_000),
    "unknown frames": filled(wire.frame(99, 0, 1)),
    "priorities": filled(wire.frame(2, 0, 1, bytes(5))),
}


def lines_of(data: bytes, *, streaming: bool) -> int:
    """Count the lines that a session with many calls executes for one read."""
    session = wire.warm(None, (3, CALLS))
    for _ in range(CALLS):
        session.open(wire.REQUEST, timeout_s=None, message=bytes(20 if streaming else 70_000), streaming=streaming)
    session.take_output()
    return sum(traced(lambda: _receive(session, data[:READ_BYTES])).values())


def _receive(session: Session, data: bytes) -> None:
    session.receive(data)


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True], ids=["sending", "reading"])
def test_a_read_costs_what_its_bytes_do(streaming: bool) -> None:
    """No read costs more for the calls that are open: neither when all wait for credit, nor when all are answered."""
    costs = {name: lines_of(data, streaming=streaming) for name, data in READS.items()}
    assert {name: count for name, count in costs.items() if count > LINES_A_BYTE_MAX * READ_BYTES} == {}


@pytest.mark.slow
def test_settings_cost_what_they_change() -> None:
    """SETTINGS that move the window of all calls up and down cost a step for each call, as often as limits allow."""
    swinging = filled(wire.settings((4, 0)), wire.settings((4, 65_535)))
    rising = b"".join(wire.settings((4, 65_535 + index)) for index in range(READ_BYTES // 15))
    for data in (swinging, rising):
        assert lines_of(data, streaming=False) <= LINES_A_CALL_MAX * CALLS * Limits().replies_max
