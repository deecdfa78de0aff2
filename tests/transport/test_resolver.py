from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from serviceradar_poller.env import Event
from serviceradar_poller.errors import ResolveError
from serviceradar_poller.events.polling import NameStale
from serviceradar_poller.logic.lookups import (
    DOUBTED_MAX,
    LATE_MAX,
    LOOKUPS_MAX,
    NEW_MAX,
    NEW_YOUNG_MAX,
    QUICK_S,
    ZONE_LATE_MIN,
    Rank,
)
from serviceradar_poller.testing import simloop
from serviceradar_poller.transport import interfaces, lookups, resolver
from serviceradar_poller.transport.interfaces import interface_address
from serviceradar_poller.transport.lookups import JOIN_S_MAX, Answer
from serviceradar_poller.transport.resolver import STALE_AFTER_S, STALE_S_MAX, SystemResolver

GOOD = Answer(addresses=("192.0.2.1",))
OLD = Answer(addresses=("192.0.2.66",))
NO_NAME = Answer(error="Name or service not known", final=True)
AGAIN = Answer(error="Temporary failure in name resolution")


def resolve(host: str, timeout_s: float = 5.0) -> tuple[str, ...]:
    return asyncio.run(SystemResolver().resolve(host, timeout_s=timeout_s))


@dataclass
class Names:
    """A system on virtual time: names ending in ``hang`` answer late, the others at once, as told."""

    hang_s: float = 10.0
    answers: dict[str, Answer] = field(default_factory=dict)
    delays_s: dict[str, float] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    running: int = 0
    peak: int = 0
    events: list[Event] = field(default_factory=list)

    def ask(self, host: str, deliver: Callable[[Answer], None]) -> None:
        self.asked.append(host)
        self.running += 1
        self.peak = max(self.peak, self.running)

        def end() -> None:
            self.running -= 1
            deliver(self.answers.get(host, AGAIN if host.endswith("hang") else GOOD))

        delay_s = self.delays_s.get(host, self.hang_s if host.endswith("hang") else 0.001)
        asyncio.get_running_loop().call_later(delay_s, end)

    def resolver(self) -> SystemResolver:
        return SystemResolver(emit=self.events.append, ask=self.ask)


async def outcome(names: SystemResolver, host: str, timeout_s: float = 5.0, *, urgent: bool = False) -> Any:
    """Return the addresses or the words of the failure, and how long they took."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    try:
        found: Any = await names.resolve(host, timeout_s=timeout_s, urgent=urgent)
    except ResolveError as error:
        found = str(error)
    return found, round(loop.time() - began_s, 2)


def sim(test: Callable[[Names, SystemResolver], Awaitable[None]]) -> Names:
    names = Names()

    async def main() -> None:
        await test(names, names.resolver())

    simloop.run(main())
    return names


def test_localhost() -> None:
    """A name of /etc/hosts is resolved, each address once."""
    found = resolve("localhost")
    assert {"127.0.0.1", "::1"} & set(found)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(("host", "expect"), [("10.0.0.1", "10.0.0.1"), ("2001:DB8::1", "2001:db8::1")])
def test_literals_need_no_lookup(host: str, expect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An IP literal is its own address, and takes no thread."""
    monkeypatch.setattr(threading, "Thread", None)
    assert resolve(host) == (expect,)


@pytest.mark.parametrize("host", ["", "no-such-host.invalid", "a" * 70, "..", "x\0y", "ü" * 80])
def test_names_without_address(host: str) -> None:
    """A name that has no address, or is none, is told as that."""
    with pytest.raises(ResolveError, match=r"no address|could not be looked up|is no name"):
        resolve(host)


