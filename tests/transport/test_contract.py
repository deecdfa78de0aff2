"""What every transport has to do, whichever library does it: calls and the statuses of peers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health_pb2

from serviceradar_poller.env import Transport
from serviceradar_poller.errors import GrpcCode, Layer, SpoolReadError
from serviceradar_poller.testing.contract import (
    REQUEST,
    chunks,
    failure,
    report,
    send_report,
    send_stream,
    status_failure,
)
from serviceradar_poller.testing.peers import (
    Context,
    serving,
)
from serviceradar_poller.wire import codec
from serviceradar_poller.wire.messages import (
    PollerStatusResponse,
    ResultsRequest,
    ResultsResponse,
    StatusRequest,
    StatusResponse,
)


def test_get_status(transport: Transport) -> None:
    """A status request and its response arrive as they were sent."""

    async def main() -> None:
        async with serving() as peer:
            client = await transport.agent(peer.address, None)
            answer = await client.get_status(REQUEST, timeout_s=5.0)
            assert peer.requests == [REQUEST]
            assert answer == StatusResponse(
                available=True,
                message=b'{"status":"running"}',
                service_name="ssh",
                service_type="port",
                response_time=1_500_000,
                agent_id="agent-1",
                poller_id="p",
            )
            await client.close()

    asyncio.run(main())


def test_get_results(transport: Transport) -> None:
    """A results request and a response of several MiB arrive as they were sent."""
    request = ResultsRequest(service_name="s", service_type="sweep", last_sequence="7", details="d")
    response = ResultsResponse(
        available=True, data=b"x" * 6_000_000, current_sequence="8", has_new_data=True, timestamp=1_700_000_000
    )

    async def main() -> None:
        async with serving() as peer:
            peer.results_answer = response
            client = await transport.agent(peer.address, None)
            assert await client.get_results(request, timeout_s=5.0) == response
            assert peer.requests == [request]
            await client.close()

    asyncio.run(main())


def test_health(transport: Transport) -> None:
    """Health is asked for the name AgentService, and each state is told; an unknown name is a state too."""
    states = health_pb2.HealthCheckResponse

    async def main() -> None:
        async with serving() as peer:
            client = await transport.agent(peer.address, None)
            told = []
            for state in (
                states.SERVING,
                states.NOT_SERVING,
                states.UNKNOWN,
                states.SERVICE_UNKNOWN,
                grpc.StatusCode.NOT_FOUND,
            ):
                peer.health = state
                told.append(await client.check_health(timeout_s=5.0))
            assert told == ["SERVING", "NOT_SERVING", "UNKNOWN", "SERVICE_UNKNOWN", "SERVICE_UNKNOWN"]
            assert set(peer.requests) == {"AgentService"}
            peer.health = grpc.StatusCode.PERMISSION_DENIED
            assert (await failure(client.check_health(timeout_s=5.0))).reason == "permission_denied"
            await client.close()

    asyncio.run(main())


def test_chunks_that_end_in_an_error_end_the_call(transport: Transport) -> None:
    """When the chunks of a stream can't be read any more, the caller gets to know why, and core no half report."""

    async def broken() -> AsyncIterator[bytes]:
        yield codec.encode_poller_status_chunk(chunks(2)[0])
        raise SpoolReadError(reason="damaged", detail="")

    async def main() -> None:
        async with serving() as peer:
            core = await transport.core(peer.address, None)
            with pytest.raises(SpoolReadError):
                await core.stream_status_raw(broken(), 2, timeout_s=5.0)
            assert (await send_stream(core, chunks(1), timeout_s=5.0)).received
            await core.close()

    asyncio.run(main())


@pytest.mark.parametrize("ending", ["deadline", "early", "cancel"])
def test_chunks_that_never_come(transport: Transport, ending: str) -> None:
    """While the next chunk is being made, the call's time, core's answer and a cancel are seen, and the making ends."""
    made: list[str] = []
    refusing = asyncio.Event()

    async def stuck() -> AsyncIterator[bytes]:
        try:
            yield codec.encode_poller_status_chunk(chunks(2)[0])
            made.append("one")
            await asyncio.Event().wait()
        finally:
            made.append("closed")

    async def refuse(stream: AsyncIterator[bytes], context: Context) -> bytes:
        await anext(stream)
        refusing.set()
        if ending == "early":
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no more")
        await asyncio.Event().wait()
        raise AssertionError

    async def main() -> None:
        async with serving() as peer:
            peer.stream_answer = refuse
            core = await transport.core(peer.address, None)
            loop = asyncio.get_running_loop()
            began_at = loop.time()
            timeout_s = 1.0 if ending == "deadline" else 60.0
            call = asyncio.create_task(core.stream_status_raw(stuck(), 2, timeout_s=timeout_s))
            if ending == "cancel":
                await refusing.wait()
                call.cancel()
                await asyncio.wait({call})
                assert call.cancelled()
            else:
                error = await failure(call)
                assert error.reason == ("timeout" if ending == "deadline" else "resource_exhausted")
            assert loop.time() - began_at < 20.0
            assert made == ["one", "closed"]
            await core.close()

    asyncio.run(main())


@pytest.mark.parametrize("received", [True, False])
def test_report_status(transport: Transport, received: bool) -> None:
    """A report above gRPC's usual 4 MiB arrives whole, and core's answer is handed on."""

    async def main() -> None:
        async with serving() as peer:
            peer.received = received
            client = await transport.core(peer.address, None)
            answer = await send_report(client, report(5_000_000), timeout_s=5.0)
            assert answer == PollerStatusResponse(received=received)
            assert peer.requests == [report(5_000_000)]
            await client.close()

    asyncio.run(main())


