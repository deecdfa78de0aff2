"""Small configurations for tests: a usable one, changed, and what is said of it."""

from __future__ import annotations

import copy
import json
from typing import Any

from serviceradar_poller.config.loading import parse
from serviceradar_poller.config.rules import ParsedConfig
from serviceradar_poller.errors import ConfigError, ConfigProblem

#: Gives neither a problem nor a warning.
MINIMAL: dict[str, Any] = {
    "core_address": "core:50052",
    "poller_id": "p1",
    "poll_interval": "30s",
    "agents": {"edge": {"address": "edge:50051"}},
}


def build(**changes: object) -> ParsedConfig:
    """Return the minimal configuration with top-level keys replaced."""
    return parse(json.dumps({**copy.deepcopy(MINIMAL), **changes}), "poller.json")


def build_agent(**members: object) -> ParsedConfig:
    """Return a configuration of the agents edge, with these members, and other."""
    return build(agents={"edge": {"address": "edge:50051", **members}, "other": {"address": "other:50051"}})


def problems(**changes: object) -> tuple[ConfigProblem, ...]:
    """Return the problems that keep the changed minimal configuration from being used."""
    try:
        build(**changes)
    except ConfigError as error:
        return error.problems
    raise AssertionError("the configuration was accepted")


def only_problem(**changes: object) -> ConfigProblem:
    """Return the one problem of the changed minimal configuration."""
    found = problems(**changes)
    assert len(found) == 1, found
    return found[0]


def agent_problem(parsed: ParsedConfig) -> ConfigProblem:
    """Return the one problem of the agent edge, beside which other has none."""
    edge, other = parsed.config.agents
    assert len(edge.problems) == 1, edge.problems
    assert other.problems == ()
    return edge.problems[0]


def warnings(parsed: ParsedConfig) -> list[tuple[str, str]]:
    """Return path and text of each warning."""
    return [(warning.path, warning.text) for warning in parsed.warnings]


def warned_at(parsed: ParsedConfig) -> list[str]:
    """Return the path of each warning."""
    return [warning.path for warning in parsed.warnings]
