"""When outcomes leave for core."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from serviceradar_poller.logic.outcome import CheckSubject, Device, Outcome, Reporter, Verdict
from serviceradar_poller.logic.reports import (
    EARLY_SETTLE_S,
    RESULTS_PENDING_MAX,
    BatchBook,
    Cut,
    CycleBook,
    ReportKind,
)
from serviceradar_poller.logic.schedule import Timetable
from serviceradar_poller.wire.messages import ServiceStatus

INTERVAL_S = 10.0
DEADLINE_S = 5.0
EARLY_S = 5.0
STALE_S = 25.0
DEVICE = Device(ip="10.0.0.1", host="h")


def _subject(agent: str, name: str = "ping", *, is_results: bool = False) -> CheckSubject:
    return CheckSubject(
        agent=agent, key=name, service_name=name, service_type="icmp", details="", is_results=is_results
    )


def _outcome(agent: str, tick: int, *, available: bool = True, name: str = "ping", sequence: str = "") -> Outcome:
    return Outcome(
        subject=_subject(agent, name, is_results=bool(sequence)),
        tick=tick,
        verdict=Verdict.AVAILABLE if available else Verdict.FAILED,
        status=ServiceStatus(service_name=name, agent_id=agent, available=available, response_time=tick),
        sequence=sequence,
    )


def _book(*agents: str, now_s: float = 0.0) -> CycleBook:
    book = CycleBook(
        timetable=Timetable(epoch_s=0.0, interval_s=INTERVAL_S),
        reporter=Reporter(poller_id="p", partition="default"),
        device_of=lambda agent: DEVICE,
        deadline_s=DEADLINE_S,
        early_interval_s=EARLY_S,
        stale_after_s=STALE_S,
    )
    book.set_subjects({(agent, "ping"): _subject(agent) for agent in agents}, now_s)
    return book


def _told(cut: Cut | None) -> dict[str, bool]:
    assert cut is not None
    return {status.agent_id: status.available for status in cut.statuses}


def _cuts(book: CycleBook, begin_s: float, end_s: float) -> Iterator[tuple[float, Cut]]:
    """Look at *book* whenever it wants to be looked at."""
    now_s = begin_s
    while (now_s := book.next_cut_s(now_s)) <= end_s:
        while (cut := book.cut(now_s)) is not None:
            yield now_s, cut


def test_a_cycle_leaves_when_all_have_finished() -> None:
    """The report does not wait for its deadline when there is nothing to wait for."""
    book = _book("a", "b")
    book.record(_outcome("a", 0), 0.5)
    assert book.cut(0.5) is None
    book.record(_outcome("b", 0), 0.6)
    cut = book.cut(0.6)
    assert cut is not None
    assert (cut.kind, cut.tick, cut.fresh) == (ReportKind.CYCLE, 0, 2)
    assert book.cut(9.0) is None


def test_a_late_agent_reports_with_the_next_cycle() -> None:
    """At the deadline the report leaves with what there is; the straggler's outcome goes with the next one."""
    book = _book("a", "late")
    book.record(_outcome("a", 0), 1.0)
    assert book.next_cut_s(4.0) == DEADLINE_S
    assert _told(book.cut(DEADLINE_S)) == {"a": True}
    book.record(_outcome("late", 0), 8.0)
    book.record(_outcome("a", 1), 11.0)
    cut = book.cut(15.0)
    assert _told(cut) == {"a": True, "late": True}


def test_a_check_without_a_new_outcome_repeats_its_newest() -> None:
    """A report holds the newest outcome of every check that has one, and says how much of it is news."""
    book = _book("a", "b")
    book.record(_outcome("a", 0), 0.1)
    book.record(_outcome("b", 0), 0.1)
    assert book.cut(0.1) is not None
    book.record(_outcome("a", 1), 10.1)
    cut = book.cut(15.0)
    assert _told(cut) == {"a": True, "b": True}
    assert cut is not None
    assert cut.fresh == 1


