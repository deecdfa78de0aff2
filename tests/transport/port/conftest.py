from __future__ import annotations

import gc
import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No stranger can make the port write to the log, nor leave an exception that nobody took."""
    # Whatever other tests did to it: unheard, it would always be quiet.
    logger = logging.getLogger("asyncio")
    monkeypatch.setattr(logger, "disabled", False)
    monkeypatch.setattr(logger, "propagate", True)
    logging.disable(logging.NOTSET)
    caplog.set_level(logging.WARNING, logger="asyncio")
    gc.collect()  # what other tests left behind would speak up at any time
    yield
    gc.collect()
    assert [each.getMessage() for each in caplog.get_records("call") if each.levelno >= logging.WARNING] == []
