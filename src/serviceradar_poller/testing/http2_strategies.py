"""Draw what an HTTP/2 server may send, with and without sense, and what a client may do meanwhile (Hypothesis)."""

from __future__ import annotations

from hypothesis import strategies as st

from serviceradar_poller.testing import http2_frames as wire
from serviceradar_poller.testing.http2_play import Step

KINDS = st.integers(0, 11)
STREAMS = st.sampled_from([0, 1, 1, 3, 3, 5, 2, 99])
FLAGS = st.sampled_from([0, 1, 4, 4, 5, 5, 8, 0xC, 0x2C, 0xFF])
FIELDS = st.sampled_from(
    [
        (b":status", b"200"),
        (b":status", b"103"),
        (b":status", b"404"),
        (b"content-type", b"application/grpc"),
        (b"grpc-status", b"0"),
        (b"grpc-status", b"7"),
        (b"grpc-message", b"%20%zz"),
        (b"a-bin", b"AAE,A"),
        (b"A", b"b"),
        (b"a", b"b" * 500),
    ]
)
NUMBERS = st.sampled_from([0, 1, 5, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1]).map(lambda n: n.to_bytes(4, "big"))
PAYLOADS = st.one_of(
    st.binary(max_size=40),
    NUMBERS,
    st.builds(bytes.__add__, NUMBERS, NUMBERS),
    st.lists(FIELDS, max_size=5).map(wire.block),
    st.just(wire.HEADERS_OK),
    st.just(wire.TRAILERS_OK),
    st.binary(max_size=300).map(wire.prefixed),
    st.integers(0, 16_385).map(bytes),
    st.builds(lambda key, value: bytes((0, key)) + value, st.integers(1, 6), NUMBERS),
)
FRAMES = st.one_of(
    st.builds(
        lambda kind, flags, stream, payload: Step("frame", kind, flags, stream, payload),
        KINDS,
        FLAGS,
        STREAMS,
        PAYLOADS,
    ),
    st.builds(
        lambda whole: Step("bytes", payload=whole),
        st.one_of(
            st.sampled_from([1, 3, 5]).map(wire.headers),
            st.sampled_from([1, 3, 5]).map(wire.answer),
            st.sampled_from([1, 3, 5]).map(wire.trailers),
            st.builds(wire.data, st.sampled_from([1, 3, 5]), st.binary(max_size=99).map(wire.prefixed)),
            st.builds(
                wire.datas, st.sampled_from([1, 3]), st.integers(0, 99_000).map(lambda n: wire.prefixed(bytes(n)))
            ),
            st.builds(wire.window, st.sampled_from([0, 1, 3, 5]), st.integers(1, 100_000)),
            st.just(wire.ping()),
        ),
    ),
)
OWN = st.builds(
    Step,
    st.sampled_from(["open", "open", "want", "take", "cancel", "finish", "send", "output", "output", "ping"]),
    st.integers(0, 3),
    st.sampled_from([0, 1, 20, 16_380, 70_000]),
)
START = (
    Step("bytes", payload=wire.settings((3, 6), (4, 65_535)) + wire.SETTINGS_ACK),
    Step("open", 0, 20),
    Step("open", 1, 20),
    Step("open", 2, 70_000),
)
