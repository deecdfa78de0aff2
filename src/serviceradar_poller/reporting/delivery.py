"""
Send stored reports, oldest first, one call after the other, and settle in the store what came of each call.

    head ─► registering stream, where core wants one ─► call ─► accepted: the store deletes it and moves positions
                                                            └─► failed: waits and goes again, in smaller calls,
                                                                or is set aside when core will never take it
"""

from __future__ import annotations

from dataclasses import dataclass

from serviceradar_poller.env import Env
from serviceradar_poller.errors import CallError, Layer, SpoolReadError, SpoolWriteError
from serviceradar_poller.events.polling import CoreConnected, CoreLost, ReportFailed, ReportQueue, ReportSent
from serviceradar_poller.logic.backoff import BackoffSettings, delay_s
from serviceradar_poller.logic.calls import register_call
from serviceradar_poller.logic.delivery import Refusal, judge
from serviceradar_poller.reporting.link import CoreLink
from serviceradar_poller.reporting.outgoing import EncodedCall, Outgoing, encode_call, from_memory
from serviceradar_poller.reporting.spool import ReportStore, StoredReport
from serviceradar_poller.reporting.state import ReporterSettings, ReportingState
from serviceradar_poller.wire.codec import status_size

#: Delay between attempts while core can't be reached, or the store can't be read or written.
CORE_BACKOFF = BackoffSettings(min_s=0.5, max_s=10.0)
#: A call that core refuses for what it holds is given up after this many attempts; after as many doubtful ones, the
#: next report is tried to learn whose fault it is.
REFUSALS_MAX = 5
#: A call that ran into its deadline gets at most this multiple of the time.
PATIENCE_MAX = 4
#: A stream gets a second more for each of these: a result of many megabytes takes its time on a slow line.
STREAM_BYTES_PER_S_MIN = 1024 * 1024
#: After so many failures to read the store what memory keeps goes ahead of it: out of order, but it would be lost else.
UNREADABLE_MAX = 3
#: A backlog is replayed no faster, so that a core that has just come back is not swamped.
REPLAY_REPORTS_PER_S_MAX = 50.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """
    What came of an attempt to bring the oldest report forward.

    Attributes:
        outgoing: None when nothing waits.
        call: None when all of its calls were made before.
        error: Why core did not accept it; None when it did.
        unread: Why the store did not give it.
    """

    outgoing: Outgoing | None = None
    call: EncodedCall | None = None
    error: CallError | None = None
    unread: SpoolReadError | None = None
    duration_s: float = 0.0


