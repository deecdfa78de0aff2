"""Reports to put into stores."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from serviceradar_poller.reporting.spool import NewCall, NewReport, ReportStore

#: Unix seconds, of every report that says nothing else.
NOW = 1_700_000_000

#: Opens a store within the bounds that are given.
Opened = Callable[..., AbstractAsyncContextManager[ReportStore]]


def make_report(
    *, size: int = 100, change: bool = False, fresh: int = 1, at: int = NOW, text: str = "r", **fields: Any
) -> NewReport:
    """Return a report of one call whose only part begins with *text*."""
    part = text.encode().ljust(size, b".")
    fields.setdefault("calls", (NewCall(kind="unary", parts=(part,), status_count=fresh),))
    return NewReport(kind=fields.pop("kind", "cycle"), timestamp=at, change=change, fresh=fresh, **fields)
