"""
Play sequences of frames and of a client's own steps against a session, and hold it to its invariants.

A sequence is a text, one step a line, so that a corpus can be read and a failure kept as it is:

    open 0 20            a unary call with a request of 20 bytes; 1: streamed answer; 2: streamed request
    frame 1 5 1 88 00*99 a frame from the peer: kind, flags, stream, payload; what is repeated as 00*99
    bytes 485454502f     bytes from the peer that are no frame
    want 0, take 0, cancel 0, finish 0      on the call opened first
    send 0 70000         a further message of so many bytes
    output, ping, close, eof

After every step the invariants hold that Play.check() asserts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from serviceradar_poller.testing.http2_frames import REQUEST, frame, frames_of
from serviceradar_poller.transport.http2 import Call, Cause, Limits, Outcome, Session
from serviceradar_poller.transport.http2.frames import DATA, PREFACE, SETTINGS, WINDOW_UPDATE
from serviceradar_poller.transport.http2.limits import WINDOW_DEFAULT
from serviceradar_poller.transport.http2.status import Metadata

#: Small, so that short sequences reach them.
LIMITS = Limits(
    stream_window_bytes=65_536,
    connection_window_bytes=131_072,
    message_bytes_max=100_000,
    header_list_bytes_max=2048,
    header_count_max=32,
    header_block_bytes_max=20_000,
    continuations_max=3,
    settings_max=8,
    replies_max=20,
    asks_max=60,
    hollow_frames_max=20,
    informational_max=2,
    reset_streams_max=2,
    status_text_chars_max=50,
    calls_max=8,
    calls_before_settings_max=4,
)
_REQUEST_BYTES_MAX = 200_000
OPS = ("open", "frame", "bytes", "want", "take", "cancel", "finish", "send", "output", "ping", "close", "eof")


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a sequence; what *a* and *b* mean depends on *op*."""

    op: str
    a: int = 0
    b: int = 0
    stream_id: int = 0
    payload: bytes = b""

    @property
    def sent(self) -> bytes:
        """What the peer sends in a step that is the peer's."""
        if self.op == "bytes":
            return self.payload
        assert self.op == "frame", self
        return frame(self.a & 0xFF, self.b & 0xFF, self.stream_id & 0xFFFF_FFFF, self.payload)

    def __str__(self) -> str:
        match self.op:
            case "frame":
                return f"frame {self.a} {self.b} {self.stream_id} {_hex(self.payload)}".rstrip()
            case "bytes":
                return f"bytes {_hex(self.payload)}".rstrip()
            case "open" | "send":
                return f"{self.op} {self.a} {self.b}"
            case "want" | "take" | "cancel" | "finish":
                return f"{self.op} {self.a}"
            case _:
                return self.op


#: One byte, or a small frame, again and again.
_RUN = re.compile(rb"(.{1,32}?)\1{15,}", re.DOTALL)


def _hex(data: bytes) -> str:
    """Write bytes as words of hexadecimal digits; what is repeated as ``00*16384``."""
    words = []
    position = 0
    for run in _RUN.finditer(data):
        words += [data[position : run.start()].hex(), f"{run[1].hex()}*{len(run[0]) // len(run[1])}"]
        position = run.end()
    return " ".join(word for word in (*words, data[position:].hex()) if word)


def _bytes(words: Iterable[str]) -> bytes:
    parts = [word.partition("*") for word in words]
    return b"".join(bytes.fromhex(digits) * int(count or "1") for digits, _, count in parts)


def parse(text: str) -> tuple[Step, ...]:
    """Read a sequence; empty lines and what follows a ``#`` are comments."""
    steps = []
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if not words:
            continue
        op, rest = words[0], words[1:]
        assert op in OPS, line
        if op == "frame":
            kind, flags, stream_id = map(int, rest[:3])
            steps.append(Step(op, kind, flags, stream_id, _bytes(rest[3:])))
        elif op == "bytes":
            steps.append(Step(op, payload=_bytes(rest)))
        else:
            numbers = [*map(int, rest), 0, 0]
            steps.append(Step(op, numbers[0], numbers[1]))
    return tuple(steps)


