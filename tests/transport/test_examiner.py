"""The process that judges certificate files: what it says, how it fails, and what it does not get to see."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serviceradar_poller.config.model import SecurityConfig, TlsConfig
from serviceradar_poller.env import SystemClock
from serviceradar_poller.errors import CallError, Layer
from serviceradar_poller.transport import examiner
from serviceradar_poller.transport.certificates import examine
from serviceradar_poller.transport.examination import Request, decode_answer, encode_answer, encode_request
from serviceradar_poller.transport.examiner import BLOCKS_MAX, examine_apart
from serviceradar_poller.transport.material import Examined

Block = Callable[..., SecurityConfig]
#: Replaces the child by a module with this text.
Replace = Callable[[str], None]

LEAVES = ("poller", "expired", "not_yet_valid", "key_mismatch", "no_client_auth", "other_ca", "missing")


@pytest.fixture
def now() -> float:
    return SystemClock().wall() + 3600  # certificates are made when the first test runs


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Replace:
    def replace(text: str) -> None:
        (tmp_path / "stand_in.py").write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(examiner, "MODULE", "stand_in")

    return replace


def judge(*blocks: SecurityConfig, now: float) -> tuple[Examined, ...]:
    return asyncio.run(examine_apart([block.tls for block in blocks], now=now))


def failure(block: SecurityConfig, now: float) -> CallError:
    with pytest.raises(CallError) as caught:
        judge(block, now=now)
    assert (caught.value.layer, caught.value.reason) == (Layer.CONFIG, "credentials")
    assert caught.value.detail.startswith("no judgement of the certificate files: the process for it ")
    assert not children()
    return caught.value


@pytest.fixture(autouse=True)
def others() -> Iterator[None]:
    """Let children() leave out what other tests have running."""
    _OTHERS.update(_all_children())
    yield
    _OTHERS.clear()


_OTHERS: set[int] = set()


def children() -> set[int]:
    """Return the processes of this test that somebody has to wait for, zombies included."""
    return _all_children() - _OTHERS


def _all_children() -> set[int]:
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            found |= {int(pid) for pid in (task / "children").read_text().split()}
        except FileNotFoundError:
            continue  # that thread has ended
    return found


@pytest.mark.slow
def test_the_same_judgement(block: Block, now: float) -> None:
    """Material, identity and findings are those of a judgement in one's own process, for any number of blocks."""
    blocks = [block(leaf=leaf) for leaf in LEAVES] + [SecurityConfig(), block(root="other/root")]
    assert judge(*blocks, now=now) == tuple(
        examine(SecurityConfig(mode=block().mode, tls=each.tls), now=now) for each in blocks
    )
    assert not children()


@pytest.mark.slow
def test_names_that_are_no_text(now: float) -> None:
    """A file name that UTF-8 can't spell, or with a null character, is a finding as any other."""
    tls = TlsConfig(cert_file="/nowhere/\udc80", key_file="/nowhere/\ud800", ca_file="/nowhere/\0")
    found = judge(SecurityConfig(tls=tls), now=now)[0]
    assert found == examine(SecurityConfig(tls=tls), now=now)
    assert [finding.file for finding in found.findings] == [tls.cert_file, tls.key_file, tls.ca_file]


def test_shared_files_travel_once(block: Block, now: float) -> None:
    """An answer for many blocks of the same site is little more than one for a single block."""
    one = examine(block(), now=now)
    single, many = encode_answer([one]), encode_answer([one] * BLOCKS_MAX)
    assert decode_answer(many, count=BLOCKS_MAX) == (one,) * BLOCKS_MAX
    assert len(many) < len(single) + BLOCKS_MAX * 1_000
    roots = {id(each.material.roots) for each in decode_answer(many, count=BLOCKS_MAX) if each.material is not None}
    assert len(roots) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"[" * 100_000,
        b'{"pem": [], "results": []}',
        b'{"pem": [], "results": [{"material": null, "identity": null, "findings": []}]}',
        b'{"pem": ["%%"], "results": []}',
    ],
)
def test_an_answer_that_is_none(answer: bytes) -> None:
    """Whatever comes instead of an answer is refused, without being repeated."""
    with pytest.raises(ValueError, match=r"^(no JSON|Expected|Object|Invalid|0 results|neither)"):
        decode_answer(answer, count=1)


