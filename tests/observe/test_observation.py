from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from serviceradar_poller.config.model import AgentConfig, LoggingConfig
from serviceradar_poller.events.polling import AgentConnected, CheckFinished
from serviceradar_poller.observe import Observation


class FixedClock:
    def monotonic(self) -> float:
        return 5.0

    def wall(self) -> float:
        return 1_763_900_000.0


def observation(stream: io.BytesIO, **logging_options: Any) -> Observation:
    return Observation(
        stream, logging=LoggingConfig(**logging_options), clock=FixedClock(), version="1.0", poller_id="site-a"
    )


def test_an_event_reaches_log_metrics_and_state(
    event_types: tuple[type, ...], plain_event: Callable[[type], Any]
) -> None:
    """One emit is logged, counted and remembered; no event type makes a sink fail."""
    stream = io.BytesIO()
    made = observation(stream, level="trace")
    for kind in event_types:
        made.emit(plain_event(kind))
    assert made.bus.failures == 0
    assert made.close() == 0
    assert len(stream.getvalue().splitlines()) == len(event_types)
    assert b"serviceradar_poller_agents_connected 1.0" in made.metrics.exposition()
    assert made.state.snapshot().notes


def test_what_libraries_log_joins_the_log_while_bound() -> None:
    """Between bind and close, a library's warning is one of our lines; before and after it is not."""
    stream = io.BytesIO()
    made = observation(stream)

    async def main() -> None:
        made.bind(asyncio.get_running_loop())
        logging.getLogger("asyncio").warning("something")

    asyncio.run(main())
    made.close()
    (line,) = map(json.loads, stream.getvalue().splitlines())
    assert (line["level"], line["message"], line["logger"]) == ("warn", "something", "asyncio")
    logging.getLogger("asyncio").warning("nobody listens")
    assert made.log.dropped == 0


def test_a_new_configuration_forgets_agents_everywhere() -> None:
    """An agent that left the configuration leaves metrics and state."""
    made = observation(io.BytesIO())
    for name in ("old", "new"):
        made.emit(AgentConnected(agent=name, address="", outage_s=0.0))
    made.expect_agents([AgentConfig(name="new", address="new:1")])
    text = made.metrics.exposition()
    assert b'agent="old"' not in text
    assert b'agent="new"' in text
    assert made.state.agent_names() == {"new"}
    made.close()


def test_a_level_that_does_not_exist_is_refused() -> None:
    """A bad level fails at the start, not at the first line."""
    with pytest.raises(ValueError, match="loud"):
        observation(io.BytesIO(), level="loud")


def test_an_outcome_costs_all_sinks_little() -> None:
    """Logging, counting and remembering a good poll takes less than 20 µs, as the best of five runs."""
    import time

    made = observation(io.BytesIO())
    event = CheckFinished(
        agent="a",
        service_name="s",
        service_type="t",
        kind="status",
        outcome="available",
        lateness_s=0.0,
        latency_s=0.01,
    )

    def per_event(times: int = 2_000) -> float:
        before = time.perf_counter()
        for _ in range(times):
            made.emit(event)
        return (time.perf_counter() - before) / times

    assert min(per_event() for _ in range(5)) < 20e-6
    made.close()
