"""What every transport makes of certificates, good and bad, on both sides."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from serviceradar_poller.env import Transport
from serviceradar_poller.errors import CallError, Layer
from serviceradar_poller.testing.contract import (
    REQUEST,
    Block,
    server_context,
    server_credentials,
    status_failure,
)
from serviceradar_poller.testing.peers import (
    serving,
    silence,
    tcp_peer,
)


@pytest.mark.parametrize("server_name", ["", "127.0.0.1", "localhost", "::1", "agent.serviceradar"])
def test_mtls(transport: Transport, pki: Path, block: Block, server_name: str) -> None:
    """Both certificates are checked, the peer's against server_name: a DNS name, an IP literal, or the host."""

    async def main() -> None:
        async with serving(server_credentials(pki)) as peer:
            client = await transport.agent(peer.address, block(server_name=server_name))
            assert (await client.get_status(REQUEST, timeout_s=5.0)).available
            await client.close()

    asyncio.run(main())


@pytest.mark.parametrize("server_name", ["agent", "10.0.0.1", "::2", "core.serviceradar"])
def test_mtls_wrong_name(transport: Transport, pki: Path, block: Block, server_name: str) -> None:
    """A certificate for someone else is refused; the common name does not count."""

    async def main() -> None:
        async with serving(server_credentials(pki)) as peer:
            error = await status_failure(transport, peer.address, block(server_name=server_name))
            assert (error.layer, error.reason) == (Layer.TLS, "tls")
            assert "name" in error.detail
            assert error.security
            assert not error.retryable
            assert peer.requests == []

    asyncio.run(main())


@pytest.mark.parametrize(
    ("leaf", "words"),
    [
        ("expired", "expired"),
        ("not_yet_valid", "not yet valid"),
        ("other_ca", "refused"),
        ("wrong_names", "name"),
    ],
)
def test_mtls_bad_peer_certificate(transport: Transport, pki: Path, block: Block, leaf: str, words: str) -> None:
    """A peer's certificate that is out of date, of another CA or of another host is refused, and why is told."""

    async def main() -> None:
        async with serving(server_credentials(pki, leaf)) as peer:
            error = await status_failure(transport, peer.address, block())
            assert (error.layer, error.reason) == (Layer.TLS, "tls")
            assert words in error.detail

    asyncio.run(main())


def test_mtls_our_certificate_refused(transport: Transport, pki: Path, block: Block) -> None:
    """When the peer refuses our certificate, that is a matter of security and no request arrived."""

    async def main() -> None:
        async with serving(server_credentials(pki, root="other/root")) as peer:
            error = await status_failure(transport, peer.address, block())
            assert (error.layer, error.reason) == (Layer.TLS, "tls")
            assert "our certificate" in error.detail

    asyncio.run(main())


def test_tls_to_a_plaintext_peer(transport: Transport, block: Block) -> None:
    """A peer without TLS is told from one with a bad certificate."""

    async def main() -> None:
        async with serving() as peer:
            error = await status_failure(transport, peer.address, block())
            assert (error.layer, error.reason) == (Layer.TLS, "tls")
            assert "does not speak TLS" in error.detail

    asyncio.run(main())


def test_plaintext_to_a_tls_peer(transport: Transport, pki: Path) -> None:
    """A missing security block is suspected where the peer drops plaintext."""

    async def main() -> None:
        async with serving(server_credentials(pki)) as peer:
            error = await status_failure(transport, peer.address)
            assert error.reason in ("protocol", "reset")
            assert error.unreachable

    asyncio.run(main())


def test_tls_without_http2(transport: Transport, pki: Path, block: Block) -> None:
    """A TLS peer that does not offer h2 is named as that."""

    async def main() -> None:
        async with tcp_peer(silence, server_context(pki)) as address:
            error = await status_failure(transport, address, block())
            assert (error.layer, error.reason) == (Layer.TLS, "tls")
            assert "HTTP/2" in error.detail

    asyncio.run(main())


@pytest.mark.parametrize(
    ("leaf", "words"),
    [
        ("missing", "No such file"),
        ("expired", "expired"),
        ("not_yet_valid", "not valid before"),
        ("key_mismatch", "not the key"),
        ("no_client_auth", "clientAuth"),
    ],
)
def test_own_bad_certificate(transport: Transport, block: Block, leaf: str, words: str) -> None:
    """Our own unusable files fail the construction, naming the file and what is wrong with it."""
    for make in (transport.agent, transport.core):
        with pytest.raises(CallError) as caught:
            asyncio.run(make("127.0.0.1:1", block(leaf=leaf)))
        assert (caught.value.layer, caught.value.reason) == (Layer.CONFIG, "credentials")
        assert f"{leaf}" in caught.value.detail
        assert words in caught.value.detail
        assert not caught.value.retryable


@pytest.mark.parametrize("address", ["", "localhost", "localhost:", "localhost:99999", "a:b:c", "::1:5", "x y:1"])
def test_bad_address(transport: Transport, address: str) -> None:
    """An address that can't be read fails the construction."""
    for make in (transport.agent, transport.core):
        with pytest.raises(CallError) as caught:
            asyncio.run(make(address, None))
        assert (caught.value.layer, caught.value.reason) == (Layer.CONFIG, "address")
