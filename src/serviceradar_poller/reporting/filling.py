"""Watch how fast reports pile up, and tell once when there will soon be no room, and once when that is over."""

from __future__ import annotations

import math

from serviceradar_poller.env import Env
from serviceradar_poller.events.polling import SpoolFilling, SpoolNotFilling
from serviceradar_poller.logic import forecast
from serviceradar_poller.reporting.spool import SpoolStats

#: An hour is what somebody needs to bring core back or to give the spool more room.
WARN_S = 3_600.0
#: It is over when there is twice as much time: a rate that varies a little is not told again and again.
OVER_S = 2 * WARN_S


class FillWatch:
    """
    The forecast for a store and the memory beside it.

    Attributes:
        full_in_s: Seconds until no room is left, as of the last look; infinite while the backlog does not grow.
    """

    def __init__(self, env: Env) -> None:
        self.full_in_s = math.inf
        self._env = env
        self._growth = forecast.Growth()
        self._told = False

    def look(self, store: SpoolStats, fallback: SpoolStats, *, reports: int) -> None:
        """Take the stores' figures in; *reports* are all that wait for core."""
        net = store.bytes_in - store.bytes_out + fallback.bytes_in - fallback.bytes_out
        self._growth = forecast.observe(self._growth, self._env.clock.monotonic(), net_bytes=net, reports=reports)
        room = store.limit_bytes - store.bytes - store.writing_bytes
        if store.free_bytes >= 0:
            room = min(room, store.free_bytes)
        self.full_in_s = forecast.full_in_s(self._growth, room)
        if not self._told and self.full_in_s < WARN_S:
            self._told = True
            rate = forecast.bytes_per_s(self._growth)
            self._env.emit(
                SpoolFilling(full_in_s=self.full_in_s, bytes_per_s=rate, size=store.bytes, room_bytes=max(room, 0))
            )
        elif self._told and self.full_in_s >= OVER_S:
            self._told = False
            self._env.emit(SpoolNotFilling(size=store.bytes))
