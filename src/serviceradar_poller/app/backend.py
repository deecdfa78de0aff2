"""Choose what makes calls to agents and core; only what is chosen is loaded."""

from __future__ import annotations

from typing import Protocol, assert_never

from serviceradar_poller.config.model import TransportBackend
from serviceradar_poller.env import Clock, Resolver, Transport
from serviceradar_poller.transport.credentials import CredentialsCache


class Backend(Transport, Protocol):
    """A transport with what its clients authenticate with."""

    credentials: CredentialsCache


def new_transport(backend: TransportBackend, *, clock: Clock, resolver: Resolver) -> Backend:
    """Return the transport of *backend*, for the running program's one loop."""
    match backend:
        case TransportBackend.GRPCIO:
            from serviceradar_poller.transport.grpcio_client import GrpcioTransport

            return GrpcioTransport(clock=clock)
        case TransportBackend.NATIVE:
            from serviceradar_poller.transport.native.transport import NativeTransport

            return NativeTransport(clock=clock, resolver=resolver)
        case _:
            assert_never(backend)
