"""
Run gRPC servers of others as processes, and ask them what they saw. For conformance tests only.

A server process reads commands, one JSON object a line, and answers each by one line: it starts and stops servers with
the options that a test wants, and tells what reached them. All of them serve ``/conformance.Echo``:

========  ==========================  ====================================================================
method    request                     answer
========  ==========================  ====================================================================
Unary     any bytes                   the same
Slow      {"tag", "delay_s"}          the same, later
Slow      {"tag", "gate"}             the same, once "go" has been noted with the gate
Held      as Slow                     a stream: the same at once, and once more when Slow would answer
Inspect   any bytes                   {"metadata": {name: text, or a list of a -bin's bytes}, "left_s",
                                      "headers": the block as it came, where the server lets one see it}
Stream    {"count", "size"}           *count* messages of *size* bytes: piece(index, size)
Broken    {"count", "code", "text"}   *count* messages of 8 bytes, then that status with TRAILERS
Collect   stream of messages          {"count", "bytes", "sha256": of all, one after the other}
Early     stream of messages          status RESOURCE_EXHAUSTED after the first
Hang      tag                         never; notes "started" and "ended" with the tag
HangDown  tag                         a stream: the same, then nothing; notes as Hang does
HangUp    stream of messages          never, and reads the first only, which is the tag; notes as Hang does
========  ==========================  ====================================================================

Options of a server, where it has them: ``streams_max``, ``window_bytes``, ``frame_bytes_max``, ``table_bytes`` (of
HPACK) for its SETTINGS, ``age_s`` for its connections.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec

#: Longest wait for an answer of a server process; its start included.
PATIENCE_S: Final = 60.0
#: Trailing metadata of Broken: text, and bytes that text can't hold.
TRAILER_TEXT: Final = "text of a trailer"
TRAILER_BYTES: Final = bytes(range(256))
TRAILERS: Final = (("x-text", TRAILER_TEXT), ("x-raw-bin", TRAILER_BYTES))
SERVICE: Final = "/conformance.Echo/"

#: Every four bytes of it differ.
_COUNTED: Final = b"".join(number.to_bytes(4, "big") for number in range(512 * 1024))


class PeerProcess:
    """
    One process that serves; a context manager that ends it.

    Args:
        command: What runs it.
        folder: Where it runs.
        errors: Where its standard error goes: a file, for whoever looks for the cause of a failure.
    """

    def __init__(self, command: Sequence[str], *, folder: Path, errors: Path) -> None:
        self._lock = threading.Lock()
        self._errors = errors
        self._unread = b""
        with errors.open("wb") as sink:
            self._process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sink, bufsize=0
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """
        Give a command and return the answer.

        Raises:
            AssertionError: There was none in time; the text has the end of what the process said.
        """
        stdin = self._process.stdin
        assert stdin is not None
        with self._lock:
            stdin.write(msgspec.json.encode({"do": do, **arguments}) + b"\n")
            answer: dict[str, Any] = msgspec.json.decode(self._line(do))
        assert "error" not in answer, f"{do}: {answer['error']}"
        return answer

    def start(self, *, port: int = 0, tls: bool = False, **options: Any) -> str:
        """Start a server and return its address."""
        return f"127.0.0.1:{self.ask('start', port=port, tls=tls, options=options)['port']}"

    def stop(self, address: str, *, gracefully: bool = False) -> None:
        """Stop a server and break its connections, or let them finish the calls that are under way."""
        self.ask("stop", port=_port(address), gracefully=gracefully)

    async def wait_for(self, event: str, tag: str) -> None:
        """Wait until the server has noted an event."""
        await asyncio.to_thread(self.ask, "wait", event=event, tag=tag)

    async def open_gate(self, gate: str) -> None:
        """Let all calls be answered that wait for *gate*, and those that come later."""
        await asyncio.to_thread(self.ask, "note", event="go", tag=gate)

    async def wait_until_busy(self, count: int) -> None:
        """Wait until so many calls of Slow and Held are under way at once."""
        await asyncio.to_thread(self.ask, "busy", count=count)

    async def stats(self) -> dict[str, Any]:
        """Return what Slow and Held saw since the last time: most calls at once, tags in the order of their begin."""
        return await asyncio.to_thread(self.ask, "stats")

    async def goaway(self, address: str, last_stream_id: int) -> None:
        """Have a server send GOAWAY on its connections, with the last stream that it is to name."""
        await asyncio.to_thread(self.ask, "goaway", port=_port(address), last=last_stream_id)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal: SIGSTOP leaves the sockets open with nobody behind them."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """End the process without a word."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _line(self, what: str) -> bytes:
        stdout = self._process.stdout
        assert stdout is not None
        while b"\n" not in self._unread:
            readable, _, _ = select.select([stdout], [], [], PATIENCE_S)
            data = os.read(stdout.fileno(), 65536) if readable else b""
            if not data:
                said = self._errors.read_text(errors="replace")[-2000:]
                raise AssertionError(f"no answer to {what!r} within {PATIENCE_S:g} s; the server said: {said!r}")
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line


def python_command(module: str, pki: Path) -> list[str]:
    """Return what runs a server process that is a module of this package."""
    return [sys.executable, "-m", f"serviceradar_poller.testing.{module}", str(pki)]


def stream_request(count: int, size: int) -> bytes:
    """Return a request of Stream."""
    return msgspec.json.encode({"count": count, "size": size})


def broken_request(count: int, code: int, text: str) -> bytes:
    """Return a request of Broken."""
    return msgspec.json.encode({"count": count, "code": code, "text": text})


def slow_request(tag: int, delay_s: float) -> bytes:
    """Return a request of Slow."""
    return msgspec.json.encode({"tag": tag, "delay_s": delay_s})


def gated_request(tag: int, gate: str) -> bytes:
    """Return a request of Slow or Held that waits for *gate*."""
    return msgspec.json.encode({"tag": tag, "gate": gate})


def piece(index: int, size: int) -> bytes:
    """Return a message of which no part is like another, nor like the same part of the next: its index, then counts."""
    begin = index % 97
    return index.to_bytes(8, "big") + _COUNTED[begin : begin + size - 8]


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])
