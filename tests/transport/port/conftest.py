from __future__ import annotations

import gc
import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No stranger can make the port write to the log, nor leave an exception that nobody took."""
    yield
    gc.collect()
    assert [each.getMessage() for each in caplog.get_records("call") if each.levelno >= logging.WARNING] == []
