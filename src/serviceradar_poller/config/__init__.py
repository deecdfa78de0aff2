"""Configuration: the model, and how it is read, checked and shown. Acts on nothing."""

from serviceradar_poller.config.loading import LoadedConfig, load, parse
from serviceradar_poller.config.rules import ParsedConfig
from serviceradar_poller.config.show import effective, render_effective, render_fatal
from serviceradar_poller.config.sources import DEFAULT_PATH

__all__ = [
    "DEFAULT_PATH",
    "LoadedConfig",
    "ParsedConfig",
    "effective",
    "load",
    "parse",
    "render_effective",
    "render_fatal",
]
