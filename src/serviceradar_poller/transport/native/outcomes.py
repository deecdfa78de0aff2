"""Turn how a call ended in HTTP/2's and gRPC's terms into CallError."""

from __future__ import annotations

from typing import assert_never

from serviceradar_poller.errors import CallError, GrpcCode
from serviceradar_poller.transport import failures
from serviceradar_poller.transport.failures import known_code
from serviceradar_poller.transport.http2 import Call, Cause
from serviceradar_poller.transport.http2.status import error_name
from serviceradar_poller.transport.native.connection import Connection


def failure_of(call: Call, connection: Connection, peer: str) -> CallError:
    """Classify a call that ended without what was asked for."""
    outcome = call.outcome
    assert outcome is not None
    code = known_code(outcome.code)
    match outcome.cause:
        case Cause.STATUS:
            return failures.status(code, outcome.message)
        case Cause.REFUSED:
            going_away = connection.session.going_away
            if going_away is not None and call.id > going_away.last_stream_id:
                return failures.goaway(peer, going_away.code, going_away.text)
            return failures.refused_stream(peer)
        case Cause.RESET:
            return failures.stream_reset(peer, outcome.http2_code or 0, code)
        case Cause.CANCELLED:
            return failures.cancelled(peer)
        case Cause.TOO_LARGE:
            return failures.too_large(peer, f"({outcome.message})")
        case Cause.PROTOCOL:
            if call.has_headers:
                # It is a gRPC server and it has the request: no matter of reaching it.
                return failures.status(GrpcCode.INTERNAL if code is GrpcCode.OK else code, f"{peer}: {outcome.message}")
            return failures.protocol(peer, outcome.message, code)
        case Cause.CONNECTION:
            return connection.failure or failures.lost(peer, "closed by this side")
        case _:
            assert_never(outcome.cause)


def goodbye_of(connection: Connection) -> str:
    """Return for which error the peer is closing the connection; empty without one."""
    going_away = connection.session.going_away
    if going_away is None or not going_away.code:
        return ""
    return f"{error_name(going_away.code)} {going_away.text}".rstrip()
