"""
Make the CallError of every way in which a call can fail: layer, stable reason, one line for an operator.

=================  ===========  =================================================================
reason             layer        meaning
=================  ===========  =================================================================
address            CONFIG       the address can't be read
credentials        CONFIG       certificate files missing, unreadable, mismatching, expired
resolve            RESOLVE      the name has no address
refused            TCP          connection refused
unreachable        TCP          no route, network or host unreachable
connect_timeout    up to HTTP2  no connection in time: name, SYN, handshake (TCP) or SETTINGS unanswered
reset              TCP          broken while connecting, the handshake included
reset              GRPC         broken while waiting for the answer: the request may have arrived
tls                TLS          handshake failed, either side refused the other's certificate
protocol           HTTP2        the peer speaks something else
goaway             HTTP2        the peer is closing the connection and has not taken the request
refused_stream     HTTP2        the peer has not taken the request
no_stream          HTTP2        too many calls wait for a free stream of the connection
connect            TCP          no connection, for a cause that is not in this table
stream_reset       GRPC         the peer broke off this call alone
timeout            DEADLINE     connected, but no answer in time
too_large          APPLICATION  the answer exceeds our receive limit
decode, encode     APPLICATION  the answer can't be read; the request can't be written
early_answer       APPLICATION  the peer said OK before it had the whole stream
closed             CONFIG       this client was closed
cancelled          CONFIG       this stream was cancelled by its reader
the code's name    GRPC         the peer's status: unimplemented, permission_denied, unavailable …
=================  ===========  =================================================================

A handshake without an answer, or broken, counts as TCP: silence says nothing of certificates.
"""

from __future__ import annotations

import enum
import re
from typing import Final

from serviceradar_poller.errors import CallError, GrpcCode, Layer

#: An operator's line; longer texts are cut.
DETAIL_CHARACTERS_MAX: Final = 240

_UNWANTED = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


def one_line(text: str, characters_max: int = DETAIL_CHARACTERS_MAX) -> str:
    """Make a text fit for a log line: no control characters or line ends, bounded length."""
    line = _UNWANTED.sub(" ", text).strip()
    if len(line) > characters_max:
        return line[: characters_max - 1].rstrip() + "…"
    return line


def deadline(peer: str, timeout_s: float, *, goodbye: str = "") -> CallError:
    """
    Make the failure of a call whose time ran out on a working connection, or before it began.

    Args:
        goodbye: Why the peer had begun to close the connection; empty when it had not.
    """
    detail = f"{peer}: no answer within {max(timeout_s, 0.0):.3g} s"
    if goodbye:
        detail += f"; the peer had said that it closes the connection: {goodbye}"
    return failed(Layer.DEADLINE, GrpcCode.DEADLINE_EXCEEDED, "timeout", detail)


def closed(peer: str) -> CallError:
    """Make the failure of a call on a client that is closed."""
    return failed(Layer.CONFIG, GrpcCode.CANCELLED, "closed", f"{peer}: the client was closed")


def cancelled(peer: str) -> CallError:
    """Make the failure of reading a stream that this side has cancelled."""
    return failed(Layer.CONFIG, GrpcCode.CANCELLED, "cancelled", f"{peer}: the stream was cancelled")


def unusable_address(detail: str) -> CallError:
    """Make the failure of a client whose address can't be read."""
    return failed(Layer.CONFIG, GrpcCode.INVALID_ARGUMENT, "address", detail)


def unusable_credentials(detail: str) -> CallError:
    """Make the failure of a client whose certificate files can't be used."""
    return failed(Layer.CONFIG, GrpcCode.FAILED_PRECONDITION, "credentials", detail)


def undecodable(peer: str, cause: str) -> CallError:
    """Make the failure of a call whose answer can't be read."""
    return failed(Layer.APPLICATION, GrpcCode.INTERNAL, "decode", f"{peer}: {cause}")


def unencodable(peer: str, cause: str) -> CallError:
    """Make the failure of a call whose request can't be written."""
    return failed(Layer.APPLICATION, GrpcCode.INVALID_ARGUMENT, "encode", f"{peer}: {cause}")


def early_answer(peer: str, sent_count: int, count: int) -> CallError:
    """Make the failure of a stream that the peer ended with OK before it had everything."""
    return failed(
        Layer.APPLICATION,
        GrpcCode.DATA_LOSS,
        "early_answer",
        f"{peer}: answered OK after {sent_count} of {count} chunks",
    )


class ConnectStep(enum.Enum):
    """What an attempt to connect waits for."""

    RESOLVE = "no answer from name resolution"
    TCP = "no answer to the TCP connect"
    TLS = "accepts TCP but does not answer the TLS handshake"
    SETTINGS = "accepts TCP but sends no HTTP/2 settings"


#: A handshake without an answer, or one that was reset, is a matter of reaching the peer: a process that hangs, a proxy
#: without its backend. Layer.TLS is for what was said about certificates or TLS itself: it counts as a matter of
#: security, is not tried again soon, and opens an agent's breaker sooner.
_STEP_LAYERS: Final = {
    ConnectStep.RESOLVE: Layer.RESOLVE,
    ConnectStep.TCP: Layer.TCP,
    ConnectStep.TLS: Layer.TCP,
    ConnectStep.SETTINGS: Layer.HTTP2,
}


