"""Hold one call: its answer's messages, put together and counted against demand, and its request's unsent bytes."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from serviceradar_poller.errors import GrpcCode
from serviceradar_poller.transport.http2.frames import ErrorCode
from serviceradar_poller.transport.http2.status import CANCELLED, BrokenCallError, Cause, Metadata, Outcome

if TYPE_CHECKING:
    from serviceradar_poller.transport.http2.responses import Block
    from serviceradar_poller.transport.http2.session import Session

_PREFIX_BYTES = 5
#: Smaller pieces of a message are gathered: an object for each would cost more than what is in it.
_PIECE_BYTES_MIN = 1024


class Call:
    """
    One request and its answer.

    Made by Session.open(). A call that is streaming gives its peer credit only for messages that want() asked for;
    any other call wants exactly one from the beginning.

    Attributes:
        id: The stream's id.
        streaming: Whether the answer may have any number of messages.
        outcome: How the call ended; None while it is under way. Messages that came before the end can be taken still.
        pending_bytes: Of the request: queued, and not let out by flow control yet.
        sent_all: Whether the request's end was let out before the call ended.
    """

    __slots__ = (
        "_arrived",
        "_block",
        "_ending",
        "_have",
        "_held",
        "_messages",
        "_need",
        "_owed",
        "_parts",
        "_pending",
        "_receive_window",
        "_send_window",
        "_session",
        "_taken",
        "_touched",
        "_wanted",
        "id",
        "informational",
        "outcome",
        "pending_bytes",
        "sent_all",
        "streaming",
    )

    def __init__(
        self, session: Session, call_id: int, *, streaming: bool, receive_window: int, send_window: int
    ) -> None:
        self.id = call_id
        self.streaming = streaming
        self.outcome: Outcome | None = None
        self.pending_bytes = 0
        self.sent_all = False
        self.informational = 0
        self._session: Session | None = session
        self._touched = False
        self._block: Block | None = None
        # the answer: messages wanted, arrived and taken are counted from the beginning
        self._wanted = 0 if streaming else 1
        self._arrived = 0
        self._taken = 0
        self._messages: deque[bytes] | None = None
        self._parts: list[bytes | bytearray] | None = None  # the message under way; its prefix while that is incomplete
        self._have = 0  # how much of it has arrived, with its prefix
        self._need = 0  # its size with prefix; the prefix' own while that is incomplete
        self._receive_window = receive_window  # what the peer may send
        self._owed = 0  # received and wanted: credit to give
        self._held = 0  # received of the message under way, and not wanted yet
        # the request
        self._send_window = send_window
        self._pending: deque[bytes | memoryview] | None = None
        self._ending = False  # no more comes after what is pending

    @property
    def has_headers(self) -> bool:
        """Whether the answer's headers have arrived."""
        return self._block is not None

    @property
    def initial_metadata(self) -> Metadata:
        """Metadata of the answer's headers; empty before they arrive, and in an answer that has trailers only."""
        return () if self._block is None else self._block.metadata

    @property
    def buffered_bytes(self) -> int:
        """What this call keeps: messages not taken, the one under way, and the request's unsent bytes."""
        ready = sum(map(len, self._messages)) if self._messages else 0
        return ready + self._have + self.pending_bytes

    def take(self) -> bytes | None:
        """Return the next whole message, None when there is none now; counts as asked for."""
        messages = self._messages
        if not messages:
            return None
        if self._taken == self._wanted:
            self.want()
        self._taken += 1
        return messages.popleft()

    def want(self) -> None:
        """Ask for one more message of a streamed answer: the peer gets credit for its bytes."""
        index = self._wanted
        self._wanted = index + 1
        if self.outcome is not None:
            return
        if index < self._arrived:
            assert self._messages is not None
            self._owed += len(self._messages[index - self._taken]) + _PREFIX_BYTES
        elif index == self._arrived:
            self._owed += self._held
            self._held = 0
        if self._session is not None:
            self._session._credit(self)

    def send(self, message: bytes, *, end: bool) -> None:
        """
        Queue a further message of the request; once the call has ended, it is dropped.

        What flow control allows goes to the session's output at once: an owner whose socket is stalled, or who sees
        pending_bytes, sends no more until that has changed.
        """
        session = self._session
        if session is None:
            return
        assert not self._ending, "the request has ended"
        if self._pending is None:
            self._pending = deque()
        self._pending.append(b"\x00" + len(message).to_bytes(4, "big"))
        if message:
            self._pending.append(message)
        self.pending_bytes += len(message) + _PREFIX_BYTES
        self._ending = end
        session._pump(self)

    def finish_sending(self) -> None:
        """End the request after what is queued; does nothing when it has ended or the call has."""
        session = self._session
        if session is None or self._ending:
            return
        self._ending = True
        session._pump(self)

    def cancel(self) -> None:
        """Reset the stream; the outcome is CANCELLED unless the call has ended."""
        if self._session is not None:
            self._session._reset(self, CANCELLED)

    # called by the session

    def _feed(self, data: bytes, begin: int, end: int, message_bytes_max: int) -> None:
        """
        Take the content of a DATA frame.

        Raises:
            BrokenCallError: It is not what gRPC allows.
        """
        while begin < end:
            size = end - begin
            parts = self._parts
            if parts is None:
                if self._arrived and not self.streaming:
                    raise BrokenCallError(
                        GrpcCode.UNIMPLEMENTED,
                        "more than one message in the answer to a unary call",
                        http2_code=ErrorCode.CANCEL,
                    )
                self._need = _PREFIX_BYTES
                if size < _PREFIX_BYTES:
                    self._parts = [bytearray(memoryview(data)[begin:end])]
                else:
                    self._need += _length(data, begin, message_bytes_max)
                    if size >= self._need:
                        stop = begin + self._need
                        self._account(self._need)
                        self._arrive(data[begin + _PREFIX_BYTES : stop])
                        begin = stop
                        continue
                    self._parts = [data[begin + _PREFIX_BYTES : end]]
                self._have = size
                self._account(size)
                return
            size = min(size, self._need - self._have)
            if size >= _PIECE_BYTES_MIN:
                parts.append(data[begin : begin + size])
            else:
                last = parts[-1]
                if type(last) is not bytearray or len(last) >= _PIECE_BYTES_MIN:
                    last = bytearray()
                    parts.append(last)
                last += memoryview(data)[begin : begin + size]
            begin += size
            self._have += size
            self._account(size)
            if self._have == _PREFIX_BYTES:
                # No message is under way with its prefix alone, so that was what was incomplete.
                self._need += _length(parts[0], 0, message_bytes_max)
                parts[:] = [bytearray()]
            if self._have == self._need:
                self._parts = None
                self._have = 0
                self._arrive(b"".join(parts))

    def _account(self, size: int) -> None:
        if self._arrived < self._wanted:
            self._owed += size
        else:
            self._held += size

    def _arrive(self, message: bytes) -> None:
        self._arrived += 1
        self._held = 0
        if self._messages is None:
            self._messages = deque()
        self._messages.append(message)

    def _conclude(self, outcome: Outcome) -> Outcome:
        """Return what the peer's own status comes to, given what it has sent."""
        if outcome.code != GrpcCode.OK.value:
            return outcome
        if self._parts is not None:
            fault = BrokenCallError(GrpcCode.INTERNAL, "the answer ended within a message")
        elif not self.streaming and not self._arrived:
            fault = BrokenCallError(GrpcCode.UNIMPLEMENTED, "no message in the answer to a unary call")
        else:
            return outcome
        return Outcome(
            cause=Cause.PROTOCOL, code=fault.outcome.code, message=fault.outcome.message, metadata=outcome.metadata
        )

    def _end(self, outcome: Outcome) -> None:
        assert self.outcome is None, "a call ends once"
        self.outcome = outcome
        self._session = None
        self._parts = None
        self._have = 0
        self._pending = None


def _length(data: bytes | bytearray, begin: int, message_bytes_max: int) -> int:
    """Read a message's prefix."""
    flag = data[begin]
    if flag:
        raise BrokenCallError(
            GrpcCode.INTERNAL,
            "a compressed message, though only identity was accepted"
            if flag == 1
            else f"a message begins with the flag {flag}; only 0 and 1 are defined",
            http2_code=ErrorCode.CANCEL,
        )
    length = int.from_bytes(data[begin + 1 : begin + _PREFIX_BYTES], "big")
    if length > message_bytes_max:
        raise BrokenCallError(
            GrpcCode.RESOURCE_EXHAUSTED,
            f"a message of {length} bytes, more than {message_bytes_max}",
            cause=Cause.TOO_LARGE,
            http2_code=ErrorCode.CANCEL,
        )
    return length