def test_a_change_of_state_is_told_early_and_not_more_often_than_agreed() -> None:
    """The first change waits only for its siblings; the next one for the early interval."""
    book = _book("a", "b")
    for agent in "ab":
        book.record(_outcome(agent, 0), 0.1)
    assert book.cut(0.1) is not None
    book.record(_outcome("a", 0, available=False), 2.0)
    assert book.cut(2.0) is None
    assert book.next_cut_s(2.0) == 2.0 + EARLY_SETTLE_S
    cut = book.cut(2.0 + EARLY_SETTLE_S)
    assert cut is not None
    assert cut.kind is ReportKind.EARLY
    assert _told(cut) == {"a": False, "b": True}
    book.record(_outcome("a", 0, available=True), 3.0)
    assert book.cut(4.0) is None
    assert _told(book.cut(2.0 + EARLY_SETTLE_S + EARLY_S)) == {"a": True, "b": True}


def test_a_change_that_was_taken_back_is_not_told_early() -> None:
    """What core knows is right again: there is nothing to hurry for."""
    book = _book("a")
    book.record(_outcome("a", 0), 0.1)
    assert book.cut(0.1) is not None
    book.record(_outcome("a", 0, available=False), 2.0)
    book.record(_outcome("a", 0, available=True), 2.1)
    assert book.cut(9.0) is None


def test_silence_is_told_as_failure() -> None:
    """A check whose actors give no outcome for too long is not shown as available for ever."""
    book = _book("a", "b")
    for agent in "ab":
        book.record(_outcome(agent, 0), 0.1)
    assert book.cut(0.1) is not None
    for tick in (1, 2, 3):
        assert not list(_cuts(book, (tick - 1) * INTERVAL_S + DEADLINE_S, tick * INTERVAL_S))
        book.record(_outcome("b", tick), tick * INTERVAL_S + 0.1)
        ((at_s, cut),) = _cuts(book, tick * INTERVAL_S + 0.1, tick * INTERVAL_S + DEADLINE_S)
        assert at_s == tick * INTERVAL_S + DEADLINE_S
        assert _told(cut) == {"a": at_s <= STALE_S, "b": True}
    message = json.loads(next(s.message for s in cut.statuses if s.agent_id == "a"))
    assert message["data"]["reason"] == "stale"
    assert book.stale_total == 1
    book.record(_outcome("a", 4), 40.1)
    assert _told(book.cut(45.0)) == {"a": True, "b": True}


def test_a_pause_of_the_program_is_no_silence_of_the_checks() -> None:
    """After a stop of any length nothing is told as failed before the checks could run; real silence still is."""
    book = _book("a", "b")
    for agent in "ab":
        book.record(_outcome(agent, 0), 0.1)
    assert book.cut(0.1) is not None
    book.next_cut_s(0.1)
    assert _told(book.cut(1_007.0)) == {"a": True, "b": True}
    book.record(_outcome("b", 100), 1_007.1)
    silent = [at_s for at_s, cut in _cuts(book, 1_007.1, 1_060.0) if not _told(cut)["a"]]
    assert silent[0] - 1_007.0 <= STALE_S + INTERVAL_S


