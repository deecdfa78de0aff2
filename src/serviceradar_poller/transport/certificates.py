"""Judge the certificate files of a security block before they are used: PEM, dates, match, chain, usage."""

from __future__ import annotations

import datetime
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from serviceradar_poller.config.model import SecurityConfig, SecurityMode
from serviceradar_poller.errors import ConfigProblem
from serviceradar_poller.events.polling import ConfigWarning

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


def inspect(security: SecurityConfig, *, now: float, path: str, source: str) -> Inspection:
    """
    Judge a security block, everything at once; reads files.

    Args:
        now: Unix seconds.
        path: JSON path of the block, such as ``agents.edge-01.security``.
        source: The file or variable that holds the configuration.
    """
    if security.mode is not SecurityMode.MTLS:
        return Inspection()
    _, identity, findings = examine(security, now=now)
    return Inspection(
        problems=tuple(
            ConfigProblem(
                source=source,
                path=f"{path}.{f.field}",
                found=f"{f.file}: {f.found}" if f.file else f.found,
                accepted=f.accepted,
            )
            for f in findings
            if f.fatal
        ),
        warnings=tuple(
            ConfigWarning(source=source, path=f"{path}.{f.field}", text=str(f)) for f in findings if not f.fatal
        ),
        identity=identity,
    )


def examine(security: SecurityConfig, *, now: float) -> tuple[Material | None, Identity | None, tuple[Finding, ...]]:
    """
    Read and judge the files of an mtls block.

    Returns:
        The material, None when anything is fatal; who we are, None without a readable certificate; findings.
    """
    findings: list[Finding] = []
    files = security.tls
    client_ca_file = files.client_ca_file or files.ca_file
    chain_pem = _read("tls.cert_file", files.cert_file, findings)
    key_pem = _read("tls.key_file", files.key_file, findings)
    roots_pem = _read("tls.ca_file", files.ca_file, findings)
    client_roots_pem = roots_pem
    if client_ca_file != files.ca_file:
        client_roots_pem = _read("tls.client_ca_file", client_ca_file, findings)
    if key_pem is not None:
        _judge_permissions(files.key_file, findings)

    chain = _certificates("tls.cert_file", files.cert_file, chain_pem, findings)
    roots = _certificates("tls.ca_file", files.ca_file, roots_pem, findings)
    if client_ca_file != files.ca_file:
        _certificates("tls.client_ca_file", client_ca_file, client_roots_pem, findings)
    identity = identify(chain[0]) if chain else None
    if chain:
        _judge_dates("tls.cert_file", files.cert_file, chain[0], now, findings)
        _judge_usage(files.cert_file, chain[0], findings)
    if roots:
        _judge_roots(files.ca_file, roots, now, findings)
    if chain and roots and not _chains_to(chain, roots):
        findings.append(
            Finding(
                field="tls.cert_file",
                file=files.cert_file,
                found=f"issued by {chain[0].issuer.rfc4514_string()}, which is not in {files.ca_file}",
                accepted="a certificate of the same CA, unless peers trust another one",
                fatal=False,
            )
        )
    if key_pem is not None:
        _judge_key(files.key_file, key_pem, chain, findings)

    if any(f.fatal for f in findings) or identity is None:
        return None, identity, tuple(findings)
    assert chain_pem is not None
    assert key_pem is not None
    assert roots_pem is not None
    assert client_roots_pem is not None
    material = Material(
        roots=roots_pem,
        client_roots=client_roots_pem,
        key=key_pem,
        chain=chain_pem,
        identity=identity,
        valid_until_s=min(identity.not_after_s, max(root.not_valid_after_utc.timestamp() for root in roots)),
    )
    return material, identity, tuple(findings)


def identify(certificate: x509.Certificate) -> Identity:
    """Tell who a certificate speaks for."""
    names: list[str] = []
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        extension = None
    for name in extension or ():
        match name:
            case x509.DNSName():
                names.append(f"DNS:{name.value}")
            case x509.IPAddress():
                names.append(f"IP:{name.value}")
            case x509.UniformResourceIdentifier():
                names.append(f"URI:{name.value}")
            case _:
                names.append(type(name).__name__)
    return Identity(
        subject=certificate.subject.rfc4514_string(),
        issuer=certificate.issuer.rfc4514_string(),
        names=tuple(names),
        not_before_s=certificate.not_valid_before_utc.timestamp(),
        not_after_s=certificate.not_valid_after_utc.timestamp(),
    )


