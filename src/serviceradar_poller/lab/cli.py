"""
Run the lab's peers from the command line: ``lab agents``, ``lab core``, ``lab certs``.

Each peer prints one JSON line when it is ready and stops cleanly on SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from serviceradar_poller.errors import PollerError
from serviceradar_poller.lab.errors import LabError
from serviceradar_poller.lab.faults import parse_assignment
from serviceradar_poller.lab.pki import make_pki

if TYPE_CHECKING:
    from argparse import _SubParsersAction

#: Descriptors that a fleet needs beyond one listener and one connection an agent.
SPARE_DESCRIPTORS = 128


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Mount ``lab`` with its commands; each sets ``func``, which takes the arguments and returns an exit code."""
    lab = subparsers.add_parser("lab", help="simulated agents and core, for tests and demonstrations")
    add_commands(lab.add_subparsers(dest="lab_command", required=True))


def add_commands(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Mount ``agents``, ``core`` and ``certs``."""
    agents = commands.add_parser("agents", help="serve simulated agents on loopback")
    agents.add_argument("--count", type=int, default=3, help="how many (default %(default)s)")
    agents.add_argument("--base-port", type=int, default=0, help="port of the first; 0: free ports (default)")
    agents.add_argument("--cert-dir", help="mutual TLS with agent.pem, agent-key.pem, root.pem; default: plaintext")
    agents.add_argument("--name-pattern", default="agent-{:04d}", help="ids, numbered from 1 (default %(default)s)")
    agents.add_argument("--sync", action="append", default=[], metavar="TARGET", help="these are sync services")
    agents.add_argument("--devices", type=int, help="devices that a sync returns; default: none")
    agents.add_argument("--sweep-hosts", type=int, help="hosts that a sweep returns; default: no sweep service")
    agents.add_argument("--results-period", type=float, default=0.0, help="seconds between changes of results")
    agents.add_argument("--fault", action="append", default=[], metavar="TARGET=FAULT", help="agent-0003=hang_status")
    agents.add_argument("--ports-file", help="write {id: port} as JSON here")
    _add_common(agents)
    agents.set_defaults(func=run_agents)

    core = commands.add_parser("core", help="serve a simulated core on loopback")
    core.add_argument("--port", type=int, default=0, help="0: a free one (default)")
    core.add_argument("--cert-dir", help="mutual TLS with core.pem, core-key.pem, root.pem; default: plaintext")
    core.add_argument("--record", choices=["summary", "full"], default="full", help="default %(default)s")
    core.add_argument("--keep-reports", type=int, default=10_000, help="default %(default)s")
    core.add_argument("--keep-statuses", type=int, default=50_000, help="default %(default)s")
    core.add_argument("--strict-registration", action="store_true", help="drop reports of unknown pollers silently")
    core.add_argument("--known-poller", action="append", default=[], metavar="ID")
    core.add_argument("--receive-bytes-max", type=int, default=4 * 1024 * 1024, help="default %(default)s")
    _add_common(core)
    core.set_defaults(func=run_core)

    certs = commands.add_parser("certs", help="make a development PKI")
    certs.add_argument("directory")
    certs.add_argument("--name", action="append", default=[], help="a further host name or address")
    certs.add_argument("--days", type=int, default=365)
    certs.add_argument("--overwrite", action="store_true")
    certs.set_defaults(func=run_certs)


def run_agents(args: argparse.Namespace) -> int:
    """Serve agents until a signal; return the exit code."""
    return _run(_agents, args)


def run_core(args: argparse.Namespace) -> int:
    """Serve core until a signal; return the exit code."""
    return _run(_core, args)


def run_certs(args: argparse.Namespace) -> int:
    """Make a development PKI; return the exit code."""
    try:
        make_pki(args.directory, names=args.name, days=args.days, overwrite=args.overwrite)
    except PollerError as error:
        sys.stderr.write(f"certs: {error}\n")
        return 1
    return 0


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--control-port", type=int, default=0, help="port of the control endpoint; 0: a free one")
    parser.add_argument("--stop-on-eof", action="store_true", help="stop when standard input ends")


def _run(serve: _Serve, args: argparse.Namespace) -> int:
    try:
        asyncio.run(_until_stopped(serve, args))
    except PollerError as error:
        sys.stderr.write(f"lab: {error}\n")
        return 1
    return 0


async def _until_stopped(serve: _Serve, args: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if args.stop_on_eof:
        _watch_stdin(loop, stop)
    async with serve(args) as ready:
        # What lives now lives to the end: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        sys.stdout.write(msgspec.json.encode({"ready": True, "pid": os.getpid(), **ready}).decode() + "\n")
        sys.stdout.flush()
        await stop.wait()


def _watch_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    descriptor = sys.stdin.fileno()

    def readable() -> None:
        if not os.read(descriptor, 4096):
            loop.remove_reader(descriptor)
            stop.set()

    loop.add_reader(descriptor, readable)


@contextlib.asynccontextmanager
async def _agents(args: argparse.Namespace) -> AsyncIterator[dict[str, object]]:
    # Here, not above: the rest of the lab works without the extra.
    from serviceradar_poller.lab.agents import Fleet, FleetSettings
    from serviceradar_poller.lab.agents_control import agents_app
    from serviceradar_poller.lab.control import ControlServer

    _raise_descriptor_limit(2 * args.count + SPARE_DESCRIPTORS)
    fleet = Fleet(
        FleetSettings(
            count=args.count,
            base_port=args.base_port,
            cert_dir=args.cert_dir,
            name_pattern=args.name_pattern,
            sync=args.sync,
            devices=args.devices,
            sweep_hosts=args.sweep_hosts,
            results_period_s=args.results_period,
            faults=[parse_assignment(text) for text in args.fault],
        )
    )
    try:
        if args.ports_file:
            _write_json(Path(args.ports_file), fleet.ports)
        control = _control(ControlServer, agents_app(fleet), args.control_port)
        await control.start()
        try:
            yield {"control": control.url, "ports": list(fleet.ports.values())}
        finally:
            await control.stop()
    finally:
        fleet.close()


@contextlib.asynccontextmanager
async def _core(args: argparse.Namespace) -> AsyncIterator[dict[str, object]]:
    from serviceradar_poller.lab.control import ControlServer
    from serviceradar_poller.lab.core import SimulatedCore
    from serviceradar_poller.lab.core_control import core_app
    from serviceradar_poller.lab.recording import Record, Recorder

    recorder = Recorder(
        record=Record(args.record),
        reports_max=args.keep_reports,
        statuses_max=args.keep_statuses,
        strict=args.strict_registration,
        known_pollers=args.known_poller,
    )
    core = SimulatedCore(recorder, port=args.port, cert_dir=args.cert_dir, receive_bytes_max=args.receive_bytes_max)
    try:
        await core.start()
        control = _control(ControlServer, core_app(core), args.control_port)
        await control.start()
        try:
            yield {"control": control.url, "address": f"127.0.0.1:{core.port}", "ports": [core.port]}
        finally:
            await control.stop()
    finally:
        await core.close()


def _control(server: type[ControlServer], app: Starlette, port: int) -> ControlServer:
    try:
        return server(app, port=port)
    except (OSError, OverflowError) as error:
        raise LabError(f"the control endpoint can't have port {port}: {error}") from error


def _raise_descriptor_limit(needed: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise LabError(f"{needed} file descriptors are needed, the limit is {hard}")
    if soft != resource.RLIM_INFINITY and needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _write_json(path: Path, body: object) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(msgspec.json.encode(body))
        partial.replace(path)
    except OSError as error:
        raise LabError(f"can't write {path}: {error}") from error


if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.applications import Starlette

    from serviceradar_poller.lab.control import ControlServer

    _Serve = Callable[[argparse.Namespace], contextlib.AbstractAsyncContextManager[dict[str, object]]]
