"""Write a poller's configuration for simulated peers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

#: What every agent is asked when nothing else is said: two cheap checks.
CHECKS_DEFAULT: tuple[Mapping[str, object], ...] = (
    {"service_type": "icmp", "service_name": "ping", "details": "192.0.2.1"},
    {"service_type": "process", "service_name": "agent-unit", "details": "serviceradar-agent"},
)


def make_config(
    path: Path | str | None,
    *,
    agents: Mapping[str, int],
    core_address: str,
    checks: Sequence[Mapping[str, object]] = CHECKS_DEFAULT,
    poll_interval: str = "10s",
    poller_id: str = "lab-poller",
    partition: str = "default",
    source_ip: str = "192.0.2.10",
    cert_dir: Path | str | None = None,
    state_dir: Path | str = "",
    extra: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """
    Return a configuration that polls *agents* and reports to *core_address*; write it as JSON to *path*, if given.

    Args:
        agents: Port by agent id, as ``LabAgents.port_of``.
        checks: Of every agent, as they stand in a configuration file.
        poll_interval: A duration such as ``500ms``.
        cert_dir: A directory of make_pki(): mutual TLS to agents and core; None: plaintext.
        state_dir: Where reports survive a restart; empty: nowhere.
        extra: Further top-level keys; they replace those made here.
    """
    config: dict[str, object] = {
        "agents": {
            name: {
                "address": f"127.0.0.1:{port}",
                "security": _security(cert_dir, "agent"),
                "checks": [dict(check) for check in checks],
            }
            for name, port in agents.items()
        },
        "core_address": core_address,
        "listen_addr": "127.0.0.1:0",
        "poll_interval": poll_interval,
        "poller_id": poller_id,
        "partition": partition,
        "source_ip": source_ip,
        "service_name": "PollerService",
        "security": _security(cert_dir, "core"),
        "state_dir": str(state_dir),
        "logging": {"level": "info", "output": "stdout"},
        "http": {"listen_addr": "127.0.0.1:0"},
        **(extra or {}),
    }
    if path is not None:
        target = Path(path)
        partial = target.with_name(f".{target.name}.new")
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(config), indent=1))
        partial.replace(target)  # a poller that watches the file never sees half of it
    return config


def _security(cert_dir: Path | str | None, server: str) -> dict[str, object] | None:
    if cert_dir is None:
        return None
    return {
        "mode": "mtls",
        "cert_dir": str(cert_dir),
        "server_name": f"{server}.serviceradar",
        "role": "poller",
        "tls": {
            "cert_file": "poller.pem",
            "key_file": "poller-key.pem",
            "ca_file": "root.pem",
            "client_ca_file": "root.pem",
        },
    }
