"""What was found is written where it belongs, and nowhere else."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks.report import (
    BEGIN,
    END,
    Promise,
    ReadmeError,
    Result,
    Table,
    as_text,
    machine,
    number,
    promises_table,
    results_section,
    update_readme,
)

TABLE = Table(title="T", columns=("a", "b"), rows=(("one", "1"), ("two|three", "22")))


def _promise(measured: float) -> Promise:
    return Promise(text="fast", limit=5.0, measured=measured, unit="s")


def test_the_readme_keeps_what_a_person_wrote(tmp_path: Path) -> None:
    """Only what stands between the markers changes; writing the same twice changes nothing more."""
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", "utf-8")
    result = Result(suite="s", tables=(TABLE,), promises=(_promise(1.0),))
    section = results_section([result], machine("2026-01-02"), "the command")
    update_readme(readme, section)
    text = readme.read_text("utf-8")
    update_readme(readme, section)
    assert readme.read_text("utf-8") == text
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "the command" in text and "2026-01-02" in text and "two\\|three" in text and "pass" in text


def test_a_readme_without_markers_is_left_alone(tmp_path: Path) -> None:
    """Without both markers there is no place for results."""
    readme = tmp_path / "README.md"
    readme.write_text(f"text {BEGIN}", "utf-8")
    with pytest.raises(ReadmeError):
        update_readme(readme, "section")
    assert readme.read_text("utf-8") == f"text {BEGIN}"


def test_the_projects_own_readme_has_its_markers() -> None:
    """The README beside the benchmarks is one that results can be written into."""
    text = (Path(__file__).parents[2] / "benchmarks" / "README.md").read_text("utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
    assert text.index(BEGIN) < text.index(END)


@pytest.mark.parametrize(("measured", "verdict"), [(4.9, "pass"), (5.0, "pass"), (5.1, "FAIL"), (math.nan, "FAIL")])
def test_a_promise_is_judged_by_its_limit(measured: float, verdict: str) -> None:
    """At the limit it holds; what was not measured keeps no promise."""
    assert promises_table([Result(suite="s", tables=(), promises=(_promise(measured),))]).rows[0][-1] == verdict


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.0001234, "0.000123"), (0.5, "0.500"), (12.345, "12.3"), (1234.5, "1,234"), (math.nan, "—")],
)
def test_numbers_have_three_digits_that_matter(value: float, text: str) -> None:
    """Neither exponents nor digits that are noise."""
    assert number(value) == text


def test_columns_stand_below_each_other() -> None:
    """Every line of a table is as long as the next."""
    lines = as_text(TABLE).splitlines()[1:]
    assert len({len(line) for line in lines}) == 1
