"""Install what the JavaScript server of conformance tests needs, and tell an unreachable registry from a fault."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Final

_TIMEOUT_S: Final = 180.0
#: Codes of npm that say that no registry answered: nothing of ours is wrong.
_UNREACHED: Final = frozenset(
    {
        "EAI_AGAIN",
        "ECONNREFUSED",
        "ECONNRESET",
        "EHOSTUNREACH",
        "ENETUNREACH",
        "ENOTFOUND",
        "ERR_SOCKET_TIMEOUT",
        "ETIMEDOUT",
    }
)
# npm 9 writes ERR!, npm 10 and later error.
_CODE: Final = re.compile(r"^npm (?:ERR!|error) code (\S+)$", re.MULTILINE)


class UnreachedError(Exception):
    """No registry answered."""


class InstallError(Exception):
    """npm refused for another cause: a wrong lock file, a version that is gone, a wrong hash."""


def install(npm: str, folder: Path, *, timeout_s: float = _TIMEOUT_S) -> None:
    """
    Install what *folder*'s lock file names.

    Raises:
        UnreachedError: No registry answered, in time or at all.
        InstallError: npm failed otherwise.
    """
    command = [npm, "ci", "--ignore-scripts", "--prefer-offline", "--no-audit", "--no-fund"]
    command += ["--fetch-retries=2", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=5000"]
    try:
        done = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise UnreachedError(f"npm was not ready within {timeout_s:g} s") from error
    if done.returncode:
        found = _CODE.search(done.stderr)
        if found is not None and found[1] in _UNREACHED:
            raise UnreachedError(f"npm reaches no registry: {found[1]}")
        raise InstallError(done.stderr[-2000:])
