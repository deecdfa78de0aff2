from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serviceradar_poller.config.addresses import (
    AddressError,
    ListenAddress,
    certificate_name,
    is_loopback,
    parse_address,
)


@pytest.mark.parametrize(
    ("text", "host", "port", "target"),
    [
        (":50051", "localhost", 50051, "dns:///localhost:50051"),
        ("10.20.0.11:50051", "10.20.0.11", 50051, "ipv4:10.20.0.11:50051"),
        ("[2001:db8::1]:5", "2001:db8::1", 5, "ipv6:[2001:db8::1]:5"),
        ("agent.example:50051", "agent.example", 50051, "dns:///agent.example:50051"),
        ("serviceradar_agent-1:1", "serviceradar_agent-1", 1, "dns:///serviceradar_agent-1:1"),
        ("dns:///agent:50051", "agent", 50051, "dns:///agent:50051"),
        ("dns://10.0.0.53/agent:50051", "agent", 50051, "dns://10.0.0.53/agent:50051"),
        ("dns:agent:50051", "agent", 50051, "dns:///agent:50051"),
        ("dns:53", "dns", 53, "dns:///dns:53"),
        ("unix:50051", "unix", 50051, "dns:///unix:50051"),
        (" host:1 ", "host", 1, "dns:///host:1"),
        ("host:050051", "host", 50051, "dns:///host:50051"),
    ],
)
def test_addresses(text: str, host: str, port: int, target: str) -> None:
    """Every way to write an address that the Go poller takes is read, and none as another scheme."""
    address = parse_address(text)
    assert (address.host, address.port, address.target) == (host, port, target)


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "host", "host:", "host:0", "host:65536", "host:0211001", "host:1_0", "host:٣", "a:b:c", "::1:5",
        "[::1]", "[x]:1", "1.2.3:5", "1.2.3.4.5:1", "127.1:1", "ho st:1", "-a:1", "a..b:1", "日本.jp:1",
        "a" * 300 + ":1", "unix:/run/x.sock", "passthrough:///a:1", "http://a:1",
    ],
)  # fmt: skip
def test_refused(text: str) -> None:
    """What is no address is refused with what may stand there."""
    with pytest.raises(AddressError, match="accepted"):
        parse_address(text)


@given(st.text(max_size=40))
def test_any_text(text: str) -> None:
    """Any text is an address or an AddressError."""
    try:
        address = parse_address(text)
    except AddressError:
        return
    assert 1 <= address.port <= 65535
    assert parse_address(str(address)) == address or address.target.startswith("dns://")


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [(":80", "", 80), ("a:0", "a", 0), ("[::1]:80", "::1", 80), ("10.0.0.1:9610", "10.0.0.1", 9610), (" a:1", "a", 1)],
)
def test_listen_addresses(text: str, host: str, port: int) -> None:
    """An empty host is every interface, port 0 any; written out again it is the same."""
    address = ListenAddress.parse(text)
    assert (address.host, address.port) == (host, port)
    assert ListenAddress.parse(str(address)) == address


@pytest.mark.parametrize(
    "text", ["", "9610", "host", "host:", "host:x", "host:65536", "::1:80", "host:８０", "*:80", "日本:1",
             "999.1.1.1:1", "dns:///a:1"]
)  # fmt: skip
def test_listen_addresses_that_are_none(text: str) -> None:
    """What can't be listened on is refused with what may stand there."""
    with pytest.raises(AddressError, match=r"host:port|brackets|host name"):
        ListenAddress.parse(text)


def test_loopback() -> None:
    """Loopback is a matter of the address; every interface is more than that."""
    assert all(is_loopback(host) for host in ("localhost", "LOCALHOST.", "127.0.0.1", "127.9.9.9", "::1"))
    assert not any(is_loopback(host) for host in ("", "10.0.0.1", "localhost.example", "::"))
    assert ListenAddress.parse("[::1]:80").loopback
    assert not ListenAddress.parse(":80").loopback


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("agent.example", "agent.example"),
        ("agent.example.", "agent.example"),
        ("127.0.0.1", "127.0.0.1"),
        ("[127.0.0.1]", "127.0.0.1"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("[2001:DB8::1]", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
    ],
)
def test_names_in_certificates(text: str, name: str) -> None:
    """The same name written differently is the same name, as it is for Go."""
    assert certificate_name(text) == name


@pytest.mark.parametrize("text", ["", "a..b", "日本.jp", "a b", "*", "10.0.0", "a:1", "[a]x", "a" * 300])
def test_names_that_no_certificate_holds(text: str) -> None:
    """What no certificate can hold is refused with what may stand there."""
    with pytest.raises(AddressError, match="certificate"):
        certificate_name(text)
