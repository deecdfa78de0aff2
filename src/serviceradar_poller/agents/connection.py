"""
The actor that owns an agent's connection: builds it, watches whether the agent can be reached, brings it back.

    UNKNOWN ──first answer──► UP ──probe fails──► DOWN ──probe answered──► UP, and the checks that failed run at once
                               ▲                    │
                               └────────────────────┘ probes go on, ever less often as the outage lasts

A failed call alone does not make an agent DOWN: only the connection's own evidence does, either a failure below gRPC or
a health probe that fails as well. An agent that can't be reached is a state; nothing here crashes because of it.
"""

from __future__ import annotations

import asyncio
from typing import Any

from serviceradar_poller.agents.messages import (
    BreakerFailure,
    BreakerSuccess,
    CallFailed,
    CallSucceeded,
    ConnectionMessage,
    DeviceResolved,
    Probe,
    ProbeDone,
    RenewalDone,
    RenewConnection,
    RunFailing,
)
from serviceradar_poller.agents.slot import AgentSlot, Reach
from serviceradar_poller.env import AgentClient
from serviceradar_poller.errors import CallError, GrpcCode, Layer
from serviceradar_poller.events.polling import (
    AgentConnected,
    AgentHealth,
    AgentLost,
    AgentMisconfigured,
    CredentialsRejected,
    CredentialsRenewed,
)
from serviceradar_poller.logic.backoff import reconnect_delay_s
from serviceradar_poller.logic.device import device_ip, ip_candidates, names_to_resolve
from serviceradar_poller.logic.outcome import Device
from serviceradar_poller.otp import Actor, ExitReason, Ref, Timer

#: Deadline of a health probe.
PROBE_TIMEOUT_S = 5.0
#: Unanswered probes in a row after which the connection itself is distrusted and built anew.
SILENT_PROBES_MAX = 2
#: Deadline of one name look-up for an agent's machine.
DEVICE_LOOKUP_S = 2.0
#: Unusable settings are looked at again after this time: a certificate may have arrived.
FAULT_RETRY_S = 30.0

_NOT_ALIVE_CODES = frozenset(
    {GrpcCode.UNAVAILABLE, GrpcCode.DEADLINE_EXCEEDED, GrpcCode.RESOURCE_EXHAUSTED, GrpcCode.CANCELLED}
)


