"""Load the configuration: read its sources, merge them, check the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from serviceradar_poller.config.document import read_json
from serviceradar_poller.config.model import PollerConfig
from serviceradar_poller.config.rules import ParsedConfig, build_config
from serviceradar_poller.config.sources import read_sources
from serviceradar_poller.events.polling import ConfigWarning


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedConfig:
    """
    A usable configuration.

    Attributes:
        warnings: What is legal and probably not meant.
        sources: Files and variables it was read from, the strongest last.
    """

    config: PollerConfig
    warnings: tuple[ConfigWarning, ...]
    sources: tuple[str, ...]


def load(path: str, environ: Mapping[str, str]) -> LoadedConfig:
    """
    Load the configuration from the file at *path*, or from where *environ* says.

    Reads files; decides nothing by the clock, the network or the process's own environment.

    Raises:
        ConfigError: With every problem that keeps the whole poller from starting; see `AgentConfig.problems`
            for those that concern one agent.
    """
    document, sources = read_sources(path, environ)
    parsed = build_config(document)
    return LoadedConfig(config=parsed.config, warnings=parsed.warnings, sources=sources)


def parse(data: bytes | str, source: str) -> ParsedConfig:
    """
    Check a configuration that is at hand as JSON text; *source* names it in problems.

    Raises:
        ConfigError: As `load` does.
    """
    return build_config(read_json(data, source))
