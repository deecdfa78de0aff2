"""The transport on an event loop that others wrote, whose transports don't derive from asyncio's."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from serviceradar_poller.config.model import SecurityConfig
from serviceradar_poller.env import AgentClient, SystemClock
from serviceradar_poller.errors import CallError
from serviceradar_poller.lab.client import LabAgents
from serviceradar_poller.testing.contract import REQUEST
from serviceradar_poller.testing.peers import unused_port
from serviceradar_poller.transport.native.transport import NativeTransport
from serviceradar_poller.transport.resolver import SystemResolver
from serviceradar_poller.wire.messages import ResultsRequest

pytestmark = pytest.mark.slow

Block = Callable[..., SecurityConfig]
AGENT = "agent-0001"
#: In three chunks, so that credit has to be given.
DEVICES = 3_000
TIMEOUT_S = 10.0


@pytest.fixture(scope="module")
def agents(pki: Path) -> Iterator[LabAgents]:
    with LabAgents.start(1, cert_dir=pki, sync=[AGENT], devices=DEVICES) as running:
        yield running


def run(
    address: str, security: SecurityConfig | None, program: Callable[[AgentClient], Coroutine[Any, Any, None]]
) -> None:
    """Run *program* with a client on uvloop; afterwards no descriptor may be left."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, uvloop.Loop)
        client = await NativeTransport(clock=SystemClock(), resolver=SystemResolver()).agent(address, security)
        try:
            await program(client)
        finally:
            await client.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.sleep(0))  # libuv keeps a pipe from its first loop on
    gc.collect()  # what other tests left behind would go at any time
    before = len(os.listdir("/proc/self/fd"))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
    assert len(os.listdir("/proc/self/fd")) <= before


def test_calls_over_tls(agents: LabAgents, block: Block) -> None:
    """Calls over mutual TLS are answered, many at a time too, all on one connection."""

    async def program(client: AgentClient) -> None:
        first = await client.get_status(REQUEST, timeout_s=TIMEOUT_S)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(client.get_status(REQUEST, timeout_s=TIMEOUT_S)) for _ in range(200)]
        answers = [first, *(task.result() for task in tasks)]
        assert {answer.agent_id for answer in answers} == {AGENT}
        assert agents.stats()["counts"]["handshakes"] == before + 1

    before = agents.stats()["counts"].get("handshakes", 0)
    run(agents.address(AGENT), block(server_name="agent.serviceradar"), program)


def test_a_stream_over_tls(agents: LabAgents, block: Block) -> None:
    """A result larger than the window arrives whole."""

    async def program(client: AgentClient) -> None:
        request = ResultsRequest(service_name="sync", service_type="sync", agent_id=AGENT, poller_id="p")
        stream = client.stream_results(request, timeout_s=TIMEOUT_S)
        chunks = []
        while (chunk := await stream.read()) is not None:
            chunks.append(chunk)
        assert [chunk.is_final for chunk in chunks] == [False, False, True]
        assert sum(chunk.data.count(b'"device_id"') for chunk in chunks) == DEVICES

    run(agents.address(AGENT), block(server_name="agent.serviceradar"), program)


def test_failures_are_told_as_on_asyncios_own_loop(agents: LabAgents, block: Block) -> None:
    """A port that is closed, a wrong name and a call that takes too long have the reasons that they have elsewhere."""

    async def reason(client: AgentClient, timeout_s: float = TIMEOUT_S) -> str:
        with pytest.raises(CallError) as caught:
            await client.get_status(REQUEST, timeout_s=timeout_s)
        return caught.value.reason

    found: list[str] = []

    async def fails(client: AgentClient) -> None:
        found.append(await reason(client))

    async def late(client: AgentClient) -> None:
        await client.check_health(timeout_s=TIMEOUT_S)
        agents.set_fault(AGENT, "hang_status")
        found.append(await reason(client, 0.2))

    with contextlib.ExitStack() as stack:
        stack.callback(agents.clear_fault)
        run(f"127.0.0.1:{unused_port()}", None, fails)
        run(agents.address(AGENT), block(server_name="another.example"), fails)
        run(agents.address(AGENT), block(server_name="agent.serviceradar"), late)
    assert found == ["refused", "tls", "timeout"]
