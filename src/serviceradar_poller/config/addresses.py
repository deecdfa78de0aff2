"""Take ``host:port`` texts apart, as far as a configuration needs to be sure of their shape."""

from __future__ import annotations

import ipaddress

PORT_MAX = 65535


def split_host_port(text: str) -> tuple[str, int] | None:
    """
    Return host and port of ``host:port``, ``:port`` or ``[v6]:port``; None when *text* is none of them.

    Brackets are taken off; the host may be empty.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or len(port) > 5 or int(port) > PORT_MAX:
        return None
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        return None
    if any(char.isspace() for char in host):
        return None
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether a listener on *host* is reached from this machine only; an empty host is every interface."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
