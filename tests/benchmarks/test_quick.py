"""The benchmarks run from start to end, end what they started and keep what they measured; no figure is judged."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from serviceradar_poller.testing.process import eventually

#: All suites share the machine: the slowest of them sets the time.
pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
SUITES = (
    "kernel",
    "overhead",
    "calls",
    "poller",
    "profile",
    "recovery",
    "isolation",
    "spool",
    "streams",
    "outage",
    "soak",
)
#: Marks every process that a run starts, and those that they start.
MARK = "BENCHMARK_TEST_RUN"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[str, dict[str, Any]]]]:
    """Run all suites side by side; return what each printed and kept."""
    folder = tmp_path_factory.mktemp("results")
    environment = {**os.environ, MARK: str(folder)}
    with contextlib.ExitStack() as stack:
        stack.callback(_end_left, str(folder))
        running = {}
        for suite in SUITES:
            command = [sys.executable, "-m", "benchmarks", suite, "--quick", "--date", "2026-01-02"]
            running[suite] = stack.enter_context(
                subprocess.Popen(
                    [*command, "--results", str(folder / suite)],
                    cwd=ROOT,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(running[suite].kill)
        found = {}
        for suite, process in running.items():
            out, errors = process.communicate(timeout=500.0)
            assert process.returncode == 0, f"{suite}:\n{out}\n{errors[-3000:]}"
            kept = msgspec.json.decode((folder / suite / "2026-01-02.json").read_bytes())
            found[suite] = (out, kept)
        eventually(lambda: not [*_left(str(folder))], "every process of a benchmark has ended")
        yield found


def test_every_suite_prints_its_table_and_keeps_its_measurements(runs: dict[str, tuple[str, dict[str, Any]]]) -> None:
    """Each suite prints a table and keeps itself, with the machine, under the date that it was given."""
    for suite, (out, kept) in runs.items():
        assert out.startswith("== "), suite
        assert kept["machine"].keys() >= {"date", "cores", "Python", "grpcio"}
        assert kept["machine"]["date"] == "2026-01-02"
        assert list(kept["suites"]) == [suite]
        assert kept["suites"][suite]["took_s"] > 0


def test_the_poller_is_measured_beside_a_bare_client(runs: dict[str, tuple[str, dict[str, Any]]]) -> None:
    """Poller and bare client ask the same agents, hardly one in vain, and both have costs."""
    run = runs["poller"][1]["suites"]["poller"]["runs"][0]
    assert run["agents"] == 100
    assert len(run["cycles"]) == 2
    assert run["polls"] >= 200, "two cycles of 200 calls, but on a loaded machine a look may fall within a cycle"
    assert all(cycle["cpu_s"] > 0 and cycle["rss_bytes"] > 2**24 and cycle["tick_s"] > 0 for cycle in run["cycles"])
    assert 0 < run["p50_s"] <= run["p99_s"]
    # A check has a second, which the other suites may take; one that was too late costs its connection.
    assert max(run["failed"], run["handshakes"]) <= 0.1 * run["polls"]
    assert sum(cycle["calls"] for cycle in run["reference"]) >= 200
    assert max(cycle["failed"] for cycle in run["reference"]) <= 20
    assert all(cycle["cpu_s"] > 0 and cycle["rss_bytes"] > 2**24 for cycle in run["reference"])


def test_every_client_makes_calls_and_reads_a_stream(runs: dict[str, tuple[str, dict[str, Any]]]) -> None:
    """Each backend on each loop has a figure for every round, and all read the same stream."""
    run = runs["calls"][1]["suites"]["calls"]
    names = ["grpcio", "native", "native, uvloop"]
    assert [client["name"] for client in run["clients"]] == names
    for client in run["clients"]:
        assert all(len(client[name]) == 2 and min(client[name]) > 0 for name in ("cpu_s", "wall_s", "lone_cpu_s"))
        assert client["rss_bytes"] > 0 and client["connect_s"] > 0
    assert [stream["name"] for stream in run["streams"]] == names
    assert {stream["chunks"] for stream in run["streams"]} == {3.0}
    assert len({stream["size_bytes"] for stream in run["streams"]}) == 1
    assert all(stream["cpu_s"] > 0 and stream["peak_bytes"] > 0 for stream in run["streams"])


def test_a_profile_has_samples_of_the_cycles_in_which_it_was_on(runs: dict[str, tuple[str, dict[str, Any]]]) -> None:
    """What the samples stand for is the CPU that the main thread used in those cycles, but for their edges."""
    run = runs["profile"][1]["suites"]["profile"]
    assert [cycle["sampled"] for cycle in run["cycles"]] == [True, True, False]
    assert all(0 < cycle["main_cpu_s"] <= cycle["cpu_s"] for cycle in run["cycles"])
    first, second, third = (cycle["main_cpu_s"] for cycle in run["cycles"])
    assert run["samples"] > 0
    assert 0.5 * (first + second) < sum(run["parts_s"].values()) < first + second + third


def test_every_outage_was_seen_in_core_before_it_ended(runs: dict[str, tuple[str, dict[str, Any]]]) -> None:
    """A recovery is counted from an outage that core was told of, and never before the agent listened."""
    returns = runs["recovery"][1]["suites"]["recovery"]["returns"]
    assert len(returns) == 2
    assert all(each["bad_reports"] >= 1 and 0 < each["first_s"] <= each["all_s"] for each in returns)


def test_isolation_counts_every_check_of_the_others(runs: dict[str, tuple[str, dict[str, Any]]]) -> None:
    """The phases are one without a fault and one with; no check of the others is missing, hardly one fails."""
    phases = runs["isolation"][1]["suites"]["isolation"]["phases"]
    assert [phase["fault"] for phase in phases] == ["", "mute"]
    assert all(phase["failed"] <= 0.1 * phase["checks"] for phase in phases), "a check has a second"
    assert all(phase["checks"] >= 2 * 29 * 2 for phase in phases), "three cycles, of which a loaded machine may cut one"
    assert all(0 <= phase["p50_s"] <= phase["p999_s"] <= phase["max_s"] for phase in phases)


def test_a_soak_has_faults_of_agents_and_core_and_loses_nothing(runs: dict[str, tuple[str, dict[str, Any]]]) -> None:
    """Agents and core had faults that were felt; every status is in one place at each look, and with core at last."""
    run = runs["soak"][1]["suites"]["soak"]
    assert sum(count for kind, count in run["faults"].items() if not kind.startswith("core ")) > 10
    assert sum(count for kind, count in run["faults"].items() if kind.startswith("core ")) > 0
    assert run["failed"] > 0 and min(sample["up"] for sample in run["samples"]) < 30
    assert len(run["samples"]) >= 60
    assert [sample for sample in run["samples"] if sample["imbalance"] != 0] == []
    assert run["accounts"]["polled"] == run["accounts"]["delivered"] > 0
    assert run["recorded"] >= run["accepted"] >= run["accounts"]["delivered"]
    assert run["lost"] == run["bad"] == 0 and run["good_s"] is not None
    assert {each["name"] for each in run["courses"]} == {"open descriptors", "tasks", "threads", "RSS"}
    assert min(run["before"]["blocks"], run["after"]["blocks"]) > 0
    assert all(each["first"] > 0 and each["last"] > 0 for each in run["courses"])


def test_a_run_that_is_partial_or_quick_writes_no_readme() -> None:
    """Results are only written from a whole run; a suite that nobody knows is refused."""
    for arguments in (["--quick", "--write"], ["poller", "--write"], ["nonsense"]):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60.0
        )
        assert done.returncode == 2, arguments
        assert "benchmarks:" in done.stderr


def _left(mark: str) -> Iterator[tuple[int, str]]:
    """Give pid and command line of the living processes that a run has started."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and f"{MARK}={mark}\0".encode() in (entry / "environ").read_bytes():
                yield int(entry.name), (entry / "cmdline").read_text("utf-8", "replace")


def _end_left(mark: str) -> None:
    """End what a failed run leaves behind; after one that succeeded there is nothing."""
    for pid, _ in _left(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
