"""
Make what TLS needs from a security block, one object for all peers that use the same files.

That is gRPC's credentials for the one backend and an SSLContext for the other; what nobody asks for is not made,
and gRPC is loaded only by who asks for its credentials.
"""

from __future__ import annotations

import contextlib
import os
import ssl
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from serviceradar_poller.config.model import SecurityConfig, SecurityMode, TlsConfig
from serviceradar_poller.env import Clock
from serviceradar_poller.transport.certificates import Material, examine
from serviceradar_poller.transport.failures import unusable_credentials

if TYPE_CHECKING:
    import grpc

#: Sites use one set of files, rarely one per agent group; the least recently used set goes.
CREDENTIALS_CACHED_MAX: Final = 64

#: (modification time in ns, size, inode) of each file; None where it can't be read.
_Signature = tuple[tuple[int, int, int] | None, ...]


@dataclass(slots=True, kw_only=True)
class _Entry:
    signature: _Signature
    material: Material
    channel: grpc.ChannelCredentials | None = None
    context: ssl.SSLContext | None = None


def load_material(security: SecurityConfig, *, now: float) -> Material:
    """
    Read the files of an mtls block; *now* in unix seconds.

    Raises:
        CallError: layer CONFIG, reason ``credentials``; the detail names each bad file and what is wrong.
    """
    if security.mode is not SecurityMode.MTLS:
        raise unusable_credentials(f"security mode {security.mode.value} is not supported by this version")
    material, _, findings = examine(security, now=now)
    if material is None:
        raise unusable_credentials("; ".join(str(f) for f in findings if f.fatal))
    return material


class CredentialsCache:
    """
    Credentials by file names, read again when a file changed or a certificate's time is over.

    A client keeps what it was made with: rotation makes a new client.

    Attributes:
        loads, hits, evictions: Counters.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._entries: OrderedDict[TlsConfig, _Entry] = OrderedDict()
        self.loads = 0
        self.hits = 0
        self.evictions = 0

    def channel_credentials(self, security: SecurityConfig | None) -> grpc.ChannelCredentials | None:
        """
        Return credentials for a channel; None for plaintext.

        Raises:
            CallError: as load_material.
        """
        if security is None or security.mode is SecurityMode.NONE:
            return None
        entry = self._entry(security)
        if entry.channel is None:
            import grpc

            material = entry.material
            entry.channel = grpc.ssl_channel_credentials(
                root_certificates=material.roots, private_key=material.key, certificate_chain=material.chain
            )
        return entry.channel

    def ssl_context(self, security: SecurityConfig | None) -> ssl.SSLContext | None:
        """
        Return the context of a TLS client; None for plaintext.

        Raises:
            CallError: as load_material.
        """
        if security is None or security.mode is SecurityMode.NONE:
            return None
        entry = self._entry(security)
        if entry.context is None:
            entry.context = client_context(entry.material)
        return entry.context

    def _entry(self, security: SecurityConfig) -> _Entry:
        now = self._clock.wall()
        signature = _signature(security.tls)
        entry = self._entries.get(security.tls)
        if entry is not None and entry.signature == signature and now < entry.material.valid_until_s:
            self._entries.move_to_end(security.tls)
            self.hits += 1
            return entry
        self.loads += 1
        self._entries.pop(security.tls, None)
        # The signature was taken before the files are read: a change in between is seen the next time.
        entry = _Entry(signature=signature, material=load_material(security, now=now))
        self._entries[security.tls] = entry
        if len(self._entries) > CREDENTIALS_CACHED_MAX:
            self._entries.popitem(last=False)
            self.evictions += 1
        return entry


def client_context(material: Material) -> ssl.SSLContext:
    """
    Return a context that proves who we are and demands a peer whose certificate comes from the roots.

    TLS 1.3 only, ALPN h2, names are those of the certificate's alternative names only. As for Go's and gRPC's
    clients, every certificate among the roots is an anchor, an intermediate one too.

    Raises:
        CallError: layer CONFIG, reason ``credentials``: OpenSSL refuses what was found fit.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.hostname_checks_common_name = False
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    context.set_alpn_protocols(["h2"])
    _fill(context, material.roots, material)
    return context


@contextlib.contextmanager
def _memory_file(content: bytes) -> Iterator[str]:
    """Give *content* a file name for a library that reads files only; it is in memory and of this process alone."""
    descriptor = os.memfd_create("credentials", os.MFD_CLOEXEC)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _signature(files: TlsConfig) -> _Signature:
    return tuple(_stat(file) for file in (files.cert_file, files.key_file, files.ca_file, files.client_ca_file))


def _stat(file: str) -> tuple[int, int, int] | None:
    try:
        status = Path(file).stat()
    except (OSError, ValueError):
        return None  # examine() says what is wrong with it
    return status.st_mtime_ns, status.st_size, status.st_ino


def server_context(security: SecurityConfig | None, *, now: float) -> ssl.SSLContext | None:
    """
    Return the context of a server that demands a client certificate; None for plaintext.

    TLS 1.3 only, ALPN h2, no session tickets. What clients' certificates may come from is as for client_context.

    Raises:
        CallError: as load_material.
    """
    if security is None or security.mode is SecurityMode.NONE:
        return None
    material = load_material(security, now=now)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    context.set_alpn_protocols(["h2"])
    context.num_tickets = 0
    _fill(context, material.client_roots, material)
    return context


def _fill(context: ssl.SSLContext, roots: bytes, material: Material) -> None:
    """Give *context* its anchors and what it proves itself with. Raises CallError."""
    try:
        # Text between certificates may be anything; the certificates themselves are ASCII.
        context.load_verify_locations(cadata=roots.decode("ascii", errors="replace").replace("\ufffd", "?"))
        with _memory_file(material.chain.rstrip() + b"\n" + material.key) as path:
            context.load_cert_chain(path, password="")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise unusable_credentials(f"{material.identity.subject}: {error}") from error
