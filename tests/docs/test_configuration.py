"""docs/configuration.md against the parser: its examples load, its tables name every key and default."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from serviceradar_poller.config.durations import parse_duration
from serviceradar_poller.config.loading import parse
from serviceradar_poller.config.schema import key_names
from serviceradar_poller.config.show import effective, render_fatal
from serviceradar_poller.errors import ConfigError

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text("utf-8")
EXAMPLES: list[str] = re.findall(r"^```json\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
#: Cells of the rows of tables whose first column is called Key.
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for table in re.findall(r"^\| Key \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    for line in table.splitlines()
]
MINIMAL = '{"core_address": "c:1", "poller_id": "p", "poll_interval": "30s", "agents": {"a": {"address": "a:1"}}}'


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_load_without_a_word(example: str) -> None:
    """Every example is a usable configuration that gives neither problem nor warning."""
    parsed = parse(example, "example")
    assert parsed.warnings == ()
    assert all(agent.problems == () for agent in parsed.config.agents)


def test_there_are_examples() -> None:
    """The page has examples: the smallest, the secured, and one of our own sections."""
    assert len(EXAMPLES) >= 3


def test_rows_are_exactly_the_keys() -> None:
    """Every key that the parser knows has one row, and every row is a key that it knows."""
    documented = [key for row in ROWS for key in re.findall(r"`([^`]+)`", row[0])]
    assert sorted(documented) == sorted(key_names())


def test_every_row_is_complete() -> None:
    """Each row says type, default, what is accepted, and what a change while running does."""
    for row in ROWS:
        assert len(row) == 5, row
        assert all(row), row
        assert row[4] == "restart"


def test_documented_defaults_are_the_real_ones() -> None:
    """A default that is a plain value in the table is what the effective configuration shows."""
    with_tls = MINIMAL[:-1] + ', "logging": {"otel": {"tls": {}}}}'
    shown = effective(parse(with_tls, "x").config)
    compared = 0
    for keys, kind, default, *_ in ROWS:
        key = keys.strip("`")
        match = re.fullmatch(r"`([^`]*)`", default)
        if match is None or "," in keys or key in ("poll_interval",) or key.startswith(("agents.", "security.")):
            continue
        value: object = shown
        for part in key.split("."):
            assert isinstance(value, dict)
            value = value[part]
        documented = match.group(1)
        compared += 1
        if kind == "duration":
            assert parse_duration(str(value)) == parse_duration(documented), key
        elif kind in ("integer", "number"):
            assert value == float(documented), key
        elif kind == "boolean":
            assert value is (documented == "true"), key
        else:
            assert value == documented.strip('"'), key
    assert compared > 30


def test_shown_refusal_is_the_real_one() -> None:
    """The page's example of a refusal is what the program says."""
    with pytest.raises(ConfigError) as caught:
        parse(MINIMAL.replace("30s", "1d"), "poller.json")
    assert f"```text\n{render_fatal(caught.value)}\n```" in PAGE
