"""Outcomes wait for the reporter without blocking anyone."""

from __future__ import annotations

from serviceradar_poller.logic.outcome import CheckSubject, Outcome, Verdict
from serviceradar_poller.reporting.inbox import OutcomeInbox


def _outcome(tick: int) -> Outcome:
    subject = CheckSubject(agent="a", key="k", service_name="s", service_type="t", details="", is_results=False)
    return Outcome(subject=subject, tick=tick, verdict=Verdict.UNCHANGED, status=None)


def test_the_reader_is_told_once_per_filling() -> None:
    """One message for many outcomes, and another one only after they were taken."""
    told: list[int] = []
    inbox = OutcomeInbox(limit=10)
    inbox.subscribe(lambda: told.append(len(inbox)))
    for tick in range(3):
        inbox.put(_outcome(tick))
    assert told == [1]
    assert [outcome.tick for outcome in inbox.take_all()] == [0, 1, 2]
    inbox.put(_outcome(3))
    assert told == [1, 1]


def test_what_came_while_nobody_listened_is_told_to_the_next_reader() -> None:
    """A reporter that starts again finds what its last incarnation left."""
    told: list[int] = []
    inbox = OutcomeInbox(limit=10)
    inbox.put(_outcome(0))
    inbox.subscribe(lambda: told.append(len(inbox)))
    assert told == [1]


def test_a_full_inbox_drops_the_oldest_and_counts() -> None:
    """The newer outcome of a check is the one that core needs."""
    inbox = OutcomeInbox(limit=2)
    for tick in range(5):
        inbox.put(_outcome(tick))
    assert inbox.dropped_total == 3
    assert [outcome.tick for outcome in inbox.take_all()] == [3, 4]
