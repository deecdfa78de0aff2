"""
The poller as a program whose transport answers at once and costs next to nothing; run by the overhead benchmark.

Imports nothing that the program itself does not: its memory is measured.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterable

from serviceradar_poller.app import run as program
from serviceradar_poller.config.loading import load
from serviceradar_poller.config.model import SecurityConfig
from serviceradar_poller.env import ResultsStream, SystemClock
from serviceradar_poller.transport.credentials import CredentialsCache
from serviceradar_poller.wire.messages import (
    PollerStatusResponse,
    ResultsRequest,
    ResultsResponse,
    StatusRequest,
    StatusResponse,
)

#: Of nearly the size of what agents answer to the two checks.
MESSAGE = b'{"host":"192.0.2.1","response_time":1234567,"packet_loss":0,"available":true,"sent":3,"received":3}'


class InstantClient:
    """An agent and a core that answer at the loop's next turn; implements env.AgentClient and env.CoreClient."""

    async def check_health(self, *, timeout_s: float) -> str:
        """Return that it serves."""
        return "SERVING"

    async def get_status(self, request: StatusRequest, *, timeout_s: float) -> StatusResponse:
        """Return an answer whose every part is new, as one that was decoded is."""
        await self._turn()
        return StatusResponse(
            available=True,
            message=bytes(bytearray(MESSAGE)),
            service_name=request.service_name,
            service_type=request.service_type,
            response_time=1_234_567,
            agent_id=request.agent_id.encode().decode(),
        )

    async def get_results(self, request: ResultsRequest, *, timeout_s: float) -> ResultsResponse:
        """Return nothing new."""
        await self._turn()
        return ResultsResponse(available=True)

    def stream_results(self, request: ResultsRequest, *, timeout_s: float) -> ResultsStream:
        """Refuse: the site has no such check."""
        raise NotImplementedError

    async def report_status_raw(self, report: bytes, *, timeout_s: float) -> PollerStatusResponse:
        """Accept."""
        await self._turn()
        return PollerStatusResponse(received=True)

    async def stream_status_raw(
        self, chunks: AsyncIterable[bytes], count: int, *, timeout_s: float
    ) -> PollerStatusResponse:
        """Accept."""
        async for _ in chunks:
            await self._turn()
        return PollerStatusResponse(received=True)

    async def close(self) -> None:
        """Do nothing."""

    @staticmethod
    async def _turn() -> None:
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[None] = loop.create_future()
        loop.call_soon(answered.set_result, None)
        await answered


class InstantTransport:
    """Makes clients that answer at once; implements backend.Backend."""

    def __init__(self) -> None:
        self._client = InstantClient()
        self.credentials = CredentialsCache(SystemClock())

    async def agent(self, address: str, security: SecurityConfig | None, *, fresh: bool = False) -> InstantClient:
        """Return a client."""
        return self._client

    async def core(self, address: str, security: SecurityConfig | None, *, fresh: bool = False) -> InstantClient:
        """Return a client."""
        return self._client


def serve(path: str) -> int:
    """Run the program until SIGTERM; say on stdout when it polls."""
    tune_gc = program._tune_gc

    def polling() -> None:
        tune_gc()
        print("polling", flush=True)

    assert hasattr(program, "new_transport")
    program.new_transport = lambda *_, **__: InstantTransport()
    program._tune_gc = polling
    return program.run(load(path, {}), {})


if __name__ == "__main__":
    sys.exit(serve(sys.argv[1]))
