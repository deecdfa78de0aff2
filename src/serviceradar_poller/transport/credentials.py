"""
Make what TLS needs from a security block, one object for all peers that use the same files.

That is gRPC's credentials for the one backend and an SSLContext for the other; what nobody asks for is not made,
and gRPC is loaded only by who asks for its credentials. The files are judged in another process (`examiner`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from serviceradar_poller.config.model import SecurityConfig, SecurityMode, TlsConfig
from serviceradar_poller.env import Clock
from serviceradar_poller.errors import CallError
from serviceradar_poller.transport.examiner import BLOCKS_MAX, Examiner, examine_apart
from serviceradar_poller.transport.failures import again, unusable_credentials
from serviceradar_poller.transport.material import Examined, Material, require_mtls

if TYPE_CHECKING:
    import grpc

#: Sites use one set of files, some one per agent group; the least recently used set goes. A set is a few kilobytes.
CREDENTIALS_CACHED_MAX: Final = 1_024
#: Files that were refused are judged again after this time though nobody changed them: the disk may have been at fault.
REFUSED_AGAIN_S: Final = 600.0
#: No examination is tried again sooner after one that failed itself: no process could be started, or it gave no answer.
FAILED_AGAIN_S: Final = 30.0
#: So many blocks in a row that could not be judged, each alone, are no block's fault: the others wait for that as well.
IN_VAIN_MAX: Final = 3

#: (modification time in ns, change time in ns, size, inode) of each file; None where it can't be read.
_Signature = tuple[tuple[int, int, int, int] | None, ...]


@dataclass(slots=True, kw_only=True)
class _Entry:
    """
    What an examination came to, and while it holds: the same files, from one time to another, in unix seconds.

    Attributes:
        material: None where there is a refusal.
        former: What was in use before an examination that failed itself.
    """

    signature: _Signature
    from_s: float
    until_s: float
    material: Material | None = None
    refusal: CallError | None = None
    former: _Entry | None = None
    channel: grpc.ChannelCredentials | None = None
    context: ssl.SSLContext | None = None


class CredentialsCache:
    """
    Credentials by file names, judged again when a file changed or a certificate's time is over. Belongs to one loop.

    A client keeps what it was made with: rotation makes a new client. What is asked for while an examination runs
    waits, and is judged together with what else waits by then: there is one process at a time, and a thousand who ask
    for the same files cause one. Refusals are kept as well, until a file changes or time may have made a difference.

    Attributes:
        loads: Blocks that were judged.
        hits: Askers that needed no examination, whatever was known.
        evictions: Blocks that had to make room.
        failures: Examinations that failed themselves.
    """

    def __init__(self, clock: Clock, *, examiner: Examiner = examine_apart) -> None:
        self._clock = clock
        self._examiner = examiner
        self._entries: OrderedDict[TlsConfig, _Entry] = OrderedDict()
        self._lock = asyncio.Lock()
        self._wanted: dict[TlsConfig, None] = {}  # what waits for its examination, no more than there are blocks
        self._apart: set[TlsConfig] = set()  # was judged with others in vain: the next time alone
        self._in_vain: set[TlsConfig] = set()  # was judged alone in vain, since any last was judged
        self._fault: _Entry | None = None  # what all get while nothing can be judged
        self.loads = 0
        self.hits = 0
        self.evictions = 0
        self.failures = 0

    async def channel_credentials(
        self, security: SecurityConfig | None, *, fresh: bool = False
    ) -> grpc.ChannelCredentials | None:
        """
        Return credentials for a channel; None for plaintext.

        Args:
            fresh: From the files as they are now, or not at all. Else what was found good before, and whose time is
                not over, serves while changed files can't be judged.
        Raises:
            CallError: layer CONFIG, reason ``credentials``; the detail names each bad file and what is wrong.
        """
        if security is None or security.mode is SecurityMode.NONE:
            return None
        entry, material = await self._entry(security, fresh=fresh)
        if entry.channel is None:
            import grpc

            entry.channel = grpc.ssl_channel_credentials(
                root_certificates=material.roots, private_key=material.key, certificate_chain=material.chain
            )
        return entry.channel

    async def ssl_context(self, security: SecurityConfig | None, *, fresh: bool = False) -> ssl.SSLContext | None:
        """
        Return the context of a TLS client; None for plaintext.

        Args:
            fresh: As for channel_credentials.
        Raises:
            CallError: as channel_credentials.
        """
        if security is None or security.mode is SecurityMode.NONE:
            return None
        entry, material = await self._entry(security, fresh=fresh)
        if entry.context is None:
            entry.context = client_context(material)
        return entry.context

    async def server_context(self, security: SecurityConfig | None, *, fresh: bool = False) -> ssl.SSLContext | None:
        """
        Return the context of a TLS server, a new one each time: a listener keeps its own; None for plaintext.

        Args:
            fresh: As for channel_credentials.
        Raises:
            CallError: as channel_credentials.
        """
        if security is None or security.mode is SecurityMode.NONE:
            return None
        _, material = await self._entry(security, fresh=fresh)
        return server_context(material)

    async def survey(self, blocks: Sequence[TlsConfig]) -> list[Examined | CallError]:
        """
        Judge the files of mtls blocks, as many in one process as it takes, and keep what comes of it for later.

        Returns:
            For each block what it came to, or why it could not be judged.
        """
        results: list[Examined | CallError] = []
        async with self._lock:
            for index in range(0, len(blocks), BLOCKS_MAX):
                some = list(blocks[index : index + BLOCKS_MAX])
                try:
                    results += await self._examine(some)
                except CallError as error:
                    results += [error.with_traceback(None)] * len(some)
        return results

    async def _entry(self, security: SecurityConfig, *, fresh: bool) -> tuple[_Entry, Material]:
        require_mtls(security)
        tls = security.tls
        entry = self._known(tls)
        if entry is None:
            self._wanted[tls] = None
            async with self._lock:
                entry = self._known(tls)  # somebody else's examination may have been ours too
                if entry is None:
                    entry = await self._load(tls)
                else:
                    self.hits += 1
        else:
            self.hits += 1
        if entry.former is not None and not fresh and self._clock.wall() < entry.former.until_s:
            entry = entry.former
        if entry.material is None:
            assert entry.refusal is not None
            raise again(entry.refusal)
        return entry, entry.material

    def _known(self, tls: TlsConfig) -> _Entry | None:
        entry = self._entries.get(tls)
        if entry is None or entry.signature != _signature(tls):
            return None
        now = self._clock.wall()
        if now >= entry.until_s or (entry.refusal is not None and now < entry.from_s):  # the clock went back
            return None
        self._entries.move_to_end(tls)
        return entry

    async def _load(self, tls: TlsConfig) -> _Entry:
        """Judge a block, and with it those that wait behind it."""
        fault, now = self._fault, self._clock.wall()
        if fault is not None and fault.from_s <= now < fault.until_s:
            assert fault.refusal is not None
            self._wanted.pop(tls, None)
            self._keep_failure(tls, _signature(tls), fault.refusal, from_s=now, until_s=fault.until_s)
            return self._entries[tls]
        batch: list[TlsConfig] = []
        if tls not in self._apart:
            batch += (other for other in self._wanted if other != tls and other not in self._apart)
        batch = [*batch[: BLOCKS_MAX - 1], tls]  # the last that is kept is the last to make room
        try:
            await self._examine(batch)
        except CallError:
            if len(batch) > 1:  # the fault may be one block's: each gets a process of its own
                with contextlib.suppress(CallError):  # it stands in the entry
                    await self._examine([tls])
        return self._entries[tls]

    async def _examine(self, blocks: list[TlsConfig]) -> tuple[Examined, ...]:
        """Judge *blocks* in one process and keep what comes of it; raises CallError where nothing does."""
        now = self._clock.wall()
        # The signatures are taken before the files are read: a change in between is seen the next time.
        signatures = [_signature(tls) for tls in blocks]
        try:
            results = await self._examiner(blocks, now=now)
        except CallError as error:
            self.failures += 1
            self._judged(blocks)
            if len(blocks) > 1:
                self._apart.update(blocks)
            else:
                self._note_failure(blocks[0], signatures[0], error.with_traceback(None))
            raise
        # Not before: who is cancelled meanwhile leaves the others to the next one, together.
        self._judged(blocks)
        self._in_vain.clear()
        self._fault = None
        self.loads += len(blocks)
        for tls, signature, examined in zip(blocks, signatures, results, strict=True):
            if examined.material is not None:
                until_s, refusal = examined.material.valid_until_s, None
            else:
                until_s, refusal = now + REFUSED_AGAIN_S, examined.refusal()
                if examined.identity is not None and examined.identity.not_before_s > now:
                    until_s = min(until_s, examined.identity.not_before_s)
            self._keep(
                tls,
                _Entry(signature=signature, from_s=now, until_s=until_s, material=examined.material, refusal=refusal),
            )
        return results

    def _judged(self, blocks: list[TlsConfig]) -> None:
        for tls in blocks:
            self._wanted.pop(tls, None)
            self._apart.discard(tls)

    def _note_failure(self, tls: TlsConfig, signature: _Signature, error: CallError) -> None:
        """Keep why a block could not be judged alone; for all of them, when it is not the first in a row."""
        now = self._clock.wall()  # it may have taken long
        until_s = now + FAILED_AGAIN_S
        self._in_vain.add(tls)
        if len(self._in_vain) >= IN_VAIN_MAX:
            self._apart.clear()  # the next time together
            self._fault = _Entry(signature=(), from_s=now, until_s=until_s, refusal=error)
        self._keep_failure(tls, signature, error, from_s=now, until_s=until_s)

    def _keep_failure(
        self, tls: TlsConfig, signature: _Signature, error: CallError, *, from_s: float, until_s: float
    ) -> None:
        former = self._entries.get(tls)
        if former is not None and former.material is None:
            former = former.former
        self._keep(
            tls,
            _Entry(signature=signature, from_s=from_s, until_s=until_s, refusal=error, former=former),
        )

    def _keep(self, tls: TlsConfig, entry: _Entry) -> None:
        self._entries[tls] = entry
        self._entries.move_to_end(tls)
        if len(self._entries) > CREDENTIALS_CACHED_MAX:
            self._entries.popitem(last=False)
            self.evictions += 1


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


def server_context(material: Material) -> ssl.SSLContext:
    """
    Return the context of a server that demands a client certificate.

    TLS 1.3 only, ALPN h2, no session tickets. What clients' certificates may come from is as for client_context.

    Raises:
        CallError: as client_context.
    """
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


def _stat(file: str) -> tuple[int, int, int, int] | None:
    try:
        status = Path(file).stat()
    except (OSError, ValueError):
        return None  # the examination says what is wrong with it
    # The change time too: a file that becomes readable has the same content as before.
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
