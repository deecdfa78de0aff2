"""
Make a development PKI: a root, one certificate per role, and, for tests, certificates with one flaw each.

Not for production: the root's key lies beside the certificates, unencrypted.
"""

from __future__ import annotations

import contextlib
import enum
import ipaddress
import os
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from serviceradar_poller.errors import PollerError

#: The parties of a deployment; each gets ``<role>.pem`` and ``<role>-key.pem``.
ROLES = ("agent", "core", "poller")
TRUST_DOMAIN = "demo.serviceradar"
#: A clock that is a little behind must still accept a new certificate.
BACKDATE = timedelta(minutes=5)
#: The root outlives its leaves, so that they can be issued anew.
ROOT_DAYS_MIN = 3650

_ORGANISATION = "ServiceRadar development"


class PkiError(PollerError):
    """The PKI can't be made: a file is in the way, or the root is missing."""


class Flaw(enum.StrEnum):
    """What is wrong with a certificate that a test asks for."""

    NONE = "none"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    OTHER_CA = "other_ca"  # signed by a root of the same name that nobody trusts
    WRONG_NAMES = "wrong_names"  # valid, and for another host and identity
    KEY_MISMATCH = "key_mismatch"  # the key file belongs to another certificate
    NO_CLIENT_AUTH = "no_client_auth"  # extended key usage: server only


def spiffe_id(role: str) -> str:
    """Return the SPIFFE id that a role's certificate carries."""
    return f"spiffe://{TRUST_DOMAIN}/ns/default/sa/{role}"


def make_pki(
    directory: Path | str,
    *,
    names: Sequence[str] = (),
    days: int = 365,
    roles: Sequence[str] = ROLES,
    overwrite: bool = False,
    now: datetime | None = None,
) -> None:
    """
    Write a root and one certificate per role into *directory*, which is created when missing.

    Files: root.pem, root-key.pem, and <role>.pem, <role>-key.pem; directory mode 700, keys 600.
    Keys are EC P-256. A leaf is good for server and client, and names localhost, <role>.serviceradar,
    127.0.0.1, ::1, its SPIFFE id, and *names*.

    Args:
        names: Further host names and IP addresses for every leaf.
        days: How long the leaves are valid.
        overwrite: Replace what is there; otherwise nothing is written when any file exists.
        now: Issue as if at this time; default: now.
    Raises:
        PkiError: A file exists, or can't be written.
    """
    folder = Path(directory)
    stems = ["root", *roles]
    paths = [folder / name for stem in stems for name in (f"{stem}.pem", f"{stem}-key.pem")]
    existing = [path.name for path in paths if path.exists()]
    if existing and not overwrite:
        raise PkiError(f"{folder} already holds {', '.join(existing)}; ask to overwrite, or name another directory")
    issued = now or datetime.now(UTC)
    key, root = _make_root(issued, days)
    files: list[tuple[Path, bytes, int]] = []
    for role in roles:
        leaf_key, leaf = _make_leaf(key, root, role=role, names=names, not_before=issued, days=days)
        files += _pair(folder, role, leaf_key, leaf)
    files += _pair(folder, "root", key, root)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        for path, data, mode in files:
            _write(path, data, mode, overwrite=overwrite)
    except OSError as error:
        raise PkiError(f"can't write the PKI to {folder}: {error}") from error


def make_leaf(
    directory: Path | str,
    stem: str,
    *,
    role: str,
    names: Sequence[str] = (),
    days: int = 365,
    flaw: Flaw = Flaw.NONE,
    overwrite: bool = False,
    now: datetime | None = None,
) -> None:
    """
    Issue one more certificate from the root in *directory*, as <stem>.pem and <stem>-key.pem.

    With ``overwrite`` it rotates an existing one; with a *flaw* it makes what a peer has to refuse.

    Raises:
        PkiError: The root is missing or unreadable, or a file exists.
    """
    folder = Path(directory)
    issued = now or datetime.now(UTC)
    key, root = _load_root(folder) if flaw is not Flaw.OTHER_CA else _make_root(issued, days)
    begin = issued
    if flaw is Flaw.EXPIRED:
        begin = issued - timedelta(days=days + 1)
    elif flaw is Flaw.NOT_YET_VALID:
        begin = issued + timedelta(days=1)
    leaf_key, leaf = _make_leaf(
        key,
        root,
        role="stranger" if flaw is Flaw.WRONG_NAMES else role,
        names=names,
        not_before=begin,
        days=days,
        local=flaw is not Flaw.WRONG_NAMES,
        client_auth=flaw is not Flaw.NO_CLIENT_AUTH,
    )
    if flaw is Flaw.KEY_MISMATCH:
        leaf_key = ec.generate_private_key(ec.SECP256R1())
    try:
        for path, data, mode in _pair(folder, stem, leaf_key, leaf):
            _write(path, data, mode, overwrite=overwrite)
    except FileExistsError as error:
        raise PkiError(f"{error.filename2 or error.filename} exists; ask to overwrite it") from error
    except OSError as error:
        raise PkiError(f"can't write {stem} to {folder}: {error}") from error


def _make_root(now: datetime, days: int) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("root")
    key_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + timedelta(days=max(days, ROOT_DAYS_MIN)))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(key_id, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_id), critical=False)
    )
    return key, builder.sign(key, hashes.SHA256())


def _make_leaf(
    root_key: ec.EllipticCurvePrivateKey,
    root: x509.Certificate,
    *,
    role: str,
    names: Sequence[str],
    not_before: datetime,
    days: int,
    local: bool = True,
    client_auth: bool = True,
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    hosts = [*(["localhost"] if local else []), f"{role}.serviceradar"]
    hosts += [*(["127.0.0.1", "::1"] if local else []), *names]
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, *([ExtendedKeyUsageOID.CLIENT_AUTH] if client_auth else [])]
    root_id = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(f"{role}.serviceradar"))
        .issuer_name(root.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before - BACKDATE)
        .not_valid_after(not_before + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([*map(_general_name, hosts), x509.UniformResourceIdentifier(spiffe_id(role))]),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(root_id), critical=False)
    )
    return key, builder.sign(root_key, hashes.SHA256())


def _load_root(folder: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    try:
        key = serialization.load_pem_private_key((folder / "root-key.pem").read_bytes(), password=None)
        root = x509.load_pem_x509_certificate((folder / "root.pem").read_bytes())
    except (OSError, ValueError) as error:
        raise PkiError(f"no usable root in {folder}: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise PkiError(f"{folder / 'root-key.pem'} is not an EC key")
    return key, root


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, _ORGANISATION),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise PkiError(
            f"{host!r} can't be a name in a certificate; accepted: a host name in ASCII, or an IP"
        ) from error


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _pair(
    folder: Path, stem: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate
) -> list[tuple[Path, bytes, int]]:
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    certificate_pem = certificate.public_bytes(serialization.Encoding.PEM)
    # The key first: a reader that sees the new certificate finds its key.
    return [(folder / f"{stem}-key.pem", key_pem, 0o600), (folder / f"{stem}.pem", certificate_pem, 0o644)]


def _write(path: Path, data: bytes, mode: int, *, overwrite: bool) -> None:
    """Put a whole file in place at once; without *overwrite*, a file that appeared meanwhile stays."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            Path(name).replace(path)
        else:
            path.hardlink_to(name)
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
