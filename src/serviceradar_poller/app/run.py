"""
The poller as a program: configuration, environment and observation put together, run until a signal or the end.

    signal ─► stop the schedule ─► cut what is under way ─► flush to core ─► exit 0
    second signal ─► everything left is killed at once
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import sys
from collections.abc import Coroutine, Mapping, Sequence
from typing import IO, Any

from serviceradar_poller import __version__
from serviceradar_poller.app.backend import new_transport
from serviceradar_poller.app.poller import Poller, new_poller, open_store, resolve_source_ip, start_poller
from serviceradar_poller.app.service import GrpcService
from serviceradar_poller.config.loading import LoadedConfig
from serviceradar_poller.config.model import PollerConfig, SecurityMode, TlsConfig
from serviceradar_poller.env import Env, SystemClock
from serviceradar_poller.errors import CallError, ConfigError, ConfigProblem, SpoolError
from serviceradar_poller.events.polling import ConfigWarning, PollerStopped, PollerStopping
from serviceradar_poller.observe.http import HttpServer
from serviceradar_poller.observe.lag import LoopLagMonitor
from serviceradar_poller.observe.metrics import MetricsSink
from serviceradar_poller.observe.observation import Observation
from serviceradar_poller.otp import ChildSpec, LoopWatchdog, Strategy, actor, supervisor
from serviceradar_poller.reporting.spool import ReportStore
from serviceradar_poller.transport.credentials import CredentialsCache
from serviceradar_poller.transport.interfaces import interface_address
from serviceradar_poller.transport.material import inspection
from serviceradar_poller.transport.port.limits import Refusals
from serviceradar_poller.transport.resolver import SystemResolver

EXIT_OK = 0
#: The supervision tree gave up: a bug that restarts did not mend.
EXIT_GAVE_UP = 3
#: A second signal cut the stop short.
EXIT_CUT = 130

#: A loop that does not turn for so long is told, with what it was doing.
WATCHDOG_THRESHOLD_S = 0.5
#: glibc's names for its settings, malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
#: Between collections of the youngest objects. A cycle makes tens of thousands of short-lived ones and hardly any
#: garbage in cycles; the default of 700 spends several percent of a large site's CPU on looking.
GC_THRESHOLDS = (5_000, 10, 20)


def _services(poller: Poller, observation: Observation, credentials: CredentialsCache) -> Sequence[ChildSpec]:
    """Return what stands beside the poller's own parts: its gRPC server, and what lets it be watched from outside."""
    config = poller.config
    refusals = Refusals()
    _pull(poller, observation.metrics, refusals)
    return [
        supervisor(
            "service",
            [
                actor(
                    "grpc-server",
                    lambda: GrpcService(
                        config.listen_addr,
                        service_name=config.service_name,
                        security=config.security,
                        credentials=credentials,
                        env=poller.env,
                        refusals=refusals,
                    ),
                    shutdown_s=2.0,
                )
            ],
            strategy=Strategy.ONE_FOR_ONE,
            intensity=10,
            period_s=60.0,
        ),
        supervisor(
            "observe",
            [
                actor("loop-lag", lambda: LoopLagMonitor(observation.observe_lag)),
                actor(
                    "http",
                    lambda: HttpServer(
                        config.http.listen_addr,
                        sources=observation.sources(
                            lambda: poller.tree,
                            statuses=lambda: poller.reporting.sealer.accounts().by_place(),
                            spool=poller.reporting.sealer.spool_figures,
                        ),
                        emit=observation.emit,
                        control=config.http.control,
                    ),
                    shutdown_s=3.0,
                ),
            ],
            strategy=Strategy.ONE_FOR_ONE,
            intensity=10,
            period_s=60.0,
        ),
    ]


