"""
Commands and exit codes; decides nothing.

    0  done; for poll-once: every check is available, every agent without checks in reach
    1  the configuration can't be used
    2  the command line can't be understood
    3  the supervision tree gave up
    4  poll-once: a check is not available, or an agent without checks is not in reach
    5  what a command had to say could not be written, or nobody read it to its end
    130  cut short by a second signal
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from serviceradar_poller import __version__
from serviceradar_poller.app.output import OutputError, discard_output, open_closed_streams, standard_output
from serviceradar_poller.errors import ConfigError, PollerError

DEFAULT_CONFIG = "/etc/serviceradar/poller.json"

EXIT_CONFIG = 1
EXIT_USAGE = 2
EXIT_OUTPUT = 5
#: Validity of development certificates.
DAYS_MAX = 36_500


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that *argv* names and return the exit code."""
    open_closed_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser(wants_lab=arguments[:1] == ["lab"])
    args = parser.parse_args(arguments)
    # Whoever started us may have left it ignored, and then no child's end can be learnt: each would count as failed.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        code: int = args.func(args)
        standard_output().flush()
    except OutputError as error:
        discard_output()
        if not error.reader_gone:
            print(f"serviceradar-poller: {error}", file=sys.stderr)
        return EXIT_OUTPUT
    except ConfigError as error:
        from serviceradar_poller.config.show import render_fatal

        print(render_fatal(error), file=sys.stderr)
        return EXIT_CONFIG
    except PollerError as error:
        print(f"serviceradar-poller: {error}", file=sys.stderr)
        return EXIT_CONFIG
    except KeyboardInterrupt:
        return 130
    return code


def _parser(*, wants_lab: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="serviceradar-poller",
        description="Polls agents on schedule and reports to core. Without a command, it runs until it is stopped.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    # One dash works too: it is how the Go poller's units and scripts call it.
    parser.add_argument("--config", "-config", default=DEFAULT_CONFIG, help="configuration file (default %(default)s)")
    parser.add_argument("--onboarding-token", "-onboarding-token", default="", help=argparse.SUPPRESS)
    parser.add_argument("--kv-endpoint", "-kv-endpoint", default="", help=argparse.SUPPRESS)
    parser.set_defaults(func=_run)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    check = commands.add_parser("check", help="validate a configuration, certificates included, and print it whole")
    check.add_argument("config_file", metavar="CONFIG")
    check.set_defaults(func=_check)

    once = commands.add_parser("poll-once", help="poll now and explain every failure, layer by layer")
    once.add_argument("config_file", metavar="CONFIG")
    once.add_argument("--agent", action="append", default=[], help="only this agent; may be given more than once")
    once.add_argument("--check", action="append", default=[], help="only checks of this service name")
    once.add_argument("--json", action="store_true", help="print JSON instead of a table")
    once.set_defaults(func=_poll_once)

    demo = commands.add_parser("demo", help="poll simulated agents, some of them faulty, and show it live")
    demo.add_argument("--agents", type=int, default=50, help="how many (default %(default)s)")
    demo.add_argument("--interval", default="5s", help="poll interval (default %(default)s)")
    demo.add_argument(
        "--seconds", type=_seconds, default=0.0, help="end after so long (default: 30 without a terminal)"
    )
    demo.set_defaults(func=_demo)

    spool = commands.add_parser("spool", help="reports that wait for core: list, show, verify, drop")
    spool.add_argument("state_dir", metavar="STATE_DIR", type=Path)
    spool.set_defaults(func=_spool, action="list", ids=[])
    actions = spool.add_subparsers(metavar="ACTION", dest="action")
    actions.add_parser("list", help="all of them (the default)")
    actions.add_parser("verify", help="read everything and say what is damaged")
    actions.add_parser("show", help="one report and its statuses").add_argument("ids", metavar="ID", type=int, nargs=1)
    drop = actions.add_parser("drop", help="delete reports; the poller must not run")
    drop.add_argument("ids", metavar="ID", type=int, nargs="+")

    certs = commands.add_parser("certs", help="make a development PKI: CA, core, agent, poller")
    certs.add_argument("directory", metavar="DIR", type=Path)
    certs.add_argument("--name", action="append", default=[], help="a further host name or address")
    certs.add_argument("--days", type=_days, default=365, help="validity (default %(default)s)")
    certs.add_argument("--overwrite", action="store_true", help="replace files that are there")
    certs.set_defaults(func=_certs)

    lab = commands.add_parser("lab", help="simulated agents and core, for tests and demonstrations")
    if wants_lab:
        # Not loaded otherwise: a poller needs neither the lab's modules nor the library that it stands on.
        from serviceradar_poller.lab.cli import add_commands

        add_commands(lab.add_subparsers(dest="lab_command", required=True))
    return parser


def _days(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and 1 <= int(text) <= DAYS_MAX):
        raise argparse.ArgumentTypeError(f"found {text!r}; accepted: 1 to {DAYS_MAX}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"found {text!r}; accepted: a number of seconds, 0 or more")
    return seconds


def _run(args: argparse.Namespace) -> int:
    from serviceradar_poller.app.run import environment, run
    from serviceradar_poller.config.loading import load

    for option in ("onboarding_token", "kv_endpoint"):
        if getattr(args, option):
            name = option.replace("_", "-")
            print(f"serviceradar-poller: --{name} is not available in this version; use a file", file=sys.stderr)
            return EXIT_USAGE
    # One that comes while the configuration is read asks for what happens anyway.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    environ = environment()
    return run(load(args.config, environ), environ)


def _check(args: argparse.Namespace) -> int:
    from serviceradar_poller.app.check import check
    from serviceradar_poller.app.run import environment

    return check(args.config_file, environment(), out=standard_output(), err=sys.stderr)


def _poll_once(args: argparse.Namespace) -> int:
    from serviceradar_poller.app.once import poll_once
    from serviceradar_poller.app.run import environment

    return poll_once(
        args.config_file,
        environment(),
        agents=args.agent,
        checks=args.check,
        as_json=args.json,
        out=standard_output(),
    )


def _demo(args: argparse.Namespace) -> int:
    from serviceradar_poller.app.demo import demo

    return demo(agents=args.agents, interval=args.interval, seconds=args.seconds)


def _spool(args: argparse.Namespace) -> int:
    from serviceradar_poller.app.spool_command import spool

    return spool(args.state_dir, args.action or "list", args.ids, out=standard_output())


def _certs(args: argparse.Namespace) -> int:
    from serviceradar_poller.lab.pki import make_pki

    make_pki(args.directory, names=args.name, days=args.days, overwrite=args.overwrite)
    made = "root.pem, core.pem, agent.pem, poller.pem and their keys"
    print(f"made a development PKI in {args.directory}: {made}", file=standard_output())
    return 0
