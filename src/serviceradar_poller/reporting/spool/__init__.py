"""
Where sealed reports wait for core: on disk, across outages, crashes and full disks, or in memory.

The store knows neither core nor what a report says: it keeps encoded calls, gives them back oldest first, and counts
where every status went.
"""

from serviceradar_poller.reporting.spool.memory import MemoryStore
from serviceradar_poller.reporting.spool.model import (
    CallKind,
    Gone,
    NewCall,
    NewReport,
    PositionKey,
    ReportStore,
    ResultWriter,
    SpoolSettings,
    SpoolStats,
    StoredCall,
    StoredReport,
)
from serviceradar_poller.reporting.spool.spool import Spool

__all__ = [
    "CallKind",
    "Gone",
    "MemoryStore",
    "NewCall",
    "NewReport",
    "PositionKey",
    "ReportStore",
    "ResultWriter",
    "Spool",
    "SpoolSettings",
    "SpoolStats",
    "StoredCall",
    "StoredReport",
]
