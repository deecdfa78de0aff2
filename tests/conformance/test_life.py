from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import pytest

from serviceradar_poller.config.model import SecurityConfig
from serviceradar_poller.errors import Layer
from serviceradar_poller.lab.ports import free_port
from serviceradar_poller.testing.conformance import SERVICE, PeerProcess, gated_request, slow_request, stream_request
from serviceradar_poller.testing.conformance_client import (
    AMPLE_S,
    channel_to,
    connection_of,
    drive,
    messages,
    until,
    until_taken,
)
from serviceradar_poller.testing.conformance_proxy import Proxy
from serviceradar_poller.testing.contract import failure

KINDS = ("grpcio", "grpclib", "grpc-js")
AGE_S = 0.25


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_goaway_amid_calls(peers: Callable[[str], PeerProcess], mtls: SecurityConfig, kind: str) -> None:
    """
    A server that ends its connections by age breaks no call: those under way finish, the next go elsewhere.

    grpcio says goodbye in two steps, so that no call is refused, and grpclib's server is made to. grpc-js names its
    last call at once: those that were on their way to it fail as not taken, and may be made again.
    """
    address = peers(kind).start(tls=True, age_s=AGE_S)
    refusals: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        async with channel_to(address, mtls) as channel:
            calls = 0

            async def call(request: bytes) -> None:
                answer = await until_taken(lambda: channel.unary(f"{SERVICE}Slow", request, AMPLE_S), refusals)
                assert answer == request

            async def caller(number: int) -> None:
                nonlocal calls
                # Where connecting and calling take long there are fewer of both in the same time.
                while loop.time() < began_at + 5 * AGE_S or channel.opened < 3 or calls <= 100:
                    await call(slow_request(number, 0.001 * number))
                    calls += 1

            async def reader() -> None:
                """Read one stream over several ages of a connection."""
                stream = channel.receive_stream(f"{SERVICE}Stream", lambda: stream_request(100, 20_000), AMPLE_S)
                for _ in range(100):
                    assert await stream.read() is not None
                    await asyncio.sleep(0.008)
                assert await stream.read() is None

            async with asyncio.TaskGroup() as group:
                group.create_task(reader())
                group.create_task(call(slow_request(0, 4 * AGE_S)))
                for number in range(12):
                    group.create_task(caller(number))
            assert 3 <= channel.opened <= 3 + (loop.time() - began_at) / AGE_S
            assert calls > 100
            assert set(refusals) <= ({"goaway"} if kind == "grpc-js" else set())

    drive(main)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_server_killed_and_started_again(
    new_peer: Callable[[str], PeerProcess], mtls: SecurityConfig, kind: str
) -> None:
    """Calls fail with a reason that is worth a retry while a server is away, and succeed as soon as it is back."""
    port = free_port()
    first, second = new_peer(kind), new_peer(kind)
    address = first.start(port=port, tls=True)

    async def main() -> None:
        async with channel_to(address, mtls) as channel:
            hanging = [asyncio.create_task(failure(channel.unary(f"{SERVICE}Hang", b"k", AMPLE_S))) for _ in range(5)]
            stream = channel.receive_stream(f"{SERVICE}Stream", lambda: stream_request(10_000, 20_000), AMPLE_S)
            assert await stream.read() is not None
            await first.wait_for("started", "k")
            await asyncio.to_thread(first.kill)
            for error in [await task for task in hanging]:
                assert (error.reason, error.retryable, error.layer) == ("reset", True, Layer.GRPC)
            error = await failure(messages(stream))
            assert (error.reason, error.retryable) == ("reset", True)
            for _ in range(3):
                error = await failure(channel.unary(f"{SERVICE}Unary", b"", AMPLE_S))
                assert (error.reason, error.retryable, error.layer) == ("refused", True, Layer.TCP)
            await asyncio.to_thread(second.start, port=port, tls=True)
            assert await channel.unary(f"{SERVICE}Unary", b"back", AMPLE_S) == b"back"
            assert channel.opened == 5

    drive(main)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "reason"), [("grpcio", "unavailable"), ("grpclib", "reset"), ("grpc-js", "reset")], ids=KINDS
)
def test_server_stopped_and_started_again(
    peers: Callable[[str], PeerProcess], mtls: SecurityConfig, kind: str, reason: str
) -> None:
    """
    A server that ends at once fails what it does not finish, and the next one is found at once.

    grpcio answers the calls under way with a status. grpclib and grpc-js say that they took them, and close.
    """
    peer, port = peers(kind), free_port()
    address = peer.start(port=port, tls=True)
    tag = f"stop {address}"

    async def main() -> None:
        async with channel_to(address, mtls) as channel:
            hanging = asyncio.create_task(failure(channel.unary(f"{SERVICE}Hang", tag.encode(), AMPLE_S)))
            await peer.wait_for("started", tag)
            await asyncio.to_thread(peer.stop, address)
            error = await hanging
            assert (error.layer, error.reason, error.retryable) == (Layer.GRPC, reason, True), error
            await asyncio.to_thread(peer.start, port=port, tls=True)
            assert await channel.unary(f"{SERVICE}Unary", b"back", AMPLE_S) == b"back"
            assert channel.opened == 2

    drive(main)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grpcio", "grpc-js"])
