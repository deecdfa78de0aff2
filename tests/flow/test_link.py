"""The bookkeeping of demand, without a loop."""

from __future__ import annotations

from serviceradar_poller.flow.ledger import Ledger
from serviceradar_poller.flow.link import Hop


def test_while_a_process_is_down_its_siblings_get_nothing_new() -> None:
    """What a process held waits for its next incarnation, though a sibling asks; it comes first, and flagged."""
    ledger = Ledger()
    hop = Hop(ledger, ["producer"], ["a", "b"], max_demand=2, min_demand=1)
    a, b = hop.open("a"), hop.open("b")
    for event in ledger.admit(range(6), lambda number: number):
        hop.push(event)
    assert [item.offset for item in a.inbox] == [0, 2] and [item.offset for item in b.inbox] == [1, 3]
    [one] = b.take()
    hop.close(a)
    assert b.done(one)
    assert (b.delivered, b.pending) == (2, 1)
    again = hop.open("a")
    there = {item.offset: item.redelivered for item in (*again.inbox, *b.inbox)}
    assert there == {0: True, 2: True, 3: False, 4: False}
    assert [item.offset for item in again.lane] == [5]
    assert not a.done(one)
    assert ledger.counts().redelivered == 2
