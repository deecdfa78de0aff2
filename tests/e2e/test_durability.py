"""What is sealed reaches core: across kill -9 at any instant, with core up, down and flapping, and in order."""

from __future__ import annotations

import json
import random
import threading
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest

from serviceradar_poller.testing.process import PollerProcess, eventually, run_command
from serviceradar_poller.testing.site import MakeSite, Site, write_config

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

KILLS = 10


def settled(made: Site) -> dict[str, Any]:
    """Wait until nothing that the poller holds is older than its last cycle; return its accounts."""

    def look() -> dict[str, Any]:
        found: dict[str, Any] = made.poller.json("/health")["statuses"]
        return found if found["queued"] == 0 and found["delivered"] else {}

    return eventually(look, "core has everything", timeout_s=30.0)


def balanced(accounts: dict[str, Any]) -> bool:
    gone = accounts["delivered"] + accounts["rejected"] + accounts["expired"] + sum(accounts["dropped"].values())
    return bool(accounts["polled"] + accounts["recovered"] == accounts["queued"] + gone)


def unary_times(made: Site) -> list[int]:
    return [each["timestamp"] for each in made.core.reports(services=False) if each["transport"] == "unary"]


def sealed_times(made: Site) -> list[tuple[int, int]]:
    """Return id and time of every report that waits in the spool of a poller that is dead."""
    listed = run_command("spool", str(made.directory / "state"), "list")
    assert listed.returncode == 0, listed.stderr
    rows = [line.split() for line in listed.stdout.splitlines()]
    return [(int(row[0]), _unix(row[1])) for row in rows if row and row[0].isdigit() and "T" in row[1]]


def _unix(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


def restart(made: Site, http_port: int) -> None:
    made.poller = PollerProcess(made.poller.config_file, http_port=http_port)


def test_kill_9_at_random_instants_loses_nothing_that_was_sealed(site: MakeSite) -> None:
    """After each kill everything in the spool reaches core, in order; only the report in flight may come twice."""
    rng = random.Random(9)
    made = site(20, interval="1s", config={"reporting": {"call_timeout": "1s"}})
    http_port = int(made.poller.url.rsplit(":", 1)[1])
    try:
        waited: list[int] = []
        for number in range(KILLS):
            match number % 3:
                case 1:
                    made.core.set_fault("disappear")
                case 2:
                    made.core.set_fault("hang")
            threading.Event().wait(1.0 + rng.random() * 2.5)  # the instant is the subject
            made.poller.end()
            waiting = sealed_times(made)
            waited.append(len(waiting))
            made.core.clear_fault()
            restart(made, http_port)
            made.poller.ready()
            accounts = settled(made)
            assert balanced(accounts), accounts
            recovered = made.poller.await_event("spool_recovered")[0]
            assert recovered["reports"] == len(waiting)
            missing = {time for _, time in waiting} - set(unary_times(made))
            assert not missing, (number, missing)
        assert max(waited) >= 2, waited  # some kills came while reports waited
        times = unary_times(made)
        assert times == sorted(times)
        assert len(times) - len(set(times)) <= KILLS + 2, times  # two cycles may happen to share a second
        made.assert_no_crash()
    finally:
        made.poller.end()


def test_core_away_for_20_s_loses_no_cycle(site: MakeSite) -> None:
    """Every cycle of an outage arrives with its own time, each once, and the accounts say so all along."""
    made = site(10, interval="1s")
    made.await_reports(3)
    begin = made.next_report()
    made.core.set_fault("disappear")
    for _ in range(10):
        threading.Event().wait(2.0)  # the length of the outage is the subject
        assert balanced(made.poller.json("/health")["statuses"])
    made.core.clear_fault()
    accounts = settled(made)
    assert balanced(accounts) and accounts["delivered"] == accounts["polled"]
    reports = [each for each in made.core.reports(begin, services=False) if each["transport"] == "unary"]
    times = [each["timestamp"] for each in reports]
    assert times == sorted(times) and times[-1] - times[0] >= 18
    assert all(later - sooner <= 2 for sooner, later in pairwise(times))
    made.assert_nobody_late()
    made.assert_no_crash()


def test_a_state_directory_that_is_missing_is_a_clear_refusal(site: MakeSite) -> None:
    """Without the directory the poller does not start, says which key to look at, and exits with 1."""
    made = site(2)
    config = made.directory / "second"
    config.mkdir()
    written = json.loads(made.poller.config_file.read_text("utf-8"))
    written["state_dir"] = str(made.directory / "nowhere")
    written["http"] = {"listen_addr": ""}
    done = run_command("--config", str(write_config(config, written)))
    assert done.returncode == 1
    assert "state_dir" in done.stderr and "nowhere" in done.stderr
    written["state_dir"] = str(made.directory / "state")
    done = run_command("--config", str(write_config(config, written)))
    assert done.returncode == 1 and "state_dir" in done.stderr  # the first poller's own
