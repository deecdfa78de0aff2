"""
The terminal view: one screen that shows how the poller, its core and its agents are, faulty ones first.

Drawn from a ViewSnapshot alone, so that it can run in the poller's process or in another one.
Values from outside are shown as text, never as markup, and without control characters.
"""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from serviceradar_poller.observe.figures import count, duration, plural, size
from serviceradar_poller.observe.snapshot import AgentView, CheckView, Note, ViewSnapshot
from serviceradar_poller.observe.text import clean
from serviceradar_poller.observe.timefmt import rfc3339

#: Widths below which columns are left out, the least important first.
FULL_WIDTH = 100
MEDIUM_WIDTH = 72
NOTES_SHOWN_MAX = 8
_HEADER_LINES = 4

_STATES = {
    "up": ("●", "green"),
    "down": ("✗", "bold red"),
    "misconfigured": ("!", "bold yellow"),
    "unknown": ("·", "dim"),
}
_BREAKERS = {"OPEN": ("open", "bold red"), "HALF_OPEN": ("half-open", "yellow"), "CLOSED": ("closed", "dim")}
_OUTCOMES = {"available": ("●", "green"), "unavailable": ("○", "yellow"), "failed": ("✗", "red")}
_LEVELS = {"info": "green", "warn": "yellow", "error": "bold red"}
#: Symbols of a check each; of more, a count is shown.
_CHECK_SYMBOLS_MAX = 8


def render(snapshot: ViewSnapshot, *, width: int, height: int) -> RenderableType:
    """Return the screen, at most *height* lines of *width* columns."""
    room = max(height, 1)
    lines: list[RenderableType] = [*_header(snapshot, width)[:room]]
    room -= len(lines)
    notes = _notes_that_fit(snapshot, room)
    room -= len(notes) + 1 if notes else 0
    # A rule, the column heads, and one line at least for an agent.
    if room >= 3 and snapshot.agents_total:
        shown = snapshot.agents[: room - 2]
        hidden = snapshot.agents_total - len(shown)
        if hidden:
            shown = shown[: room - 3]
            hidden = snapshot.agents_total - len(shown)
        lines += [_rule("agents", _agent_summary(snapshot)), _agents(shown, width)]
        if hidden:
            lines.append(_line(Text(f"  +{count(hidden)} more{_hidden_kind(shown)}", style="dim")))
    if notes:
        lines += [_rule("recent events", ""), *(_note(note, width) for note in notes)]
    return Group(*lines)


def summary_line(snapshot: ViewSnapshot) -> str:
    """Return the poller's state in one line, for an output that is not a terminal."""
    up, total = snapshot.agent_counts.get("up", 0), snapshot.agents_total
    parts = [
        _time_of_day(snapshot.time),
        f"agents {up}/{total} up",
        f"checks {count(snapshot.checks_available)} ok"
        + (f", {count(snapshot.checks_unavailable)} unavailable" if snapshot.checks_unavailable else "")
        + (f", {count(snapshot.checks_failed)} failed" if snapshot.checks_failed else ""),
        f"p50 {duration(snapshot.polls.latency_p50_s)}, p99 {duration(snapshot.polls.latency_p99_s)}",
        _core_words(snapshot),
    ]
    if snapshot.core.last_tick_s >= 0:
        parts.append(f"report accepted {duration(snapshot.core.last_tick_s)} after its tick")
    parts.append(f"{count(snapshot.core.queue_reports)} queued")
    if snapshot.core.reports_dropped:
        parts.append(f"{count(snapshot.core.reports_dropped)} dropped")
    if snapshot.core.reports_set_aside:
        parts.append(f"{count(snapshot.core.reports_set_aside)} set aside")
    if snapshot.supervision.restarts:
        parts.append(plural(snapshot.supervision.restarts, "restart"))
    parts.append(size(snapshot.rss_bytes))
    return " | ".join(parts)


def final_summary(snapshot: ViewSnapshot) -> str:
    """Return what a run came to, in a few lines."""
    polls, core, tree = snapshot.polls, snapshot.core, snapshot.supervision
    total = polls.available + polls.unavailable + polls.failed
    troubled = [agent for agent in snapshot.agents if agent.state in ("down", "misconfigured")]
    named = ", ".join(f"{clean(agent.name)}: {clean(agent.reason or agent.error)}" for agent in troubled[:5])
    more = f", +{len(troubled) - 5} more" if len(troubled) > 5 else ""
    counts = ", ".join(f"{count(n)} {state}" for state, n in snapshot.agent_counts.items() if n) or "none"
    return "\n".join(
        (
            f"ran       {duration(snapshot.uptime_s)}, {plural(core.cycles, 'cycle')} reported",
            f"agents    {counts}{f' ({named}{more})' if named else ''}",
            f"checks    {count(total)}: {count(polls.available)} ok, {count(polls.unavailable)} unavailable,"
            f" {count(polls.failed)} failed, {count(polls.missed)} missed",
            f"latency   p50 {duration(polls.latency_p50_s)}, p99 {duration(polls.latency_p99_s)}",
            f"core      {plural(core.reports_sent, 'report')} accepted"
            f" ({plural(core.statuses_sent, 'status', 'statuses')}, {size(core.bytes_sent)}),"
            f" {count(core.queue_reports)} waiting, {count(core.reports_dropped)} dropped"
            + (f", {count(core.reports_set_aside)} set aside" if core.reports_set_aside else ""),
            f"faults    {plural(tree.crashes, 'crash', 'crashes')}, {plural(tree.restarts, 'restart')},"
            f" {plural(tree.quarantines, 'quarantine')}, {count(tree.give_ups)} gave up",
            f"process   {size(snapshot.rss_bytes)}, CPU {duration(snapshot.cpu_s)},"
            f" worst loop lag of the last minute {duration(snapshot.loop_lag_s)}",
        )
    )


