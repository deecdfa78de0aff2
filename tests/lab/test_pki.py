from __future__ import annotations

import socket
import ssl
import stat
import threading
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from serviceradar_poller.lab.client import LabAgents
from serviceradar_poller.lab.pki import ROLES, Flaw, PkiError, make_leaf, make_pki, spiffe_id
from serviceradar_poller.testing.lab_client import PATIENCE_S, Client, code_of, credentials

FILES = sorted(name for role in ("root", *ROLES) for name in (f"{role}.pem", f"{role}-key.pem"))


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_files_and_modes(pki: Path) -> None:
    """The directory holds exactly the root and the three roles, closed to others, the keys too."""
    assert sorted(path.name for path in pki.iterdir()) == FILES
    assert stat.S_IMODE(pki.stat().st_mode) == 0o700
    for path in pki.glob("*-key.pem"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("role", ROLES)
def test_leaf_contents(pki: Path, role: str) -> None:
    """A leaf names its host, loopback and SPIFFE id, may be server and client, and points to the root's key."""
    leaf, root = load(pki / f"{role}.pem"), load(pki / "root.pem")
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", f"{role}.serviceradar"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [spiffe_id(role)]
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert leaf.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
    authority = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    subject = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert authority.key_identifier == subject.digest
    key = leaf.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    leaf.verify_directly_issued_by(root)


def test_root_contents(pki: Path) -> None:
    """The root may sign certificates and revocation lists, and nothing else."""
    root = load(pki / "root.pem")
    usage = root.extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.key_cert_sign, usage.crl_sign, usage.digital_signature) == (True, True, False)
    assert root.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_further_names(tmp_path: Path) -> None:
    """Names given by the user are in every leaf, addresses as addresses."""
    make_pki(tmp_path / "p", names=["edge.example.net", "10.1.2.3"], days=3)
    names = load(tmp_path / "p" / "agent.pem").extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert "edge.example.net" in names.value.get_values_for_type(x509.DNSName)
    assert "10.1.2.3" in [str(ip) for ip in names.value.get_values_for_type(x509.IPAddress)]


def test_refuses_to_overwrite(tmp_path: Path) -> None:
    """One file in the way stops everything, names itself, and nothing is written; asked to, all is replaced."""
    (tmp_path / "core.pem").write_text("mine")
    with pytest.raises(PkiError, match=r"already holds core\.pem"):
        make_pki(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["core.pem"]
    make_pki(tmp_path, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    load(tmp_path / "core.pem").verify_directly_issued_by(load(tmp_path / "root.pem"))


def test_unwritable_directory_is_told(tmp_path: Path) -> None:
    """A file where the directory should be is an error that says so, not a traceback."""
    (tmp_path / "file").write_text("")
    with pytest.raises(PkiError, match="can't write the PKI"):
        make_pki(tmp_path / "file" / "pki")


def handshake(folder: Path, server_stem: str, client_stem: str, server_name: str) -> str:
    """Do a TLS handshake over a socket pair; return the version, or raise what either side raised."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(folder / "root.pem"))
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_cert_chain(folder / f"{server_stem}.pem", folder / f"{server_stem}-key.pem")
    client = ssl.create_default_context(cafile=str(folder / "root.pem"))
    client.load_cert_chain(folder / f"{client_stem}.pem", folder / f"{client_stem}-key.pem")
    ours, theirs = socket.socketpair()
    errors: list[Exception] = []

    def serve() -> None:
        try:
            with server.wrap_socket(theirs, server_side=True) as accepted:
                accepted.sendall(b"x")
        except OSError as error:
            errors.append(error)
        finally:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        ours.settimeout(PATIENCE_S)
        with client.wrap_socket(ours, server_hostname=server_name) as connected:
            connected.recv(1)
            return str(connected.version())
    finally:
        ours.close()
        thread.join(PATIENCE_S)
        if errors:
            raise errors[0]


def test_good_pair_shakes_hands(pki: Path) -> None:
    """Python's own strict verification takes agent and poller of one PKI."""
    for name in ("agent.serviceradar", "localhost", "127.0.0.1"):
        assert handshake(pki, "agent", "poller", name) == "TLSv1.3"


@pytest.mark.parametrize("flaw", [flaw for flaw in Flaw if flaw is not Flaw.NONE])
def test_each_flaw_is_refused(tmp_path: Path, flaw: Flaw) -> None:
    """A server with a flawed certificate, or a client that may not be one, gets no connection; the good one does."""
    make_pki(tmp_path)
    make_leaf(tmp_path, "good", role="agent")
    assert handshake(tmp_path, "good", "good", "agent.serviceradar") == "TLSv1.3"
    make_leaf(tmp_path, "bad", role="agent", flaw=flaw)
    server, client = ("good", "bad") if flaw is Flaw.NO_CLIENT_AUTH else ("bad", "good")
    with pytest.raises(OSError):  # noqa: PT011  ssl.SSLError is one; its text is OpenSSL's
        handshake(tmp_path, server, client, "agent.serviceradar")


def test_rotation_keeps_the_root(tmp_path: Path) -> None:
    """A leaf issued anew is another certificate of the same root; without leave it is not replaced."""
    make_pki(tmp_path)
    before = load(tmp_path / "poller.pem").serial_number
    with pytest.raises(PkiError, match="exists"):
        make_leaf(tmp_path, "poller", role="poller")
    make_leaf(tmp_path, "poller", role="poller", overwrite=True)
    after = load(tmp_path / "poller.pem")
    assert after.serial_number != before
    after.verify_directly_issued_by(load(tmp_path / "root.pem"))
    assert handshake(tmp_path, "agent", "poller", "localhost") == "TLSv1.3"


def test_missing_root_is_told(tmp_path: Path) -> None:
    """Without a root no leaf is made."""
    with pytest.raises(PkiError, match="no usable root"):
        make_leaf(tmp_path, "poller", role="poller")


def attempt(port: int, chosen: grpc.ChannelCredentials) -> grpc.StatusCode:
    with grpc.secure_channel(f"127.0.0.1:{port}", chosen, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        return code_of(Client(channel).status)[0]


@pytest.mark.parametrize("flaw", [Flaw.NONE, Flaw.EXPIRED, Flaw.NOT_YET_VALID, Flaw.OTHER_CA, Flaw.NO_CLIENT_AUTH])
def test_agents_check_clients(pki: Path, tls_agents: LabAgents, tmp_path: Path, flaw: Flaw) -> None:
    """A simulated agent serves a client with a good certificate and refuses one with a flaw, as grpcio sees it."""
    for name in ("root.pem", "root-key.pem"):
        (tmp_path / name).write_bytes((pki / name).read_bytes())
    make_leaf(tmp_path, "client", role="poller", flaw=flaw)
    expected = grpc.StatusCode.OK if flaw is Flaw.NONE else grpc.StatusCode.UNAVAILABLE
    assert attempt(tls_agents.ports[0], credentials(tmp_path, "client")) is expected


def test_agents_demand_a_client_certificate(pki: Path, tls_agents: LabAgents) -> None:
    """Without a certificate there is no call, and the agent counts the refused handshake."""
    before = tls_agents.agent("agent-0001")["counts"].get("handshake_errors", 0)
    anonymous = grpc.ssl_channel_credentials((pki / "root.pem").read_bytes())
    assert attempt(tls_agents.ports[0], anonymous) is grpc.StatusCode.UNAVAILABLE
    assert tls_agents.agent("agent-0001")["counts"]["handshake_errors"] > before
