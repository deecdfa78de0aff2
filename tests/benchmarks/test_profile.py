"""The sampler tells whose CPU it was, and every frame belongs to the part that its file is in."""

from __future__ import annotations

import asyncio.selector_events
import inspect
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.profile import KERNEL, LOOP, OTHER, TLS, WAITING, Frame, Stack, by_function, by_part, part_of
from benchmarks.profile import read_stacks as read
from benchmarks.sampled import Sampler

SRC = "/x/src/serviceradar_poller"
SAMPLES_MIN = 12
#: More CPU than so many samples take on any machine.
BURN_S_MAX = 10.0


def frame(file: str, function: str = "f", line: int | None = 1) -> Frame:
    return Frame(file=file, function=function, line=line)


@pytest.mark.parametrize(
    ("file", "function", "part"),
    [
        (f"{SRC}/transport/native/tls.py", "TlsClient.feed", TLS),
        (f"{SRC}/transport/native/connection.py", "Connection.open", "connections and calls"),
        (f"{SRC}/transport/http2/session.py", "Session.receive", "HTTP/2"),
        (f"{SRC}/transport/clients.py", "ChannelAgentClient.get_status", "connections and calls"),
        (f"{SRC}/otp/mailbox.py", "Mailbox.put", "actors"),
        (f"{SRC}/reporting/spool/log.py", "write", "reports and spool"),
        (f"{SRC}/app/run.py", "_main", OTHER),
        ("/usr/lib/python3.11/ssl.py", "SSLObject.read", TLS),
        ("/usr/lib/python3.11/selectors.py", "EpollSelector.select", WAITING),
        ("/usr/lib/python3.11/selectors.py", "EpollSelector.modify", LOOP),
        ("/usr/lib/python3.11/asyncio/events.py", "Handle._run", LOOP),
        ("<string>", "__create_fn__.<locals>.__init__", None),
        ("/usr/lib/python3.11/json/encoder.py", "JSONEncoder.encode", None),
    ],
)
def test_a_frame_belongs_to_the_part_that_its_file_is_in(file: str, function: str, part: str | None) -> None:
    """The longest begin of the path decides; what serves many parts belongs to none."""
    assert part_of(frame(file, function)) == part


def test_a_system_call_is_the_kernels() -> None:
    """Of the function of asyncio that sends, the line that does it is the kernel's and the others are the loop's."""
    file = asyncio.selector_events.__file__
    lines, first = inspect.getsourcelines(vars(asyncio.selector_events)["_SelectorSocketTransport"].write)
    parts = [part_of(frame(file, "write", first + index)) for index in range(len(lines))]
    assert [line.strip() for line, part in zip(lines, parts, strict=True) if part == KERNEL] == [
        "n = self._sock.send(data)"
    ]
    assert set(parts) == {KERNEL, LOOP}


def test_a_library_counts_for_its_caller() -> None:
    """The first frame that belongs somewhere decides about the part, the innermost about the function."""
    made = frame("<string>", "__init__")
    agents = frame(f"{SRC}/agents/runner.py", "CheckRunner.handle")
    stacks = [
        Stack(frames=(made, agents), seconds=0.25),
        Stack(frames=(agents,), seconds=0.5),
        Stack(frames=(made,), seconds=1.0),
        Stack(frames=(), seconds=2.0),
    ]
    assert by_part(stacks) == {"agents": 0.75, OTHER: 3.0}
    assert by_function(stacks) == {("<string>", "__init__"): 1.25, (agents.file, agents.function): 0.5}


@pytest.fixture
def sampler() -> Iterator[Sampler]:
    made = Sampler()
    before = signal.signal(signal.SIGPROF, made.sample)
    yield made
    signal.setitimer(signal.ITIMER_PROF, 0.0)
    signal.signal(signal.SIGPROF, before)


def burn(seconds: float, *, until_sampled: Sampler | None = None) -> float:
    """Use CPU, and go on until there are samples enough: a thread that is often preempted is met by fewer ticks."""
    began_s = time.thread_time()
    while (used_s := time.thread_time() - began_s) < seconds or (
        until_sampled is not None and until_sampled._samples < SAMPLES_MIN and used_s < BURN_S_MAX
    ):
        pass
    return used_s


def test_samples_stand_for_the_cpu_that_was_used(sampler: Sampler, tmp_path: Path) -> None:
    """While it is on, most CPU of a function that does nothing but use it is found there; while it is off, none."""
    sampler.toggle()
    used_s = burn(0.15, until_sampled=sampler)
    sampler.toggle()
    burn(0.05)
    sampler.write(tmp_path / "samples.json")
    samples, stacks = read(tmp_path / "samples.json")
    found = by_function(stacks)
    assert samples >= SAMPLES_MIN
    # The first sample has the way from the toggle to the function, too.
    assert 0.5 * used_s < found[__file__, "burn"] <= 1.02 * used_s
    assert sum(found.values()) <= 1.1 * used_s
    assert json.loads((tmp_path / "samples.json").read_text())["samples"] == samples
