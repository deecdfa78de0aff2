"""
Play sequences of frames and of a client's own steps against a session, and look for new ones by coverage.

    python -m serviceradar_poller.testing.http2_fuzz CORPUS --seconds 60 --seed 1

A sequence is a text, one step a line, so that a corpus can be read and a failure kept as it is:

    open 0 20            a unary call with a request of 20 bytes; 1: streamed answer; 2: streamed request
    frame 1 5 1 88 00*99 a frame from the peer: kind, flags, stream, payload; a run of a byte as 00*99
    bytes 485454502f     bytes from the peer that are no frame
    want 0, take 0, cancel 0, finish 0      on the call opened first
    send 0 70000         a further message of so many bytes
    output, ping, close, eof

After every step the invariants hold that Play.check() asserts. The search keeps a mutant when it executes a line of
the package that no kept sequence executed, or one line many more times: what libFuzzer calls counters.
"""

from __future__ import annotations

import argparse
import random  # noqa: TID251 — seeded by the caller
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from serviceradar_poller.testing.http2_frames import REQUEST, frame, frames_of
from serviceradar_poller.transport import http2
from serviceradar_poller.transport.http2 import Call, Cause, Limits, Outcome, Session
from serviceradar_poller.transport.http2.frames import DATA, PREFACE, SETTINGS, WINDOW_UPDATE
from serviceradar_poller.transport.http2.limits import WINDOW_DEFAULT

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
    hollow_frames_max=20,
    informational_max=2,
    reset_streams_max=2,
    status_text_chars_max=50,
    calls_max=8,
    calls_before_settings_max=4,
)
#: Longer sequences say nothing that two shorter ones don't.
STEPS_MAX = 60
_REQUEST_BYTES_MAX = 200_000
_OPS = ("open", "frame", "bytes", "want", "take", "cancel", "finish", "send", "output", "ping", "close", "eof")


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a sequence; what *a* and *b* mean depends on *op*."""

    op: str
    a: int = 0
    b: int = 0
    stream_id: int = 0
    payload: bytes = b""

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


_RUN = re.compile(rb"(.)\1{15,}", re.DOTALL)


def _hex(data: bytes) -> str:
    """Write bytes as words of hexadecimal digits; a long run of one byte as ``00*16384``."""
    words = []
    position = 0
    for run in _RUN.finditer(data):
        words += [data[position : run.start()].hex(), f"{run[1].hex()}*{len(run[0])}"]
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
        assert op in _OPS, line
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
        assert step.op in _OPS, step
        session = self.session
        call = self.calls[step.a % len(self.calls)] if self.calls else None
        match step.op:
            case "open":
                if session.room > 0:
                    self._open(step)
            case "frame":
                self._receive(frame(step.a & 0xFF, step.b & 0xFF, step.stream_id & 0xFFFF_FFFF, step.payload))
            case "bytes":
                self._receive(step.payload)
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
                assert len(call.outcome.message) <= limits.status_text_chars_max + 300
        opened = [call for call in self.calls if call.outcome is None]
        assert session.active == len(opened)
        assert 0 <= session.room <= limits.calls_max
        if session.error is not None:
            assert not opened and session.room == 0
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


Lines = Counter[tuple[str, int]]


def traced(run: Callable[[], None]) -> Lines:
    """Run something and count how often each line of the package is executed."""
    folder = str(Path(http2.__file__).parent)
    lines: Lines = Counter()

    def in_frame(current: FrameType, event: str, argument: Any) -> Any:
        del argument
        if event == "line":
            lines[current.f_code.co_filename, current.f_lineno] += 1
        return in_frame

    def on_call(current: FrameType, event: str, argument: Any) -> Any:
        del event, argument
        return in_frame if current.f_code.co_filename.startswith(folder) else None

    previous = sys.gettrace()
    sys.settrace(on_call)
    try:
        run()
    finally:
        sys.settrace(previous)
    return lines


def features(lines: Lines) -> set[tuple[str, int, int]]:
    """Reduce counts to what tells two runs apart: the line and the magnitude of its count."""
    return {(name, line, count.bit_length()) for (name, line), count in lines.items()}


class Search:
    """
    Look for sequences that execute something new.

    Attributes:
        kept: Sequences that did, the given ones first.
        seen: What they execute.
        found: Sequences of *kept* that were not given.
    """

    def __init__(self, corpus: Sequence[tuple[Step, ...]], chance: random.Random) -> None:
        self.kept: list[tuple[Step, ...]] = []
        self.found: list[tuple[Step, ...]] = []
        self.seen: set[tuple[str, int, int]] = set()
        self.runs = 0
        self._chance = chance
        for steps in corpus:
            self._run(steps)
            self.kept.append(steps)

    def once(self) -> None:
        """Play one mutant; raises what it makes fail, with the sequence as a note."""
        steps = self._mutant()
        if self._run(steps):
            self.kept.append(steps)
            self.found.append(steps)

    @property
    def lines(self) -> set[tuple[str, int]]:
        """Lines of the package that some sequence executed."""
        return {(name, line) for name, line, _ in self.seen}

    def _run(self, steps: tuple[Step, ...]) -> bool:
        self.runs += 1
        try:
            new = features(traced(lambda: Play().run(steps))) - self.seen
        except BaseException as error:
            error.add_note("\n".join(map(str, steps)))
            raise
        self.seen |= new
        return bool(new)

    def _mutant(self) -> tuple[Step, ...]:
        chance = self._chance
        steps = list(chance.choice(self.kept)) if self.kept else []
        for _ in range(chance.randrange(1, 5)):
            place = chance.randrange(len(steps) + 1)
            match chance.randrange(7):
                case 0:
                    steps.insert(place, self._step())
                case 1 if place < len(steps):
                    del steps[place]
                case 2 if place < len(steps):
                    steps[place:place] = [steps[place]] * chance.choice((1, 2, 25))
                case 3 if self.kept:
                    other = chance.choice(self.kept)
                    begin = chance.randrange(len(other) + 1)
                    steps[place:place] = other[begin : begin + chance.randrange(1, 8)]
                case 4 if len(steps) > 1:
                    other_place = chance.randrange(len(steps))
                    place = min(place, len(steps) - 1)
                    steps[place], steps[other_place] = steps[other_place], steps[place]
                case _ if place < len(steps):
                    steps[place] = self._changed(steps[place])
        return tuple(steps[:STEPS_MAX])

    def _step(self) -> Step:
        chance = self._chance
        if chance.random() < 0.5:
            return Step(chance.choice(_OPS[:-2]), chance.randrange(4), chance.choice((0, 1, 20, 16_384, 70_000)))
        kind = chance.randrange(11)
        size = chance.choice((0, 4, 5, 6, 8, 12, 20, 16_384, 16_385))
        payload = chance.randbytes(size) if size < 100 else bytes(size)
        return Step("frame", kind, chance.choice((0, 1, 4, 5, 8, 9, 12, 0x2C)), chance.choice((0, 1, 3, 5, 2)), payload)

    def _changed(self, step: Step) -> Step:
        chance = self._chance
        payload = bytearray(step.payload)
        match chance.randrange(6):
            case 0:
                return replace(step, a=step.a ^ 1 << chance.randrange(4))
            case 1:
                return replace(step, b=step.b ^ 1 << chance.randrange(6))
            case 2:
                return replace(step, stream_id=chance.choice((0, 1, 3, 5, 7, 2, 0x7FFF_FFFF)))
            case 3 if payload:
                payload[chance.randrange(len(payload))] = chance.choice((0, 1, 0x20, 0x40, 0x7F, 0x80, 0xFF))
            case 4 if payload:
                del payload[chance.randrange(len(payload)) :]
            case _:
                place = chance.randrange(len(payload) + 1)
                payload[place:place] = chance.randbytes(chance.randrange(1, 6))
        return replace(step, payload=bytes(payload))


def load(folder: Path) -> list[tuple[Step, ...]]:
    """Read a corpus, in the order of its files' names."""
    return [parse(path.read_text(encoding="ascii")) for path in sorted(folder.glob("*.txt"))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Search for a while; write what was found beside the corpus if asked. A failure prints its sequence."""
    parser = argparse.ArgumentParser(prog="http2_fuzz", description=__doc__.partition("\n\n")[0].strip())
    parser.add_argument("corpus", type=Path, help="folder of sequences, *.txt")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for sequences that execute something new")
    options = parser.parse_args(arguments)
    search = Search(load(options.corpus), random.Random(options.seed))
    given = len(search.lines)
    end = time.monotonic() + options.seconds  # noqa: TID251 — a tool's own budget
    while time.monotonic() < end:  # noqa: TID251
        search.once()
    print(  # noqa: T201
        f"{search.runs} sequences, {len(search.found)} kept, "
        f"{len(search.lines)} lines executed ({given} by the corpus alone)"
    )
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
        for index, steps in enumerate(search.found):
            text = "".join(f"{step}\n" for step in steps)
            (options.keep / f"found-{options.seed}-{index:04}.txt").write_text(text, encoding="ascii")
    return 0


if __name__ == "__main__":
    sys.exit(main())
