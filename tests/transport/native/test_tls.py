from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serviceradar_poller.config.model import SecurityConfig
from serviceradar_poller.env import SystemClock
from serviceradar_poller.lab.tls import TlsEngine, server_context
from serviceradar_poller.transport.credentials import CredentialsCache
from serviceradar_poller.transport.native.tls import (
    FEED_BYTES_MAX,
    HANDSHAKE_FEED_BYTES_MAX,
    RECORD_BYTES_MAX,
    TlsClient,
    TlsError,
)

Block = Callable[..., SecurityConfig]


@pytest.fixture
def context(block: Block) -> ssl.SSLContext:
    made = asyncio.run(CredentialsCache(SystemClock()).ssl_context(block()))
    assert made is not None
    return made


@pytest.fixture
def client(context: ssl.SSLContext) -> TlsClient:
    return TlsClient(context, "agent.serviceradar")


def shake(client: TlsClient, server: TlsEngine) -> None:
    """Carry bytes both ways until both have what they need."""
    client.start()
    for _ in range(10):
        data = client.take_output()
        if data:
            server.receive(data)
        answer = server.take_output()
        if answer:
            client.feed(memoryview(answer))
        elif not client.has_output:
            return
    raise AssertionError("the handshake does not end")


def server(pki: Path, leaf: str = "agent", *, change: Callable[[ssl.SSLContext], None] | None = None) -> TlsEngine:
    made = server_context(pki, leaf)
    if change is not None:
        change(made)
    return TlsEngine(made)


def plain(context: ssl.SSLContext) -> None:
    context.verify_mode = ssl.CERT_NONE


def test_both_ways(pki: Path, client: TlsClient) -> None:
    """After the handshake bytes of any length pass in both directions, and the peer's certificate is known."""
    peer = server(pki)
    seen = [client.peer_certificate]
    shake(client, peer)
    seen.append(client.peer_certificate)
    leaf = x509.load_pem_x509_certificates((pki / "agent.pem").read_bytes())[0]
    assert seen == [None, leaf.public_bytes(Encoding.DER)]
    assert client.established
    assert peer.established
    for size in (0, 1, RECORD_BYTES_MAX, RECORD_BYTES_MAX + 1, 200_000):
        message = bytes(range(256)) * (size // 256 + 1)
        message = message[:size]
        received = peer.receive(client.encrypt(message)) if size else b""
        assert received == message
        assert client.feed(memoryview(peer.encrypt(message)) if size else memoryview(b"")) == message


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=5), st.integers(1, 3 * FEED_BYTES_MAX))
def test_any_fragmentation(pki: Path, context: ssl.SSLContext, sizes: list[int], piece: int) -> None:
    """However the wire cuts records, the same plain bytes come out."""
    client, peer = TlsClient(context, "127.0.0.1"), server(pki)
    shake(client, peer)
    sent = [b"%d" % (index % 10) * size for index, size in enumerate(sizes)]
    wire = memoryview(b"".join(peer.encrypt(each) for each in sent))
    received = b"".join(client.feed(wire[at : at + piece]) for at in range(0, len(wire), piece))
    assert received == b"".join(sent)


def test_byte_by_byte_handshake(pki: Path, client: TlsClient) -> None:
    """A handshake that arrives one byte at a time is a handshake."""
    peer = server(pki)
    client.start()
    peer.receive(client.take_output())
    for byte in peer.take_output():
        client.feed(memoryview(bytes((byte,))))
    assert client.established


@pytest.mark.parametrize("name", ["agent.serviceradar", "agent.serviceradar.", "127.0.0.1", "::1", "localhost"])
def test_names(pki: Path, context: ssl.SSLContext, name: str) -> None:
    """DNS names and IP literals are looked for where certificates have them."""
    client = TlsClient(context, name)
    shake(client, server(pki))
    assert client.established


@pytest.mark.parametrize("name", ["agent", "10.0.0.1", "::2", "core.serviceradar", "127.0.0.10"])
def test_wrong_names(pki: Path, context: ssl.SSLContext, name: str) -> None:
    """A certificate for someone else is refused, and the common name (agent) does not count; the peer is told."""
    client = TlsClient(context, name)
    with pytest.raises(TlsError, match="does not hold the expected name"):
        shake(client, server(pki))
    assert client.has_output


@pytest.mark.parametrize("name", ["", "a..b", "x" * 64 + ".example", ".example"])
def test_impossible_names(context: ssl.SSLContext, name: str) -> None:
    """A name that no certificate can hold is never taken for no check at all."""
    with pytest.raises(TlsError, match="can't be the name"):
        TlsClient(context, name)


