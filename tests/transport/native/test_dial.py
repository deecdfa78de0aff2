from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import itertools
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serviceradar_poller.env import SystemClock
from serviceradar_poller.errors import CallError, Layer, ResolveError
from serviceradar_poller.testing.leaks import no_leaks
from serviceradar_poller.testing.peers import after_settings, frame, unused_port
from serviceradar_poller.transport.failures import ConnectStep
from serviceradar_poller.transport.native import dial as module
from serviceradar_poller.transport.native.dial import ADDRESSES_MAX, connect_failure, dial, interleave
from serviceradar_poller.transport.native.transport import NativeTransport
from serviceradar_poller.transport.resolver import SystemResolver

V4 = st.ip_addresses(v=4).map(str)
V6 = st.ip_addresses(v=6).map(str)


class Names:
    """A resolver that knows one name."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.asked: list[str] = []

    async def resolve(self, host: str, *, timeout_s: float, urgent: bool = False) -> tuple[str, ...]:
        assert timeout_s > 0
        self.asked.append(host)
        await asyncio.sleep(0)
        if not self.addresses:
            raise ResolveError("no such name")
        return self.addresses


@contextlib.contextmanager
def listener(host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(8)
        yield sock.getsockname()[1]


@contextlib.contextmanager
def black_hole(host: str, port: int = 0) -> Iterator[int]:
    """Listen with a full backlog: SYNs are dropped."""
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket())
        sock.bind((host, port))
        sock.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0.0)
            filler.connect_ex(sock.getsockname())
        yield sock.getsockname()[1]


async def dialled(host: str, port: int, *addresses: str) -> tuple[str, list[ConnectStep]]:
    """Return where a dial ended."""
    steps: list[ConnectStep] = []
    sock = await dial(host, port, peer=f"{host}:{port}", resolver=Names(*addresses), at=steps.append)
    with sock:
        assert sock.getblocking() is False
        return str(sock.getpeername()[0]), steps


@given(st.lists(st.one_of(V4, V6), max_size=12))
def test_families_alternate(addresses: list[str]) -> None:
    """Every address is tried once, families in turn as long as both last, each in the resolver's order."""
    order = interleave(addresses)
    assert sorted(order) == sorted(set(addresses))
    for family in (True, False):
        of_family = [address for address in order if (":" in address) is family]
        assert of_family == list(dict.fromkeys(a for a in addresses if (":" in a) is family))
    if order:
        assert order[0] == addresses[0]
        fewer = min(sum(":" in a for a in order), sum(":" not in a for a in order))
        kinds = [":" in address for address in order[: 2 * fewer]]
        assert all(first is not second for first, second in itertools.pairwise(kinds))


def test_a_literal_is_not_resolved() -> None:
    """An IP address is dialled as it is."""

    async def main() -> None:
        with listener() as port, no_leaks():
            assert await dialled("127.0.0.1", port) == ("127.0.0.1", [ConnectStep.TCP])

    asyncio.run(main())


def test_only_the_look_up_of_cores_name_is_urgent() -> None:
    """A client of core does not wait behind the look-ups of agents' names; those of agents do."""
    urgencies: list[bool] = []

    class Nobody:
        async def resolve(self, host: str, *, timeout_s: float, urgent: bool = False) -> tuple[str, ...]:
            urgencies.append(urgent)
            raise ResolveError("no such name")

    async def main() -> None:
        transport = NativeTransport(clock=SystemClock(), resolver=Nobody())
        agent, core = await transport.agent("agent:1", None), await transport.core("core:1", None)
        with pytest.raises(CallError, match="agent:1: no such name"):
            await agent.check_health(timeout_s=5.0)
        with pytest.raises(CallError, match="core:1: no such name"):
            await core.report_status_raw(b"", timeout_s=5.0)
        await agent.close()
        await core.close()
        assert urgencies == [False, True]

    asyncio.run(main())


def test_a_name_is_resolved() -> None:
    """A name has its addresses from the resolver, and its own step."""

    async def main() -> None:
        with listener() as port, no_leaks():
            assert await dialled("agent", port, "127.0.0.1") == ("127.0.0.1", [ConnectStep.RESOLVE, ConnectStep.TCP])

    asyncio.run(main())


def test_socket_options() -> None:
    """Small requests leave at once, and a peer that vanished is noticed when the last of three probes is lost."""

    async def main() -> None:
        with listener() as port:
            sock = await dial("127.0.0.1", port, peer="p", resolver=Names(), at=lambda step: None)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            idle_s, interval_s, probes, unacknowledged_ms = (
                sock.getsockopt(socket.IPPROTO_TCP, option)
                for option in (
                    socket.TCP_KEEPIDLE,
                    socket.TCP_KEEPINTVL,
                    socket.TCP_KEEPCNT,
                    socket.TCP_USER_TIMEOUT,
                )
            )
            assert (idle_s, interval_s, probes) == (60, 10, 3)
            # Linux goes by the last one alone once it is set.
            assert unacknowledged_ms == 1000 * (idle_s + probes * interval_s)
            sock.close()

    asyncio.run(main())


