"""The actor that asks an agent for result sets, each at its own interval, and again soon after a failure."""

from __future__ import annotations

from serviceradar_poller.agents.runner import CheckRunner
from serviceradar_poller.logic.backoff import BackoffSettings, delay_s
from serviceradar_poller.logic.outcome import CheckSubject, Outcome, from_results
from serviceradar_poller.logic.schedule import CheckPlan
from serviceradar_poller.wire.messages import ResultsRequest

#: A failed results check runs again after this delay, and not only after its whole interval.
RESULTS_RETRY = BackoffSettings(min_s=5.0, max_s=300.0)


class ResultsStreamer(CheckRunner):
    """GetResults on schedule."""

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
        if slot.checks[subject.key].is_streamed:
            self.tell_unsupported(subject, "results that come as a stream are not pulled by this version")
            return None
        response = await self._channel.get_results(
            ResultsRequest(
                service_name=subject.service_name,
                service_type=subject.service_type,
                agent_id=subject.agent,
                poller_id=slot.fleet.reporter.poller_id,
                details=subject.details,
                last_sequence=slot.fleet.positions.get((subject.agent, subject.key), ""),
            ),
            timeout_s=timeout_s,
        )
        await self.device()
        return from_results(response, subject, slot.fleet.reporter, slot.device, tick=tick)
