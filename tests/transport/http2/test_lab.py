"""Against the lab's own server, in memory: the two state machines understand each other."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from serviceradar_poller.errors import GrpcCode
from serviceradar_poller.lab.http2 import Call as Request
from serviceradar_poller.lab.http2 import Http2Server
from serviceradar_poller.testing.http2_frames import REQUEST
from serviceradar_poller.transport.http2 import Cause, Session


def exchange(session: Session, server: Http2Server) -> None:
    """Carry bytes both ways until neither side has any."""
    while (sent := session.take_output()) or server.out:
        server.receive(sent)
        received = bytes(server.out)
        server.out.clear()
        session.receive(received)
        server.resume()


def lab(on_call: Callable[[Request], None]) -> tuple[Session, Http2Server]:
    return Session(), Http2Server(on_call=on_call, wake=lambda: None, now=lambda: 0.0)


@given(st.lists(st.binary(max_size=100) | st.integers(0, 300_000).map(bytes), min_size=1, max_size=10))
def test_answers_and_failures(messages: list[bytes]) -> None:
    """Messages of any size come back, failures with their text, and warm blocks mean the same as the first."""
    session, server = lab(
        lambda request: (
            request.fail(GrpcCode.ABORTED, "näh 100%")
            if request.message.startswith(b"\1")
            else request.reply(request.message)
        )
    )
    for message in messages:
        call = session.open(REQUEST, timeout_s=1, message=message)
        exchange(session, server)
        assert call.outcome is not None and call.outcome.cause is Cause.STATUS
        if message.startswith(b"\1"):
            assert (call.outcome.code, call.outcome.message) == (10, "näh 100%")
        else:
            assert (call.outcome.code, call.take()) == (0, message)
    assert session.error is None and session.active == 0


def test_a_streamed_answer() -> None:
    """A streamed answer larger than all windows comes in order, as it is asked for."""
    chunks = [bytes((index,)) * 100_000 for index in range(40)]
    session, server = lab(lambda request: request.stream(iter(chunks)))
    call = session.open(REQUEST, timeout_s=None, message=b"", streaming=True)
    for chunk in chunks:
        exchange(session, server)
        assert call.buffered_bytes <= session.limits.stream_window_bytes
        call.want()
        exchange(session, server)
        assert call.take() == chunk
    exchange(session, server)
    assert call.outcome is not None and call.outcome.code == 0
