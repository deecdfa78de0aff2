"""
What the HTTP server answers: metrics, health, the tree, the view; and, where it is allowed, a restart.

Every answer is made from memory, without waiting for the poller. Two guards stand before it all: where only this
machine may connect, a request must also be addressed to this machine (a web page that had its own name resolve to
127.0.0.1 is refused), and a control request must be of a kind that a foreign web page can't send.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from serviceradar_poller.config.addresses import ListenAddress, is_loopback
from serviceradar_poller.config.model import AGENTS_MAX
from serviceradar_poller.errors import PollerError
from serviceradar_poller.events.polling import OperatorRestart
from serviceradar_poller.logic.health import HealthVerdict, judge
from serviceradar_poller.observe.health import health_answer, health_input
from serviceradar_poller.observe.metrics import MetricsSink
from serviceradar_poller.observe.process import process_figures
from serviceradar_poller.observe.snapshot import ViewSnapshot, encode_snapshot
from serviceradar_poller.observe.state import PollerState
from serviceradar_poller.observe.text import json_bytes
from serviceradar_poller.otp import Tree, TreeNode

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
#: A control request is one short object.
BODY_BYTES_MAX = 4_096
#: Agents that /view gives unless asked for another number.
VIEW_AGENTS = 100

_INDEX = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>serviceradar-poller</title></head><body>
<h1>serviceradar-poller</h1>
<ul>
<li><a href="/health">/health</a> how it is, and why
<li><a href="/healthz">/healthz</a> <a href="/readyz">/readyz</a> for whoever restarts it, and whoever waits for it
<li><a href="/metrics">/metrics</a> for Prometheus
<li><a href="/tree">/tree</a> the supervision tree; <code>?path=</code> a part, <code>&amp;depth=</code> levels;
 <code>/tree/stack?path=</code> where a child is now
<li><a href="/view">/view</a> what the terminal view shows
</ul>
</body></html>
"""


class RestartRequested(PollerError):  # noqa: N818 - an order, not a fault
    """An operator asked for this child to be restarted."""

    def __init__(self) -> None:
        super().__init__("restart asked for by the operator")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """
    Where answers come from.

    Attributes:
        tree: The running tree; None until it is up, for the server is itself a part of it.
        log_lines_dropped: Lines that the log could not write.
        verdict: Judges the whole; by default from the state.
        statuses: Where every status is, by place; for /health.
        spool: What waits for core and its bounds; for /health.
    """

    state: PollerState
    metrics: MetricsSink
    tree: Callable[[], Tree | None]
    log_lines_dropped: Callable[[], int] = lambda: 0
    verdict: Callable[[], HealthVerdict] | None = None
    statuses: Callable[[], Mapping[str, object]] = dict
    spool: Callable[[], Mapping[str, object]] = dict

    def judge(self) -> HealthVerdict:
        """Return the verdict on the whole."""
        if self.verdict is not None:
            return self.verdict()
        return judge(health_input(self.state, tree_up=self.tree() is not None))

    def process_count(self) -> int:
        """Return how many children live."""
        tree = self.tree()
        return 0 if tree is None else tree.process_count()

    def view(self, *, agents_max: int = VIEW_AGENTS) -> ViewSnapshot:
        """Return what the terminal view shows."""
        return self.state.snapshot(
            process=process_figures(),
            process_count=self.process_count(),
            log_lines_dropped=self.log_lines_dropped(),
            agents_max=agents_max,
        )


class _RestartRequest(msgspec.Struct, forbid_unknown_fields=True):
    path: str


def make_app(
    sources: Sources, *, address: ListenAddress, control: bool, emit: Callable[[OperatorRestart], None]
) -> ASGIApp:
    """Return the application that is served at *address*; ``control`` allows restarts, on loopback only."""
    endpoints = _Endpoints(sources, address=address, control=control, emit=emit)
    app: ASGIApp = Starlette(
        routes=[
            Route("/", endpoints.index),
            Route("/metrics", endpoints.metrics),
            Route("/healthz", endpoints.healthz),
            Route("/readyz", endpoints.readyz),
            Route("/health", endpoints.health),
            Route("/view", endpoints.view),
            Route("/tree", endpoints.tree),
            Route("/tree/stack", endpoints.stack),
            Route("/tree/restart", endpoints.restart, methods=["POST"]),
        ]
    )
    return HostGuard(app, address) if address.loopback else app


class HostGuard:
    """Refuse requests that are not addressed to this machine by one of its loopback names."""

    def __init__(self, app: ASGIApp, address: ListenAddress) -> None:
        self._app = app
        self._host = address.host.lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is addressed to us."""
        if scope["type"] == "http" and not self._ours(scope):
            response = PlainTextResponse(
                "this server answers only requests to a loopback name; the Host header names another\n", 421
            )
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _ours(self, scope: Scope) -> bool:
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        return len(hosts) == 1 and local_host(hosts[0], self._host)


def local_host(host: str, own: str = "localhost") -> bool:
    """Whether a Host header, ``name`` or ``name:port``, names a loopback or *own*."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return is_loopback(name) or name == own


