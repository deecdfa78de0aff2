"""
Give a fleet of simulated agents its control endpoints.

    GET    /agents              every agent: port, fault, counters           ?fields=brief: id, port, fault only
    GET    /agents/{id}         one agent
    POST   /agents/{id}/fault   {"fault": "slow", "seconds": 2}
    DELETE /agents/{id}/fault
    POST   /agents/fault        {"agents": ["agent-0001..agent-0100"], "fault": "refuse"}; without agents: all
    DELETE /agents/fault        ?agents=TARGET, else all
    POST   /agents/{id}/results {"devices": 5000, "hosts": 100}; both optional: a new sequence in any case
    GET    /stats               this process: CPU seconds, resident bytes, sums of all counters
"""

from __future__ import annotations

from collections import Counter

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from serviceradar_poller.lab.agents import Fleet
from serviceradar_poller.lab.control import ControlError, guarded, process_stats, read_body
from serviceradar_poller.lab.faults import fault_from_json


def agents_app(fleet: Fleet) -> Starlette:
    """Return the control endpoints of a fleet."""

    async def list_agents(request: Request) -> object:
        if request.query_params.get("fields") == "brief":
            return [
                {"id": a.id, "port": a.server.port, "fault": a.fault.kind if a.fault else None}
                for a in fleet.agents.values()
            ]
        return [agent.as_json() for agent in fleet.agents.values()]

    async def one_agent(request: Request) -> object:
        return fleet.agents[_known(request)].as_json()

    async def set_one(request: Request) -> object:
        name = _known(request)
        return {"agents": fleet.set_fault(name, fault_from_json(await read_body(request)))}

    async def clear_one(request: Request) -> object:
        return {"agents": fleet.set_fault(_known(request), None)}

    async def set_many(request: Request) -> object:
        body = await read_body(request)
        targets = body.pop("agents", ["*"])
        fault = fault_from_json(body)
        if isinstance(targets, str):
            targets = [targets]
        if not isinstance(targets, list):
            raise ControlError(400, "agents must be a list of targets")
        chosen = {agent.id for target in targets for agent in fleet.select(str(target))}
        for name in chosen:
            fleet.agents[name].set_fault(fault)
        return {"agents": len(chosen)}

    async def clear_many(request: Request) -> object:
        return {"agents": fleet.set_fault(request.query_params.get("agents", "*"), None)}

    async def results(request: Request) -> object:
        name = _known(request)
        body = await read_body(request)
        sizes = {key: value for key, value in body.items() if isinstance(value, int)}
        if set(body) - {"devices", "hosts"} or len(sizes) != len(body):
            raise ControlError(400, "the body may hold devices and hosts, numbers")
        try:
            return fleet.touch_results(name, devices=sizes.get("devices"), hosts=sizes.get("hosts"))[name]
        except ValueError as error:
            raise ControlError(400, str(error)) from error

    async def stats(request: Request) -> object:
        calls: Counter[str] = Counter()
        counts: Counter[str] = Counter()
        for agent in fleet.agents.values():
            calls.update(agent.calls)
            counts.update(agent.server.counts)
        connections = sum(len(agent.server.connections) for agent in fleet.agents.values())
        return {**process_stats(), "connections": connections, "calls": dict(calls), "counts": dict(counts)}

    def _known(request: Request) -> str:
        name = str(request.path_params["id"])
        if name not in fleet.agents:
            raise ControlError(404, f"no agent is called {name!r}")
        return name

    return Starlette(
        routes=[
            Route("/agents", guarded(list_agents), methods=["GET"]),
            Route("/agents/fault", guarded(set_many), methods=["POST"]),
            Route("/agents/fault", guarded(clear_many), methods=["DELETE"]),
            Route("/agents/{id}", guarded(one_agent), methods=["GET"]),
            Route("/agents/{id}/fault", guarded(set_one), methods=["POST"]),
            Route("/agents/{id}/fault", guarded(clear_one), methods=["DELETE"]),
            Route("/agents/{id}/results", guarded(results), methods=["POST"]),
            Route("/stats", guarded(stats), methods=["GET"]),
        ]
    )
