"""
The outcome of a check: what an agent's answer, or the lack of one, tells core.

An answer is copied, a failure becomes an unavailable status that says why; both are enriched with the device's
address and wrapped in the envelope that core unpacks. A result set that holds nothing new has no outcome at all.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import msgspec

from serviceradar_poller.errors import CallError, GrpcCode, Layer
from serviceradar_poller.logic.enrich import enrich, should_enrich
from serviceradar_poller.logic.wrap import needs_wrap, wrap
from serviceradar_poller.values import quick
from serviceradar_poller.wire.messages import (
    SOURCE_RESULTS,
    SOURCE_STATUS,
    ResultsResponse,
    ServiceStatus,
    StatusResponse,
)

#: A larger message is not told: a few of them would fill everything that waits for core.
MESSAGE_BYTES_MAX = 16 * 1024 * 1024
#: Characters of the id under which an agent answers; ids are names.
AGENT_ID_MAX = 1_024
#: An error text sent to core is cut to this many characters.
ERROR_TEXT_MAX = 500


class Verdict(enum.StrEnum):
    """What a check came to."""

    AVAILABLE = "available"
    UNAVAILABLE = "unavailable"  # the agent's own word
    FAILED = "failed"  # no usable answer
    UNCHANGED = "unchanged"  # a result set without news: nothing for core
    UNSUPPORTED = "unsupported"  # the agent does not offer it: nothing for core


@dataclass(frozen=True, slots=True, kw_only=True)
class Reporter:
    """Who reports: what every status carries of the poller itself."""

    poller_id: str
    partition: str
    kv_store_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What an agent runs on, as core is told."""

    ip: str
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckSubject:
    """
    The check an outcome is about.

    Attributes:
        agent: The agent's key in the configuration.
        key: Names the check within its agent.
    """

    agent: str
    key: str
    service_name: str
    service_type: str
    details: str
    is_results: bool


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """
    What one run of a check came to.

    Attributes:
        tick: The cycle it belongs to.
        status: What core is told; None when there is nothing to tell.
        reason: For a failure, a stable token such as ``refused``; else empty.
        error: For a failure, what happened, in words.
        claimed_agent_id: The id under which the agent answered; empty when it gave none.
        sequence: A results check's position, to be remembered once core has accepted the status.
    """

    subject: CheckSubject
    tick: int
    verdict: Verdict
    status: ServiceStatus | None
    reason: str = ""
    error: str = ""
    claimed_agent_id: str = ""
    sequence: str = ""

    @property
    def ok(self) -> bool:
        """Whether the check itself worked, whatever it found."""
        return self.verdict is not Verdict.FAILED


def from_status(
    response: StatusResponse, subject: CheckSubject, reporter: Reporter, device: Device, *, tick: int
) -> Outcome:
    """Return the outcome of an answered status check."""
    if error := _too_large(response.message, response.agent_id):
        return from_failure(error, subject, reporter, device, tick=tick)
    status = _status(
        subject,
        reporter,
        available=response.available,
        message=_enriched(response.message, subject, device),
        service_type=subject.service_type,
        agent_id=_answered_as(response.agent_id, subject),
        response_time=response.response_time,
        source=SOURCE_STATUS,
    )
    return Outcome(
        subject=subject,
        tick=tick,
        verdict=Verdict.AVAILABLE if response.available else Verdict.UNAVAILABLE,
        status=status,
        claimed_agent_id=response.agent_id,
    )


