"""
Give a simulated core its control endpoints.

    GET    /reports    ?since=INDEX&limit=N&services=0   reports in order; with their statuses where those are kept
    GET    /statuses   ?agent=&service=&since=&limit=    statuses in order, the newest when limited
    GET    /state      ?agent=&service=                  latest status per agent and service; counters
    GET    /counts                                       counters only
    POST   /fault      {"fault": "reject", "code": "UNAVAILABLE", "count": 2};   DELETE /fault
    POST   /wait       {"reports": 3} and/or {"agent": "a", "service": "s", "available": true, "since": INDEX},
                       "timeout_s": 10: answers when all of it holds, or with met=false
    POST   /clear      forget what is recorded; the indices go on
    GET    /stats      this process: CPU seconds, resident bytes
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from serviceradar_poller.lab.control import ControlError, guarded, process_stats, read_body
from serviceradar_poller.lab.core import SimulatedCore, core_fault_from_json
from serviceradar_poller.lab.recording import Recorder

#: Of reports and statuses in one answer, unless asked otherwise.
LIMIT_DEFAULT = 10_000
WAIT_S_MAX = 120.0


def core_app(core: SimulatedCore) -> Starlette:
    """Return the control endpoints of *core*."""
    recorder = core.recorder

    async def reports(request: Request) -> object:
        since = _number(request, "since", 0)
        found = [asdict(r) for r in recorder.reports_since(since)[: _number(request, "limit", LIMIT_DEFAULT)]]
        if request.query_params.get("services") != "0":
            by_index: dict[object, list[object]] = {report["index"]: [] for report in found}
            for status, _report in recorder.statuses_of(since=since):
                if status.report in by_index:
                    by_index[status.report].append(status.as_json())
            for report in found:
                report["services"] = by_index[report["index"]]
        return found

    async def statuses(request: Request) -> object:
        query = request.query_params
        found = list(
            recorder.statuses_of(
                agent=query.get("agent"), service=query.get("service"), since=_number(request, "since", 0)
            )
        )
        limit = _number(request, "limit", LIMIT_DEFAULT)
        return [status.as_json(report) for status, report in found[max(0, len(found) - limit) :]]

    async def state(request: Request) -> object:
        agent, service = request.query_params.get("agent"), request.query_params.get("service")
        latest = [
            {**entry.status.as_json(), "seen": entry.seen, "changed_wall_s": entry.changed_wall_s}
            for (agent_id, name, _kind), entry in recorder.latest.items()
            if agent in (None, agent_id) and service in (None, name)
        ]
        return {**core.state_json(), "latest": latest}

    async def counts(request: Request) -> object:
        return core.state_json()

    async def set_fault(request: Request) -> object:
        await core.set_fault(core_fault_from_json(await read_body(request)))
        return core.state_json()

    async def clear_fault(request: Request) -> object:
        await core.set_fault(None)
        return core.state_json()

    async def wait(request: Request) -> object:
        body = await read_body(request)
        timeout_s = body.pop("timeout_s", 10.0)
        if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 <= timeout_s <= WAIT_S_MAX:
            raise ControlError(400, f"timeout_s must be between 0 and {WAIT_S_MAX:g}")
        met = await core.wait(_condition(body), timeout_s=timeout_s)
        return {"met": met, "reports": recorder.index}

    async def clear(request: Request) -> object:
        recorder.clear()
        return core.state_json()

    async def stats(request: Request) -> object:
        return {**process_stats(), "calls": dict(core.calls)}

    return Starlette(
        routes=[
            Route("/reports", guarded(reports), methods=["GET"]),
            Route("/statuses", guarded(statuses), methods=["GET"]),
            Route("/state", guarded(state), methods=["GET"]),
            Route("/counts", guarded(counts), methods=["GET"]),
            Route("/fault", guarded(set_fault), methods=["POST"]),
            Route("/fault", guarded(clear_fault), methods=["DELETE"]),
            Route("/wait", guarded(wait), methods=["POST"]),
            Route("/clear", guarded(clear), methods=["POST"]),
            Route("/stats", guarded(stats), methods=["GET"]),
        ]
    )


def _condition(body: dict[str, object]) -> Callable[[Recorder], bool]:
    unknown = set(body) - {"reports", "agent", "service", "available", "since"}
    if unknown or not body:
        raise ControlError(400, "wait for reports, agent, service, available, since")
    count, since = body.get("reports", 0), body.get("since", 0)
    if not isinstance(count, int) or not isinstance(since, int):
        raise ControlError(400, "reports and since must be numbers")
    agent, service, available = body.get("agent"), body.get("service"), body.get("available")
    any_status = agent is None and service is None and available is None

    def holds(recorder: Recorder) -> bool:
        if recorder.index < count:
            return False
        return any_status or any(
            agent in (None, entry.status.agent_id)
            and service in (None, entry.status.service_name)
            and available in (None, entry.status.available)
            and entry.status.report >= since
            for entry in recorder.latest.values()
        )

    return holds


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, "")
    if not text:
        return default
    if not text.isdecimal():
        raise ControlError(400, f"{name} must be a number, not {text!r}")
    return int(text)
