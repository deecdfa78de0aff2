from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable

import msgspec
import pytest

from serviceradar_poller.config.model import SecurityConfig
from serviceradar_poller.errors import CallError, GrpcCode
from serviceradar_poller.testing.conformance import SERVICE, PeerProcess, broken_request, stream_request
from serviceradar_poller.testing.conformance_client import AMPLE_S, channel_to, drive, messages, new_transport
from serviceradar_poller.testing.conformance_proxy import Cut, Proxy, Way
from serviceradar_poller.testing.contract import failure
from serviceradar_poller.transport.native.channel import NativeChannel
from serviceradar_poller.transport.native.connection import Connection

#: What a connection that ends where it likes may be to the caller.
REASONS = {"reset", "protocol", "goaway", "tls"}
#: Two handshakes differ by so much at most.
SIGNATURES_VARY_BYTES = 16
ANSWER = [b"%08d" % index for index in range(3)]


async def exchange(channel: NativeChannel) -> None:
    """Make a call of each kind, one after the other."""
    assert await channel.unary(f"{SERVICE}Unary", b"question", AMPLE_S) == b"question"
    found = await messages(channel.receive_stream(f"{SERVICE}Stream", lambda: stream_request(3, 12), AMPLE_S))
    assert [int.from_bytes(message[:8], "big") for message in found] == [0, 1, 2]

    async def parts() -> AsyncIterator[bytes]:
        for part in ANSWER:
            yield part

    answer = msgspec.json.decode(await channel.send_stream(f"{SERVICE}Collect", parts(), 3, AMPLE_S))
    assert (answer["count"], answer["bytes"]) == (3, 24)


async def cut_short(call: Awaitable[object]) -> CallError | None:
    """Return why a call failed, if it did."""
    try:
        async with asyncio.timeout(AMPLE_S):
            await call
    except CallError as error:
        return error
    return None


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("way", Way, ids=["up", "down"])
def test_cut_at_every_byte(peer: PeerProcess, way: Way, reset: bool) -> None:
    """
    Wherever a connection ends, the call under way fails with a reason that is worth a retry, the next one succeeds.

    All calls of an exchange that had their answer keep it.
    """
    target = peer.start()

    async def main() -> None:
        async with Proxy(target) as proxy:
            async with channel_to(proxy.address) as channel:
                await exchange(channel)
            total = proxy.passed[way]
            assert total > 200
            failures = 0
            for offset in range(total):
                proxy.cut = Cut(way=way, offset_bytes=offset, reset=reset)
                async with channel_to(proxy.address) as channel:
                    error = await cut_short(exchange(channel))
                    proxy.cut = None
                    if error is None:
                        # The last bytes are acknowledgements that no call waits for: the next one meets the cut.
                        error = await cut_short(channel.unary(f"{SERVICE}Unary", b"", AMPLE_S))
                    else:
                        failures += 1
                    assert error is None or (error.retryable and error.reason in REASONS), (offset, error)
                    assert await channel.unary(f"{SERVICE}Unary", b"next", AMPLE_S) == b"next"
            assert failures > total * 0.8

    drive(main)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("reset", "step"), [(False, 1), (True, 5)], ids=["fin", "rst"])
@pytest.mark.parametrize("way", Way, ids=["up", "down"])
def test_tls_cut_at_every_byte(grpcio: PeerProcess, mtls: SecurityConfig, way: Way, reset: bool, step: int) -> None:
    """
    The same with TLS, in the handshake and after.

    Handshakes cost what such a test takes: RST comes at every fifth byte, the next call is made after every eighth.

    Before the peer's SETTINGS have arrived, an end may mean that it refused our certificate: the reason is then ``tls``
    and no retry is promised. After them, every failure is worth one.
    """
    target = grpcio.start(tls=True)
    transport = new_transport()

    async def main() -> None:
        async with Proxy(target) as proxy:
            async with channel_to(proxy.address, mtls, transport=transport) as channel:
                await channel.acquire(f"{SERVICE}Unary", AMPLE_S, AMPLE_S)
                settings_by = proxy.passed[way] + SIGNATURES_VARY_BYTES
                await exchange(channel)
            total = proxy.passed[way]
            assert total > settings_by
            offsets = range(0, total, step)
            reasons: Counter[str] = Counter()
            for offset in offsets:
                proxy.cut = Cut(way=way, offset_bytes=offset, reset=reset)
                async with channel_to(proxy.address, mtls, transport=transport) as channel:
                    error = await cut_short(exchange(channel))
                    proxy.cut = None
                    if error is None:
                        # The last bytes are the goodbye, or acknowledgements: the next call may meet the cut.
                        error = await cut_short(channel.unary(f"{SERVICE}Unary", b"", AMPLE_S))
                    if error is not None:
                        reasons[error.reason] += 1
                        assert error.reason in REASONS, (offset, error)
                        assert error.retryable is (error.reason != "tls"), (offset, error)
                        assert error.reason != "tls" or offset <= settings_by, (offset, error)
                    if offset % 8 == 0:
                        assert await channel.unary(f"{SERVICE}Unary", b"next", AMPLE_S) == b"next"
            assert reasons["tls"] > 0
            assert reasons["reset"] > 0
            assert reasons.total() > len(offsets) * 0.9

    drive(main)


@pytest.mark.slow
def test_byte_by_byte(peer: PeerProcess, security: SecurityConfig | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing depends on how bytes are put together: each alone, in both directions, gives the same answers."""
    target = peer.start(tls=security is not None)
    sizes: Counter[int] = Counter()
    take = Connection.buffer_updated

    def counted(connection: Connection, size: int) -> None:
        sizes[size] += 1
        take(connection, size)

    monkeypatch.setattr(Connection, "buffer_updated", counted)

    async def main() -> None:
        async with Proxy(target) as proxy:
            proxy.piece_bytes = 1
            async with channel_to(proxy.address, security) as channel:
                await exchange(channel)
                error = await failure(
                    messages(channel.receive_stream(f"{SERVICE}Broken", lambda: broken_request(1, 8, "full"), AMPLE_S))
                )
                assert (error.code, error.detail) == (GrpcCode.RESOURCE_EXHAUSTED, "full")
                assert channel.opened == 1
            assert sizes[1] > 0.9 * proxy.passed[Way.DOWN]

    drive(main)


@pytest.mark.slow
@pytest.mark.parametrize("piece_bytes", [23, 1000])
def test_slow_and_in_pieces(peer: PeerProcess, mtls: SecurityConfig, piece_bytes: int) -> None:
    """A path that passes small pieces with pauses between them delays calls and breaks none."""
    target = peer.start(tls=True)

    async def main() -> None:
        async with Proxy(target) as proxy:
            proxy.piece_bytes, proxy.pause_s = piece_bytes, 0.0002
            async with channel_to(proxy.address, mtls) as channel:
                await exchange(channel)
                payload = b"x" * (piece_bytes * 30)
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(channel.unary(f"{SERVICE}Unary", payload, AMPLE_S)) for _ in range(3)]
                assert [task.result() for task in tasks] == [payload] * 3
                assert channel.opened == 1

    drive(main)