def test_server_stopped_gracefully(peers: Callable[[str], PeerProcess], mtls: SecurityConfig, kind: str) -> None:
    """
    A server that ends when its calls have ended finishes those under way, while the next ones go to its successor.

    grpclib knows no such end.
    """
    peer, port = peers(kind), free_port()
    address = peer.start(port=port, tls=True)
    gate = f"finish {address}"

    async def main() -> None:
        async with channel_to(address, mtls) as channel:
            await peer.stats()
            request = gated_request(1, gate)
            held = asyncio.create_task(channel.unary(f"{SERVICE}Slow", request, AMPLE_S))
            await peer.wait_until_busy(1)
            first = connection_of(channel)
            await asyncio.to_thread(peer.stop, address, gracefully=True)
            await until(lambda: not first.usable)
            # Its listener may outlast the GOAWAY for a moment, and then resets what it accepts.
            attempts, reason = 0, ""
            while reason != "refused":
                error = await failure(channel.unary(f"{SERVICE}Unary", b"", AMPLE_S))
                attempts, reason = attempts + 1, error.reason
                assert error.unreachable and error.retryable and reason in ("refused", "reset", "tls"), error
            await asyncio.to_thread(peer.start, port=port, tls=True)
            assert await channel.unary(f"{SERVICE}Unary", b"back", AMPLE_S) == b"back"
            assert not held.done()
            await peer.open_gate(gate)
            assert await held == request
            assert channel.opened == 2 + attempts

    drive(main)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grpclib", "grpc-js"])
def test_goaway_in_the_middle(peers: Callable[[str], PeerProcess], mtls: SecurityConfig, kind: str) -> None:
    """
    Calls beyond the last one that a GOAWAY names were not taken and are made again; the others are not.

    grpc-js finishes the others. h2 sends nothing after its GOAWAY, so that grpclib can only close: they are lost. The
    last stream of a GOAWAY of gRPC's C core can't be chosen.
    """
    peer = peers(kind)
    address = peer.start(tls=True)
    gate = f"middle {address}"

    async def main() -> None:
        async with channel_to(address, mtls) as channel:
            await channel.unary(f"{SERVICE}Unary", b"", AMPLE_S)
            await peer.stats()
            requests = [gated_request(tag, gate) for tag in range(10)]
            tasks = [asyncio.create_task(channel.unary(f"{SERVICE}Slow", request, AMPLE_S)) for request in requests]
            await peer.wait_until_busy(10)
            await peer.goaway(address, 11)  # the streams 3, 5, 7, 9 and 11 are the first five of the ten
            for error in await asyncio.gather(*(failure(task) for task in tasks[5:])):
                assert (error.layer, error.reason) == (Layer.HTTP2, "goaway")
                assert error.retryable
                assert error.unreachable
            if kind == "grpclib":
                for error in await asyncio.gather(*(failure(task) for task in tasks[:5])):
                    assert (error.layer, error.reason, error.retryable) == (Layer.GRPC, "reset", True)
            else:
                assert not any(task.done() for task in tasks[:5])
            await peer.open_gate(gate)
            if kind == "grpc-js":
                assert await asyncio.gather(*tasks[:5]) == requests[:5]
            for request in requests[5:]:
                assert await channel.unary(f"{SERVICE}Slow", request, AMPLE_S) == request
            assert channel.opened == 2

    drive(main)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_frozen_server(new_peer: Callable[[str], PeerProcess], mtls: SecurityConfig, kind: str) -> None:
    """A process that stands still costs calls their deadline and no more; a later call dials anew, and gets through."""
    peer = new_peer(kind)
    address = peer.start(tls=True)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with channel_to(address, mtls) as channel:
            await channel.unary(f"{SERVICE}Unary", b"", AMPLE_S)
            peer.signal(signal.SIGSTOP)
            for reason, opened in (("timeout", 1), ("connect_timeout", 2), ("connect_timeout", 2)):
                began_at = loop.time()
                error = await failure(channel.unary(f"{SERVICE}Unary", b"x", 0.2))
                assert 0.18 <= loop.time() - began_at < 10.0
                assert (error.reason, channel.opened) == (reason, opened)
            peer.signal(signal.SIGCONT)
            assert await channel.unary(f"{SERVICE}Unary", b"x", AMPLE_S) == b"x"
            assert channel.opened == 2  # the attempt that its own call did not live to see

    try:
        drive(main)
    finally:
        peer.signal(signal.SIGCONT)


@pytest.mark.slow
def test_path_that_forwards_nothing_more(peer: PeerProcess, mtls: SecurityConfig) -> None:
    """A connection on which nothing arrives any more is given up with the first call that it costs."""
    target = peer.start(tls=True)

    async def main() -> None:
        async with Proxy(target) as proxy, channel_to(proxy.address, mtls) as channel:
            await channel.unary(f"{SERVICE}Unary", b"", AMPLE_S)
            proxy.freeze()
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(failure(channel.unary(f"{SERVICE}Unary", b"x" * size, 0.3)))
                    for size in (0, 10, 200_000, 3_000_000)
                ]
            assert {(task.result().reason, task.result().layer) for task in tasks} == {("timeout", Layer.DEADLINE)}
            stream = channel.receive_stream(f"{SERVICE}Stream", lambda: stream_request(1000, 100_000), 1.5)
            assert await stream.read() is not None
            assert channel.opened == 2
            proxy.freeze()
            error = await failure(messages(stream))
            assert (error.reason, error.layer) == ("timeout", Layer.DEADLINE)

    drive(main)
