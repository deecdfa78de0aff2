"""What ``check`` says of the state directory, in one line each."""

from __future__ import annotations

import asyncio
import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serviceradar_poller.app.check import check
from serviceradar_poller.errors import ConfigError
from serviceradar_poller.lab.config import make_config
from serviceradar_poller.reporting.spool import Spool, SpoolSettings
from serviceradar_poller.reporting.spool.files import FOLDER, LOCK


def run_check(tmp_path: Path, state_dir: Path | str, **extra: object) -> str:
    """Return what it says on standard error when it ends with 0."""
    file = tmp_path / "poller.json"
    make_config(file, agents={"a": 1}, core_address="core:1", state_dir=state_dir, extra=extra)
    out, err = io.StringIO(), io.StringIO()
    assert check(str(file), {}, out=out, err=err) == 0
    assert '"poller_id"' in out.getvalue()
    return "\n".join(line for line in err.getvalue().splitlines() if "state_dir" in line)


def state_dir(tmp_path: Path) -> Path:
    made = tmp_path / "state"
    made.mkdir()
    return made


def test_nothing_is_said_of_a_good_directory_or_of_none(tmp_path: Path) -> None:
    """Looking changes nothing in it."""
    good = state_dir(tmp_path)
    assert run_check(tmp_path, good, reporting={"queue_bytes": 1_000_000}) == ""
    assert run_check(tmp_path, "") == ""
    assert list(good.iterdir()) == []


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path / "nowhere", "does not exist"),
        (lambda path: path / "poller.json", "is not a directory"),
        (lambda path: Path("/proc"), "takes no file"),
    ],
)
def test_a_directory_that_can_not_be_used_is_a_problem(tmp_path: Path, make: Callable[[Path], Path], said: str) -> None:
    """The poller would not start: the line says which key, what is wrong, and what is accepted."""
    with pytest.raises(ConfigError) as refused:
        run_check(tmp_path, make(tmp_path))
    (problem,) = refused.value.problems
    assert problem.path == "state_dir" and said in problem.found and "may write" in problem.accepted


def test_a_directory_that_may_not_be_written_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line names the user: ``check`` is often run by another one than the poller."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ConfigError, match=r"can't be written by user \d+"):
        run_check(tmp_path, state_dir(tmp_path))


def test_a_poller_that_uses_it_is_named(tmp_path: Path) -> None:
    """That is no problem: one checks a configuration before a restart."""

    async def main() -> str:
        spool = await Spool.open(SpoolSettings(directory=used), emit=lambda event: None, wall=time.time)
        try:
            return run_check(tmp_path, used)
        finally:
            await spool.close()

    used = state_dir(tmp_path)
    assert f"process {os.getpid()} uses it now" in asyncio.run(main())
    assert (used / FOLDER / LOCK).exists()
    assert "uses it" not in run_check(tmp_path, used)


@pytest.mark.parametrize(
    ("free", "said"), [(10**6, "less than the 16 MiB kept back"), (10**8, "the disk is full first"), (10**10, "")]
)
def test_a_disk_with_little_space_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, said: str
) -> None:
    """Nothing can be stored at all, or not as much as is configured."""
    real = os.statvfs(tmp_path)

    def statvfs(path: Any) -> os.statvfs_result:
        return os.statvfs_result([4096, 4096, *real[2:4], free // 4096, *real[5:]])

    monkeypatch.setattr(os, "statvfs", statvfs)
    found = run_check(tmp_path, state_dir(tmp_path))
    assert found.startswith("warning: ") == bool(said) and said in found
