from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from serviceradar_poller.config.addresses import ListenAddress
from serviceradar_poller.events.polling import (
    AgentConnected,
    OperatorRestart,
    PollerStarted,
    ServerBusy,
    ServerFailed,
)
from serviceradar_poller.lab.ports import free_port
from serviceradar_poller.observe import http, http_guard
from serviceradar_poller.observe.endpoints import RestartRequested, Sources, local_host, make_app
from serviceradar_poller.observe.http import GetAddress, HttpServer
from serviceradar_poller.observe.metrics import MetricsSink
from serviceradar_poller.observe.snapshot import decode_snapshot
from serviceradar_poller.observe.state import PollerState
from serviceradar_poller.otp import Actor, ExitReason, Ref, System, Tree, actor, start_tree, supervisor

pytestmark = pytest.mark.slow

#: For whatever must come.
PATIENCE_S = 20.0


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Sleeper(Actor[str]):
    """Something in the tree to look at and to restart."""

    exits: list[ExitReason] = []  # noqa: RUF012 - one test process, one list

    async def handle(self, message: str) -> str:
        return message

    async def terminate(self, reason: ExitReason) -> None:
        self.exits.append(reason)


@dataclass
class Site:
    """A tree with an HTTP server in it, over a real socket."""

    listen: str = "127.0.0.1:0"
    control: bool = False
    events: list[object] = field(default_factory=list)
    tree: Tree | None = None
    port: int = 0

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self.state = PollerState(clock=loop.time, wall=lambda: 1_763_900_000.0)
        self.metrics = MetricsSink(version="1.0", poller_id="site-a")
        sources = Sources(state=self.state, metrics=self.metrics, tree=lambda: self.tree)
        http = actor(
            "http",
            lambda: HttpServer(
                self.listen, sources=sources, emit=self.events.append, control=self.control, retry_min_s=0.02
            ),
        )
        children = [http, actor("sleeper", Sleeper)]
        self.tree = await start_tree(supervisor("poller", children), System(emit=lambda event: None))

    async def address(self) -> str:
        assert self.tree is not None
        ref = self.tree.system.whereis("poller/http")
        assert isinstance(ref, Ref)
        address = ""
        while not address:
            await asyncio.sleep(0.005)
            address = await ref.call(GetAddress())
        self.port = ListenAddress.parse(str(address)).port
        return str(address)

    def incarnation(self, index: int) -> int:
        assert self.tree is not None
        return self.tree.inspect().children[index].incarnation

    async def ask(self, target: str, *, method: str = "GET", body: bytes = b"", **headers: str) -> Answer:
        names = {"host": f"127.0.0.1:{self.port}", "content-length": str(len(body)), "connection": "close"}
        names |= {name.replace("_", "-"): value for name, value in headers.items()}
        head = "".join(f"{name}: {value}\r\n" for name, value in names.items() if value)
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode() + body)
            raw = await reader.read()
            writer.close()
            await writer.wait_closed()
        top, _, rest = raw.partition(b"\r\n\r\n")
        first, *lines = top.decode().split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return Answer(int(first.split()[1]), fields, rest)

    async def restart(self, path: str, **headers: str) -> Answer:
        body = json.dumps({"path": path}).encode()
        return await self.ask(
            "/tree/restart", method="POST", body=body, **({"content_type": "application/json"} | headers)
        )


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - states, of which nobody tells
            await asyncio.sleep(0.005)


def run(test: Callable[[Site], Awaitable[None]], **options: Any) -> Site:
    site = Site(**options)

    async def main() -> None:
        await site.start()
        try:
            await test(site)
        finally:
            assert site.tree is not None
            async with asyncio.timeout(PATIENCE_S):
                await site.tree.stop()

    asyncio.run(main())
    gc.collect()  # a socket left open would be a ResourceWarning here
    return site


