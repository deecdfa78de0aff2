"""
The actor that owns an agent's connection: builds it, watches whether the agent can be reached, brings it back.

    UNKNOWN ──first answer──► UP ──probe fails──► DOWN ──probe answered──► UP, and the checks that failed run at once
                               ▲                    │
                               └────────────────────┘ probes go on, ever less often as the outage lasts

A failed call alone does not make an agent DOWN: only the connection's own evidence does, either a failure below gRPC or
a health probe that fails as well. An agent that can't be reached is a state; nothing here crashes because of it.

Making a client may take seconds, when certificate files are to be judged: helpers do it, and what they made is looked
at again when it is there, because the world has gone on meanwhile.
"""

from __future__ import annotations

import asyncio
from typing import Any

from serviceradar_poller.agents.evidence import concerns_agent, is_denial, shows_life
from serviceradar_poller.agents.health import health_of
from serviceradar_poller.agents.machine import look_up, note_addresses
from serviceradar_poller.agents.messages import (
    RUNNERS,
    BreakerFailure,
    BreakerSuccess,
    CallFailed,
    CallSucceeded,
    ClientMade,
    ConnectionMessage,
    DeviceResolved,
    Probe,
    ProbeDone,
    RenewalDone,
    RenewConnection,
    Rerun,
    RunFailing,
)
from serviceradar_poller.agents.renewal import Renewal
from serviceradar_poller.agents.results import STREAM_S_MAX
from serviceradar_poller.agents.retirement import RETIRE_LOOK_S, Retirement
from serviceradar_poller.agents.slot import AgentSlot, Reach
from serviceradar_poller.env import AgentClient
from serviceradar_poller.errors import CallError, GrpcCode, Layer
from serviceradar_poller.events.polling import (
    AgentConnected,
    AgentHealth,
    AgentLost,
    AgentMisconfigured,
)
from serviceradar_poller.logic.backoff import reconnect_delay_s
from serviceradar_poller.logic.breaker import BreakerState
from serviceradar_poller.logic.reruns import Reruns, on_lost, on_reached, on_rerun
from serviceradar_poller.otp import Actor, ExitReason, Ref, Timer

#: Deadline of a health probe.
PROBE_TIMEOUT_S = 5.0
#: Unanswered probes in a row after which the connection itself is distrusted and built anew.
SILENT_PROBES_MAX = 2
#: Unusable settings are looked at again after this time: a certificate may have arrived.
FAULT_RETRY_S = 30.0

#: A probe waits so long for its turn among new connections; then it comes later.
PROBE_WAIT_S_MAX = 2.0
#: Where nothing has to be judged a client is there at once, and then checks find it; else they do not wait for it,
#: nor long do the other agents, which start one after the other.
FIRST_CLIENT_S = 0.005


