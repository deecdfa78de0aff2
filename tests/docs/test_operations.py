"""docs/operations.md against the program: its tables name exactly the events and metrics that there are."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import re
import typing
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from serviceradar_poller.app.poller import new_poller
from serviceradar_poller.app.run import _pull
from serviceradar_poller.config.loading import parse
from serviceradar_poller.config.model import LoggingConfig
from serviceradar_poller.env import SystemClock
from serviceradar_poller.events.kernel import ChildExited
from serviceradar_poller.events.polling import AgentHealth, BreakerChanged, CheckFinished, CheckMissed, PollerStopped
from serviceradar_poller.observe.levels import Level
from serviceradar_poller.observe.lines import LINES, Line
from serviceradar_poller.observe.observation import Observation
from serviceradar_poller.observe.own_events import LibraryLogged
from serviceradar_poller.testing.fakes import FakeTransport, fake_env
from serviceradar_poller.transport.failures import __doc__ as failure_table
from serviceradar_poller.transport.port.limits import Refusals

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "operations.md").read_text("utf-8")
ARCHITECTURE = (DOCS / "architecture.md").read_text("utf-8")
MINIMAL = '{"core_address": "c:1", "poller_id": "p", "poll_interval": "30s", "agents": {"a": {"address": "a:1"}}}'
NAMESPACE = "serviceradar_poller_"

#: Field values that make an event's line take each of its levels.
LEVELS_OF: dict[type, tuple[dict[str, object], ...]] = {
    ChildExited: ({"reason": "normal"}, {"reason": "killed"}, {"reason": "error"}),
    PollerStopped: ({"reports_unsent": 0}, {"reports_unsent": 1}),
    BreakerChanged: ({"after": "OPEN"}, {"after": "CLOSED"}),
    LibraryLogged: ({"severity": "warn"}, {"severity": "error"}),
}
#: Events whose level depends on what the log has told before, see observe.changes.
BY_HISTORY: dict[type, set[str]] = {
    CheckFinished: {"debug", "info", "warn"},
    CheckMissed: {"warn", "debug"},
    AgentHealth: {"warn", "debug"},
}


def rows(header: str) -> list[list[str]]:
    """Return the cells of the page's table that begins with *header*."""
    match = re.search(rf"^{re.escape(header)}.*\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert match is not None, f"no table begins with {header}"
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in match[1].splitlines()]


def names(cell: str) -> list[str]:
    """Return what stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def plain(kind: type, **fields: object) -> typing.Any:
    """Return an event of *kind* with some value in every field."""
    values: dict[object, object] = {str: "x", int: 1, bool: True, float: 1.0, tuple[str, ...]: ("x",)}
    hints = typing.get_type_hints(kind)
    made = {field.name: values[hints[field.name]] for field in dataclasses.fields(kind)}
    if kind is LibraryLogged:
        made["severity"] = "warn"
    return kind(**(made | fields))


def exposition() -> dict[str, Metric]:
    """Return every family that a running poller serves, each with a sample, by the name in its TYPE line."""

    async def scrape() -> str:
        config = parse(MINIMAL, "x").config
        poller = new_poller(config, fake_env(FakeTransport(), []), source_ip="")
        observation = Observation(
            io.BytesIO(), logging=LoggingConfig(), clock=SystemClock(), version="1", poller_id="p"
        )
        _pull(poller, observation.metrics, Refusals())
        for kind in LINES:
            observation.emit(plain(kind))
        try:
            return observation.metrics.exposition().decode()
        finally:
            observation.close()

    families = text_string_to_metric_families(asyncio.run(scrape()))
    return {family.name + ("_total" if family.type == "counter" else ""): family for family in families}


@pytest.fixture(scope="module")
def families() -> dict[str, Metric]:
    return exposition()


def test_events_are_exactly_the_ones_that_there_are() -> None:
    """Every event that may become a log line has one row, and every row is such an event."""
    documented = [name for row in rows("| Event |") for name in names(row[0])]
    assert sorted(documented) == sorted(line.event for line in LINES.values())


@pytest.mark.parametrize("kind", LINES, ids=lambda kind: LINES[kind].event)
def test_an_events_row_has_its_levels_and_keys(kind: type) -> None:
    """The row names the levels that the line may have, and its keys in order."""
    line: Line = LINES[kind]
    (row,) = [row for row in rows("| Event |") if names(row[0]) == [line.event]]
    _, levels, when, keys = row
    documented = set(levels.split(", "))
    if kind in BY_HISTORY:
        assert documented == BY_HISTORY[kind]
    else:
        flags = [field.name for field in dataclasses.fields(kind) if field.type == "bool"]
        variants = LEVELS_OF.get(kind) or tuple({flag: value} for flag in flags for value in (False, True)) or ({},)
        assert documented == {line.level(plain(kind, **fields)).text for fields in variants}
    assert documented <= {level.text for level in Level}
    assert when
    told = [key for _, key in line.fields if key != "poller_id"]  # every line has that one
    assert [name for name in names(keys) if name in told] == told
    assert names(keys)[: len(told)] == told


def test_reasons_are_explained() -> None:
    """Every reason that a transport gives stands in the table of reasons."""
    assert failure_table is not None
    lines = failure_table.split("=====\n")
    transports = re.findall(r"^([a-z_, ]+?)  +[A-Z]", lines[2], re.MULTILINE)
    given = {reason for cell in transports for reason in cell.split(", ")}
    documented = {name for row in rows("| Reason |") for name in names(row[0])}
    assert len(given) > 15
    assert given <= documented


def test_metrics_are_exactly_the_ones_that_there_are(families: dict[str, Metric]) -> None:
    """Every family that is served has one row with its type, and every row is served."""
    documented = {names(row[0])[0]: row[1] for row in rows("| Metric |")}
    assert len(documented) == len(rows("| Metric |"))
    assert documented == {name: family.type for name, family in families.items()}


def test_metrics_rows_name_their_labels(families: dict[str, Metric]) -> None:
    """A row has the labels of the metric's series, and says what it means."""
    for row in rows("| Metric |"):
        name, labels, meaning = names(row[0])[0], names(row[2]), row[3]
        found = {label for sample in families[name].samples for label in sample.labels} - {"le"}
        assert families[name].samples, f"{name} has no series"
        assert set(labels) == found, name
        assert meaning, name


def test_metrics_in_examples_and_in_prose_exist(families: dict[str, Metric]) -> None:
    """No alert, no step of the runbook and no row of a limit asks for a metric that is not there."""
    series = {sample.name for family in families.values() for sample in family.samples} | set(families)
    asked = set(re.findall(r"\b(?:serviceradar_poller|process)_[a-z_]+", PAGE))
    assert asked <= series
    served = {name.removeprefix(NAMESPACE) for name in series}
    without_blocks = re.sub(r"^ *```.*?^ *```$", "", PAGE + ARCHITECTURE, flags=re.MULTILINE | re.DOTALL)
    short = {match[1] for cell in names(without_blocks) if (match := re.match(r"(\w+_total)\b", cell))}
    assert len(short) > 20
    assert {name for name in short if name.removeprefix(NAMESPACE) not in served} == set()
