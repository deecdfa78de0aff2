"""
The client's side of HTTP/2 and of gRPC on it, as a state machine: bytes in; calls touched and bytes out.

Belongs here: framing, header blocks, flow control, calls, and what each way a call can end means in gRPC. Nothing
here waits, reads a clock, opens a socket, takes chance or writes a log: an owner carries the bytes, keeps the
deadlines, and decides when to ping, to connect again or to give up.

    owner                          Session                               peer
    open(headers, message)   ──►   HEADERS, DATA in one output    ──►
    receive(bytes)           ──►   frames, then calls touched     ◄──    HEADERS, DATA, HEADERS
    call.take(), .outcome    ◄──
    take_output()            ◄──   credit, acks, resets           ──►

Sources: RFC 9113 (HTTP/2), RFC 7541 (HPACK), gRPC's PROTOCOL-HTTP2.md, http-grpc-status-mapping.md, statuscodes.md
and compression.md.
"""

from serviceradar_poller.transport.http2.call import Call
from serviceradar_poller.transport.http2.limits import Limits
from serviceradar_poller.transport.http2.requests import RequestHeaders
from serviceradar_poller.transport.http2.session import Session
from serviceradar_poller.transport.http2.status import Cause, GoAway, Outcome, SessionError

__all__ = ["Call", "Cause", "GoAway", "Limits", "Outcome", "RequestHeaders", "Session", "SessionError"]
