from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serviceradar_poller.errors import GrpcCode
from serviceradar_poller.lab.errors import FaultError
from serviceradar_poller.lab.faults import (
    METHODS,
    Fault,
    FaultKind,
    expand_target,
    fault_from_json,
    parse_assignment,
    parse_fault,
)

IDS = [f"agent-{number:04d}" for number in range(1, 31)]

faults = st.builds(
    Fault,
    kind=st.sampled_from(FaultKind),
    seconds=st.floats(0, 1000),
    up_s=st.floats(0.01, 1000),
    down_s=st.floats(0.01, 1000),
    code=st.sampled_from([code for code in GrpcCode if code is not GrpcCode.OK]),
    message=st.text(),
    size_bytes=st.integers(0, 10_000_000),
    agent_id=st.text(),
    methods=st.lists(st.sampled_from(METHODS), unique=True).map(tuple),
    chunk=st.integers(0, 1000),
    per_minute=st.floats(0.01, 1000),
)


@given(faults)
def test_json_round_trip(fault: Fault) -> None:
    """What the control endpoint shows of a fault is what it takes."""
    assert fault_from_json(fault.as_json()) == fault


@given(st.text(max_size=40))
def test_any_text_is_a_fault_or_an_error(text: str) -> None:
    """No text on the command line ends in anything but a fault or FaultError."""
    with contextlib.suppress(FaultError):
        target, fault = parse_assignment(text)
        assert target
        assert fault.kind in FaultKind


def test_parse_with_values() -> None:
    """Values follow the kind, with the type that the field has."""
    fault = parse_fault("error:code=NOT_FOUND,message=gone,methods=health+status")
    assert (fault.code, fault.message, fault.methods) == (GrpcCode.NOT_FOUND, "gone", ("health", "status"))
    assert parse_fault("slow:seconds=2").seconds == 2.0
    assert parse_fault("error:code=5").code is GrpcCode.NOT_FOUND
    assert parse_fault("error:message=42").message == "42"


def test_slow_touches_everything_unless_told() -> None:
    """A slow agent is slow in its health too; an agent with errors still serves its health."""
    assert parse_fault("slow").methods == METHODS
    assert parse_fault("error").methods == ("status", "results")


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "slow:seconds=-1",
        "slow:seconds=nan",
        "slow:seconds",
        "slow:colour=red",
        "slow:seconds=soon",
        "error:code=OK",
        "error:code=0",
        "error:code=99",
        "error:methods=everything",
        "huge:size_bytes=999999999999",
        "huge:size_bytes=1.5",
        "flap:up_s=0",
        "stream_gap:chunk=-1",
        "stream_drip:per_minute=0",
        "stream_huge:size_bytes=9999999999",
        "slow:kind=2",
    ],
)
def test_bad_faults(text: str) -> None:
    """A fault that can't be meant is refused."""
    with pytest.raises(FaultError):
        parse_fault(text)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("*", IDS),
        ("agent-0003", ["agent-0003"]),
        ("agent-0010..agent-0012", ["agent-0010", "agent-0011", "agent-0012"]),
        ("agent-0029..agent-9999", ["agent-0029", "agent-0030"]),
    ],
)
def test_targets(target: str, expected: list[str]) -> None:
    """A target is one agent, a range with both ends, or all."""
    assert expand_target(target, IDS) == expected


@pytest.mark.parametrize("target", ["", "agent-0099", "agent-0005..agent-0001", "agent-0001..core-0002", "a..b"])
def test_bad_targets(target: str) -> None:
    """A target that names nobody is a mistake, not an empty choice."""
    with pytest.raises(FaultError):
        expand_target(target, IDS)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"fault": None},
        {"fault": "slow", "seconds": True},
        {"fault": "slow", "seconds": "2"},
        {"fault": "slow", "methods": "status"},
        {"fault": "error", "message": ["x"]},
        {"fault": "error", "as_json": 1},
    ],
)
def test_bad_json(body: dict[str, object]) -> None:
    """A body of the wrong shape is refused."""
    with pytest.raises(FaultError):
        fault_from_json(body)
