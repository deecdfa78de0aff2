"""The position of a results check: what an agent says of where its answer ends, sent back with the next request."""

from __future__ import annotations

#: A longer one is not kept: it would be sent with every request from then on, and agents take no more than 4 MiB.
SEQUENCE_BYTES_MAX = 4096


def is_kept(sequence: str) -> bool:
    """Whether a position is short enough to be remembered and sent back."""
    size = len(sequence)
    return size <= SEQUENCE_BYTES_MAX and (
        size <= SEQUENCE_BYTES_MAX // 4 or len(sequence.encode(errors="replace")) <= SEQUENCE_BYTES_MAX
    )


def why_not_kept(sequence: str) -> str:
    """Return what is wrong with a position that is not kept, in words for an operator."""
    size = len(sequence.encode(errors="replace"))
    return f"the answer's current_sequence has {size} bytes, more than {SEQUENCE_BYTES_MAX}"
