"""Make gRPC credentials from a security block, one object for all peers that use the same files."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from serviceradar_poller.config.model import SecurityConfig, SecurityMode, TlsConfig
from serviceradar_poller.env import Clock
from serviceradar_poller.transport.certificates import Material, examine
from serviceradar_poller.transport.failures import unusable_credentials

#: Sites use one set of files, rarely one per agent group; the least recently used set goes.
CREDENTIALS_CACHED_MAX: Final = 64

#: (modification time in ns, size, inode) of each file; None where it can't be read.
_Signature = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    signature: _Signature
    material: Material
    channel: grpc.ChannelCredentials


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
        now = self._clock.wall()
        signature = _signature(security.tls)
        entry = self._entries.get(security.tls)
        if entry is not None and entry.signature == signature and now < entry.material.valid_until_s:
            self._entries.move_to_end(security.tls)
            self.hits += 1
            return entry.channel
        self.loads += 1
        self._entries.pop(security.tls, None)
        material = load_material(security, now=now)
        channel = grpc.ssl_channel_credentials(
            root_certificates=material.roots, private_key=material.key, certificate_chain=material.chain
        )
        # The signature was taken before the files were read: a change in between is seen the next time.
        self._entries[security.tls] = _Entry(signature=signature, material=material, channel=channel)
        if len(self._entries) > CREDENTIALS_CACHED_MAX:
            self._entries.popitem(last=False)
            self.evictions += 1
        return channel


def server_credentials(security: SecurityConfig | None, *, now: float) -> grpc.ServerCredentials | None:
    """
    Return credentials for a server that demands a client certificate; None for plaintext.

    Raises:
        CallError: as load_material.
    """
    if security is None or security.mode is SecurityMode.NONE:
        return None
    material = load_material(security, now=now)
    return grpc.ssl_server_credentials(
        [(material.key, material.chain)],
        root_certificates=material.client_roots,
        require_client_auth=True,
    )


def _signature(files: TlsConfig) -> _Signature:
    return tuple(_stat(file) for file in (files.cert_file, files.key_file, files.ca_file, files.client_ca_file))


def _stat(file: str) -> tuple[int, int, int] | None:
    try:
        status = Path(file).stat()
    except (OSError, ValueError):
        return None  # examine() says what is wrong with it
    return status.st_mtime_ns, status.st_size, status.st_ino
