from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).parent.parent / "data"


def _load(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


@pytest.fixture(scope="session")
def enrich_vectors() -> list[dict[str, Any]]:
    return _load("enrich-vectors.jsonl")


@pytest.fixture(scope="session")
def wrap_vectors() -> list[dict[str, Any]]:
    return _load("wrap-vectors.jsonl")


@pytest.fixture(scope="session")
def host_vectors() -> list[dict[str, Any]]:
    return _load("host-vectors.jsonl")


@pytest.fixture(scope="session")
def merge_vectors() -> list[dict[str, Any]]:
    return _load("merge-vectors.jsonl")
