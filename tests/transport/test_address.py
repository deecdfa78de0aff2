from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serviceradar_poller.transport.address import AddressError, parse_address


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
    ],
)
def test_addresses(text: str, host: str, port: int, target: str) -> None:
    """Every way to write an address that the Go poller takes is read, and none as another scheme."""
    address = parse_address(text)
    assert (address.host, address.port, address.target) == (host, port, target)


@pytest.mark.parametrize(
    "text",
    ["", ":", "host", "host:", "host:0", "host:65536", "host:1_0", "host:٣", "a:b:c", "::1:5", "[::1]", "[x]:1",
     "1.2.3:5", "1.2.3.4.5:1", "ho st:1", "-a:1", "a..b:1", "unix:/run/x.sock", "http://a:1", "a" * 300 + ":1"],
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
