from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from serviceradar_poller.observe.figures import duration, size
from serviceradar_poller.observe.snapshot import AgentView, CheckView, CoreView, Note, PollsView, ViewSnapshot
from serviceradar_poller.observe.view import final_summary, render, summary_line


def draw(snapshot: ViewSnapshot, width: int, height: int) -> list[str]:
    console = Console(width=width, height=height, file=io.StringIO(), record=True, force_terminal=True)
    console.print(render(snapshot, width=width, height=height), end="")
    return console.export_text().splitlines()


def up(name: str) -> AgentView:
    checks = (CheckView(service_name="ping", outcome="available"), CheckView(service_name="db", outcome="available"))
    return AgentView(name=name, state="up", checks=checks, latency_p50_s=0.0031, latency_last_s=0.004)


def site(healthy: int, *, down: int = 1, notes: int = 3) -> ViewSnapshot:
    lost = tuple(
        AgentView(
            name=f"lost-{i}", state="down", reason="refused", error="connection refused", outage_s=75, breaker="OPEN"
        )
        for i in range(down)
    )
    return ViewSnapshot(
        time=1_763_900_000.0,
        poller_id="site-a",
        version="1.0",
        uptime_s=3_725.0,
        rss_bytes=98 * 2**20,
        checks_available=2 * healthy,
        core=CoreView(connected=True, reports_sent=19, last_tick_s=0.18, cycles=18),
        polls=PollsView(available=380, failed=4, latency_p50_s=0.0031, latency_p99_s=0.0123),
        agent_counts={"down": down, "misconfigured": 0, "unknown": 0, "up": healthy},
        agents=lost + tuple(up(f"edge-{i:03}") for i in range(healthy)),
        notes=tuple(Note(time=1_763_900_000.0 + i, level="warn", text=f"event {i}") for i in range(notes)),
    )


def test_the_screen_shows_what_matters() -> None:
    """Poller, core, checks, the faulty agent first with its reason, how many are hidden, and the latest event."""
    lines = draw(site(40), 110, 20)
    text = "\n".join(lines)
    assert lines[0].startswith("serviceradar-poller site-a 1.0")
    assert lines[0].endswith("up 1h 02m")
    assert "● connected  reports 19 sent, 0 queued, 0 dropped  accepted 180 ms after tick" in lines[1]
    assert "380 ok, 0 unavailable, 4 failed, 0 missed  latency p50 3.1 ms, p99 12 ms" in lines[2]
    first = next(i for i, line in enumerate(lines) if "lost-0" in line)
    assert lines[first].startswith("✗ lost-0")
    assert lines[first].rstrip().endswith("connection refused")
    assert "edge-000" in lines[first + 1]
    shown = sum("edge-" in line for line in lines)
    assert f"+{40 - shown} more healthy" in text
    assert lines[-1].rstrip().endswith("event 2")


@pytest.mark.slow
@pytest.mark.parametrize("width", [30, 60, 80, 120, 250])
@pytest.mark.parametrize("healthy", [0, 3, 500])
def test_the_screen_fits(width: int, healthy: int) -> None:
    """Whatever the terminal's size, the screen takes no more lines and columns than it has."""
    for height in range(1, 40):
        for down in (0, 1, 60):
            lines = draw(site(healthy, down=down, notes=20), width, height)
            assert len(lines) <= height, (height, down)
            assert all(len(line) <= width for line in lines)


def test_a_small_site_leaves_room_for_events() -> None:
    """Where agents need few lines, events get what is left."""
    lines = draw(site(3, notes=8), 100, 24)
    assert sum("event" in line for line in lines) == 8 + 1
    assert not any("more" in line for line in lines)


def test_hidden_agents_are_called_healthy_only_when_they_are() -> None:
    """When the shown ones are all faulty, nothing is said of the hidden ones."""
    lines = draw(site(3, down=60), 100, 15)
    shown = sum(line.startswith("✗ lost-") for line in lines)
    assert f"+{63 - shown} more" in [line.strip() for line in lines]


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=50), st.text(max_size=80))
def test_text_from_outside_stays_text(name: str, error: str) -> None:
    """Names and errors with markup, line breaks or escapes neither style the screen nor break its lines."""
    snapshot = ViewSnapshot(
        time=0.0,
        poller_id=name,
        agent_counts={"down": 1},
        agents=(AgentView(name=f"[red]{name}", state="down", error=error),),
        notes=(Note(time=0.0, level="warn", text=name, subject=error, detail=error),),
    )
    lines = draw(snapshot, 100, 20)
    assert len(lines) <= 9
    assert any("[red]" in line for line in lines)
    assert "\n" not in summary_line(snapshot)


def test_the_summary_line_is_one_line_with_the_figures() -> None:
    """For an output that is no terminal, one line says how things are."""
    assert summary_line(site(40)) == (
        "12:13:20Z | agents 40/41 up | checks 80 ok | p50 3.1 ms, p99 12 ms | core connected | "
        "report accepted 180 ms after its tick | 0 queued | 98.0 MiB"
    )


def test_the_final_summary_names_the_troubled_agents() -> None:
    """At the end: how long, how many, and who is down why."""
    text = final_summary(site(40, down=7))
    assert "1h 02m, 18 cycles reported" in text
    assert (
        "7 down, 40 up (lost-0: refused, lost-1: refused, lost-2: refused, lost-3: refused, lost-4: refused, +2" in text
    )
    assert "384: 380 ok, 0 unavailable, 4 failed, 0 missed" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "–"), (0.0, "0.0 ms"), (0.0031, "3.1 ms"), (0.01, "10 ms"), (0.9999, "1.0 s"), (9.96, "10 s"),
     (59.6, "1m 00s"), (3_599.7, "1h 00m"), (90_000, "1d 01h")],
)  # fmt: skip
def test_durations_in_words(seconds: float, text: str) -> None:
    """Two or three digits that matter, and the unit."""
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(-1, "–"), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (120 * 2**20, "120 MiB")]
)
def test_sizes_in_words(number: int, text: str) -> None:
    """Binary units."""
    assert size(number) == text
