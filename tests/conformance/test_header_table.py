from __future__ import annotations

from collections.abc import Callable

import pytest

from serviceradar_poller.config.model import SecurityConfig
from serviceradar_poller.testing.conformance import SERVICE, PeerProcess, stream_request
from serviceradar_poller.testing.conformance_client import AMPLE_S, channel_to, drive, messages


@pytest.mark.parametrize("table_bytes", [0, 1024, 4096, 65_536])
@pytest.mark.parametrize("kind", ["grpclib", "grpc-js"])
def test_size_of_the_header_table(
    peers: Callable[[str], PeerProcess], mtls: SecurityConfig, kind: str, table_bytes: int
) -> None:
    """
    A server that allows a smaller table for headers than HTTP/2's default gets the update that it insists on.

    h2 and nghttp2 end a connection whose first header block does not say that its table is no larger. grpcio's server
    has no option for it.
    """
    address = peers(kind).start(tls=True, table_bytes=table_bytes)

    async def main() -> None:
        async with channel_to(address, mtls) as channel:
            for payload in (b"first", b"second"):
                assert await channel.unary(f"{SERVICE}Unary", payload, AMPLE_S) == payload
            stream = channel.receive_stream(f"{SERVICE}Stream", lambda: stream_request(3, 8), AMPLE_S)
            assert len(await messages(stream)) == 3
            assert channel.opened == 1

    drive(main)