def date_text(unix_s: float) -> str:
    """Write a certificate's date for an operator."""
    return datetime.datetime.fromtimestamp(unix_s, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def _read(field: str, file: str, findings: list[Finding]) -> bytes | None:
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


def _certificates(field: str, file: str, pem: bytes | None, findings: list[Finding]) -> list[x509.Certificate]:
    if pem is None:
        return []
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        findings.append(Finding(field=field, file=file, found="no readable certificate", accepted="PEM certificates"))
        return []


def _judge_permissions(file: str, findings: list[Finding]) -> None:
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


def _judge_dates(field: str, file: str, certificate: x509.Certificate, now: float, findings: list[Finding]) -> None:
    starts, ends = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    if now < starts:
        findings.append(
            Finding(
                field=field,
                file=file,
                found=f"not valid before {date_text(starts)}",
                accepted="a certificate that is valid now; is the clock right?",
            )
        )
    elif now >= ends:
        findings.append(
            Finding(
                field=field,
                file=file,
                found=f"expired at {date_text(ends)}",
                accepted="a certificate that is valid now",
            )
        )
    elif ends - now < EXPIRY_WARNING_S:
        findings.append(
            Finding(
                field=field,
                file=file,
                found=f"expires at {date_text(ends)}, in {(ends - now) / 86_400:.1f} days",
                accepted="a new certificate before that",
                fatal=False,
            )
        )


def _judge_roots(file: str, roots: list[x509.Certificate], now: float, findings: list[Finding]) -> None:
    """Judge the one root that ends last: a bundle may keep old ones."""
    last = max(roots, key=lambda root: root.not_valid_after_utc)
    _judge_dates("tls.ca_file", file, last, now, findings)


def _judge_usage(file: str, certificate: x509.Certificate, findings: list[Finding]) -> None:
    try:
        extended = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        extended = None
    except ValueError as error:
        findings.append(Finding(field="tls.cert_file", file=file, found=f"bad extension: {error}", accepted="X.509 v3"))
        return
    allowed = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE)
    if extended is not None and not any(usage in extended for usage in allowed):
        findings.append(
            Finding(
                field="tls.cert_file",
                file=file,
                found="extended key usage without clientAuth",
                accepted="a certificate that clients may use (clientAuth)",
            )
        )
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return
    if not usage.digital_signature:
        findings.append(
            Finding(
                field="tls.cert_file",
                file=file,
                found="key usage without digitalSignature",
                accepted="digitalSignature, which TLS 1.3 needs",
                fatal=False,
            )
        )


def _judge_key(file: str, pem: bytes, chain: list[x509.Certificate], findings: list[Finding]) -> None:
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError:
        findings.append(
            Finding(field="tls.key_file", file=file, found="an encrypted key", accepted="a key without password")
        )
        return
    except (ValueError, UnsupportedAlgorithm):
        findings.append(Finding(field="tls.key_file", file=file, found="no readable private key", accepted="a PEM key"))
        return
    if not chain:
        return
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*spki) != chain[0].public_key().public_bytes(*spki):
        names = chain[0].subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        found = f"not the key of the certificate {names[0].value if names else chain[0].subject!s}"
        findings.append(
            Finding(field="tls.key_file", file=file, found=str(found), accepted="the certificate's own key")
        )


def _chains_to(chain: list[x509.Certificate], roots: list[x509.Certificate]) -> bool:
    """
    Follow issuers from the first certificate to a root, through the rest of its file.

    Only names and signatures count: the profile rules of public web PKI refuse private CAs that TLS accepts.
    """
    current = chain[0]
    pending = chain[1:]
    while True:
        if any(current == root or _issued(current, root) for root in roots):
            return True
        issuer = next((candidate for candidate in pending if _issued(current, candidate)), None)
        if issuer is None:
            return False
        pending = [candidate for candidate in pending if candidate is not issuer]
        current = issuer


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True