def _pull(poller: Poller, metrics: MetricsSink, refusals: Refusals) -> None:
    """Add figures that are read when they are asked for."""
    reporting = poller.reporting
    sealer, store = reporting.sealer, reporting.store
    for name, help_text, read in (
        ("statuses_polled", "Statuses cut into reports, each once.", lambda: sealer.accounts().polled),
        ("statuses_recovered", "Statuses found in the spool at the start.", lambda: sealer.accounts().recovered),
        ("statuses_delivered", "Of these two, those that core has.", lambda: sealer.accounts().delivered),
        ("statuses_rejected", "… those of reports set aside.", lambda: sealer.accounts().rejected),
        ("statuses_expired", "… those that grew too old.", lambda: sealer.accounts().expired),
        ("statuses_discarded", "… those dropped otherwise.", lambda: sum(sealer.accounts().dropped.values())),
        ("spool_write_errors", "Writes that the spool refused or could not do.", lambda: store.stats().write_errors),
        ("spool_fsyncs", "Times that the spool made the disk write.", lambda: store.stats().fsyncs),
    ):
        metrics.pull_counter(name, help_text, read)
    metrics.pull_gauge("statuses_queued", "… those that wait for core.", lambda: sealer.accounts().queued)
    metrics.pull_gauge("spool_limit_bytes", "Bound of what waits for core.", lambda: store.stats().limit_bytes)
    metrics.pull_gauge("spool_free_bytes", "Free on the spool's disk; -1: unknown.", lambda: store.stats().free_bytes)
    metrics.pull_gauge(
        "spool_deletes_owed",
        "Reports done with whose deletion the disk has not taken yet.",
        lambda: store.stats().owed,
    )
    metrics.pull_gauge(
        "spool_full_in_seconds", "Time until it is full at the rate of this backlog.", lambda: sealer.full_in_s
    )
    metrics.pull_gauge("outcomes_waiting", "Outcomes not yet in a report.", lambda: len(reporting.inbox))
    metrics.pull_counter(
        "outcomes_dropped",
        "Outcomes that had to go because the reporter did not keep up.",
        lambda: reporting.inbox.dropped_total,
    )
    metrics.pull_counter(
        "checks_silent",
        "Checks told to core as failed because they gave no outcome for too long.",
        lambda: reporting.book.stale_total,
    )
    metrics.pull_counter(
        "connects_delayed",
        "Connection attempts that waited for the limit of new connections per second.",
        lambda: poller.gate.waits_total,
    )
    metrics.pull_counter(
        "results_stored", "Large results that went into the spool.", lambda: poller.results.stored_total
    )
    metrics.pull_counter(
        "results_delayed",
        "Large results that waited because too many were being written.",
        lambda: poller.results.waits_total,
    )
    metrics.pull_gauge("results_writing", "Large results that are being written.", lambda: poller.results.writing)
    metrics.pull_counter(
        "grpc_port_refusals", "Connections and calls that the poller's own gRPC port refused.", lambda: refusals.total
    )
    metrics.pull_gauge(
        "tree_children",
        "Live children of the supervision tree.",
        lambda: poller.tree.process_count() if poller.tree is not None else 0,
    )
    # Looks at each of them: 0.2 ms for a thousand.
    metrics.pull_gauge("loop_tasks", "Tasks of the event loop that have not ended.", lambda: len(asyncio.all_tasks()))
    # What is in use, where resident memory is what was: some microseconds, a step for each 16 KiB.
    metrics.pull_gauge(
        "python_blocks",
        "Blocks of memory that objects take, garbage and free lists among them.",
        sys.getallocatedblocks,
    )


