from __future__ import annotations

import functools
import re
from collections.abc import AsyncIterator

import msgspec
import pytest

from serviceradar_poller.config.model import SecurityConfig
from serviceradar_poller.errors import GrpcCode, Layer
from serviceradar_poller.testing.conformance import (
    SERVICE,
    TRAILERS,
    PeerProcess,
    broken_request,
    piece,
    stream_request,
)
from serviceradar_poller.testing.conformance_client import AMPLE_S, channel_to, drive, messages, whole_call
from serviceradar_poller.testing.contract import failure
from serviceradar_poller.transport.http2 import Cause
from serviceradar_poller.transport.native.channel import USER_AGENT

MIB = 1024 * 1024
TEXT = 'Überlast: 100 % von "λ" ✓ 🜁 %41%zz'


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 1, 16_379, 16_380, 3 * MIB, 17 * MIB, 50_000_000])
def test_unary(peer: PeerProcess, security: SecurityConfig | None, size: int) -> None:
    """A message of nothing, of a frame and a byte more, and of up to fifty megabytes comes back as it was."""
    address = peer.start(tls=security is not None)
    payload = b"".join(piece(index, MIB) for index in range(size // MIB + 1))[:size]

    async def main() -> None:
        async with channel_to(address, security) as channel:
            for _ in range(2):
                # Whole, and without a printout of it.
                assert (await channel.unary(f"{SERVICE}Unary", payload, AMPLE_S) == payload) is True
            assert channel.opened == 1

    drive(main)


def test_request_headers(peer: PeerProcess, mtls: SecurityConfig) -> None:
    """
    The server gets the headers that gRPC asks for, no others, and the deadline that the caller set, less what passed.

    gRPC's C core checks the block and shows its handlers the user agent alone; the others show it as it came.
    """
    address = peer.start(tls=True)

    async def main() -> None:
        async with channel_to(address, mtls) as channel:
            await channel.unary(f"{SERVICE}Unary", b"", AMPLE_S)  # connecting takes of a call's time
            for timeout_s in (0.9, 7.0, 3600.0):
                seen = msgspec.json.decode(await channel.unary(f"{SERVICE}Inspect", b"", timeout_s))
                assert timeout_s * 0.5 < seen["left_s"] <= timeout_s
                if (headers := seen.get("headers")) is None:
                    assert seen["metadata"] == {"user-agent": USER_AGENT}
                    continue
                assert re.fullmatch(r"[1-9][0-9]{0,7}[HMSmun]", headers.pop("grpc-timeout"))
                assert headers == {
                    ":method": "POST",
                    ":scheme": "https",
                    ":authority": address,
                    ":path": f"{SERVICE}Inspect",
                    "te": "trailers",
                    "content-type": "application/grpc",
                    "user-agent": USER_AGENT,
                    "grpc-accept-encoding": "identity",
                }

    drive(main)


@pytest.mark.parametrize("code", [code for code in GrpcCode if code])
def test_statuses(peer: PeerProcess, code: GrpcCode) -> None:
    """Every status and a message in any script arrive, without messages before it and after some."""
    address = peer.start()

    async def main() -> None:
        async with channel_to(address) as channel:
            for count in (0, 3):
                request = functools.partial(broken_request, count, code, TEXT)
                stream = channel.receive_stream(f"{SERVICE}Broken", request, AMPLE_S)
                for _ in range(count):
                    assert await stream.read() is not None
                error = await failure(stream.read())
                assert (error.layer, error.code, error.reason) == (Layer.GRPC, code, code.name.lower())
                assert error.detail == TEXT

    drive(main)


def test_trailers(peer: PeerProcess, mtls: SecurityConfig) -> None:
    """Trailing metadata arrives as text and as bytes, in an answer of trailers only and after messages."""
    address = peer.start(tls=True)

    async def main() -> None:
        async with channel_to(address, mtls) as channel:
            for count in (0, 2):
                call, _ = await whole_call(channel, "Broken", broken_request(count, 9, f"line\n{TEXT}"))
                outcome = call.outcome
                assert outcome is not None
                assert (outcome.cause, outcome.code, outcome.message) == (Cause.STATUS, 9, f"line\n{TEXT}")
                assert set(TRAILERS) <= set(outcome.metadata)
                assert call.has_headers == (count > 0)

    drive(main)


def test_unimplemented(peer: PeerProcess, mtls: SecurityConfig) -> None:
    """A method that the server doesn't have is told apart from other failures, for every form of call."""
    address = peer.start(tls=True)

    async def parts() -> AsyncIterator[bytes]:
        yield b"x"

    async def main() -> None:
        async with channel_to(address, mtls) as channel:
            for call in (
                channel.unary(f"{SERVICE}Missing", b"", AMPLE_S),
                messages(channel.receive_stream(f"{SERVICE}Missing", lambda: b"", AMPLE_S)),
                channel.send_stream(f"{SERVICE}Missing", parts(), 1, AMPLE_S),
            ):
                error = await failure(call)
                assert (error.layer, error.code) == (Layer.GRPC, GrpcCode.UNIMPLEMENTED)
            assert await channel.unary(f"{SERVICE}Unary", b"x", AMPLE_S) == b"x"
            assert channel.opened == 1

    drive(main)


def test_streams_and_calls_share(peer: PeerProcess, mtls: SecurityConfig) -> None:
    """A stream that nobody reads holds up neither calls nor other streams of the same connection."""
    address = peer.start(tls=True)

    async def main() -> None:
        async with channel_to(address, mtls) as channel:
            idle = channel.receive_stream(f"{SERVICE}Stream", lambda: stream_request(200, 32 * 1024), AMPLE_S)
            assert await idle.read() is not None
            assert await channel.unary(f"{SERVICE}Unary", b"x" * 600_000, AMPLE_S) == b"x" * 600_000
            busy = channel.receive_stream(f"{SERVICE}Stream", lambda: stream_request(200, 32 * 1024), AMPLE_S)
            assert len(await messages(busy)) == 200
            assert len(await messages(idle)) == 199
            assert channel.opened == 1

    drive(main)