def _header(snapshot: ViewSnapshot, width: int) -> list[RenderableType]:
    polls, core, tree = snapshot.polls, snapshot.core, snapshot.supervision
    title = Text.assemble(
        ("serviceradar-poller ", "bold"),
        (clean(snapshot.poller_id), "bold cyan"),
        (f" {clean(snapshot.version)}", "dim"),
        (" stopping", "bold yellow") if snapshot.stopping else "",
    )
    up = Text.assemble(("up ", "dim"), duration(snapshot.uptime_s))
    rows = [
        _pair(
            "core",
            Text.assemble(
                _core_text(snapshot),
                ("  reports ", "dim"),
                f"{count(core.reports_sent)} sent",
                (", ", "dim"),
                (f"{count(core.queue_reports)} queued", "yellow" if core.queue_reports else ""),
                (", ", "dim"),
                (f"{count(core.reports_dropped)} dropped", "bold red" if core.reports_dropped else ""),
                *(
                    ((", ", "dim"), (f"{count(core.reports_set_aside)} set aside", "bold red"))
                    if core.reports_set_aside
                    else ()
                ),
                *(
                    (("  accepted ", "dim"), duration(core.last_tick_s), (" after tick", "dim"))
                    if core.last_tick_s >= 0
                    else ()
                ),
            ),
        ),
        _pair(
            "checks",
            Text.assemble(
                f"{count(polls.available)} ok",
                (", ", "dim"),
                (f"{count(polls.unavailable)} unavailable", "yellow" if polls.unavailable else ""),
                (", ", "dim"),
                (f"{count(polls.failed)} failed", "red" if polls.failed else ""),
                (", ", "dim"),
                (f"{count(polls.missed)} missed", "yellow" if polls.missed else ""),
                ("  latency p50 ", "dim"),
                duration(polls.latency_p50_s),
                (", p99 ", "dim"),
                duration(polls.latency_p99_s),
            ),
        ),
        _pair(
            "process",
            Text.assemble(
                size(snapshot.rss_bytes),
                (", loop lag ", "dim"),
                duration(snapshot.loop_lag_s),
                (", ", "dim"),
                f"{count(tree.process_count)} processes",
                ("  restarts ", "dim"),
                (count(tree.restarts), "yellow" if tree.restarts else ""),
                (", crashes ", "dim"),
                (count(tree.crashes), "yellow" if tree.crashes else ""),
                *(((", gave up ", "dim"), (count(tree.give_ups), "bold red")) if tree.give_ups else ()),
                *(
                    (
                        ("  last: ", "dim"),
                        f"{clean(tree.last_restart)} {duration(tree.last_restart_age_s)} ago",
                    )
                    if tree.last_restart
                    else ()
                ),
            ),
        ),
    ]
    return [_ends(title, up, width), *(_line(row) for row in rows)]


def _core_words(snapshot: ViewSnapshot) -> str:
    core = snapshot.core
    if core.connected is None:
        return "core not reached yet"
    if core.connected:
        return "core connected"
    return f"core lost for {duration(core.since_s)} ({clean(core.reason)})"


def _core_text(snapshot: ViewSnapshot) -> Text:
    core = snapshot.core
    if core.connected is None:
        return Text("· not reached yet", style="dim")
    if core.connected:
        return Text.assemble(("● connected", "green"))
    reason = f" ({clean(core.reason)})" if core.reason else ""
    return Text(f"✗ lost for {duration(core.since_s)}{reason}", style="bold red")


def _agent_summary(snapshot: ViewSnapshot) -> str:
    counts = [f"{count(n)} {state}" for state, n in snapshot.agent_counts.items() if n]
    return ", ".join(reversed(counts))


