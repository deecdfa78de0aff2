from __future__ import annotations

import datetime
import os
import shutil
import ssl
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from serviceradar_poller.config.model import SecurityConfig, SecurityMode, TlsConfig
from serviceradar_poller.lab.pki import make_leaf, make_pki
from serviceradar_poller.transport.certificates import examine, inspect
from serviceradar_poller.transport.material import Inspection

Block = Callable[..., SecurityConfig]
NOW = datetime.datetime.now(datetime.UTC).timestamp() + 3600  # certificates are made when the first test runs
DAY_S = 86_400.0
END = "-----END CERTIFICATE-----\n"


def look(security: SecurityConfig, now: float = NOW) -> Inspection:
    return inspect(security, now=now, path="agents.edge-01.security", source="poller.json")


def test_good(block: Block) -> None:
    """Files in order give no finding, and tell who we are."""
    seen = look(block())
    assert (seen.problems, seen.warnings) == ((), ())
    assert seen.identity is not None
    assert "poller.serviceradar" in seen.identity.subject
    assert {"DNS:localhost", "IP:127.0.0.1", "IP:::1"} < set(seen.identity.names)
    assert any(name.startswith("URI:spiffe://") for name in seen.identity.names)
    assert seen.identity.not_before_s < NOW < seen.identity.not_after_s


@pytest.mark.parametrize("mode", [SecurityMode.NONE, SecurityMode.SPIFFE])
def test_other_modes_have_no_files(mode: SecurityMode) -> None:
    """Only mtls blocks are about files."""
    assert look(SecurityConfig(mode=mode)) == Inspection()


@pytest.mark.parametrize(
    ("leaf", "field", "words"),
    [
        ("expired", "cert_file", "expired at"),
        ("not_yet_valid", "cert_file", "not valid before"),
        ("key_mismatch", "key_file", "not the key of the certificate"),
        ("no_client_auth", "cert_file", "clientAuth"),
        ("missing", "cert_file", "No such file"),
    ],
)
def test_problems(block: Block, leaf: str, field: str, words: str) -> None:
    """Each flaw is a problem that names its JSON path, the file and what is wrong."""
    seen = look(block(leaf=leaf))
    problem = next(p for p in seen.problems if words in f"{p.found} {p.accepted}")
    assert problem.path == f"agents.edge-01.security.tls.{field}"
    assert problem.source == "poller.json"
    assert leaf in problem.found


def test_all_problems_at_once() -> None:
    """Everything that is missing is told in one go."""
    seen = look(SecurityConfig(mode=SecurityMode.MTLS))
    assert [p.path.rpartition(".")[2] for p in seen.problems] == ["cert_file", "key_file", "ca_file"]
    assert seen.identity is None


def test_other_ca_is_a_warning(block: Block) -> None:
    """A certificate of another CA than ca_file's may be meant, so it is said and used."""
    seen = look(block(leaf="other_ca"))
    assert seen.problems == ()
    assert ["which is not in" in w.text for w in seen.warnings] == [True]


def test_near_expiry_is_a_warning(block: Block) -> None:
    """Two weeks before its end a certificate is worth a warning, and at its end it is a problem."""
    good = look(block())
    assert good.identity is not None
    end = good.identity.not_after_s
    assert look(block(), end - 15 * DAY_S).warnings == ()
    (warning,) = look(block(), end - 3 * DAY_S).warnings
    assert "in 3.0 days" in warning.text
    assert warning.path == "agents.edge-01.security.tls.cert_file"
    assert look(block(), end - 1.0).problems == ()
    assert look(block(), end).problems != ()


