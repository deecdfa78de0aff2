from __future__ import annotations

import asyncio
import fcntl
import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from serviceradar_poller.events.polling import PollerStopping
from serviceradar_poller.observe.log import LogSink
from serviceradar_poller.observe.writer import LineWriter


def dropped_line(count: int) -> bytes:
    return b"<%d missing>\n" % count


def wait_until(condition: threading.Event) -> None:
    assert condition.wait(20), "the writer did not get there within 20 s"


def test_lines_arrive_in_order(tmp_path: Path) -> None:
    """What is put before close is in the file after it, in order."""
    path = tmp_path / "log"
    with path.open("wb") as stream:
        writer = LineWriter(stream, dropped_line=dropped_line)
        lines = [b"line %d\n" % i for i in range(5_000)]
        assert all(writer.put(line) for line in lines)
        assert writer.close() == 0
    assert path.read_bytes() == b"".join(lines)


def test_a_full_queue_drops_counts_and_tells_when_it_recovers() -> None:
    """While the reader stalls lines are dropped; the next ones written say how many are missing, in their place."""
    stalled, go = threading.Event(), threading.Event()

    class Stalling(io.BytesIO):
        def write(self, data: object) -> int:
            stalled.set()
            wait_until(go)
            return super().write(data)  # type: ignore[arg-type]

    stream = Stalling()
    writer = LineWriter(stream, dropped_line=dropped_line, lines_max=3)
    writer.put(b"first\n")
    wait_until(stalled)
    taken = [writer.put(b"%d\n" % i) for i in range(10)]
    assert taken == [True] * 3 + [False] * 7
    assert writer.dropped == 7
    go.set()
    assert writer.close() == 0
    assert stream.getvalue() == b"first\n0\n1\n2\n<7 missing>\n"


def test_the_queue_is_bounded_in_bytes_too() -> None:
    """Few but huge lines don't fill the memory."""
    stalled, go = threading.Event(), threading.Event()

    class Stalling(io.BytesIO):
        def write(self, data: object) -> int:
            stalled.set()
            wait_until(go)
            return super().write(data)  # type: ignore[arg-type]

    writer = LineWriter(Stalling(), dropped_line=dropped_line, bytes_max=1_000)
    writer.put(b"x" * 500 + b"\n")
    wait_until(stalled)
    assert not writer.put(b"x" * 600 + b"\n")
    go.set()
    writer.close()


def small_pipe() -> tuple[int, int]:
    read_fd, write_fd = os.pipe()
    fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, 4096)
    return read_fd, write_fd


@pytest.mark.slow
def test_a_reader_that_stalls_does_not_stop_the_loop() -> None:
    """With stdout a pipe that nobody reads, the loop turns, lines are dropped and counted, and close returns."""
    read_fd, write_fd = small_pipe()

    async def main(sink: LogSink) -> float:
        loop = asyncio.get_running_loop()
        worst = 0.0
        for _ in range(50):
            before = loop.time()
            for _ in range(400):
                sink(PollerStopping(cause="x" * 100))
            await asyncio.sleep(0)
            worst = max(worst, loop.time() - before)
        return worst

    with os.fdopen(write_fd, "wb") as stream:
        sink = LogSink(stream, level="info", time=lambda: 0.0)
        worst = asyncio.run(main(sink))
        assert worst < 1.0
        assert sink.dropped > 0
        left = sink.close(grace_s=0.2)
        assert left > 0
        assert sink.dropped >= 20_000 - 10_000
    os.close(read_fd)


@pytest.mark.slow
def test_a_reader_that_comes_back_gets_whole_lines_and_the_gap() -> None:
    """Through a real pipe that was full, no line is torn, and what is missing is said."""
    read_fd, write_fd = small_pipe()
    with os.fdopen(write_fd, "wb") as stream:
        writer = LineWriter(stream, dropped_line=dropped_line, lines_max=200)
        taken = sum(writer.put(b"%06d %s\n" % (i, b"x" * 80)) for i in range(2_000))
        assert taken < 2_000
        received: list[bytes] = []

        def read() -> None:
            while part := os.read(read_fd, 65_536):
                received.append(part)

        reader = threading.Thread(target=read)
        reader.start()
        assert writer.close(grace_s=20) == 0
    reader.join()
    os.close(read_fd)
    lines = b"".join(received).splitlines()
    told = [line for line in lines if line.startswith(b"<")]
    assert len(lines) - len(told) == taken
    assert sum(int(line[1:].split()[0]) for line in told) == 2_000 - taken
    assert all(len(line) == 87 for line in lines if line not in told)


def test_a_reader_that_went_away_is_counted_and_survived() -> None:
    """A broken pipe costs lines, which are counted, and neither an exception nor a busy loop."""
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    with os.fdopen(write_fd, "wb") as stream:
        writer = LineWriter(stream, dropped_line=dropped_line)
        writer.put(b"into the void\n")
        writer.close()
        assert writer.dropped == 1
        assert writer.errors == 1
        assert not writer.put(b"after the end\n")
        assert writer.dropped == 2


def test_a_closed_stream_is_survived() -> None:
    """A stream that somebody closed costs lines and nothing else."""
    stream = io.BytesIO()
    writer = LineWriter(stream, dropped_line=dropped_line)
    stream.close()
    writer.put(b"lost\n")
    writer.close()
    assert writer.dropped == 1


def test_a_disk_that_was_full_goes_on_with_a_whole_line() -> None:
    """After a write that failed half-way, the next line begins on a line of its own, and the loss is told."""

    class Disk(io.BytesIO):
        def __init__(self) -> None:
            super().__init__()
            self.data = b""
            self.failed = threading.Event()

        def write(self, data: object) -> int:
            assert isinstance(data, bytes)
            if not self.failed.is_set():
                self.failed.set()
                raise OSError(28, "No space left on device")
            self.data += data
            return len(data)

    disk = Disk()
    writer = LineWriter(disk, dropped_line=dropped_line)
    writer.put(b"lost\n")
    wait_until(disk.failed)
    writer.put(b"kept\n")
    writer.close()
    assert disk.data in (b"kept\n<1 missing>\n", b"kept\n")
    assert writer.dropped == 1


@pytest.mark.slow
def test_a_program_whose_stdout_is_stuck_can_still_exit() -> None:
    """Interpreter shutdown does not hang or abort on the writer's thread."""
    program = (
        "import sys\n"
        "from serviceradar_poller.observe.log import LogSink\n"
        "from serviceradar_poller.events.polling import PollerStopping\n"
        "sink = LogSink(sys.stdout, level='info', time=lambda: 0.0)\n"
        "for _ in range(5000): sink(PollerStopping(cause='x' * 100))\n"
        "left = sink.close(grace_s=0.2)\n"
        "sys.exit(0 if left else 3)\n"
    )
    read_fd, write_fd = small_pipe()
    process = subprocess.Popen([sys.executable, "-c", program], stdout=write_fd, stderr=subprocess.PIPE)
    os.close(write_fd)
    _, stderr = process.communicate(timeout=30)
    os.close(read_fd)
    assert process.returncode == 0, stderr
    assert stderr == b""
