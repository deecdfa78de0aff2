"""
The actor that tells core: takes outcomes in, seals reports when the book says so, sends them one at a time.

What must outlive a crash of this actor (inbox, book, sealer, store) stands in ReportingState, which its owner keeps.

    inbox ─► book ─► Cut ─► encoded ─► sealer ─► store ─► delivery: one call after the other ─► core
                                                   ▲ failed: waits, backs off, goes again │
                                                   └──────────────────────────────────────┘
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from serviceradar_poller.env import Env
from serviceradar_poller.errors import SpoolWriteError
from serviceradar_poller.logic.calls import first_agent, plan_calls
from serviceradar_poller.logic.reports import Cut
from serviceradar_poller.logic.schedule import Timetable
from serviceradar_poller.otp import Actor, ExitReason, Timer
from serviceradar_poller.reporting.delivery import CORE_BACKOFF, Attempt, Delivery
from serviceradar_poller.reporting.link import CoreLink
from serviceradar_poller.reporting.outgoing import encode_call
from serviceradar_poller.reporting.spool import NewReport
from serviceradar_poller.reporting.state import ReporterSettings, ReportingState
from serviceradar_poller.wire.codec import status_size
from serviceradar_poller.wire.messages import SOURCE_RESULTS

#: Outcomes are taken in at most this often, so that a busy cycle costs a few messages and not thousands.
DRAIN_INTERVAL_S = 0.05
#: A shorter timer would only spin.
TIMER_S_MIN = 0.001
#: New certificates that could not be used are tried again after this time.
RENEWAL_RETRY_S = 60.0
#: Of the time for the last reports of a stop: for those that are in memory only, where some are.
MEMORY_SHARE = 0.5
#: Reports that have grown too old are looked for this often.
EXPIRE_INTERVAL_S = 60.0


@dataclass(frozen=True, slots=True)
class OutcomesReady:
    """The inbox stopped being empty."""


@dataclass(frozen=True, slots=True)
class ResultSealed:
    """A large result waits for core."""


@dataclass(frozen=True, slots=True)
class TakeIn:
    """Outcomes have waited long enough: take them in together."""


@dataclass(frozen=True, slots=True)
class CutDue:
    """A report may be due."""


@dataclass(frozen=True, slots=True)
class Retry:
    """The wait after an attempt is over."""


@dataclass(frozen=True, slots=True)
class Attempted:
    """The attempt under way ended."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class ReconnectCore:
    """Build the connection anew, with the credentials that are on disk now."""


Message = OutcomesReady | ResultSealed | TakeIn | CutDue | Retry | Attempted | ReconnectCore


