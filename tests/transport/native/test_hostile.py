"""Whatever a peer sends to a channel: calls end in time, in CallError; others are unharmed, and memory is bounded."""

from __future__ import annotations

import asyncio
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serviceradar_poller.config.model import SecurityConfig, SecurityMode, TlsConfig
from serviceradar_poller.env import SystemClock
from serviceradar_poller.lab.tls import server_context
from serviceradar_poller.testing import http2_frames as wire
from serviceradar_poller.testing.hostile import Act, Contexts, Hostility, Unsealed, script_of
from serviceradar_poller.testing.http2_play import Step, load
from serviceradar_poller.testing.http2_strategies import FRAMES
from serviceradar_poller.transport.credentials import CredentialsCache
from serviceradar_poller.transport.http2 import Limits

CORPUS = Path(__file__).parents[2] / "data" / "http2_corpus"

PAUSES = st.sampled_from([0.01, 0.2, 0.4])
NETWORK = st.sampled_from(["stall", "go_on", "go_on", "break", "reset"])
SCRIPTS: st.SearchStrategy[list[Act]] = st.lists(st.one_of(FRAMES, FRAMES, FRAMES, PAUSES, NETWORK), max_size=30)
NOISE: st.SearchStrategy[bytes] = st.one_of(
    st.binary(max_size=200),
    st.integers(1, 40_000).map(bytes),
    # Headers of TLS records: kind, version, length.
    st.builds(
        lambda kind, size, rest: bytes((kind, 3, 3)) + size.to_bytes(2, "big") + rest,
        st.sampled_from([20, 21, 22, 23, 24]),
        st.sampled_from([0, 1, 2, 100, 16_384, 16_640, 65_535]),
        st.binary(max_size=120),
    ),
    st.just(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    st.just(wire.settings() + wire.answer(1)),
)


@pytest.fixture(scope="module")
def secure(pki: Path) -> Contexts:
    """TLS at every end."""
    files = TlsConfig(
        cert_file=str(pki / "poller.pem"), key_file=str(pki / "poller-key.pem"), ca_file=str(pki / "root.pem")
    )
    config = SecurityConfig(mode=SecurityMode.MTLS, server_name="", tls=files)
    client = asyncio.run(CredentialsCache(SystemClock()).ssl_context(config))
    server = server_context(pki, "agent")
    return Contexts(client, server, server)


@given(SCRIPTS, st.booleans())
@settings(max_examples=150)
@pytest.mark.slow
def test_any_frames(script: list[Act], greeted: bool) -> None:
    """Frames of any kind and sense, on a network that stalls and breaks, hurt nothing but the calls to their sender."""
    Hostility(script, greeted=greeted).run()


@given(script=st.lists(st.one_of(NOISE.map(lambda data: Step("bytes", payload=data)), PAUSES), max_size=8))
@settings(max_examples=40)
@pytest.mark.slow
def test_any_bytes(script: list[Act]) -> None:
    """Bytes that are no HTTP/2, instead of settings, hurt nothing but the calls to their sender."""
    Hostility(script, greeted=False).run()


@given(script=st.lists(st.one_of(FRAMES, FRAMES, PAUSES, NETWORK, NOISE.map(Unsealed)), max_size=20))
@settings(max_examples=60)
@pytest.mark.slow
def test_any_frames_within_tls(secure: Contexts, script: list[Act]) -> None:
    """The same within TLS, and bytes that break into it."""
    Hostility(script, secure).run()


@given(script=st.lists(st.one_of(NOISE.map(Unsealed), PAUSES), max_size=8))
@settings(max_examples=60)
@pytest.mark.slow
def test_any_bytes_instead_of_tls(secure: Contexts, script: list[Act]) -> None:
    """Bytes that answer a TLS handshake with something else hurt nothing but the calls to their sender."""
    Hostility(script, Contexts(secure.client, secure.honest, None), greeted=False).run()


@pytest.mark.slow
def test_the_corpus() -> None:
    """What the search of the session found is survived by the whole channel too; calls come to all kinds of ends."""
    reasons: set[str] = set()
    for steps in load(CORPUS):
        hostility = Hostility(script_of(steps), greeted=False)
        try:
            hostility.run()
        except BaseException as error:
            error.add_note("\n".join(map(str, steps)))
            raise
        reasons |= set(hostility.reasons)
    assert reasons >= {
        "ok",
        "timeout",
        "connect_timeout",
        "protocol",
        "goaway",
        "stream_reset",
        "internal",
        "too_large",
    }


def heavy(name: bytes, byte: bytes) -> list[Act]:
    """Return what makes a client keep all that it may, and a large field: on calls 1, 5, 7 and a slow stream, 3."""
    limits = Limits()
    window = limits.stream_window_bytes
    declared = bytes(1) + limits.message_bytes_max.to_bytes(4, "big")
    small = wire.prefixed(b"ab")
    large_field = (name, byte * (limits.header_list_bytes_max - 200))
    headers = wire.HEADERS_OK + wire.block([large_field])
    parts: list[bytes] = [wire.headers(call, headers) for call in (1, 3, 5, 7)]
    # 64 MiB are promised: nothing is set aside for what has not come.
    parts += [wire.datas(call, declared + bytes(window // 2)) for call in (1, 5, 7)]
    parts += [wire.datas(3, small * (window // len(small)))]
    # The socket takes nothing: answers gather.
    pings = wire.ping() * 900
    # A block that is never complete, and half a frame.
    size = limits.frame_bytes_max
    rest = limits.header_block_bytes_max - size * 3 - 1
    opened = b"".join(
        wire.frame(9 if index else 1, 0, 3, bytes(part)) for index, part in enumerate((size, size, size, rest))
    )
    half = wire.frame(9, 0, 3, bytes(16_000))[:-1]
    script: list[Act] = [Step("bytes", payload=part) for part in parts]
    return [*script, 0.05, "stall", *(Step("bytes", payload=part) for part in (pings, opened, half)), 0.3]


def peak_bytes(script: list[Act]) -> int:
    """Play a script; return by how much the memory in use rose meanwhile, at most."""
    Hostility([]).run()  # what is made once
    tracemalloc.start()
    try:
        Hostility(script).run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "byte"), [(b"a", b"b"), (b"a-bin", b",")], ids=["text", "binary values"])
def test_memory_is_bounded(name: bytes, byte: bytes) -> None:
    """A peer that makes a client keep all that it may costs what the limits say, whatever it promises."""
    quiet = peak_bytes([])
    limits = Limits()
    # An unread window of two-byte messages costs sevenfold; other calls keep what has come.
    bound = 7 * limits.stream_window_bytes + 3 * limits.stream_window_bytes + 8 * limits.header_block_bytes_max
    cost = peak_bytes(heavy(name, byte)) - quiet
    assert cost <= bound
    if name == b"a":
        assert cost > limits.stream_window_bytes, "the calls ended before they kept anything"
