from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from typing import Any

import pytest

from serviceradar_poller.transport import interfaces
from serviceradar_poller.transport.interfaces import interface_address
from serviceradar_poller.transport.resolver import LOOKUPS_MAX, SystemResolver


def resolve(host: str, timeout_s: float = 5.0) -> tuple[str, ...]:
    return asyncio.run(SystemResolver().resolve(host, timeout_s=timeout_s))


def test_localhost() -> None:
    """A name of /etc/hosts is resolved, each address once."""
    found = resolve("localhost")
    assert {"127.0.0.1", "::1"} & set(found)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(("host", "expect"), [("10.0.0.1", "10.0.0.1"), ("2001:DB8::1", "2001:db8::1")])
def test_literals_need_no_lookup(host: str, expect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An IP literal is its own address."""
    monkeypatch.setattr(socket, "getaddrinfo", None)
    assert resolve(host) == (expect,)


@pytest.mark.parametrize("host", ["", "no-such-host.invalid", "a" * 70, "..", "x\0y", "ü" * 80])
def test_names_without_address(host: str) -> None:
    """A name that has no address, or is none, gives nothing and raises nothing."""
    assert resolve(host) == ()


def test_hanging_lookups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lookups that hang cost their timeouts, never more threads than the limit, and get their places back."""
    release, running = threading.Event(), 0
    peak = 0
    lock = threading.Lock()

    def getaddrinfo(host: str, *args: Any, **kwargs: Any) -> list[Any]:
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
        release.wait(0.4)
        with lock:
            running -= 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    async def main() -> None:
        names = SystemResolver()
        found = await asyncio.gather(*(names.resolve(f"h{i}", timeout_s=0.05) for i in range(50)))
        assert found == [()] * 50
        assert names.timeouts == 50
        assert peak == LOOKUPS_MAX
        release.set()
        assert await names.resolve("again", timeout_s=5.0) == ("192.0.2.1",)

    asyncio.run(main())


def test_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without time left there is no answer."""
    assert resolve("localhost", 0.0) == ()


def test_cancel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancelled lookup is cancelled at once."""
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: release.wait(10.0) and [])

    async def main() -> None:
        task = asyncio.create_task(SystemResolver().resolve("x", timeout_s=30.0))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task}, timeout=5.0)
        assert task.cancelled()
        release.set()

    asyncio.run(main())


def test_interface_address() -> None:
    """The machine's own address is an IPv4 literal and not the loopback's, or there is none."""
    found = interface_address()
    assert found == "" or not ipaddress.IPv4Address(found).is_loopback


def test_first_interface_that_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback, interfaces that are down and those without an address are passed over, in index order."""
    flags = {"lo": 0x9, "down": 0x2, "bare": 0x1, "eth0": 0x1043, "eth1": 0x1043}
    addresses = {"lo": "127.0.0.1", "down": "10.0.0.1", "eth0": "10.0.0.2", "eth1": "10.0.0.3"}

    def ask(sock: socket.socket, request: int, name: str) -> bytes | None:
        head = name.encode().ljust(16, b"\0")
        if request == 0x8913:
            return head + flags[name].to_bytes(2, "little") + bytes(22)
        if name not in addresses:
            return None
        return head + b"\x02\x00\x00\x00" + socket.inet_aton(addresses[name]) + bytes(16)

    monkeypatch.setattr(interfaces, "_ask", ask)
    monkeypatch.setattr(
        socket,
        "if_nameindex",
        lambda: [(5, "eth1"), (1, "lo"), (4, "eth0"), (2, "down"), (3, "bare")],
    )
    assert interface_address() == "10.0.0.2"
