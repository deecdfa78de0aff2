"""
Tell under which name and address a device is reported: agents, and the poller itself.

Everything here is text work; who resolves names does so between `names_to_resolve` and `device_ip`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence

from serviceradar_poller.logic.jsontext import text_of

#: Longer texts are cut before they become a name or an address.
TEXT_BYTES_MAX = 512
#: Variables that name the poller's own address, first wins; the configuration comes after them.
SOURCE_IP_VARIABLES = ("SERVICERADAR_SOURCE_IP", "POD_IP", "HOST_IP", "NODE_IP")
#: Placeholders that shipped configurations use where no address is meant.
UNSET_SOURCES = frozenset({"", "auto", "poller", "agent", "localhost"})
#: A DNS name in text form is never longer, RFC 1035 section 2.3.4.
DNS_NAME_SIZE_MAX = 253

# Go's unicode.IsSpace; str.strip() alone would also take the separators U+001C to U+001F.
_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")
_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = re.compile(rf"{_OCTET}\.{_OCTET}\.{_OCTET}\.{_OCTET}")
_IPV6_ALPHABET = re.compile(r"[0-9a-fA-F:.]+")
_NO_NAME = re.compile(r"[:/\[\]%\s\x00-\x1f]")


def sanitize(text: str) -> str:
    """
    Return *text* fit to stand in a report: trimmed, at most 512 bytes, without control characters.

    Tab, CR and LF stay. A character that the cut breaks becomes U+FFFD, once for each byte left of it, as in
    Go.
    """
    text = text.strip(_SPACE)
    if len(text) * 4 > TEXT_BYTES_MAX:
        raw = text.encode("utf-8", "replace")
        if len(raw) > TEXT_BYTES_MAX:
            text = text_of(raw[:TEXT_BYTES_MAX])
    return _CONTROL.sub("", text)


def host_of(text: str) -> str:
    """
    Return the host of ``host:port`` or ``[v6]:port``; whatever is neither, or has no host, comes back whole.

    Source: the rules of Go's net.SplitHostPort, which don't look at the port.
    """
    head, colon, _ = text.rpartition(":")
    if not colon:
        return text
    if head.startswith("["):
        host = head[1:-1]
        if not head.endswith("]") or "[" in host or "]" in host or _bracket(text[len(head) :]):
            return text
        return host or text
    if ":" in head or _bracket(text):
        return text
    return head or text


def literal_ip(text: str) -> str | None:
    """
    Return the canonical form of a literal IP address, or None; IPv4 mapped into IPv6 becomes IPv4.

    Zones and leading zeros are refused: the one means something on one machine only, the other is octal to
    some.
    """
    if _IPV4.fullmatch(text):
        return text
    if ":" not in text or not _IPV6_ALPHABET.fullmatch(text):
        return None
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        return None
    return str(address.ipv4_mapped or address)


def override_variable(name: str) -> str:
    """Return the environment variable that overrides the address of the agent *name*."""
    return f"SERVICERADAR_AGENT_{name.replace('-', '_').upper()}_IP"


def device_host(name: str, address: str, *, override: str = "", source_ip: str = "") -> str:
    """Return the name that the agent's device is reported under: the first candidate that is no mere port."""
    for candidate in ip_candidates(name, address, source_ip, override):
        if not candidate.startswith(":"):
            return candidate
    return name


def ip_candidates(name: str, address: str, source_ip: str, override: str) -> tuple[str, ...]:
    """Return what may be the device's address, best first: override, target, agent's name, poller."""
    cleaned = (sanitize(text) for text in (override, host_of(address), name, source_ip))
    return tuple(text for text in cleaned if text)


def names_to_resolve(candidates: Sequence[str]) -> tuple[str, ...]:
    """Return the candidates that need a name server, in order, each once, up to the first literal address."""
    names: dict[str, None] = {}
    for candidate in candidates:
        if literal_ip(candidate) is not None:
            break
        if len(candidate) <= DNS_NAME_SIZE_MAX and not _NO_NAME.search(candidate):
            names[candidate] = None
    return tuple(names)


def device_ip(candidates: Sequence[str], resolved: Mapping[str, Sequence[str]], fallback_ip: str) -> str:
    """
    Return the device's address: the first candidate that is one or resolved to one, else *fallback_ip*.

    Args:
        candidates: From `ip_candidates`.
        resolved: Addresses of the names that could be resolved; IPv4 is preferred among them.
        fallback_ip: The poller's own address; may be empty.
    """
    for candidate in candidates:
        literal = literal_ip(candidate)
        if literal is not None:
            return literal
        addresses = [literal_ip(text.partition("%")[0]) for text in resolved.get(candidate, ())]
        usable = [text for text in addresses if text is not None]
        if usable:
            return next((text for text in usable if ":" not in text), usable[0])
    return fallback_ip


def source_ip_candidates(environ: Mapping[str, str], config_value: str) -> tuple[str, ...]:
    """
    Return what may be the poller's own address, best first, as literal addresses or names to resolve.

    Ports are taken off, placeholders such as ``auto`` left out; empty when nothing names one, and then the
    caller takes an interface's address.
    """
    found: dict[str, None] = {}
    for value in (*(environ.get(variable, "") for variable in SOURCE_IP_VARIABLES), config_value):
        text = value.strip()
        host = literal_ip(text) or host_of(text)
        if text.lower() not in UNSET_SOURCES and host.lower() not in UNSET_SOURCES:
            found[literal_ip(host) or host] = None
    return tuple(found)


def _bracket(text: str) -> bool:
    return "[" in text or "]" in text