@pytest.mark.parametrize("count", [1, 3, 40])
def test_stream_status(transport: Transport, count: int) -> None:
    """Every chunk arrives once and in order, though together they exceed the flow control window."""

    async def main() -> None:
        async with serving() as peer:
            client = await transport.core(peer.address, None)
            sent = chunks(count, 100_000)
            assert (await send_stream(client, sent, timeout_s=5.0)).received
            assert peer.requests == list(sent)
            await client.close()

    asyncio.run(main())


def test_stream_ends_early_with_an_error(transport: Transport) -> None:
    """When core refuses after the first chunk, sending stops and core's status is what the caller gets."""

    async def refuse(stream: AsyncIterator[bytes], context: Context) -> bytes:
        await anext(stream)
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "report too large")
        raise AssertionError

    async def main() -> None:
        async with serving() as peer:
            peer.stream_answer = refuse
            client = await transport.core(peer.address, None)
            error = await failure(send_stream(client, chunks(200, 1_000_000), timeout_s=10.0))
            assert (error.reason, error.layer) == ("resource_exhausted", Layer.GRPC)
            assert error.detail == "report too large"
            await client.close()

    asyncio.run(main())


def test_stream_answered_early_with_ok(transport: Transport) -> None:
    """An OK before everything was sent is not taken for an acceptance."""

    async def hasty(stream: AsyncIterator[bytes], context: Context) -> bytes:
        await anext(stream)
        return codec.encode_poller_status_response(PollerStatusResponse(received=True))

    async def main() -> None:
        async with serving() as peer:
            peer.stream_answer = hasty
            client = await transport.core(peer.address, None)
            error = await failure(send_stream(client, chunks(200, 1_000_000), timeout_s=10.0))
            assert (error.reason, error.retryable) == ("early_answer", False)
            await client.close()

    asyncio.run(main())


def test_unencodable_requests(transport: Transport) -> None:
    """A request that fits no field fails by itself; the client stays usable."""

    async def main() -> None:
        async with serving() as peer:
            agent, core = await transport.agent(peer.address, None), await transport.core(peer.address, None)
            for call in (
                agent.get_status(StatusRequest(details="\ud800"), timeout_s=5.0),
                agent.get_results(ResultsRequest(details="\ud800"), timeout_s=5.0),
            ):
                error = await failure(call)
                assert (error.layer, error.reason) == (Layer.APPLICATION, "encode")
            assert (await agent.get_status(REQUEST, timeout_s=5.0)).available
            assert (await send_stream(core, chunks(1), timeout_s=5.0)).received
            await agent.close()
            await core.close()

    asyncio.run(main())


def test_undecodable_answer(transport: Transport) -> None:
    """An answer that can't be read is the application's failure, not retried and no security matter."""

    async def garbage(request: StatusRequest, context: Context) -> bytes:
        return b"\x0a\xff"

    async def main() -> None:
        async with serving() as peer:
            peer.status_answer = garbage
            error = await status_failure(transport, peer.address)
            assert (error.layer, error.reason) == (Layer.APPLICATION, "decode")
            assert not (error.retryable or error.security or error.unreachable)

    asyncio.run(main())


def test_user_agent(transport: Transport) -> None:
    """Peers see which program calls."""

    async def main() -> None:
        async with serving() as peer:
            client = await transport.agent(peer.address, None)
            await client.get_status(REQUEST, timeout_s=5.0)
            assert str(peer.metadata["user-agent"]).startswith("serviceradar-poller/")
            await client.close()

    asyncio.run(main())


def test_many_calls_at_once(transport: Transport) -> None:
    """One client serves many tasks; every answer reaches its own caller."""

    async def main() -> None:
        async with serving() as peer:
            client = await transport.agent(peer.address, None)
            names = [f"check-{i}" for i in range(200)]
            answers = await asyncio.gather(
                *(client.get_status(StatusRequest(service_name=n), timeout_s=10.0) for n in names)
            )
            assert [a.service_name for a in answers] == names
            await client.close()

    asyncio.run(main())


# -- the peer's own statuses


@pytest.mark.parametrize("code", [c for c in GrpcCode if c is not GrpcCode.OK])
def test_every_status_of_the_peer(transport: Transport, code: GrpcCode) -> None:
    """Each status keeps its code, has its name as reason, and its text becomes one line."""
    status = grpc.StatusCode[code.name]

    async def abort(request: StatusRequest, context: Context) -> bytes:
        await context.abort(status, "connection refused\nby the database")
        raise AssertionError

    async def main() -> None:
        async with serving() as peer:
            peer.status_answer = abort
            error = await status_failure(transport, peer.address)
            assert (error.layer, error.code, error.reason) == (Layer.GRPC, code, code.name.lower())
            assert error.detail == "connection refused by the database"
            assert error.security is (code in (GrpcCode.UNAUTHENTICATED, GrpcCode.PERMISSION_DENIED))
            assert not error.unreachable

    asyncio.run(main())


def test_unimplemented(transport: Transport) -> None:
    """A peer without the service is told from one that is down."""

    async def main() -> None:
        async with serving() as peer:
            peer.status_answer = peer.hang
            server = grpc.aio.server()
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            error = await status_failure(transport, f"127.0.0.1:{port}")
            assert (error.layer, error.reason, error.retryable) == (Layer.GRPC, "unimplemented", False)
            await server.stop(None)

    asyncio.run(main())
