from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from serviceradar_poller.observe.bridge import LoggingBridge
from serviceradar_poller.observe.own_events import LibraryLogged

SEEN: list[LibraryLogged] = []


@pytest.fixture
def bridge() -> Iterator[LoggingBridge]:
    SEEN.clear()
    made = LoggingBridge(SEEN.append)
    level = logging.getLogger().level
    made.install()
    made.install()
    yield made
    made.remove()
    assert logging.getLogger().level == level


def test_warnings_and_errors_of_libraries_become_events(bridge: LoggingBridge) -> None:
    """A library's warning is one event with its logger, and info is none."""
    logging.getLogger("asyncio").warning("slow callback: %s", "x")
    logging.getLogger("uvicorn.error").info("started")
    assert [LibraryLogged(logger="asyncio", severity="warn", text="slow callback: x")] == SEEN


def test_an_exceptions_traceback_comes_along(bridge: LoggingBridge) -> None:
    """What logging.exception knows is kept."""
    try:
        raise KeyError("gone")
    except KeyError:
        logging.getLogger("grpc").exception("failed")
    (event,) = SEEN
    assert event.severity == "error"
    assert "KeyError: 'gone'" in event.traceback


def test_arguments_that_do_not_fit_are_no_error_of_ours(bridge: LoggingBridge) -> None:
    """A library's broken format string is still told."""
    # Given to the handler itself: pytest's own handler takes offence at such a record.
    bridge.handle(logging.LogRecord("x", logging.ERROR, __file__, 1, "%d items", ("many",), None))
    (event,) = SEEN
    assert event.text.startswith("%d items (arguments do not fit")


def test_logging_while_an_event_is_emitted_does_not_recurse() -> None:
    """A sink that itself logs can't drive the bridge round in circles."""
    seen: list[LibraryLogged] = []

    def emit(event: LibraryLogged) -> None:
        seen.append(event)
        logging.getLogger("inner").error("again")

    bridge = LoggingBridge(emit)
    bridge.install()
    try:
        logging.getLogger("outer").error("once")
    finally:
        bridge.remove()
    assert [event.logger for event in seen] == ["outer"]
