from __future__ import annotations

import asyncio

import pytest

from serviceradar_poller.app.backend import new_transport
from serviceradar_poller.config.model import TransportBackend
from serviceradar_poller.env import SystemClock, Transport
from serviceradar_poller.testing.contract import REQUEST
from serviceradar_poller.testing.peers import serving
from serviceradar_poller.transport.grpcio_client import GrpcioTransport
from serviceradar_poller.transport.native.transport import NativeTransport
from serviceradar_poller.transport.resolver import SystemResolver


@pytest.mark.parametrize(
    ("backend", "kind"), [(TransportBackend.GRPCIO, GrpcioTransport), (TransportBackend.NATIVE, NativeTransport)]
)
def test_what_is_chosen_makes_the_calls(backend: TransportBackend, kind: type) -> None:
    """Each name in the configuration stands for a transport that works."""
    transport: Transport = new_transport(backend, clock=SystemClock(), resolver=SystemResolver())
    assert type(transport) is kind

    async def main() -> None:
        async with serving() as peer:
            client = await transport.agent(peer.address, None)
            assert (await client.get_status(REQUEST, timeout_s=5.0)).available
            await client.close()

    asyncio.run(main())