def _agents(agents: tuple[AgentView, ...], width: int) -> Table:
    full, medium = width >= FULL_WIDTH, width >= MEDIUM_WIDTH
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), width=width, header_style="dim")
    name_width = min(max((len(agent.name) for agent in agents), default=5), 32 if medium else 18) + 2
    table.add_column("  agent", no_wrap=True, overflow="ellipsis", width=max(name_width, 7))
    table.add_column("state", no_wrap=True, width=_widest(agents))
    if medium:
        table.add_column("breaker", no_wrap=True, width=9)
    table.add_column("checks", no_wrap=True, overflow="ellipsis", width=_CHECK_SYMBOLS_MAX)
    if full:
        table.add_column("p50", no_wrap=True, justify="right", width=7)
    table.add_column("last", no_wrap=True, justify="right", width=7)
    if full:
        table.add_column("failed", no_wrap=True, justify="right", width=6)
    table.add_column("why", no_wrap=True, overflow="ellipsis", ratio=1)
    for agent in agents:
        table.add_row(*_agent_cells(agent, full=full, medium=medium))
    return table


def _widest(agents: tuple[AgentView, ...]) -> int:
    return max((len(_state_word(agent)) for agent in agents), default=5)


def _state_word(agent: AgentView) -> str:
    return f"down {duration(agent.outage_s)}" if agent.state == "down" else agent.state


def _agent_cells(agent: AgentView, *, full: bool, medium: bool) -> list[Text]:
    symbol, style = _STATES.get(agent.state, ("?", ""))
    if agent.state == "up" and any(check.failures for check in agent.checks):
        symbol, style = "●", "yellow"
    breaker, breaker_style = _BREAKERS.get(agent.breaker, ("–", "dim"))
    cells = [
        Text.assemble((symbol, style), " ", clean(agent.name)),
        Text(_state_word(agent), style=style if agent.state != "up" else ""),
    ]
    if medium:
        cells.append(Text(breaker, style=breaker_style))
    cells.append(_checks(agent.checks))
    if full:
        cells.append(Text(duration(agent.latency_p50_s)))
    cells.append(Text(duration(agent.latency_last_s)))
    if full:
        cells.append(Text(count(agent.failures), style="" if agent.failures else "dim"))
    cells.append(Text(_why(agent), style="red" if agent.state == "down" else "yellow"))
    return cells


def _checks(checks: tuple[CheckView, ...]) -> Text:
    if len(checks) <= _CHECK_SYMBOLS_MAX:
        return Text.assemble(*(_OUTCOMES.get(check.outcome, ("·", "dim")) for check in checks))
    good = sum(not check.failures for check in checks)
    return Text(f"{good}/{len(checks)}", style="green" if good == len(checks) else "red")


def _why(agent: AgentView) -> str:
    if agent.state in ("down", "misconfigured"):
        return clean(agent.error or agent.reason)
    failing = [check for check in agent.checks if check.failures]
    if not failing:
        return ""
    first = failing[0]
    more = f" (+{len(failing) - 1} more)" if len(failing) > 1 else ""
    told = first.error or first.reason or first.outcome
    return f"{clean(first.service_name)}{more}: {clean(told)}"


def _hidden_kind(shown: tuple[AgentView, ...]) -> str:
    if not shown:
        return ""
    last = shown[-1]
    # They are ordered by need of attention: what comes after a healthy one is healthy.
    healthy = last.state == "up" and last.breaker == "CLOSED" and not _why(last)
    return " healthy" if healthy else ""


def _notes_that_fit(snapshot: ViewSnapshot, room: int) -> tuple[Note, ...]:
    wanted = min(len(snapshot.notes), NOTES_SHOWN_MAX)
    # Agents come first: events get a third of what is left.
    number = min(wanted, max(room // 3 - 1, 0)) if snapshot.agents_total else min(wanted, max(room - 1, 0))
    # Unless the agents need less than their share.
    spare = room - (snapshot.agents_total + 2) - 1
    number = min(wanted, max(number, spare))
    return snapshot.notes[-number:] if number > 0 else ()


def _note(note: Note, width: int) -> RenderableType:
    text = Text.assemble(
        (_time_of_day(note.time), "dim"),
        " ",
        (f"{clean(note.level):<5}", _LEVELS.get(note.level, "")),
        " ",
        clean(note.text),
        (f"  {clean(note.subject)}" if note.subject else "", "cyan"),
        (f"  {clean(note.detail)}" if note.detail else "", "dim"),
    )
    return _line(text)


def _rule(title: str, summary: str) -> Rule:
    return Rule(Text.assemble((title, "bold"), (f"  {summary}" if summary else "", "dim")), align="left", style="dim")


def _pair(name: str, value: Text) -> Text:
    return Text.assemble((f"{name:<9}", "dim"), value)


def _ends(left: Text, right: Text, width: int) -> RenderableType:
    gap = width - left.cell_len - right.cell_len
    return _line(Text.assemble(left, " " * max(gap, 2), right))


def _time_of_day(unix_s: float) -> str:
    """Return the time in UTC, and say that it is."""
    return f"{rfc3339(unix_s)[11:19]}Z"


def _line(text: Text) -> Text:
    """Make *text* take exactly one line."""
    text.no_wrap = True
    text.overflow = "ellipsis"
    return text
