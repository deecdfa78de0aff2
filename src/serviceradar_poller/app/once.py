"""The ``poll-once`` command: every check asked now, and each failure explained by the layer where it happened."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TextIO

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from serviceradar_poller.agents.coordinator import check_subjects
from serviceradar_poller.agents.results import STREAM_LIMITS
from serviceradar_poller.app.backend import new_transport
from serviceradar_poller.config.loading import load
from serviceradar_poller.config.model import AgentConfig, CheckConfig, PollerConfig
from serviceradar_poller.env import AgentClient, SystemClock, Transport
from serviceradar_poller.errors import CallError, ConfigError, ConfigProblem, GrpcCode, Layer
from serviceradar_poller.logic.merge import MergeError, feed, finish, new_merge
from serviceradar_poller.observe.text import clean
from serviceradar_poller.transport.probe import ProbeStep, StepState, probe
from serviceradar_poller.transport.resolver import SystemResolver
from serviceradar_poller.wire.messages import ResultsRequest, StatusRequest

EXIT_NOT_AVAILABLE = 4
#: Agents asked at once.
AGENTS_AT_ONCE = 64
#: Failed checks named in the explanation of one agent.
CHECKS_EXPLAINED_MAX = 5
#: A message is shown up to this many characters in the table.
MESSAGE_SHOWN_MAX = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one check came to; ``layer``, ``reason`` and ``error`` are empty where there was an answer."""

    agent: str
    check: str
    service_name: str
    service_type: str
    kind: str
    available: bool
    latency_s: float
    message: str = ""
    layer: str = ""
    reason: str = ""
    error: str = ""


@dataclass(slots=True, kw_only=True)
class AgentAnswers:
    """All checks of one agent; ``steps`` explains the way to it where a check got no answer."""

    agent: str
    address: str
    answers: list[Answer] = field(default_factory=list)
    steps: list[ProbeStep] = field(default_factory=list)


def poll_once(
    path: str,
    environ: Mapping[str, str],
    *,
    agents: Sequence[str],
    checks: Sequence[str],
    as_json: bool,
    out: TextIO,
) -> int:
    """
    Poll the configuration's checks now and print what came of it.

    Args:
        agents, checks: Names to keep to; empty: all.
    Returns:
        0 when every check is available, and every agent without checks in reach, else 4.
    Raises:
        ConfigError: The configuration can't be used, or nothing in it has such a name.
    """
    loaded = load(path, environ)
    chosen = _choose(loaded.config, agents, checks, source=loaded.sources[-1])
    found = asyncio.run(_poll(loaded.config, chosen))
    if as_json:
        out.write(msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n")
    else:
        _print(found, out)
    return 0 if all(map(_is_good, found)) else EXIT_NOT_AVAILABLE


def _is_good(one: AgentAnswers) -> bool:
    if not one.answers:
        return all(step.state is not StepState.FAILED for step in one.steps)
    return all(answer.available for answer in one.answers)


def _choose(
    config: PollerConfig, agents: Sequence[str], checks: Sequence[str], *, source: str
) -> list[tuple[AgentConfig, dict[str, CheckConfig]]]:
    names = {agent.name for agent in config.agents}
    services = {check.service_name for agent in config.agents for check in agent.checks}
    problems = [
        ConfigProblem(source=source, path=place, found=repr(name), accepted=f"one of {', '.join(sorted(known)[:20])}")
        for place, wanted, known in (("--agent", agents, names), ("--check", checks, services))
        for name in wanted
        if name not in known
    ]
    if problems:
        raise ConfigError(tuple(problems))
    chosen: list[tuple[AgentConfig, dict[str, CheckConfig]]] = []
    for agent in config.agents:
        if agents and agent.name not in agents:
            continue
        kept = {
            key: check
            for key, (_, check) in check_subjects(agent).items()
            if not checks or check.service_name in checks
        }
        if kept or not checks:
            chosen.append((agent, kept))
    return chosen


async def _poll(
    config: PollerConfig, chosen: Sequence[tuple[AgentConfig, dict[str, CheckConfig]]]
) -> list[AgentAnswers]:
    clock = SystemClock()
    resolver = SystemResolver()
    transport = new_transport(config.transport, clock=clock, resolver=resolver)
    places = asyncio.Semaphore(AGENTS_AT_ONCE)

    async def one(agent: AgentConfig, checks: dict[str, CheckConfig]) -> AgentAnswers:
        async with places:
            found = await _poll_agent(config, agent, checks, transport)
            if agent.problems or not found.answers or any(answer.layer for answer in found.answers):
                found.steps = _config_steps(agent) or await probe(
                    agent.address,
                    agent.security,
                    timeout_s=config.scheduling.check_timeout_s,
                    resolver=resolver,
                    transport=transport,
                    clock=clock,
                )
                if found.answers and all(step.state is StepState.OK for step in found.steps):
                    found.steps.append(_application_step(found.answers))
            return found

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(agent, checks)) for agent, checks in chosen]
    return [task.result() for task in tasks]


def _config_steps(agent: AgentConfig) -> list[ProbeStep]:
    return [
        ProbeStep(name="configuration", state=StepState.FAILED, duration_s=0.0, detail=str(problem))
        for problem in agent.problems
    ]


