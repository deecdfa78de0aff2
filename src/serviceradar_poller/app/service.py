"""The actor that holds the poller's own gRPC server, and goes on trying where its port is taken."""

from __future__ import annotations

from dataclasses import dataclass

from serviceradar_poller.config.model import SecurityConfig
from serviceradar_poller.env import Env
from serviceradar_poller.errors import PollerError
from serviceradar_poller.events.polling import ServerFailed
from serviceradar_poller.logic.backoff import BackoffSettings, delay_s
from serviceradar_poller.otp import Actor, ExitReason, Timer
from serviceradar_poller.transport.credentials import CredentialsCache
from serviceradar_poller.transport.port.limits import Refusals
from serviceradar_poller.transport.server import PollerServer, start

#: Delay before the listener is tried again.
RETRY = BackoffSettings(min_s=1.0, max_s=30.0)
#: Calls under way have this long at a stop.
STOP_GRACE_S = 0.5


@dataclass(frozen=True, slots=True)
class Open:
    """
    Try to open the listener.

    Attributes:
        attempt: The number of those that failed before it.
        anew: Also where it is open, because the certificate on disk is another one.
    """

    attempt: int
    anew: bool = False


@dataclass(frozen=True, slots=True)
class RenewCertificate:
    """The certificate on disk is another one: serve with it."""


class GrpcService(Actor[Open | RenewCertificate]):
    """
    Serves health and reflection.

    Args:
        security: mtls demands a client certificate.
        credentials: Where TLS comes from.
        refusals: Where the port counts what it refuses; outlives the listeners.
    """

    def __init__(
        self,
        listen_addr: str,
        *,
        service_name: str,
        security: SecurityConfig | None,
        credentials: CredentialsCache,
        env: Env,
        refusals: Refusals | None = None,
    ) -> None:
        self._listen_addr = listen_addr
        self._service_name = service_name
        self._security = security
        self._credentials = credentials
        self._env = env
        self._refusals = refusals
        self._server: PollerServer | None = None
        self._retry: Timer | None = None
        self._told = ""

    async def init(self) -> None:
        """Leave the opening to the first message: nothing here can fail."""
        self.send_after(0.0, Open(0))

    async def handle(self, message: Open | RenewCertificate) -> None:
        """Open the listener, or give it the new certificate; or try again later."""
        match message:
            case RenewCertificate():
                await self._open(Open(0, anew=True))
            case Open():
                await self._open(message)

    async def terminate(self, reason: ExitReason) -> None:
        """Close the listener."""
        server, self._server = self._server, None
        if server is not None:
            server.set_serving(False)
            await server.stop(STOP_GRACE_S)

    async def _open(self, how: Open) -> None:
        if self._server is not None and not how.anew:
            return
        if self._retry is not None:
            self._retry.cancel()  # this attempt is in its place
            self._retry = None
        try:
            context = await self._credentials.server_context(self._security, fresh=how.anew)
            if self._server is not None:
                self._server.renew(context)
            else:
                self._server = await start(
                    self._listen_addr, service_name=self._service_name, context=context, refusals=self._refusals
                )
            self._told = ""
        except PollerError as error:
            if str(error) != self._told:
                self._told = str(error)
                self._env.emit(
                    ServerFailed(
                        name="grpc",
                        address=self._listen_addr,
                        error=str(error),
                        serving=self._server is not None,
                    )
                )
            delay = delay_s(RETRY, how.attempt, self._env.rng.random())
            self._retry = self.send_after(delay, Open(how.attempt + 1, anew=how.anew))
