from __future__ import annotations

import asyncio
import time

import pytest

from serviceradar_poller.observe.lag import LoopLagMonitor
from serviceradar_poller.otp import System, actor, start_tree, supervisor


@pytest.mark.slow
def test_a_blocked_loop_shows_as_lag() -> None:
    """A loop that is held for 100 ms is measured as late by nearly that; a free one is not."""
    lags: list[float] = []
    blocked_s: list[float] = []

    async def main() -> None:
        another = asyncio.Event()

        def observe(lag_s: float) -> None:
            lags.append(lag_s)
            another.set()

        spec = supervisor("root", [actor("lag", lambda: LoopLagMonitor(observe, interval_s=0.02))])
        tree = await start_tree(spec, System(emit=lambda event: None))
        async with asyncio.timeout(20):
            await another.wait()
            time.sleep(0.1)  # noqa: ASYNC251 - blocks the loop on purpose
            another.clear()
            await another.wait()
            blocked_s.append(lags[-1])
        await tree.stop()

    asyncio.run(main())
    assert blocked_s[0] > 0.05
    assert all(lag >= 0 for lag in lags)
