"""
One gate that all new connections pass: so many per second, whoever asks.

Thousands of agents that come into reach at once (a start, a network that heals) would otherwise make thousands of TLS
handshakes at once, and every check under way would wait behind them.
"""

from __future__ import annotations

from serviceradar_poller.env import Clock
from serviceradar_poller.logic.bucket import BucketSettings, new_bucket, take


class ConnectGate:
    """
    A shared token bucket of connection attempts.

    Attributes:
        waits_total: Attempts that had to wait.
        refusals_total: Attempts that would have had to wait for longer than they could.
    """

    def __init__(self, *, connects_per_s: float, clock: Clock) -> None:
        self._settings = BucketSettings(rate_per_s=connects_per_s, burst=max(connects_per_s / 10, 1.0))
        self._clock = clock
        self._bucket = new_bucket(self._settings, clock.monotonic())
        self.waits_total = 0
        self.refusals_total = 0

    def reserve(self, *, wait_s_max: float) -> float | None:
        """
        Reserve the next free place and return how long to wait for it; places are given in the order of asking.

        None when it is further away than *wait_s_max*; then nothing is reserved.
        """
        bucket, wait_s = take(self._bucket, self._settings, self._clock.monotonic())
        if wait_s > wait_s_max:
            self.refusals_total += 1
            return None
        self._bucket = bucket
        self.waits_total += wait_s > 0
        return wait_s