#: SO_ATTACH_FILTER and SO_DETACH_FILTER, asm-generic/socket.h, which the socket module does not have.
ATTACH_FILTER, DETACH_FILTER = 26, 27


@contextlib.contextmanager
def unheard(sock: socket.socket) -> Iterator[None]:
    """Let the kernel drop whatever reaches *sock*, as a network would: it acknowledges nothing."""
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x6, 0, 0, 0), 8)  # BPF: return 0
    sock.setsockopt(socket.SOL_SOCKET, ATTACH_FILTER, struct.pack("HL", 1, ctypes.addressof(drop_all)))
    yield
    sock.setsockopt(socket.SOL_SOCKET, DETACH_FILTER, 0)


@pytest.mark.slow
def test_an_idle_connection_survives_a_lost_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a fraction of the times: a lost probe is survived, and a peer that vanished is noticed when promised."""
    monkeypatch.setattr(module, "KEEPALIVE_IDLE_S", 1)
    monkeypatch.setattr(module, "KEEPALIVE_INTERVAL_S", 1)
    monkeypatch.setattr(module, "UNACKNOWLEDGED_MS_MAX", module.UNACKNOWLEDGED_MS_MAX * 4 // 90)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            ends: list[tuple[socket.socket, socket.socket]] = []
            for _ in range(2):
                ours = await dial(
                    "127.0.0.1", server.getsockname()[1], peer="p", resolver=Names(), at=lambda step: None
                )
                ends.append((stack.enter_context(ours), stack.enter_context(server.accept()[0])))
            (lucky, lucky_peer), (lost, lost_peer) = ends
            began_at = loop.time()
            stack.enter_context(unheard(lost_peer))
            ended = loop.create_task(loop.sock_recv(lost, 1))
            with unheard(lucky_peer):
                await asyncio.sleep(1.6)  # the first probe
            with pytest.raises(TimeoutError):
                await ended
            assert 3.5 <= loop.time() - began_at < 8.0
            assert lucky.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            lucky_peer.sendall(b"x")
            assert await loop.sock_recv(lucky, 1) == b"x"

    asyncio.run(main())


def test_ipv6() -> None:
    """An IPv6 literal is dialled, with brackets as an address has them, and calls are made on it."""
    try:
        with listener("::1"):
            pass
    except OSError as error:
        pytest.skip(f"no IPv6 on the loopback of this machine: {error}")

    async def main() -> None:
        with listener("::1") as port, no_leaks():
            assert await dialled("::1", port) == ("::1", [ConnectStep.TCP])
            assert await dialled("agent", port, "127.0.0.1", "::1") == ("::1", [ConnectStep.RESOLVE, ConnectStep.TCP])

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await after_settings(lambda writer: writer.write(frame(3, (7).to_bytes(4, "big"), stream=1)))(
                reader, writer
            )
            writer.close()

        server = await asyncio.start_server(handle, "::1", 0)
        port = server.sockets[0].getsockname()[1]
        transport = NativeTransport(clock=SystemClock(), resolver=SystemResolver())
        channel = await transport.channel(f"[::1]:{port}", None)
        with pytest.raises(CallError) as caught:
            await channel.unary("/t/Echo", b"", 5.0)
        assert caught.value.reason == "refused_stream"
        assert caught.value.detail.startswith(f"[::1]:{port}: ")
        await channel.close()
        server.close()
        await asyncio.sleep(0.01)

    asyncio.run(main())


def test_the_next_address_at_once_when_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused address costs no stagger."""
    monkeypatch.setattr(module, "STAGGER_S", 30.0)

    async def main() -> None:
        with listener("127.0.0.2") as port, no_leaks():
            async with asyncio.timeout(10.0):
                where, _ = await dialled("agent", port, "127.0.0.1", "127.0.0.2")
            assert where == "127.0.0.2"

    asyncio.run(main())


