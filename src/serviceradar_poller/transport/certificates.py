"""
Judge the certificate files of a security block before they are used: PEM, dates, match, chain, usage.

A poller that runs never imports this: the library that it stands on takes 8 to 10 MiB, for something that happens at
the start and at a rotation. It is for short-lived commands and for the process that `transport.examiner` starts.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from serviceradar_poller.config.model import SecurityConfig, SecurityMode
from serviceradar_poller.transport.material import (
    EXPIRY_WARNING_S,
    Examined,
    Finding,
    Identity,
    Inspection,
    Material,
    date_text,
    inspection,
    judge_permissions,
    read_pem,
    require_mtls,
)

#: What reading a certificate raises where it is odd: it is parsed when it is asked for.
_UNREADABLE = (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)


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
    return inspection(examine(security, now=now), path=path, source=source)


def examine(security: SecurityConfig, *, now: float) -> Examined:
    """
    Read and judge the files of an mtls block.

    Returns:
        No material when anything is fatal; no identity without a readable certificate.
    """
    findings: list[Finding] = []
    files = security.tls
    client_ca_file = files.client_ca_file or files.ca_file
    chain_pem = read_pem("tls.cert_file", files.cert_file, findings)
    key_pem = read_pem("tls.key_file", files.key_file, findings)
    roots_pem = read_pem("tls.ca_file", files.ca_file, findings)
    client_roots_pem = roots_pem
    if client_ca_file != files.ca_file:
        client_roots_pem = read_pem("tls.client_ca_file", client_ca_file, findings)
    if key_pem is not None:
        judge_permissions(files.key_file, findings)

    chain = _certificates("tls.cert_file", files.cert_file, chain_pem, findings)
    roots = _certificates("tls.ca_file", files.ca_file, roots_pem, findings)
    if client_ca_file != files.ca_file:
        _certificates("tls.client_ca_file", client_ca_file, client_roots_pem, findings)
    if chain and not _is_readable(files.cert_file, chain[0], findings):
        chain = []
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
        return Examined(None, identity, tuple(findings))
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
    return Examined(material, identity, tuple(findings))


def load_material(security: SecurityConfig, *, now: float) -> Material:
    """
    Read the files of an mtls block, in this process; *now* in unix seconds.

    Raises:
        CallError: layer CONFIG, reason ``credentials``; the detail names each bad file and what is wrong.
    """
    require_mtls(security)
    examined = examine(security, now=now)
    if examined.material is None:
        raise examined.refusal()
    return examined.material


def identify(certificate: x509.Certificate) -> Identity:
    """Tell who a certificate speaks for."""
    names: list[str] = []
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, *_UNREADABLE):
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


def _certificates(field: str, file: str, pem: bytes | None, findings: list[Finding]) -> list[x509.Certificate]:
    if pem is None:
        return []
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        findings.append(Finding(field=field, file=file, found="no readable certificate", accepted="PEM certificates"))
        return []


def _is_readable(file: str, certificate: x509.Certificate, findings: list[Finding]) -> bool:
    """Tell whether all of a certificate can be read; else add a finding."""
    try:
        certificate.public_key()
        certificate.subject.rfc4514_string()
        certificate.issuer.rfc4514_string()
        len(certificate.extensions)
    except _UNREADABLE as error:
        findings.append(
            Finding(field="tls.cert_file", file=file, found=f"no readable certificate: {error}", accepted="X.509 v3")
        )
        return False
    return True


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
