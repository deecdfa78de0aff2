from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable

import pytest

from serviceradar_poller.config.model import SecurityConfig
from serviceradar_poller.testing.conformance import SERVICE, PeerProcess, gated_request, slow_request
from serviceradar_poller.testing.conformance_client import AMPLE_S, channel_to, drive, until_taken

COUNT = 1000


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "streams_max"), [("grpc-js", 100), ("grpc-js", 1), ("grpclib", 100), ("grpclib", 1)])
def test_calls_wait_their_turn(peers: Callable[[str], PeerProcess], kind: str, streams_max: int) -> None:
    """Calls beyond what the server allows wait, in order, on one connection; none is refused."""
    peer = peers(kind)
    address = peer.start(streams_max=streams_max)
    count = COUNT if streams_max > 1 else 50

    async def main() -> None:
        async with channel_to(address) as channel:
            await channel.unary(f"{SERVICE}Unary", b"", AMPLE_S)
            await peer.stats()
            requests = [gated_request(tag, f"turn {address}") for tag in range(count)]
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(channel.unary(f"{SERVICE}Slow", request, AMPLE_S)) for request in requests]
                await peer.wait_until_busy(streams_max)
                await peer.open_gate(f"turn {address}")
            assert [task.result() for task in tasks] == requests
            assert channel.opened == 1
            assert await peer.stats() == {"peak": streams_max, "order": list(range(count))}

    drive(main)


@pytest.mark.slow
@pytest.mark.parametrize("streams_max", [100, 1])
def test_refused_calls_were_not_taken(grpcio: PeerProcess, streams_max: int) -> None:
    """
    A call that the server refuses may be made again at once: no call ever runs twice.

    gRPC's C core counts calls until it has freed them, and so refuses some that its own limit allows, also to its own
    client.
    """
    address = grpcio.start(streams_max=streams_max)
    count, took_s = (COUNT, 0.02) if streams_max > 1 else (50, 0.001)
    refusals: list[str] = []

    async def main() -> None:
        async with channel_to(address) as channel:

            async def call(tag: int) -> bytes:
                request = slow_request(tag, took_s)
                return await until_taken(lambda: channel.unary(f"{SERVICE}Slow", request, AMPLE_S), refusals)

            await grpcio.stats()
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(call(tag)) for tag in range(count)]
            assert [task.result() for task in tasks] == [slow_request(tag, took_s) for tag in range(count)]
            assert channel.opened == 1
            seen = await grpcio.stats()
            assert sorted(seen["order"]) == list(range(count))
            assert seen["peak"] <= streams_max
            assert set(refusals) <= {"refused_stream"}

    drive(main)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options", "peak"),
    [("grpcio", {}, COUNT), ("grpc-js", {}, COUNT), ("grpclib", {"streams_max": COUNT}, COUNT), ("grpclib", {}, 100)],
    ids=["grpcio", "grpc-js", "grpclib", "grpclib-by-itself"],
)
def test_1000_calls_at_once(
    peers: Callable[[str], PeerProcess], mtls: SecurityConfig, kind: str, options: dict[str, int], peak: int
) -> None:
    """A thousand calls are under way at the server at once, or as many as it allows, and all are answered."""
    peer = peers(kind)
    address = peer.start(tls=True, **options)

    async def main() -> None:
        async with channel_to(address, mtls) as channel:
            await peer.stats()
            requests = [gated_request(tag, f"calls {address}") for tag in range(COUNT)]
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(channel.unary(f"{SERVICE}Slow", request, AMPLE_S)) for request in requests]
                await peer.wait_until_busy(peak)
                assert not any(task.done() for task in tasks)
                await peer.open_gate(f"calls {address}")
            assert [task.result() for task in tasks] == requests
            assert channel.opened == 1
            seen = await peer.stats()
            assert seen["peak"] == peak
            assert sorted(seen["order"]) == list(range(COUNT))  # gRPC's C core begins them as its threads come by

    drive(main)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [("grpcio", {}), ("grpc-js", {}), ("grpclib", {"streams_max": COUNT})],
    ids=["grpcio", "grpc-js", "grpclib"],
)
def test_1000_streams_at_once(
    peers: Callable[[str], PeerProcess], mtls: SecurityConfig, kind: str, options: dict[str, int]
) -> None:
    """A thousand streams of answers are open at once on one connection; each goes on after its first message."""
    peer = peers(kind)
    address = peer.start(tls=True, **options)
    gate = f"streams {address}"

    async def main() -> None:
        async with channel_to(address, mtls) as channel:
            await peer.stats()
            requests = [gated_request(tag, gate) for tag in range(COUNT)]
            streams = [
                channel.receive_stream(f"{SERVICE}Held", functools.partial(gated_request, tag, gate), AMPLE_S)
                for tag in range(COUNT)
            ]
            assert await asyncio.gather(*(stream.read() for stream in streams)) == requests
            assert (await peer.stats())["peak"] == COUNT
            await peer.open_gate(gate)
            assert await asyncio.gather(*(stream.read() for stream in streams)) == requests
            assert await asyncio.gather(*(stream.read() for stream in streams)) == [None] * COUNT
            assert channel.opened == 1

    drive(main)
