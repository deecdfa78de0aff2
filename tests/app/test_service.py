"""The actor that holds the poller's own port: what becomes of it when the certificate on disk changes."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from serviceradar_poller.app import service
from serviceradar_poller.app.service import GrpcService, RenewCertificate
from serviceradar_poller.config.model import SecurityConfig, SecurityMode, TlsConfig
from serviceradar_poller.env import Event, SystemClock
from serviceradar_poller.events.polling import ServerFailed
from serviceradar_poller.lab.pki import make_leaf, make_pki
from serviceradar_poller.logic.backoff import BackoffSettings
from serviceradar_poller.observe.lines import line_of
from serviceradar_poller.otp import Ref, System, actor, start_tree, supervisor
from serviceradar_poller.testing.fakes import FakeTransport, fake_env
from serviceradar_poller.testing.peers import unused_port
from serviceradar_poller.testing.strangers import eventually
from serviceradar_poller.transport.credentials import CredentialsCache
from serviceradar_poller.transport.server import PollerServer, start

pytestmark = pytest.mark.slow

WITHIN_S = 30.0


@dataclass
class Served:
    """A running service and what a client sees of it."""

    folder: Path
    port: int
    events: list[Event]
    ref: Ref[service.Open | RenewCertificate]

    def context(self) -> ssl.SSLContext:
        """Return what a client that the port trusts connects with."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(self.folder / "root.pem")
        context.load_cert_chain(self.folder / "agent.pem", self.folder / "agent-key.pem")
        context.set_alpn_protocols(["h2"])
        return context

    async def certificate(self) -> bytes | None:
        """Return what the port proves itself with now; None while nobody listens."""
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self.context())
        except OSError:
            return None
        found: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.transport.abort()
        return found

    async def other_than(self, known: bytes | None) -> bytes:
        """Wait for a certificate that is not *known*."""
        async with asyncio.timeout(WITHIN_S):
            while True:
                found = await self.certificate()
                if found is not None and found != known:
                    return found
                await asyncio.sleep(0.02)

    def failures(self) -> list[str]:
        """Return what operators were told."""
        return [event.error for event in self.events if isinstance(event, ServerFailed)]


@contextlib.asynccontextmanager
async def served(folder: Path, *, make: bool = True) -> AsyncIterator[Served]:
    """Run the actor over mutual TLS on files in *folder*, made first unless they are there."""
    if make:
        make_pki(folder)
    files = TlsConfig(
        cert_file=str(folder / "poller.pem"),
        key_file=str(folder / "poller-key.pem"),
        ca_file=str(folder / "root.pem"),
    )
    port, events = unused_port(), list[Event]()
    env = fake_env(FakeTransport(), events)
    spec = actor(
        "grpc-server",
        lambda: GrpcService(
            f"127.0.0.1:{port}",
            service_name="PollerService",
            security=SecurityConfig(mode=SecurityMode.MTLS, tls=files),
            credentials=CredentialsCache(SystemClock()),
            env=env,
        ),
    )
    tree = await start_tree(supervisor("service", [spec]), System(emit=lambda event: None))
    try:
        ref = tree.system.whereis("service/grpc-server")
        assert isinstance(ref, Ref)
        yield Served(folder, port, events, ref)
    finally:
        await tree.stop()


def test_a_renewed_certificate_is_served(tmp_path: Path) -> None:
    """After a rotation clients meet the new certificate at the same port, which is never closed meanwhile."""

    async def main() -> None:
        async with served(tmp_path) as made:
            old = await made.other_than(None)
            _, kept = await asyncio.open_connection("127.0.0.1", made.port, ssl=made.context())
            make_leaf(tmp_path, "poller", role="poller", overwrite=True)
            made.ref.cast(RenewCertificate())
            async with asyncio.timeout(WITHIN_S):
                while (found := await made.certificate()) == old:  # noqa: ASYNC110 - the port is asked on purpose
                    await asyncio.sleep(0.001)
            assert found is not None
            assert made.failures() == []
            assert not kept.transport.is_closing()
            kept.transport.abort()

    asyncio.run(main())


def test_unusable_files_leave_the_port_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rotation gone wrong is told once, the old certificate serves on, and mended files are taken by themselves."""
    monkeypatch.setattr(service, "RETRY", BackoffSettings(min_s=0.01, max_s=0.05))

    async def main() -> None:
        async with served(tmp_path) as made:
            old = await made.other_than(None)
            make_leaf(tmp_path, "poller", role="poller", overwrite=True)
            key = (tmp_path / "poller-key.pem").read_bytes()
            (tmp_path / "poller-key.pem").write_bytes(b"not a key")
            made.ref.cast(RenewCertificate())
            await eventually(lambda: bool(made.failures()))
            assert await made.certificate() == old
            (tmp_path / "poller-key.pem").write_bytes(key)
            await made.other_than(old)
            [told] = [event for event in made.events if isinstance(event, ServerFailed)]
            assert "no readable private key" in told.error
            assert told.serving
            assert "goes on with the old one" in line_of(told).message(told)

    asyncio.run(main())


def test_a_listener_that_is_not_open_says_so(tmp_path: Path) -> None:
    """Where nothing serves, the failure says that the listener can't be opened, whatever the cause."""

    async def main() -> None:
        make_pki(tmp_path)
        (tmp_path / "poller-key.pem").write_bytes(b"not a key")
        async with served(tmp_path, make=False) as made:
            await eventually(lambda: bool(made.failures()))
            [told] = [event for event in made.events if isinstance(event, ServerFailed)]
            assert not told.serving
            assert "can not be opened" in line_of(told).message(told)

    asyncio.run(main())


def test_rotations_that_fail_are_one_retry_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often bad files change, the port is opened once, and takes the certificate once when they are mended."""
    monkeypatch.setattr(service, "RETRY", BackoffSettings(min_s=0.05, max_s=0.1))
    opened = renewed = 0

    async def opens(*args: Any, **kwargs: Any) -> PollerServer:
        nonlocal opened
        opened += 1
        return await start(*args, **kwargs)

    renew = PollerServer.renew

    def renews(server: PollerServer, context: ssl.SSLContext | None) -> None:
        nonlocal renewed
        renewed += 1
        renew(server, context)

    monkeypatch.setattr(service, "start", opens)
    monkeypatch.setattr(PollerServer, "renew", renews)

    async def main() -> None:
        async with served(tmp_path) as made:
            old = await made.other_than(None)
            make_leaf(tmp_path, "poller", role="poller", overwrite=True)
            key = (tmp_path / "poller-key.pem").read_bytes()
            (tmp_path / "poller-key.pem").write_bytes(b"not a key")
            for _ in range(5):
                made.ref.cast(RenewCertificate())
            await eventually(lambda: bool(made.failures()))
            (tmp_path / "poller-key.pem").write_bytes(key)
            await made.other_than(old)
            await asyncio.sleep(0.3)  # for a retry that should not be there
            assert (opened, renewed) == (1, 1)

    asyncio.run(main())