class _Endpoints:
    def __init__(
        self, sources: Sources, *, address: ListenAddress, control: bool, emit: Callable[[OperatorRestart], None]
    ) -> None:
        self._sources = sources
        self._emit = emit
        self._address = address
        self._control = control

    async def index(self, request: Request) -> Response:
        return Response(_INDEX, media_type="text/html")

    async def metrics(self, request: Request) -> Response:
        return Response(self._sources.metrics.exposition(), headers={"content-type": METRICS_TYPE})

    async def healthz(self, request: Request) -> Response:
        verdict = self._sources.judge()
        return _probe(verdict, passed=verdict.live)

    async def readyz(self, request: Request) -> Response:
        verdict = self._sources.judge()
        return _probe(verdict, passed=verdict.ready)

    async def health(self, request: Request) -> Response:
        verdict = self._sources.judge()
        answer = health_answer(
            self._sources.state,
            verdict,
            process=process_figures(),
            process_count=self._sources.process_count(),
            statuses=self._sources.statuses(),
            spool=self._sources.spool(),
        )
        return _json(answer, 503 if verdict.status.value == "unhealthy" else 200)

    async def view(self, request: Request) -> Response:
        agents_max = _number(request.query_params.get("agents"), VIEW_AGENTS)
        snapshot = self._sources.view(agents_max=min(agents_max, AGENTS_MAX))
        return Response(encode_snapshot(snapshot), media_type="application/json")

    async def tree(self, request: Request) -> Response:
        tree = self._sources.tree()
        if tree is None:
            return _no_tree()
        node: TreeNode | None = tree.inspect()
        path = request.query_params.get("path")
        if path:
            node = find_node(tree.inspect(), path)
            if node is None:
                return _error(404, f"no child at {path}")
        assert node is not None
        depth = _number(request.query_params.get("depth"), _DEPTH_MAX)
        return _json(node_to_json(node, depth=min(depth, _DEPTH_MAX)))

    async def stack(self, request: Request) -> Response:
        tree = self._sources.tree()
        if tree is None:
            return _no_tree()
        path = request.query_params.get("path", "")
        if find_node(tree.inspect(), path) is None:
            return _error(404, f"no child at {path}")
        return PlainTextResponse(tree.stack(path) or f"{path} does not run now\n")

    async def restart(self, request: Request) -> Response:
        refused = self._refused(request)
        if refused is not None:
            return refused
        try:
            wanted = msgspec.json.decode(await _body(request), type=_RestartRequest)
        except (ValueError, ClientDisconnect) as error:
            return _error(400, f'the body is to be {{"path": "…"}}: {error}')
        tree = self._sources.tree()
        if tree is None:
            return _no_tree()
        if wanted.path == tree.inspect().path:
            return _error(403, f"{wanted.path} is the whole program, and nothing here would start it again")
        if not tree.crash(wanted.path, RestartRequested()):
            return _error(404, f"no live child at {wanted.path}")
        self._emit(OperatorRestart(path=wanted.path))
        return _json({"restarting": wanted.path}, 202)

    def _refused(self, request: Request) -> Response | None:
        if not self._control:
            return _error(403, 'control is off; set "http": {"control": true} in the configuration to allow it')
        if not self._address.loopback:
            return _error(403, "control needs a loopback http.listen_addr, such as 127.0.0.1:9610; this one is not")
        origin = request.headers.get("origin")
        if origin is not None and not local_host(urlsplit(origin).netloc, self._address.host):
            return _error(403, "control is not for other web pages")
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type != "application/json":
            return _error(415, "the content type is to be application/json")
        return None


#: Deeper than any tree that the poller builds.
_DEPTH_MAX = 64


def find_node(node: TreeNode, path: str) -> TreeNode | None:
    """Return the node at *path* in the tree under *node*."""
    while node.path != path:
        for child in node.children:
            if path == child.path or path.startswith(child.path + "/"):
                node = child
                break
        else:
            return None
    return node


def node_to_json(node: TreeNode, *, depth: int) -> dict[str, object]:
    """Return *node* as plain values, with *depth* levels of children."""
    plain = {name: getattr(node, name) for name in _NODE_FIELDS if name != "children"}
    if depth > 0:
        plain["children"] = [node_to_json(child, depth=depth - 1) for child in node.children]
    else:
        plain["children_count"] = len(node.children)
    return plain


_NODE_FIELDS = tuple(TreeNode.__dataclass_fields__)


async def _body(request: Request) -> bytes:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > BODY_BYTES_MAX:
            raise ValueError(f"more than {BODY_BYTES_MAX} bytes")
    return body


def _number(text: str | None, default: int) -> int:
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 9 else default


def _probe(verdict: HealthVerdict, *, passed: bool) -> Response:
    lines = [verdict.status.value, *verdict.reasons]
    return PlainTextResponse("\n".join(lines) + "\n", 200 if passed else 503)


def _json(value: object, status: int = 200) -> Response:
    body = json_bytes(value)
    return Response(body, status, media_type="application/json")


def _error(status: int, text: str) -> Response:
    return _json({"error": text}, status)


def _no_tree() -> Response:
    return _error(503, "the supervision tree is not up")