class Delivery:
    """The way of stored reports to core."""

    def __init__(self, *, settings: ReporterSettings, state: ReportingState, env: Env, link: CoreLink) -> None:
        self._settings = settings
        self._state = state
        self._env = env
        self._link = link
        self._outgoing: Outgoing | None = None
        self._detour: Outgoing | None = None  # sent out of turn, to tell core's fault from its forerunner's
        self._store_failures = 0  # in a row
        self._replay_s = 1.0 / REPLAY_REPORTS_PER_S_MAX  # from one report of a backlog to the next

    def hurry(self) -> None:
        """From now on a backlog goes as fast as core takes it: the time of a stop is short."""
        self._replay_s = 0.0

    async def attempt(self, *, until_s: float | None = None, memory_only: bool = False) -> Attempt:
        """
        Make the next call.

        Args:
            until_s: Monotonic seconds by which it ends whatever comes of it.
            memory_only: Of the reports that the process's end would take along.
        """
        clock = self._env.clock
        outgoing: Outgoing | None = None
        call: EncodedCall | None = None
        begin_s = clock.monotonic()
        try:
            outgoing = await (self._next_in_memory() if memory_only else self._next())
            call = self._call(outgoing) if outgoing is not None else None
            if outgoing is None or call is None:
                return Attempt(outgoing=outgoing)
            # A core that is slow rather than gone gets more time for the same call: it stores what it is sent twice.
            timeout_s = self._settings.call_timeout_s * min(1 + outgoing.timeouts, PATIENCE_MAX)
            if call.kind == "stream":
                timeout_s += call.size / STREAM_BYTES_PER_S_MIN
            begin_s = clock.monotonic()
            if until_s is not None:
                timeout_s = min(until_s - begin_s, self._settings.call_timeout_s)
            error = await self._link.make(call, timeout_s=timeout_s)
        except SpoolReadError as unread:
            return Attempt(outgoing=outgoing, call=call, unread=unread)
        return Attempt(outgoing=outgoing, call=call, error=error, duration_s=clock.monotonic() - begin_s)

    async def settle(self, attempt: Attempt) -> float:
        """Do what the end of an attempt asks for; return the seconds to wait before the next one."""
        outgoing, call = attempt.outgoing, attempt.call
        if attempt.unread is not None:
            return await self._unread(outgoing, attempt.unread)
        if outgoing is None:
            return 0.0
        if call is None:
            return await self._finish(outgoing)
        if attempt.error is not None:
            return await self._failed(outgoing, call, attempt.error)
        return await self._accepted(outgoing, call, attempt.duration_s)

    def tell_queue(self) -> None:
        """Tell how much waits."""
        self._env.emit(ReportQueue(reports=self._state.sealer.reports, size=self._state.sealer.size))

    # -- what goes next

    async def _next(self) -> Outgoing | None:
        if self._detour is not None:
            return self._detour
        sealer = self._state.sealer
        head = await self._stored()
        if sealer.fallback.stats().reports:
            kept = await sealer.fallback.head()
            if kept is not None and (head is None or sealer.is_older(kept, head)):
                return self._take_up(sealer.fallback, kept)
        return self._take_up(self._state.store, head)

    async def _next_in_memory(self) -> Outgoing | None:
        self._detour = None
        fallback = self._state.sealer.fallback
        return self._take_up(fallback, await fallback.head())

    def _take_up(self, source: ReportStore, head: StoredReport | None) -> Outgoing | None:
        if head is None:
            self._outgoing = None
        elif self._outgoing is None or not self._outgoing.is_of(source, head):
            self._outgoing = Outgoing(source, head)
        return self._outgoing

    async def _stored(self) -> StoredReport | None:
        """Return the store's oldest report; None also where it can't be read for long and memory keeps some."""
        try:
            return await self._state.store.head()
        except SpoolReadError:
            if self._store_failures < UNREADABLE_MAX or not self._state.sealer.fallback.stats().reports:
                raise
            return None

    def _call(self, outgoing: Outgoing) -> EncodedCall | None:
        """Return the call at the front, or a registering stream where core wants one before it."""
        call = outgoing.front()
        if call is None or call.kind == "stream" or self._state.registered:
            return call
        register = register_call(
            self._settings.head(),
            self._state.newest,
            timestamp=self._state.newest_timestamp or int(self._env.clock.wall()),
            size_of=status_size,
        )
        return from_memory(encode_call(register), registers=True)

    # -- what came of it

    async def _accepted(self, outgoing: Outgoing, call: EncodedCall, duration_s: float) -> float:
        now_s = self._env.clock.monotonic()
        state, report = self._state, outgoing.report
        if state.lost_s is not None or not state.connected_once:
            outage_s = 0.0 if state.lost_s is None else now_s - state.lost_s
            self._env.emit(CoreConnected(address=self._settings.core_address, outage_s=outage_s))
            state.lost_s = None
            state.connected_once = True
        state.registered = state.registered or call.kind == "stream"
        state.accepted_s = now_s
        wait_s = 0.0
        tick_s = None
        last = False
        if call.registers:
            outgoing.attempts = outgoing.timeouts = 0
        else:
            index = outgoing.take()
            last = outgoing.front() is None
            if last:
                if outgoing.store is state.store:
                    tick_s = state.sealer.ticks.pop(report.id, None)
                wait_s = await self._finish(outgoing, took_s=duration_s)
            elif index is not None:
                await self._note_call(outgoing, index)
            self._judge_suspect(outgoing)
        self._env.emit(
            ReportSent(
                kind="register" if call.registers else report.kind,
                transport="stream" if call.kind == "stream" else "unary",
                statuses=call.status_count,
                size=call.size,
                duration_s=duration_s,
                age_s=max(self._env.clock.wall() - report.sealed_wall_s, 0.0),
                tick_s=now_s - tick_s if tick_s is not None else -1.0,
            )
        )
        if last:
            self.tell_queue()
        return wait_s

    async def _note_call(self, outgoing: Outgoing, index: int) -> None:
        try:
            await outgoing.store.call_accepted(outgoing.report.id, index)
        except SpoolWriteError:
            return  # counted and told by the store; this process knows it all the same

    def _judge_suspect(self, outgoing: Outgoing) -> None:
        """Core took the report behind a doubtful one: that one's fault, unless core was mended in between."""
        detour, self._detour = self._detour, None
        if detour is outgoing and self._outgoing is not None:
            self._outgoing.last_chance = True

    async def _failed(self, outgoing: Outgoing, call: EncodedCall, error: CallError) -> float:
        state = self._state
        outgoing.attempts += 1
        outgoing.timeouts += error.layer is Layer.DEADLINE
        refusal = judge(error, stream=call.kind == "stream")
        if error.unreachable:
            state.registered = False
        given_up = self._is_hopeless(outgoing, call, refusal)
        if refusal is not Refusal.FINAL and not given_up and state.lost_s is None:
            state.lost_s = self._env.clock.monotonic()
            self._env.emit(CoreLost(address=self._settings.core_address, reason=error.reason, error=error.detail))
        wait_s = 0.0 if given_up else delay_s(CORE_BACKOFF, outgoing.attempts - 1, self._env.rng.random())
        self._env.emit(
            ReportFailed(
                kind=outgoing.report.kind,
                reason=error.reason,
                error=error.detail,
                attempt=outgoing.attempts,
                retry_in_s=wait_s,
                dropped=given_up,
            )
        )
        if given_up:
            if call.registers:
                outgoing.attempts = outgoing.timeouts = 0
                state.registered = True  # a core that takes no streams still takes reports
                return 0.0
            return await self._give_up(outgoing, error.reason)
        await self._count_attempt(outgoing)
        if refusal is Refusal.TOO_LARGE and call.kind == "unary" and call.status_count > 1:
            try:
                # Not on disk: after a restart core refuses the whole again, and it is halved again, at the price of one
                # attempt for each halving. Halves that core has come twice then, as a call in flight may anyway.
                outgoing.split(await call.read(0))
            except SpoolReadError as unread:
                return await self._unread(outgoing, unread)
        elif refusal is Refusal.TOO_LARGE:
            refusal = Refusal.DOUBTFUL  # it can't be made smaller: core is busy, or never takes it
        await self._choose_detour(outgoing, refusal)
        return wait_s

    @staticmethod
    def _is_hopeless(outgoing: Outgoing, call: EncodedCall, refusal: Refusal) -> bool:
        """Tell whether core never takes *call*, which it did not take this time; a last chance is over by that."""
        last_chance = outgoing.last_chance and not call.registers
        if last_chance:
            outgoing.last_chance = False
        if refusal is Refusal.TOO_LARGE and (call.kind != "unary" or call.status_count <= 1):
            refusal = Refusal.DOUBTFUL  # it can't be made smaller
        if last_chance and refusal is Refusal.DOUBTFUL:
            return True
        return refusal is Refusal.FINAL and outgoing.attempts >= REFUSALS_MAX

    async def _count_attempt(self, outgoing: Outgoing) -> None:
        try:
            await outgoing.store.failed(outgoing.report.id)
        except SpoolWriteError:
            return  # counted and told by the store; the number is for the operator only

    async def _choose_detour(self, outgoing: Outgoing, refusal: Refusal) -> None:
        """Where it is doubtful whether core or the report is at fault, let the report behind it find out."""
        if self._detour is not None:
            self._detour = None  # that one failed too: core it is
        elif refusal is Refusal.DOUBTFUL and outgoing.attempts % REFUSALS_MAX == 0:
            try:
                behind = await outgoing.store.second()
            except SpoolReadError:
                return  # another time
            if behind is not None:
                self._detour = Outgoing(outgoing.store, behind)

    async def _give_up(self, outgoing: Outgoing, reason: str) -> float:
        """Core never accepts the call at the front; what follows it still goes."""
        outgoing.refuse(reason)
        if outgoing.front() is not None:
            return 0.0
        wait_s = await self._finish(outgoing)
        self.tell_queue()
        return wait_s

    async def _finish(self, outgoing: Outgoing, *, took_s: float = 0.0) -> float:
        """Take a report whose calls were all made out of the store."""
        store, report = outgoing.store, outgoing.report
        try:
            if outgoing.refused:
                await store.set_aside(report.id, outgoing.refusal, rejected=outgoing.refused)
            else:
                await store.accepted(report.id)
        except SpoolWriteError:
            return self._store_failed()  # not even owed: it stays at the front without a call, and is asked for again
        if store is self._state.store:
            self._store_failures = 0
        if outgoing is self._outgoing:
            self._outgoing = None
        return max(self._replay_s - took_s, 0.0) if self._state.sealer.reports else 0.0

    async def _unread(self, outgoing: Outgoing | None, error: SpoolReadError) -> float:
        self._detour = None
        if outgoing is None or error.reason != "damaged":
            if error.reason == "gone":
                self._outgoing = None
            return self._store_failed()
        try:
            await outgoing.store.set_aside(outgoing.report.id, error.reason)
        except SpoolWriteError:
            return self._store_failed()
        self._outgoing = None
        self.tell_queue()
        return 0.0

    def _store_failed(self) -> float:
        self._store_failures += 1
        return delay_s(CORE_BACKOFF, self._store_failures - 1, self._env.rng.random())
