from __future__ import annotations

from pathlib import Path

import pytest

from serviceradar_poller.testing.conformance_npm import InstallError, UnreachedError, install


def npm_that(folder: Path, script: str) -> str:
    """Write a program that does what npm would."""
    path = folder / "npm"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("word", ["ERR!", "error"])
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("ENOTFOUND", UnreachedError),
        ("EAI_AGAIN", UnreachedError),
        ("ECONNREFUSED", UnreachedError),
        ("ECONNRESET", UnreachedError),
        ("ETIMEDOUT", UnreachedError),
        ("ENETUNREACH", UnreachedError),
        ("EUSAGE", InstallError),
        ("ETARGET", InstallError),
        ("EINTEGRITY", InstallError),
    ],
)
def test_failures(tmp_path: Path, word: str, code: str, kind: type[Exception]) -> None:
    """A registry that can't be reached is told apart from everything that is wrong here, as old and new npm say it."""
    npm = npm_that(tmp_path, f"echo 'npm warn x' >&2; echo 'npm {word} code {code}' >&2; exit 1")
    with pytest.raises(kind, match=code):
        install(npm, tmp_path)


def test_failure_without_a_code(tmp_path: Path) -> None:
    """What npm gives no code for is a fault."""
    with pytest.raises(InstallError, match="no such option"):
        install(npm_that(tmp_path, "echo 'no such option' >&2; exit 1"), tmp_path)


def test_too_slow(tmp_path: Path) -> None:
    """An npm that does not come to an end counts as one that reaches nothing."""
    with pytest.raises(UnreachedError, match=r"within 0\.1 s"):
        install(npm_that(tmp_path, "exec sleep 60"), tmp_path, timeout_s=0.1)


def test_success(tmp_path: Path) -> None:
    """What npm installs, it installs where it was told."""
    install(npm_that(tmp_path, 'echo "$1" > done'), tmp_path)
    assert (tmp_path / "done").read_text() == "ci\n"
