"""
Write into a status message which device it is about, as core expects to find it.

    {"cpu": 10.0}
    {"cpu": 10, "status": {host_ip, ip, host_name, hostname}, host_ip, ip, host_name, hostname}

What an agent itself says of its host stays. What core could not store stays too, as text under
``status_text``.
"""

from __future__ import annotations

import functools

import msgspec

from serviceradar_poller.logic.device import host_of, literal_ip, sanitize
from serviceradar_poller.logic.jsontext import UnreadableJson, decode, encodable, text_of, verbatim

#: Remembered (details, device) triples: they repeat every cycle, and finding their address costs more than
#: the rest.
HOSTS_REMEMBERED_MAX = 4096
#: The payload maps targets to their values: core refuses it when other keys come in.
UNTOUCHED_TYPES = frozenset({"snmp"})

_ARRAY = ord("[")
_WHITE = b" \t\r\n"
_encode = msgspec.json.Encoder().encode


def should_enrich(service_type: str) -> bool:
    """Whether messages of *service_type* take host fields."""
    return service_type not in UNTOUCHED_TYPES


def enrich(message: bytes, *, details: str, device_ip: str, device_host: str) -> bytes:
    """
    Return *message* with the host's address and name at the top level and in its ``status`` object.

    Untouched are messages of a host whose address is unknown, JSON arrays, and objects nested too deeply to
    read. Empty and ``null`` become an object with nothing but the host. Anything else that is no object is
    kept whole as text: a JSON string's characters, or else the bytes as they came.

    Args:
        message: What an agent answered, or the poller's own words about a failure; any bytes.
        details: The check's details; when they hold a host, that is the one the message is about.
        device_ip: The agent's own address.
        device_host: The agent's own name.
    """
    address, name = _host(details, device_ip, device_host)
    if not address:
        return message
    payload = _payload(message)
    if payload is None:
        return message
    status = payload.get("status")
    if type(status) is not dict:
        if status is not None:
            payload["status_text"] = status
        payload["status"] = status = {}
    if not (_says(status, "host_ip", "ip") or _says(payload, "host_ip", "ip")):
        status["host_ip"] = status["ip"] = payload["host_ip"] = payload["ip"] = address
    if not (_says(status, "host_name", "hostname") or _says(payload, "host_name", "hostname")):
        status["host_name"] = payload["host_name"] = name
        status.setdefault("hostname", name)
        payload.setdefault("hostname", name)
    try:
        return _encode(payload)
    except RecursionError:
        return message


def _payload(message: bytes) -> dict[str, object] | None:
    """Return the object to write into, or None when *message* must stay as it is."""
    body = message.lstrip(_WHITE)
    if not body:
        return {}
    if body[0] == _ARRAY and verbatim(body) is not None:  # arrays may be huge: build nothing
        return None
    try:
        value = decode(body)
    except UnreadableJson as error:
        if isinstance(error.__cause__, RecursionError):
            return None
        return {"status_text": text_of(message)}
    if type(value) is dict:
        return value
    if value is None:
        return {}
    return {"status_text": value if type(value) is str else text_of(message)}


def _says(fields: dict[str, object], first: str, second: str) -> bool:
    """Whether either field is a text with something in it."""
    for key in (first, second):
        value = fields.get(key)
        if type(value) is str and value and not value.isspace():
            return True
    return False


@functools.lru_cache(maxsize=HOSTS_REMEMBERED_MAX)
def _host(details: str, device_ip: str, device_host: str) -> tuple[str, str]:
    """Return (address, name) of the host that a check is about; an empty address when there is none."""
    about = sanitize(host_of(sanitize(details)))
    own_name = sanitize(device_host)
    for text in (about, sanitize(device_ip), own_name):
        address = literal_ip(text)
        if address is not None:
            break
    else:
        return "", ""
    name = about if not own_name or address == about else own_name
    return address, encodable(name or address)
