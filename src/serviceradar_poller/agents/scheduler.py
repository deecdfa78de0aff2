"""The actor that runs an agent's status checks, once a tick each."""

from __future__ import annotations

from serviceradar_poller.agents.runner import CheckRunner
from serviceradar_poller.logic.outcome import CheckSubject, Outcome, from_status
from serviceradar_poller.logic.schedule import CheckPlan
from serviceradar_poller.wire.messages import StatusRequest


class CheckScheduler(CheckRunner):
    """GetStatus on schedule."""

    kind = "status"

    def mine(self, subject: CheckSubject) -> bool:
        """Return whether it is a status check."""
        return not subject.is_results

    def plan(self, subject: CheckSubject) -> CheckPlan:
        """Return a plan of one run per tick."""
        return CheckPlan(key=subject.key, interval_s=None, offset_s=self.offset_s(subject))

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
        await self.device()
        return from_status(response, subject, slot.fleet.reporter, slot.device, tick=tick)
