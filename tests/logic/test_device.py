from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serviceradar_poller.logic.device import (
    TEXT_BYTES_MAX,
    device_host,
    device_ip,
    host_of,
    ip_candidates,
    literal_ip,
    names_to_resolve,
    override_variable,
    sanitize,
    source_ip_candidates,
)

ips = st.ip_addresses().map(str)
host_like = st.one_of(ips, st.text(max_size=20), st.text("ab.:[]%/ 019-\t\x01", max_size=20))


def test_every_vector(host_vectors: list[dict[str, Any]]) -> None:
    """Name and address of a device are those of every recorded case."""
    assert len(host_vectors) == 52
    for vector in host_vectors:
        name, address, fallback = vector["name"], vector["address"], vector["fallback_ip"]
        candidates = ip_candidates(name, address, fallback, "")
        # The fake name server knows these names only; the others fail.
        resolved = {asked: vector["dns"].get(asked, ()) for asked in names_to_resolve(candidates)}
        found = {"host": device_host(name, address), "ip": device_ip(candidates, resolved, fallback)}
        assert found == vector["expect"], vector


@given(st.ip_addresses(v=4))
def test_ipv4_addresses_are_themselves(address: ipaddress.IPv4Address) -> None:
    """Plain and mapped into IPv6, in both spellings, an IPv4 address reads as its dotted form."""
    high, low = divmod(int(address), 2**16)
    for text in (f"{address}", f"::ffff:{address}", f"::FFFF:{high:x}:{low:x}", f"0:0:0:0:0:ffff:{address}"):
        assert literal_ip(text) == str(address)


@given(st.ip_addresses(v=6))
def test_ipv6_addresses_are_canonical(address: ipaddress.IPv6Address) -> None:
    """Whatever its spelling, an IPv6 address reads as its shortest form; with a zone it is none."""
    expected = str(address.ipv4_mapped or address)
    for text in (address.compressed, address.exploded, address.exploded.upper()):
        assert literal_ip(text) == expected
        assert literal_ip(f"{text}%eth0") is None


@given(host_like)
@example("010.0.0.1")
@example("1.2.3.4\n")
@example("::1/64")
@example("１.1.1.1")
@example("1.2.3")
@example("1:2:3:4:5:6:7:8:9")
def test_only_addresses_are_literal_addresses(text: str) -> None:
    """It is an address exactly when the standard library, without zones, says so."""
    try:
        address = None if "%" in text else ipaddress.ip_address(text)
    except ValueError:
        address = None
    if address is None:
        assert literal_ip(text) is None
    else:
        assert ipaddress.ip_address(literal_ip(text) or "") == (getattr(address, "ipv4_mapped", None) or address)


@given(st.text("abcé.-_ \t/%", min_size=1), st.integers(0, 70_000))
def test_the_host_of_a_target_is_before_the_port(host: str, port: int) -> None:
    """host:port gives host, whatever the port's text; no port, no change."""
    assert host_of(f"{host}:{port}") == host
    assert host_of(f"{host}:") == host
    assert host_of(host) == host


@given(st.ip_addresses(v=6).map(str), st.integers(0, 70_000))
def test_the_host_of_an_ipv6_target_is_in_the_brackets(address: str, port: int) -> None:
    """[v6]:port gives the address; without brackets the port can't be told from it."""
    assert host_of(f"[{address}]:{port}") == address
    assert host_of(address) == address
    assert host_of(f"[{address}]") == f"[{address}]"


@pytest.mark.parametrize(
    "text",
    [
        "", ":", ":80", "[]:80", "[::1", "[::1]", "[::1]80", "[::1]x:80", "[::1]:80:90", "a[b]:80", "a]:80", "a:8]0",
        "[abc:80", "[2001:db8::1:80", "[a[b]:80", "[a]]:80", "[a]:8[0", "a:b:c", "::1", '{"seeds":["192.168.1.1"]}', "dns:///agent:50051",
    ],
)  # fmt: skip
def test_what_is_no_target_comes_back_whole(text: str) -> None:
    """Texts that Go's net.SplitHostPort refuses, or whose host is empty, are left as they are."""
    assert host_of(text) == text


@given(st.text())
@example("\x1c a \x1c")
@example("é" * 300)
@example("x" * 511 + "é")
@example("x" * 510 + "😀")
def test_sanitized_text_is_what_go_makes_of_it(text: str) -> None:
    """Trimmed by Unicode's white space, cut at 512 bytes, no control characters, broken characters replaced."""
    white = "".join(map(chr, [*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B)]))
    white += "\u2028\u2029\u202f\u205f\u3000"
    raw = text.strip(white).encode("utf-8", "replace")[:TEXT_BYTES_MAX]
    expected = "".join(
        "\ufffd" if "\udc80" <= char <= "\udcff" else char
        for char in raw.decode("utf-8", "surrogateescape")
        if ord(char) >= 0x20 or char in "\t\r\n"
    )
    assert sanitize(text) == expected


