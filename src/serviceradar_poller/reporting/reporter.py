"""
The actor that tells core: takes outcomes in, seals reports when the book says so, sends them one at a time.

What must outlive a crash of this actor (inbox, book, outbox) stands in ReportingState, which its owner keeps.

    inbox ─► book ─► Cut ─► SealedReport ─► outbox ─► one call after the other ─► core
                                              ▲ failed: waits, backs off, goes again │
                                              └──────────────────────────────────────┘
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from serviceradar_poller.config.model import SecurityConfig
from serviceradar_poller.env import Env
from serviceradar_poller.errors import CallError, Layer
from serviceradar_poller.events.polling import (
    CoreConnected,
    CoreLost,
    ReportDropped,
    ReportFailed,
    ReportQueue,
    ReportSent,
)
from serviceradar_poller.logic.backoff import BackoffSettings, delay_s
from serviceradar_poller.logic.calls import (
    Call,
    ReportHead,
    StreamCall,
    UnaryCall,
    plan_calls,
    register_call,
    split_call,
)
from serviceradar_poller.logic.delivery import Refusal, judge
from serviceradar_poller.logic.reports import CheckId, Cut, ReportBook
from serviceradar_poller.logic.schedule import Timetable
from serviceradar_poller.otp import Actor, ExitReason, Timer
from serviceradar_poller.reporting.inbox import OutcomeInbox
from serviceradar_poller.reporting.link import CoreLink
from serviceradar_poller.reporting.outbox import Outbox, SealedReport
from serviceradar_poller.wire.codec import status_size

#: Outcomes are taken in at most this often, so that a busy cycle costs a few messages and not thousands.
DRAIN_INTERVAL_S = 0.05
#: A shorter timer would only spin.
TIMER_S_MIN = 0.001
#: Delay between attempts while core can't be reached.
CORE_BACKOFF = BackoffSettings(min_s=0.5, max_s=10.0)
#: A call that core refuses for what it holds is given up after this many attempts; after as many doubtful ones, the
#: next report is tried to learn whose fault it is.
REFUSALS_MAX = 5
#: A call that ran into its deadline gets at most this multiple of the time.
PATIENCE_MAX = 4
#: New certificates that could not be used are tried again after this time.
RENEWAL_RETRY_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReporterSettings:
    """
    Where core is and how it is spoken to.

    Attributes:
        head: What every report carries, as it is known by now.
    """

    core_address: str
    security: SecurityConfig | None
    head: Callable[[], ReportHead]
    call_timeout_s: float
    flush_timeout_s: float


@dataclass(slots=True, kw_only=True)
class ReportingState:
    """
    What outlives the actor.

    Attributes:
        registered: Core has had a stream of this process since it was last lost.
        lost_s: Monotonic seconds since when core does not accept; None while it does.
        connected_once: Core has accepted anything since the start.
        accepted_s: Monotonic seconds of the last acceptance.
        cycle_s: Monotonic seconds at which the last cycle's report was sealed.
        positions: Where each results check goes on: moved only by a report that core has accepted. Holds as many
            entries as there are results checks.
    """

    inbox: OutcomeInbox
    book: ReportBook
    outbox: Outbox
    registered: bool = False
    lost_s: float | None = None
    connected_once: bool = False
    accepted_s: float | None = None
    cycle_s: float | None = None
    dropped_statuses: int = 0
    positions: dict[CheckId, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OutcomesReady:
    """The inbox stopped being empty."""


@dataclass(frozen=True, slots=True)
class TakeIn:
    """Outcomes have waited long enough: take them in together."""


@dataclass(frozen=True, slots=True)
class CutDue:
    """A report may be due."""


@dataclass(frozen=True, slots=True)
class Retry:
    """The wait after a failed attempt is over."""


@dataclass(frozen=True, slots=True)
class CallDone:
    """The call under way ended; ``error`` is None when core accepted it."""

    report: SealedReport
    call: Call
    error: CallError | None
    duration_s: float


@dataclass(frozen=True, slots=True)
class ReconnectCore:
    """Build the connection anew, with the credentials that are on disk now."""


Message = OutcomesReady | TakeIn | CutDue | Retry | CallDone | ReconnectCore


class CoreReporter(Actor[Message]):
    """Reports to core."""

    mailbox_limit = 1_000

    def __init__(self, *, settings: ReporterSettings, state: ReportingState, timetable: Timetable, env: Env) -> None:
        self._settings = settings
        self._state = state
        self._timetable = timetable
        self._env = env
        self._link = CoreLink(settings.core_address, settings.security, env, rejected=self._renew_later)
        self._in_flight: SealedReport | None = None  # while a call is under way
        self._detour: SealedReport | None = None  # sent out of turn, to tell core's fault from its forerunner's
        self._sending: asyncio.Task[CallDone] | None = None
        self._waiting = False  # for the Retry after a failed attempt
        self._draining = False  # a TakeIn is on its way
        self._timer: Timer | None = None  # for the next CutDue
        self._timer_s = 0.0

    async def init(self) -> None:
        """Take over what waits; nothing connects yet."""
        self._state.inbox.subscribe(lambda: self.ref.cast(OutcomesReady()))
        self._work()

    async def handle(self, message: Message) -> None:
        """Take outcomes in, cut what is due, send what waits."""
        match message:
            case OutcomesReady():
                if not self._draining:
                    self._draining = True
                    self.send_after(DRAIN_INTERVAL_S, TakeIn())
                return
            case TakeIn():
                pass
            case CutDue():
                self._timer = None
            case Retry():
                self._waiting = False
            case CallDone():
                self._sending = None
                self._call_done(message)
            case ReconnectCore():
                await self._link.renew()
        self._work()

    async def terminate(self, reason: ExitReason) -> None:
        """Seal what core has not seen and send what waits, within the flush timeout."""
        if reason.kind == "shutdown":
            await self._flush()
        await self._link.close()

    # -- in: outcomes to sealed reports

    def _work(self) -> None:
        now_s = self._env.clock.monotonic()
        self._drain(now_s)
        while (cut := self._state.book.cut(now_s)) is not None:
            self._seal(cut, now_s)
        self._send_next()
        self._schedule(now_s)

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
        tick_s = None
        if cut.tick is not None:
            tick_s = self._timetable.tick_time(cut.tick)
            self._state.cycle_s = now_s
        report = SealedReport(
            kind=cut.kind,
            statuses=cut.statuses,
            timestamp=int(self._env.clock.wall()),
            sealed_s=now_s,
            size=sum(status_size(status) for status in cut.statuses),
            tick_s=tick_s,
            positions=cut.positions,
        )
        in_flight = self._in_flight if self._sending is not None else None
        for dropped in self._state.outbox.add(report, in_flight=in_flight):
            self._tell_drop(dropped, dropped.status_count, "queue_full")
            if dropped is self._detour:
                self._detour = None
        self._tell_queue()

    # -- out: sealed reports to core

    def _send_next(self) -> None:
        if self._waiting or self._sending is not None:
            return
        report = self._detour if self._detour is not None else self._state.outbox.head
        if report is not None:
            self._in_flight = report
            self._sending = self.spawn(self._send(report, self._next_call(report)), name="send")

    def _next_call(self, report: SealedReport) -> Call:
        """Return the call at the front of *report*, with a registering stream before it where core wants one."""
        timestamp = report.timestamp
        if report.calls is None:
            report.calls = plan_calls(
                self._settings.head(), report.statuses, timestamp=timestamp, size=report.size, size_of=status_size
            )
        if not self._state.registered and not isinstance(report.calls[0], StreamCall):
            register = register_call(self._settings.head(), report.statuses, timestamp=timestamp, size_of=status_size)
            report.calls = (register, *report.calls)
        return report.calls[0]

    async def _send(self, report: SealedReport, call: Call) -> CallDone:
        begin_s = self._env.clock.monotonic()
        # A core that is slow rather than gone gets more time for the same call: it stores what it is sent twice.
        patience = min(1 + report.timeouts, PATIENCE_MAX)
        error = await self._link.make(call, timeout_s=self._settings.call_timeout_s * patience)
        done = CallDone(report, call, error, self._env.clock.monotonic() - begin_s)
        self.send_self(done)
        return done

    def _call_done(self, done: CallDone) -> None:
        if done.error is None:
            self._accepted(done.report, done.call, done.duration_s)
        else:
            self._failed(done.report, done.call, done.error)

    def _accepted(self, report: SealedReport, call: Call, duration_s: float) -> None:
        now_s = self._env.clock.monotonic()
        state = self._state
        if state.lost_s is not None or not state.connected_once:
            outage_s = 0.0 if state.lost_s is None else now_s - state.lost_s
            self._env.emit(CoreConnected(address=self._settings.core_address, outage_s=outage_s))
            state.lost_s = None
            state.connected_once = True
        state.registered = state.registered or isinstance(call, StreamCall)
        state.accepted_s = now_s
        report.attempts = report.timeouts = 0
        detour, self._detour = self._detour, None
        if detour is report and (suspect := state.outbox.head) is not None and suspect.calls:
            self._give_up(suspect, suspect.calls[0])
        assert report.calls is not None and report.calls[0] is call
        report.calls = report.calls[1:]
        last = not report.calls
        if last:
            state.outbox.remove(report)
            for position in report.positions:
                state.positions[position.check] = position.sequence
        self._env.emit(
            ReportSent(
                kind="register" if isinstance(call, StreamCall) and call.registers else report.kind,
                transport="stream" if isinstance(call, StreamCall) else "unary",
                statuses=call.status_count,
                size=call.size,
                duration_s=duration_s,
                age_s=now_s - report.sealed_s,
                tick_s=now_s - report.tick_s if last and report.tick_s is not None else -1.0,
            )
        )
        if last:
            self._tell_queue()

    def _failed(self, report: SealedReport, call: Call, error: CallError) -> None:
        state = self._state
        report.attempts += 1
        report.timeouts += error.layer is Layer.DEADLINE
        refusal = judge(error)
        if error.unreachable:
            state.registered = False
        if refusal is not Refusal.FINAL and state.lost_s is None:
            state.lost_s = self._env.clock.monotonic()
            self._env.emit(CoreLost(address=self._settings.core_address, reason=error.reason, error=error.detail))
        given_up = refusal is Refusal.FINAL and report.attempts >= REFUSALS_MAX
        wait_s = 0.0 if given_up else delay_s(CORE_BACKOFF, report.attempts - 1, self._env.rng.random())
        self._env.emit(
            ReportFailed(
                kind=report.kind,
                reason=error.reason,
                error=error.detail,
                attempt=report.attempts,
                retry_in_s=wait_s,
                dropped=given_up,
            )
        )
        if given_up:
            self._give_up(report, call)
            return
        if refusal is Refusal.TOO_LARGE and isinstance(call, UnaryCall) and call.status_count > 1:
            assert report.calls is not None
            report.calls = (*split_call(call, size_of=status_size), *report.calls[1:])
        self._choose_detour(report, refusal)
        self._waiting = True
        self.send_after(wait_s, Retry())

    def _choose_detour(self, report: SealedReport, refusal: Refusal) -> None:
        """Where it is doubtful whether core or the report is at fault, let the report behind it find out."""
        if self._detour is not None:
            self._detour = None  # that one failed too: core it is
        elif refusal is Refusal.DOUBTFUL and report.attempts % REFUSALS_MAX == 0:
            self._detour = self._state.outbox.second

    def _give_up(self, report: SealedReport, call: Call) -> None:
        """Drop one call of *report*: core never accepts it; what follows it still goes."""
        state = self._state
        assert report.calls is not None
        report.calls = report.calls[1:]
        report.attempts = 0
        if isinstance(call, StreamCall) and call.registers:
            state.registered = True  # a core that takes no streams still takes reports
            return
        report.positions = ()
        self._tell_drop(report, call.status_count, "refused")
        if not report.calls:
            state.outbox.remove(report)
            self._tell_queue()

    def _tell_drop(self, report: SealedReport, statuses: int, reason: str) -> None:
        self._state.dropped_statuses += statuses
        self._env.emit(
            ReportDropped(kind=report.kind, statuses=statuses, reason=reason, queued=len(self._state.outbox))
        )

    def _renew_later(self) -> None:
        self.send_after(RENEWAL_RETRY_S, ReconnectCore())

    def _tell_queue(self) -> None:
        self._env.emit(ReportQueue(reports=len(self._state.outbox), size=self._state.outbox.size))

    # -- the end

    async def _flush(self) -> None:
        now_s = self._env.clock.monotonic()
        until_s = now_s + self._settings.flush_timeout_s
        sending = self._sending
        self._drain(now_s)
        if (cut := self._state.book.final(now_s)) is not None:
            self._seal(cut, now_s)
        if sending is not None:
            # Its message may never be read any more: the task itself says how the call under way ended.
            await asyncio.wait({sending}, timeout=self._settings.flush_timeout_s)
            if sending.done() and not sending.cancelled():
                self._call_done(sending.result())
        while (report := self._state.outbox.head) is not None:
            begin_s = self._env.clock.monotonic()
            if begin_s >= until_s:
                return
            call = self._next_call(report)
            timeout_s = min(until_s - begin_s, self._settings.call_timeout_s)
            error = await self._link.make(call, timeout_s=timeout_s)
            now_s = self._env.clock.monotonic()
            if error is None:
                self._accepted(report, call, now_s - begin_s)
                continue
            self._failed(report, call, error)
            await asyncio.sleep(min(CORE_BACKOFF.min_s, max(until_s - now_s, 0.0)))