@given(
    pauses=st.lists(st.tuples(st.floats(0.1, 40.0), st.floats(0.1, 100.0)), min_size=1, max_size=6),
    durations=st.lists(st.floats(0.01, INTERVAL_S - 0.1), min_size=1, max_size=5),
    offset_s=st.floats(0.0, 1.0),
    share=st.floats(0.0, 1.0),
)
def test_pauses_hide_no_silence_and_make_none(
    pauses: Sequence[tuple[float, float]], durations: Sequence[float], offset_s: float, share: float
) -> None:
    """Whenever the program stands still, a check that runs is never called silent, and one that died soon is."""
    stops: list[tuple[float, float]] = []  # begin and end
    end_s = 0.0
    for runs_s, stands_s in pauses:
        stops.append((end_s + runs_s, end_s + runs_s + stands_s))
        end_s = stops[-1][1]

    silent_s = share * (end_s + 50.0)

    def awake_s(at_s: float) -> float:
        return next((end for begin, end in stops if begin <= at_s < end), at_s)

    def ran_s(since_s: float, until_s: float) -> float:
        return until_s - since_s - sum(max(0.0, min(e, until_s) - max(b, since_s)) for b, e in stops)

    outcomes: list[tuple[float, str, int]] = []  # when, whose, of which tick
    slot_s = offset_s
    for duration_s in itertools.cycle(durations):
        begin_s = awake_s(slot_s)
        done_s = awake_s(begin_s + duration_s)
        if done_s > end_s + 100.0:
            break
        outcomes.append((done_s, "lives", int(begin_s // INTERVAL_S)))
        if done_s < silent_s:
            outcomes.append((done_s, "dies", int(begin_s // INTERVAL_S)))
        slot_s = (int((done_s - offset_s) // INTERVAL_S) + 1) * INTERVAL_S + offset_s
    died_s = max((at_s for at_s, whose, _ in outcomes if whose == "dies"), default=0.0)

    book = _book("lives", "dies")
    now_s = 0.0
    told: dict[str, bool] = {}
    while now_s < end_s + 100.0:
        while (cut := book.cut(now_s)) is not None:  # before what else happens in the moment of waking
            told = _told(cut)
            assert told.get("lives", True), now_s
            assert not told.get("dies") or ran_s(died_s, now_s) <= STALE_S + INTERVAL_S + DEADLINE_S
        look_s = awake_s(book.next_cut_s(now_s))
        while outcomes and outcomes[0][0] < look_s:
            now_s, whose, tick = outcomes.pop(0)
            book.record(_outcome(whose, tick), now_s)
        now_s = look_s
    assert told["lives"] and not told["dies"]


def test_nothing_known_is_a_heartbeat() -> None:
    """With no outcome at all at the deadline, core still hears that the poller lives."""
    cut = _book("a").cut(DEADLINE_S)
    assert cut is not None
    assert (cut.kind, cut.statuses) == (ReportKind.HEARTBEAT, ())


def test_a_result_set_is_told_once_with_its_position() -> None:
    """A result set goes with the next report and never again; its position goes along."""
    book = _book("a")
    book.record(_outcome("a", 0, name="sweep", sequence="s1"), 0.1)
    book.record(_outcome("a", 0), 0.1)
    cut = book.cut(0.2)
    assert cut is not None
    assert [status.service_name for status in cut.statuses] == ["ping", "sweep"]
    assert [(p.check, p.sequence) for p in cut.positions] == [(("a", "sweep"), "s1")]
    book.record(_outcome("a", 1), 10.1)
    cut = book.cut(10.2)
    assert cut is not None
    assert (len(cut.statuses), cut.positions) == (1, ())


def test_too_many_result_sets_leave_at_once() -> None:
    """Result sets don't pile up until the next tick."""
    book = _book("a")
    book.record(_outcome("a", 0), 0.1)
    assert book.cut(0.1) is not None
    for n in range(RESULTS_PENDING_MAX):
        book.record(_outcome("a", 0, name=f"r{n}", sequence="1"), 1.0)
    cut = book.cut(1.0)
    assert cut is not None
    assert len(cut.statuses) == RESULTS_PENDING_MAX + 1


def test_an_outcome_of_a_removed_check_is_ignored() -> None:
    """A check that is no longer configured does not come back with a late outcome."""
    book = _book("a", "b")
    book.set_subjects({("a", "ping"): _subject("a")}, 0.0)
    book.record(_outcome("b", 0), 0.1)
    book.record(_outcome("a", 0), 0.1)
    assert _told(book.cut(0.2)) == {"a": True}


def test_final_holds_what_core_has_not_seen() -> None:
    """At the end nothing new is left behind, and nothing old is sent again."""
    book = _book("a")
    assert book.final(0.0) is None
    book.record(_outcome("a", 0), 0.1)
    assert _told(book.final(0.2)) == {"a": True}
    assert book.final(0.3) is None


def test_a_batch_leaves_full_or_when_its_time_has_come() -> None:
    """100 statuses or 5 seconds, whichever is first; a long silence brings a sign of life."""
    book = BatchBook(batch_size=3, batch_interval_s=5.0, heartbeat_interval_s=30.0, now_s=0.0)
    for n in range(4):
        book.record(_outcome("a", 0, name=f"c{n}"), 1.0)
    cut = book.cut(1.0)
    assert cut is not None
    assert (cut.kind, len(cut.statuses)) == (ReportKind.BATCH, 3)
    assert book.cut(1.0) is None
    assert book.next_cut_s(1.0) == 6.0
    cut = book.cut(6.0)
    assert cut is not None
    assert len(cut.statuses) == 1
    assert book.cut(35.9) is None
    cut = book.cut(36.0)
    assert cut is not None
    assert cut.kind is ReportKind.HEARTBEAT


class CycleMachine(RuleBasedStateMachine):
    """Any order of outcomes, time and cuts: what core was told last is what is known, one cycle report a tick."""

    agents = ("a", "b", "c")

    @initialize()
    def start(self) -> None:
        self.now_s = 0.0
        self.book: Any = _book(*self.agents)
        self.known: dict[str, bool] = {}
        self.cycles: list[int] = []
        self.early_s: list[float] = []

    @rule(agent=st.sampled_from(agents), available=st.booleans(), lag=st.integers(0, 1))
    def outcome(self, agent: str, available: bool, lag: int) -> None:
        tick = max(int(self.now_s // INTERVAL_S) - lag, 0)
        self.book.record(_outcome(agent, tick, available=available), self.now_s)
        self.known[agent] = available

    @rule(step_s=st.sampled_from([0.01, 0.3, 2.0, 7.0]))
    def time(self, step_s: float) -> None:
        self.now_s += step_s
        while (cut := self.book.cut(self.now_s)) is not None:
            told = _told(cut)
            if cut.kind is ReportKind.CYCLE or cut.kind is ReportKind.HEARTBEAT:
                self.cycles.append(cut.tick)
            else:
                self.early_s.append(self.now_s)
            for agent, available in told.items():
                # Only long silence may turn what is known.
                assert available == self.known.get(agent) or not available

    @invariant()
    def one_report_a_tick(self) -> None:
        if hasattr(self, "cycles"):
            assert self.cycles == sorted(set(self.cycles))

    @invariant()
    def early_reports_keep_their_distance(self) -> None:
        if hasattr(self, "early_s"):
            assert all(b - a >= EARLY_S - 1e-9 for a, b in zip(self.early_s, self.early_s[1:], strict=False))

    @invariant()
    def the_next_look_is_never_in_the_past_for_long(self) -> None:
        if hasattr(self, "book") and self.book.cut(self.now_s) is None:
            assert self.book.next_cut_s(self.now_s) > self.now_s


TestCycleMachine = CycleMachine.TestCase
TestCycleMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_current_report_comes_at_once_and_then_as_seldom_as_early_ones() -> None:
    """What was asked for is cut at the next look, a second one only after the interval of early reports."""
    book = _book("a")
    book.record(_outcome("a", 0), 0.5)
    assert book.cut(0.5) is not None
    book.want_current(1.0)
    assert book.next_cut_s(1.0) <= 1.0
    cut = book.cut(1.0)
    assert cut is not None
    assert (cut.kind, cut.fresh, cut.change, _told(cut)) == (ReportKind.CURRENT, 0, False, {"a": True})
    book.want_current(2.0)
    assert book.cut(2.0) is None
    assert book.next_cut_s(4.0) == 1.0 + EARLY_S
    assert book.cut(1.0 + EARLY_S) is not None


def test_any_full_report_is_current() -> None:
    """A cycle's report does for what was asked for; a young one does where only a newer one would be missed."""
    book = _book("a")
    book.want_current(0.1)
    assert book.cut(0.1) is None  # nothing is known
    book.record(_outcome("a", 0), 0.5)
    book.want_current(0.5)
    cut = book.cut(0.5)
    assert cut is not None and cut.kind is ReportKind.CYCLE
    assert book.cut(9.0) is None
    book.want_current(0.5 + EARLY_S - 0.1, unless_newer=True)
    assert book.cut(0.5 + EARLY_S) is None
    book.want_current(0.5 + EARLY_S, unless_newer=True)
    assert book.cut(0.5 + EARLY_S) is not None
