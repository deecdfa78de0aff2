"""
Put a status message into the envelope by which core finds its agent, partition and service.

Valid JSON goes in as the bytes that came, so that numbers keep every digit and nothing is built for large
messages.
"""

from __future__ import annotations

import msgspec

from serviceradar_poller.logic.jsontext import encodable, text_of, verbatim

#: Core takes these messages without an envelope.
BARE_TYPES = frozenset({"sync"})

_EMPTY = msgspec.Raw(b"{}")


def needs_wrap(service_type: str) -> bool:
    """Whether messages of *service_type* travel in an envelope."""
    return service_type not in BARE_TYPES


def wrap(
    message: bytes, *, poller_id: str, agent_id: str, partition: str, service_type: str, service_name: str
) -> bytes:
    """
    Return *message* in core's envelope, as UTF-8 JSON.

    An empty message becomes ``{}``; what is not JSON, or is nested too deeply to be checked, becomes
    ``{"message": text}`` with U+FFFD for every byte that is not UTF-8.
    """
    if not message:
        data = _EMPTY
    else:
        body = verbatim(message)
        data = msgspec.Raw(_encode({"message": text_of(message)}) if body is None else body)
    try:
        return _encode(_Envelope(poller_id, agent_id, partition, service_type, service_name, data))
    except UnicodeEncodeError:
        return _encode(
            _Envelope(
                encodable(poller_id),
                encodable(agent_id),
                encodable(partition),
                encodable(service_type),
                encodable(service_name),
                data,
            )
        )


class _Envelope(msgspec.Struct):
    """The envelope's keys, in the order that core's own tools write them."""

    poller_id: str
    agent_id: str
    partition: str
    service_type: str
    service_name: str
    data: msgspec.Raw


_encode = msgspec.json.Encoder().encode
