"""What core joins from the parts of a result is the message that went in, however it was cut."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serviceradar_poller.logic.calls import ReportHead
from serviceradar_poller.logic.merge import MergeLimits
from serviceradar_poller.logic.outcome import CheckSubject, Device, Reporter
from serviceradar_poller.logic.streamed import feed, finish, new_streamed
from serviceradar_poller.reporting import results
from serviceradar_poller.reporting.outgoing import Outgoing
from serviceradar_poller.reporting.results import StoredResults
from serviceradar_poller.reporting.sealing import Sealer
from serviceradar_poller.reporting.spool import MemoryStore, Spool, SpoolSettings
from serviceradar_poller.testing.fakes import FakeTransport, fake_env
from serviceradar_poller.wire.codec import decode_poller_status_chunk
from serviceradar_poller.wire.messages import PollerStatusChunk, ResultsChunk, ServiceStatus

HEAD = ReportHead(poller_id="p1", partition="site-a", source_ip="10.0.0.1", kv_store_id="hub")
STATUS = ServiceStatus(
    service_name="sync",
    available=True,
    service_type="sync",
    response_time=5,
    agent_id="a",
    poller_id="p1",
    partition="site-a",
    source="results",
    kv_store_id="hub",
)


async def stored(pieces: list[bytes], status: ServiceStatus = STATUS) -> list[PollerStatusChunk]:
    """Write *pieces* as a result; return the chunks that core would get."""
    env = fake_env(FakeTransport(), [])
    store = MemoryStore(SpoolSettings(directory=Path()), emit=env.emit, wall=env.clock.wall)
    kept = StoredResults(store, Sealer(store, env), env, head=lambda: HEAD)
    writer = await kept.begin(("a", "sync:sync"), status)
    for piece in pieces:
        await writer.add(piece)
    await writer.seal(sequence="9")
    assert (kept.writing, store.stats().writing_bytes) == (0, 0)
    report = await store.head()
    assert report is not None and (report.kind, report.fresh) == ("result", 1)
    call = Outgoing(store, report).front()
    assert call is not None and call.kind == "stream"
    chunks = [decode_poller_status_chunk(part) async for part in call.parts()]
    await store.accepted(report.id)
    assert store.positions() == {("a", "sync:sync"): "9"}
    return chunks


def joined(chunks: list[PollerStatusChunk]) -> bytes:
    """Join the parts as core does; every chunk says the same but for its place."""
    for index, chunk in enumerate(chunks):
        (status,) = chunk.services
        assert (chunk.chunk_index, chunk.total_chunks) == (index, len(chunks))
        assert chunk.is_final == (index == len(chunks) - 1)
        assert (chunk.poller_id, chunk.partition, chunk.source_ip) == ("p1", "site-a", "10.0.0.1")
        assert (chunk.kv_store_id, chunk.agent_id, chunk.timestamp) == ("hub", "a", chunks[0].timestamp)
        assert (status.agent_id, status.source, status.response_time) == ("a", "results", 5)
        assert (status.service_name, status.service_type, status.available) == ("sync", "sync", True)
        assert (status.poller_id, status.partition, status.kv_store_id) == ("p1", "site-a", "hub")
        assert status.message
    return b"".join(chunk.services[0].message for chunk in chunks)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=12).filter(any), st.integers(1, 50))
def test_parts_are_the_message(pieces: list[bytes], part_bytes: int) -> None:
    """Pieces of any size come out in full parts, the last one apart, and joined they are the message."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "PART_BYTES", part_bytes)
        chunks = asyncio.run(stored(pieces))
    message = b"".join(pieces)
    assert joined(chunks) == message
    sizes = [len(chunk.services[0].message) for chunk in chunks]
    assert sizes == [part_bytes] * (len(sizes) - 1) + [len(message) - part_bytes * (len(sizes) - 1)]


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.integers() | st.text(max_size=5), max_size=5), min_size=1, max_size=6),
    st.sampled_from(["sync", "sweep", "snmp"]),
    st.integers(1, 40),
)
def test_core_s_document_is_the_merged_one(data: list[list[object]], service_type: str, part_bytes: int) -> None:
    """From the agent's chunks to core's join, the message is the one that merging gives, for any chunking."""

    subject = CheckSubject(
        agent="a", key="sync:sync", service_name="lan", service_type=service_type, details="", is_results=True
    )
    state = new_streamed(
        subject,
        Reporter(poller_id="p1", partition="site-a", kv_store_id="hub"),
        Device(ip="10.0.0.2", host="h"),
        last_sequence="",
        limits=MergeLimits(),
    )
    pieces = []
    for index, each in enumerate(data):
        body = json.dumps({"network": "n", "hosts": each} if service_type == "sweep" else each).encode()
        chunk = ResultsChunk(data=body, chunk_index=index, total_chunks=len(data), is_final=index == len(data) - 1)
        state, piece = feed(state, chunk)
        pieces.append(piece)
    end, result = finish(state)
    pieces.append(end)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "PART_BYTES", part_bytes)
        chunks = asyncio.run(stored(pieces))
    message = joined(chunks)
    assert len(message) == result.message_bytes
    document = json.loads(message)
    if service_type == "sweep" or service_type == "snmp":
        document = document["data"]
    assert (document["hosts"] if service_type == "sweep" else document) == [item for each in data for item in each]


def test_a_part_stays_below_what_core_takes() -> None:
    """With long names and full parts, an encoded part stays far below core's 4 MiB."""

    async def main() -> None:
        rng = random.Random(1)
        chunks = await stored([rng.randbytes(5_000_000)])
        assert len(chunks) == 5
        assert all(len(chunk.services[0].message) <= results.PART_BYTES for chunk in chunks)

    asyncio.run(main())


@pytest.mark.slow
@pytest.mark.parametrize("turns", range(0, 60, 3))
def test_a_cancel_at_any_moment_leaves_nothing_on_disk(turns: int, tmp_path: Path) -> None:
    """An asker that is cancelled amid a write on the spool's thread leaves no bytes counted, stored or in a place."""

    async def main() -> None:
        env = fake_env(FakeTransport(), [])
        spool = await Spool.open(SpoolSettings(directory=tmp_path, reserve_bytes=0), emit=env.emit, wall=env.clock.wall)
        try:
            sealer = Sealer(spool, env)
            kept = StoredResults(spool, sealer, env, head=lambda: HEAD)

            async def pull() -> None:
                writer = await kept.begin(("a", "sync:sync"), STATUS)
                try:
                    for _ in range(4):
                        await writer.add(b"x" * results.PART_BYTES)
                    await writer.seal(sequence="9")
                finally:
                    await writer.abandon()

            task = asyncio.create_task(pull())
            for _ in range(turns):
                await asyncio.sleep(0.001)
                assert sealer.accounts().balanced
            task.cancel()
            await asyncio.wait({task})
            for _ in range(5_000):
                if not kept.writing:
                    break
                await asyncio.sleep(0.001)
            stats = spool.stats()
            accounts = sealer.accounts()
            assert stats.writing_bytes == 0
            assert accounts.balanced and accounts.polled == stats.reports <= 1
            assert (stats.bytes > 0) == (stats.reports == 1)
        finally:
            await spool.close()

    asyncio.run(main())