class ConnectionManager(Actor[ConnectionMessage]):
    """One agent's connection."""

    def __init__(self, slot: AgentSlot, *, breaker: str, runners: tuple[str, ...]) -> None:
        self._slot = slot
        self._breaker_path = breaker
        self._runner_paths = runners
        self._outage_s: float | None = None  # monotonic begin of the outage
        self._probing = False
        self._timer: Timer | None = None
        self._silent_probes = 0
        self._health = "SERVING"
        self._candidate: AgentClient | None = None

    async def init(self) -> None:
        """Prepare the client; it connects with the first call."""
        self._slot.reach = Reach.UNKNOWN
        self._build()
        self._resolve_device()
        if self._slot.fault is not None and not self._slot.config.problems:
            self._probe_after(FAULT_RETRY_S)

    async def handle(self, message: ConnectionMessage) -> None:
        """Follow what calls and probes tell."""
        match message:
            case CallSucceeded():
                self._answered()
            case CallFailed(error):
                self._call_failed(error)
            case Probe():
                self._probe()
            case ProbeDone(health, error):
                await self._probe_done(health, error)
            case DeviceResolved(addresses):
                self._set_device(addresses)
            case RenewConnection():
                self._renew()
            case RenewalDone(error):
                await self._renewal_done(error)

    async def terminate(self, reason: ExitReason) -> None:
        """Close the connection."""
        await self._replace_client(None)
        await self._drop_candidate()

    # -- reach

    def _answered(self) -> None:
        first = self._slot.reach is not Reach.UP
        self._reached()
        if first:
            self._probe()  # asked once per connection: what it says of itself is told, and never again

    def _call_failed(self, error: CallError) -> None:
        if not _concerns_agent(error):
            if self._slot.reach is not Reach.UP and _shows_life(error):
                self._answered()
            return
        self._tell_breaker(error)
        if error.unreachable:
            self._lost(error)
        elif not error.security:
            self._probe()

    def _reached(self) -> None:
        before, self._slot.reach = self._slot.reach, Reach.UP
        self._silent_probes = 0
        self._cast(self._breaker_path, BreakerSuccess())
        if before is Reach.UP:
            return
        now_s = self.system.now()
        outage_s = 0.0 if self._outage_s is None else now_s - self._outage_s
        self._outage_s = None
        self._cancel_probe()
        self._emit(AgentConnected(agent=self._slot.name, address=self._slot.config.address, outage_s=outage_s))
        for path in self._runner_paths:
            self._cast(path, RunFailing())

    def _lost(self, error: CallError) -> None:
        now_s = self.system.now()
        if self._slot.reach is not Reach.DOWN:
            self._slot.reach = Reach.DOWN
            self._outage_s = now_s
            self._emit(
                AgentLost(
                    agent=self._slot.name,
                    address=self._slot.config.address,
                    layer=error.layer,
                    reason=error.reason,
                    error=error.detail,
                )
            )
        if self._timer is None and not self._probing:
            resilience = self._slot.fleet.resilience
            outage_s = now_s - (self._outage_s if self._outage_s is not None else now_s)
            self._probe_after(
                reconnect_delay_s(
                    outage_s,
                    self._slot.fleet.env.rng.random(),
                    min_s=resilience.reconnect_min_s,
                    max_s=resilience.reconnect_max_s,
                )
            )

    # -- probes

    def _probe_after(self, delay_s: float) -> None:
        self._cancel_probe()
        self._timer = self.send_after(delay_s, Probe())

    def _cancel_probe(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _probe(self) -> None:
        self._cancel_probe()
        if self._slot.fault is not None:
            self._build()
            if self._slot.fault is not None:
                if not self._slot.config.problems:
                    self._probe_after(FAULT_RETRY_S)
                return
        if not self._probing and self._slot.client is not None:
            self._probing = True
            self.spawn(self._ask_health(self._slot.client), name="probe")

    async def _ask_health(self, client: AgentClient) -> None:
        await self._slot.fleet.gate.pass_through()
        health, error = await _health_of(client, self._probe_timeout_s)
        self.ref.cast(ProbeDone(health, error))

    @property
    def _probe_timeout_s(self) -> float:
        return min(PROBE_TIMEOUT_S, self._slot.fleet.scheduling.check_timeout_s)

    async def _probe_done(self, health: str, error: CallError | None) -> None:
        self._probing = False
        if error is None:
            if health != self._health and health != "SERVICE_UNKNOWN":
                self._emit(AgentHealth(agent=self._slot.name, status=health))
            self._health = health
            self._reached()
            return
        if error.reason == "closed":  # our own replacement of the client; the new one will be probed
            self._probe_after(self._slot.fleet.resilience.reconnect_min_s)
            return
        self._tell_breaker(error)
        if error.security and not error.unreachable:
            self._probe_after(self._slot.fleet.resilience.reconnect_max_s)
            return
        if error.layer is Layer.DEADLINE:
            self._silent_probes += 1
        self._lost(error)
        if self._silent_probes >= SILENT_PROBES_MAX:
            # The peer may be gone without a word; TCP would believe in this connection for many minutes.
            self._silent_probes = 0
            self._build()

    def _tell_breaker(self, error: CallError) -> None:
        self._cast(
            self._breaker_path,
            BreakerFailure(security=error.security, cause=f"{error.reason}: {error.detail}"),
        )

    # -- the client and its settings

    def _build(self) -> None:
        """Make a client from the agent's settings; where they are unusable the fault says so to every call."""
        slot = self._slot
        before = slot.fault
        client: AgentClient | None = None
        if slot.config.problems:
            slot.fault = CallError(
                layer=Layer.CONFIG,
                code=GrpcCode.FAILED_PRECONDITION,
                reason="misconfigured",
                detail="; ".join(str(problem) for problem in slot.config.problems),
            )
        else:
            try:
                client = slot.fleet.env.transport.agent(slot.config.address, slot.config.security)
                slot.fault = None
            except CallError as error:
                slot.fault = error
        if slot.fault is not None and (before is None or before.detail != slot.fault.detail):
            self._emit(AgentMisconfigured(agent=slot.name, problem=slot.fault.detail))
        old, slot.client = slot.client, client
        if old is not None:
            self.spawn(old.close(), name="close")

    async def _replace_client(self, client: AgentClient | None) -> None:
        old, self._slot.client = self._slot.client, client
        if old is not None:
            await old.close()

    def _renew(self) -> None:
        """Build a second connection beside the one in use and prove it before anything moves over."""
        slot = self._slot
        if slot.config.problems or slot.config.security is None or self._candidate is not None:
            return
        if slot.fault is not None or slot.reach is not Reach.UP:
            self._build()
            self._probe()
            return
        try:
            self._candidate = slot.fleet.env.transport.agent(slot.config.address, slot.config.security)
        except CallError as error:
            self._emit(CredentialsRejected(peer=slot.name, error=error.detail))
            return
        self.spawn(self._prove(self._candidate), name="renewal")

    async def _prove(self, candidate: AgentClient) -> None:
        await self._slot.fleet.gate.pass_through()
        _, error = await _health_of(candidate, self._probe_timeout_s)
        self.ref.cast(RenewalDone(error))

    async def _renewal_done(self, error: CallError | None) -> None:
        if error is not None:
            self._emit(CredentialsRejected(peer=self._slot.name, error=error.detail))
            await self._drop_candidate()
            return
        candidate, self._candidate = self._candidate, None
        old, self._slot.client = self._slot.client, candidate
        if old is not None:
            self.spawn(self._retire(old), name="retire")
        self._emit(CredentialsRenewed(peer=self._slot.name))

    async def _retire(self, client: AgentClient) -> None:
        """Close a connection once the calls that were under way on it have had their time."""
        await asyncio.sleep(self._slot.fleet.scheduling.check_timeout_s)
        await client.close()

    async def _drop_candidate(self) -> None:
        candidate, self._candidate = self._candidate, None
        if candidate is not None:
            await candidate.close()

    # -- the agent's machine

    def _resolve_device(self) -> None:
        slot = self._slot
        known = slot.device_known
        if known is None or known.is_set():
            return
        names = names_to_resolve(self._candidates())
        self.spawn(self._look_up(names), name="device")

    async def _look_up(self, names: tuple[str, ...]) -> None:
        resolver = self._slot.fleet.env.resolver
        addresses: dict[str, tuple[str, ...]] = {}
        for name in names:
            addresses[name] = await resolver.resolve(name, timeout_s=DEVICE_LOOKUP_S)
            if addresses[name]:
                break
        self.ref.cast(DeviceResolved(addresses))

    def _set_device(self, addresses: dict[str, tuple[str, ...]]) -> None:
        slot = self._slot
        ip = device_ip(self._candidates(), addresses, slot.fleet.source_ip)
        slot.device = Device(ip=ip, host=slot.device.host)
        if slot.device_known is not None:
            slot.device_known.set()

    def _candidates(self) -> tuple[str, ...]:
        slot = self._slot
        return ip_candidates(slot.name, slot.config.address, slot.fleet.source_ip, slot.override)

    # -- others

    def _cast(self, path: str, message: Any) -> None:
        ref = self.system.whereis(path)
        if isinstance(ref, Ref):
            ref.cast(message)

    def _emit(self, event: Any) -> None:
        self._slot.fleet.env.emit(event)


def _concerns_agent(error: CallError) -> bool:
    """Whether a failed call says something about the agent as a whole, and not about one check of it."""
    if error.reason in ("closed", "cancelled") or error.layer in (
        Layer.BREAKER,
        Layer.CONFIG,
        Layer.APPLICATION,
    ):
        return False
    return error.unreachable or error.security or error.layer is Layer.DEADLINE or error.code in _NOT_ALIVE_CODES


def _shows_life(error: CallError) -> bool:
    """Whether a failed call was answered by the agent itself, with an error of one request."""
    return error.layer is Layer.GRPC and error.code not in _NOT_ALIVE_CODES and not error.security


async def _health_of(client: AgentClient, timeout_s: float) -> tuple[str, CallError | None]:
    """Ask for health; an answer of any other kind than 'not there' shows an agent that is alive."""
    try:
        return await client.check_health(timeout_s=timeout_s), None
    except CallError as error:
        if _shows_life(error):
            return "SERVICE_UNKNOWN", None
        return "", error
