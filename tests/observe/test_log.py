from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serviceradar_poller.events import kernel as k
from serviceradar_poller.events import polling as p
from serviceradar_poller.observe.levels import Level
from serviceradar_poller.observe.lines import LINES, RESERVED_KEYS
from serviceradar_poller.observe.log import LogSink
from serviceradar_poller.observe.own_events import ObservedEvent

WALL = 1_763_900_000.25


class Log:
    """A LogSink over memory, and the lines that came out of it."""

    def __init__(self, **options: Any) -> None:
        self._stream = io.BytesIO()
        defaults: dict[str, Any] = {"level": "trace", "poller_id": "site-a", "time": lambda: WALL}
        self.sink = LogSink(self._stream, **(defaults | options))

    def text(self, *events: ObservedEvent) -> str:
        for event in events:
            self.sink(event)
        assert self.sink.close() == 0
        return self._stream.getvalue().decode()

    def lines(self, *events: ObservedEvent) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text(*events).splitlines()]

    def told(self, *events: ObservedEvent) -> list[tuple[str, str]]:
        return [(line["level"], line["message"]) for line in self.lines(*events)]


def check(outcome: str = "available", **fields: Any) -> p.CheckFinished:
    values: dict[str, Any] = {
        "agent": "edge-01", "service_name": "ping", "service_type": "icmp", "kind": "status",
        "outcome": outcome, "lateness_s": 0.0, "latency_s": 0.01,
    }  # fmt: skip
    return p.CheckFinished(**(values | fields))


def test_every_event_type_has_a_line(event_types: tuple[type, ...]) -> None:
    """An event type that nobody gave a level and a message to can't get in."""
    assert set(LINES) == set(event_types)


def test_every_event_type_is_written(
    event_types: tuple[type, ...], plain_event: Callable[[type], ObservedEvent]
) -> None:
    """One line for each event at trace level, with what log readers rely on, and no field lost to another."""
    for kind in event_types:
        (line,) = Log().lines(plain_event(kind))
        assert list(line)[:6] == ["level", "component", "time", "message", "poller_id", "event"]
        assert line["component"] == "poller"
        assert line["time"] == "2025-11-23T12:13:20.250Z"
        assert line["level"] in {level.text for level in Level}
        keys = [key for _, key in LINES[kind].fields]
        assert not set(keys) & (RESERVED_KEYS - {"poller_id"})
        assert set(keys) <= set(line)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=200, deadline=None
)
@given(data=st.data())
@pytest.mark.slow
def test_whatever_an_event_holds_gives_one_json_line(any_event: st.SearchStrategy[Any], data: st.DataObject) -> None:
    """No text from outside can break a line or its JSON, or smuggle control characters to a terminal."""
    text = Log().text(data.draw(any_event))
    assert text.endswith("\n")
    assert len(text.splitlines()) == 1
    assert "\x1b" not in text
    assert isinstance(json.loads(text), dict)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=200, deadline=None
)
@given(data=st.data())
@pytest.mark.slow
def test_whatever_an_event_holds_gives_one_human_line_and_indented_blocks(
    any_event: st.SearchStrategy[Any], data: st.DataObject
) -> None:
    """In words too, an event's text can't look like another line: what follows the first is indented."""
    first, *rest = Log(human=True, colour=False).text(data.draw(any_event)).split("\n")
    assert first.startswith("2025-11-23T12:13:20.250Z ")
    assert rest.pop() == ""
    assert all(line.startswith("    ") for line in rest)


@pytest.mark.parametrize("level", list(Level))
def test_each_level_writes_what_is_as_loud_or_louder(level: Level) -> None:
    """Warn and error are honoured like info and debug."""
    events: dict[Level, ObservedEvent] = {
        Level.TRACE: p.ReportQueue(reports=1, size=1),
        Level.DEBUG: k.ChildStarted(path="a", incarnation=1),
        Level.INFO: p.PollerStopping(cause="signal"),
        Level.WARN: p.CoreLost(address="c:1", reason="refused", error=""),
        Level.ERROR: p.ReportDropped(kind="cycle", statuses=1, reason="full", queued=1),
    }
    written = [line["level"] for line in Log(level=level.text).lines(*events.values())]
    assert written == [other.text for other in events if other >= level]


def test_the_debug_switch_and_unknown_levels() -> None:
    """``debug`` makes the log louder, never quieter; a level that does not exist is refused."""
    assert Level.parse("error", debug=True) is Level.DEBUG
    assert Level.parse("trace", debug=True) is Level.TRACE
    assert Level.parse("") is Level.INFO
    assert Level.parse("WARNING") is Level.WARN
    with pytest.raises(ValueError, match="verbose"):
        Level.parse("verbose")


def test_a_check_is_told_when_it_changes() -> None:
    """Available is silence; a failure is one warning, its end one info, whatever lies between."""
    told = Log(level="info").told(
        check(),
        check("failed", reason="refused"),
        check("failed", reason="timeout"),
        check(),
        check(),
        check("failed"),
        check("unavailable"),
        check("unavailable"),
        check(),
    )
    assert told == [
        ("warn", "check failed"),
        ("info", "check recovered"),
        ("warn", "check failed"),
        ("info", "check is unavailable"),
        ("info", "check recovered"),
    ]


