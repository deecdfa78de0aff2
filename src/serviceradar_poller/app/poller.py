"""
The poller as one supervision tree.

    poller (one_for_all, the last resort)
    ├ security      credentials: watches certificate files
    ├ reporting     core-reporter: outcomes to core; stopped after the agents, with time to flush
    ├ fleet         (rest_for_one)
    │ ├ agents      one coordinator per agent, see agents.coordinator
    │ └ roster      puts every configured agent under `agents`
    └ …             what the caller adds: the gRPC server, HTTP, measurements

Each direct child of the root is a supervisor with a restart budget of its own, so that a bug in one part uses up that
part's budget and nobody else's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from serviceradar_poller import __version__
from serviceradar_poller.agents.coordinator import new_slot
from serviceradar_poller.agents.gate import ConnectGate
from serviceradar_poller.agents.roster import RenewConnections, Roster
from serviceradar_poller.agents.slot import AgentSlot, FleetSettings
from serviceradar_poller.app.service import RenewCertificate
from serviceradar_poller.config.decode import describe
from serviceradar_poller.config.model import AGENTS_MAX, PollerConfig, ReportMode, SecurityConfig, SecurityMode
from serviceradar_poller.env import Env
from serviceradar_poller.errors import ResolveError
from serviceradar_poller.events.polling import PollerStarted
from serviceradar_poller.logic.calls import ReportHead
from serviceradar_poller.logic.device import literal_ip, override_variable, source_ip_candidates
from serviceradar_poller.logic.outcome import Device, Reporter
from serviceradar_poller.logic.reports import BatchBook, CycleBook, ReportBook
from serviceradar_poller.logic.schedule import Timetable
from serviceradar_poller.otp import (
    ChildSpec,
    Ref,
    Strategy,
    System,
    Tree,
    actor,
    dynamic_supervisor,
    start_tree,
    supervisor,
)
from serviceradar_poller.reporting.inbox import OutcomeInbox
from serviceradar_poller.reporting.reporter import CoreReporter, ReconnectCore
from serviceradar_poller.reporting.results import StoredResults
from serviceradar_poller.reporting.sealing import Sealer
from serviceradar_poller.reporting.spool import MemoryStore, ReportStore, Spool, SpoolSettings
from serviceradar_poller.reporting.state import ReporterSettings, ReportingState
from serviceradar_poller.security.watch import CredentialsWatch, Signature

#: Outcomes that may wait for the reporter: several cycles of a small site, four of a large one.
INBOX_MIN = 10_000
INBOX_CYCLES = 4
#: What the reporter keeps of its shutdown time for closing its connection.
CLOSE_RESERVE_S = 0.3

#: While the poller has no address, the interfaces are looked at this often.
OWN_ADDRESS_LOOK_S = 1.0

REPORTER_PATH = "poller/reporting/core-reporter"
AGENTS_PATH = "poller/fleet/agents"
ROSTER_PATH = "poller/fleet/roster"
SERVICE_PATH = "poller/service/grpc-server"


class OwnAddress:
    """
    The poller's own address, for its reports and for agents that have none: as found at the start, else an interface's.

    An interface may come up after the poller, and core registers no device for a report without an address.
    """

    def __init__(self, address: str, env: Env) -> None:
        self._address = address
        self._env = env
        self._looked_s = float("-inf")

    def __call__(self) -> str:
        """Return it as it is known by now; empty while there is none."""
        if not self._address:
            now_s = self._env.clock.monotonic()
            if now_s - self._looked_s >= OWN_ADDRESS_LOOK_S:
                self._looked_s = now_s
                self._address = self._env.interface_address()
        return self._address


@dataclass(slots=True, kw_only=True)
class Poller:
    """
    A poller that runs.

    Attributes:
        started_s: Monotonic seconds.
        polling: Every agent's coordinator was started once.
        on_polling: Called when that is so for the first time.
    """

    config: PollerConfig
    env: Env
    source_ip: OwnAddress
    timetable: Timetable
    reporting: ReportingState
    slots: dict[str, AgentSlot]
    gate: ConnectGate
    results: StoredResults
    started_s: float
    tree: Tree | None = None
    polling: bool = False
    on_polling: Callable[[], object] = lambda: None

    def head(self) -> ReportHead:
        """Return what every report carries, as it is known by now."""
        return ReportHead(
            poller_id=self.config.poller_id,
            partition=self.config.partition,
            source_ip=self.source_ip(),
            kv_store_id=self.config.kv_store_id,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceAddress:
    """
    The poller's own address as core is told it.

    Attributes:
        address: A literal IP; empty when nothing gives one.
        warnings: What was configured and is of no use, or that there is none.
    """

    address: str
    warnings: tuple[str, ...] = ()


async def resolve_source_ip(config: PollerConfig, env: Env) -> SourceAddress:
    """
    Find the poller's own address.

    The first candidate that is an address, or resolves to one within 2 s (IPv4 preferred), counts; then an interface's.
    """
    useless: list[str] = []
    for candidate in source_ip_candidates(env.environ, config.source_ip):
        literal = literal_ip(candidate)
        if literal is not None:
            return _source_address(literal, useless)
        addresses: list[str] = []
        with contextlib.suppress(ResolveError):
            found = await env.resolver.resolve(candidate, timeout_s=2.0)
            addresses = [ip for text in found if (ip := literal_ip(text))]
        if addresses:
            return _source_address(next((ip for ip in addresses if ":" not in ip), addresses[0]), useless)
        useless.append(candidate)
    return _source_address(env.interface_address(), useless)


def _source_address(address: str, useless: Sequence[str]) -> SourceAddress:
    used = f"core is told {address} until the next start" if address else "core is told none"
    warnings = [f"{describe(name, ('source_ip',))} is no address and resolves to none; {used}" for name in useless]
    if not address:
        warnings.append("no address of this machine is known yet, and core registers no device without one; set it")
    return SourceAddress(address=address, warnings=tuple(warnings))


def memory_store(config: PollerConfig, env: Env) -> MemoryStore:
    """Return a store for a poller without a state directory."""
    return MemoryStore(spool_settings(config), emit=env.emit, wall=env.clock.wall)


async def open_store(config: PollerConfig, env: Env) -> ReportStore:
    """
    Open the store of sealed reports: on disk, or in memory where no state directory is configured.

    Raises:
        SpoolError: The directory is missing, can't be written, or belongs to another poller that runs.
    """
    if not config.state_dir:
        return memory_store(config, env)
    return await Spool.open(spool_settings(config), emit=env.emit, wall=env.clock.wall)


def spool_settings(config: PollerConfig) -> SpoolSettings:
    """Return where reports wait and how much of it, as configured."""
    return SpoolSettings(
        directory=Path(config.state_dir),
        bytes_max=config.reporting.queue_bytes_max,
        reports_max=config.reporting.queue_reports_max,
    )


def new_poller(config: PollerConfig, env: Env, *, source_ip: str, store: ReportStore | None = None) -> Poller:
    """
    Return everything that outlives the actors of a poller; nothing runs yet.

    Args:
        source_ip: The poller's own address as it is known at the start; empty: an interface's, once one is up.
        store: Where sealed reports wait, and whoever opened it closes it; None: in memory.
    """
    store = memory_store(config, env) if store is None else store
    now_s = env.clock.monotonic()
    timetable = Timetable(epoch_s=now_s, interval_s=config.poll_interval_s)
    reporter = Reporter(poller_id=config.poller_id, partition=config.partition, kv_store_id=config.kv_store_id)

    def device_of(agent: str) -> Device:
        return slots[agent].device

    reporting = ReportingState(
        inbox=OutcomeInbox(limit=max(INBOX_MIN, INBOX_CYCLES * sum(len(agent.checks) for agent in config.agents))),
        book=_book(config, timetable, reporter, device_of, now_s),
        store=store,
        sealer=Sealer(store, env),
    )

    def head() -> ReportHead:
        return poller.head()

    advice = ": raise reporting.queue_bytes"
    results = StoredResults(
        store,
        reporting.sealer,
        env,
        head=head,
        advice=advice if config.state_dir else f"{advice}, or set state_dir to keep it on disk instead of in memory",
    )
    own_address = OwnAddress(source_ip, env)
    gate = ConnectGate(connects_per_s=config.scheduling.connects_per_s, clock=env.clock)
    fleet = FleetSettings(
        reporter=reporter,
        timetable=timetable,
        scheduling=config.scheduling,
        resilience=config.resilience,
        source_ip=own_address,
        deliver=reporting.inbox.put,
        positions=store.positions(),
        results=results,
        gate=gate,
        env=env,
    )
    slots = {
        agent.name: new_slot(agent, fleet, override=env.environ.get(override_variable(agent.name), ""))
        for agent in config.agents
    }
    reporting.book.set_subjects(
        {(slot.name, key): subject for slot in slots.values() for key, subject in slot.subjects.items()},
        now_s,
    )
    poller = Poller(
        config=config,
        env=env,
        source_ip=own_address,
        timetable=timetable,
        reporting=reporting,
        slots=slots,
        gate=gate,
        results=results,
        started_s=now_s,
    )
    return poller


async def start_poller(
    poller: Poller, *, services: Callable[[Poller], Sequence[ChildSpec]] = lambda poller: ()
) -> Tree:
    """
    Start the tree and return it when it is up; agents are started, and connected, from then on.

    Args:
        services: Makes what stands beside the poller's own parts under the root.
    Raises:
        StartFailed: A part could not start (a bug: what the outside does never prevents a start).
    """
    env, config = poller.env, poller.config
    system = System(emit=env.emit, clock=env.clock.monotonic, random=env.rng.random)
    env.emit(
        PollerStarted(
            version=__version__,
            poller_id=config.poller_id,
            agents=len(poller.slots),
            checks=sum(len(slot.checks) for slot in poller.slots.values()),
            core_address=config.core_address,
            poll_interval_s=config.poll_interval_s,
        )
    )
    root = supervisor(
        "poller",
        [_security(poller, system), _reporting(poller), _fleet(poller), *services(poller)],
        strategy=Strategy.ONE_FOR_ALL,
        intensity=3,
        period_s=60.0,
    )
    poller.tree = await start_tree(root, system)
    return poller.tree


def _book(
    config: PollerConfig, timetable: Timetable, reporter: Reporter, device_of: Callable[[str], Device], now_s: float
) -> ReportBook:
    reporting = config.reporting
    if reporting.mode is ReportMode.BATCH:
        return BatchBook(
            batch_size=reporting.batch_size,
            batch_interval_s=reporting.batch_interval_s,
            heartbeat_interval_s=config.poll_interval_s,
            now_s=now_s,
        )
    return CycleBook(
        timetable=timetable,
        reporter=reporter,
        device_of=device_of,
        deadline_s=reporting.deadline_s,
        early_interval_s=reporting.early_interval_s,
        # The longest that a living check may take from one outcome to the next, and half an interval to spare: the book
        # tells a pause of the program from silence by a quarter of an interval.
        stale_after_s=1.5 * config.poll_interval_s
        + config.scheduling.spread_window_s
        + config.scheduling.check_timeout_s,
    )


def _security(poller: Poller, system: System) -> ChildSpec:
    config = poller.config
    blocks = [config.security, *(agent.security for agent in config.agents)]
    files = {file for block in blocks if block is not None for file in _files(block)}
    core_files = frozenset(_files(config.security)) if config.security is not None else frozenset()

    def changed(files: frozenset[str]) -> None:
        roster = system.whereis(ROSTER_PATH)
        if isinstance(roster, Ref):
            roster.cast(RenewConnections(files))
        reporter = system.whereis(REPORTER_PATH)
        if isinstance(reporter, Ref) and not core_files.isdisjoint(files):
            reporter.cast(ReconnectCore())
        service = system.whereis(SERVICE_PATH)
        if isinstance(service, Ref) and not core_files.isdisjoint(files):
            service.cast(RenewCertificate())

    known: dict[str, Signature | None] = {}
    watch = actor("credentials", lambda: CredentialsWatch(files, known=known, changed=changed), shutdown_s=1.0)
    return supervisor(
        "security",
        [watch] if files else [],
        strategy=Strategy.ONE_FOR_ONE,
        intensity=10,
        period_s=60.0,
    )


def _files(security: SecurityConfig) -> tuple[str, ...]:
    if security.mode is not SecurityMode.MTLS:
        return ()
    tls = security.tls
    return tuple(file for file in (tls.cert_file, tls.key_file, tls.ca_file, tls.client_ca_file) if file)


def _reporting(poller: Poller) -> ChildSpec:
    config = poller.config
    shutdown_s = config.resilience.shutdown_timeout_s

    settings = ReporterSettings(
        core_address=config.core_address,
        security=config.security,
        head=poller.head,
        call_timeout_s=config.reporting.call_timeout_s,
        flush_timeout_s=max(shutdown_s - CLOSE_RESERVE_S, shutdown_s / 2),
    )
    reporter = actor(
        "core-reporter",
        lambda: CoreReporter(settings=settings, state=poller.reporting, timetable=poller.timetable, env=poller.env),
        shutdown_s=shutdown_s,
    )
    return supervisor("reporting", [reporter], strategy=Strategy.ONE_FOR_ONE, intensity=10, period_s=60.0)


def _fleet(poller: Poller) -> ChildSpec:
    def started() -> None:
        if not poller.polling:
            poller.polling = True
            poller.on_polling()

    return supervisor(
        "fleet",
        [
            dynamic_supervisor("agents", intensity=10, period_s=60.0, max_children=AGENTS_MAX),
            actor("roster", lambda: Roster(poller.slots, agents=AGENTS_PATH, started=started), shutdown_s=1.0),
        ],
        strategy=Strategy.REST_FOR_ONE,
        intensity=5,
        period_s=60.0,
    )
