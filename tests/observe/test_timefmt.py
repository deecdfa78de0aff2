from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serviceradar_poller.observe.timefmt import rfc3339, time_format

MOMENT = datetime(2025, 3, 7, 16, 5, 9, 120_000, UTC).timestamp()


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("", "2025-03-07T16:05:09.120Z"),
        ("2006-01-02T15:04:05Z07:00", "2025-03-07T16:05:09Z"),
        ("2006-01-02T15:04:05.000000-07:00", "2025-03-07T16:05:09.120000+00:00"),
        ("2006-01-02 15:04:05.999", "2025-03-07 16:05:09.12"),
        ("Mon Jan _2 15:04:05 MST 2006", "Fri Mar  7 16:05:09 UTC 2025"),
        ("1/2/06 3:04 PM", "3/7/25 4:05 PM"),
        ("UNIX", int(MOMENT)),
        ("UNIXMS", int(MOMENT * 1000)),
    ],
)
def test_layouts(layout: str, expected: str | int) -> None:
    """The Go poller's time_format gives what Go's package time gives."""
    assert time_format(layout)(MOMENT) == expected


@given(st.floats(min_value=0, max_value=4e9))
def test_rfc_3339_is_the_same_cached_or_not(unix_s: float) -> None:
    """Every time of this century is a valid RFC 3339 time, within a millisecond."""
    text = time_format("")(unix_s)
    assert text == rfc3339(unix_s)
    assert abs(datetime.fromisoformat(str(text)).timestamp() - unix_s) <= 0.0011
