"""
Diagnose one peer layer by layer, each with its own words: name, TCP, TLS, HTTP/2, gRPC.

The layers below gRPC are walked with the standard library, so that what gRPC sums up in one text can be told apart,
and so that the peer's certificate can be shown when it is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import ipaddress
import os
import socket
import ssl
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cryptography import x509

from serviceradar_poller.config.addresses import Address, AddressError, certificate_name, join_host_port, parse_address
from serviceradar_poller.config.model import SecurityConfig, SecurityMode
from serviceradar_poller.env import Clock, Resolver, Transport
from serviceradar_poller.errors import CallError, ResolveError
from serviceradar_poller.transport.certificates import identify, load_material
from serviceradar_poller.transport.credentials import client_context
from serviceradar_poller.transport.failures import one_line
from serviceradar_poller.transport.material import date_text

#: Addresses of one name that are tried.
ADDRESSES_MAX: Final = 8
#: A certificate with its names needs more than a log line has.
DETAIL_CHARACTERS_MAX: Final = 1000
#: Part of what is left of the time that one layer may take: a later layer must get some of it.
LAYER_TIME_RATIO: Final = 0.5

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME_SETTINGS: Final = 4
_FRAME_GOAWAY: Final = 7
_EMPTY_SETTINGS: Final = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


class StepState(enum.StrEnum):
    """How a layer did."""

    OK = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeStep:
    """
    One layer's outcome.

    Attributes:
        name: ``address``, ``credentials``, ``resolve``, ``tcp``, ``tls``, ``http2`` or ``grpc``.
        detail: One line for an operator.
    """

    name: str
    state: StepState
    duration_s: float
    detail: str


@dataclass(slots=True)
class _Walk:
    """The steps so far, and what time is left."""

    steps: list[ProbeStep]
    deadline: float
    clock: Callable[[], float]

    def limit(self) -> float:
        """Return until when the next layer may take, as a time of the loop."""
        now = self.clock()
        return now + max(self.deadline - now, 0.0) * LAYER_TIME_RATIO

    def add(self, name: str, state: StepState, began_at: float, detail: str) -> None:
        self.steps.append(
            ProbeStep(
                name=name,
                state=state,
                duration_s=max(self.clock() - began_at, 0.0),
                detail=one_line(detail, DETAIL_CHARACTERS_MAX),
            )
        )

    def skip(self, *names: str, why: str) -> None:
        for name in names:
            self.steps.append(ProbeStep(name=name, state=StepState.SKIPPED, duration_s=0.0, detail=why))


async def probe(
    address: str,
    security: SecurityConfig | None,
    *,
    timeout_s: float,
    resolver: Resolver,
    transport: Transport,
    clock: Clock,
) -> list[ProbeStep]:
    """
    Walk up the layers to an agent until one fails; the layers above it are skipped.

    Args:
        timeout_s: For all layers together.
        transport: Makes the client that asks for the agent's health.
        clock: Its wall time judges our certificates.

    Returns:
        Steps in order; never raises for anything that the peer or the network does.
    """
    loop = asyncio.get_running_loop()
    began_at = loop.time()
    walk = _Walk(steps=[], deadline=began_at + timeout_s, clock=loop.time)
    try:
        parsed = parse_address(address)
    except AddressError as error:
        walk.add("address", StepState.FAILED, began_at, str(error))
        walk.skip("resolve", "tcp", "tls", "http2", "grpc", why="no address")
        return walk.steps
    context: ssl.SSLContext | None = None
    if security is not None and security.mode is not SecurityMode.NONE:
        try:
            context = client_context(load_material(security, now=clock.wall()))
        except CallError as error:
            walk.add("credentials", StepState.FAILED, began_at, error.detail)
            walk.skip("resolve", "tcp", "tls", "http2", "grpc", why="our certificate files can't be used")
            return walk.steps
    addresses = await _resolve(walk, parsed, resolver)
    if not addresses:
        walk.skip("tcp", "tls", "http2", "grpc", why="no address")
        return walk.steps
    sock = await _connect(walk, addresses, parsed.port)
    if sock is None:
        walk.skip("tls", "http2", "grpc", why="no connection")
        return walk.steps
    server_name = (security.server_name if security is not None else "") or certificate_name(parsed.host)
    if not await _tls_and_http2(walk, sock, context, server_name):
        walk.skip("grpc", why="no HTTP/2 connection")
        return walk.steps
    await _health(walk, address, security, transport)
    return walk.steps


async def _resolve(walk: _Walk, address: Address, resolver: Resolver) -> tuple[str, ...]:
    began_at = walk.clock()
    with contextlib.suppress(ValueError):
        literal = str(ipaddress.ip_address(address.host))
        walk.add("resolve", StepState.OK, began_at, f"{literal} is an IP address")
        return (literal,)
    try:
        addresses = await resolver.resolve(address.host, timeout_s=walk.limit() - began_at)
    except ResolveError as error:
        walk.add("resolve", StepState.FAILED, began_at, f"{address.host}: {error}")
        return ()
    walk.add("resolve", StepState.OK, began_at, f"{address.host} is {', '.join(addresses)}")
    return addresses[:ADDRESSES_MAX]


async def _connect(walk: _Walk, addresses: tuple[str, ...], port: int) -> socket.socket | None:
    """Try every address at once; return the first that connected in the resolver's order."""
    began_at = walk.clock()
    limit = walk.limit()
    async with asyncio.TaskGroup() as group:
        attempts = [group.create_task(_connect_one(walk, ip, port, limit)) for ip in addresses]
    results = [attempt.result() for attempt in attempts]
    sockets = [sock for sock, _ in results if sock is not None]
    for extra in sockets[1:]:
        extra.close()
    state = StepState.OK if sockets else StepState.FAILED
    walk.add("tcp", state, began_at, "; ".join(detail for _, detail in results))
    return sockets[0] if sockets else None


