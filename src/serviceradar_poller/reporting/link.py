"""
The connection to core: one call at a time, and new certificates proven by a call before the old connection goes.

    renew() ─► candidate ─ next call accepted, or refused by core itself ─► in use, the old one is closed
                   │     ─ core can't be reached ─► stays candidate, the call goes by the old one
                   └────── TLS refuses it ────────► closed and told, the call goes by the old one

make() and renew() may run beside each other, each by one task at a time: making a client may take seconds, and what
each finds afterwards is not what it left.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from serviceradar_poller.config.model import SecurityConfig
from serviceradar_poller.env import CoreClient, Env
from serviceradar_poller.errors import CallError, GrpcCode, Layer
from serviceradar_poller.events.polling import CredentialsRejected, CredentialsRenewed
from serviceradar_poller.reporting.outgoing import EncodedCall


class CoreLink:
    """Calls to core."""

    def __init__(
        self,
        address: str,
        security: SecurityConfig | None,
        env: Env,
        *,
        rejected: Callable[[], object],
        outdated: Callable[[], object],
    ) -> None:
        """
        Args:
            rejected: Called when new certificates could not be used; renew() is worth another try later.
            outdated: Called when certificates changed while the connection was built; renew() is worth a try now.
        """
        self._address = address
        self._security = security
        self._env = env
        self._rejected = rejected
        self._outdated = outdated
        self._client: CoreClient | None = None
        self._candidate: CoreClient | None = None
        self._told = ""
        self._making = False  # the client in use is being made
        self._renewing = False  # a candidate is being made
        self._changed = False  # certificates changed while one of the two was
        self._closed = False

    async def make(self, call: EncodedCall, *, timeout_s: float) -> CallError | None:
        """
        Make one call, within *timeout_s* in all; return why core did not accept it, None when it did.

        Raises:
            SpoolReadError: The call's bytes can't be read.
        """
        clock = self._env.clock
        until_s = clock.monotonic() + timeout_s
        if self._candidate is not None:
            candidate, self._candidate = self._candidate, None
            try:
                error = await _call(candidate, call, timeout_s / 2)
            except BaseException:
                await self._put_back(candidate)  # it has proven nothing yet
                raise
            if error is None or not (error.unreachable or error.layer is Layer.DEADLINE):
                old, self._client = self._client, candidate
                if old is not None:
                    await old.close()
                self._told = ""
                self._env.emit(CredentialsRenewed(peer="core"))
                return error
            if error.security:
                await candidate.close()
                self._reject(error)
            else:
                await self._put_back(candidate)
        if self._client is None:
            unusable = await self._connect(until_s - clock.monotonic())
            if unusable is not None:
                return unusable
        client = self._client
        assert client is not None
        error = await _call(client, call, until_s - clock.monotonic())
        if error is not None and error.layer is Layer.TLS:
            # The certificates may have been replaced on both sides: the next call reads ours from disk again.
            if self._client is client:
                self._client = None
            await client.close()
        return error

    async def renew(self) -> None:
        """Build a connection from the certificates on disk; the next call proves it. May be called while it runs."""
        if self._making or self._renewing:
            self._changed = True  # once more, when that one is made
            return
        if self._client is None:
            return  # the next call builds one anyway
        self._renewing = True
        try:
            await self._make_candidate()
            while self._changed and not self._closed:
                self._changed = False
                await self._make_candidate()
        finally:
            self._renewing = False

    async def close(self) -> None:
        """Close everything, also what is made too late."""
        self._closed = True
        clients = (self._client, self._candidate)
        self._client = self._candidate = None
        for client in clients:
            if client is not None:
                await client.close()

    async def _connect(self, timeout_s: float) -> CallError | None:
        """Build the connection; return why there is none."""
        self._making = True
        try:
            async with asyncio.timeout(timeout_s):
                self._client = await self._new_client()
        except CallError as unusable:
            return unusable.with_traceback(None)
        except TimeoutError:
            return CallError(
                layer=Layer.CONFIG,
                code=GrpcCode.DEADLINE_EXCEEDED,
                reason="credentials",
                detail=f"the certificate files were not judged within {max(timeout_s, 0.0):.3g} s",
            )
        finally:
            self._making = False
        if self._changed:
            self._changed = False
            self._outdated()
        return None

    async def _make_candidate(self) -> None:
        try:
            candidate = await self._new_client(fresh=True)
        except CallError as error:
            if not self._closed:
                self._reject(error)
            return
        old, self._candidate = self._candidate, candidate
        if old is not None:
            await old.close()

    async def _new_client(self, *, fresh: bool = False) -> CoreClient:
        client = await self._env.transport.core(self._address, self._security, fresh=fresh)
        if self._closed:
            await client.close()
            raise CallError(layer=Layer.CONFIG, code=GrpcCode.CANCELLED, reason="closed", detail="made too late")
        return client

    async def _put_back(self, candidate: CoreClient) -> None:
        """Keep a candidate for the next call, unless there is a newer one by now, or no next call."""
        if self._candidate is None and not self._closed:
            self._candidate = candidate
        else:
            await candidate.close()

    def _reject(self, error: CallError) -> None:
        if error.detail != self._told:
            self._told = error.detail
            self._env.emit(CredentialsRejected(peer="core", error=error.detail))
        self._rejected()


async def _call(client: CoreClient, call: EncodedCall, timeout_s: float) -> CallError | None:
    try:
        if call.kind == "stream":
            async with contextlib.aclosing(call.parts()) as parts:
                answer = await client.stream_status_raw(parts, call.count, timeout_s=timeout_s)
        else:
            answer = await client.report_status_raw(await call.read(0), timeout_s=timeout_s)
    except CallError as error:
        return error.with_traceback(None)
    if answer.received:
        return None
    return CallError(
        layer=Layer.APPLICATION,
        code=GrpcCode.UNKNOWN,
        reason="not_received",
        detail="core answered received=false",
    )
