"""The actor that asks an agent for result sets, each at its own interval, and again soon after a failure."""

from __future__ import annotations

import asyncio
import contextlib

from serviceradar_poller.agents.pull import Pull
from serviceradar_poller.agents.runner import CheckRunner
from serviceradar_poller.errors import CallError, GrpcCode, Layer
from serviceradar_poller.logic.backoff import BackoffSettings, delay_s
from serviceradar_poller.logic.merge import MergeLimits
from serviceradar_poller.logic.outcome import CheckSubject, Outcome, from_results
from serviceradar_poller.logic.schedule import CheckPlan
from serviceradar_poller.logic.sequence import is_kept, why_not_kept
from serviceradar_poller.logic.streamed import missing_service, new_streamed, stored_outcome, to_outcome
from serviceradar_poller.wire.messages import ResultsRequest

#: A failed results check runs again after this delay, and not only after its whole interval.
RESULTS_RETRY = BackoffSettings(min_s=5.0, max_s=300.0)

#: A streamed result takes at most this time.
STREAM_S_MAX = 300.0
#: A streamed result of more is told as failed; less may be too much for what the store may hold (reporting.results).
STREAM_LIMITS = MergeLimits(total_bytes_max=1024 * 1024 * 1024)


class ResultsStreamer(CheckRunner):
    """GetResults and StreamResults on schedule."""

    kind = "results"

    def mine(self, subject: CheckSubject) -> bool:
        """Return whether it is a results check."""
        return subject.is_results

    def plan(self, subject: CheckSubject) -> CheckPlan:
        """Return a plan with the check's own interval."""
        interval_s = self._slot.checks[subject.key].results_interval_s
        assert interval_s is not None
        # An interval of nothing means at every tick.
        interval_s = max(interval_s, self._slot.fleet.timetable.interval_s)
        return CheckPlan(key=subject.key, interval_s=interval_s, offset_s=self.offset_s(subject))

    def timeout_s(self, subject: CheckSubject) -> float:
        """Return the time of a check, or for a stream as long as its interval lasts, within STREAM_S_MAX."""
        timeout_s = super().timeout_s(subject)
        check = self._slot.checks[subject.key]
        if not check.is_streamed or check.results_interval_s is None:
            return timeout_s
        return max(timeout_s, min(check.results_interval_s, STREAM_S_MAX))

    def retry_delay_s(self, key: str, outcome: Outcome) -> float | None:
        """Return a growing delay while the check goes on failing."""
        failures = self._slot.failures
        if outcome.ok:
            failures.pop(key, None)
            return None
        failures[key] = failures.get(key, 0) + 1
        return delay_s(RESULTS_RETRY, failures[key] - 1, self._slot.fleet.env.rng.random())

    async def ask(self, subject: CheckSubject, tick: int, timeout_s: float) -> Outcome | None:
        """Ask the agent for what is new since the last result that core accepted."""
        slot = self._slot
        position = slot.fleet.positions.get((subject.agent, subject.key), "")
        request = ResultsRequest(
            service_name=subject.service_name,
            service_type=subject.service_type,
            agent_id=subject.agent,
            poller_id=slot.fleet.reporter.poller_id,
            details=subject.details,
            last_sequence=position if is_kept(position) else "",  # from the spool of a version that kept any
        )
        if slot.checks[subject.key].is_streamed:
            try:
                return await self._pull(subject, request, tick, timeout_s)
            except CallError as error:
                if error.layer is Layer.GRPC and error.code is GrpcCode.NOT_FOUND and not error.begun:
                    return missing_service(subject, slot.fleet.reporter, tick=tick)
                raise
        response = await self._channel.get_results(request, timeout_s=timeout_s)
        if not is_kept(response.current_sequence):
            raise CallError(
                layer=Layer.APPLICATION,
                code=GrpcCode.OUT_OF_RANGE,
                reason="too_large",
                detail=why_not_kept(response.current_sequence),
            )
        await self.device()
        return from_results(response, subject, slot.fleet.reporter, slot.device, tick=tick)

    async def _pull(self, subject: CheckSubject, request: ResultsRequest, tick: int, timeout_s: float) -> Outcome:
        """Read a stream chunk by chunk; nothing of one that breaks or makes no sense is used. Raises CallError."""
        slot = self._slot
        until_s = self.system.now() + timeout_s
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s / 2):
                await self.device()  # the address goes into the first piece
        begin_s = self.system.now()
        timeout_s = until_s - begin_s
        stream = await self._channel.stream_results(request, timeout_s=timeout_s)
        streamed = new_streamed(
            subject,
            slot.fleet.reporter,
            slot.device,
            last_sequence=request.last_sequence,
            limits=STREAM_LIMITS,
        )
        pull = Pull(stream, streamed, slot.fleet.results, check=(subject.agent, subject.key), begin_s=begin_s)
        pulled = await pull.run(
            self.system,
            under=self.path.rpartition("/")[0],
            # Not the check's name: what is counted by kind of child would have a series for each.
            id=f"pull-{list(slot.checks).index(subject.key)}",
            timeout_s=timeout_s,
        )
        if pulled.message is None:
            return stored_outcome(pulled.result, subject, tick=tick)
        response_time = int((self.system.now() - begin_s) * 1e9)
        return to_outcome(pulled.result, pulled.message, subject, tick=tick, response_time=response_time)
