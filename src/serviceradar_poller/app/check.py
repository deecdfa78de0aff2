"""The ``check`` command: everything that is wrong with a configuration, and what it amounts to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TextIO

from serviceradar_poller.config.loading import load
from serviceradar_poller.config.show import one_line, render_effective
from serviceradar_poller.env import SystemClock
from serviceradar_poller.errors import ConfigError, ConfigProblem
from serviceradar_poller.transport.certificates import inspect


def check(path: str, environ: Mapping[str, str], *, out: TextIO, err: TextIO) -> int:
    """
    Validate the configuration with its files and certificates, and print the effective one, secrets hidden.

    Returns:
        0 when nothing is wrong; warnings are printed and don't count.
    Raises:
        ConfigError: With every problem, those that would only keep one agent down included.
    """
    loaded = load(path, environ)
    config = loaded.config
    source = loaded.sources[-1]
    now = SystemClock().wall()
    problems: list[ConfigProblem] = [problem for agent in config.agents for problem in agent.problems]
    warnings = list(loaded.warnings)
    blocks = [("security", config.security)]
    blocks += [(f"agents.{agent.name}.security", agent.security) for agent in config.agents if not agent.problems]
    for place, block in blocks:
        if block is None:
            continue
        found = inspect(block, now=now, path=place, source=source)
        problems += found.problems
        warnings += found.warnings
    for warning in warnings:
        place = f" {warning.path}:" if warning.path else ""
        print(f"warning: {warning.source}:{place} {one_line(warning.text)}", file=err)
    if problems:
        raise ConfigError(tuple(problems))
    print(render_effective(config), file=out)
    agents = len(config.agents)
    checks = sum(len(agent.checks) for agent in config.agents)
    print(f"ok: {agents} agents, {checks} checks, {len(warnings)} warnings ({', '.join(loaded.sources)})", file=err)
    return 0
