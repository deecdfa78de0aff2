"""Show a configuration as the file that would give it, and a refusal as lines for the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping

from serviceradar_poller.config.decode import HIDDEN
from serviceradar_poller.config.durations import format_duration, nanoseconds
from serviceradar_poller.config.model import (
    AgentConfig,
    CheckConfig,
    LoggingConfig,
    PollerConfig,
    SecurityConfig,
    TlsConfig,
)
from serviceradar_poller.errors import ConfigError

#: How Go's poller begins the line that tells why it doesn't start; scripts look for it.
FATAL_PREFIX = "failed to load config: "


def effective(config: PollerConfig, *, hide_secrets: bool = True) -> dict[str, object]:
    """
    Return *config* in the shape of the file, every default filled in.

    Reading it back gives an equal `PollerConfig` when no agent has problems and no secret was hidden.
    """
    reporting, resilience, scheduling = config.reporting, config.resilience, config.scheduling
    return {
        "agents": {agent.name: _agent(agent) for agent in config.agents},
        "core_address": config.core_address,
        "poller_id": config.poller_id,
        "poll_interval": _duration(config.poll_interval_s),
        "partition": config.partition,
        "source_ip": config.source_ip,
        "listen_addr": config.listen_addr,
        "service_name": config.service_name,
        "security": _security(config.security),
        "logging": _logging(config.logging, hide_secrets=hide_secrets),
        "kv_address": config.kv_address,
        "kv_domain": config.kv_domain,
        "workers": config.workers,
        "transport": config.transport.value,
        "state_dir": config.state_dir,
        "scheduling": {
            "spread_window": _duration(scheduling.spread_window_s),
            "check_timeout": _duration(scheduling.check_timeout_s),
            "connects_per_s": scheduling.connects_per_s,
        },
        "reporting": {
            "mode": reporting.mode.value,
            "deadline": _duration(reporting.deadline_s),
            "early_interval": _duration(reporting.early_interval_s),
            "batch_size": reporting.batch_size,
            "batch_interval": _duration(reporting.batch_interval_s),
            "call_timeout": _duration(reporting.call_timeout_s),
            "queue_bytes": reporting.queue_bytes_max,
            "queue_reports": reporting.queue_reports_max,
        },
        "resilience": {
            "breaker": {
                "failures": resilience.breaker_failures,
                "security_failures": resilience.breaker_security_failures,
                "window": _duration(resilience.breaker_window_s),
                "open": _duration(resilience.breaker_open_s),
            },
            "retry": {
                "attempts": resilience.retry_attempts,
                "delay": _duration(resilience.retry_delay_s),
                "budget_ratio": resilience.retry_budget_ratio,
            },
            "reconnect": {
                "min": _duration(resilience.reconnect_min_s),
                "max": _duration(resilience.reconnect_max_s),
            },
            "quarantine": {
                "min": _duration(resilience.quarantine_min_s),
                "max": _duration(resilience.quarantine_max_s),
            },
            "shutdown_timeout": _duration(resilience.shutdown_timeout_s),
        },
        "http": {"listen_addr": config.http.listen_addr, "control": config.http.control},
    }


def render_effective(config: PollerConfig, *, hide_secrets: bool = True) -> str:
    """Return `effective` as indented JSON, without a newline at the end."""
    return json.dumps(effective(config, hide_secrets=hide_secrets), indent=2, ensure_ascii=False)


def render_fatal(error: ConfigError) -> str:
    """Return one line for each problem, each with the beginning that scripts look for."""
    return "\n".join(FATAL_PREFIX + one_line(str(problem)) for problem in error.problems)


def one_line(text: str) -> str:
    """Return *text* with everything escaped that would break a line, a terminal or an encoder."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def _agent(agent: AgentConfig) -> dict[str, object]:
    return {
        "address": agent.address,
        "security": _security(agent.security),
        "checks": [_check(check) for check in agent.checks],
    }


def _check(check: CheckConfig) -> dict[str, object]:
    shown: dict[str, object] = {
        "service_type": check.service_type,
        "service_name": check.service_name,
        "details": check.details,
        "port": check.port,
    }
    if check.results_interval_s is not None:
        shown["results_interval"] = _duration(check.results_interval_s)
    return shown


def _security(security: SecurityConfig | None) -> dict[str, object] | None:
    if security is None:
        return None
    return {
        "mode": security.mode.value,
        "cert_dir": security.cert_dir,
        "server_name": security.server_name,
        "role": security.role,
        "tls": {key: _in(security.cert_dir, path) for key, path in _tls(security.tls).items()},
        "trust_domain": security.trust_domain,
        "server_spiffe_id": security.server_spiffe_id,
        "workload_socket": security.workload_socket,
    }


def _tls(tls: TlsConfig) -> dict[str, str]:
    return {
        "cert_file": tls.cert_file,
        "key_file": tls.key_file,
        "ca_file": tls.ca_file,
        "client_ca_file": tls.client_ca_file,
    }


def _in(cert_dir: str, path: str) -> str:
    """Take a relative directory off again, which reading would put before a relative path once more."""
    if path.startswith("/") or not cert_dir:
        return path
    return path.removeprefix(cert_dir if cert_dir.endswith("/") else f"{cert_dir}/")


def _logging(logging: LoggingConfig, *, hide_secrets: bool) -> dict[str, object]:
    otel = logging.otel
    tls: Mapping[str, str] | None = None
    if otel.tls is not None:
        tls = {key: path for key, path in _tls(otel.tls).items() if key != "client_ca_file"}
    return {
        "level": logging.level,
        "debug": logging.debug,
        "output": logging.output,
        "time_format": logging.time_format,
        "otel": {
            "enabled": otel.enabled,
            "endpoint": otel.endpoint,
            "headers": {name: HIDDEN if hide_secrets else value for name, value in otel.headers},
            "service_name": otel.service_name,
            "batch_timeout": _duration(otel.batch_timeout_s),
            "insecure": otel.insecure,
            "tls": tls,
        },
    }


def _duration(value_s: float) -> str:
    return format_duration(nanoseconds(value_s))