def connect_timeout(peer: str, step: ConnectStep, code: GrpcCode, timeout_s: float | None = None) -> CallError:
    """Make the failure of a call whose connection was not up in time; *timeout_s* where that was the call's own."""
    within = "" if timeout_s is None else f" within {timeout_s:.3g} s"
    return failed(_STEP_LAYERS[step], code, "connect_timeout", f"{peer}: {step.value}{within}")


def unresolved(peer: str, cause: str, code: GrpcCode = GrpcCode.UNAVAILABLE) -> CallError:
    """Make the failure of a call to a name without address."""
    return failed(Layer.RESOLVE, code, "resolve", f"{peer}: {cause}")


def refused(peer: str, code: GrpcCode = GrpcCode.UNAVAILABLE) -> CallError:
    """Make the failure of a call to a closed port."""
    return failed(Layer.TCP, code, "refused", f"{peer}: connection refused")


def unreachable(peer: str, cause: str, code: GrpcCode = GrpcCode.UNAVAILABLE) -> CallError:
    """Make the failure of a call to an address that no route leads to."""
    return failed(Layer.TCP, code, "unreachable", f"{peer}: {cause}")


def connect_reset(peer: str, *, in_handshake: bool, code: GrpcCode = GrpcCode.UNAVAILABLE) -> CallError:
    """Make the failure of a call whose connection was reset before it was up."""
    during = " during the TLS handshake" if in_handshake else ""
    return failed(Layer.TCP, code, "reset", f"{peer}: connection reset{during}")


def unconnected(peer: str, cause: str, code: GrpcCode = GrpcCode.UNAVAILABLE) -> CallError:
    """Make the failure of a call without connection, for a cause that has no reason of its own."""
    return failed(Layer.TCP, code, "connect", f"{peer}: {cause}")


def tls(peer: str, cause: str, code: GrpcCode = GrpcCode.UNAVAILABLE) -> CallError:
    """Make the failure of a call whose TLS handshake failed."""
    return failed(Layer.TLS, code, "tls", f"{peer}: {cause}")


def closed_before_settings(peer: str, *, secure: bool, code: GrpcCode = GrpcCode.UNAVAILABLE) -> CallError:
    """Make the failure of a call whose peer closed the connection without a word of HTTP/2."""
    if secure:
        # In TLS 1.3 a client learns only after its own handshake that its certificate was refused.
        return tls(peer, "closed after the TLS handshake; our certificate was refused?", code)
    return protocol(peer, "closed without HTTP/2 settings; does it expect TLS?", code)


def protocol(peer: str, cause: str, code: GrpcCode = GrpcCode.UNAVAILABLE) -> CallError:
    """Make the failure of a call to a peer that speaks something else, or HTTP/2 badly."""
    return failed(Layer.HTTP2, code, "protocol", f"{peer}: {cause}")


def goaway(peer: str, http2_code: int, text: str) -> CallError:
    """Make the failure of a call that a peer has not taken because it closes the connection."""
    return failed(
        Layer.HTTP2,
        GrpcCode.UNAVAILABLE,
        "goaway",
        f"{peer}: is closing the connection (code {http2_code}, {text or 'no text'})",
    )


def refused_stream(peer: str, code: GrpcCode = GrpcCode.UNAVAILABLE) -> CallError:
    """Make the failure of a call that a peer has not taken."""
    return failed(Layer.HTTP2, code, "refused_stream", f"{peer}: did not take the call")


def stream_reset(peer: str, http2_code: int | str, code: GrpcCode) -> CallError:
    """Make the failure of a call that the peer broke off."""
    return failed(Layer.GRPC, code, "stream_reset", f"{peer}: broke off the call (HTTP/2 code {http2_code})")


def lost(peer: str, cause: str, code: GrpcCode = GrpcCode.UNAVAILABLE) -> CallError:
    """Make the failure of a call whose connection broke after the call was sent."""
    return failed(Layer.GRPC, code, "reset", f"{peer}: connection lost while waiting ({cause})")


def no_stream(peer: str, waiting_max: int) -> CallError:
    """Make the failure of a call that is one too many of those that wait for a free stream."""
    return failed(
        Layer.HTTP2,
        GrpcCode.RESOURCE_EXHAUSTED,
        "no_stream",
        f"{peer}: {waiting_max} calls wait already for one that the peer allows",
    )


def too_large(peer: str, size: str) -> CallError:
    """Make the failure of a call whose answer exceeds our limit."""
    # RESOURCE_EXHAUSTED counts as retryable, and the next answer would be as large.
    return failed(Layer.APPLICATION, GrpcCode.OUT_OF_RANGE, "too_large", f"{peer}: answer too large {size}")


def status(code: GrpcCode, text: str) -> CallError:
    """Make the failure of a call that the peer answered with an error."""
    return failed(Layer.GRPC, code, code.name.lower(), text or code.name)


def again(failure: CallError) -> CallError:
    """Make a copy to raise: one exception raised in several tasks would gather all their tracebacks."""
    return CallError(layer=failure.layer, code=failure.code, reason=failure.reason, detail=failure.detail)


def failed(layer: Layer, code: GrpcCode, reason: str, detail: str) -> CallError:
    """Make any failure; the detail becomes one bounded line."""
    return CallError(layer=layer, code=code, reason=reason, detail=one_line(detail))


def known_code(code: int) -> GrpcCode:
    """Return a status code; one that gRPC doesn't define is UNKNOWN."""
    try:
        return GrpcCode(code)
    except ValueError:
        return GrpcCode.UNKNOWN
