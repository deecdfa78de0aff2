"""
Judge certificate files in a process of its own, which ends with the answer.

The library that judges them takes some 10 MiB, of which a process that has loaded it never lets go. So a poller that
runs has it loaded elsewhere, for the fraction of a second that an examination takes. What it says of the files is what
`transport.certificates` says.

    examine_apart ── file names, stdin ──► transport.examining: reads and judges
                  ◄── PEM, findings, stdout ──┘

The child is started without a shell. A key is in no argument and no variable: the child reads it from its file, and it
comes back through a pipe. The environment holds what Python needs to run, and where our modules are found; nothing else
of ours, which may hold secrets of other parts or settings that would change what a child does.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Sequence
from typing import Final, Protocol, cast

from serviceradar_poller.config.model import TlsConfig
from serviceradar_poller.errors import CallError
from serviceradar_poller.transport.examination import Request, decode_answer, encode_request
from serviceradar_poller.transport.failures import one_line, unusable_credentials
from serviceradar_poller.transport.material import Examined

#: An examination takes 0.15 s, and 256 blocks 0.25 s; a small machine that is overloaded needs twenty times that.
EXAMINATION_S_MAX: Final = 15.0
#: Blocks that one child judges; more go to further children, one after the other.
BLOCKS_MAX: Final = 256
#: Four files of the largest size in base64 are 22 MiB; blocks that share their roots carry them once.
ANSWER_BYTES_MAX: Final = 32 * 1024 * 1024
#: Of what a child says on stderr, the last of it.
STDERR_BYTES_MAX: Final = 4_096
#: Of its last line, what is told.
STDERR_CHARACTERS_MAX: Final = 120
#: A child that was killed is gone in milliseconds, unless the kernel itself is stuck.
REAP_S_MAX: Final = 2.0

#: A child that was started is heard of within a few turns of the loop.
BEGIN_S_MAX: Final = 0.1
#: Between two looks at whether a child has ended that nobody else waits for.
REAP_LOOK_S: Final = 0.01

#: What the child is run as.
MODULE: Final = "serviceradar_poller.transport.examining"
#: Variables that the child gets: what finds libraries, and what gives file names their bytes.
KEPT_VARIABLES: Final = (
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "LD_LIBRARY_PATH",
    "OPENSSL_CONF",
    "OPENSSL_MODULES",
    "PYTHONCOERCECLOCALE",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONHOME",
    "PYTHONPYCACHEPREFIX",
    "PYTHONUTF8",
)


class Examiner(Protocol):
    """Judges the files of blocks; implemented by examine_apart."""

    def __call__(self, blocks: Sequence[TlsConfig], *, now: float) -> Awaitable[tuple[Examined, ...]]:
        """Return what each block came to; raise CallError when none could be judged."""
        ...


async def examine_apart(blocks: Sequence[TlsConfig], *, now: float) -> tuple[Examined, ...]:
    """
    Judge the files of mtls blocks in one child, and return what each came to.

    The child has ended when this returns, raises, or is cancelled.

    Args:
        blocks: At most BLOCKS_MAX.
        now: Unix seconds.
    Raises:
        CallError: layer CONFIG, reason ``credentials``: no judgement could be had; nothing is said of the files.
    """
    assert 0 < len(blocks) <= BLOCKS_MAX, len(blocks)
    request = encode_request(Request(now=now, blocks=tuple(blocks)))
    if not sys.executable:
        raise _no_judgement("can't be started: this interpreter does not know its own program file")
    talk = _Talk(request)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(EXAMINATION_S_MAX):
            # A session of its own: a Ctrl-C is for the poller, which ends its children itself.
            await loop.subprocess_exec(
                lambda: talk, sys.executable, "-P", "-m", MODULE, env=_environment(), start_new_session=True
            )
            await talk.ended.wait()
    except TimeoutError:
        raise _no_judgement(
            f"was ended after {EXAMINATION_S_MAX:g} s without an answer; is the machine overloaded, or a disk stuck?"
        ) from None
    except (OSError, ValueError, RuntimeError) as error:
        # ValueError: a null character in a variable. RuntimeError: no thread, by which Python 3.11 waits for a child.
        await talk.disown()
        cause = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise _no_judgement(f"can't be started: {cause}; is there memory and room for one more process?") from error
    finally:
        await talk.end()
    return _result(talk, count=len(blocks))


def _result(talk: _Talk, *, count: int) -> tuple[Examined, ...]:
    if talk.too_large:
        raise _no_judgement(f"answered with more than {ANSWER_BYTES_MAX} bytes; are the files certificates?")
    code = talk.exit_code()
    if code < 0:
        raise _no_judgement(f"was killed by {_signal_name(-code)}; is there memory enough?")
    if code > 0:
        raise _no_judgement(f"ended with exit code {code}: {talk.last_line()}")
    try:
        return decode_answer(bytes(talk.answer), count=count)
    except ValueError as error:
        raise _no_judgement(f"gave an answer that can't be read ({error}); is the installation whole?") from None


class _Talk(asyncio.SubprocessProtocol):
    """
    One request to a child, and what it answers, within limits.

    Attributes:
        ended: Set when the child has ended, was reaped, and its pipes are closed.
    """

    def __init__(self, request: bytes) -> None:
        self.answer = bytearray()
        self.too_large = False
        self.ended = asyncio.Event()
        self._begun = asyncio.Event()
        self._request = request
        self._transport: asyncio.SubprocessTransport | None = None
        self._stderr = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request; it is buffered until the child takes it."""
        # Casts: uvloop's transports don't derive from asyncio's.
        self._transport = cast("asyncio.SubprocessTransport", transport)
        self._begun.set()
        stdin = cast("asyncio.WriteTransport", self._transport.get_pipe_transport(0))
        stdin.write(self._request)
        stdin.write_eof()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Keep the answer, and the last of what is said on stderr."""
        if fd == 2:
            self._stderr = (self._stderr + data)[-STDERR_BYTES_MAX:]
            return
        if len(self.answer) + len(data) > ANSWER_BYTES_MAX:
            self.too_large = True
            self.answer.clear()
            if self._transport is not None:
                self._transport.close()
        elif not self.too_large:
            self.answer += data

    def connection_lost(self, exc: Exception | None) -> None:
        """Take note of the end."""
        self.ended.set()

    def exit_code(self) -> int:
        """Return the exit code; a signal's number, negative, when one ended the child."""
        assert self._transport is not None and self.ended.is_set()
        code = self._transport.get_returncode()
        assert code is not None
        return code

    def last_line(self) -> str:
        """Return the last line on stderr: of a traceback, the one that says what happened."""
        lines = self._stderr.decode(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "")
        return one_line(last, STDERR_CHARACTERS_MAX) or "it said nothing"

    async def disown(self) -> None:
        """
        Kill and reap a child that asyncio does not wait for.

        Starting one can also fail when it runs: without a descriptor or a thread there is nothing that waits for it.
        """
        try:
            async with asyncio.timeout(BEGIN_S_MAX):
                await self._begun.wait()
        except TimeoutError:
            return  # there is none
        assert self._transport is not None
        self._transport.close()
        process: subprocess.Popen[bytes] = self._transport.get_extra_info("subprocess")
        try:
            async with asyncio.timeout(REAP_S_MAX):
                while process.poll() is None:  # noqa: ASYNC110 — nobody tells
                    await asyncio.sleep(REAP_LOOK_S)
        except TimeoutError:
            pass  # stuck in the kernel: the next start of a process reaps it
        self.ended.set()

    async def end(self) -> None:
        """Kill a child that runs, and wait until it is reaped."""
        if self._transport is None:
            return  # it never began, or asyncio itself has ended it
        self._transport.close()
        if self.ended.is_set():
            return
        try:
            async with asyncio.timeout(REAP_S_MAX):
                await self.ended.wait()
        except TimeoutError:
            pass  # stuck in the kernel: asyncio reaps it when it comes out


def _environment() -> dict[str, str]:
    """
    Return the child's variables.

    Our own search path goes with it, so that the child finds the same modules however this process was started; with
    the option -P the working directory is in front of it only where it is in front of ours. A place that a search path
    can't spell is left out: its halves are other places.
    """
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    return kept | {"PYTHONPATH": os.pathsep.join(place for place in sys.path if place and os.pathsep not in place)}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _no_judgement(what: str) -> CallError:
    return unusable_credentials(f"no judgement of the certificate files: the process for it {what}")
