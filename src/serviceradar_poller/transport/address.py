"""Read the addresses that an operator writes: ``host:port``, ``:port``, ``[v6]:port``, ``dns:///host:port``."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from serviceradar_poller.errors import PollerError

# Labels as in RFC 1123, underscores allowed as in container and service names.
_HOST = re.compile(r"(?=.{1,253}\.?$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*\.?")
_DNS_SCHEME = re.compile(r"dns:(//(?P<authority>[^/]*)/)?(?P<endpoint>[^/]+)")


class AddressError(PollerError):
    """
    An address can't be used.

    Attributes:
        address: What was written.
        accepted: What may be written.
    """

    def __init__(self, address: str, accepted: str) -> None:
        super().__init__(f"unusable address {address[:100]!r}; accepted: {accepted}")
        self.address = address
        self.accepted = accepted


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """
    Where a peer listens.

    Attributes:
        host: Name or IP literal, without brackets.
        target: The same in gRPC's naming syntax, https://github.com/grpc/grpc/blob/master/doc/naming.md
    """

    host: str
    port: int
    target: str

    def __str__(self) -> str:
        return join_host_port(self.host, self.port)


def parse_address(text: str, *, port_min: int = 1) -> Address:
    """
    Read an address; an empty host means localhost.

    gRPC takes a port above 65535 modulo 65536 and ``unix:50051`` for a scheme: hence the explicit target.

    Raises:
        AddressError: no port, a bad port or a bad host.
    """
    authority = ""
    endpoint = text.strip()
    match = _DNS_SCHEME.fullmatch(endpoint)
    # A host named "dns" is written dns:53; digits alone after the colon are its port.
    if match and (match["authority"] is not None or not match["endpoint"].isdigit()):
        authority, endpoint = match["authority"] or "", match["endpoint"]
    host, port_text = _split(text, endpoint)
    if not (port_text.isascii() and port_text.isdigit() and port_min <= int(port_text[:6]) <= 65535):
        raise AddressError(text, f"host:port with a port from {port_min} to 65535")
    port = int(port_text)
    host = host or "localhost"
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        if not _HOST.fullmatch(host) or re.fullmatch(r"[0-9.]+", host):
            raise AddressError(text, "a host name or an IP literal before the port") from None
        return Address(host=host, port=port, target=f"dns://{authority}/{host}:{port}")
    scheme = "ipv4" if ip.version == 4 else "ipv6"
    return Address(host=host, port=port, target=f"{scheme}:{join_host_port(host, port)}")


def join_host_port(host: str, port: int) -> str:
    """Write host and port as one, brackets around an IPv6 literal."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _split(text: str, endpoint: str) -> tuple[str, str]:
    if endpoint.startswith("["):
        host, bracket, rest = endpoint[1:].partition("]")
        if not bracket or not rest.startswith(":") or ":" not in host:
            raise AddressError(text, "[IPv6 literal]:port")
        return host, rest[1:]
    host, colon, port = endpoint.rpartition(":")
    if not colon:
        raise AddressError(text, "host:port; the port is missing")
    if ":" in host:
        raise AddressError(text, "host:port, an IPv6 literal in brackets")
    return host, port
