"""What core's failure to accept a call says: about core, about the call, or about neither for certain."""

from __future__ import annotations

import enum

from serviceradar_poller.errors import CallError, GrpcCode, Layer


class Refusal(enum.StrEnum):
    """What to do about a call that core did not accept."""

    TROUBLE = "trouble"  # core or the way to it: the same call again, until it is accepted
    TOO_LARGE = "too_large"  # in smaller calls
    FINAL = "final"  # this call will never be accepted
    DOUBTFUL = "doubtful"  # core's database, or this call: another call's fate tells


_ABOUT_THE_CALL = frozenset(
    {
        GrpcCode.INVALID_ARGUMENT,
        GrpcCode.OUT_OF_RANGE,
        GrpcCode.FAILED_PRECONDITION,
        GrpcCode.UNIMPLEMENTED,
    }
)
_ABOUT_CORE = frozenset(
    {
        GrpcCode.UNAVAILABLE,
        GrpcCode.DEADLINE_EXCEEDED,
        GrpcCode.ABORTED,
        GrpcCode.CANCELLED,
        GrpcCode.UNAUTHENTICATED,
        GrpcCode.PERMISSION_DENIED,
    }
)


def judge(error: CallError, *, stream: bool = False) -> Refusal:
    """
    Return what a failed call to core means.

    Whoever does not know the call that every report is made by is no core, or not yet one: no report is at fault. A
    core without streams, however, never takes one.

    Core answers UNKNOWN when its database fails, and RESOURCE_EXHAUSTED to a message above its limit as well as to too
    many of them.
    """
    if error.unreachable or error.layer is Layer.DEADLINE or error.code in _ABOUT_CORE:
        return Refusal.TROUBLE
    if error.code is GrpcCode.UNIMPLEMENTED and not stream:
        return Refusal.TROUBLE
    if error.code is GrpcCode.RESOURCE_EXHAUSTED:
        return Refusal.TOO_LARGE
    if error.code in _ABOUT_THE_CALL or error.reason in ("encode", "too_large"):
        return Refusal.FINAL
    return Refusal.DOUBTFUL
