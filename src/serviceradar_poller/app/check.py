"""The ``check`` command: everything that is wrong with a configuration, and what it amounts to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TextIO

from serviceradar_poller.app.poller import spool_settings
from serviceradar_poller.config.loading import load
from serviceradar_poller.config.show import one_line, render_effective
from serviceradar_poller.env import SystemClock
from serviceradar_poller.errors import ConfigError, ConfigProblem
from serviceradar_poller.events.polling import ConfigWarning
from serviceradar_poller.reporting.spool.survey import survey
from serviceradar_poller.transport.certificates import inspect


def check(path: str, environ: Mapping[str, str], *, out: TextIO, err: TextIO) -> int:
    """
    Validate the configuration with its files, certificates and state directory, and print the effective one.

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
    notes: tuple[str, ...] = ()
    if config.state_dir:
        looked = survey(spool_settings(config))
        if looked.problem:
            accepted = 'a directory that the poller may write to, or "" to keep reports in memory only'
            problems.append(ConfigProblem(source=source, path="state_dir", found=looked.problem, accepted=accepted))
        warnings += [ConfigWarning(source=source, path="state_dir", text=text) for text in looked.warnings]
        notes = looked.notes
    for note in notes:
        print(f"note: {source}: state_dir: {one_line(note)}", file=err)
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
