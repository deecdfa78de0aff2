"""The actor that holds the poller's own gRPC server, and goes on trying where its port is taken."""

from __future__ import annotations

from dataclasses import dataclass

from serviceradar_poller.config.model import SecurityConfig
from serviceradar_poller.env import Env
from serviceradar_poller.errors import PollerError
from serviceradar_poller.events.polling import ServerFailed
from serviceradar_poller.logic.backoff import BackoffSettings, delay_s
from serviceradar_poller.otp import Actor, ExitReason
from serviceradar_poller.transport.port.limits import Refusals
from serviceradar_poller.transport.server import PollerServer, start

#: Delay before the listener is tried again.
RETRY = BackoffSettings(min_s=1.0, max_s=30.0)
#: Calls under way have this long at a stop.
STOP_GRACE_S = 0.5


@dataclass(frozen=True, slots=True)
class Open:
    """Try to open the listener."""

    attempt: int


@dataclass(frozen=True, slots=True)
class RenewCertificate:
    """The certificate on disk is another one: serve with it."""


class GrpcService(Actor[Open | RenewCertificate]):
    """
    Serves health and reflection.

    Args:
        refusals: Where the port counts what it refuses; outlives the listeners.
    """

    def __init__(
        self,
        listen_addr: str,
        *,
        service_name: str,
        security: SecurityConfig | None,
        env: Env,
        refusals: Refusals | None = None,
    ) -> None:
        self._listen_addr = listen_addr
        self._service_name = service_name
        self._security = security
        self._env = env
        self._refusals = refusals
        self._server: PollerServer | None = None
        self._told = ""

    async def init(self) -> None:
        """Leave the opening to the first message: nothing here can fail."""
        self.send_after(0.0, Open(0))

    async def handle(self, message: Open | RenewCertificate) -> None:
        """Open the listener, or try again later; a new certificate takes a new listener."""
        match message:
            case RenewCertificate():
                await self._close()
                await self._open(0)
            case Open(attempt):
                await self._open(attempt)

    async def terminate(self, reason: ExitReason) -> None:
        """Close the listener."""
        await self._close()

    async def _open(self, attempt: int) -> None:
        if self._server is not None:
            return
        try:
            self._server = await start(
                self._listen_addr,
                service_name=self._service_name,
                security=self._security,
                now=self._env.clock.wall(),
                refusals=self._refusals,
            )
        except PollerError as error:
            if str(error) != self._told:
                self._told = str(error)
                self._env.emit(ServerFailed(name="grpc", address=self._listen_addr, error=str(error)))
            self.send_after(delay_s(RETRY, attempt, self._env.rng.random()), Open(attempt + 1))

    async def _close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.set_serving(False)
            await server.stop(STOP_GRACE_S)
