"""Serve control endpoints over HTTP on loopback: the plumbing that agents and core share."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from serviceradar_poller.lab.errors import LabError

#: Body of a control request.
BODY_BYTES_MAX = 1024 * 1024
#: How long a stop waits for control requests under way.
STOP_GRACE_S = 0.3


class ControlError(Exception):
    """A control request that can't be served."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class ControlServer:
    """
    One HTTP server on loopback that leaves signals alone.

    Attributes:
        url: Where it is reached, such as ``http://127.0.0.1:43210``.
    """

    def __init__(self, app: Starlette, *, port: int = 0) -> None:
        """
        Bind; port 0 takes a free one.

        Raises:
            OSError: The port is taken.
        """
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind(("127.0.0.1", port))
        except OSError:
            self._socket.close()
            raise
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", ws="none")
        config.timeout_graceful_shutdown = 1
        self._server = _QuietServer(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Serve from now on."""
        self._socket.listen(128)
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]), name="lab/control")

    async def stop(self) -> None:
        """Stop within STOP_GRACE_S, requests under way or not."""
        if self._task is not None:
            self._server.should_exit = True
            await asyncio.wait({self._task}, timeout=STOP_GRACE_S)
            self._server.force_exit = True
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=STOP_GRACE_S)
        self._socket.close()


class _QuietServer(uvicorn.Server):
    """Leaves signals to the program that it is part of."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def json_response(body: object, status: int = 200) -> Response:
    """Return *body* as JSON; bytes inside are base64."""
    return Response(msgspec.json.encode(body), status_code=status, media_type="application/json")


async def read_body(request: Request) -> dict[str, object]:
    """
    Read a JSON object; an empty body is an empty object.

    Raises:
        ControlError: Too large, or something else.
    """
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > BODY_BYTES_MAX:
            raise ControlError(413, f"a body of more than {BODY_BYTES_MAX} bytes")
    try:
        body = msgspec.json.decode(data) if data else {}
    except msgspec.DecodeError as error:
        raise ControlError(400, f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise ControlError(400, "the body is not a JSON object")
    return body


def guarded(
    endpoint: Callable[[Request], Awaitable[object]],
) -> Callable[[Request], Awaitable[Response]]:
    """Turn what *endpoint* returns into JSON, and what it refuses into 400, 404 or 413 with ``{"error": …}``."""

    async def serve(request: Request) -> Response:
        try:
            return json_response(await endpoint(request))
        except LabError as error:
            return json_response({"error": str(error)}, 400)
        except ControlError as error:
            return json_response({"error": error.detail}, error.status)

    return serve


def process_stats() -> dict[str, float]:
    """Return this process' CPU seconds and resident bytes, now and at most."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {
        "cpu_s": time.process_time(),
        "rss_bytes": int(status["VmRSS"].split()[0]) * 1024,
        "rss_bytes_max": int(status["VmHWM"].split()[0]) * 1024,
    }
