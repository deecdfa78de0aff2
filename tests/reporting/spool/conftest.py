"""Stores of both kinds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from serviceradar_poller.reporting.spool import MemoryStore, ReportStore, Spool, SpoolSettings
from serviceradar_poller.testing.spools import NOW, Opened


@pytest.fixture
def events() -> list[Any]:
    """Take what the stores tell."""
    return []


@pytest.fixture(params=["disk", "memory"])
def opened(request: pytest.FixtureRequest, tmp_path: Path, events: list[Any]) -> Opened:
    """Return what opens a store within the bounds that are given."""

    @asynccontextmanager
    async def open_(**bounds: Any) -> AsyncIterator[ReportStore]:
        settings = SpoolSettings(directory=tmp_path, **({"reserve_bytes": 65_536} | bounds))
        store: ReportStore
        if request.param == "disk":
            store = await Spool.open(settings, emit=events.append, wall=lambda: float(NOW))
        else:
            store = MemoryStore(settings, emit=events.append, wall=lambda: float(NOW))
        try:
            yield store
        finally:
            await store.close()

    return open_
