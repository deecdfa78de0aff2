"""
Limit a rate: a token bucket whose tokens can be reserved ahead.

Who finds too few tokens takes them all the same and is told how long to wait; the debt makes the next one
wait longer. So callers are served in the order in which they asked, and nobody polls. [Source: Go's
golang.org/x/time/rate, `reserveN`.]
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketSettings:
    """
    A rate and how much may come at once.

    Attributes:
        rate_per_s: Tokens that come in per second.
        burst: Tokens that a full bucket holds.
    """

    rate_per_s: float
    burst: float

    def __post_init__(self) -> None:
        assert self.rate_per_s > 0
        assert self.burst > 0


class Bucket(msgspec.Struct, frozen=True, kw_only=True, gc=False):  # made for every call: a dataclass takes longer
    """The tokens at updated_s; fewer than none where some are reserved that have not come in yet."""

    tokens: float
    updated_s: float


def new_bucket(settings: BucketSettings, now: float) -> Bucket:
    """Return a full bucket."""
    return Bucket(tokens=settings.burst, updated_s=now)


def take(bucket: Bucket, settings: BucketSettings, now: float, amount: float = 1.0) -> tuple[Bucket, float]:
    """
    Take *amount* tokens, and return how many seconds to wait before acting on them; 0 is at once.

    Raises:
        AssertionError: Time went backwards.
    """
    assert now >= bucket.updated_s, "time went backwards"
    assert amount >= 0
    grown = bucket.tokens + (now - bucket.updated_s) * settings.rate_per_s
    tokens = min(settings.burst, grown) - amount
    return Bucket(tokens=tokens, updated_s=now), max(0.0, -tokens / settings.rate_per_s)
