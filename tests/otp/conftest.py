"""Every test of the kernel runs twice: with actors that keep their task, and with actors that rest."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import pytest

from serviceradar_poller.otp import Actor


@pytest.fixture(params=[False, True], ids=["awake", "rests"], autouse=True)
def rests(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether actors rest where they don't say otherwise."""
    with mock.patch.object(Actor, "rests", request.param):
        yield request.param