def test_every_endpoint_answers() -> None:
    """Metrics, probes, health, view, tree and stack come over a real socket, each in its own type."""

    async def test(site: Site) -> None:
        await site.address()
        site.state(AgentConnected(agent="edge-01", address="e:1", outage_s=0.0))
        site.metrics(AgentConnected(agent="edge-01", address="e:1", outage_s=0.0))
        index = await site.ask("/")
        assert index.status == 200
        assert b'href="/metrics"' in index.body
        metrics = await site.ask("/metrics")
        assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert b'serviceradar_poller_agent_up{agent="edge-01"} 1.0' in metrics.body
        assert metrics.headers["cache-control"] == "no-store"
        assert "server" not in metrics.headers
        view = decode_snapshot((await site.ask("/view")).body)
        assert view.agents[0].name == "edge-01"
        assert view.supervision.process_count == 3
        tree = (await site.ask("/tree")).json
        assert [child["id"] for child in tree["children"]] == ["http", "sleeper"]
        part = (await site.ask("/tree?path=poller/sleeper")).json
        assert (part["path"], part["state"], part["mailbox"]["length"]) == ("poller/sleeper", "up", 0)
        assert (await site.ask("/tree?depth=0")).json["children_count"] == 2
        stack = await site.ask("/tree/stack?path=poller/sleeper")
        assert b"_live" in stack.body
        assert (await site.ask("/tree?path=poller/nobody")).status == 404
        assert (await site.ask("/tree/stack?path=poller/nobody")).status == 404
        assert (await site.ask("/nothing")).status == 404
        assert (await site.ask("/metrics", method="POST")).status == 405

    run(test)


def test_health_tells_before_and_after_polling_began() -> None:
    """/health has the keys that operators rely on; readiness waits for polling, liveness does not."""

    async def test(site: Site) -> None:
        await site.address()
        assert (await site.ask("/readyz")).status == 503
        assert (await site.ask("/healthz")).status == 200
        before = await site.ask("/health")
        assert (before.status, before.json["status"]) == (503, "unhealthy")
        site.state.expect_agents([])
        site.state(
            PollerStarted(
                version="1.0", poller_id="site-a", agents=0, checks=0, core_address="c:1", poll_interval_s=30.0
            )
        )
        assert (await site.ask("/readyz")).status == 200
        health = (await site.ask("/health")).json
        assert health["status"] == "healthy"
        assert health["reasons"] == []
        assert {
            "agents", "core_connection", "uptime", "memory_usage", "process_count", "version", "poller_id",
        } <= set(health)  # fmt: skip
        assert health["memory_usage"] > 1_000_000
        assert health["process_count"] == 3

    run(test)


def test_requests_addressed_elsewhere_are_refused() -> None:
    """On loopback, a Host that is not a loopback name gets nothing, whatever it asks for."""

    async def test(site: Site) -> None:
        await site.address()
        for host in ("evil.example", "evil.example:9610", "127.0.0.1.evil.example", "169.254.1.1"):
            answer = await site.ask("/metrics", host=host)
            assert answer.status == 421, host
            assert b"serviceradar_poller_" not in answer.body
        for host in ("localhost", f"localhost:{site.port}", "[::1]:1", "127.0.0.1"):
            assert (await site.ask("/healthz", host=host)).status == 200, host

    run(test)


def test_local_hosts() -> None:
    """Only names that can't be made to resolve elsewhere count."""
    assert all(map(local_host, ("localhost", "LOCALHOST:1", "127.8.8.8", "[::1]")))
    assert not any(map(local_host, ("", "localhost.evil", "[::1", "10.0.0.1", "user@evil", "127.1.evil:1")))


def test_control_is_off_unless_asked_for() -> None:
    """A restart is refused, with the way to allow it, and nothing is restarted."""

    async def test(site: Site) -> None:
        await site.address()
        answer = await site.restart("poller/sleeper")
        assert answer.status == 403
        assert '"control": true' in answer.json["error"]
        assert site.events == []

    Sleeper.exits.clear()
    run(test)
    assert not any(exit.abnormal for exit in Sleeper.exits)


def test_an_operator_restarts_a_child() -> None:
    """With control on, the child fails with the operator's reason, is started again, and an event says so."""

    async def test(site: Site) -> None:
        await site.address()
        assert site.tree is not None
        answer = await site.restart("poller/sleeper")
        assert (answer.status, answer.json) == (202, {"restarting": "poller/sleeper"})
        await eventually(lambda: site.incarnation(1) == 2)
        assert site.events == [OperatorRestart(path="poller/sleeper")]
        assert isinstance(Sleeper.exits[0].error, RestartRequested)
        assert (await site.restart("poller/nobody")).status == 404

    Sleeper.exits.clear()
    run(test, control=True)


def test_the_root_is_not_restarted() -> None:
    """The root, which nothing would start again, is refused with a line that says so, and the program runs on."""

    async def test(site: Site) -> None:
        await site.address()
        answer = await site.restart("poller")
        assert answer.status == 403
        assert "the whole program" in answer.json["error"]
        assert (await site.ask("/healthz")).status == 200
        assert site.tree is not None and site.tree.alive
        assert site.events == []

    run(test, control=True)