@pytest.mark.parametrize(
    ("error", "words", "final"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not known", True),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), "Temporary failure", False),
        (OSError(24, "Too many open files"), "Too many open files", False),
    ],
)
def test_the_systems_words(error: OSError, words: str, final: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure has the system's words, and says whether the name has no address or nobody could tell."""

    def getaddrinfo(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(ResolveError) as caught:
        resolve("x")
    assert str(caught.value) == f"the name {'has no address' if final else 'could not be looked up'}: {words}"


def test_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the machine has no thread left, each look-up fails with that, and none is missing afterwards."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        names = SystemResolver()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            found = await asyncio.gather(*(outcome(names, f"h{i}") for i in range(200)))
            assert {text for text, _ in found} == {"the name could not be looked up: can't start new thread"}
        assert await names.resolve("localhost", timeout_s=5.0)

    asyncio.run(main())


def test_hanging_names_hold_up_neither_good_ones_nor_core() -> None:
    """With 40 names that hang, asked again and again, a good name and core's are answered in seconds, then at once."""

    async def test(names: Names, system: SystemResolver) -> None:
        async def insist(host: str) -> None:
            for _ in range(8):
                await outcome(system, host)
                await asyncio.sleep(1.0)

        async with asyncio.TaskGroup() as group:
            for i in range(40):
                group.create_task(insist(f"h{i:02}.hang"))
            await asyncio.sleep(0)
            assert await outcome(system, "core", urgent=True) == (GOOD.addresses, 0.0)
            found, took_s = await outcome(system, "good", timeout_s=30.0)
            assert found == GOOD.addresses
            assert took_s <= 40 / NEW_YOUNG_MAX * QUICK_S + 0.1
            for _ in range(10):
                await asyncio.sleep(3.0)
                assert await outcome(system, "good") == (GOOD.addresses, 0.0)
                assert await outcome(system, "core", urgent=True) == (GOOD.addresses, 0.0)

    assert sim(test).peak <= LOOKUPS_MAX


@pytest.mark.slow
def test_a_dead_zone_of_a_thousand_names() -> None:
    """A thousand names of one zone that hang, asked all the time, delay an unknown name of another for seconds only."""

    async def test(names: Names, system: SystemResolver) -> None:
        names.hang_s = 40.0

        async def insist(host: str) -> None:
            while True:
                await outcome(system, host)
                await asyncio.sleep(3.0)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(insist(f"h{i}.site.hang")) for i in range(1000)]
            await asyncio.sleep(0)
            for i in range(30):
                found, took_s = await outcome(system, f"good-{i}.other")
                assert found == GOOD.addresses
                assert took_s <= 2 * QUICK_S + 0.1
                assert await outcome(system, "core", urgent=True) == (GOOD.addresses, 0.0)
                await asyncio.sleep(2.0)
            for task in tasks:
                task.cancel()

    names = sim(test)
    assert names.peak <= NEW_MAX + 1


def test_a_good_name_in_a_zone_that_was_late() -> None:
    """Where more names of a zone hang than have places, its good name, unknown till then, still has one."""

    async def test(names: Names, system: SystemResolver) -> None:
        hanging = [f"h{i}.site.hang" for i in range(LATE_MAX + 8)]
        names.hang_s = 2.0
        await asyncio.gather(*(outcome(system, host) for host in hanging))  # known to be late from now on
        names.hang_s = 1000.0
        asking = [asyncio.ensure_future(outcome(system, host)) for host in hanging]
        await asyncio.sleep(QUICK_S + 0.1)
        names.delays_s["good.site.hang"] = 0.001
        names.answers["good.site.hang"] = GOOD
        assert await outcome(system, "good.site.hang") == (GOOD.addresses, 0.0)
        for each in asking:
            each.cancel()

    sim(test)


def test_a_name_is_looked_up_once_for_all() -> None:
    """Whoever asks for a name while it is looked up shares that look-up, and each waits its own time."""

    async def test(names: Names, system: SystemResolver) -> None:
        names.delays_s["x"] = 0.5
        found = await asyncio.gather(*(outcome(system, "x", timeout_s) for timeout_s in (0.1, 0.3, 1.0, 5.0)))
        assert names.asked == ["x"]
        assert [took_s for _, took_s in found] == [0.1, 0.3, 0.5, 0.5]
        assert [addresses == GOOD.addresses for addresses, _ in found] == [False, False, True, True]

    sim(test)


def test_a_look_up_that_never_ends_is_made_a_second_time() -> None:
    """After JOIN_S_MAX who asks begins a second look-up, and no third while both run; when one answers, all is well."""

    async def test(names: Names, system: SystemResolver) -> None:
        names.delays_s["x"] = 1e6
        for _ in range(20):
            await outcome(system, "x")
        assert names.asked == ["x", "x"]
        assert 2 * JOIN_S_MAX < 20 * 5.0

        names.asked.clear()
        names.delays_s["y"] = 1e6
        for _ in range(6):
            await outcome(system, "y")
        names.delays_s["y"] = 0.001
        await asyncio.sleep(1.0)
        assert await outcome(system, "y") == (GOOD.addresses, 0.0)
        assert names.asked == ["y", "y"]

        names.asked.clear()
        names.delays_s["z"] = JOIN_S_MAX + 15.0
        for _ in range(6):
            await outcome(system, "z")
        names.delays_s["z"] = 1e6
        for _ in range(20):
            await outcome(system, "z")
        assert names.asked == ["z", "z", "z"]  # the first one had ended when the last was begun

    sim(test)


def test_a_look_up_that_hangs_is_one_of_two_also_after_another_was_answered() -> None:
    """However often a name is asked for and answered beside a look-up that hangs, no two are made beside it."""

    async def test(names: Names, system: SystemResolver) -> None:
        names.delays_s["x"] = 200.0
        await outcome(system, "x")
        await asyncio.sleep(JOIN_S_MAX)
        names.delays_s["x"] = 0.001
        for _ in range(3):
            assert await outcome(system, "x") == (GOOD.addresses, 0.0)
        names.delays_s["x"] = 1e6
        for _ in range(20):
            await outcome(system, "x")
        assert len(names.asked) == 5 and names.running == 2
        await asyncio.sleep(150.0)
        assert names.running == 1, "the first has ended"
        for _ in range(20):
            await outcome(system, "x")
        assert len(names.asked) == 6 and names.running == 2

    assert sim(test).peak == 2


@pytest.mark.parametrize(
    ("newer", "kept"),
    [(GOOD, GOOD.addresses), (NO_NAME, "the name could not be looked up: Temporary failure in name resolution")],
)
def test_an_answer_that_was_overtaken_changes_nothing(newer: Answer, kept: Any) -> None:
    """What an older look-up says after a newer one is of the past."""

    async def test(names: Names, system: SystemResolver) -> None:
        assert await after_both(names, system, newer) == kept

    sim(test)


def test_an_old_answer_is_better_than_none() -> None:
    """Where the newer look-up could tell nothing, what the older one says counts."""

    async def test(names: Names, system: SystemResolver) -> None:
        assert await after_both(names, system, AGAIN) == OLD.addresses

    sim(test)


async def after_both(names: Names, system: SystemResolver, newer: Answer) -> Any:
    """Return what is known once a look-up has said *newer* and, after it, an older one OLD."""
    names.delays_s["x"] = 2 * JOIN_S_MAX
    await outcome(system, "x")
    await asyncio.sleep(JOIN_S_MAX)
    names.answers["x"], names.delays_s["x"] = newer, 0.001
    await outcome(system, "x")
    names.answers["x"] = OLD
    await asyncio.sleep(2 * JOIN_S_MAX)
    assert names.running == 0
    names.answers["x"] = AGAIN
    return (await outcome(system, "x"))[0]


def test_a_name_that_is_doubted_keeps_its_place() -> None:
    """Another who asks for it does not bring it behind those who came later; core brings it to the front."""

    async def main() -> None:
        asked: list[str] = []
        ends: dict[str, Callable[[Answer], None]] = {}

        def ask(host: str, deliver: Callable[[Answer], None]) -> None:
            asked.append(host)
            ends[host] = deliver

        made = lookups.Lookups(ask, on_late=lambda host: None, on_answer=lambda host, answer, late: None)
        for i in range(ZONE_LATE_MIN):
            made.join(f"late-{i}.lan", Rank.NEW)
        await asyncio.sleep(QUICK_S + 0.1)
        for i in range(DOUBTED_MAX):
            made.join(f"doubted-{i}.lan", Rank.NEW)
        assert len(asked) == ZONE_LATE_MIN + DOUBTED_MAX
        for host in ("shared.lan", "second.lan", "third.lan", "core.lan"):
            made.join(host, Rank.NEW)
        assert made.waiting == 4
        for rank in (Rank.PROVEN, Rank.NEW, Rank.PROVEN):
            made.join("shared.lan", rank)
        asked.clear()
        made.join("core.lan", Rank.URGENT)
        assert asked == ["core.lan"]
        for i in range(3):
            ends[f"doubted-{i}.lan"](GOOD)
        assert asked == ["core.lan", "shared.lan", "second.lan", "third.lan"]

    simloop.run(main())


def test_a_failure_says_what_the_time_went_by_with() -> None:
    """Waiting for a place counts as waiting for the answer does, and the text tells them apart."""

    async def test(names: Names, system: SystemResolver) -> None:
        names.hang_s = 7.0
        known = [f"h{i}.hang" for i in range(LATE_MAX)]
        late = [*known, "waits.hang"]
        await asyncio.gather(*(outcome(system, host, 20.0) for host in late))
        asking = [asyncio.ensure_future(outcome(system, host)) for host in known]
        await asyncio.sleep(1.5)
        text, took_s = await outcome(system, "waits.hang")
        assert took_s == 5.0
        others = f"{LATE_MAX} look-ups of other names do not end"
        assert text == f"the look-up of the name did not begin within 5 s: {others}"
        found = [await each for each in asking]
        assert found[0] == ("no answer to the look-up of the name within 5 s", 5.0)
        await asyncio.sleep(2.0)
        asking = [asyncio.ensure_future(outcome(system, host, 20.0)) for host in known]
        await asyncio.sleep(3.0)
        text, took_s = await outcome(system, "waits.hang")
        assert text == "no answer to the look-up of the name within 1 s, after 4 s of waiting for others"
        await asyncio.gather(*asking)

    sim(test)


def test_what_nobody_waits_for_is_not_begun() -> None:
    """A look-up that has no place when its last caller leaves is forgotten."""

    async def test(names: Names, system: SystemResolver) -> None:
        hanging = [asyncio.ensure_future(outcome(system, f"h{i}.hang")) for i in range(NEW_YOUNG_MAX)]
        await asyncio.sleep(0.1)
        await outcome(system, "late", 0.5)
        cancelled = asyncio.ensure_future(system.resolve("gone", timeout_s=5.0))
        await asyncio.sleep(0.1)
        cancelled.cancel()
        await asyncio.gather(*hanging)
        assert len(names.asked) == NEW_YOUNG_MAX

    sim(test)


def test_the_names_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond WAITING_MAX names a look-up fails at once."""
    monkeypatch.setattr(lookups, "WAITING_MAX", 5)

    async def test(names: Names, system: SystemResolver) -> None:
        found = await asyncio.gather(*(outcome(system, f"h{i}.hang", 0.5) for i in range(NEW_YOUNG_MAX + 6)))
        assert found[-1] == ("too many names wait to be looked up, 5 of them", 0.0)
        assert [took_s for _, took_s in found[:-1]] == [0.5] * (NEW_YOUNG_MAX + 5)

    sim(test)


def test_core_overtakes_with_a_name_that_waits() -> None:
    """Core's name begins at once, also where an agent has asked for the same and waits its turn."""

    async def test(names: Names, system: SystemResolver) -> None:
        hanging = [asyncio.ensure_future(outcome(system, f"h{i}.hang")) for i in range(30)]
        agent = asyncio.ensure_future(outcome(system, "core"))
        await asyncio.sleep(0.1)
        assert await outcome(system, "core", urgent=True) == (GOOD.addresses, 0.0)
        assert await agent == (GOOD.addresses, 0.1)
        await asyncio.gather(*hanging)

    sim(test)


@pytest.mark.parametrize("silent", [True, False])
def test_the_last_addresses_serve_while_a_name_is_not_answered(silent: bool) -> None:
    """Where there is no answer, or one that tells nothing, the last addresses are used, and that is told."""

    async def test(names: Names, system: SystemResolver) -> None:
        await outcome(system, "x")
        names.delays_s["x"], names.answers["x"] = (60.0 if silent else 0.001), AGAIN
        took_s = STALE_AFTER_S if silent else 0.0
        for _ in range(3):
            await asyncio.sleep(60.0)
            assert await outcome(system, "x") == (GOOD.addresses, took_s)
        told = [event for event in names.events if isinstance(event, NameStale)]
        assert [event.first for event in told] == [True, False, False]
        assert told[0].age_s == pytest.approx(60.0 + took_s, abs=0.1)
        assert ("no answer" if silent else "Temporary failure") in told[0].error
        await asyncio.sleep(61.0)
        names.delays_s["x"], names.answers["x"] = 0.001, Answer(addresses=("192.0.2.2",))
        assert await outcome(system, "x") == (("192.0.2.2",), 0.0)
        names.answers["x"] = AGAIN
        assert await outcome(system, "x") == (("192.0.2.2",), 0.0)
        last = names.events[-1]
        assert isinstance(last, NameStale) and last.first

    sim(test)


def test_a_late_answer_is_used_the_next_time() -> None:
    """What a look-up says after its callers went on with the last addresses takes their place."""

    async def test(names: Names, system: SystemResolver) -> None:
        await outcome(system, "x")
        names.delays_s["x"], names.answers["x"] = 3.0, Answer(addresses=("192.0.2.2",))
        assert await outcome(system, "x") == (GOOD.addresses, STALE_AFTER_S)
        await asyncio.sleep(5.0)
        assert await outcome(system, "x") == (("192.0.2.2",), STALE_AFTER_S)

    sim(test)


def test_last_addresses_end() -> None:
    """A name that is said not to exist has no addresses any more, and those of days ago are not used."""

    async def test(names: Names, system: SystemResolver) -> None:
        await outcome(system, "gone")
        await outcome(system, "old")
        names.answers["gone"] = NO_NAME
        text, _ = await outcome(system, "gone")
        assert text == "the name has no address: Name or service not known"
        names.answers |= {"gone": AGAIN, "old": AGAIN}
        text, _ = await outcome(system, "gone")
        assert text == "the name could not be looked up: Temporary failure in name resolution"
        assert (await outcome(system, "old"))[0] == GOOD.addresses
        await asyncio.sleep(STALE_S_MAX)
        assert (await outcome(system, "old"))[0] == text
        assert not [event for event in names.events if isinstance(event, NameStale) and event.host == "gone"]

    sim(test)


def test_names_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """How names were answered is known of NAMES_MAX; beyond it the one that was not used for longest is forgotten."""
    monkeypatch.setattr(resolver, "NAMES_MAX", 3)

    async def test(names: Names, system: SystemResolver) -> None:
        for host in ("a", "b", "c", "a", "d"):
            await outcome(system, host)
        names.answers |= dict.fromkeys("abcd", AGAIN)
        found = {host: (await outcome(system, host))[0] for host in "acdb"}
        assert {host for host in found if found[host] == GOOD.addresses} == {"a", "c", "d"}

    sim(test)


@pytest.mark.slow
def test_hanging_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a real getaddrinfo that hangs: good names and core's are answered, threads are bounded, and end."""
    release, lock = threading.Event(), threading.Lock()
    running = peak = 0

    def getaddrinfo(host: str, *args: Any, **kwargs: Any) -> list[Any]:
        nonlocal running, peak
        if "hang" in host:
            with lock:
                running += 1
                peak = max(peak, running)
            release.wait(20.0)
            with lock:
                running -= 1
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    async def main() -> None:
        names = SystemResolver()
        hanging = [asyncio.create_task(outcome(names, f"h{i}.hang", 2.5)) for i in range(100)]
        await asyncio.sleep(0)
        found, took_s = await outcome(names, "core", urgent=True)
        assert (found, took_s < QUICK_S) == (("192.0.2.1",), True)
        assert (await outcome(names, "good"))[0] == ("192.0.2.1",)
        assert {type(found) for found, _ in await asyncio.gather(*hanging)} == {str}
        assert NEW_YOUNG_MAX < peak <= NEW_MAX
        assert names.timeouts == 100
        release.set()
        assert await names.resolve("again", timeout_s=5.0) == ("192.0.2.1",)

    asyncio.run(main())


def test_no_time() -> None:
    """Without time left there is no answer, and nothing is asked."""
    with pytest.raises(ResolveError, match="no time left"):
        resolve("localhost", 0.0)


def test_cancel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancelled lookup is cancelled at once."""
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: release.wait(10.0) and [])

    async def main() -> None:
        task = asyncio.create_task(SystemResolver().resolve("x", timeout_s=30.0))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task}, timeout=5.0)
        assert task.cancelled()
        release.set()

    asyncio.run(main())


def test_interface_address() -> None:
    """The machine's own address is an IPv4 literal and not the loopback's, or there is none."""
    found = interface_address()
    assert found == "" or not ipaddress.IPv4Address(found).is_loopback


def test_first_interface_that_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback, interfaces that are down and those without an address are passed over, in index order."""
    flags = {"lo": 0x9, "down": 0x2, "bare": 0x1, "eth0": 0x1043, "eth1": 0x1043}
    addresses = {"lo": "127.0.0.1", "down": "10.0.0.1", "eth0": "10.0.0.2", "eth1": "10.0.0.3"}

    def ask(sock: socket.socket, request: int, name: str) -> bytes | None:
        head = name.encode().ljust(16, b"\0")
        if request == 0x8913:
            return head + flags[name].to_bytes(2, "little") + bytes(22)
        if name not in addresses:
            return None
        return head + b"\x02\x00\x00\x00" + socket.inet_aton(addresses[name]) + bytes(16)

    monkeypatch.setattr(interfaces, "_ask", ask)
    monkeypatch.setattr(
        socket,
        "if_nameindex",
        lambda: [(5, "eth1"), (1, "lo"), (4, "eth0"), (2, "down"), (3, "bare")],
    )
    assert interface_address() == "10.0.0.2"
