"""What one agent's connection keeps of the renewal of its certificates: the proof under way, and those that failed."""

from __future__ import annotations

from collections.abc import Callable

from serviceradar_poller.agents.slot import AgentSlot
from serviceradar_poller.env import AgentClient
from serviceradar_poller.errors import CallError
from serviceradar_poller.events.polling import CredentialsRejected, CredentialsRenewed
from serviceradar_poller.logic.backoff import BackoffSettings, delay_s
from serviceradar_poller.otp import Timer

#: Between two attempts to prove new certificates.
RENEWAL_RETRY = BackoffSettings(min_s=10.0, max_s=600.0)


class Renewal:
    """
    The state of a renewal; its connection makes the clients.

    Attributes:
        candidate: The client that is being proven.
        proving: A proof is under way.
        again: The files changed once more meanwhile.
    """

    __slots__ = ("_failed", "_rejected", "_slot", "_timer", "again", "candidate", "proving")

    def __init__(self, slot: AgentSlot) -> None:
        self._slot = slot
        self._timer: Timer | None = None  # for the next attempt after one that failed
        self._failed = 0  # attempts since the last one that succeeded
        self._rejected = ""  # what was last told of credentials that can't be used
        self.candidate: AgentClient | None = None
        self.proving = False
        self.again = False

    def begin(self) -> None:
        """Begin a proof; one that was to come later is this one."""
        self._cancel()
        self.proving = True

    def end(self) -> AgentClient | None:
        """End the proof and return the client that it was about, if there was one."""
        self.proving = False
        candidate, self.candidate = self.candidate, None
        return candidate

    def take_again(self) -> bool:
        """Return whether the files changed meanwhile, once."""
        again, self.again = self.again, False
        return again

    def later(self, send_after: Callable[[float], Timer]) -> None:
        """Try again: the peer may be about to get its own new certificates; ever less often."""
        self._cancel()
        self._timer = send_after(delay_s(RENEWAL_RETRY, self._failed, self._slot.fleet.env.rng.random()))
        self._failed += 1

    def succeeded(self) -> None:
        """Tell of certificates that are in use from now on."""
        self._failed, self._rejected = 0, ""
        self._slot.fleet.env.emit(CredentialsRenewed(peer=self._slot.name))

    def reject(self, error: CallError) -> None:
        """Tell of certificates that can't be used, once for each thing that is wrong with them."""
        if error.detail != self._rejected:
            self._rejected = error.detail
            self._slot.fleet.env.emit(CredentialsRejected(peer=self._slot.name, error=error.detail))

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