async def _poll_agent(
    config: PollerConfig, agent: AgentConfig, checks: Mapping[str, CheckConfig], transport: Transport
) -> AgentAnswers:
    found = AgentAnswers(agent=agent.name, address=agent.address)
    try:
        if agent.problems:
            raise CallError(
                layer=Layer.CONFIG,
                code=GrpcCode.FAILED_PRECONDITION,
                reason="misconfigured",
                detail="; ".join(str(problem) for problem in agent.problems),
            )
        client: AgentClient = await transport.agent(agent.address, agent.security)
    except CallError as error:
        found.answers = [_failure(agent, key, check, error, 0.0) for key, check in checks.items()]
        return found
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_ask(config, agent, key, check, client)) for key, check in checks.items()]
        found.answers = [task.result() for task in tasks]
    finally:
        await client.close()
    return found


async def _ask(config: PollerConfig, agent: AgentConfig, key: str, check: CheckConfig, client: AgentClient) -> Answer:
    loop = asyncio.get_running_loop()
    begin_s = loop.time()
    timeout_s = config.scheduling.check_timeout_s
    try:
        if check.is_streamed:
            available, message = await _streamed(config, agent, check, client, timeout_s)
        elif check.is_results:
            available, message = await _results(config, agent, check, client, timeout_s)
        else:
            status = await client.get_status(
                StatusRequest(
                    service_name=check.service_name,
                    service_type=check.service_type,
                    agent_id=agent.name,
                    poller_id=config.poller_id,
                    details=check.details,
                    port=check.port if check.service_type == "port" else 0,
                ),
                timeout_s=timeout_s,
            )
            available, message = status.available, status.message
    except CallError as error:
        return _failure(agent, key, check, error, loop.time() - begin_s)
    return Answer(
        agent=agent.name,
        check=key,
        service_name=check.service_name,
        service_type=check.service_type,
        kind="results" if check.is_results else "status",
        available=available,
        latency_s=round(loop.time() - begin_s, 6),
        message=message.decode("utf-8", "replace"),
    )


async def _results(
    config: PollerConfig, agent: AgentConfig, check: CheckConfig, client: AgentClient, timeout_s: float
) -> tuple[bool, bytes]:
    results = await client.get_results(_results_request(config, agent, check), timeout_s=timeout_s)
    return results.available, results.data


async def _streamed(
    config: PollerConfig, agent: AgentConfig, check: CheckConfig, client: AgentClient, timeout_s: float
) -> tuple[bool, bytes]:
    """Pull a streamed result to its end, and tell how much it is; raises CallError."""
    stream = client.stream_results(_results_request(config, agent, check), timeout_s=timeout_s)
    merge = new_merge(check.service_type, limits=STREAM_LIMITS)
    try:
        while not merge.final and (chunk := await stream.read()) is not None:
            merge, _ = feed(merge, chunk)
        _, result = finish(merge)
    except MergeError as error:
        raise error.as_call_error() from None
    finally:
        await stream.cancel()
    return True, f"{result.items} items, {result.bytes} bytes, sequence {result.sequence or '-'}".encode()


def _results_request(config: PollerConfig, agent: AgentConfig, check: CheckConfig) -> ResultsRequest:
    return ResultsRequest(
        service_name=check.service_name,
        service_type=check.service_type,
        agent_id=agent.name,
        poller_id=config.poller_id,
        details=check.details,
    )


def _failure(agent: AgentConfig, key: str, check: CheckConfig, error: CallError, latency_s: float) -> Answer:
    return Answer(
        agent=agent.name,
        check=key,
        service_name=check.service_name,
        service_type=check.service_type,
        kind="results" if check.is_results else "status",
        available=False,
        latency_s=round(latency_s, 6),
        layer=error.layer,
        reason=error.reason,
        error=error.detail,
    )


def _print(found: Sequence[AgentAnswers], out: TextIO) -> None:
    width = os.get_terminal_size(out.fileno()).columns if out.isatty() else 160
    console = Console(file=out, width=width, highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("agent", "check", "result"):
        table.add_column(title, overflow="fold")
    table.add_column("ms", justify="right")
    table.add_column("message", overflow="fold", ratio=1)
    for one in found:
        for answer in one.answers:
            if answer.layer:
                result, text = Text(f"failed ({answer.layer})", style="red"), f"{answer.reason}: {answer.error}"
            elif answer.available:
                result, text = Text("available", style="green"), answer.message
            else:
                result, text = Text("unavailable", style="yellow"), answer.message
            table.add_row(
                answer.agent,
                answer.check,
                result,
                f"{answer.latency_s * 1000:.1f}",
                Text(clean(text)[:MESSAGE_SHOWN_MAX]),
            )
    console.print(table)
    for one in found:
        if one.steps:
            console.print()
            console.print(Text(f"the way to {one.agent} ({one.address}), layer by layer", style="bold"))
            console.print(_steps(one.steps))


def _steps(steps: Sequence[ProbeStep]) -> Table:
    styles = {StepState.OK: "green", StepState.FAILED: "red", StepState.SKIPPED: "dim"}
    table = Table.grid(padding=(0, 2))
    table.add_column(min_width=13)
    table.add_column(min_width=7)
    table.add_column(overflow="fold")
    for step in steps:
        table.add_row(f"  {step.name}", Text(step.state, style=styles[step.state]), Text(step.detail))
    return table


def _application_step(answers: Sequence[Answer]) -> ProbeStep:
    """Return the layer above gRPC's own health: what came of the checks themselves."""
    failed = [answer for answer in answers if answer.layer]
    detail = "; ".join(f"{answer.check}: {answer.reason}: {answer.error}" for answer in failed[:CHECKS_EXPLAINED_MAX])
    if len(failed) > CHECKS_EXPLAINED_MAX:
        detail += f"; and {len(failed) - CHECKS_EXPLAINED_MAX} more"
    return ProbeStep(
        name="application",
        state=StepState.FAILED,
        duration_s=max((answer.latency_s for answer in failed), default=0.0),
        detail=detail,
    )
