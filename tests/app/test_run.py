"""The start of the program: what it waits for, and what ends that wait."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence

from serviceradar_poller.app.run import _unless_told, certificate_warnings
from serviceradar_poller.config.model import SecurityConfig, SecurityMode, TlsConfig
from serviceradar_poller.env import SystemClock
from serviceradar_poller.testing.simloop import run
from serviceradar_poller.testing.simsite import agent_config, now_s, site_config
from serviceradar_poller.transport.credentials import CredentialsCache
from serviceradar_poller.transport.material import Examined, Finding

MTLS = SecurityConfig(mode=SecurityMode.MTLS, tls=TlsConfig(cert_file="/c", key_file="/k", ca_file="/a"))
MISSING = Finding(field="tls.cert_file", file="/c", found="No such file or directory", accepted="a readable PEM file")


class Slow:
    """Judges for a while."""

    running = 0

    async def __call__(self, blocks: Sequence[TlsConfig], *, now: float) -> tuple[Examined, ...]:
        self.running += 1
        try:
            await asyncio.sleep(15.0)
        finally:
            self.running -= 1
        return tuple(Examined(None, None, (MISSING,)) for _ in blocks)


def test_a_signal_ends_the_first_judgement() -> None:
    """An order to stop that comes while certificates are judged is obeyed at once, and the judging ends."""

    async def main() -> None:
        examiner, signals = Slow(), asyncio.Queue[signal.Signals]()
        cache = CredentialsCache(SystemClock(), examiner=examiner)
        config = site_config([agent_config("a", security=MTLS)])
        asyncio.get_running_loop().call_later(2.0, signals.put_nowait, signal.SIGTERM)
        begin_s = now_s()
        assert await _unless_told(signals, certificate_warnings(config, cache, source="test")) == []
        assert now_s() - begin_s < 2.1
        assert examiner.running == 0
        assert signals.get_nowait() is signal.SIGTERM  # for who acts on it

    run(main())


def test_the_first_judgement_is_waited_for() -> None:
    """Without a signal what was found is returned, and a later signal goes to whoever waits for it then."""

    async def main() -> None:
        signals = asyncio.Queue[signal.Signals]()
        cache = CredentialsCache(SystemClock(), examiner=Slow())
        config = site_config([agent_config("a", security=MTLS)])
        [warning] = await _unless_told(signals, certificate_warnings(config, cache, source="test"))
        assert warning.path == "agents.a.security.tls.cert_file"
        signals.put_nowait(signal.SIGINT)
        assert await signals.get() is signal.SIGINT

    run(main())
