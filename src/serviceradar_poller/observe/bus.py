"""
The bus that carries every event from where it happens to the sinks that write, count and remember it.

Guarantees, for whoever emits:

- ``emit`` never raises and never waits. A sink that raises is counted each time and told about once, to the
  other sinks (as SinkFailed), and on stderr where no other sink took it.
- On the loop's thread the sinks have run when ``emit`` returns, in the order in which they were added.
- On another thread (the loop watchdog's), sinks added with ``any_thread`` run at once, so that a loop that is
  stuck for ever is still logged; the others run on the loop as soon as it turns. What waits for the loop is
  bounded by FOREIGN_EVENTS_MAX, beyond which it is dropped and counted.
- With no loop bound, or when it is closed, sinks run on the thread that emits.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from serviceradar_poller.observe.own_events import ObservedEvent, Sink, SinkFailed

#: Events of other threads that may wait for the loop; the watchdog sends one per blocked episode.
FOREIGN_EVENTS_MAX = 1_000


@dataclass(slots=True, eq=False)
class _Subscription:
    sink: Sink
    name: str
    any_thread: bool
    failures: int = 0


def _to_stderr(text: str) -> None:
    try:
        sys.stderr.write(text)
    except (OSError, ValueError, AttributeError):
        # There is no stderr left to tell on; the failure stays visible in ``EventBus.failures``.
        return


class EventBus:
    """Fan events out to sinks; see the module for the guarantees."""

    def __init__(self, *, last_resort: Callable[[str], None] = _to_stderr) -> None:
        self._subscriptions: tuple[_Subscription, ...] = ()
        self._last_resort = last_resort
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._foreign_waiting = 0
        self._lock = threading.Lock()
        self._failures = 0
        self._dropped = 0

    @property
    def failures(self) -> int:
        """How often a sink has raised."""
        return self._failures

    @property
    def dropped(self) -> int:
        """Events of other threads that were dropped because the loop did not take them."""
        return self._dropped

    def add(self, sink: Sink, *, name: str = "", any_thread: bool = False) -> None:
        """Send all later events to *sink* as well; ``any_thread`` says that it may run on every thread."""
        called = name or getattr(sink, "__qualname__", "") or type(sink).__qualname__
        self._subscriptions += (_Subscription(sink, called, any_thread),)

    def remove(self, sink: Sink) -> None:
        """Send *sink* no more events; without effect where it was not added."""
        self._subscriptions = tuple(s for s in self._subscriptions if s.sink != sink)

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Make *loop*, which runs on the calling thread, the one on which sinks run."""
        self._loop_thread = threading.get_ident()
        self._loop = loop

    def unbind(self) -> None:
        """Let sinks run on whatever thread emits again."""
        self._loop = None

    def emit(self, event: ObservedEvent) -> None:
        """Hand *event* to every sink."""
        if self._loop is None or threading.get_ident() == self._loop_thread:
            for subscription in self._subscriptions:
                try:
                    subscription.sink(event)
                except Exception as error:  # noqa: BLE001 - a sink's bug must not reach the poller
                    self._failed(subscription, event, error)
            return
        self._emit_foreign(event)

    def _emit_foreign(self, event: ObservedEvent) -> None:
        self._deliver(event, any_thread=True)
        loop = self._loop
        with self._lock:
            if self._foreign_waiting >= FOREIGN_EVENTS_MAX:
                self._dropped += 1
                return
            self._foreign_waiting += 1
        try:
            if loop is None:
                raise RuntimeError("unbound meanwhile")
            loop.call_soon_threadsafe(self._arrive, event)
        except RuntimeError:  # the loop is closed, or was unbound meanwhile
            self._arrive(event)

    def _arrive(self, event: ObservedEvent) -> None:
        with self._lock:
            self._foreign_waiting -= 1
        self._deliver(event, any_thread=False)

    def _deliver(self, event: ObservedEvent, *, any_thread: bool) -> None:
        for subscription in self._subscriptions:
            if subscription.any_thread is any_thread:
                try:
                    subscription.sink(event)
                except Exception as error:  # noqa: BLE001 - as above
                    self._failed(subscription, event, error)

    def _failed(self, subscription: _Subscription, event: ObservedEvent, error: Exception) -> None:
        self._failures += 1
        subscription.failures += 1
        if subscription.failures > 1:
            return
        report = SinkFailed(
            sink=subscription.name,
            event=type(event).__name__,
            error=f"{type(error).__name__}: {error}",
            traceback="".join(traceback.format_exception(error)),
        )
        told = False
        for other in self._subscriptions:
            if other is subscription:
                continue
            try:
                other.sink(report)
                told = True
            except Exception as next_error:  # noqa: BLE001 - as above; ends, for each sink is reported once
                self._failed(other, report, next_error)
        if not told:
            self._last_resort(f"event sink {report.sink} failed on {report.event}: {report.traceback}\n")
