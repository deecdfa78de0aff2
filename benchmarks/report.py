"""Hold what a suite found, and write it as text for a terminal and as Markdown for the README."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import grpc
import msgspec

BEGIN = "<!-- results: begin (written by the command below; edits are lost) -->"
END = "<!-- results: end -->"
MIB = 1024 * 1024


class ReadmeError(Exception):
    """The README lacks the markers between which results are written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Figures as they are shown; every row has a cell for each column."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What the poller is held to: *measured* is to be below *limit*, both in *unit*. NaN keeps no promise."""

    text: str
    limit: float
    measured: float
    unit: str

    @property
    def kept(self) -> bool:
        """Whether it holds."""
        return self.measured <= self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """
    What one suite found.

    Attributes:
        raw: Every single measurement, plain values.
        took_s: How long the suite ran.
    """

    suite: str
    tables: tuple[Table, ...]
    promises: tuple[Promise, ...] = ()
    raw: dict[str, object] = field(default_factory=dict)
    took_s: float = 0.0


def number(value: float, digits: int = 3) -> str:
    """Return *value* with *digits* significant digits, without an exponent; a dash for what isn't known."""
    if math.isnan(value):
        return "—"
    if math.isinf(value):
        return "∞"
    if value == 0:
        return "0"
    decimals = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    return f"{value:,.{decimals}f}"


def promises_table(results: Sequence[Result]) -> Table:
    """Return all promises with what was measured."""
    rows = tuple(
        (p.text, f"≤ {number(p.limit)} {p.unit}", f"{number(p.measured)} {p.unit}", "pass" if p.kept else "FAIL")
        for result in results
        for p in result.promises
    )
    return Table(title="Promises", columns=("promise", "limit", "measured", ""), rows=rows)


def as_text(table: Table) -> str:
    """Return *table* in aligned columns."""
    lines = [table.columns, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]
    body = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    body.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([f"== {table.title}", *body, *([table.notes] if table.notes else [])])


def as_markdown(table: Table) -> str:
    """Return *table* as a section of Markdown."""
    lines = [f"### {table.title}", "", _row(table.columns), _row(["---", *["---:"] * (len(table.columns) - 1)])]
    lines += [_row(row) for row in table.rows]
    if table.notes:
        lines += ["", table.notes]
    return "\n".join(lines)


def machine(date: str) -> dict[str, str]:
    """Return the facts without which the figures mean nothing."""
    return {
        "date": date,
        "cores": str(os.cpu_count()),
        "processor": _processor(),
        "Python": platform.python_version(),
        "grpcio": grpc.__version__,
        "kernel": platform.release().partition("-")[0],
    }


def results_section(results: Sequence[Result], facts: dict[str, str], command: str) -> str:
    """Return the generated part of the README."""
    parts = [
        f"Made by `{command}` in {sum(result.took_s for result in results) / 60:.0f} min.",
        "; ".join(f"{name}: {value}" for name, value in facts.items()) + ".",
        as_markdown(promises_table(results)),
        *(as_markdown(table) for result in results for table in result.tables),
    ]
    return "\n\n".join(parts)


def update_readme(path: Path, section: str) -> None:
    """
    Replace what stands between the markers.

    Raises:
        ReadmeError: A marker is missing.
    """
    text = path.read_text("utf-8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ReadmeError(f"{path} lacks the lines {BEGIN!r} and {END!r}")
    path.write_text(f"{head}{begin}\n\n{section}\n\n{end}{tail}", "utf-8")


def keep(path: Path, results: Sequence[Result], facts: dict[str, str]) -> None:
    """Write every measurement as JSON; what isn't a number becomes null."""
    body = {
        "machine": facts,
        "suites": {
            result.suite: {
                "took_s": round(result.took_s, 1),
                "promises": [{**asdict(promise), "kept": promise.kept} for promise in result.promises],
                **result.raw,
            }
            for result in results
        },
    }
    path.write_bytes(msgspec.json.format(msgspec.json.encode(_rounded(body)), indent=1) + b"\n")


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _rounded(value: object) -> object:
    """Return *value* with microseconds as the finest: what is beyond that is noise."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return value


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
