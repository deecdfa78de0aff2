"""The connection to core while clients take their time to be made: renewals, late clients, deadlines."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from serviceradar_poller.config.model import SecurityConfig, SecurityMode, TlsConfig
from serviceradar_poller.env import Event
from serviceradar_poller.errors import CallError, GrpcCode, Layer
from serviceradar_poller.events.polling import CredentialsRejected, CredentialsRenewed
from serviceradar_poller.reporting.link import CoreLink
from serviceradar_poller.reporting.outgoing import EncodedCall
from serviceradar_poller.testing.fakes import REFUSED, FakeTransport, fake_env
from serviceradar_poller.testing.simloop import run
from serviceradar_poller.wire.codec import encode_poller_status_request
from serviceradar_poller.wire.messages import PollerStatusRequest

CORE = "core:50052"
MTLS = SecurityConfig(mode=SecurityMode.MTLS, tls=TlsConfig(cert_file="/c", key_file="/k", ca_file="/a"))
BAD_FILES = CallError(
    layer=Layer.CONFIG, code=GrpcCode.FAILED_PRECONDITION, reason="credentials", detail="key mismatch"
)
BAD_TLS = CallError(layer=Layer.TLS, code=GrpcCode.UNAVAILABLE, reason="tls", detail="certificate has expired")


class Bench:
    """A link to a fake core; ``rejected`` and ``outdated`` count what it asks its owner for."""

    def __init__(self) -> None:
        self.transport = FakeTransport()
        self.events: list[Event] = []
        self.rejected = 0
        self.outdated = 0
        self.link = CoreLink(
            CORE,
            MTLS,
            fake_env(self.transport, self.events),
            rejected=lambda: self._count("rejected"),
            outdated=lambda: self._count("outdated"),
        )

    async def call(self, timeout_s: float = 10.0) -> CallError | None:
        report = encode_poller_status_request(PollerStatusRequest(services=(), poller_id="p", timestamp=1))

        async def read(index: int) -> bytes:
            return report

        call = EncodedCall(kind="unary", count=1, read=read, size=len(report), status_count=0)
        return await self.link.make(call, timeout_s=timeout_s)

    def told(self, kind: type[Event]) -> int:
        return sum(isinstance(event, kind) for event in self.events)

    def open_clients(self) -> int:
        return sum(not client.closed for client in self.transport.clients)

    def _count(self, name: str) -> None:
        setattr(self, name, getattr(self, name) + 1)


def bench(test: Callable[[Bench], Awaitable[None]]) -> None:
    """Run *test* on virtual time; whatever happened, nothing stays open."""

    async def main() -> None:
        made = Bench()
        await test(made)
        await made.link.close()
        assert made.open_clients() == 0

    run(main())


def test_a_call_waits_for_its_client_within_its_time() -> None:
    """A judgement that takes longer than a call may is that call's failure, with the reason, and no longer wait."""

    async def test(made: Bench) -> None:
        made.transport.latency_s[CORE] = 4.0
        begin_s = asyncio.get_running_loop().time()
        error = await made.call(timeout_s=3.0)
        assert error is not None
        assert (error.layer, error.reason) == (Layer.CONFIG, "credentials")
        assert "not judged within 3 s" in error.detail
        assert 2.9 < asyncio.get_running_loop().time() - begin_s < 3.1
        assert made.transport.making == {CORE: 0}
        assert await made.call(timeout_s=5.0) is None

    bench(test)


def test_files_that_change_while_the_client_is_made() -> None:
    """The owner is asked to renew once the call's client is there, for it has the files of before."""

    async def test(made: Bench) -> None:
        made.transport.latency_s[CORE] = 2.0
        async with asyncio.TaskGroup() as group:
            called = group.create_task(made.call())
            await asyncio.sleep(1.0)
            await made.link.renew()
            assert made.outdated == 0
        assert called.result() is None
        assert made.outdated == 1
        await made.link.renew()
        assert await made.call() is None
        assert made.told(CredentialsRenewed) == 1
        assert (made.outdated, made.open_clients()) == (1, 1)

    bench(test)


def test_files_that_change_while_they_are_judged() -> None:
    """However often renew() is called meanwhile, one more candidate is made, and only the last is kept."""

    async def test(made: Bench) -> None:
        assert await made.call() is None
        made.transport.latency_s[CORE] = 2.0
        async with asyncio.TaskGroup() as group:
            group.create_task(made.link.renew())
            await asyncio.sleep(1.0)
            for _ in range(5):
                await made.link.renew()
            assert await made.call() is None  # by the old connection, at once
        assert made.transport.opened[CORE] == 3
        assert made.open_clients() == 2
        assert await made.call() is None
        assert (made.told(CredentialsRenewed), made.open_clients()) == (1, 1)

    bench(test)


def test_a_newer_candidate_is_not_lost_to_an_older_one() -> None:
    """A candidate that could not be proven gives way to one that was made while it was tried."""

    async def test(made: Bench) -> None:
        assert await made.call() is None
        await made.link.renew()
        older = made.transport.clients[-1]
        made.transport.the_core.hang = True
        async with asyncio.TaskGroup() as group:
            group.create_task(made.call(timeout_s=2.0))
            await asyncio.sleep(0.5)
            await made.link.renew()
            newer = made.transport.clients[-1]
            made.transport.the_core.error = REFUSED
        assert older.closed and not newer.closed
        made.transport.the_core.hang = False
        made.transport.the_core.error = None
        assert await made.call() is None
        assert not newer.closed
        assert (made.told(CredentialsRenewed), made.open_clients()) == (1, 1)

    bench(test)


def test_bad_files_keep_the_connection() -> None:
    """A renewal that fails is told once, asks to be tried again, and calls go on."""

    async def test(made: Bench) -> None:
        assert await made.call() is None
        made.transport.unusable[CORE] = BAD_FILES
        for _ in range(3):
            await made.link.renew()
            assert await made.call() is None
        assert (made.told(CredentialsRejected), made.rejected) == (1, 3)

    bench(test)


def test_a_close_while_clients_are_made() -> None:
    """What is made after the link was closed is closed too, and nothing is told of it."""

    async def test(made: Bench) -> None:
        assert await made.call() is None
        made.transport.latency_s[CORE] = 2.0
        made.transport.the_core.error = BAD_TLS
        assert (await made.call()) is not None  # drops the client
        async with asyncio.TaskGroup() as group:
            called = group.create_task(made.call())
            await asyncio.sleep(1.0)
            await made.link.close()
        error = called.result()
        assert error is not None and error.reason == "closed"
        assert made.open_clients() == 0
        assert not made.events and not made.rejected

    bench(test)


def test_a_close_while_a_candidate_is_made() -> None:
    """The same for a renewal."""

    async def test(made: Bench) -> None:
        assert await made.call() is None
        made.transport.latency_s[CORE] = 2.0
        async with asyncio.TaskGroup() as group:
            group.create_task(made.link.renew())
            await asyncio.sleep(1.0)
            await made.link.renew()
            await made.link.close()
        assert made.transport.opened[CORE] == 2
        assert made.open_clients() == 0
        assert not made.events and not made.rejected

    bench(test)
