"""
The actor that owns an agent's breaker: counts failures, opens, asks for a trial, closes with the first sign of life.

Its state stands in the agent's slot and so outlives it; everyone reads it there, only this actor writes it.
"""

from __future__ import annotations

import functools

from serviceradar_poller.agents.messages import (
    RUNNERS,
    BreakerFailure,
    BreakerMessage,
    BreakerSuccess,
    BreakerTimer,
    Probe,
    RunRefused,
    RunTrial,
)
from serviceradar_poller.agents.slot import AgentSlot
from serviceradar_poller.config.model import ResilienceConfig
from serviceradar_poller.events.polling import BreakerChanged
from serviceradar_poller.logic.breaker import (
    Breaker,
    BreakerSettings,
    BreakerState,
    on_failure,
    on_success,
    on_timer,
    trial_at_s,
)
from serviceradar_poller.logic.schedule import running
from serviceradar_poller.otp import Actor, Ref, Timer

#: A shorter timer would only spin.
TIMER_S_MIN = 0.001


@functools.lru_cache(maxsize=8)
def _settings(resilience: ResilienceConfig) -> BreakerSettings:
    return BreakerSettings(
        failures=resilience.breaker_failures,
        security_failures=resilience.breaker_security_failures,
        window_s=resilience.breaker_window_s,
        open_s=resilience.breaker_open_s,
    )


class SecureCircuitBreaker(Actor[BreakerMessage]):
    """One agent's breaker."""

    __slots__ = ("_settings", "_slot", "_timer")
    rests = True

    def __init__(self, slot: AgentSlot) -> None:
        self._slot = slot
        self._settings = _settings(slot.fleet.resilience)
        self._timer: Timer | None = None

    async def init(self) -> None:
        """Go on where the last incarnation stopped."""
        self._arm()
        if self._slot.breaker.state is BreakerState.HALF_OPEN:
            self._ask_for_trial()

    async def handle(self, message: BreakerMessage) -> None:
        """Take in what calls and probes came to."""
        now_s = self.system.now()
        breaker = self._slot.breaker
        match message:
            case BreakerFailure(security, forbidden, cause):
                self._slot.forbidden = self._slot.forbidden or forbidden
                self._move(on_failure(breaker, self._settings, now_s, security=security, cause=cause), cause)
            case BreakerSuccess(probe, back):
                # Health is asked without any right: it says nothing about who may ask for more.
                if probe and self._slot.forbidden:
                    return
                self._slot.forbidden = False
                self._move(on_success(breaker, self._settings, now_s), "the agent answered")
                if not back and breaker.state is not BreakerState.CLOSED:
                    for runner in RUNNERS:
                        self._cast(runner, RunRefused())
            case BreakerTimer():
                self._timer = None
                self._move(on_timer(breaker, self._settings, now_s), "time for a trial")
                self._arm()  # a loop may run a timer a hair before its time

    def _move(self, breaker: Breaker, cause: str) -> None:
        before, self._slot.breaker = self._slot.breaker, breaker
        if before.state is breaker.state:
            return
        fleet = self._slot.fleet
        if breaker.state is BreakerState.OPEN:
            self._slot.opened_wall_s = fleet.env.clock.wall()
        fleet.env.emit(BreakerChanged(agent=self._slot.name, before=before.state, after=breaker.state, cause=cause))
        self._arm()
        if breaker.state is BreakerState.HALF_OPEN:
            self._ask_for_trial()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at_s = trial_at_s(self._slot.breaker, self._settings)
        if at_s is not None:
            self._timer = self.send_after(max(at_s - self.system.now(), TIMER_S_MIN), BreakerTimer())

    def _ask_for_trial(self) -> None:
        """Have a check run that failed, each in its turn: one may fail for ever; and ask for health."""
        slot = self._slot
        under_way = {key for schedule in slot.schedules.values() for key in running(schedule)}
        candidates = [key for key in slot.subjects if key in slot.failing and key not in under_way]
        # A stream may take minutes to say nothing, and holds up the others for as long.
        candidates = [key for key in candidates if not slot.subjects[key].is_results] or candidates
        if candidates:
            place = candidates.index(slot.tried) + 1 if slot.tried in candidates else 0
            slot.tried = candidates[place % len(candidates)]
            for runner in RUNNERS:
                self._cast(runner, RunTrial(slot.tried))
        self._cast("connection", Probe())

    def _cast(self, sibling: str, message: Probe | RunRefused | RunTrial) -> None:
        ref = self.sibling(sibling)
        if isinstance(ref, Ref):
            ref.cast(message)
