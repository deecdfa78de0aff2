"""Name every limit that keeps a peer from costing this side more than it should."""

from __future__ import annotations

from dataclasses import dataclass

#: The protocol's smallest and default SETTINGS_MAX_FRAME_SIZE. [RFC 9113, 6.5.2]
FRAME_BYTES_DEFAULT = 16_384
#: The protocol's largest frame.
FRAME_BYTES_MAX = 2**24 - 1
#: The protocol's default window, of the connection and of each stream.
WINDOW_DEFAULT = 65_535
#: No window may grow beyond it. [RFC 9113, 6.9.1]
WINDOW_MAX = 2**31 - 1
#: The protocol's default SETTINGS_HEADER_TABLE_SIZE. [RFC 9113, 6.5.2]
TABLE_BYTES_DEFAULT = 4096
#: Stream ids have 31 bits, and a client's are odd.
STREAM_ID_MAX = 2**31 - 1
#: Header blocks whose meaning the process remembers, for all connections; then the memory starts anew. A warm one
#: repeats two.
BLOCKS_KEPT_MAX = 256
#: Longer blocks, and such with more metadata, are hardly ever the same again.
BLOCK_BYTES_KEPT_MAX = 512
BLOCK_METADATA_KEPT_MAX = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one session allows its peer. A connection holds to one Limits for its whole life."""

    frame_bytes_max: int = FRAME_BYTES_DEFAULT
    """Advertised as MAX_FRAME_SIZE. No more than one frame is ever kept back for its rest to arrive, so this bounds
    that buffer; larger frames would save a few microseconds a megabyte."""

    stream_window_bytes: int = 256 * 1024
    """Advertised as INITIAL_WINDOW_SIZE: what a peer may send on one call before its reader asks. It bounds the
    memory of a call nobody reads (about sevenfold when all its messages have two bytes), and a stream's rate to one
    window a round trip: 50 MB take 0.2 s of round trips at 1 ms, and 4 s at 20 ms."""

    connection_window_bytes: int = 1024 * 1024
    """Receive window of the connection: given back as bytes arrive, so it never limits memory; it only has to be
    large enough that four busy streams don't wait for each other's credit."""

    message_bytes_max: int = 64 * 1024 * 1024
    """The largest message, checked at its length prefix before a byte of it is kept. Go's default is 4 MiB, which
    results that come as one message exceed."""

    header_list_bytes_max: int = 16 * 1024
    """Advertised as MAX_HEADER_LIST_SIZE and checked while decoding: a small block can name a table's large entry
    again and again. The value is grpc-core's."""

    header_count_max: int = 256
    """Fields in one header list, each value of a ``-bin`` field's list among them: many empty ones cost more to walk
    than their bytes say."""

    header_block_bytes_max: int = 64 * 1024
    """One block with all its CONTINUATION frames, before it is decoded: it must be kept until it is whole."""

    continuations_max: int = 16
    """CONTINUATION frames of one block: empty ones would go on for ever without reaching the block's limit."""

    settings_max: int = 64
    """Entries in one SETTINGS frame; a frame has room for 2,730 and the protocol names about ten."""

    replies_max: int = 1000
    """Frames of the peer that made this side write (PING, SETTINGS, credit) since the output was last taken. A peer
    that makes us write faster than it reads would grow the output without an end."""

    asks_max: int = 10_000
    """PING and SETTINGS for which no call was begun in between: answering them costs time, however well they are
    paced; SETTINGS that move the windows of many calls count several times. A ping every 10 s reaches it in a day."""

    hollow_frames_max: int = 2000
    """Frames in a row that carry nothing for any call (empty DATA, PRIORITY, unknown kinds, credit that lets nothing
    out, resets of calls that are over): they cost time and bring none forward. A call opened, headers, and data in
    either direction end the row. Twice calls_max: what may still come of calls that all ended at once is no attack."""

    informational_max: int = 8
    """Interim (1xx) answers of one call; servers send one at most."""

    reset_streams_max: int = 1000
    """Calls that this side reset and whose late headers and DATA are expected, together within the window that the
    call had; as many as can be open. Beyond them the oldest is forgotten, and its late frames count as hollow."""

    status_text_chars_max: int = 1024
    """Of grpc-message and of GOAWAY's debug data; longer texts are cut."""

    calls_max: int = 1000
    """Calls open at a time when the peer names no limit of its own, or a larger one."""

    calls_before_settings_max: int = 100
    """Calls that may be opened before the peer's SETTINGS tell its own limit; what RFC 9113 asks peers to allow."""

    def __post_init__(self) -> None:
        assert FRAME_BYTES_DEFAULT <= self.frame_bytes_max <= FRAME_BYTES_MAX
        # A peer that has not read our SETTINGS yet uses the protocol's default: a smaller window would punish it.
        assert WINDOW_DEFAULT <= self.stream_window_bytes <= WINDOW_MAX
        assert WINDOW_DEFAULT <= self.connection_window_bytes <= WINDOW_MAX
        assert 0 < self.message_bytes_max < 2**32