def _tune_malloc() -> None:
    """
    Keep glibc from holding on to what is free: several MiB of a large site.

    One heap for each of gRPC's threads only fragments. Buffers of whole reports go back to the system when they are
    freed; by default glibc learns from the first of them to keep the next ones.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 2)
        mallopt(M_MMAP_THRESHOLD, 128 * 1024)
        mallopt(M_TRIM_THRESHOLD, 128 * 1024)


def run(loaded: LoadedConfig, environ: Mapping[str, str]) -> int:
    """Run the poller until it is told to stop; return the exit code."""
    stream = sys.stderr if loaded.config.logging.output == "stderr" else sys.stdout
    _tune_malloc()
    with asyncio.Runner() as runner:
        return runner.run(_main(loaded, environ, stream))


async def _main(loaded: LoadedConfig, environ: Mapping[str, str], stream: IO[Any]) -> int:
    loop = asyncio.get_running_loop()
    config = loaded.config
    clock = SystemClock()
    observation = Observation(
        stream,
        logging=config.logging,
        clock=clock,
        version=__version__,
        poller_id=config.poller_id,
        component=config.service_name or "poller",
        human=stream.isatty(),
    )
    observation.expect_agents(config.agents)
    watchdog = LoopWatchdog(emit=observation.emit, threshold_s=WATCHDOG_THRESHOLD_S)
    resolver = SystemResolver(emit=observation.emit)
    transport = new_transport(config.transport, clock=clock, resolver=resolver)
    env = Env(
        transport=transport,
        resolver=resolver,
        emit=observation.emit,
        clock=clock,
        environ=environ,
        interface_address=interface_address,
    )
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    loop.add_signal_handler(signal.SIGHUP, env.emit, _no_reload(loaded))
    observation.bind(loop)
    watchdog.start(loop)
    try:
        for warning in loaded.warnings:
            env.emit(warning)
        survey = certificate_warnings(config, transport.credentials, source=loaded.sources[-1])
        for warning in await _unless_told(signals, survey):
            env.emit(warning)
        source = await resolve_source_ip(config, env)
        for text in source.warnings:
            env.emit(ConfigWarning(source=loaded.sources[-1], path="source_ip", text=text))
        store = await _open_store(loaded, env)
        try:
            poller = new_poller(config, env, source_ip=source.address, store=store)
            return await _live(poller, observation, transport.credentials, signals)
        finally:
            await store.close()
    finally:
        watchdog.stop()
        observation.close()


async def _open_store(loaded: LoadedConfig, env: Env) -> ReportStore:
    """Open the store of reports. Raises ConfigError."""
    config = loaded.config
    try:
        return await open_store(config, env)
    except SpoolError as error:
        problem = ConfigProblem(
            source=loaded.sources[-1],
            path="state_dir",
            found=f"{config.state_dir!r}, which can't be used: {error}",
            accepted='an existing directory that only this poller writes to, or "" to keep reports in memory only',
        )
        raise ConfigError((problem,)) from error


async def _live(
    poller: Poller, observation: Observation, credentials: CredentialsCache, signals: asyncio.Queue[signal.Signals]
) -> int:
    """Run the tree until a signal or its own end; return the exit code."""
    env = poller.env
    poller.on_polling = _tune_gc
    tree = await start_poller(poller, services=lambda made: _services(made, observation, credentials))
    async with asyncio.TaskGroup() as group:
        ended = group.create_task(tree.wait(), name="tree")
        told = group.create_task(signals.get(), name="signal")
        await asyncio.wait({ended, told}, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            told.cancel()
            env.emit(PollerStopping(cause=f"the tree gave up: {ended.result()}"))
            return EXIT_GAVE_UP
        begin_s = env.clock.monotonic()
        env.emit(PollerStopping(cause=told.result().name))
        cut = group.create_task(_cut_on_signal(signals, tree.stop_now), name="second-signal")
        await tree.stop()
        cut.cancel()
    env.emit(PollerStopped(reports_unsent=poller.reporting.sealer.reports, duration_s=env.clock.monotonic() - begin_s))
    code = EXIT_CUT if cut.done() and not cut.cancelled() else EXIT_OK
    if tree.zombies():
        # They swallow every cancellation: the interpreter would wait for them for ever.
        await poller.reporting.store.close()
        observation.close()
        os._exit(code)
    return code


def _no_reload(loaded: LoadedConfig) -> ConfigWarning:
    return ConfigWarning(
        source=loaded.sources[-1],
        path="",
        text="SIGHUP: this version reads its configuration at start only",
    )


async def _cut_on_signal(signals: asyncio.Queue[signal.Signals], stop_now: Any) -> None:
    await signals.get()
    stop_now()


async def _unless_told(
    signals: asyncio.Queue[signal.Signals], warnings: Coroutine[Any, Any, list[ConfigWarning]]
) -> list[ConfigWarning]:
    """Wait for *warnings*, which may take long, but for no longer than to a signal, which stays for who acts on it."""
    async with asyncio.TaskGroup() as group:
        found = group.create_task(warnings, name="certificates")
        told = group.create_task(signals.get(), name="signal")
        await asyncio.wait({found, told}, return_when=asyncio.FIRST_COMPLETED)
        found.cancel()
        told.cancel()
    if not told.cancelled():
        signals.put_nowait(told.result())
    return [] if found.cancelled() else found.result()


async def certificate_warnings(
    config: PollerConfig, credentials: CredentialsCache, *, source: str
) -> list[ConfigWarning]:
    """Return what there is to say about every certificate in use, problems included; *credentials* keeps the rest."""
    blocks = {"security": config.security} | {
        f"agents.{agent.name}.security": agent.security for agent in config.agents if not agent.problems
    }
    places: dict[TlsConfig, str] = {}
    for path, block in blocks.items():
        if block is not None and block.mode is SecurityMode.MTLS:
            places.setdefault(block.tls, path)  # each file once
    warnings: list[ConfigWarning] = []
    for (_, path), result in zip(places.items(), await credentials.survey(tuple(places)), strict=True):
        if isinstance(result, CallError):
            warnings.append(ConfigWarning(source=source, path=path, text=result.detail))
            continue
        found = inspection(result, path=path, source=source)
        warnings += found.warnings
        warnings += [
            ConfigWarning(
                source=problem.source, path=problem.path, text=f"{problem.found}; accepted: {problem.accepted}"
            )
            for problem in found.problems
        ]
    return warnings


def _tune_gc() -> None:
    """Take what start-up built, which stays for years, out of every later collection."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def environment() -> Mapping[str, str]:
    """Return the process's environment variables."""
    return dict(os.environ)