def test_the_next_address_soon_when_one_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that drops packets costs one stagger, and its socket is closed."""
    monkeypatch.setattr(module, "STAGGER_S", 0.05)

    async def main() -> None:
        with black_hole("127.0.0.1") as port, listener("127.0.0.2", port), no_leaks():
            began_at = asyncio.get_running_loop().time()
            where, _ = await dialled("agent", port, "127.0.0.1", "127.0.0.2")
            assert where == "127.0.0.2"
            assert 0.05 <= asyncio.get_running_loop().time() - began_at < 5.0

    asyncio.run(main())


def test_a_late_first_address_still_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting the second attempt does not give up the first."""
    monkeypatch.setattr(module, "STAGGER_S", 0.01)

    async def main() -> None:
        release = asyncio.Event()
        connect = module._connect

        async def slow(address: str, port: int, peer: str) -> socket.socket:
            if address == "127.0.0.1":
                await release.wait()
            elif address == "127.0.0.2":
                release.set()
                await asyncio.Event().wait()
            return await connect(address, port, peer)

        monkeypatch.setattr(module, "_connect", slow)
        with listener("127.0.0.1") as port, no_leaks():
            where, _ = await dialled("agent", port, "127.0.0.1", "127.0.0.2")
            assert where == "127.0.0.1"

    asyncio.run(main())


def test_two_that_connect_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """When several connect in the same iteration one is kept and the others are closed."""
    monkeypatch.setattr(module, "STAGGER_S", 0.0)

    async def main() -> None:
        with contextlib.ExitStack() as stack:
            port = stack.enter_context(listener("127.0.0.1"))
            for last in range(2, 9):
                stack.enter_context(listener(f"127.0.0.{last}", port))
            with no_leaks():
                for _ in range(20):
                    await dialled("agent", port, *(f"127.0.0.{last}" for last in range(1, 9)))

    asyncio.run(main())


def test_all_fail() -> None:
    """The failure is that of the address which came nearest, and tells each; no more than a few are tried."""

    async def main() -> None:
        port = unused_port()
        with no_leaks():
            with pytest.raises(CallError) as caught:
                await dialled("agent", port, "255.255.255.255", "127.0.0.1")
            assert (caught.value.layer, caught.value.reason) == (Layer.TCP, "refused")
            assert "255.255.255.255: " in caught.value.detail
            assert "127.0.0.1: connection refused" in caught.value.detail
            many = tuple(f"127.0.1.{last}" for last in range(100))
            with pytest.raises(CallError, match="refused") as caught:
                await dialled("agent", port, *many)
            assert f"127.0.1.{ADDRESSES_MAX}:" not in caught.value.detail

    asyncio.run(main())


def test_no_address() -> None:
    """A name without address is a matter of resolution."""

    async def main() -> None:
        with no_leaks(), pytest.raises(CallError) as caught:
            await dialled("agent", 1)
        assert (caught.value.layer, caught.value.reason) == (Layer.RESOLVE, "resolve")

    asyncio.run(main())


@pytest.mark.parametrize("addresses", [("127.0.0.1",), ("127.0.0.1", "127.0.0.2")])
def test_cancelled_while_connecting(addresses: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """A dial that is cancelled leaves no socket and no task."""
    monkeypatch.setattr(module, "STAGGER_S", 0.01)

    async def main() -> None:
        with black_hole("127.0.0.1") as port, black_hole("127.0.0.2", port), no_leaks():
            for turns in range(12):
                task = asyncio.create_task(dialled("agent", port, *addresses))
                for _ in range(turns):
                    await asyncio.sleep(0)
                if turns > 9:
                    await asyncio.sleep(0.03)
                task.cancel()
                await asyncio.wait({task})
                assert task.cancelled()
                await asyncio.sleep(0)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ECONNREFUSED, "refused"),
        (errno.EHOSTUNREACH, "unreachable"),
        (errno.ENETUNREACH, "unreachable"),
        (errno.EHOSTDOWN, "unreachable"),
        (errno.EACCES, "unreachable"),
        (errno.ETIMEDOUT, "connect_timeout"),
        (errno.ECONNRESET, "reset"),
        (errno.EMFILE, "connect"),
        (None, "connect"),
    ],
)
def test_what_the_system_says(number: int | None, reason: str) -> None:
    """Every error of a connect has a reason and the system's words, not asyncio's."""
    failure = connect_failure("h:1", OSError(number, "Connect call failed ('10.0.0.1', 1)") if number else OSError("x"))
    assert (failure.layer, failure.reason, failure.unreachable) == (Layer.TCP, reason, True)
    assert "Connect call" not in failure.detail


def test_zone() -> None:
    """The zone of a link-local address becomes the socket address' scope."""
    index = socket.if_nametoindex("lo")
    assert module._sockaddr("fe80::1%lo", 5) == ("fe80::1", 5, 0, index)
    assert module._sockaddr("fe80::1%7", 5) == ("fe80::1", 5, 0, 7)
    assert module._sockaddr("fe80::1", 5) == ("fe80::1", 5)
