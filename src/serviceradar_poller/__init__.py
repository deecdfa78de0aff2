"""A fault-tolerant monitoring poller for ServiceRadar."""

from importlib.metadata import version

__version__ = version("serviceradar-poller")
