"""The disk of the spool can't be written, or its files are deleted, while core is well or away: everything arrives."""

from __future__ import annotations

import contextlib
import resource
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from serviceradar_poller.testing.process import PollerProcess, eventually, run_command
from serviceradar_poller.testing.site import MakeSite, Site

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

UNLIMITED = resource.RLIM_INFINITY
#: More than the poller logs here, less than its spool takes after a few reports.
LOG_BYTES_MAX = 48 * 1024


def limit_files(made: Site, size: int) -> None:
    """Let no write of the poller's go beyond *size* bytes of a file: EFBIG, as from a disk that fails."""
    resource.prlimit(made.poller.process.pid, resource.RLIMIT_FSIZE, (size, UNLIMITED))


def health(made: Site) -> dict[str, Any]:
    found: dict[str, Any] = made.poller.json("/health")
    accounts = found["statuses"]
    gone = accounts["delivered"] + accounts["rejected"] + accounts["expired"] + sum(accounts["dropped"].values())
    assert accounts["polled"] + accounts["recovered"] == accounts["queued"] + gone
    return found


def unary_times(made: Site, since: int) -> list[int]:
    return [each["timestamp"] for each in made.core.reports(since, services=False) if each["transport"] == "unary"]


def cpu_s(made: Site) -> float:
    fields = Path(f"/proc/{made.poller.process.pid}/stat").read_text("ascii").split()
    return (int(fields[13]) + int(fields[14])) / 100


def fill(made: Site, count: int) -> int:
    """Let *count* reports wait, then let nothing be written; return where core's next report begins."""
    made.await_reports(2)
    begin = made.next_report()
    made.core.set_fault("disappear")
    eventually(lambda: health(made)["spool"]["reports"] >= count, "reports wait")
    limit_files(made, LOG_BYTES_MAX)
    eventually(lambda: not health(made)["spool"]["writable"], "nothing can be written")
    return begin


def test_reports_reach_core_while_nothing_can_be_written(site: MakeSite) -> None:
    """Those on disk and those in memory, each once, in order; health says what is wrong for as long as it is."""
    made = site(3, interval="1s", level="info")
    begin = fill(made, 5)
    eventually(lambda: health(made)["spool"]["in_memory_only"] >= 2, "reports wait in memory too")
    assert any("the spool can't be written" in reason for reason in health(made)["reasons"])
    made.core.clear_fault()
    eventually(lambda: health(made)["statuses"]["queued"] == 0, "core has everything", timeout_s=30.0)
    found = health(made)
    assert found["status"] == "degraded" and found["spool"]["deletes_owed"] >= 3
    times = unary_times(made, begin)
    assert times == sorted(times) and len(times) >= 7
    limit_files(made, UNLIMITED)
    eventually(lambda: health(made)["spool"]["writable"], "the disk is used again", timeout_s=30.0)
    eventually(lambda: health(made)["status"] == "healthy", "all is well")
    assert health(made)["spool"]["deletes_owed"] == 0
    assert made.poller.stop() == 0
    made.assert_no_crash()


def test_a_stop_sends_everything_and_does_not_spin(site: MakeSite) -> None:
    """Core is well again just before the stop: memory's reports arrive, and the stop costs next to no CPU."""
    made = site(3, interval="1s", level="info")
    begin = fill(made, 5)
    eventually(lambda: health(made)["spool"]["in_memory_only"] >= 2, "reports wait in memory too")
    waiting = health(made)["spool"]["reports"]
    before_s = spent_s = cpu_s(made)
    made.core.clear_fault()
    made.poller.send(signal.SIGTERM)
    while made.poller.alive:
        with contextlib.suppress(OSError, IndexError):
            spent_s = max(spent_s, cpu_s(made))
        threading.Event().wait(0.05)
    (stopped,) = made.poller.events("poller_stopped")
    assert stopped["reports_unsent"] == 0
    assert spent_s - before_s < 2.0
    times = unary_times(made, begin)
    assert times == sorted(times) and len(times) >= waiting


def test_a_spool_that_is_deleted_is_made_anew(site: MakeSite) -> None:
    """Core is away and somebody deletes the folder: it is told, a kill loses nothing, and all of it arrives."""
    made = site(3, interval="1s", level="info")
    made.await_reports(2)
    begin = made.next_report()
    made.core.set_fault("disappear")
    eventually(lambda: health(made)["spool"]["reports"] >= 3, "reports wait")
    folder = made.directory / "state" / "spool"
    shutil.rmtree(folder)
    made.poller.await_event("spool_write_failed", reason="lost")
    made.poller.await_event("spool_writable")
    found = health(made)
    assert found["spool"]["writable"] and found["spool"]["free_bytes"] > 0 and not found["statuses"]["dropped"]
    refused = run_command("--config", str(made.poller.config_file))
    assert refused.returncode == 1 and "in use by process" in refused.stderr
    waiting = health(made)["spool"]["reports"]
    made.poller.send(signal.SIGKILL)
    made.poller.wait(5.0)
    http_port = int(made.poller.url.rsplit(":", 1)[1])
    made.core.clear_fault()
    with PollerProcess(made.poller.config_file, http_port=http_port) as poller:
        poller.ready()
        eventually(lambda: poller.json("/health")["statuses"]["queued"] == 0, "core has everything", timeout_s=30.0)
        assert poller.json("/health")["statuses"]["recovered"] > 0
        times = unary_times(made, begin)
        assert times == sorted(times) and len(times) >= waiting
