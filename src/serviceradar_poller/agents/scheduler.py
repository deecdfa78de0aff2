"""The actor that runs an agent's status checks, once a tick each."""

from __future__ import annotations

from serviceradar_poller.agents.runner import CheckRunner
from serviceradar_poller.logic.outcome import CheckSubject, Outcome, from_status
from serviceradar_poller.logic.schedule import CheckPlan, offset_s, place_of
from serviceradar_poller.wire.messages import StatusRequest


class CheckScheduler(CheckRunner):
    """GetStatus on schedule."""

    __slots__ = ()
    kind = "status"

    def mine(self, subject: CheckSubject) -> bool:
        """Return whether it is a status check."""
        return not subject.is_results

    def plan(self, subject: CheckSubject) -> CheckPlan:
        """Return a plan of one run per tick, together with the agent's other checks."""
        fleet, subjects = self._slot.fleet, self._slot.subjects
        place = place_of(subject.key, sum(map(self.mine, subjects.values())))
        offset = offset_s(fleet.reporter.poller_id, subject.agent, place, fleet.scheduling.spread_window_s)
        return CheckPlan(key=subject.key, interval_s=None, offset_s=offset)

    async def ask(self, subject: CheckSubject, tick: int, timeout_s: float) -> Outcome | None:
        """Ask the agent for the check's status."""
        slot = self._slot
        check = slot.checks[subject.key]
        response = await self._channel.get_status(
            StatusRequest(
                service_name=subject.service_name,
                service_type=subject.service_type,
                agent_id=subject.agent,
                poller_id=slot.fleet.reporter.poller_id,
                details=subject.details,
                port=check.port if subject.service_type == "port" else 0,
            ),
            timeout_s=timeout_s,
        )
        if slot.device_known is not None:
            await self.device()
        return from_status(response, subject, slot.fleet.reporter, slot.device, tick=tick)
