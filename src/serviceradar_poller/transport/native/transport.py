"""Make clients of agents and core on our own HTTP/2."""

from __future__ import annotations

from serviceradar_poller.config.addresses import Address, AddressError, parse_address
from serviceradar_poller.config.model import SecurityConfig
from serviceradar_poller.env import Clock, Resolver
from serviceradar_poller.transport import failures
from serviceradar_poller.transport.clients import ChannelAgentClient, ChannelCoreClient
from serviceradar_poller.transport.credentials import CredentialsCache
from serviceradar_poller.transport.native.channel import NativeChannel
from serviceradar_poller.transport.native.connection import READ_BUFFER_BYTES


class NativeTransport:
    """
    Makes clients on our own HTTP/2; implements env.Transport. Belongs to one event loop.

    Args:
        clock: Its wall time judges certificates.
        resolver: Finds the addresses of names.

    Attributes:
        credentials: Shared by all clients of this transport.
    """

    def __init__(self, *, clock: Clock, resolver: Resolver) -> None:
        self.credentials = CredentialsCache(clock)
        self._resolver = resolver
        self._buffer = memoryview(bytearray(READ_BUFFER_BYTES))

    async def agent(self, address: str, security: SecurityConfig | None, *, fresh: bool = False) -> ChannelAgentClient:
        """Return a client for the agent at *address*. Raises CallError(layer=CONFIG)."""
        return ChannelAgentClient(await self.channel(address, security, fresh=fresh))

    async def core(self, address: str, security: SecurityConfig | None, *, fresh: bool = False) -> ChannelCoreClient:
        """Return a client for the core at *address*. Raises CallError(layer=CONFIG)."""
        return ChannelCoreClient(await self.channel(address, security, fresh=fresh, urgent=True))

    async def channel(
        self, address: str, security: SecurityConfig | None, *, fresh: bool = False, urgent: bool = False
    ) -> NativeChannel:
        """Return a channel to *address*, whose name's look-up waits for no other if *urgent*. Raises CallError."""
        try:
            parsed: Address = parse_address(address)
        except AddressError as error:
            raise failures.unusable_address(str(error)) from error
        if parsed.target.startswith("dns://") and not parsed.target.startswith("dns:///"):
            raise failures.unusable_address(f"{address}: a DNS server of its own is known to transport grpcio only")
        context = await self.credentials.ssl_context(security, fresh=fresh)
        server_name = security.server_name if security is not None and context is not None else ""
        if not (server_name.isascii() and server_name.isprintable()):
            raise failures.unusable_address(f"server_name {server_name!r} is not printable ASCII")
        resolver = _Urgent(self._resolver) if urgent else self._resolver
        return NativeChannel(parsed, server_name=server_name, context=context, resolver=resolver, buffer=self._buffer)


class _Urgent:
    """A resolver whose look-ups are all urgent; implements env.Resolver."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver

    async def resolve(self, host: str, *, timeout_s: float, urgent: bool = True) -> tuple[str, ...]:
        return await self._resolver.resolve(host, timeout_s=timeout_s, urgent=True)