class Play:
    """One session, its owner and its peer; every step is followed by check()."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.limits = limits
        self.session = Session(limits)
        self.calls: list[Call] = []
        self.outcomes: dict[int, Outcome] = {}
        self.taken: dict[int, int] = {}
        self.received_bytes = 0
        self.request_bytes = 0
        self._input = bytearray()  # what the peer sent and this side has not looked through for credit
        self._credit = WINDOW_DEFAULT  # what the peer's WINDOW_UPDATE on stream 0 allow
        self._greeted = False

    def run(self, steps: Iterable[Step]) -> None:
        """Play all steps, then the end of the connection; asserts the invariants all along."""
        for step in steps:
            self.step(step)
        self.step(Step("output"))
        self.step(Step("eof"))
        assert self.session.error is not None
        assert all(call.outcome is not None for call in self.calls), "a call outlives its connection"
        for call in self.calls:
            while call.take() is not None:
                pass
            call.cancel()
        self.check()

    def step(self, step: Step) -> None:
        """Play one step; one on a call does nothing while there is none."""
        assert step.op in OPS, step
        session = self.session
        call = self.calls[step.a % len(self.calls)] if self.calls else None
        match step.op:
            case "open":
                if session.room > 0:
                    self._open(step)
            case "frame" | "bytes":
                self._receive(step.sent)
            case "output":
                self._output()
            case "ping":
                session.ping()
            case "close":
                session.close()
            case "eof":
                before = [each for each in self.calls if each.outcome is None]
                ended = session.eof()
                assert session.error is not None
                assert ended == before, "eof() ends exactly the calls that are open"
            case _ if call is not None:
                self._on_call(step, call)
        self.check()

    def check(self) -> None:
        """Assert what always holds."""
        session, limits = self.session, self.limits
        for call in self.calls:
            known = self.outcomes.get(call.id)
            assert known is None or known is call.outcome, "an outcome changed"
            if call.outcome is not None:
                self.outcomes[call.id] = call.outcome
                assert 0 <= call.outcome.code <= 16
                assert len(call.outcome.message) <= limits.status_text_chars_max + 300, "a text of the peer's length"
                self._check_metadata(call.outcome.metadata)
            self._check_metadata(call.initial_metadata)
        opened = [call for call in self.calls if call.outcome is None]
        assert session.active == len(opened)
        assert 0 <= session.room <= limits.calls_max
        if session.error is not None:
            assert not opened and session.room == 0
            assert len(session.error.detail) <= limits.status_text_chars_max + 300, "an error of the peer's length"
            return
        assert session._receive_window >= 0, "the connection's window is negative"
        assert session._send_window >= 0, "more was sent than the connection's window"
        assert session._replies <= limits.replies_max and session._hollow <= limits.hollow_frames_max
        bound = limits.frame_bytes_max + 9 + limits.header_block_bytes_max + 4096
        bound += self.request_bytes + len(self.calls) * 600 + limits.replies_max * 40 + 2000
        bound += self.received_bytes // (limits.stream_window_bytes // 4) * 13
        for call in opened:
            assert 0 <= call._receive_window <= limits.stream_window_bytes, "a call's window is wrong"
            asked = max(call._wanted - self.taken.get(call.id, 0), 0)
            bound += limits.stream_window_bytes + asked * (limits.message_bytes_max + 5)
        assert session.buffered_bytes <= bound, "more is kept than the limits allow"

    def _check_metadata(self, metadata: Metadata) -> None:
        """Assert that decoding has not made more of a block than the limits allow to be in it."""
        limits = self.limits
        assert len(metadata) <= limits.header_count_max, "more metadata than fields are allowed"
        # Values of one field share its name.
        names = {id(name): len(name) for name, _ in metadata}
        size = sum(names.values()) + sum(len(value) for _, value in metadata)
        assert size <= limits.header_list_bytes_max, "more bytes of metadata than the header list may have"

    def _open(self, step: Step) -> None:
        size = abs(step.b) % _REQUEST_BYTES_MAX
        self.request_bytes += size + 5 + len(REQUEST.block)
        kind = step.a % 3
        call = self.session.open(REQUEST, timeout_s=1.5, message=bytes(size), end=kind != 2, streaming=kind == 1)
        assert all(call.id > other.id for other in self.calls)
        self.calls.append(call)

    def _on_call(self, step: Step, call: Call) -> None:
        match step.op:
            case "want":
                if call._wanted - call._taken < 4:
                    call.want()
            case "take":
                if call.take() is not None:
                    self.taken[call.id] = self.taken.get(call.id, 0) + 1
            case "cancel":
                was_open = call.outcome is None
                call.cancel()
                assert call.outcome is not None
                assert (call.outcome.cause is Cause.CANCELLED) >= was_open
            case "finish":
                call.finish_sending()
            case _:
                size = abs(step.b) % _REQUEST_BYTES_MAX
                if not call._ending and self.request_bytes < 4 * _REQUEST_BYTES_MAX:
                    self.request_bytes += (size + 5) * 3  # at worst each part gets a frame header
                    call.send(bytes(size), end=bool(step.b & 1))

    def _receive(self, data: bytes) -> None:
        self.received_bytes += len(data)
        broken = self.session.error is not None
        before = [call for call in self.calls if call.outcome is None]
        touched = self.session.receive(data)
        assert len({id(call) for call in touched}) == len(touched), "a call is told twice"
        assert all(call in self.calls for call in touched)
        assert all(call in touched for call in before if call.outcome is not None), "an end is not told"
        if broken:
            assert touched == []
        self._look_for_credit(data)

    def _look_for_credit(self, data: bytes) -> None:
        """Add up what the peer's frames allow, as a reader of its own."""
        self._input += data
        while len(self._input) >= 9:
            end = 9 + int.from_bytes(self._input[:3], "big")
            if len(self._input) < end or end > self.limits.frame_bytes_max + 9:
                return
            kind, stream_id = self._input[3], int.from_bytes(self._input[5:9], "big") & 0x7FFF_FFFF
            if kind == WINDOW_UPDATE and stream_id == 0 and end == 13:
                self._credit += int.from_bytes(self._input[9:13], "big") & 0x7FFF_FFFF
            del self._input[:end]

    def _output(self) -> None:
        output = self.session.take_output()
        assert self.session.take_output() == b""
        sent = frames_of(output)
        if not self._greeted:
            assert output.startswith(PREFACE) and sent[0].kind == SETTINGS
            self._greeted = True
        for one in sent:
            if one.kind == DATA:
                self._credit -= len(one.payload)
        assert self._credit >= 0, "more data than the peer's window allows"


def load(folder: Path) -> list[tuple[Step, ...]]:
    """Read a corpus, in the order of its files' names."""
    return [parse(path.read_text(encoding="ascii")) for path in sorted(folder.glob("*.txt"))]