def test_control_refuses_what_a_web_page_could_send() -> None:
    """Another content type, another page's origin, a body that is too large or not the one object: all refused."""

    async def test(site: Site) -> None:
        await site.address()
        assert (await site.restart("poller/sleeper", content_type="text/plain")).status == 415
        assert (await site.restart("poller/sleeper", origin="http://evil.example")).status == 403
        assert (await site.restart("poller/sleeper", origin="null")).status == 403
        assert (await site.restart("x" * 10_000)).status == 400
        for body in (b"", b"[]", b'{"path": 1}', b'{"path": "a", "b": 1}', b"\xff"):
            answer = await site.ask("/tree/restart", method="POST", body=body, content_type="application/json")
            assert answer.status == 400, body
        assert site.events == []
        assert (await site.restart("poller/nobody", origin=f"http://localhost:{site.port}")).status == 404

    run(test, control=True)


def test_control_needs_loopback() -> None:
    """Where other machines can connect, a restart is refused even when control is on; the rest is served."""

    async def test(site: Site) -> None:
        await site.address()
        assert (await site.ask("/healthz", host="monitoring.example")).status == 200
        assert (await site.restart("poller/sleeper")).status == 403

    run(test, control=True, listen=":0")


def test_a_busy_port_is_told_once_and_taken_when_it_is_free() -> None:
    """The tree is up without the port; ServerFailed comes once; when the port is free it is served."""
    blocker = socket.create_server(("127.0.0.1", 0))
    port = blocker.getsockname()[1]

    async def test(site: Site) -> None:
        await eventually(lambda: bool(site.events))
        await asyncio.sleep(0.1)  # several more attempts
        (event,) = site.events
        assert isinstance(event, ServerFailed)
        assert (event.name, event.address) == ("http", f"127.0.0.1:{port}")
        blocker.close()
        assert await site.address() == f"127.0.0.1:{port}"
        assert (await site.ask("/healthz")).status == 200

    run(test, listen=f"127.0.0.1:{port}")


def test_an_address_that_is_none_is_told() -> None:
    """A listen address that can't be read costs the HTTP server, not the poller."""

    async def test(site: Site) -> None:
        await eventually(lambda: bool(site.events))
        assert site.tree is not None
        assert site.tree.inspect().children[0].state == "up"

    site = run(test, listen="nonsense")
    assert isinstance(site.events[0], ServerFailed)


def test_an_empty_address_serves_nothing() -> None:
    """Switched off means no socket and no complaint."""

    async def test(site: Site) -> None:
        await asyncio.sleep(0.05)

    assert run(test, listen="").events == []


def test_a_stop_is_quick_with_clients_connected() -> None:
    """Idle connections and one in mid-request don't hold up the stop, and signal handlers are left alone."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    took: list[float] = []
    writers: list[asyncio.StreamWriter] = []

    async def main() -> None:
        site = Site()
        await site.start()
        await site.address()
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)][1] == handlers[1]
        post = b"POST /tree/restart HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{"
        for request in (b"", b"GET /healthz HTTP/1.1\r\nHost: local", post):
            _, writer = await asyncio.open_connection("127.0.0.1", site.port)
            writer.write(request)
            writers.append(writer)
        await asyncio.sleep(0.05)
        loop = asyncio.get_running_loop()
        before = loop.time()
        assert site.tree is not None
        await site.tree.stop()
        took.append(loop.time() - before)
        for writer in writers:
            writer.close()
            await asyncio.wait_for(asyncio.gather(writer.wait_closed(), return_exceptions=True), 5)

    asyncio.run(main())
    gc.collect()
    assert took[0] < 4.5, "its supervisor kills it after five seconds"


def test_a_restarted_server_gets_its_port_back() -> None:
    """When the actor itself crashes, its successor serves on the same port."""
    port = free_port()

    async def test(site: Site) -> None:
        await site.address()
        assert (await site.ask("/healthz")).status == 200
        assert site.tree is not None
        assert site.tree.crash("poller/http", RuntimeError("test"))
        await eventually(lambda: site.incarnation(0) == 2)
        await site.address()
        assert (await site.ask("/healthz")).status == 200

    run(test, listen=f"127.0.0.1:{port}")


async def connect(site: Site, data: bytes = b"", *, window: int = 0) -> socket.socket:
    """Connect and send *data*; nothing is read, and with *window* bytes hardly anything is taken."""
    loop = asyncio.get_running_loop()
    client = socket.socket()
    client.setblocking(False)  # noqa: FBT003 - its only parameter
    if window:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    await loop.sock_connect(client, ("127.0.0.1", site.port))
    await loop.sock_sendall(client, data)
    return client


async def ended(client: socket.socket) -> float:
    """Return how long it took until the other side ended the connection."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(5):
            while await loop.sock_recv(client, 65_536):
                pass
    return loop.time() - began_s