@given(host_like, host_like, host_like, host_like)
def test_candidates_are_in_order_and_usable(name: str, address: str, source: str, override: str) -> None:
    """Override, target, name, source: each sanitized, none empty; the host is the first that is no mere port."""
    candidates = ip_candidates(name, address, source, override)
    assert list(candidates) == [t for t in map(sanitize, (override, host_of(address), name, source)) if t]
    host = device_host(name, address, override=override, source_ip=source)
    assert host == next((text for text in candidates if not text.startswith(":")), name)


@given(st.lists(host_like, max_size=5))
def test_names_are_asked_for_only_before_a_literal_address(candidates: list[str]) -> None:
    """What is resolved comes before the first literal, once, in order, and can be a name at all."""
    names = names_to_resolve(candidates)
    first = next((i for i, text in enumerate(candidates) if literal_ip(text)), len(candidates))
    assert len(set(names)) == len(names)
    assert [text for text in dict.fromkeys(candidates[:first]) if text in names] == list(names)
    assert not any(set(text) & set(":/[]% \t\x01") for text in names)


@pytest.mark.slow
@given(st.lists(host_like, max_size=5), st.dictionaries(host_like, st.lists(host_like, max_size=3)), ips)
def test_a_device_address_is_an_address(candidates: list[str], resolved: dict[str, list[str]], fallback: str) -> None:
    """Whatever a name server says, the result is a literal address or the fallback, the first candidate winning."""
    found = device_ip(candidates, resolved, fallback)
    assert found == fallback or literal_ip(found) == found
    if candidates and literal_ip(candidates[0]):
        assert found == literal_ip(candidates[0])


def test_ipv4_is_preferred_among_resolved_addresses() -> None:
    """Of a name's addresses the first IPv4 one is taken, else the first; zones go."""
    assert device_ip(["a"], {"a": ["2001:db8::1", "::ffff:10.0.0.2", "10.0.0.1"]}, "") == "10.0.0.2"
    assert device_ip(["a"], {"a": ["fe80::1%2", "2001:db8::1"]}, "") == "fe80::1"
    assert device_ip(["a", "b"], {"a": [], "b": ["10.0.0.3"]}, "") == "10.0.0.3"
    assert device_ip(["a"], {}, "192.0.2.1") == "192.0.2.1"


def test_an_override_wins() -> None:
    """The operator's variable is both address and name."""
    assert override_variable("edge-agent-01") == "SERVICERADAR_AGENT_EDGE_AGENT_01_IP"
    candidates = ip_candidates("edge", "10.0.0.4:50051", "", " 10.9.9.9 ")
    assert device_ip(candidates, {}, "") == "10.9.9.9"
    assert device_host("edge", "10.0.0.4:50051", override=" 10.9.9.9 ") == "10.9.9.9"


def test_source_addresses_are_taken_in_order() -> None:
    """The variables come in their order, then the configuration; ports go, and mapped addresses are plain."""
    environ = {
        "NODE_IP": "10.0.0.4", "HOST_IP": "::ffff:10.0.0.3", "POD_IP": "[2001:db8::2]:80",
        "SERVICERADAR_SOURCE_IP": " poller.example:50053 ",
    }  # fmt: skip
    assert source_ip_candidates(environ, "10.0.0.5") == (
        "poller.example", "2001:db8::2", "10.0.0.3", "10.0.0.4", "10.0.0.5",
    )  # fmt: skip


@pytest.mark.parametrize("value", ["", "  ", "auto", " Auto", "poller", "AGENT", "localhost", "localhost:50053"])
def test_placeholders_are_no_source_address(value: str) -> None:
    """Placeholders count as unset wherever they stand."""
    assert source_ip_candidates({"POD_IP": value}, value) == ()


@given(st.dictionaries(st.sampled_from(["SERVICERADAR_SOURCE_IP", "POD_IP", "X"]), host_like), host_like)
def test_source_candidates_are_clean(environ: dict[str, str], value: str) -> None:
    """Whatever stands in the environment: literal addresses are canonical, nothing is empty or there twice."""
    found = source_ip_candidates(environ, value)
    assert len(set(found)) == len(found) <= 5
    assert all(text and (literal_ip(text) or text) == text for text in found)
