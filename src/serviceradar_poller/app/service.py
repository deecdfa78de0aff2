"""The actor that holds the poller's own gRPC server, and goes on trying where its port is taken."""

from __future__ import annotations

from dataclasses import dataclass

from serviceradar_poller.config.model import SecurityConfig
from serviceradar_poller.env import Env
from serviceradar_poller.errors import PollerError
from serviceradar_poller.events.polling import ServerFailed
from serviceradar_poller.logic.backoff import BackoffSettings, delay_s
from serviceradar_poller.otp import Actor, ExitReason
from serviceradar_poller.transport.server import PollerServer, start

#: Delay before the listener is tried again.
RETRY = BackoffSettings(min_s=1.0, max_s=30.0)
#: Calls under way have this long at a stop.
STOP_GRACE_S = 0.5


@dataclass(frozen=True, slots=True)
class Open:
    """Try to open the listener."""

    attempt: int


class GrpcService(Actor[Open]):
    """Serves health and reflection."""

    def __init__(self, listen_addr: str, *, service_name: str, security: SecurityConfig | None, env: Env) -> None:
        self._listen_addr = listen_addr
        self._service_name = service_name
        self._security = security
        self._env = env
        self._server: PollerServer | None = None
        self._told = ""

    async def init(self) -> None:
        """Leave the opening to the first message: nothing here can fail."""
        self.send_after(0.0, Open(0))

    async def handle(self, message: Open) -> None:
        """Open the listener, or try again later."""
        try:
            self._server = await start(
                self._listen_addr,
                service_name=self._service_name,
                security=self._security,
                now=self._env.clock.wall(),
            )
        except PollerError as error:
            if str(error) != self._told:
                self._told = str(error)
                self._env.emit(ServerFailed(name="grpc", address=self._listen_addr, error=str(error)))
            wait_s = delay_s(RETRY, message.attempt, self._env.rng.random())
            self.send_after(wait_s, Open(message.attempt + 1))

    async def terminate(self, reason: ExitReason) -> None:
        """Close the listener."""
        if self._server is not None:
            await self._server.stop(STOP_GRACE_S)