def test_expired_root(block: Block) -> None:
    """When the last root has ended, nothing can connect."""
    seen = look(block(), NOW + 20 * 365 * DAY_S)
    assert {p.path.rpartition(".")[2] for p in seen.problems} == {"cert_file", "ca_file"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_key(block: Block, tmp_path: Path, pki: Path) -> None:
    """A key without read permission is a problem."""
    key = Path(shutil.copy(pki / "poller-key.pem", tmp_path))
    key.chmod(0)
    files = block().tls
    seen = look(
        SecurityConfig(
            mode=SecurityMode.MTLS,
            tls=TlsConfig(cert_file=files.cert_file, key_file=str(key), ca_file=files.ca_file),
        )
    )
    assert "Permission denied" in seen.problems[0].found


def variant(block: Block, folder: Path, **contents: bytes) -> SecurityConfig:
    """Write some files anew; the others stay those of the PKI."""
    paths = {field: getattr(block().tls, field) for field in ("cert_file", "key_file", "ca_file")}
    for field, data in contents.items():
        path = folder / f"{field}.pem"
        path.write_bytes(data)
        path.chmod(0o600)
        paths[field] = str(path)
    return SecurityConfig(mode=SecurityMode.MTLS, tls=TlsConfig(**paths))


@pytest.mark.parametrize("field", ["cert_file", "key_file", "ca_file"])
@pytest.mark.parametrize(
    "data",
    [b"", b"garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"\0" * 5_000_000],
    ids=["empty", "garbage", "bad base", "huge"],
)
def test_not_pem(block: Block, tmp_path: Path, field: str, data: bytes) -> None:
    """A file that holds something else is a problem of that file."""
    seen = look(variant(block, tmp_path, **{field: data}))
    assert {p.path.rpartition(".")[2] for p in seen.problems} == {field}


@pytest.mark.parametrize("name", ["", "/dev/zero", "/", "/nul\0l"])
def test_odd_file_names(block: Block, name: str) -> None:
    """A directory, a device or an impossible name is a problem, not a hang."""
    files = block().tls
    odd = TlsConfig(cert_file=files.cert_file, key_file=files.key_file, ca_file=name)
    assert len(look(SecurityConfig(mode=SecurityMode.MTLS, tls=odd)).problems) == 1


def test_open_key(block: Block, tmp_path: Path, pki: Path) -> None:
    """A key that others may read works, with a warning."""
    security = variant(block, tmp_path, key_file=(pki / "poller-key.pem").read_bytes())
    Path(security.tls.key_file).chmod(0o640)
    seen = look(security)
    assert seen.problems == ()
    assert "0640" in seen.warnings[0].text


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl program")
@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["openssl", "ec", "-aes128", "-passout", "pass:x"], "encrypted"),
        (["openssl", "ec"], ""),
        (["openssl", "pkey", "-outform", "DER"], "no readable private key"),
    ],
)
def test_key_formats(block: Block, tmp_path: Path, pki: Path, command: list[str], words: str) -> None:
    """Keys as openssl writes them are read, and an encrypted one is named as that."""
    pem = (pki / "poller-key.pem").read_bytes()
    key = subprocess.run(command, input=pem, capture_output=True, check=True).stdout
    found = " ".join(p.found for p in look(variant(block, tmp_path, key_file=key)).problems)
    assert (words in found) if words else (found == "")


def test_intermediate(tmp_path: Path, block: Block, pki: Path) -> None:
    """A chain file with more than our own certificate is followed; order after the first does not matter."""
    poller, root = (pki / "poller.pem").read_bytes(), (pki / "root.pem").read_bytes()
    make_pki(tmp_path / "b")
    make_leaf(tmp_path / "b", "x", role="x")
    stranger = (tmp_path / "b" / "x.pem").read_bytes()
    seen = look(variant(block, tmp_path, cert_file=poller + stranger + root, ca_file=root))
    assert (seen.problems, seen.warnings) == ((), ())


def test_client_ca(block: Block, pki: Path) -> None:
    """client_ca_file is read for the server side, and is ca_file when empty."""
    files = block().tls
    material, _, _ = examine(block(), now=NOW)
    assert material is not None
    assert material.client_roots == material.roots
    other = TlsConfig(
        cert_file=files.cert_file,
        key_file=files.key_file,
        ca_file=files.ca_file,
        client_ca_file=str(pki / "other" / "root.pem"),
    )
    material, _, _ = examine(SecurityConfig(mode=SecurityMode.MTLS, tls=other), now=NOW)
    assert material is not None
    assert material.client_roots == (pki / "other" / "root.pem").read_bytes()


def test_the_key_is_never_shown(block: Block, pki: Path) -> None:
    """Neither findings nor the material's representation hold the key."""
    material, _, findings = examine(block(leaf="key_mismatch"), now=NOW)
    assert material is None
    good, _, _ = examine(block(), now=NOW)
    secret = (pki / "poller-key.pem").read_text().splitlines()[1]
    assert secret not in repr(good)
    assert secret not in repr(findings)


@pytest.mark.parametrize(
    ("part", "odd", "words"),
    [
        ("06072a8648ce3d0201", "06072a8648ce3d0209", "Unknown key type"),
        ("0603551d11", "0603551d0f", "Duplicate 2.5.29.15 extension"),
    ],
)
def test_an_odd_certificate(block: Block, tmp_path: Path, part: str, odd: str, words: str) -> None:
    """A certificate with a key of an unknown kind, or with an extension twice, is a problem of its file, no crash."""
    good = block()
    der = ssl.PEM_cert_to_DER_cert(Path(good.tls.cert_file).read_text().partition("-----END")[0] + END)
    assert bytes.fromhex(part) in der
    file = tmp_path / "odd.pem"
    file.write_text(ssl.DER_cert_to_PEM_cert(der.replace(bytes.fromhex(part), bytes.fromhex(odd))))
    seen = look(replace(good, tls=replace(good.tls, cert_file=str(file))))
    [problem] = seen.problems
    assert problem.path == "agents.edge-01.security.tls.cert_file"
    assert str(file) in problem.found and words in problem.found
    assert seen.identity is None
