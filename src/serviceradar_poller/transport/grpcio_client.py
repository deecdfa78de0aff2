"""Make clients of agents and core on grpcio's asyncio API."""

from __future__ import annotations

from serviceradar_poller.config.addresses import Address, AddressError, parse_address
from serviceradar_poller.config.model import SecurityConfig
from serviceradar_poller.env import Clock
from serviceradar_poller.transport import failures
from serviceradar_poller.transport.channel import PeerChannel
from serviceradar_poller.transport.clients import ChannelAgentClient, ChannelCoreClient
from serviceradar_poller.transport.credentials import CredentialsCache


class GrpcioTransport:
    """
    Makes clients on grpcio; implements env.Transport.

    Args:
        clock: Its wall time judges certificates.

    Attributes:
        credentials: Shared by all clients of this transport.
    """

    def __init__(self, *, clock: Clock) -> None:
        self.credentials = CredentialsCache(clock)

    async def agent(self, address: str, security: SecurityConfig | None, *, fresh: bool = False) -> ChannelAgentClient:
        """Return a client for the agent at *address*. Raises CallError(layer=CONFIG)."""
        return ChannelAgentClient(await self._channel(address, security, fresh=fresh))

    async def core(self, address: str, security: SecurityConfig | None, *, fresh: bool = False) -> ChannelCoreClient:
        """Return a client for the core at *address*. Raises CallError(layer=CONFIG)."""
        return ChannelCoreClient(await self._channel(address, security, fresh=fresh))

    async def _channel(self, address: str, security: SecurityConfig | None, *, fresh: bool) -> PeerChannel:
        try:
            parsed: Address = parse_address(address)
        except AddressError as error:
            raise failures.unusable_address(str(error)) from error
        credentials = await self.credentials.channel_credentials(security, fresh=fresh)
        server_name = security.server_name if security is not None and credentials is not None else ""
        return PeerChannel(parsed, server_name=server_name, credentials=credentials)