def from_results(
    response: ResultsResponse, subject: CheckSubject, reporter: Reporter, device: Device, *, tick: int
) -> Outcome:
    """Return the outcome of an answered results check; a sweep without news has nothing for core."""
    if error := _too_large(response.data, response.agent_id):
        return from_failure(error, subject, reporter, device, tick=tick)
    is_sync = "sync" in subject.service_name
    if subject.service_type == "sweep" and not is_sync and not response.has_new_data:
        return Outcome(
            subject=subject,
            tick=tick,
            verdict=Verdict.UNCHANGED,
            status=None,
            claimed_agent_id=response.agent_id,
            sequence=response.current_sequence,
        )
    status = _status(
        subject,
        reporter,
        available=response.available,
        message=_enriched(response.data, subject, device),
        service_type="sync" if is_sync else subject.service_type,
        agent_id=_answered_as(response.agent_id, subject),
        response_time=response.response_time,
        source=SOURCE_RESULTS,
    )
    return Outcome(
        subject=subject,
        tick=tick,
        verdict=Verdict.AVAILABLE if response.available else Verdict.UNAVAILABLE,
        status=status,
        claimed_agent_id=response.agent_id,
        sequence=response.current_sequence,
    )


def from_failure(error: CallError, subject: CheckSubject, reporter: Reporter, device: Device, *, tick: int) -> Outcome:
    """
    Return the outcome of a check that got no usable answer.

    The message keeps the sentence that core's users know and says the cause beside it, under ``reason`` and ``detail``.
    A results check that the agent does not offer (UNIMPLEMENTED) has nothing for core.
    """
    text = error.detail[:ERROR_TEXT_MAX]
    if subject.is_results and error.layer is Layer.GRPC and error.code is GrpcCode.UNIMPLEMENTED:
        return Outcome(
            subject=subject,
            tick=tick,
            verdict=Verdict.UNSUPPORTED,
            status=None,
            reason=error.reason,
            error=text,
        )
    if subject.is_results:
        message = msgspec.json.encode({"error": f"GetResults failed: {text}", "reason": error.reason})
    else:
        message = _enriched(
            msgspec.json.encode({"error": "Service check failed", "reason": error.reason, "detail": text}),
            subject,
            device,
        )
    status = _status(
        subject,
        reporter,
        available=False,
        message=message,
        service_type=subject.service_type,
        agent_id=subject.agent,
        response_time=0,
        source=SOURCE_RESULTS if subject.is_results else SOURCE_STATUS,
    )
    return Outcome(subject=subject, tick=tick, verdict=Verdict.FAILED, status=status, reason=error.reason, error=text)


def _answered_as(agent_id: str, subject: CheckSubject) -> str:
    """Return the id to report; where it is the subject's, that very text: a status is kept for a whole cycle."""
    return subject.agent if agent_id in ("", subject.agent) else agent_id


def _too_large(message: bytes, agent_id: str) -> CallError | None:
    """Return why an answer can't be told: all that an agent gives has a bound, since all of it goes into reports."""
    if len(message) > MESSAGE_BYTES_MAX:
        detail = f"the answer has {len(message)} bytes, at most {MESSAGE_BYTES_MAX} are told"
    elif len(agent_id) > AGENT_ID_MAX:
        detail = f"the agent's id has {len(agent_id)} characters, at most {AGENT_ID_MAX} are told"
    else:
        return None
    return CallError(layer=Layer.APPLICATION, code=GrpcCode.OUT_OF_RANGE, reason="too_large", detail=detail)


def _enriched(message: bytes, subject: CheckSubject, device: Device) -> bytes:
    if not should_enrich(subject.service_type):
        return message
    return enrich(message, details=subject.details, device_ip=device.ip, device_host=device.host)


def _status(
    subject: CheckSubject,
    reporter: Reporter,
    *,
    available: bool,
    message: bytes,
    service_type: str,
    agent_id: str,
    response_time: int,
    source: str,
) -> ServiceStatus:
    if needs_wrap(service_type):
        message = wrap(
            message,
            poller_id=reporter.poller_id,
            agent_id=agent_id,
            partition=reporter.partition,
            service_type=service_type,
            service_name=subject.service_name,
        )
    return ServiceStatus(
        service_name=subject.service_name,
        available=available,
        message=message,
        service_type=service_type,
        response_time=response_time,
        agent_id=agent_id,
        poller_id=reporter.poller_id,
        partition=reporter.partition,
        source=source,
        kv_store_id=reporter.kv_store_id,
    )
