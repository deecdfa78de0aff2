"""What a caller of the kernel may catch."""

# ruff: noqa: N818 — the names of OTP's answers, which say what is the case

from __future__ import annotations

from serviceradar_poller.errors import PollerError
from serviceradar_poller.otp.exits import ExitReason, one_line


class SpecError(ValueError):
    """A child spec or a supervisor's flags can't be used; the text names the field."""


class KernelError(PollerError):
    """Base of the operating errors between processes."""


class NoProcess(KernelError):
    """The process is not alive."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{path}: no such process")
        self.path = path


class MailboxFull(KernelError):
    """The process has as many messages waiting as it accepts."""

    def __init__(self, path: str, limit: int) -> None:
        super().__init__(f"{path}: mailbox holds {limit} messages already")
        self.path = path
        self.limit = limit


class CallTimeout(KernelError):
    """No answer came in time; the message may still be handled."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__(f"{path}: no answer within {timeout_s:g} s")
        self.path = path
        self.timeout_s = timeout_s


class PeerExited(KernelError):
    """The process ended before it answered."""

    def __init__(self, path: str, reason: ExitReason) -> None:
        super().__init__(f"{path}: ended before it answered: {reason}")
        self.path = path
        self.reason = reason


class DeadlockError(KernelError):
    """The answer could only come after the caller has gone on: itself, or a supervisor that waits for it."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{path}: it waits for the caller")
        self.path = path


class HelperFailed(KernelError):
    """A helper task raised and took its owner along; the cause is the helper's exception."""

    def __init__(self, name: str, cause: BaseException) -> None:
        super().__init__(f"helper {name}: {one_line(cause)}")
        self.name = name
        self.__cause__ = cause


class StartTimeout(KernelError):
    """A child did not become ready in time."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__(f"{path}: not ready within {timeout_s:g} s")
        self.path = path
        self.timeout_s = timeout_s


class EndedEarly(KernelError):
    """A child ended before it was ready, without an exception."""

    def __init__(self, path: str, reason: ExitReason) -> None:
        super().__init__(f"{path}: ended before it was ready ({reason.kind})")
        self.path = path
        self.reason = reason


class StartFailed(KernelError):
    """
    A child did not start.

    Attributes:
        path: The child that failed; in a failed tree, the innermost one.
        cause: Its exception, also in ``__cause__``.
        traceback: The cause's traceback as text; the frames themselves are gone.
    """

    def __init__(self, path: str, cause: BaseException, traceback: str = "") -> None:
        super().__init__(f"{path}: {one_line(cause)}")
        self.path = path
        self.cause = cause
        self.traceback = traceback
        self.__cause__ = cause


class ChildError(KernelError):
    """Base of a supervisor's refusals."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = path


class AlreadyStarted(ChildError):
    """The child is up; ``handle`` is what it gave to ready()."""

    def __init__(self, path: str, handle: object = None) -> None:
        super().__init__(path, "already started")
        self.handle = handle


class AlreadyPresent(ChildError):
    """The spec is kept, the child is not running: restart or delete it."""

    def __init__(self, path: str) -> None:
        super().__init__(path, "already present")


class MaxChildren(ChildError):
    """The supervisor has as many children as it accepts."""

    def __init__(self, path: str, limit: int) -> None:
        super().__init__(path, f"refused: the supervisor has {limit} children already")
        self.limit = limit


class NotFound(ChildError):
    """No child has that id."""

    def __init__(self, path: str) -> None:
        super().__init__(path, "no such child")


class Running(ChildError):
    """The child is up."""

    def __init__(self, path: str) -> None:
        super().__init__(path, "is running")


class Restarting(ChildError):
    """The child waits for its next start."""

    def __init__(self, path: str) -> None:
        super().__init__(path, "is being restarted")