class CoreReporter(Actor[Message]):
    """Reports to core."""

    mailbox_limit = 1_000

    def __init__(self, *, settings: ReporterSettings, state: ReportingState, timetable: Timetable, env: Env) -> None:
        self._settings = settings
        self._state = state
        self._timetable = timetable
        self._env = env
        self._link = CoreLink(
            settings.core_address,
            settings.security,
            env,
            rejected=self._renew_later,
            outdated=lambda: self.send_self(ReconnectCore()),
        )
        self._delivery = Delivery(settings=settings, state=state, env=env, link=self._link)
        self._sending: asyncio.Task[Attempt] | None = None
        self._waiting = False  # for the Retry after an attempt
        self._draining = False  # a TakeIn is on its way
        self._timer: Timer | None = None  # for the next CutDue
        self._renewal: Timer | None = None  # for the next attempt with new certificates
        self._timer_s = 0.0
        self._backlog = False  # what waits is more than the newest report
        self._expire_s = env.clock.monotonic()

    async def init(self) -> None:
        """Take over what waits; nothing connects yet."""
        self._state.inbox.subscribe(lambda: self.ref.cast(OutcomesReady()))
        self._state.sealer.subscribe(lambda: self.ref.cast(ResultSealed()))
        self._backlog = self._state.sealer.reports > 0
        await self._work()

    async def handle(self, message: Message) -> None:
        """Take outcomes in, cut what is due, send what waits."""
        match message:
            case OutcomesReady():
                if not self._draining:
                    self._draining = True
                    self.send_after(DRAIN_INTERVAL_S, TakeIn())
                return
            case TakeIn() | ResultSealed():
                pass
            case CutDue():
                self._timer = None
            case Retry():
                self._waiting = False
            case Attempted():
                self._sending = None
                self._wait(await self._delivery.settle(message.attempt))
            case ReconnectCore():
                self._cancel_renewal()
                self.spawn(self._link.renew(), name="renew")  # reports go on meanwhile
                return
        await self._work()

    async def terminate(self, reason: ExitReason) -> None:
        """Seal what core has not seen and send what waits, within the flush timeout."""
        if reason.kind == "shutdown":
            await self._flush()
        await self._link.close()

    # -- in: outcomes to sealed reports

    async def _work(self) -> None:
        now_s = self._env.clock.monotonic()
        self._drain(now_s)
        if self._state.sealer.take_result_sealed():
            self._state.book.want_current(now_s)
        self._note_backlog(now_s)
        cuts = 0
        while (cut := self._state.book.cut(now_s)) is not None:
            self._seal(cut, now_s)
            cuts += 1
        await self._state.sealer.settle()
        await self._expire(now_s)
        if cuts:
            self._delivery.tell_queue()
        self._send_next()
        self._schedule(self._env.clock.monotonic())

    def _note_backlog(self, now_s: float) -> None:
        """Ask for a current report once what waited for core is there: the last of it may be old."""
        if self._state.lost_s is not None:
            self._backlog = True
        elif self._backlog and not self._state.sealer.reports:
            self._backlog = False
            self._state.book.want_current(now_s, unless_newer=True)

    def _drain(self, now_s: float) -> None:
        self._draining = False
        for outcome in self._state.inbox.take_all():
            self._state.book.record(outcome, now_s)

    def _schedule(self, now_s: float) -> None:
        at_s = self._state.book.next_cut_s(now_s)
        if self._timer is not None:
            if self._timer_s <= at_s:
                return  # it costs a look too many, never a report too late
            self._timer.cancel()
        self._timer_s = at_s
        # A loop may run a timer a hair before its time: never look again within the same instant.
        self._timer = self.send_after(max(at_s - now_s, TIMER_S_MIN), CutDue())

    def _seal(self, cut: Cut, now_s: float) -> None:
        """Give a cut to the sealer; nothing can come between the book's cut and that."""
        tick_s = None
        if cut.tick is not None:
            tick_s = self._timetable.tick_time(cut.tick)
            self._state.cycle_s = now_s
        timestamp = int(self._env.clock.wall())
        size = sum(status_size(status) for status in cut.statuses)
        calls = plan_calls(self._settings.head(), cut.statuses, timestamp=timestamp, size=size, size_of=status_size)
        report = NewReport(
            kind=cut.kind.value,
            timestamp=timestamp,
            change=cut.change,
            fresh=cut.fresh,
            calls=tuple(map(encode_call, calls)),
            positions=tuple((*position.check, position.sequence) for position in cut.positions),
        )
        # Not the rest of them: until the next cut they would stand in memory beside their successors.
        self._state.newest = first_agent([status for status in cut.statuses if status.source != SOURCE_RESULTS])
        self._state.newest_timestamp = timestamp
        self._state.sealer.put(report, tick_s=tick_s)

    async def _expire(self, now_s: float) -> None:
        if now_s < self._expire_s:
            return
        self._expire_s = now_s + EXPIRE_INTERVAL_S
        try:
            await self._state.store.expire(now_s)
        except SpoolWriteError:
            pass  # counted and told by the store; another time
        await self._state.sealer.fallback.expire(now_s)

    # -- out: sealed reports to core

    def _send_next(self) -> None:
        if not self._waiting and self._sending is None and self._state.sealer.reports:
            self._sending = self.spawn(self._send(), name="send")

    async def _send(self) -> Attempt:
        attempt = await self._delivery.attempt()
        self.send_self(Attempted(attempt))
        return attempt

    def _wait(self, wait_s: float) -> None:
        if wait_s > 0:
            self._waiting = True
            self.send_after(wait_s, Retry())

    def _renew_later(self) -> None:
        self._cancel_renewal()
        self._renewal = self.send_after(RENEWAL_RETRY_S, ReconnectCore())

    def _cancel_renewal(self) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
            self._renewal = None

    # -- the end

    async def _flush(self) -> None:
        now_s = self._env.clock.monotonic()
        until_s = now_s + self._settings.flush_timeout_s
        half_s = until_s - self._settings.flush_timeout_s * MEMORY_SHARE
        in_memory = self._state.sealer.fallback.stats
        self._drain(now_s)
        if (cut := self._state.book.final(now_s)) is not None:
            self._seal(cut, now_s)
        await self._state.sealer.settle()
        await self._end_sending(half_s if in_memory().reports else until_s, until_s)
        # Oldest first, for as long as that leaves time for what would end with the process; then that alone: the rest
        # is on disk and goes after the next start, and core's view does not end on something older.
        self._delivery.hurry()
        await self._send_all(lambda: half_s if in_memory().reports else until_s, lambda: self._state.sealer.reports)
        await self._send_all(lambda: until_s, lambda: in_memory().reports, memory_only=True)

    async def _end_sending(self, wait_until_s: float, until_s: float) -> None:
        """Let the attempt under way end by *wait_until_s*; then it is cut, and what it sends goes again."""
        sending, clock = self._sending, self._env.clock
        if sending is None:
            return
        await asyncio.wait({sending}, timeout=max(wait_until_s - clock.monotonic(), 0.0))
        if not sending.done():
            sending.cancel()  # the connection is for one call at a time
            await asyncio.wait({sending}, timeout=max(until_s - clock.monotonic(), 0.0))
        # Its message may never be read any more: the task itself says how it ended.
        if sending.done() and not sending.cancelled():
            await self._delivery.settle(sending.result())

    async def _send_all(
        self, until_s: Callable[[], float], waiting: Callable[[], int], *, memory_only: bool = False
    ) -> None:
        """Send what waits until there is nothing left, or no time."""
        clock = self._env.clock
        while waiting() and clock.monotonic() < until_s():
            attempt = await self._delivery.attempt(until_s=until_s(), memory_only=memory_only)
            wait_s = await self._delivery.settle(attempt)
            if attempt.outgoing is None:
                wait_s = CORE_BACKOFF.min_s  # what waits is being moved
            # No longer than that: core may be back any moment, and there is little time.
            await asyncio.sleep(max(min(wait_s, CORE_BACKOFF.min_s, until_s() - clock.monotonic()), 0.0))
