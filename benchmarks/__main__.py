"""
Run the benchmarks one after the other, print what they found, and keep it.

    python -m benchmarks [kernel overhead calls poller profile recovery isolation spool streams outage
                          soak] [--quick | --long] [--write]

The exit code is 0 when every promise holds, 1 when one doesn't, 2 when the command line can't be understood.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import calls, isolation, kernel, outage, overhead, poller, profile, recovery, soak, spool, streams
from benchmarks.report import (
    Promise,
    Result,
    Table,
    as_text,
    keep,
    machine,
    number,
    promises_table,
    results_section,
    update_readme,
)

HERE = Path(__file__).parent
#: Of a core, for ten thousand actors that have nothing to do.
KERNEL_IDLE_PERCENT_MAX = 0.1
KERNEL_IDLE = "idle"


def run_kernel(*, quick: bool = False) -> Result:
    """Run the kernel's benchmark, which prints for itself when it is run alone; quick: one round."""
    rounds, kernel.ROUNDS = kernel.ROUNDS, 1 if quick else kernel.ROUNDS
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            figures = kernel.main()
    finally:
        kernel.ROUNDS = rounds
    rows = tuple(
        (
            f"{figure.name}, {figure.unit}",
            number(figure.kernel),
            number(figure.plain),
            number(figure.kernel / figure.plain) if figure.plain > 0 else "—",
        )
        for figure in figures
    )
    idle = next(figure for figure in figures if figure.name.startswith("CPU of") and KERNEL_IDLE in figure.name)
    promise = Promise(
        text=f"{idle.name} actors of the supervision kernel",
        limit=KERNEL_IDLE_PERCENT_MAX,
        measured=idle.kernel,
        unit=idle.unit,
    )
    return Result(
        suite="kernel",
        tables=(
            Table(
                title="The supervision kernel and plain asyncio that does the same minimum",
                columns=("", "kernel", "plain", "ratio"),
                rows=rows,
            ),
        ),
        promises=() if quick else (promise,),
        raw={"figures": [dataclasses.asdict(figure) for figure in figures]},
    )


#: In the order in which they run.
SUITES: dict[str, Callable[..., Result]] = {
    "kernel": run_kernel,
    "overhead": overhead.main,
    "calls": calls.main,
    "poller": poller.main,
    "profile": profile.main,
    "recovery": recovery.main,
    "isolation": isolation.main,
    "spool": spool.main,
    "streams": streams.main,
    "outage": outage.main,
    "soak": soak.main,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run what *argv* names and return the exit code."""
    args = _parser().parse_args(argv)
    unknown = set(args.names) - SUITES.keys()
    if unknown or (args.write and args.quick) or (args.write and args.names):
        what = f"no suite is called {', '.join(sorted(unknown))}" if unknown else "--write is for whole runs"
        print(f"benchmarks: {what}; suites: {', '.join(SUITES)}", file=sys.stderr)
        return 2
    results: list[Result] = []
    for name in args.names or SUITES:
        began_s = time.monotonic()
        print(f"-- {name}", file=sys.stderr, flush=True)
        # The only suite whose subject is time.
        options = {"long": True} if args.long and name == "outage" else {}
        result = SUITES[name](quick=args.quick, **options)
        results.append(dataclasses.replace(result, took_s=time.monotonic() - began_s))
        for table in result.tables:
            print(as_text(table), end="\n\n", flush=True)
    if any(result.promises for result in results):
        print(as_text(promises_table(results)), end="\n\n")
    print(f"took {', '.join(f'{result.suite} {result.took_s:.0f} s' for result in results)}")
    facts = machine(args.date)
    if args.write:
        update_readme(HERE / "README.md", results_section(results, facts, ".venv/bin/python -m benchmarks --write"))
    if args.write or args.results:
        folder = Path(args.results or HERE / "results")
        folder.mkdir(parents=True, exist_ok=True)
        keep(folder / f"{args.date}.json", results, facts)
    return 0 if all(promise.kept for result in results for promise in result.promises) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure the poller.")
    parser.add_argument("names", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)}; default: all")
    parser.add_argument(
        "--quick", action="store_true", help="small and short: shows that the benchmarks themselves run"
    )
    parser.add_argument("--long", action="store_true", help="let core be away for ten minutes instead of two")
    parser.add_argument(
        "--write", action="store_true", help="write the results into benchmarks/README.md, and keep them"
    )
    parser.add_argument("--results", metavar="DIR", help="keep the measurements here (default with --write: results/)")
    parser.add_argument("--date", default=f"{datetime.now(UTC):%Y-%m-%d}", help="of the run (default: today)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
