"""
Do a client's TLS without a socket: bytes of the wire in, plain bytes out, and back.

An SSLObject between two memory BIOs. asyncio's own TLS transport keeps a quarter of a megabyte of buffers for every
connection; this keeps OpenSSL's session and two BIOs. A BIO never gives back what it once held, so they are fed and
emptied in small pieces.
"""

from __future__ import annotations

import ssl
from typing import Final

from serviceradar_poller.config.addresses import AddressError, certificate_name
from serviceradar_poller.errors import PollerError

#: What the incoming BIO is given at a time: a large answer leaves a buffer of this size behind, not of its own (OpenSSL
#: adds a third). About a record: half of it costs a large answer a seventh more CPU, more saves nothing.
FEED_BYTES_MAX: Final = 16 * 1024
#: The same in the handshake, for every connection has one: a chain of certificates is kilobytes, most answers are not.
HANDSHAKE_FEED_BYTES_MAX: Final = 512
#: Plain bytes of one TLS record; RFC 8446 section 5.1.
RECORD_BYTES_MAX: Final = 16 * 1024

#: X509_V_ERR_HOSTNAME_MISMATCH, _EMAIL_, _IP_ADDRESS_; openssl/x509_vfy.h
_NAME_MISMATCHES: Final = frozenset({62, 63, 64})
_NOT_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "HTTPS_PROXY_REQUEST"})
_NO_ALPN: Final = frozenset({"TLSV1_ALERT_NO_APPLICATION_PROTOCOL", "TLSV13_ALERT_NO_APPLICATION_PROTOCOL"})


class TlsError(PollerError):
    """TLS with the peer failed; the text says how, in words for an operator."""


class TlsClient:
    """
    One client-side TLS session.

    Args:
        context: Checks the peer; shared by all sessions with the same certificates.
        server_name: DNS name or IP literal that the peer's certificate must hold.

    Attributes:
        established: The handshake is complete and HTTP/2 is agreed upon.
        closed: The peer said that it sends no more.

    Raises:
        TlsError: *server_name* is no name that a certificate could hold.
    """

    __slots__ = ("_incoming", "_object", "_outgoing", "closed", "established")

    def __init__(self, context: ssl.SSLContext, server_name: str) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        try:
            name = certificate_name(server_name)
            self._object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        except (AddressError, ValueError) as error:
            raise TlsError(f"{server_name!r} can't be the name in a certificate: {error}") from error
        self.established = False
        self.closed = False

    @property
    def peer_certificate(self) -> bytes | None:
        """The peer's certificate in DER; None before the handshake is complete."""
        return self._object.getpeercert(binary_form=True) if self.established else None

    @property
    def has_output(self) -> bool:
        """Whether take_output() has something."""
        return self._outgoing.pending > 0

    @property
    def output_bytes(self) -> int:
        """How much take_output() has."""
        return self._outgoing.pending

    def start(self) -> None:
        """Begin the handshake; take_output() then has the first bytes for the wire. Raises TlsError."""
        self._handshake()

    def feed(self, data: memoryview) -> bytes:
        """
        Take bytes from the wire and return the plain bytes in them, perhaps none.

        Look at has_output afterwards, also when it raises: handshakes, key updates and alerts have to go out.

        Raises:
            TlsError: The peer speaks no TLS, refuses us, or is refused.
        """
        parts: list[bytes] = []
        while data:
            # What is not complete stays in OpenSSL's own buffer, so the BIO is empty again after each piece.
            size = FEED_BYTES_MAX if self.established else HANDSHAKE_FEED_BYTES_MAX
            piece, data = data[:size], data[size:]
            self._incoming.write(piece)
            if not self.established and not self._handshake():
                continue
            self._read(len(piece), parts)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def encrypt(self, data: bytes | memoryview) -> bytes:
        """Return plain bytes, encrypted, after whatever else had to go out. Raises TlsError."""
        written = 0
        try:
            # A single record is the common case.
            if len(data) <= RECORD_BYTES_MAX:
                self._object.write(data)
                return self._outgoing.read()
            parts: list[bytes] = []
            view = memoryview(data)
            while written < len(view):
                written += self._object.write(view[written : written + RECORD_BYTES_MAX])
                parts.append(self._outgoing.read())
            return b"".join(parts)
        except ssl.SSLError as error:
            raise TlsError(_words(error, established=True)) from error

    def take_output(self) -> bytes:
        """Return what has to go out: handshake messages and alerts."""
        return self._outgoing.read()

    def finish(self) -> None:
        """Tell the peer that we send no more; take_output() then has the alert."""
        if self.established:
            try:
                self._object.unwrap()
            except ssl.SSLError:
                pass  # the peer has not told the same yet, or never will: nobody waits for it

    def _handshake(self) -> bool:
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise TlsError(_words(error, established=False)) from error
        if self._object.selected_alpn_protocol() != "h2":
            raise TlsError("the peer's TLS does not offer HTTP/2 (ALPN h2)")
        self.established = True
        return True

    def _read(self, size: int, parts: list[bytes]) -> None:
        """Read all that is complete; *size* is as much as fits for what just came in."""
        tls, incoming = self._object, self._incoming
        try:
            while True:
                part = tls.read(size)
                if not part:
                    self.closed = True
                    return
                parts.append(part)
                # Asking once more would raise; an exception costs more than looking.
                if not incoming.pending and not tls.pending():
                    return
        except ssl.SSLWantReadError:
            return
        except ssl.SSLZeroReturnError:
            self.closed = True
        except ssl.SSLError as error:
            raise TlsError(_words(error, established=True)) from error


def _words(error: ssl.SSLError, *, established: bool) -> str:
    """Say what OpenSSL's error means for an operator."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _NAME_MISMATCHES:
            return "the peer's certificate does not hold the expected name"
        return f"the peer's certificate was refused: {error.verify_message}"
    reason = error.reason or str(error)
    if reason in _NO_ALPN:
        return "the peer's TLS does not offer HTTP/2 (ALPN h2)"
    if established and "ALERT" in reason:
        # TLS 1.3 tells a client that its certificate is refused only after the handshake, by an alert.
        return f"the peer ended TLS; does it accept our certificate? ({_alert(reason)})"
    if established:
        return f"TLS with the peer broke: {reason}"
    if reason in _NOT_TLS:
        return "the peer does not speak TLS"
    if "ALERT" in reason:
        return f"TLS handshake failed: the peer says: {_alert(reason)}"
    return f"TLS handshake failed: {reason}"


def _alert(reason: str) -> str:
    """Return the name of the alert in TLSV1_ALERT_UNKNOWN_CA or SSLV3_ALERT_BAD_CERTIFICATE."""
    return reason.partition("ALERT_")[2].replace("_", " ").lower() or reason
