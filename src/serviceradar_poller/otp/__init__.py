"""
Supervision with Erlang/OTP's semantics on asyncio: child specs, actors, supervisors, inspection.

What belongs here: starting, watching, restarting and stopping processes. What does not: polling.
``plan`` decides and is pure; ``process`` runs one child; ``supervisor`` performs the plan; ``tree`` is what
the outside sees.
"""

from serviceradar_poller.otp.actor import Actor, actor, member
from serviceradar_poller.otp.build import another, dynamic_supervisor, supervisor
from serviceradar_poller.otp.child import Child
from serviceradar_poller.otp.errors import (
    AlreadyPresent,
    AlreadyStarted,
    CallTimeout,
    ChildError,
    DeadlockError,
    EndedEarly,
    HelperFailed,
    KernelError,
    MailboxFull,
    MaxChildren,
    NoProcess,
    NotFound,
    PeerExited,
    Restarting,
    Running,
    SpecError,
    StartFailed,
    StartTimeout,
)
from serviceradar_poller.otp.exits import KILLED, NORMAL, SHUTDOWN, ExitReason
from serviceradar_poller.otp.mailbox import Ref, Reply, Timer
from serviceradar_poller.otp.plan import ChildState
from serviceradar_poller.otp.spec import (
    BRUTAL_KILL,
    AutoShutdown,
    BrutalKill,
    ChildSpec,
    ChildType,
    Quarantine,
    Restart,
    Strategy,
    quote_id,
)
from serviceradar_poller.otp.supref import ChildCounts, ChildInfo, SupervisorRef
from serviceradar_poller.otp.system import System
from serviceradar_poller.otp.tree import MailboxInfo, Tree, TreeNode, start_tree
from serviceradar_poller.otp.watchdog import LoopWatchdog

__all__ = [
    "BRUTAL_KILL",
    "KILLED",
    "NORMAL",
    "SHUTDOWN",
    "Actor",
    "AlreadyPresent",
    "AlreadyStarted",
    "AutoShutdown",
    "BrutalKill",
    "CallTimeout",
    "Child",
    "ChildCounts",
    "ChildError",
    "ChildInfo",
    "ChildSpec",
    "ChildState",
    "ChildType",
    "DeadlockError",
    "EndedEarly",
    "ExitReason",
    "HelperFailed",
    "KernelError",
    "LoopWatchdog",
    "MailboxFull",
    "MailboxInfo",
    "MaxChildren",
    "NoProcess",
    "NotFound",
    "PeerExited",
    "Quarantine",
    "Ref",
    "Reply",
    "Restart",
    "Restarting",
    "Running",
    "SpecError",
    "StartFailed",
    "StartTimeout",
    "Strategy",
    "SupervisorRef",
    "System",
    "Timer",
    "Tree",
    "TreeNode",
    "actor",
    "another",
    "dynamic_supervisor",
    "member",
    "quote_id",
    "start_tree",
    "supervisor",
]
