"""
Read the addresses and names that an operator writes.

``host:port``, ``:port``, ``[v6]:port`` for a peer and for a listener, ``dns:///host:port`` for a peer, and the name or
address that a peer's certificate must hold. What is refused here can never work, whatever the network does.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from serviceradar_poller.errors import PollerError

# Labels as in RFC 1123, underscores allowed as in container and service names.
_HOST = re.compile(r"(?=.{1,253}\.?$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*\.?")
_DNS_SCHEME = re.compile(r"dns:(//(?P<authority>[^/]*)/)?(?P<endpoint>[^/]+)")


PORT_MAX = 65535


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


def parse_address(text: str) -> Address:
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
    port = _port(text, port_text, port_min=1)
    host = host or "localhost"
    ip = _host(text, host)
    if ip is None:
        return Address(host=host, port=port, target=f"dns://{authority}/{host}:{port}")
    return Address(host=host, port=port, target=f"ipv{ip.version}:{join_host_port(host, port)}")


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where to listen; an empty host is every interface, port 0 any free port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> ListenAddress:
        """Read ``host:port``, ``:port`` or ``[v6]:port``. Raises AddressError."""
        host, port_text = _split(text, text.strip())
        port = _port(text, port_text, port_min=0)
        if host:
            _host(text, host)
        return cls(host, port)

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)

    def __str__(self) -> str:
        return join_host_port(self.host, self.port)


def is_loopback(host: str) -> bool:
    """Whether *host*, a name or an IP literal, is this machine's loopback; an empty one is every interface."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def certificate_name(text: str) -> str:
    """
    Return the name or IP literal that a certificate must hold for *text*, as Go's VerifyHostname reads it.

    Brackets around an IP literal and a name's final dot are no part of it, an IPv4 address within IPv6 is that address,
    and an IPv6 zone is this machine's business.

    Raises:
        AddressError: No certificate can hold it.
    """
    name = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    ip = _host(text, name, accepted="a host name or an IP literal, as in the peer's certificate")
    if ip is None:
        return name.removesuffix(".")
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return str(mapped or ip).partition("%")[0]


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


def _port(text: str, port: str, *, port_min: int) -> int:
    digits = port.lstrip("0") or port[-1:]
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 5 and port_min <= int(digits) <= PORT_MAX):
        raise AddressError(text, f"host:port with a port from {port_min} to {PORT_MAX}")
    return int(digits)


def _host(
    text: str, host: str, *, accepted: str = "a host name or an IP literal before the port"
) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address that *host* is, None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        # Digits and dots alone are meant as an address; what a resolver makes of 127.1 or 010.0.0.1 is not.
        if not _HOST.fullmatch(host) or re.fullmatch(r"[0-9.]+", host):
            raise AddressError(text, accepted) from None
        return None
