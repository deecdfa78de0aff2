"""Sites for tests of the whole program, one per test, over mutual TLS."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serviceradar_poller.lab.pki import make_pki
from serviceradar_poller.testing.site import MakeSite, Site, make_site


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    make_pki(folder)
    return folder


@pytest.fixture
def site(pki: Path, tmp_path: Path) -> Iterator[MakeSite]:
    """Make sites; every process ends with the test, however that ends."""
    with contextlib.ExitStack() as stack:
        count = 0

        def make(agents: int = 3, *, cert_dir: Path | None = None, **options: Any) -> Site:
            nonlocal count
            count += 1
            directory = tmp_path / f"site-{count}"
            directory.mkdir()
            return make_site(stack, directory, agents, cert_dir=cert_dir or pki, **options)

        yield make