class ConnectionManager(Actor[ConnectionMessage]):
    """One agent's connection."""

    __slots__ = (
        "_ending",
        "_health",
        "_made",
        "_making",
        "_outage_s",
        "_probe_made",
        "_probing",
        "_renewal",
        "_rerun",
        "_reruns",
        "_retired",
        "_silent_probes",
        "_slot",
        "_timer",
        "_unexplained_s",
        "_unfit",
    )
    rests = True

    def __init__(self, slot: AgentSlot) -> None:
        self._slot = slot
        self._outage_s: float | None = None  # monotonic begin of the outage
        self._probing = False
        self._unexplained_s: float | None = None  # begin of a silence that came up while one was probing
        self._timer: Timer | None = None
        self._silent_probes = 0
        self._health = "SERVING"
        self._making = False  # a client is being made
        self._made: AgentClient | None = None  # it is, and not in use yet
        self._unfit: AgentClient | None = None  # the one that it is to replace
        self._probe_made = False  # it is to be probed at once
        self._ending = False
        self._renewal = Renewal(slot)
        self._reruns = Reruns()
        self._rerun: Timer | None = None  # for asking again what failed, where that waits
        self._retired = Retirement(slot)

    async def init(self) -> None:
        """Prepare the client; it connects with the first call."""
        was_up = self._slot.reach is Reach.UP
        self._slot.reach = Reach.UNKNOWN
        making = self._build()
        self._resolve_device()
        if making is not None and not (await asyncio.wait({making}, timeout=FIRST_CLIENT_S))[0]:
            self._probe_made = True
        elif not self._slot.config.problems and (self._slot.failing or was_up):
            # Not the first incarnation: don't leave it to the next tick to find out where things stand.
            self._probe_after(self._slot.fleet.resilience.reconnect_min_s)

    async def handle(self, message: ConnectionMessage) -> None:
        """Follow what calls and probes tell."""
        match message:
            case CallSucceeded():
                self._answered()
            case CallFailed(error, began_s):
                self._call_failed(error, began_s)
            case Probe(since_s):
                self._probe(since_s=since_s)
            case ProbeDone():
                self._probe_done(message)
            case DeviceResolved(addresses):
                note_addresses(self._slot, addresses)
            case ClientMade(error):
                self._client_made(error)
            case RenewConnection():
                self._renew()
            case RenewalDone(health, error):
                self._renewal_done(health, error)
            case Rerun():
                self._run_failing()

    async def terminate(self, reason: ExitReason) -> None:
        """Close the connection."""
        self._ending = True  # helpers that make clients end after this
        clients = (self._slot.client, self._made, self._renewal.end())
        self._slot.client = self._made = None
        self._release()
        for client in clients:
            if client is not None:
                await client.close()
        await self._retired.close()

    # -- reach

    def _answered(self, *, denied: bool = False) -> None:
        first = self._slot.reach is not Reach.UP
        if denied:
            self._up()
        else:
            self._reached(probe=False)
        if first:
            self._probe(courtesy=True)  # once per connection: what it says of itself is told

    def _call_failed(self, error: CallError, began_s: float) -> None:
        slot = self._slot
        if shows_life(error):
            if is_denial(error) and slot.denied_all:
                # Else it is that check's own affair, and an answer like any other.
                self._tell_breaker(error)
                self._answered(denied=True)
            elif slot.reach is not Reach.UP or slot.breaker.state is not BreakerState.CLOSED:
                self._answered()
        elif concerns_agent(error):
            self._tell_breaker(error)
            if error.unreachable:
                self._lost(error)
            else:
                self._probe(since_s=began_s)

    def _reached(self, *, probe: bool) -> None:
        self._cast("breaker", BreakerSuccess(probe, back=self._slot.reach is not Reach.UP))
        self._up()

    def _up(self) -> None:
        before, self._slot.reach = self._slot.reach, Reach.UP
        self._silent_probes = 0
        if before is Reach.UP:
            return
        now_s = self.system.now()
        outage_s = 0.0 if self._outage_s is None else now_s - self._outage_s
        self._outage_s = self._slot.lost = None
        self._cancel_probe()
        self._emit(AgentConnected(agent=self._slot.name, address=self._slot.config.address, outage_s=outage_s))
        self._reruns, wait_s = on_reached(self._reruns, now_s, self._slot.fleet.timetable.interval_s)
        if wait_s == 0:
            self._run_failing()
        elif wait_s is not None:
            self._rerun = self.send_after(wait_s, Rerun())

    def _run_failing(self) -> None:
        self._rerun = None
        self._reruns = on_rerun(self._reruns, self.system.now())
        for runner in RUNNERS:
            self._cast(runner, RunFailing())

    def _lost(self, error: CallError) -> None:
        now_s = self.system.now()
        self._slot.lost = error
        if self._slot.reach is not Reach.DOWN:
            if self._slot.reach is Reach.UP:
                self._reruns = on_lost(self._reruns, now_s, self._slot.fleet.timetable.interval_s)
            if self._rerun is not None:
                self._rerun.cancel()
                self._rerun = None
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

    def _tell_breaker(self, error: CallError) -> None:
        self._cast(
            "breaker",
            BreakerFailure(
                security=error.security,
                forbidden=error.security and shows_life(error),
                cause=f"{error.reason}: {error.detail}",
            ),
        )

    # -- probes

    def _probe_after(self, delay_s: float, *, since_s: float | None = None) -> None:
        self._cancel_probe()
        self._timer = self.send_after(delay_s, Probe(since_s))

    def _cancel_probe(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _probe(self, *, since_s: float | None = None, courtesy: bool = False) -> None:
        """
        Ask for the agent's health.

        Args:
            since_s: The silence to be explained began then; by default it begins with the probe.
            courtesy: The agent is known to answer: only a connection that can't be made says otherwise.
        """
        self._cancel_probe()
        if self._slot.fault is not None or (self._slot.client is None and self._making):
            self._probe_made = True
            self._build()
            return
        if self._probing and since_s is not None:
            self._unexplained_s = max(since_s, self._unexplained_s or since_s)
        if self._probing or self._slot.client is None:
            return
        wait_s = self._slot.fleet.gate.reserve(wait_s_max=PROBE_WAIT_S_MAX) if not courtesy else 0.0
        if wait_s is None:  # too many connections are being opened: this one can wait best
            self._probe_after(PROBE_WAIT_S_MAX, since_s=since_s)
            return
        self._probing = True
        now_s = self.system.now()
        evidence_s = float("inf") if courtesy else now_s if since_s is None else since_s
        self.spawn(self._ask_health(self._slot.client, wait_s, evidence_s), name="probe")

    async def _ask_health(self, client: AgentClient, wait_s: float, evidence_s: float) -> None:
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        health, error = await health_of(client, self._probe_timeout_s)
        self.send_self(ProbeDone(client, health, error, evidence_s))

    @property
    def _probe_timeout_s(self) -> float:
        return min(PROBE_TIMEOUT_S, self._slot.fleet.scheduling.check_timeout_s)

    def _probe_done(self, done: ProbeDone) -> None:
        self._probing = False
        unexplained_s, self._unexplained_s = self._unexplained_s, None
        slot, error = self._slot, done.error
        if error is None:
            self._tell_health(done.health, "")
            self._reached(probe=True)
        elif done.client is not slot.client:  # it was replaced meanwhile: this is no word on the one in use
            self._probe_after(slot.fleet.resilience.reconnect_min_s, since_s=unexplained_s)
        elif error.layer is Layer.DEADLINE and (done.since_s == float("inf") or slot.answered_s > done.since_s):
            # It answers other calls: only its health service is silent.
            self._tell_health("NO_ANSWER", error.detail)
            if unexplained_s is not None and slot.answered_s <= unexplained_s:
                self._probe(since_s=unexplained_s)
        else:
            self._tell_breaker(error)
            self._silent_probes += error.layer is Layer.DEADLINE
            self._lost(error)
            if self._silent_probes >= SILENT_PROBES_MAX or error.layer is Layer.TLS:
                # The peer may be gone without a word, and TCP would believe in this connection for many minutes.
                # Or the certificates were replaced on both sides, and ours are on disk by now.
                self._silent_probes = 0
                self._build()

    def _tell_health(self, health: str, error: str) -> None:
        if health != self._health and health != "SERVICE_UNKNOWN":
            self._emit(AgentHealth(agent=self._slot.name, status=health, error=error))
        self._health = health

    # -- the client and its settings

    def _build(self) -> asyncio.Task[None] | None:
        """
        Make a client from the agent's settings and the files that are on disk by then; return who does it.

        Where they are unusable, a connection that there is goes on; without one the fault says so to every call.
        """
        slot = self._slot
        if self._making:
            return None
        if slot.config.problems:  # those don't change while this configuration is in force
            detail = "; ".join(str(problem) for problem in slot.config.problems)
            self._set_fault(
                CallError(layer=Layer.CONFIG, code=GrpcCode.FAILED_PRECONDITION, reason="misconfigured", detail=detail)
            )
            return None
        self._making = True
        self._unfit = slot.client
        if slot.client is None and slot.fault is None:
            slot.making = slot.making or asyncio.Event()  # calls wait for it
        return self.spawn(self._make_client(), name="build")

    async def _make_client(self) -> None:
        try:
            self._made = await self._new_client()
        except CallError as error:
            self.send_self(ClientMade(error.with_traceback(None)))
        else:
            self.send_self(ClientMade(None))

    async def _new_client(self, *, fresh: bool = False) -> AgentClient:
        slot = self._slot
        client = await slot.fleet.env.transport.agent(slot.config.address, slot.config.security, fresh=fresh)
        if self._ending:
            await client.close()
            raise CallError(layer=Layer.CONFIG, code=GrpcCode.CANCELLED, reason="closed", detail="made too late")
        return client

    def _client_made(self, error: CallError | None) -> None:
        slot = self._slot
        made, self._made = self._made, None
        unfit, self._unfit = self._unfit, None
        probe, self._probe_made = self._probe_made, False
        self._making = False
        if slot.client is not None and (slot.client is not unfit or slot.reach is Reach.UP):
            if made is not None:  # the old one is in use again, or a renewal was faster
                self._retire(made, within_s=0.0)
        elif error is not None:
            if slot.client is not None:
                self._renewal.reject(error)
            else:
                self._set_fault(error)
                self._release()
                self._probe_after(0.0 if self._renewal.take_again() else FAULT_RETRY_S)
        else:
            slot.client = made
            slot.fault = slot.admitted_s = None
            self._release()
            if unfit is not None:
                self._retire(unfit, within_s=0.0)
            if probe:
                self._probe()
        if not self._renewal.proving and slot.client is not None and self._renewal.take_again():
            self._renew()

    def _release(self) -> None:
        """Let the calls go on that wait for the first client."""
        waiting, self._slot.making = self._slot.making, None
        if waiting is not None:
            waiting.set()

    def _set_fault(self, fault: CallError) -> None:
        before, self._slot.fault = self._slot.fault, fault
        if before is None or before.detail != fault.detail:
            self._emit(AgentMisconfigured(agent=self._slot.name, problem=fault.detail))

    def _renew(self) -> None:
        """Build a second connection beside the one in use and prove it before anything moves over."""
        slot = self._slot
        if slot.config.problems or slot.config.security is None:
            return
        if self._renewal.proving or self._making:
            self._renewal.again = True  # the files changed once more while the last ones are looked at
            return
        if slot.client is None:
            self._probe()
            return
        self._renewal.begin()
        self.spawn(self._prove(), name="renewal")

    async def _prove(self) -> None:
        try:
            candidate = self._renewal.candidate = await self._new_client(fresh=True)
        except CallError as unusable:
            self.send_self(RenewalDone("", unusable.with_traceback(None)))
            return
        wait_s = self._slot.fleet.gate.reserve(wait_s_max=float("inf"))
        assert wait_s is not None
        await asyncio.sleep(wait_s)
        health, error = await health_of(candidate, self._probe_timeout_s)
        self.send_self(RenewalDone(health, error))

    def _renewal_done(self, health: str, error: CallError | None) -> None:
        slot, renewal = self._slot, self._renewal
        candidate, again = renewal.end(), renewal.take_again()
        if error is not None:
            if error.security or candidate is None:
                renewal.reject(error)  # anything else says nothing about the certificates
            if candidate is not None:
                self._retire(candidate, within_s=0.0)
            if again:
                self._renew()
            else:
                renewal.later(lambda wait_s: self.send_after(wait_s, RenewConnection()))
            return
        old, slot.client = slot.client, candidate
        if old is not None:
            # Calls under way on it have their time: the longest ends by itself before it is closed.
            self._retire(old, within_s=max(slot.fleet.scheduling.check_timeout_s, STREAM_S_MAX) + RETIRE_LOOK_S)
        renewal.succeeded()
        slot.answered_s = self.system.now()
        self._tell_health(health, "")
        self._reached(probe=True)
        if again:
            self._renew()

    def _retire(self, client: AgentClient, *, within_s: float) -> None:
        self._retired.add(client)
        self.spawn(self._retired.drain(client, within_s=within_s), name="retire")

    # -- the agent's machine

    def _resolve_device(self) -> None:
        if self._slot.names:
            self.spawn(look_up(self._slot, lambda found: self.send_self(DeviceResolved(found))), name="device")

    # -- others

    def _cast(self, sibling: str, message: Any) -> None:
        ref = self.sibling(sibling)
        if isinstance(ref, Ref):
            ref.cast(message)

    def _emit(self, event: Any) -> None:
        self._slot.fleet.env.emit(event)
