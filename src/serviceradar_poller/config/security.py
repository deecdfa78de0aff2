"""
The rules of a security block, core's or an agent's: mode, role, where the files are.

Shape and paths only; whether the files exist and fit is for whoever opens them.
"""

from __future__ import annotations

from serviceradar_poller.config.addresses import AddressError, certificate_name
from serviceradar_poller.config.decode import FOUND_CHARS_MAX, Findings, Node, describe, shorten
from serviceradar_poller.config.model import SecurityConfig, SecurityMode, TlsConfig

ROLES = ("poller", "agent", "core", "kv", "datasvc")
ACCEPTED_MODES = "none, mtls"
_MTLS_FILES = ("cert_file", "key_file", "ca_file")


def build_security(owner: Node, findings: Findings) -> SecurityConfig | None:
    """
    Return the security block of *owner* (the root or an agent), None when it has none.

    A block with a problem never becomes one in plain text: its mode is mtls then, which fails without its files.
    """
    if owner.wrong("security"):
        return SecurityConfig(mode=SecurityMode.MTLS)
    if not owner.has("security"):
        return None
    block = owner.node("security")
    mode = _mode(block, findings)
    cert_dir = block.string("cert_dir")
    tls = _tls(block.node("tls"), cert_dir)
    if mode is SecurityMode.MTLS and not block.wrong("tls"):
        _require_files(block.node("tls"), findings)
    trust_domain = block.string("trust_domain")
    default = SecurityConfig()
    return SecurityConfig(
        mode=SecurityMode.MTLS if mode is None else mode,
        cert_dir=cert_dir,
        server_name=_server_name(block, findings),
        role=_role(block, findings),
        tls=tls,
        trust_domain=trust_domain,
        server_spiffe_id=_spiffe_id(block.string("server_spiffe_id"), trust_domain),
        workload_socket=block.string("workload_socket", default.workload_socket),
    )


def join_file(cert_dir: str, name: str) -> str:
    """Return where the file *name* is: as given when absolute, else in *cert_dir* if there is one."""
    if not name or not cert_dir or name.startswith("/"):
        return name
    return f"{cert_dir}{'' if cert_dir.endswith('/') else '/'}{name}"


def _mode(block: Node, findings: Findings) -> SecurityMode | None:
    if block.wrong("mode"):
        return None
    path = (*block.path, "mode")
    text = block.string("mode")
    match text.lower():
        case "":
            findings.warn(path, "not set, so the connection is not secured; write none if that is meant")
            return SecurityMode.NONE
        case "none":
            return SecurityMode.NONE
        case "mtls":
            return SecurityMode.MTLS
        case "spiffe":
            findings.problem(
                path,
                found=describe(text, path),
                accepted=ACCEPTED_MODES,
                text="spiffe is not available in this version",
            )
            return SecurityMode.SPIFFE
        case _:
            findings.problem(
                path,
                found=describe(text, path),
                accepted=ACCEPTED_MODES,
                text=f"unknown security mode: {shorten(text, FOUND_CHARS_MAX)}",
            )
            return None


def _server_name(block: Node, findings: Findings) -> str:
    name = block.string("server_name")
    try:
        return certificate_name(name) if name else ""
    except AddressError as error:
        path = (*block.path, "server_name")
        findings.problem(path, found=describe(name, path), accepted=error.accepted)
        return name


def _role(block: Node, findings: Findings) -> str:
    role = block.string("role", "poller")
    if role not in ROLES:
        path = (*block.path, "role")
        findings.problem(path, found=describe(role, path), accepted=", ".join(ROLES))
    return role


def _tls(node: Node, cert_dir: str) -> TlsConfig:
    ca_file = join_file(cert_dir, node.string("ca_file"))
    return TlsConfig(
        cert_file=join_file(cert_dir, node.string("cert_file")),
        key_file=join_file(cert_dir, node.string("key_file")),
        ca_file=ca_file,
        client_ca_file=join_file(cert_dir, node.string("client_ca_file")) or ca_file,
    )


def _require_files(node: Node, findings: Findings) -> None:
    for key in _MTLS_FILES:
        if not node.wrong(key) and not node.string(key):
            findings.problem((*node.path, key), found="nothing", accepted="the path of a PEM file, as the mode is mtls")


def _spiffe_id(text: str, trust_domain: str) -> str:
    if not text or "://" in text or not trust_domain:
        return text
    return f"spiffe://{trust_domain}/{text.removeprefix('/')}"
