"""
One gate that all new connections pass: so many per second, whoever asks.

Thousands of agents that come into reach at once (a start, a network that heals) would otherwise make thousands of TLS
handshakes at once, and every check under way would wait behind them.
"""

from __future__ import annotations

import asyncio

from serviceradar_poller.env import Clock
from serviceradar_poller.logic.bucket import BucketSettings, new_bucket, take


class ConnectGate:
    """
    A shared token bucket of connection attempts.

    Attributes:
        waits_total: Attempts that had to wait.
    """

    def __init__(self, *, connects_per_s: float, clock: Clock) -> None:
        self._settings = BucketSettings(rate_per_s=connects_per_s, burst=max(connects_per_s / 10, 1.0))
        self._clock = clock
        self._bucket = new_bucket(self._settings, clock.monotonic())
        self.waits_total = 0

    async def pass_through(self) -> None:
        """Return when the next connection may be opened; attempts pass in the order they came."""
        self._bucket, wait_s = take(self._bucket, self._settings, self._clock.monotonic())
        if wait_s > 0:
            self.waits_total += 1
            await asyncio.sleep(wait_s)