async def _connect_one(walk: _Walk, ip: str, port: int, limit: float) -> tuple[socket.socket | None, str]:
    began_at = walk.clock()
    where = join_host_port(ip, port)
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    except OSError as error:
        return None, f"{where}: {_words(error)}"
    try:
        sock.settimeout(0.0)  # not blocking
        async with asyncio.timeout_at(limit):
            await asyncio.get_running_loop().sock_connect(sock, (ip, port))
    except TimeoutError as error:
        sock.close()
        # The kernel's own ETIMEDOUT is a TimeoutError too, with a number.
        waited = f"no answer within {walk.clock() - began_at:.1f} s"
        return None, f"{where}: {_words(error) if error.errno else waited}"
    except OSError as error:
        sock.close()
        return None, f"{where}: {_words(error)}"
    except BaseException:
        sock.close()
        raise
    return sock, f"{where}: connected in {(walk.clock() - began_at) * 1000:.1f} ms"


async def _tls_and_http2(walk: _Walk, sock: socket.socket, context: ssl.SSLContext | None, server_name: str) -> bool:
    began_at = walk.clock()
    peer = sock.getpeername()[:2]
    try:
        async with asyncio.timeout_at(walk.limit()):
            reader, writer = await asyncio.open_connection(
                sock=sock, ssl=context, server_hostname=server_name if context is not None else None
            )
    except (OSError, ssl.SSLError) as error:  # ssl.CertificateError, TimeoutError are among them
        sock.close()
        seen = await _certificate_seen(walk, peer)
        walk.add("tls", StepState.FAILED, began_at, f"{_tls_words(error, server_name)}{seen}")
        walk.skip("http2", why="no TLS")
        return False
    try:
        if context is None:
            walk.skip("tls", why="security mode none: plaintext")
        else:
            tls_step_index = len(walk.steps)
            detail, fine = _tls_detail(writer.get_extra_info("ssl_object"))
            walk.add("tls", StepState.OK if fine else StepState.FAILED, began_at, detail)
            if not fine:
                walk.skip("http2", why="no HTTP/2 over this TLS")
                return False
        began_http2_at = walk.clock()
        try:
            async with asyncio.timeout_at(walk.limit()):
                detail, fine = await _settings(reader, writer, secure=context is not None)
        except ssl.SSLError as error:
            # In TLS 1.3 the peer judges our certificate after our own handshake is complete.
            walk.steps[tls_step_index:] = []
            walk.add("tls", StepState.FAILED, began_at, f"the peer refused our certificate: {_reason(error)}")
            walk.skip("http2", why="no TLS")
            return False
        except TimeoutError:
            detail, fine = "no HTTP/2 settings in time", False
        except (OSError, EOFError) as error:
            detail, fine = f"connection lost: {_words(error)}", False
        walk.add("http2", StepState.OK if fine else StepState.FAILED, began_http2_at, detail)
        return fine
    finally:
        writer.transport.abort()  # a polite close would wait for the peer's
        await asyncio.sleep(0)