def test_checks_are_told_apart_by_agent_name_and_kind() -> None:
    """One check's failure says nothing of another's."""
    told = Log(level="info").told(
        check("failed"), check("failed", agent="edge-02"), check("failed", service_name="db"), check("failed")
    )
    assert told == [("warn", "check failed")] * 3


def test_at_debug_level_every_poll_has_its_line() -> None:
    """The canonical line of a poll is there for whoever asks for it."""
    lines = Log(level="debug").lines(check(), check("failed", reason="refused", error="no"), check("failed"))
    assert [(line["level"], line["outcome"]) for line in lines] == [
        ("debug", "available"),
        ("warn", "failed"),
        ("debug", "failed"),
    ]
    assert lines[1]["reason"] == "refused"
    assert lines[1]["latency_s"] == 0.01


def test_a_check_that_goes_on_missing_its_time_is_told_once() -> None:
    """Missed intervals warn once per check, and again after it had been well in between."""
    missed = p.CheckMissed(agent="edge-01", service_name="ping", service_type="icmp", count=2)
    told = Log(level="info").told(missed, missed, check(), missed)
    assert told == [("warn", "check missed its time")] * 2


def test_an_unwell_agent_is_told_when_its_answer_changes() -> None:
    """The same health answer each cycle is one line; after an outage it is told again."""
    unwell = p.AgentHealth(agent="edge-01", status="NOT_SERVING")
    back = p.AgentConnected(agent="edge-01", address="e:1", outage_s=3.0)
    other = p.AgentHealth(agent="edge-01", status="UNKNOWN")
    told = Log(level="warn").told(unwell, unwell, other, other, back, other)
    assert told == [("warn", "agent says that it is not well")] * 3


def test_what_is_remembered_of_checks_is_bounded() -> None:
    """More troubled checks than the limit cost repeated lines, not memory."""
    from serviceradar_poller.observe.changes import Changes

    changes = Changes(states_max=2)
    for name in ("a", "b", "c"):
        assert changes.check(check("failed", service_name=name)) is not None
    assert len(changes) == 2
    assert changes.forgotten == 1
    assert changes.check(check("failed", service_name="c")) is None
    assert changes.check(check("failed", service_name="a")) is not None


def test_a_forgotten_agent_leaves_nothing_behind() -> None:
    """When an agent leaves the configuration and comes back, its failures are told anew."""
    log = Log(level="info")
    log.sink(check("failed"))
    log.sink.forget_agent("edge-01")
    assert log.told(check("failed")) == [("warn", "check failed")] * 2


def test_secrets_do_not_reach_the_log() -> None:
    """Values that follow a secret's name, keys in PEM and passwords in addresses are masked."""
    key = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQ\n-----END EC PRIVATE KEY-----"
    texts = (
        "password=hunter2 rest", "api_key: 'hunter2'", "Authorization: Bearer hunter2", f"found {key}",
        'auth_token="hunter2"', "https://me:hunter2@host/", "cut: -----BEGIN PRIVATE KEY----- hunter2",
    )  # fmt: skip
    for text in texts:
        line = Log().text(p.ConfigWarning(source="s", path="p", text=text))
        assert "hunter2" not in line, text
        assert "MHcCAQ" not in line, text
        assert "***" in line
    kept = Log().lines(p.ConfigWarning(source="s", path="agents.a.security.tls.key_file", text="token ring: up"))
    assert kept[0]["text"] == "token ring: up"
    assert kept[0]["path"] == "agents.a.security.tls.key_file"


def test_fields_named_like_a_secret_are_masked() -> None:
    """A key that names a secret hides its value, whatever the value is."""
    from serviceradar_poller.observe.text import secret_key

    assert all(map(secret_key, ("password", "auth_token", "api_key", "client_secret", "private_key")))
    assert not any(map(secret_key, ("key_file", "tokens_left", "path", "agent", "monkey")))


def test_long_values_are_cut() -> None:
    """A megabyte of error text does not become a megabyte of log."""
    (line,) = Log().lines(p.AgentMisconfigured(agent="a", problem="x" * 1_000_000))
    assert len(line["problem"]) < 9_000
    assert line["problem"].endswith("more characters)")


def test_human_lines_show_values_as_pairs_and_tracebacks_below() -> None:
    """On a terminal: time, level, message, key=value, and a crash's traceback readable."""
    crash = k.ChildExited(
        path="poller/core", incarnation=2, reason="error", error="ValueError: a b", traceback="line 1\nline 2\n"
    )
    text = Log(human=True, colour=False).text(crash)
    assert text == (
        "2025-11-23T12:13:20.250Z ERROR child crashed path=poller/core incarnation=2 reason=error "
        'error="ValueError: a b"\n    line 1\n    line 2\n'
    )
    assert "\x1b[31mERROR" in Log(human=True).text(crash)
