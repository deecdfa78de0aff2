"""
From decoded keys to a `PollerConfig`: what is required, defaults, and what must hold between keys.

The sections that this poller adds to Go's are in ``sections``, security blocks in ``security``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from serviceradar_poller.config.addresses import PORT_MAX, AddressError, ListenAddress, parse_address
from serviceradar_poller.config.decode import Findings, Node, decode, describe
from serviceradar_poller.config.document import Document
from serviceradar_poller.config.durations import (
    NS_PER_MINUTE,
    NS_PER_MS,
    NS_PER_S,
    format_duration,
    seconds,
)
from serviceradar_poller.config.model import (
    AGENTS_MAX,
    STATE_DIR_DEFAULT,
    AgentConfig,
    CheckConfig,
    LoggingConfig,
    OtelConfig,
    PollerConfig,
    SecurityConfig,
    TlsConfig,
)
from serviceradar_poller.config.schema import ROOT
from serviceradar_poller.config.sections import (
    build_http,
    build_reporting,
    build_resilience,
    build_scheduling,
    build_transport,
    check_workers,
)
from serviceradar_poller.config.security import build_security
from serviceradar_poller.events.polling import ConfigWarning

POLL_INTERVAL_NS_DEFAULT = 5 * NS_PER_MINUTE
#: A number without a unit counts nanoseconds; an interval of 30 ns would poll without a pause.
POLL_INTERVAL_NS_MIN = 10 * NS_PER_MS
#: Core calls a poller offline after this time without a report, unless it is set up otherwise.
CORE_ALERT_NS = 5 * NS_PER_MINUTE
LEVELS = ("trace", "debug", "info", "warn", "error", "fatal", "panic", "disabled")
_LEVEL_ALIASES = {"warning": "warn"}
OUTPUTS = ("stdout", "stderr")


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedConfig:
    """A usable configuration and what is odd about it."""

    config: PollerConfig
    warnings: tuple[ConfigWarning, ...]


def build_config(document: Document) -> ParsedConfig:
    """
    Return the configuration that *document* holds.

    What is wrong inside one agent stays with that agent (`AgentConfig.problems`).

    Raises:
        ConfigError: Something is wrong outside the agents; holds every problem, those of agents too.
    """
    findings = Findings(document)
    root = decode(document, ROOT, findings)
    if isinstance(document.root, dict):
        _require_keys(root, findings)
    interval_ns = _poll_interval(root, findings)
    agents = _agents(root, findings)
    plain_checks = sum(not check.is_results for agent in agents for check in agent.checks)
    check_workers(root, findings)
    state_dir = root.string("state_dir") if root.has("state_dir") else STATE_DIR_DEFAULT
    reporting = build_reporting(root.node("reporting"), interval_ns, findings, on_disk=bool(state_dir))
    _check_target(root, "core_address", findings)
    _check_listen_addr(root, findings)
    config = PollerConfig(
        agents=agents,
        core_address=root.string("core_address"),
        poller_id=root.string("poller_id"),
        poll_interval_s=seconds(interval_ns),
        partition=root.string("partition", "default"),
        source_ip=root.string("source_ip", "auto"),
        listen_addr=root.string("listen_addr"),
        service_name=root.string("service_name"),
        security=build_security(root, findings),
        logging=_logging(root.node("logging"), findings),
        kv_address=root.string("kv_address"),
        kv_domain=root.string("kv_domain"),
        workers=0,
        transport=build_transport(
            root, findings, addresses=(root.string("core_address"), *(agent.address for agent in agents))
        ),
        state_dir=state_dir,
        scheduling=build_scheduling(root.node("scheduling"), interval_ns, reporting.deadline_s, plain_checks, findings),
        reporting=reporting,
        resilience=build_resilience(root.node("resilience"), findings),
        http=build_http(root.node("http"), findings),
    )
    findings.raise_if_fatal()
    return ParsedConfig(config=config, warnings=tuple(findings.warnings))


def _require_keys(root: Node, findings: Findings) -> None:
    """Report what is missing in the order in which Go checks it."""
    for key, accepted, text in (
        ("core_address", "core's host:port", "core address is required"),
        ("poller_id", "a name, as core knows this poller", "poller id is required"),
    ):
        value = root.string(key)
        if not value.strip() and not root.wrong(key):
            found = describe(value, (key,)) if root.has(key) else "nothing"
            findings.require(key, found=found, accepted=accepted, text=text)
    if not root.named_nodes("agents") and not root.wrong("agents"):
        findings.require(
            "agents",
            found="no agents" if root.has("agents") else "nothing",
            accepted="an object with at least one agent",
            text="agent address is required",
        )
    elif (count := len(root.named_nodes("agents"))) > AGENTS_MAX:
        accepted = f"at most {AGENTS_MAX:,}: a larger site needs a second poller"
        findings.problem(("agents",), found=f"{count:,} agents", accepted=accepted)


def _poll_interval(root: Node, findings: Findings) -> int:
    path = ("poll_interval",)
    ns = root.integer("poll_interval", 0) or POLL_INTERVAL_NS_DEFAULT
    if root.wrong("poll_interval"):
        return ns
    if ns < POLL_INTERVAL_NS_MIN:
        findings.warn(path, f"{format_duration(ns)} is raised to {format_duration(POLL_INTERVAL_NS_MIN)}")
        return POLL_INTERVAL_NS_MIN
    if ns >= CORE_ALERT_NS:
        findings.warn(
            path,
            f"{format_duration(ns)} is not below core's usual alert threshold of {format_duration(CORE_ALERT_NS)}: "
            "core would call this poller offline between reports",
        )
    return ns


def _agents(root: Node, findings: Findings) -> tuple[AgentConfig, ...]:
    # A site's agents are much alike: what is equal is kept once.
    checks: dict[tuple[CheckConfig, ...], tuple[CheckConfig, ...]] = {}
    securities: dict[SecurityConfig | None, SecurityConfig | None] = {}
    return tuple(
        replace(
            agent,
            checks=checks.setdefault(agent.checks, agent.checks),
            security=securities.setdefault(agent.security, agent.security),
        )
        for agent in (_agent(name, node, findings) for name, node in root.named_nodes("agents").items())
    )


def _agent(name: str, node: Node, findings: Findings) -> AgentConfig:
    if not name.strip():
        findings.problem(node.path, found=describe(name, ("agents", name)), accepted="a name, which is the agent's id")
    address = node.string("address")
    address_path = (*node.path, "address")
    if not address.strip() and not node.wrong("address"):
        found = describe(address, address_path) if node.has("address") else "nothing"
        findings.problem(address_path, found=found, accepted="the agent's host:port")
    else:
        _check_target(node, "address", findings)
    checks = tuple(_check(check, findings) for check in node.nodes("checks") if not check.invalid)
    _warn_of_repetitions(node, checks, findings)
    security = build_security(node, findings)
    return AgentConfig(name=name, address=address, checks=checks, security=security, problems=findings.of_agent(name))


def _check(node: Node, findings: Findings) -> CheckConfig:
    for key in ("service_type", "service_name"):
        if not node.string(key):
            findings.warn((*node.path, key), "empty: the agent has nothing to go by")
    port = node.integer("port", 0)
    if not 0 <= port <= PORT_MAX:
        findings.warn((*node.path, "port"), f"{port} is no port; those are 0 to {PORT_MAX}")
    interval_s: float | None = None
    if node.has("results_interval"):
        interval_ns = node.integer("results_interval", 0)
        if interval_ns < 0:
            findings.warn((*node.path, "results_interval"), "negative: means the same as 0s, every cycle")
        interval_s = seconds(max(0, interval_ns))
    return CheckConfig(
        service_type=node.string("service_type"),
        service_name=node.string("service_name"),
        details=node.string("details"),
        port=port,
        results_interval_s=interval_s,
    )


def _warn_of_repetitions(node: Node, checks: tuple[CheckConfig, ...], findings: Findings) -> None:
    seen: set[tuple[str, str]] = set()
    for check in checks:
        key = (check.service_type, check.service_name)
        if key in seen:
            what = describe(f"{check.service_type}:{check.service_name}", ("checks",))
            findings.warn((*node.path, "checks"), f"{what} stands more than once: core can't tell them apart")
        seen.add(key)


def _check_target(node: Node, key: str, findings: Findings) -> None:
    address = node.string(key)
    if address.strip():
        try:
            parse_address(address)
        except AddressError as error:
            path = (*node.path, key)
            findings.problem(path, found=describe(address, path), accepted=error.accepted)


def _check_listen_addr(root: Node, findings: Findings) -> None:
    address = root.string("listen_addr")
    try:
        ListenAddress.parse(address.strip() or ":0")
    except AddressError as error:
        path = ("listen_addr",)
        findings.problem(path, found=describe(address, path), accepted=f'{error.accepted}; ":port", or "" for any port')


def _logging(node: Node, findings: Findings) -> LoggingConfig:
    default = LoggingConfig()
    level = node.string("level", default.level).lower()
    level = _LEVEL_ALIASES.get(level, level)
    if level not in LEVELS:
        path = (*node.path, "level")
        findings.problem(path, found=describe(node.string("level"), path), accepted=", ".join(LEVELS))
    output = node.string("output", default.output).lower()
    if output not in OUTPUTS:
        path = (*node.path, "output")
        text = f"{describe(node.string('output'), path)} is neither stdout nor stderr; stdout is used"
        findings.warn(path, text)
        output = default.output
    return LoggingConfig(
        level=level,
        debug=node.boolean("debug", default=default.debug),
        output=output,
        time_format=node.string("time_format"),
        otel=_otel(node.node("otel")),
    )


def _otel(node: Node) -> OtelConfig:
    default = OtelConfig()
    tls = node.node("tls")
    return OtelConfig(
        enabled=node.boolean("enabled", default=default.enabled),
        endpoint=node.string("endpoint"),
        headers=tuple(node.named_strings("headers").items()),
        service_name=node.string("service_name"),
        batch_timeout_s=seconds(node.integer("batch_timeout", 5 * NS_PER_S)),
        insecure=node.boolean("insecure", default=default.insecure),
        tls=TlsConfig(
            cert_file=tls.string("cert_file"),
            key_file=tls.string("key_file"),
            ca_file=tls.string("ca_file"),
        )
        if node.has("tls")
        else None,
    )