def test_material_of_files_that_are_not_there(block: Block, now: float) -> None:
    """An answer can't refer to what it doesn't hold, also not from the end."""
    whole = encode_answer([examine(block(), now=now)])
    for index in (b"7", b"-1"):
        with pytest.raises(ValueError, match="not in it"):
            decode_answer(whole.replace(b'"roots": 0', b'"roots": ' + index), count=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL; is there memory enough?"),
        ("raise MemoryError('no more')", "ended with exit code 1: MemoryError: no more"),
        ("import no_such_library", "exit code 1: ModuleNotFoundError: No module named 'no_such_library'"),
        ("import os; os._exit(9)", "ended with exit code 9: it said nothing"),
        ("print('hello')", "gave an answer that can't be read (no JSON (JSONDecodeError)); is the installation whole?"),
        ("pass", "gave an answer that can't be read"),
        ("print('x' * 10_000_000, flush=True)", "answered with more than 100000 bytes"),
        ("while True: print('x' * 1_000, flush=True)", "answered with more than 100000 bytes"),
        ("import sys; sys.stderr.write('y' * 10_000_000 + '\\nthe end\\n\\n'); sys.exit(3)", "exit code 3: the end"),
        ("import sys; sys.stdin.close(); sys.exit(4)", "exit code 4"),
    ],
)
def test_a_child_that_fails(
    block: Block, now: float, child: Replace, monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    """However a child ends without an answer, its caller learns how, in one line, and nothing is left of it."""
    monkeypatch.setattr(examiner, "ANSWER_BYTES_MAX", 100_000)
    child(text)
    assert words in failure(block(), now).detail


@pytest.mark.slow
@pytest.mark.parametrize("text", ["import time; time.sleep(600)", "import signal; signal.pause()", "while True: pass"])
def test_a_child_that_hangs(
    block: Block, now: float, child: Replace, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """A child that does not answer in time is killed."""
    monkeypatch.setattr(examiner, "EXAMINATION_S_MAX", 0.3)
    child(text)
    begin_s = time.monotonic()
    assert "was ended after 0.3 s without an answer" in failure(block(), now).detail
    assert time.monotonic() - begin_s < 5.0


@pytest.mark.parametrize("executable", ["/no/such/python", "", "/etc/passwd", "/tmp"])
def test_a_child_that_cannot_be_started(
    block: Block, now: float, monkeypatch: pytest.MonkeyPatch, executable: str
) -> None:
    """What the system says is told."""
    monkeypatch.setattr(sys, "executable", executable)
    assert "can't be started: " in failure(block(), now).detail


def test_a_child_that_nobody_waits_for(block: Block, now: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that runs when the thread or the descriptor that waits for its end can't be had is killed and reaped."""

    def no_thread(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def no_descriptor(pid: int, flags: int = 0) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    monkeypatch.setattr(os, "pidfd_open", no_descriptor)
    before = os.listdir("/proc/self/fd")
    detail = failure(block(), now).detail
    assert "can't be started: can't start new thread" in detail or "can't be started: Too many open files" in detail
    assert os.listdir("/proc/self/fd") == before


def test_a_search_path_that_cannot_be_spelt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory whose name holds the separator never becomes two others, one of them below the working directory."""
    monkeypatch.setattr(sys, "path", ["/opt/a:b/site", "", "/opt/c"])
    assert examiner._environment()["PYTHONPATH"] == "/opt/c"


@pytest.mark.slow
def test_cancelling_kills_the_child(block: Block, now: float, child: Replace, tmp_path: Path) -> None:
    """Who no longer wants to know leaves no process behind; a child that ignores signals ends too."""
    child(
        "import os, pathlib, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\ntime.sleep(600)\n"
    )

    def pid() -> str:
        file = tmp_path / "pid"
        return file.read_text() if file.exists() else ""

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(examine_apart([block().tls], now=now))
            async with asyncio.timeout(10.0):
                while not pid():  # noqa: ASYNC110 — of another process
                    await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled()
            assert not children()

    asyncio.run(main())
    assert not os.path.exists(f"/proc/{pid()}")


@pytest.mark.slow
def test_what_the_child_gets_to_see(
    block: Block, now: float, child: Replace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No key is in its arguments or variables, nor any variable of ours that it does not need."""
    monkeypatch.setenv("SERVICERADAR_SECRET", "hush")
    monkeypatch.setenv("PYTHONINSPECT", "1")
    child(
        "import pathlib, shutil\nfrom serviceradar_poller.transport.examining import main\n"
        f"for name in ('cmdline', 'environ'):\n    shutil.copy(f'/proc/self/{{name}}', {str(tmp_path)!r})\n"
        "raise SystemExit(main())\n"
    )
    found = judge(block(), now=now)[0]
    assert found.material is not None
    seen = (tmp_path / "cmdline").read_bytes() + (tmp_path / "environ").read_bytes()
    assert b"stand_in" in seen and b"PYTHONPATH=" in seen
    assert not [line for line in found.material.key.splitlines() if line in seen]
    assert b"PRIVATE KEY" not in seen and b"hush" not in seen and b"PYTHONINSPECT" not in seen
    assert "PRIVATE KEY" not in repr(found)


@pytest.mark.slow
def test_the_working_directory_is_not_searched(
    block: Block, now: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies about in the poller's directory is not run."""
    (tmp_path / "msgspec.py").write_text("raise SystemExit(66)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    assert judge(block(), now=now)[0].material is not None


@pytest.mark.slow
def test_the_loop_turns_meanwhile(block: Block, now: float) -> None:
    """Starting a child, waiting for it and reading its answer hold nobody up."""

    async def main() -> int:
        ticks = 0
        async with asyncio.TaskGroup() as group:
            task = group.create_task(examine_apart([block().tls], now=now))
            while not task.done():
                await asyncio.sleep(0.005)
                ticks += 1
        return ticks

    assert asyncio.run(main()) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("request_text", [b"", b"{}", b"x" * (8 * 1024 * 1024 + 1)])
def test_a_request_that_is_none(request_text: bytes) -> None:
    """A child that is given something else says so."""
    ended = subprocess.run([sys.executable, "-m", examiner.MODULE], input=request_text, capture_output=True)
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert ended.stderr.startswith(b"unusable request: ")


@pytest.mark.slow
def test_no_core_dump_holds_a_key(block: Block, now: float) -> None:
    """A child leaves no core dump, whatever the machine does with them: the kernel makes none of it."""
    text = (
        "import ctypes, sys\nfrom serviceradar_poller.transport.examining import main\nmain()\n"
        "print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), file=sys.stderr)"  # PR_GET_DUMPABLE
    )
    request = encode_request(Request(now=now, blocks=(block().tls,)))
    ended = subprocess.run([sys.executable, "-c", text], input=request, capture_output=True)
    assert ended.stderr.strip() == b"0"


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["native", "grpcio"])
def test_whoever_makes_clients_never_loads_the_library(block: Block, backend: str) -> None:
    """The program's modules and a client over mTLS, without the library that judges certificates."""
    tls = block().tls
    text = f"""
import asyncio, pathlib, sys
import serviceradar_poller.app.run
from serviceradar_poller.app.backend import new_transport
from serviceradar_poller.config.model import SecurityConfig, SecurityMode, TlsConfig, TransportBackend
from serviceradar_poller.env import SystemClock
from serviceradar_poller.transport.resolver import SystemResolver
block = SecurityConfig(mode=SecurityMode.MTLS, tls=TlsConfig(
    cert_file={tls.cert_file!r}, key_file={tls.key_file!r}, ca_file={tls.ca_file!r}))
async def main():
    transport = new_transport(TransportBackend({backend!r}), clock=SystemClock(), resolver=SystemResolver())
    await (await transport.agent("127.0.0.1:1", block)).close()
    assert transport.credentials.loads == 1
asyncio.run(main())
assert not [name for name in sys.modules if name.partition(".")[0] == "cryptography"]
assert "cryptography" not in pathlib.Path("/proc/self/maps").read_text()
"""
    ended = subprocess.run([sys.executable, "-W", "error", "-c", text], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.slow
def test_a_parent_that_ignored_its_children() -> None:
    """Where the program was started with SIGCHLD ignored, which it inherits, an examination succeeds all the same."""
    text = """
import asyncio, signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
from serviceradar_poller.cli import main
assert main(["check", "/no/such/file"]) == 1
from serviceradar_poller.config.model import TlsConfig
from serviceradar_poller.transport.examiner import examine_apart
(found,) = asyncio.run(examine_apart([TlsConfig(cert_file="/no/such/file")], now=0.0))
assert "No such file" in found.findings[0].found
"""
    ended = subprocess.run([sys.executable, "-W", "error", "-c", text], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr.count("Traceback")) == (0, 0), ended.stderr
