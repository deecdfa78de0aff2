"""Give grpclib's server what it has no options for: settings of h2's, and goodbyes. For conformance tests only."""

from __future__ import annotations

import asyncio
from typing import Any

from grpclib.config import Configuration
from grpclib.protocol import Connection, EventsProcessor, H2Protocol
from grpclib.server import Server
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import PingAckReceived, RequestReceived
from h2.settings import SettingCodes
from hyperframe.frame import GoAwayFrame

from serviceradar_poller.testing.conformance_desk import Desk

_WINDOW_DEFAULT = 65_535
_STREAM_ID_MAX = 2**31 - 1
_SETTINGS = {
    "window_bytes": SettingCodes.INITIAL_WINDOW_SIZE,
    "table_bytes": SettingCodes.HEADER_TABLE_SIZE,
    "streams_max": SettingCodes.MAX_CONCURRENT_STREAMS,
    "frame_bytes_max": SettingCodes.MAX_FRAME_SIZE,
}


class H2Server(Server):
    """
    grpclib's server.

    Args:
        wanted: The options that a test wants.
    """

    def __init__(self, handlers: list[Any], *, codec: Any, desk: Desk, wanted: dict[str, Any]) -> None:
        wanted = {"window_bytes": 4 * 1024 * 1024, **wanted}
        config = Configuration(http2_connection_window_size=max(wanted["window_bytes"], _WINDOW_DEFAULT))
        super().__init__(handlers, codec=codec, config=config)
        self._desk = desk
        self._wanted = wanted
        self._connections: set[_Connection] = set()

    def goaway(self, last_stream_id: int) -> None:
        """Say on every connection which stream is the last, and close: h2 sends nothing after a GOAWAY."""
        for connection in self._connections:
            connection.end(last_stream_id)

    async def stop(self) -> None:
        """Say on every connection that all was taken, and end calls and connections."""
        self.close()
        for connection in self._connections:
            connection.end(None)
        await self.wait_closed()

    def _protocol_factory(self) -> H2Protocol:
        plain = super()._protocol_factory()
        return _Connection(plain.handler, plain.config, plain.h2_config, self._connections, self._desk, self._wanted)


class _Connection(H2Protocol):
    """One connection of grpclib's."""

    def __init__(
        self,
        handler: Any,
        config: Configuration,
        h2_config: H2Configuration,
        connections: set[_Connection],
        desk: Desk,
        wanted: dict[str, Any],
    ) -> None:
        super().__init__(handler, config, h2_config)
        self._connections = connections
        self._desk = desk
        self._wanted = wanted

    @property
    def _h2(self) -> H2Connection:
        return self.connection._connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin as grpclib does, with the settings that the test wants among the first that h2 sends."""
        assert isinstance(transport, asyncio.Transport)
        self._connections.add(self)
        h2 = H2Connection(config=self.h2_config)
        h2.local_settings.update({code: self._wanted[name] for name, code in _SETTINGS.items() if name in self._wanted})
        h2._local_settings_acked()  # in force at once
        h2.initiate_connection()
        more = self.config.http2_connection_window_size - _WINDOW_DEFAULT
        if more:
            h2.increment_flow_control_window(more)
        self.connection = Connection(h2, transport, config=self.config)
        self.connection.flush()
        self.connection.initialize()
        self.processor = EventsProcessor(self.handler, self.connection)
        if "age_s" in self._wanted:
            asyncio.get_running_loop().call_later(self._wanted["age_s"], self._retire)
        self.processor.processors[RequestReceived] = self._on_request
        self.processor.processors[PingAckReceived] = self._on_ping_ack

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget it."""
        self._connections.discard(self)
        super().connection_lost(exc)

    def end(self, last_stream_id: int | None) -> None:
        """Say goodbye by h2, and close."""
        if not self.connection.is_closing():
            self._h2.close_connection(last_stream_id=last_stream_id)
            self.connection.flush()
            self.processor.close("stopped")

    def _retire(self) -> None:
        """
        Say goodbye in two steps, as gRPC's other servers do: calls that are on their way are taken still.

        The frames are written past h2, which would send nothing after its own: calls under way could not finish.
        """
        if not self.connection.is_closing():
            self._write(GoAwayFrame(last_stream_id=_STREAM_ID_MAX))
            self._h2.ping(b"farewell")
            self.connection.flush()

    def _on_ping_ack(self, event: PingAckReceived) -> None:
        if event.ping_data == b"farewell":
            self._write(GoAwayFrame(last_stream_id=self._h2.highest_inbound_stream_id))
        else:
            self.processor.process_ping_ack_received(event)

    def _on_request(self, event: RequestReceived) -> None:
        self._desk.headers = {_text(name): _text(value) for name, value in event.headers or ()}
        self.processor.process_request_received(event)

    def _write(self, frame: GoAwayFrame) -> None:
        self.connection.flush()
        self.connection._transport.write(frame.serialize())


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("ascii")
