"""Certificate files are noticed when they change, and only when they have settled."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from serviceradar_poller.otp import System, actor, start_tree, supervisor
from serviceradar_poller.security.watch import LOOK_INTERVAL_S, CredentialsWatch, signatures
from serviceradar_poller.testing.simloop import run


def _write(file: Path, text: str) -> None:
    draft = file.with_suffix(".new")
    draft.write_text(text)
    os.replace(draft, file)


def test_a_change_is_told_once_when_it_has_settled(tmp_path: Path) -> None:
    """A file that changes between two looks is looked at again before it counts."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_text("1")

    async def main() -> list[tuple[float, frozenset[str]]]:
        loop = asyncio.get_running_loop()
        told: list[tuple[float, frozenset[str]]] = []
        spec = actor(
            "watch",
            lambda: CredentialsWatch(
                [str(cert), str(key)], known={}, changed=lambda files: told.append((round(loop.time(), 1), files))
            ),
        )
        tree = await start_tree(supervisor("root", [spec]), System(emit=lambda event: None))
        await asyncio.sleep(2 * LOOK_INTERVAL_S)
        assert told == []
        _write(cert, "22")
        await asyncio.sleep(LOOK_INTERVAL_S)
        _write(key, "key")  # not settled: the key follows the certificate
        await asyncio.sleep(3 * LOOK_INTERVAL_S)
        await tree.stop()
        return told

    told = run(main())
    assert [files for _, files in told] == [frozenset({str(cert), str(key)})]


def test_a_name_that_no_file_can_have() -> None:
    """A null character, or what is no text, in a configured name is a file that is not there, not a crash."""
    assert signatures(["/no\0file", "/no/\ud800"]) == {"/no\0file": None, "/no/\ud800": None}
