"""Reports become calls that core can take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serviceradar_poller.logic import calls
from serviceradar_poller.logic.calls import (
    CALL_BYTES_MAX,
    Call,
    ReportHead,
    StreamCall,
    UnaryCall,
    first_agent,
    plan_calls,
    register_call,
)
from serviceradar_poller.wire.codec import encode_poller_status_chunk, encode_poller_status_request, status_size
from serviceradar_poller.wire.messages import ServiceStatus

HEAD = ReportHead(poller_id="p", partition="default", source_ip="127.0.0.1", kv_store_id="kv")

statuses = st.lists(
    st.builds(
        ServiceStatus,
        service_name=st.sampled_from(["ping", "db", "sync"]),
        service_type=st.sampled_from(["icmp", "port", "sync"]),
        agent_id=st.sampled_from(["a", "b", "c"]),
        message=st.integers(0, 400).map(lambda size: b"x" * size),
        source=st.just("getStatus"),
        kv_store_id=st.just("kv"),
    ),
    max_size=40,
)


def _plan(sample: Sequence[ServiceStatus], *, timestamp: int) -> tuple[Call, ...]:
    size = sum(map(status_size, sample))
    return plan_calls(HEAD, sample, timestamp=timestamp, size=size, size_of=status_size)


@pytest.fixture
def small_calls(monkeypatch: pytest.MonkeyPatch) -> int:
    """The limit scaled down, so that every rule is met with little data."""
    limit = 300
    monkeypatch.setattr(calls, "CALL_BYTES_MAX", limit)
    return limit


def test_every_status_is_told_exactly_once_and_no_call_is_too_large() -> None:
    """Whatever the sizes, the calls together hold each status once, whole, and each call stays in its limit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls, "CALL_BYTES_MAX", 300)

        @given(statuses)
        def check(sample: list[ServiceStatus]) -> None:
            planned = _plan(sample, timestamp=7)
            told: list[ServiceStatus] = []
            for call in planned:
                if isinstance(call, UnaryCall):
                    assert sum(map(status_size, call.report.services)) <= 300
                    assert call.report.timestamp == 7
                    told += call.report.services
                else:
                    told.append(_joined(call))
                    for chunk in call.chunks:
                        assert sum(map(status_size, chunk.services)) <= 300
                        assert chunk.timestamp == 7
            assert sorted(map(repr, told)) == sorted(map(repr, sample))

        check()


def _joined(call: StreamCall) -> ServiceStatus:
    """Join a stream's slices as core does: fields of the first, messages in order."""
    first = call.chunks[0].services[0]
    return replace(first, message=b"".join(chunk.services[0].message for chunk in call.chunks))


def test_w12_slices_keep_source_and_kv_store_id(small_calls: int) -> None:
    """W12: every slice of a cut message says where it came from."""
    status = ServiceStatus(
        service_name="s", service_type="sync", message=b"m" * 1000, source="results", kv_store_id="k"
    )
    (call,) = (c for c in _plan([status], timestamp=1) if isinstance(c, StreamCall))
    assert len(call.chunks) > 1
    for index, chunk in enumerate(call.chunks):
        (part,) = chunk.services
        assert (part.source, part.kv_store_id) == ("results", "k")
        assert chunk.kv_store_id == "kv"
        assert (chunk.chunk_index, chunk.total_chunks) == (index, len(call.chunks))
        assert chunk.is_final == (index == len(call.chunks) - 1)


def test_a_small_report_is_one_unary_call() -> None:
    """What fits goes in one call, whatever the number of statuses."""
    sample = [ServiceStatus(service_name=f"s{n}", message=b"{}") for n in range(2000)]
    (call,) = _plan(sample, timestamp=1)
    assert isinstance(call, UnaryCall)
    assert call.status_count == 2000
    assert len(encode_poller_status_request(call.report)) < CALL_BYTES_MAX + 200


def test_the_call_with_the_checks_comes_last(small_calls: int) -> None:
    """Core shows the services of the last call: the one that holds the checks, not a cut result set."""
    big = ServiceStatus(service_name="big", message=b"x" * 1000)
    small = ServiceStatus(service_name="small")
    planned = _plan([small, big], timestamp=1)
    assert isinstance(planned[-1], UnaryCall)
    assert planned[-1].report.services == (small,)


def test_nothing_to_tell_is_one_empty_call() -> None:
    """A report without statuses is still a sign of life."""
    (call,) = _plan([], timestamp=1)
    assert isinstance(call, UnaryCall)
    assert call.report.services == ()


@given(statuses)
def test_a_registering_stream_holds_each_pair_of_one_agent_once(sample: list[ServiceStatus]) -> None:
    """Core joins a stream's statuses by name and type: no pair may come twice, no two agents may mix."""
    call = register_call(HEAD, sample, timestamp=3, size_of=status_size)
    told = [status for chunk in call.chunks for status in chunk.services]
    pairs = [(status.service_name, status.service_type) for status in told]
    assert len(pairs) == len(set(pairs))
    assert len({status.agent_id for status in told}) <= 1
    assert call.chunks[-1].is_final
    assert not any(chunk.is_final for chunk in call.chunks[:-1])
    assert call.registers
    assert bool(told) == bool(sample)
    assert call == register_call(HEAD, first_agent(sample), timestamp=3, size_of=status_size)


def test_chunks_stay_below_what_core_takes() -> None:
    """A slice of a message far above the limit, encoded with everything around it, is below core's 4 MiB."""
    status = ServiceStatus(service_name="s", service_type="t", message=b"m" * (7 * 1024 * 1024))
    (call,) = (c for c in _plan([status], timestamp=1) if isinstance(c, StreamCall))
    assert [len(encode_poller_status_chunk(chunk)) < 4 * 1024 * 1024 for chunk in call.chunks] == [True] * 3


@pytest.mark.parametrize("message", [b"", b"{}", b"x" * 100_000])
def test_names_beyond_all_bounds_cost_only_their_own_status(message: bytes) -> None:
    """Where the other fields leave no room for a message, its call may be too large for core; there is one."""
    odd = ServiceStatus(service_name="n" * (CALL_BYTES_MAX + 1), agent_id="a", message=message)
    usual = ServiceStatus(service_name="ping", agent_id="b", message=b"{}")
    large, last = _plan([odd, usual], timestamp=1)
    assert isinstance(large, StreamCall) and isinstance(last, UnaryCall)
    assert b"".join(part.services[0].message for part in large.chunks) == message
    assert last.report.services == (usual,)
