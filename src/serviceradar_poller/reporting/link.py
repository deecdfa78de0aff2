"""
The connection to core: one call at a time, and new certificates proven by a call before the old connection goes.

    renew() ─► candidate ─ next call accepted, or refused by core itself ─► in use, the old one is closed
                   │     ─ core can't be reached ─► stays candidate, the call goes by the old one
                   └────── TLS refuses it ────────► closed and told, the call goes by the old one
"""

from __future__ import annotations

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
        self, address: str, security: SecurityConfig | None, env: Env, *, rejected: Callable[[], object]
    ) -> None:
        """
        Args:
            rejected: Called when new certificates could not be used; renew() is worth another try later.
        """
        self._address = address
        self._security = security
        self._env = env
        self._rejected = rejected
        self._client: CoreClient | None = None
        self._candidate: CoreClient | None = None
        self._told = ""

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
                self._candidate = candidate  # it has proven nothing yet
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
                self._candidate = candidate
        try:
            if self._client is None:
                self._client = self._env.transport.core(self._address, self._security)
        except CallError as unusable:
            return unusable
        error = await _call(self._client, call, until_s - clock.monotonic())
        if error is not None and error.layer is Layer.TLS:
            # The certificates may have been replaced on both sides: the next call reads ours from disk again.
            client, self._client = self._client, None
            await client.close()
        return error

    async def renew(self) -> None:
        """Build a connection from the certificates on disk; the next call proves it."""
        if self._client is None:
            return  # the next call builds one anyway
        old, self._candidate = self._candidate, None
        if old is not None:
            await old.close()
        try:
            self._candidate = self._env.transport.core(self._address, self._security)
        except CallError as error:
            self._reject(error)

    async def close(self) -> None:
        """Close everything."""
        clients = (self._client, self._candidate)
        self._client = self._candidate = None
        for client in clients:
            if client is not None:
                await client.close()

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
