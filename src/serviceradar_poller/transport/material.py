"""What the files of a security block hold and what there is to say of it: the values, and reading the files."""

from __future__ import annotations

import datetime
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from serviceradar_poller.config.model import SecurityConfig, SecurityMode
from serviceradar_poller.errors import CallError, ConfigProblem
from serviceradar_poller.events.polling import ConfigWarning
from serviceradar_poller.transport.failures import unusable_credentials

#: A certificate that ends sooner than this is worth a warning.
EXPIRY_WARNING_S: Final = 14 * 86_400.0
#: More than any certificate bundle in use; keeps a wrong path (a device, a log) from being read whole.
PEM_FILE_BYTES_MAX: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """
    One thing about the files of a security block.

    Attributes:
        field: Path below the block, such as ``tls.cert_file``.
        file: The file that it is about.
        fatal: Whether a connection can't be made with it.
    """

    field: str
    file: str
    found: str
    accepted: str
    fatal: bool = True

    def __str__(self) -> str:
        return f"{self.file or self.field}: {self.found}; accepted: {self.accepted}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """
    Who a certificate says its holder is.

    Attributes:
        subject, issuer: RFC 4514 text.
        names: Subject alternative names, ``DNS:…``, ``IP:…``, ``URI:…``.
        not_before_s, not_after_s: Unix seconds.
    """

    subject: str
    issuer: str
    names: tuple[str, ...]
    not_before_s: float
    not_after_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """
    What the files hold.

    Attributes:
        roots, client_roots, key, chain: PEM; the chain begins with our own certificate.
        valid_until_s: When the first of our certificate and the last of the roots ends, unix seconds.
    """

    roots: bytes
    client_roots: bytes
    key: bytes
    chain: bytes
    identity: Identity
    valid_until_s: float

    def __repr__(self) -> str:
        return f"Material({self.identity.subject})"  # the key never reaches a log


class Examined(NamedTuple):
    """What the files of one mtls block came to: material, None when anything is fatal; who we are; every finding."""

    material: Material | None
    identity: Identity | None
    findings: tuple[Finding, ...]

    def refusal(self) -> CallError:
        """Return why it can't be used: layer CONFIG, reason ``credentials``; it names each bad file."""
        return unusable_credentials("; ".join(str(f) for f in self.findings if f.fatal))


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """
    What there is to say about a security block; ``identity`` is None where no certificate could be read.

    Attributes:
        problems: Nothing can connect until they are solved.
        warnings: It works today.
    """

    problems: tuple[ConfigProblem, ...] = ()
    warnings: tuple[ConfigWarning, ...] = ()
    identity: Identity | None = None


def inspection(examined: Examined, *, path: str, source: str) -> Inspection:
    """
    Say what was found of a security block in words of the configuration.

    Args:
        path: JSON path of the block, such as ``agents.edge-01.security``.
        source: The file or variable that holds the configuration.
    """
    return Inspection(
        problems=tuple(
            ConfigProblem(
                source=source,
                path=f"{path}.{f.field}",
                found=f"{f.file}: {f.found}" if f.file else f.found,
                accepted=f.accepted,
            )
            for f in examined.findings
            if f.fatal
        ),
        warnings=tuple(
            ConfigWarning(source=source, path=f"{path}.{f.field}", text=str(f))
            for f in examined.findings
            if not f.fatal
        ),
        identity=examined.identity,
    )


def require_mtls(security: SecurityConfig) -> None:
    """Raise CallError for a mode that this version can't do: nothing ever falls back to plaintext."""
    if security.mode is not SecurityMode.MTLS:
        raise unusable_credentials(f"security mode {security.mode.value} is not supported by this version")


def date_text(unix_s: float) -> str:
    """Write a certificate's date for an operator."""
    return datetime.datetime.fromtimestamp(unix_s, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def read_pem(field: str, file: str, findings: list[Finding]) -> bytes | None:
    """Return what a file holds, None with a finding where it can't be read."""
    accepted = "a readable PEM file"
    if not file:
        findings.append(Finding(field=field, file="", found="nothing", accepted=accepted))
        return None
    try:
        if not stat.S_ISREG(Path(file).stat().st_mode):
            findings.append(Finding(field=field, file=file, found="not a file", accepted=accepted))
            return None
        with Path(file).open("rb") as stream:
            data = stream.read(PEM_FILE_BYTES_MAX + 1)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        cause = (error.strerror if isinstance(error, OSError) else None) or str(error)
        findings.append(Finding(field=field, file=file, found=cause, accepted=accepted))
        return None
    if len(data) > PEM_FILE_BYTES_MAX:
        findings.append(
            Finding(field=field, file=file, found=f"more than {PEM_FILE_BYTES_MAX} bytes", accepted=accepted)
        )
        return None
    return data


def judge_permissions(file: str, findings: list[Finding]) -> None:
    """Add a finding where others may read a key."""
    try:
        mode = stat.S_IMODE(Path(file).stat().st_mode)
    except OSError as error:  # it went away since it was read
        findings.append(
            Finding(field="tls.key_file", file=file, found=str(error.strerror), accepted="a readable PEM file")
        )
        return
    if mode & 0o077:
        findings.append(
            Finding(
                field="tls.key_file",
                file=file,
                found=f"mode {mode:04o}, readable by others",
                accepted="mode 0600",
                fatal=False,
            )
        )
