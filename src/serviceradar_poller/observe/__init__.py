"""
Events turned into log lines and metrics; what is shown of the program over HTTP and on a terminal.

What belongs here: sinks of events, and readers of what the sinks gathered. What does not: deciding anything about
polling; nothing here is needed for a check to run or a report to arrive.
The terminal view is imported from ``view`` where it is used, for it brings a large library along.
"""

from serviceradar_poller.observe.bridge import LoggingBridge
from serviceradar_poller.observe.bus import EventBus
from serviceradar_poller.observe.endpoints import RestartRequested, Sources
from serviceradar_poller.observe.http import GetAddress, HttpServer
from serviceradar_poller.observe.lag import LoopLagMonitor
from serviceradar_poller.observe.levels import Level
from serviceradar_poller.observe.log import LogSink
from serviceradar_poller.observe.metrics import MetricsSink
from serviceradar_poller.observe.observation import Observation
from serviceradar_poller.observe.snapshot import ViewSnapshot, decode_snapshot, encode_snapshot
from serviceradar_poller.observe.state import PollerState

__all__ = [
    "EventBus",
    "GetAddress",
    "HttpServer",
    "Level",
    "LogSink",
    "LoggingBridge",
    "LoopLagMonitor",
    "MetricsSink",
    "Observation",
    "PollerState",
    "RestartRequested",
    "Sources",
    "ViewSnapshot",
    "decode_snapshot",
    "encode_snapshot",
]
