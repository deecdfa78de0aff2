"""
What runs checks on schedule: decides what is due, asks, and hands an outcome on for every run, whatever happens.

A run that our own restarts cut has none: it begins again.

One runner drives all checks of one kind of one agent. Each run is a helper task of the runner, so a slow check delays
no other; the schedule sees to it that a check never overlaps itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from abc import abstractmethod
from collections.abc import Iterable

from serviceradar_poller.agents.channel import BREAKER_OPEN, AgentChannel
from serviceradar_poller.agents.evidence import CallCut, is_denial
from serviceradar_poller.agents.messages import (
    AnsweredAs,
    CallFailed,
    CallSucceeded,
    CheckDone,
    RunDue,
    RunFailing,
    RunnerMessage,
    RunRefused,
    RunTrial,
)
from serviceradar_poller.agents.slot import AgentSlot, Reach
from serviceradar_poller.errors import CallError
from serviceradar_poller.events.polling import CheckFinished, CheckMissed, CheckUnsupported
from serviceradar_poller.logic.backoff import (
    BackoffSettings,
    RetryBudgetSettings,
    delay_s,
    deposit,
    withdraw,
)
from serviceradar_poller.logic.outcome import CheckSubject, Outcome, Verdict, from_failure
from serviceradar_poller.logic.schedule import (
    CheckPlan,
    Due,
    Schedule,
    due,
    expedite,
    finished,
    new_schedule,
    next_due_s,
    offset_s,
    running,
)
from serviceradar_poller.otp import Actor, ExitReason, Ref, Timer

#: An outcome waits so long for the agent's address; then it goes with the poller's, as when there is none.
DEVICE_WAIT_S = 5.0
#: A shorter timer would only spin.
TIMER_S_MIN = 0.001
#: Runs under way may end by themselves for so long when the runner is told to stop; then they are cut.
STOP_GRACE_S = 1.0
#: A run that was cut begins again after so long where its runner lives on; else its successor sees to it.
CUT_AGAIN_S = 0.25


#: What the delay between two attempts of one check grows to, and its spread each way.
RETRY_DELAY_S_MAX = 5.0
RETRY_JITTER = 0.2
#: What thousands of runners have in common most of the time.
_NONE: frozenset[str] = frozenset()


class CheckRunner(Actor[RunnerMessage]):
    """Runs the checks of one kind of one agent."""

    __slots__ = ("_again", "_armed_s", "_made_channel", "_runs", "_slot", "_timer")
    kind: str = ""
    rests = True

    def __init__(self, slot: AgentSlot) -> None:
        self._slot = slot
        self._made_channel: AgentChannel | None = None
        self._timer: Timer | None = None
        self._armed_s: float | None = None
        self._runs: dict[str, asyncio.Task[None]] | None = None
        self._again = _NONE

    # -- what a kind of check decides

    @abstractmethod
    def mine(self, subject: CheckSubject) -> bool:
        """Return whether the check is of this runner's kind."""

    @abstractmethod
    def plan(self, subject: CheckSubject) -> CheckPlan:
        """Return how often the check runs."""

    def timeout_s(self, subject: CheckSubject) -> float:
        """Return how long one run of the check may take, retries included."""
        return self._slot.fleet.scheduling.check_timeout_s

    @abstractmethod
    async def ask(self, subject: CheckSubject, tick: int, timeout_s: float) -> Outcome | None:
        """Ask the agent once; return None where there is nothing to ask. Raises CallError, CallCut."""

    def retry_delay_s(self, key: str, outcome: Outcome) -> float | None:
        """Return after how long a failed check is worth another run before its time; None: not before its time."""
        return None

    # -- the actor

    async def init(self) -> None:
        """Take the schedule over from the last incarnation, or begin one."""
        now_s = self.system.now()
        subjects = [subject for subject in self._slot.subjects.values() if self.mine(subject)]
        schedule = self._slot.schedules.get(self.kind)
        if schedule is None:
            plans = [self.plan(subject) for subject in subjects]
            schedule = new_schedule(self._slot.fleet.timetable, plans, now_s)
        else:
            # What the last incarnation was at has no outcome: it runs again now.
            cut = running(schedule)
            for key in cut:
                schedule = finished(schedule, key, now_s, ok=False)
            schedule = expedite(schedule, cut, now_s)
        self._schedule = schedule
        self._arm()

    async def handle(self, message: RunnerMessage) -> None:
        """Run what is due."""
        match message:
            case RunDue():
                self._timer = self._armed_s = None
                self._run_due()
            case CheckDone(key, ok, retry_delay_s):
                if self._runs is not None:
                    self._runs.pop(key, None)
                    self._runs = self._runs or None
                now_s = self.system.now()
                self._schedule = finished(self._schedule, key, now_s, ok=ok, retry_delay_s=retry_delay_s)
                if key in self._again:
                    self._again = (self._again - {key}) or _NONE
                    if not ok:
                        self._schedule = expedite(self._schedule, (key,), now_s)
            case RunFailing():
                # What is under way may still fail with the connection that was lost: then it runs once more.
                self._again = frozenset(running(self._schedule)) or _NONE
                self._expedite(self._slot.failing)
            case RunRefused():
                # Not what failed by itself: asked again at once it would open the breaker again, for ever.
                self._expedite(self._slot.refused)
            case RunTrial(key):
                self._expedite((key,))
        self._arm()

    async def terminate(self, reason: ExitReason) -> None:
        """Let what is under way end, for a moment."""
        if reason.kind == "shutdown" and self._runs:
            await asyncio.wait(self._runs.values(), timeout=STOP_GRACE_S)

    @property
    def _channel(self) -> AgentChannel:
        """The way to the agent; most agents have checks of one kind only, and the other runner needs none."""
        if self._made_channel is None:
            self._made_channel = AgentChannel(self._slot, tell=self._tell_connection)
        return self._made_channel

    @property
    def _schedule(self) -> Schedule:
        return self._slot.schedules[self.kind]

    @_schedule.setter
    def _schedule(self, schedule: Schedule) -> None:
        self._slot.schedules[self.kind] = schedule

    def _arm(self) -> None:
        at_s = next_due_s(self._schedule)
        if at_s == self._armed_s:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._armed_s = at_s
        if at_s is not None:
            self._timer = self.send_after(max(at_s - self.system.now(), TIMER_S_MIN), RunDue())

    def _expedite(self, keys: Iterable[str]) -> None:
        mine = [key for key in keys if self.mine(self._slot.subjects[key])]
        self._schedule = expedite(self._schedule, mine, self.system.now())

    def _run_due(self) -> None:
        slot = self._slot
        self._schedule, dues = due(self._schedule, self.system.now())
        for each in dues:
            subject = slot.subjects[each.key]
            if each.missed:
                slot.fleet.env.emit(
                    CheckMissed(
                        agent=subject.agent,
                        service_name=subject.service_name,
                        service_type=subject.service_type,
                        count=each.missed,
                    )
                )
            if self._runs is None:
                self._runs = {}
            self._runs[each.key] = self.spawn(self._run(subject, each), name=each.key)

    # -- one run

    async def _run(self, subject: CheckSubject, each: Due) -> None:
        now = self.child.system.now
        begin_s = now()
        try:
            outcome, attempts = await self._outcome(subject, each, begin_s)
        except CallCut:
            await asyncio.sleep(CUT_AGAIN_S)
            self._again |= {each.key}
            self.send_self(CheckDone(each.key, ok=False, retry_delay_s=None))
            return
        latency_s = now() - begin_s
        if outcome is None:
            self.send_self(CheckDone(each.key, ok=True, retry_delay_s=None))
            return
        self._tell(subject, each, outcome, latency_s, attempts)
        self.send_self(CheckDone(each.key, outcome.ok, self.retry_delay_s(each.key, outcome)))

    async def _outcome(self, subject: CheckSubject, each: Due, begin_s: float) -> tuple[Outcome | None, int]:
        """Ask until there is an answer, the failure is final, or time or budget is used up. Raises CallCut."""
        slot = self._slot
        fleet = slot.fleet
        now = self.child.system.now
        resilience = fleet.resilience
        until_s = begin_s + self.timeout_s(subject)
        slot.budget = deposit(slot.budget, _budget_settings(resilience.retry_budget_ratio))
        attempt = 1
        while True:
            try:
                outcome = await self.ask(subject, each.tick, until_s - now())
            except CallError as error:
                failure = error.with_traceback(None)  # its frames would hold this one in a cycle
            else:
                self._note(subject.key, denied=False)
                return outcome, attempt
            self._note(subject.key, denied=is_denial(failure), refused=failure.reason == BREAKER_OPEN)
            wait_s = delay_s(_retry_settings(resilience.retry_delay_s), attempt - 1, fleet.env.rng.random())
            if (
                not failure.retryable
                or attempt >= resilience.retry_attempts
                or slot.reach is Reach.DOWN
                or now() + wait_s >= until_s
            ):
                break
            slot.budget, granted = withdraw(slot.budget)
            if not granted:
                break
            attempt += 1
            await asyncio.sleep(wait_s)
        await self.device()
        return from_failure(failure, subject, fleet.reporter, slot.device, tick=each.tick), attempt

    def _note(self, key: str, *, denied: bool, refused: bool = False) -> None:
        """Keep how the check was answered last; nothing is kept of one that was never denied or refused."""
        slot = self._slot
        if refused != (key in slot.refused):
            slot.refused = (slot.refused ^ {key}) or _NONE
        if denied != (key in slot.denied) and not refused:
            slot.denied = (slot.denied ^ {key}) or _NONE

    async def device(self) -> None:
        """Return once the agent's machine is known as well as it will be."""
        known = self._slot.device_known
        if known is not None and not known.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DEVICE_WAIT_S):
                    await known.wait()

    def _tell(self, subject: CheckSubject, each: Due, outcome: Outcome, latency_s: float, attempts: int) -> None:
        slot = self._slot
        if outcome.ok == (subject.key in slot.failing):
            slot.failing = (slot.failing ^ {subject.key}) or _NONE
        if outcome.verdict is Verdict.UNSUPPORTED:
            self.tell_unsupported(subject, f"the agent does not offer it: {outcome.error}")
            return
        slot.fleet.deliver(outcome)
        if outcome.claimed_agent_id and outcome.claimed_agent_id != subject.agent:
            security = self.sibling("security")
            if isinstance(security, Ref):
                security.cast(AnsweredAs(outcome.claimed_agent_id))
        slot.fleet.env.emit(
            CheckFinished(
                agent=subject.agent,
                service_name=subject.service_name,
                service_type=subject.service_type,
                kind=self.kind,
                # Nothing new is as good an answer as any.
                outcome=Verdict.AVAILABLE if outcome.verdict is Verdict.UNCHANGED else outcome.verdict,
                reason=outcome.reason,
                error=outcome.error,
                lateness_s=each.lateness_s,
                latency_s=latency_s,
                attempts=attempts,
            )
        )

    def _tell_connection(self, message: CallSucceeded | CallFailed) -> None:
        connection = self.sibling("connection")
        if isinstance(connection, Ref):
            connection.cast(message)

    def tell_unsupported(self, subject: CheckSubject, why: str) -> None:
        """Say that a check can't be run: once per check in the log, and counted every time."""
        first = subject.key not in self._slot.unsupported
        self._slot.unsupported |= {subject.key}
        self._slot.fleet.env.emit(
            CheckUnsupported(
                agent=subject.agent,
                service_name=subject.service_name,
                service_type=subject.service_type,
                why=why,
                first=first,
            )
        )

    def offset_s(self, subject: CheckSubject) -> float:
        """Return the check's own place after each tick."""
        fleet = self._slot.fleet
        return offset_s(fleet.reporter.poller_id, subject.agent, subject.key, fleet.scheduling.spread_window_s)


@functools.lru_cache(maxsize=8)
def _retry_settings(delay_s: float) -> BackoffSettings:
    # A configured delay that is longer stays as it is: the bound is for what it would grow to.
    max_s = max(RETRY_DELAY_S_MAX, delay_s * (1.0 + RETRY_JITTER))
    return BackoffSettings(min_s=delay_s, max_s=max_s, jitter=RETRY_JITTER)


@functools.lru_cache(maxsize=8)
def _budget_settings(ratio: float) -> RetryBudgetSettings:
    return RetryBudgetSettings(ratio=ratio)
