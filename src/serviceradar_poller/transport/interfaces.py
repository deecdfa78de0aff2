"""Find the machine's own address: the IPv4 of the first interface that is up and not the loopback."""

from __future__ import annotations

import socket
import struct
import sys
from typing import Final

# Source: linux/sockios.h, net/if.h
_SIOCGIFFLAGS: Final = 0x8913
_SIOCGIFADDR: Final = 0x8915
_IFF_UP: Final = 0x1
_IFF_LOOPBACK: Final = 0x8
_IFREQ_BYTES: Final = 40
_NAME_BYTES: Final = 16


def interface_address() -> str:
    """Return an IPv4 literal, by interface index; empty where there is none or the system is not Linux."""
    if sys.platform != "linux":
        return ""
    try:
        names = [name for _, name in sorted(socket.if_nameindex())]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            return next(filter(None, (_address(sock, name) for name in names)), "")
    except OSError:
        return ""  # no IPv4 on this machine


def _address(sock: socket.socket, name: str) -> str:
    flags = _ask(sock, _SIOCGIFFLAGS, name)
    if flags is None:
        return ""
    (bits,) = struct.unpack_from("=H", flags, _NAME_BYTES)
    if not bits & _IFF_UP or bits & _IFF_LOOPBACK:
        return ""
    # struct ifreq: the name, then struct sockaddr_in: family, port, address
    #   | name 16 | family 2 | port 2 | address 4 | …
    answer = _ask(sock, _SIOCGIFADDR, name)
    return socket.inet_ntoa(answer[_NAME_BYTES + 4 : _NAME_BYTES + 8]) if answer else ""


def _ask(sock: socket.socket, request: int, name: str) -> bytes | None:
    import fcntl

    ifreq = name.encode()[: _NAME_BYTES - 1].ljust(_IFREQ_BYTES, b"\0")
    try:
        return fcntl.ioctl(sock, request, ifreq)
    except OSError:
        return None  # it went away, or has no IPv4 address
