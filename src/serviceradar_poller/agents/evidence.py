"""What a failed call says about the agent as a whole, and not about the one check that it was for."""

from __future__ import annotations

from serviceradar_poller.errors import CallError, GrpcCode, Layer

#: Answers that a proxy, a full queue or a dying process gives in an agent's place.
_NOT_ALIVE_CODES = frozenset(
    {GrpcCode.UNAVAILABLE, GrpcCode.DEADLINE_EXCEEDED, GrpcCode.RESOURCE_EXHAUSTED, GrpcCode.CANCELLED}
)
#: Ends of a connection or stream that belong to its normal life; the next call opens a new one.
_NORMAL_ENDS = frozenset({"closed", "cancelled", "goaway", "refused_stream"})


class CallCut(Exception):  # noqa: N818 — no failure
    """Our own actors start again or stop, and the call with them: it has no outcome and is to be made again."""


def shows_life(error: CallError) -> bool:
    """Whether the agent itself answered, if only to say no."""
    return error.layer is Layer.APPLICATION or (error.layer is Layer.GRPC and error.code not in _NOT_ALIVE_CODES)


def is_denial(error: CallError) -> bool:
    """Whether the agent itself answered that we are not who may ask."""
    return error.security and shows_life(error)


def concerns_agent(error: CallError) -> bool:
    """Whether the failure may mean that no other call to the agent would succeed either."""
    if error.reason in _NORMAL_ENDS or error.layer in (Layer.BREAKER, Layer.CONFIG):
        return False
    return error.unreachable or error.security or error.layer is Layer.DEADLINE or error.code in _NOT_ALIVE_CODES
