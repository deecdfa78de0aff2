"""Look the names of an agent's machine up until one of them has an address."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from serviceradar_poller.agents.slot import AgentSlot
from serviceradar_poller.errors import ResolveError
from serviceradar_poller.logic.backoff import BackoffSettings, delay_s
from serviceradar_poller.logic.device import device_ip, ip_candidates
from serviceradar_poller.logic.outcome import Device

#: Deadline of one name look-up.
LOOKUP_S = 2.0
#: Between two attempts.
LOOKUP_RETRY = BackoffSettings(min_s=30.0, max_s=600.0)


async def look_up(slot: AgentSlot, tell: Callable[[dict[str, tuple[str, ...]]], object]) -> None:
    """
    Resolve the first of the agent's names that has an address, and go on trying while none has.

    Args:
        tell: Called with what each attempt found, by name.
    """
    names, env = slot.names, slot.fleet.env
    attempt = 0
    while True:
        addresses: dict[str, tuple[str, ...]] = {}
        for name in names:
            try:
                addresses[name] = await env.resolver.resolve(name, timeout_s=LOOKUP_S)
                break
            except ResolveError:
                addresses[name] = ()
        tell(addresses)
        if any(addresses.values()):
            return
        await asyncio.sleep(delay_s(LOOKUP_RETRY, attempt, env.rng.random()))
        attempt += 1


def note_addresses(slot: AgentSlot, addresses: Mapping[str, tuple[str, ...]]) -> None:
    """Keep what an attempt found: names stay to be looked up, by whatever incarnation, until one has an address."""
    candidates = ip_candidates(slot.name, slot.config.address, "", slot.override)
    slot.machine = Device(ip=device_ip(candidates, addresses, ""), host=slot.machine.host)
    if any(addresses.values()):
        slot.names = ()
    if slot.device_known is not None:
        slot.device_known.set()