def _tls_detail(tls: ssl.SSLObject | None) -> tuple[str, bool]:
    assert tls is not None
    cipher = tls.cipher()
    certificate = tls.getpeercert(binary_form=True)
    text = f"{tls.version()}, {cipher[0] if cipher else 'no cipher'}"
    if tls.selected_alpn_protocol() != "h2":
        return f"{text}; the peer does not offer HTTP/2 (ALPN h2){_certificate_text(certificate)}", False
    return f"{text}, h2{_certificate_text(certificate)}", True


async def _certificate_seen(walk: _Walk, peer: tuple[str, int]) -> str:
    """
    Fetch the certificate that the peer shows, without trusting it.

    Nothing is sent over that connection but the handshake, and our own certificate is not shown.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        async with asyncio.timeout_at(walk.limit()):
            _, writer = await asyncio.open_connection(*peer, ssl=context)
    except (OSError, ssl.SSLError):
        return ""
    tls = writer.get_extra_info("ssl_object")
    version, certificate = tls.version(), tls.getpeercert(binary_form=True)
    writer.transport.abort()
    return f"{_certificate_text(certificate)}; the peer speaks {version}"


def _certificate_text(certificate: bytes | None) -> str:
    if not certificate:
        return ""
    try:
        who = identify(x509.load_der_x509_certificate(certificate))
    except ValueError:
        return "; the peer's certificate can't be read"
    return (
        f"; certificate {who.subject}, names {' '.join(who.names) or 'none'}, "
        f"issued by {who.issuer}, valid {date_text(who.not_before_s)} to {date_text(who.not_after_s)}"
    )


def _tls_words(error: Exception, server_name: str) -> str:
    match error:
        case ssl.SSLCertVerificationError():
            return f"the peer's certificate was refused for {server_name}: {error.verify_message}"
        case ssl.SSLError():
            reason = _reason(error)
            if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"):
                return "the peer does not speak TLS"
            return f"handshake failed: {reason}"
        case TimeoutError():
            return "no answer to the TLS handshake in time"
        case OSError() as broken:
            return f"connection lost during the handshake: {_words(broken)}"
        case _:
            return str(error)


def _words(error: OSError | EOFError) -> str:
    """Say what the system says: asyncio replaces the text of a failed connect by its own."""
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number) if number else str(error) or "closed by the peer"


def _reason(error: ssl.SSLError) -> str:
    return error.reason or str(error)


async def _settings(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, secure: bool) -> tuple[str, bool]:
    """Send the client's preface, RFC 9113 section 3.4, and read the first frame."""
    writer.write(_PREFACE + _EMPTY_SETTINGS)
    await writer.drain()
    try:
        header = await reader.readexactly(9)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            return f"the peer does not speak HTTP/2; it sent {error.partial!r}", False
        hint = "our certificate was refused?" if secure else "does it expect TLS?"
        return f"the peer closed the connection without HTTP/2 settings; {hint}", False
    if header.startswith(b"HTTP/1"):
        return "the peer speaks HTTP/1, not HTTP/2", False
    length = int.from_bytes(header[:3], "big")
    kind, stream = header[3], struct.unpack(">I", header[5:9])[0]
    if kind == _FRAME_GOAWAY and stream == 0 and length <= 1024:
        payload = await reader.readexactly(length)
        return f"the peer is closing: {payload[8:].decode(errors='replace') or 'no text'}", False
    if kind != _FRAME_SETTINGS or stream != 0 or length % 6:
        return f"the peer does not speak HTTP/2; it sent {header!r}", False
    return "settings received", True


async def _health(walk: _Walk, address: str, security: SecurityConfig | None, transport: Transport) -> None:
    began_at = walk.clock()
    try:
        client = await transport.agent(address, security)
        try:
            status = await client.check_health(timeout_s=walk.deadline - began_at)
        finally:
            await client.close()
    except CallError as error:
        walk.add("grpc", StepState.FAILED, began_at, str(error))
        return
    if status == "SERVICE_UNKNOWN":
        walk.add("grpc", StepState.OK, began_at, "answers, but knows no health service AgentService")
    else:
        state = StepState.OK if status == "SERVING" else StepState.FAILED
        walk.add("grpc", state, began_at, f"health {status}")
