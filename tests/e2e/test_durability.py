"""What is sealed reaches core after an outage, and a state directory that can't be used is refused."""

from __future__ import annotations

import json
import math
import threading
from itertools import pairwise
from typing import Any

import pytest

from serviceradar_poller.testing.process import eventually, run_command
from serviceradar_poller.testing.site import MakeSite, Site, write_config

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


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


def test_core_away_for_60_s_loses_no_cycle(site: MakeSite) -> None:
    """Every cycle of an outage arrives with its own time, each once, and the accounts say so all along."""
    made = site(10, interval="1s")
    made.await_reports(3)
    begin = made.next_report()
    made.core.set_fault("disappear")
    for _ in range(30):
        threading.Event().wait(2.0)  # the length of the outage is the subject
        assert balanced(made.poller.json("/health")["statuses"])
    spool = made.poller.json("/health")["spool"]
    room = spool["limit_bytes"] - spool["bytes"]
    assert 0.5 < spool["full_in_s"] / (room / (spool["bytes"] / 60.0)) < 2.0, "the forecast of a steady backlog"
    assert made.poller.metric("spool_full_in_seconds") < math.inf
    made.core.clear_fault()
    accounts = settled(made)
    eventually(lambda: made.poller.json("/health")["spool"]["full_in_s"] is None, "nothing is forecast any more")
    assert balanced(accounts) and accounts["delivered"] == accounts["polled"]
    reports = [each for each in made.core.reports(begin, services=False) if each["transport"] == "unary"]
    times = [each["timestamp"] for each in reports]
    assert times == sorted(times) and times[-1] - times[0] >= 58
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
