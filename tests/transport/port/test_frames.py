from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serviceradar_poller.testing.http2_frames import frame
from serviceradar_poller.transport.http2.frames import CONTINUATION, PREFACE
from serviceradar_poller.transport.port.frames import FrameMeter

KINDS = st.tuples(st.integers(0, 255), st.binary(max_size=40))


@given(st.lists(KINDS, max_size=30), st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_frames_are_counted_however_they_are_cut(kinds: list[tuple[int, bytes]], cuts: list[int]) -> None:
    """Each frame counts once, in whatever pieces it comes, and CONTINUATION frames in a row are known."""
    data = PREFACE + b"".join(frame(kind, payload=payload) for kind, payload in kinds)
    meter = FrameMeter()
    counted = at = index = 0
    while at < len(data):
        size = cuts[index % len(cuts)]
        counted += meter.feed(data[at : at + size])
        at, index = at + size, index + 1
    assert counted == len(kinds)
    row = 0
    for kind, _ in kinds:
        row = row + 1 if kind == CONTINUATION else 0
    assert meter.continuations == row


def test_a_frame_counts_with_its_header() -> None:
    """A frame whose payload never comes has cost something already, the more the larger it said it would be."""
    meter = FrameMeter()
    assert meter.feed(PREFACE + (2**24 - 1).to_bytes(3, "big") + bytes(6)) == 2**14
    assert meter.feed(bytes(100_000)) == 0
    assert meter.largest == 2**24 - 1