@pytest.mark.parametrize(
    ("leaf", "words"),
    [
        ("expired", "refused: certificate has expired"),
        ("not_yet_valid", "refused: certificate is not yet valid"),
        ("other_ca", "refused: unable to get local issuer"),
        ("wrong_names", "expected name"),
    ],
)
def test_bad_certificates(pki: Path, client: TlsClient, leaf: str, words: str) -> None:
    """A peer's certificate that is out of date, of another CA or of another host is refused with the cause."""
    with pytest.raises(TlsError, match=words):
        shake(client, server(pki, leaf))


def test_our_certificate_refused(pki: Path, client: TlsClient) -> None:
    """TLS 1.3 tells by an alert after our handshake is complete; the text names the alert."""

    def other_roots(context: ssl.SSLContext) -> None:
        context.load_verify_locations(pki / "other" / "root.pem")

    refusing = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    refusing.load_cert_chain(pki / "agent.pem", pki / "agent-key.pem")
    refusing.verify_mode = ssl.CERT_REQUIRED
    refusing.set_alpn_protocols(["h2"])
    other_roots(refusing)
    peer = TlsEngine(refusing)
    client.start()
    peer.receive(client.take_output())
    client.feed(memoryview(peer.take_output()))
    assert client.established
    with pytest.raises(ssl.SSLError):
        peer.receive(client.take_output())
    with pytest.raises(TlsError, match=r"does it accept our certificate\? \(unknown ca\)"):
        client.feed(memoryview(peer.take_output()))


def test_no_alpn(pki: Path, client: TlsClient) -> None:
    """A peer that does not choose h2 is named as that."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(pki / "agent.pem", pki / "agent-key.pem")
    with pytest.raises(TlsError, match="ALPN h2"):
        shake(client, TlsEngine(made))
    assert not client.established


def test_tls_1_2(pki: Path, client: TlsClient) -> None:
    """TLS 1.3 is the minimum."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(pki / "agent.pem", pki / "agent-key.pem")
    made.maximum_version = ssl.TLSVersion.TLSv1_2
    peer = TlsEngine(made)
    client.start()
    with pytest.raises(ssl.SSLError):
        peer.receive(client.take_output())
    with pytest.raises(TlsError, match="protocol version"):
        client.feed(memoryview(peer.take_output()))


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + bytes(18),
    ],
    ids=["http1", "ssh", "http2"],
)
def test_not_tls(client: TlsClient, answer: bytes) -> None:
    """A peer without TLS is told from one with a bad certificate."""
    client.start()
    client.take_output()
    with pytest.raises(TlsError, match="does not speak TLS"):
        client.feed(memoryview(answer))


@given(st.binary(min_size=1, max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_bytes(pki: Path, context: ssl.SSLContext, garbage: bytes) -> None:
    """Whatever a peer sends during or after the handshake, there is a TlsError or a wait, and never plain bytes."""
    client = TlsClient(context, "127.0.0.1")
    client.start()
    with contextlib.suppress(TlsError):
        assert client.feed(memoryview(garbage)) == b""
    client = TlsClient(context, "127.0.0.1")
    shake(client, server(pki))
    with contextlib.suppress(TlsError):
        assert client.feed(memoryview(garbage)) == b""


def test_close_notify(pki: Path, client: TlsClient) -> None:
    """The peer's goodbye is seen after the bytes before it, and ours reaches the peer."""
    peer = server(pki)
    shake(client, peer)
    last = peer.encrypt(b"last")
    with pytest.raises(ssl.SSLWantReadError):
        peer._object.unwrap()
    assert client.feed(memoryview(last + peer.take_output())) == b"last"
    assert client.closed
    client.finish()
    peer.receive(client.take_output())
    assert peer.closed


def test_a_large_answer_leaves_no_large_buffer(pki: Path, client: TlsClient) -> None:
    """What is received at once is fed in small pieces: a BIO never shrinks."""
    peer = server(pki)
    fed: list[int] = []

    class Watched:
        """A BIO that notes what it holds."""

        def __init__(self, bio: ssl.MemoryBIO) -> None:
            self.bio = bio

        def write(self, data: bytes) -> int:
            count = self.bio.write(data)
            fed.append(self.bio.pending)
            return count

        @property
        def pending(self) -> int:
            return self.bio.pending

    client._incoming = Watched(client._incoming)  # type: ignore[assignment]
    shake(client, peer)
    assert 0 < max(fed) <= HANDSHAKE_FEED_BYTES_MAX
    assert len(client.feed(memoryview(peer.encrypt(bytes(1_000_000))))) == 1_000_000
    assert HANDSHAKE_FEED_BYTES_MAX < max(fed) <= FEED_BYTES_MAX