def refusals(site: Site) -> float:
    return site.metrics.registry.get_sample_value("serviceradar_poller_http_refusals_total") or 0.0


@contextlib.contextmanager
def closing() -> Iterator[list[socket.socket]]:
    clients: list[socket.socket] = []
    try:
        yield clients
    finally:
        for client in clients:
            client.close()


@pytest.mark.parametrize(
    "data", [b"", b"GET / HT", b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"]
)
def test_connections_without_a_request_make_way(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """However many connections say nothing, or half of a request, a probe is answered, and the log stays empty."""

    async def test(site: Site) -> None:
        await site.address()
        with closing() as clients:
            for _ in range(2):
                clients += [await connect(site, data) for _ in range(http_guard.CONNECTIONS_MAX + 6)]
                for _ in range(3):
                    assert (await site.ask("/healthz")).status == 200
            assert refusals(site) >= http_guard.CONNECTIONS_MAX
            await ended(clients[0])  # the oldest went
        assert site.events == []
        assert caplog.records == []

    run(test)


@pytest.mark.parametrize("idle", [False, True])
def test_a_request_has_its_time(idle: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that comes byte by byte ends its connection, the first one or a later one."""
    monkeypatch.setattr(http_guard, "REQUEST_S_MAX", 0.4)

    async def test(site: Site) -> None:
        await site.address()
        loop = asyncio.get_running_loop()
        with closing() as clients:
            client = await connect(site)
            clients.append(client)
            if idle:
                await loop.sock_sendall(client, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert b"200 OK" in await loop.sock_recv(client, 65_536)
                await asyncio.sleep(0.5)
                await loop.sock_sendall(client, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert b"200 OK" in await loop.sock_recv(client, 65_536)
            end = asyncio.ensure_future(ended(client))
            for _ in range(30):
                with contextlib.suppress(ConnectionError):
                    await loop.sock_sendall(client, b"G")
                await asyncio.sleep(0.05)
                if end.done():
                    break
            assert await end > 0.3
            assert refusals(site) == 1

    run(test)


def test_an_answer_that_nobody_takes_ends_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that asks and asks and reads nothing has its time."""
    monkeypatch.setattr(http_guard, "ANSWER_S_MAX", 1.0)

    async def test(site: Site) -> None:
        await site.address()
        with closing() as clients:
            asks = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000
            clients.append(await connect(site, asks, window=4096))
            await eventually(lambda: refusals(site) == 1)
            assert (await site.ask("/healthz")).status == 200

    run(test)


def test_when_all_are_being_answered_the_next_is_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A connection is refused only while all others have a young answer under way; that is told once, in our words."""
    release = asyncio.Event()

    def hangs(*args: Any, **kwargs: Any) -> Any:
        app = make_app(*args, **kwargs)

        async def wrapped(scope: Any, receive: Any, send: Any) -> None:
            if scope.get("path") == "/hang":
                await release.wait()
            await app(scope, receive, send)

        return wrapped

    monkeypatch.setattr(http, "make_app", hangs)
    monkeypatch.setattr(http_guard, "ANSWER_EVICT_S", 60.0)
    monkeypatch.setattr(http_guard, "ANSWER_S_MAX", 60.0)

    async def test(site: Site) -> None:
        await site.address()
        with closing() as clients:
            for _ in range(http_guard.CONNECTIONS_MAX):
                clients.append(await connect(site, b"GET /hang HTTP/1.1\r\nHost: localhost\r\n\r\n"))
            for _ in range(5):
                answer = await site.ask("/healthz")
                assert (answer.status, answer.body) == (503, b"too many connections\n")
            assert site.events == [ServerBusy(name="http", address="127.0.0.1:0", refused=1)]
            assert refusals(site) == 5
            monkeypatch.setattr(http_guard, "ANSWER_EVICT_S", 0.0)
            assert (await site.ask("/healthz")).status == 200  # the oldest answer has had its time
            await ended(clients[0])
            release.set()
        assert len(site.events) == 1
        assert caplog.records == []

    run(test)


@pytest.mark.parametrize(
    "data",
    [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"],
)
def test_strangers_fill_no_log(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """What is no HTTP, or wants another protocol, is answered, and nothing is written."""

    async def test(site: Site) -> None:
        await site.address()
        with closing() as clients:
            clients.append(await connect(site, data))
            assert (await asyncio.get_running_loop().sock_recv(clients[0], 100)).startswith(b"HTTP/1.1 ")
        assert caplog.records == []

    run(test)
