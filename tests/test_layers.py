"""The layering that pyproject.toml states is the layering of the code."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

ROOT = Path(__file__).parent.parent


@pytest.fixture
def loggers() -> Iterator[None]:
    """Let loggers be heard again: import-linter silences all that there are, as if it were alone in its process."""
    known = [each for each in logging.root.manager.loggerDict.values() if isinstance(each, logging.Logger)]
    before = [each.disabled for each in known]
    yield
    for logger, disabled in zip(known, before, strict=True):
        logger.disabled = disabled


@pytest.mark.slow
@pytest.mark.usefixtures("loggers")
def test_imports_keep_the_contracts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Imports go down only, the kernel knows nothing of polling, decisions are pure, generated code stays hidden."""
    monkeypatch.chdir(ROOT)
    status = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert status == EXIT_STATUS_SUCCESS, capsys.readouterr().out


def test_no_file_is_too_long() -> None:
    """A module of more than 500 lines has more than one responsibility."""
    long = {
        str(path.relative_to(ROOT)): count
        for path in (ROOT / "src").rglob("*.py")
        if "pb" not in path.parts and (count := len(path.read_text().splitlines())) > 500
    }
    assert not long
