"""
Metrics: every event counted, in a registry of its own, served in Prometheus's text format.

Cardinality is bounded: no series is labelled with a check, labels with open value sets are cut off at a named
limit (further values are ``other``), and the only series per agent are agent_up and breaker_state, which are
made when they are asked for and end with :meth:`MetricsSink.forget_agent`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import prometheus_client
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serviceradar_poller.config.model import AGENTS_MAX
from serviceradar_poller.events import kernel as k
from serviceradar_poller.events import polling as p
from serviceradar_poller.observe import own_events as o
from serviceradar_poller.observe.own_events import ObservedEvent
from serviceradar_poller.observe.tally import CounterTally, HistogramTally

NAMESPACE = "serviceradar_poller"
#: Distinct values of one label; reasons, service types and child kinds are a few dozen in practice.
LABEL_VALUES_MAX = 64
OTHER = "other"

#: 1 ms (an agent next door) to 60 s (the longest timeout in use).
LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
OUTAGE_BUCKETS_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)
BREAKER_STATES = ("CLOSED", "HALF_OPEN", "OPEN")


class MetricsSink:
    """Count events; *version* and *poller_id* become the labels of build_info."""

    def __init__(self, *, version: str = "", poller_id: str = "") -> None:
        # Else each counter and histogram has a second series, its creation time; process-wide in the library.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry(auto_describe=False)
        self._values: dict[str, set[str]] = {}
        self._agents_up: dict[str, bool] = {}
        self._breakers: dict[str, str] = {}
        self._make()
        self._handlers: dict[type, Callable[..., None]] = self._handler_table()
        Gauge(
            "build_info",
            "The version that runs and the poller's id; always 1.",
            ("version", "poller_id"),
            namespace=NAMESPACE,
            registry=self.registry,
        ).labels(version, poller_id).set(1)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def __call__(self, event: ObservedEvent) -> None:
        """Count *event*; types that are not counted are ignored."""
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    def observe_lag(self, lag_s: float) -> None:
        """Record how late the event loop ran a timer."""
        self.loop_lag.observe(lag_s)

    def count_http_refusal(self) -> None:
        """Count a connection or request that the HTTP listener refused or ended."""
        self.http_refusals.inc()

    def pull_counter(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Serve a counter that is kept elsewhere; *read* is called at each scrape."""
        self.registry.register(_Pulled(CounterMetricFamily, name, help_text, read))

    def pull_gauge(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Serve a gauge that is kept elsewhere; as for pull_counter."""
        self.registry.register(_Pulled(GaugeMetricFamily, name, help_text, read))

    def forget_agent(self, agent: str) -> None:
        """End the series of an agent that is no longer configured."""
        self._agents_up.pop(agent, None)
        self._breakers.pop(agent, None)
        self.agents_connected.set(sum(self._agents_up.values()))

    def exposition(self) -> bytes:
        """Return all series in the text format 0.0.4; some 4 ms for 1000 agents; on the loop's thread."""
        agents = _agent_series(self._agents_up, self._breakers)
        return prometheus_client.generate_latest(self.registry) + agents.encode("utf-8", "replace")

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(name, help_text, labels, namespace=NAMESPACE, registry=self.registry)

    def _gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        return Gauge(name, help_text, labels, namespace=NAMESPACE, registry=self.registry)

    def _histogram(
        self, name: str, help_text: str, *labels: str, buckets: tuple[float, ...] = LATENCY_BUCKETS_S
    ) -> Histogram:
        return Histogram(name, help_text, labels, namespace=NAMESPACE, registry=self.registry, buckets=buckets)

    def _make(self) -> None:
        counter, gauge, histogram = self._counter, self._gauge, self._histogram
        self.polls = CounterTally(
            f"{NAMESPACE}_polls",
            "Checks that have an outcome, by service type, outcome and reason of the failure.",
            ("service_type", "outcome", "reason"),
        )
        self.poll_latency = HistogramTally(
            f"{NAMESPACE}_poll_duration_seconds",
            "Time from the start of a check to its outcome, retries included.",
            LATENCY_BUCKETS_S,
            "kind",
        )
        self.poll_lateness = HistogramTally(
            f"{NAMESPACE}_poll_lateness_seconds", "How far behind its schedule a check started.", LATENCY_BUCKETS_S
        )
        for tally in (self.polls, self.poll_latency, self.poll_lateness):
            self.registry.register(tally)
        self._lateness = self.poll_lateness.of("")
        self.poll_retries = counter("poll_retries", "Attempts of checks beyond the first one.")
        self.polls_missed = counter("polls_missed", "Intervals that went by without a check being started.")
        self.polls_unsupported = counter(
            "polls_unsupported", "Checks skipped because this version does not support them."
        )
        self.agents = gauge("agents", "Agents that are configured, as counted at the start.")
        self.agents_connected = gauge("agents_connected", "Agents whose connection is up.")
        self.agents_lost = counter("agents_lost", "Outages of agents, by reason.", "reason")
        self.agent_outage = histogram(
            "agent_outage_seconds", "How long agents were away, observed when they are back.",
            buckets=OUTAGE_BUCKETS_S,
        )  # fmt: skip
        self.agents_misconfigured = counter("agents_misconfigured", "Agents found to have settings that can't be used.")
        self.agent_health = counter(
            "agent_health_failures", "Health answers of agents that are not SERVING, by answer.", "status"
        )
        self.id_mismatches = counter("agent_id_mismatches", "Other ids under which agents have answered.")
        self.breaker_transitions = counter(
            "breaker_transitions", "Changes of breakers, by the state they went to.", "state"
        )
        self.core_up = gauge("core_up", "Whether core accepts reports: 1 or 0.")
        self.core_lost = counter("core_lost", "Outages of core, by reason.", "reason")
        self.core_outage = histogram(
            "core_outage_seconds",
            "How long core was away, observed when it is back.",
            buckets=OUTAGE_BUCKETS_S,
        )
        self.reports_sent = counter(
            "reports_sent", "Reports that core has accepted, by kind and transport.", "kind", "transport"
        )
        self.report_statuses = counter("report_statuses", "Statuses in the reports that core has accepted.")
        self.report_bytes = counter("report_bytes", "Encoded size of the reports that core has accepted.")
        self.report_duration = histogram("report_duration_seconds", "Time that core took to accept a report.")
        self.report_age = histogram(
            "report_age_seconds", "Age of a report when core accepted it.", buckets=OUTAGE_BUCKETS_S
        )
        self.report_tick = histogram(
            "report_tick_to_accepted_seconds",
            "Time from a cycle's tick until core accepted the cycle's report.",
        )
        self.report_failures = counter(
            "report_failures", "Attempts to deliver a report that failed, by reason.", "reason"
        )
        self.reports_dropped = counter("reports_dropped", "Reports given up, by reason.", "reason")
        self.statuses_dropped = counter("statuses_dropped", "Statuses in the reports that were given up.")
        self.reports_set_aside = counter(
            "reports_set_aside", "Reports kept for the operator because core does not take them, by reason.", "reason"
        )
        self.spool_files_set_aside = counter(
            "spool_files_set_aside", "Spool files that could not be used and were moved away, by reason.", "reason"
        )
        self.spool_write_outages = counter(
            "spool_write_outages", "Times when the spool could not be written, by reason.", "reason"
        )
        self.spool_filling = counter("spool_filling", "Times when the spool was about to be full.")
        self.spool_writable = gauge("spool_writable", "Whether the spool could be written last: 1 or 0.")
        self.spool_recovered = counter(
            "spool_recovered_statuses", "Statuses found in the spool at its opening that core has not seen."
        )
        self.queue_reports = gauge("queue_reports", "Reports that wait for core.")
        self.queue_bytes = gauge("queue_bytes", "Encoded size of the reports that wait for core.")
        self.child_starts = counter("child_starts", "Children that became ready, by kind.", "child")
        self.child_exits = counter("child_exits", "Children that ended, by kind and reason.", "child", "reason")
        self.child_start_failures = counter("child_start_failures", "Children that could not start, by kind.", "child")
        self.child_restarts = counter("child_restarts", "Restarts that supervisors began, by kind.", "child")
        self.quarantines = counter("child_quarantines", "Children that gave up and wait, by kind.", "child")
        self.kills = counter("child_kills", "Children killed because they did not stop in time, by kind.", "child")
        self.zombies = counter("child_zombies", "Children that can't be stopped at all, by kind.", "child")
        self.give_ups = counter(
            "supervisor_give_ups", "Supervisors that exceeded their restart intensity, by kind.", "child"
        )
        self.mailbox_overflows = counter("mailbox_overflows", "Episodes in which a mailbox was full, by kind.", "child")
        self.loop_lag = histogram("loop_lag_seconds", "How late the event loop ran a timer.")
        self.loop_blocked = counter("loop_blocked", "Episodes in which the event loop did not turn.")
        self.config_warnings = counter("config_warnings", "Warnings about the configuration.")
        self.names_stale = counter(
            "names_stale", "Times that a name was not answered and its last addresses were used."
        )
        self.listener_failures = counter(
            "listener_failures",
            "Own listeners that could not be opened, or could not take a renewed certificate, by name.",
            "name",
        )
        self.http_refusals = counter(
            "http_refusals", "Connections and requests that the HTTP listener refused or ended."
        )
        self.credentials_renewed = counter("credentials_renewed", "Connections that went on with new certificates.")
        self.credentials_rejected = counter(
            "credentials_rejected", "New certificates that could not be used, so that the old ones were kept."
        )
        self.operator_restarts = counter("operator_restarts", "Restarts that an operator asked for.")
        self.library_messages = counter(
            "library_messages", "Warnings and errors that libraries logged, by level.", "level"
        )

    def _handler_table(self) -> dict[type, Callable[..., None]]:
        def count(counter: Counter) -> Callable[..., None]:
            return lambda event: counter.inc()

        def count_child(counter: Counter) -> Callable[..., None]:
            return lambda event: self._child(counter, self._kind(event.path)).inc()

        return {
            p.CheckFinished: self._check_finished,
            p.CheckMissed: lambda e: self.polls_missed.inc(e.count),
            p.CheckUnsupported: count(self.polls_unsupported),
            p.PollerStarted: lambda e: self.agents.set(e.agents),
            p.ConfigWarning: count(self.config_warnings),
            p.AgentMisconfigured: self._agent_misconfigured,
            p.AgentLost: self._agent_lost,
            p.AgentConnected: self._agent_connected,
            p.AgentHealth: lambda e: self._child(self.agent_health, self._limited("health", e.status)).inc(),
            p.AgentIdMismatch: count(self.id_mismatches),
            p.BreakerChanged: self._breaker_changed,
            p.ReportSent: self._report_sent,
            p.ReportFailed: lambda e: self._child(self.report_failures, self._reason(e.reason)).inc(),
            p.ReportDropped: self._report_dropped,
            p.ReportSetAside: lambda e: self._child(self.reports_set_aside, self._reason(e.reason)).inc(),
            p.ReportQueue: self._report_queue,
            p.SpoolRecovered: self._spool_recovered,
            p.SpoolSetAside: lambda e: self._child(self.spool_files_set_aside, self._reason(e.reason)).inc(),
            p.SpoolWriteFailed: self._spool_write_failed,
            p.SpoolWritable: lambda e: self.spool_writable.set(1),
            p.SpoolFilling: count(self.spool_filling),
            p.CoreLost: self._core_lost,
            p.CoreConnected: self._core_connected,
            p.NameStale: count(self.names_stale),
            p.ServerFailed: lambda e: self._child(self.listener_failures, self._limited("name", e.name)).inc(),
            p.CredentialsRenewed: count(self.credentials_renewed),
            p.CredentialsRejected: count(self.credentials_rejected),
            p.OperatorRestart: count(self.operator_restarts),
            k.ChildStarted: count_child(self.child_starts),
            k.ChildExited: lambda e: self._child(self.child_exits, self._kind(e.path), e.reason).inc(),
            k.ChildStartFailed: count_child(self.child_start_failures),
            k.ChildRestarting: count_child(self.child_restarts),
            k.ChildQuarantined: count_child(self.quarantines),
            k.ChildKilled: count_child(self.kills),
            k.ChildZombie: count_child(self.zombies),
            k.SupervisorGaveUp: count_child(self.give_ups),
            k.MailboxOverflow: count_child(self.mailbox_overflows),
            k.LoopBlocked: count(self.loop_blocked),
            o.LibraryLogged: lambda e: self._child(self.library_messages, e.severity).inc(),
        }

    def _check_finished(self, event: p.CheckFinished) -> None:
        key = (event.service_type, event.outcome, event.reason)
        polls = self.polls.counts
        if key not in polls:
            key = (self._limited("service_type", key[0]), key[1], self._reason(key[2]))
            polls.setdefault(key, 0)
        polls[key] += 1
        self.poll_latency.of(event.kind).add(event.latency_s)
        self._lateness.add(event.lateness_s)
        if event.attempts > 1:
            self.poll_retries.inc(event.attempts - 1)

    def _agent_misconfigured(self, event: p.AgentMisconfigured) -> None:
        self.agents_misconfigured.inc()
        self._set_up(event.agent, up=False)

    def _agent_lost(self, event: p.AgentLost) -> None:
        self._child(self.agents_lost, self._reason(event.reason)).inc()
        self._set_up(event.agent, up=False)

    def _agent_connected(self, event: p.AgentConnected) -> None:
        if event.outage_s > 0:
            self.agent_outage.observe(event.outage_s)
        self._set_up(event.agent, up=True)

    def _set_up(self, agent: str, *, up: bool) -> None:
        if agent not in self._agents_up and len(self._agents_up) >= AGENTS_MAX:
            return
        before = self._agents_up.get(agent, False)
        self._agents_up[agent] = up
        self._breakers.setdefault(agent, "CLOSED")
        if before is not up:
            self.agents_connected.inc(1 if up else -1)

    def _breaker_changed(self, event: p.BreakerChanged) -> None:
        self._child(self.breaker_transitions, event.after).inc()
        if event.agent in self._breakers or len(self._breakers) < AGENTS_MAX:
            self._breakers[event.agent] = event.after

    def _report_sent(self, event: p.ReportSent) -> None:
        self._child(self.reports_sent, event.kind, event.transport).inc()
        self.report_statuses.inc(event.statuses)
        self.report_bytes.inc(event.size)
        self.report_duration.observe(event.duration_s)
        self.report_age.observe(event.age_s)
        if event.tick_s >= 0:
            self.report_tick.observe(event.tick_s)

    def _report_dropped(self, event: p.ReportDropped) -> None:
        self._child(self.reports_dropped, self._reason(event.reason)).inc(event.reports)
        self.statuses_dropped.inc(event.statuses)

    def _report_queue(self, event: p.ReportQueue) -> None:
        self.queue_reports.set(event.reports)
        self.queue_bytes.set(event.size)

    def _spool_recovered(self, event: p.SpoolRecovered) -> None:
        self.spool_recovered.inc(event.statuses)
        self.spool_writable.set(1)

    def _spool_write_failed(self, event: p.SpoolWriteFailed) -> None:
        self._child(self.spool_write_outages, self._reason(event.reason)).inc()
        self.spool_writable.set(0)

    def _core_lost(self, event: p.CoreLost) -> None:
        self._child(self.core_lost, self._reason(event.reason)).inc()
        self.core_up.set(0)

    def _core_connected(self, event: p.CoreConnected) -> None:
        if event.outage_s > 0:
            self.core_outage.observe(event.outage_s)
        self.core_up.set(1)

    @staticmethod
    def _child(counter: Counter, *labels: str) -> Counter:
        return counter.labels(*labels)

    def _reason(self, reason: str) -> str:
        return self._limited("reason", reason)

    def _kind(self, path: str) -> str:
        return self._limited("child", child_kind(path))

    def _limited(self, label: str, value: str) -> str:
        values = self._values.setdefault(label, set())
        if value in values:
            return value
        if len(values) >= LABEL_VALUES_MAX:
            return OTHER
        values.add(value)
        return value


def child_kind(path: str) -> str:
    """Return what kind of child stands at *path*: its id, or ``agent`` where that is an agent's name."""
    head, _, last = path.rpartition("/")
    return "agent" if head.rpartition("/")[2] == "agents" else last


def _agent_series(up: dict[str, bool], breakers: dict[str, str]) -> str:
    """Write the series per agent: no objects are kept for them, and a fifth of the library's time."""
    lines = [
        f"# HELP {NAMESPACE}_agent_up Whether the agent's connection is up: 1 or 0.",
        f"# TYPE {NAMESPACE}_agent_up gauge",
    ]
    lines += [f'{NAMESPACE}_agent_up{{agent="{_escaped(agent)}"}} {is_up:d}.0' for agent, is_up in up.items()]
    lines += [
        f"# HELP {NAMESPACE}_breaker_state Whether the agent's breaker is in this state: 1 or 0.",
        f"# TYPE {NAMESPACE}_breaker_state gauge",
    ]
    for agent, current in breakers.items():
        head = f'{NAMESPACE}_breaker_state{{agent="{_escaped(agent)}",state="'
        lines += [f'{head}{state}"}} {state == current:d}.0' for state in BREAKER_STATES]
    lines.append("")
    return "\n".join(lines)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


class _Pulled(Collector):
    """One value that is kept elsewhere."""

    def __init__(
        self,
        family: type[CounterMetricFamily] | type[GaugeMetricFamily],
        name: str,
        help_text: str,
        read: Callable[[], float],
    ) -> None:
        self._family = family
        self._name = f"{NAMESPACE}_{name}"
        self._help = help_text
        self._read = read

    def collect(self) -> Iterable[Metric]:
        yield self._family(self._name, self._help, value=self._read())
