from __future__ import annotations

import asyncio
import os
import shutil
import ssl
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from serviceradar_poller.config.model import SecurityConfig, SecurityMode, TlsConfig
from serviceradar_poller.env import SystemClock
from serviceradar_poller.errors import CallError
from serviceradar_poller.lab.pki import make_leaf
from serviceradar_poller.transport import credentials
from serviceradar_poller.transport.certificates import examine
from serviceradar_poller.transport.credentials import FAILED_AGAIN_S, REFUSED_AGAIN_S, CredentialsCache
from serviceradar_poller.transport.examiner import BLOCKS_MAX, examine_apart
from serviceradar_poller.transport.failures import again, unusable_credentials
from serviceradar_poller.transport.material import Examined

Block = Callable[..., SecurityConfig]
FAILURE = unusable_credentials("no judgement")


class Counted:
    """Judges in this process, or in a child, and counts; fails while ``failing`` says so."""

    def __init__(self, *, apart: bool = False) -> None:
        self.batches: list[int] = []
        self.failing: Callable[[Sequence[TlsConfig]], bool] = lambda blocks: False
        self.running = 0
        self.gate: asyncio.Event | None = None
        self._apart = apart

    async def __call__(self, blocks: Sequence[TlsConfig], *, now: float) -> tuple[Examined, ...]:
        self.batches.append(len(blocks))
        self.running += 1
        assert self.running == 1
        try:
            await (self.gate.wait() if self.gate is not None else asyncio.sleep(0))
            if self.failing(blocks):
                raise again(FAILURE)
            if self._apart:
                return await examine_apart(blocks, now=now)
            return tuple(examine(SecurityConfig(mode=SecurityMode.MTLS, tls=tls), now=now) for tls in blocks)
        finally:
            self.running -= 1


class SetClock(SystemClock):
    ahead_s = 0.0

    def wall(self) -> float:
        return super().wall() + self.ahead_s


def _write(file: str, content: bytes) -> None:
    Path(file).write_bytes(content)


@pytest.fixture
def own(pki: Path, tmp_path: Path) -> SecurityConfig:
    """A block whose files a test may change."""
    for name in ("poller.pem", "poller-key.pem", "root.pem", "root-key.pem"):
        shutil.copy(pki / name, tmp_path)
    return SecurityConfig(
        mode=SecurityMode.MTLS,
        tls=TlsConfig(
            cert_file=str(tmp_path / "poller.pem"),
            key_file=str(tmp_path / "poller-key.pem"),
            ca_file=str(tmp_path / "root.pem"),
        ),
    )


def test_one_object_for_equal_files(own: SecurityConfig) -> None:
    """Two thousand agents with the same files share one object, whatever their names are."""

    async def main() -> None:
        cache = CredentialsCache(SystemClock())
        made = {id(await cache.channel_credentials(replace(own, server_name=f"agent-{i}"))) for i in range(2000)}
        assert len(made) == 1
        assert (cache.loads, cache.hits) == (1, 1999)

    asyncio.run(main())


def test_a_server_has_a_context_of_its_own(own: SecurityConfig, block: Block) -> None:
    """It demands a client certificate, comes from the same judgement as a client's, and bad files have none."""

    async def main() -> None:
        cache = CredentialsCache(SystemClock())
        assert await cache.server_context(None) is None
        context = await cache.server_context(own)
        assert context is not None
        assert (context.verify_mode, context.minimum_version) == (ssl.CERT_REQUIRED, ssl.TLSVersion.TLSv1_3)
        assert await cache.ssl_context(own) is not context
        assert cache.loads == 1
        with pytest.raises(CallError, match="expired"):
            await cache.server_context(block(leaf="expired"))

    asyncio.run(main())


def test_plaintext_has_none() -> None:
    """Without a block, or with mode none, there are no credentials."""

    async def main() -> None:
        cache = CredentialsCache(SystemClock())
        assert await cache.channel_credentials(None) is None
        assert await cache.channel_credentials(SecurityConfig()) is None

    asyncio.run(main())


def test_spiffe_is_refused() -> None:
    """A mode that this version can't do never falls back to plaintext."""

    async def main() -> None:
        with pytest.raises(CallError, match="spiffe"):
            await CredentialsCache(SystemClock()).channel_credentials(SecurityConfig(mode=SecurityMode.SPIFFE))

    asyncio.run(main())


@pytest.mark.slow
def test_rotation_is_noticed(own: SecurityConfig, tmp_path: Path) -> None:
    """After new files were put in place, the next client gets them."""

    async def main() -> None:
        cache = CredentialsCache(SystemClock())
        before = await cache.channel_credentials(own)
        make_leaf(tmp_path, "poller", role="poller", overwrite=True)
        after = await cache.channel_credentials(own)
        assert after is not before
        assert await cache.channel_credentials(own) is after

    asyncio.run(main())


@pytest.mark.slow
def test_bad_rotation(own: SecurityConfig) -> None:
    """A broken new file fails new clients with its name; the old ones are not this cache's."""

    async def main() -> None:
        cache = CredentialsCache(SystemClock())
        await cache.channel_credentials(own)
        _write(own.tls.key_file, b"broken")
        with pytest.raises(CallError, match=r"poller-key\.pem"):
            await cache.channel_credentials(own)
        os.unlink(own.tls.key_file)
        with pytest.raises(CallError, match="No such file"):
            await cache.channel_credentials(own)

    asyncio.run(main())


@pytest.mark.slow
def test_expiry_in_the_cache(own: SecurityConfig) -> None:
    """A certificate that ends while it is cached is judged anew."""

    async def main() -> None:
        clock = SetClock()
        cache = CredentialsCache(clock)
        await cache.channel_credentials(own)
        clock.ahead_s = 400 * 86_400.0
        with pytest.raises(CallError, match="expired"):
            await cache.channel_credentials(own)

    asyncio.run(main())


@pytest.mark.slow
def test_bounded(own: SecurityConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least recently used files leave the cache, and are counted."""

    async def main() -> None:
        monkeypatch.setattr(credentials, "CREDENTIALS_CACHED_MAX", 2)
        cache = CredentialsCache(SystemClock())
        blocks = []
        for i in range(3):
            path = tmp_path / f"root-{i}.pem"
            shutil.copy(own.tls.ca_file, path)
            blocks.append(replace(own, tls=replace(own.tls, ca_file=str(path))))
        first = await cache.channel_credentials(blocks[0])
        await cache.channel_credentials(blocks[1])
        assert await cache.channel_credentials(blocks[0]) is first
        await cache.channel_credentials(blocks[2])
        assert cache.evictions == 1
        assert await cache.channel_credentials(blocks[0]) is first
        loads = cache.loads
        await cache.channel_credentials(blocks[1])
        assert cache.loads == loads + 1

    asyncio.run(main())


@pytest.mark.slow
def test_one_context_for_equal_files(own: SecurityConfig, tmp_path: Path) -> None:
    """A TLS context is shared like gRPC's credentials, from one reading of the files, and goes with them."""

    async def main() -> None:
        cache = CredentialsCache(SystemClock())
        made = [await cache.ssl_context(replace(own, server_name=f"agent-{i}")) for i in range(100)]
        assert made[0] is not None
        assert all(each is made[0] for each in made)
        assert await cache.channel_credentials(own) is not None
        assert cache.loads == 1
        make_leaf(tmp_path, "poller", role="poller", overwrite=True)
        assert await cache.ssl_context(own) is not made[0]
        assert cache.loads == 2
        assert await cache.ssl_context(None) is None
        assert await cache.ssl_context(SecurityConfig()) is None
        with pytest.raises(CallError, match="spiffe"):
            await cache.ssl_context(SecurityConfig(mode=SecurityMode.SPIFFE))

    asyncio.run(main())


def test_a_context_demands_what_it_should(own: SecurityConfig) -> None:
    """TLS 1.3, a verified certificate, and the name in it; no look at the common name."""

    async def main() -> None:
        context = await CredentialsCache(SystemClock()).ssl_context(own)
        assert context is not None
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
        assert not context.hostname_checks_common_name
        assert len(context.get_ca_certs()) == 1

    asyncio.run(main())


def test_no_key_on_disk(own: SecurityConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSL reads our key from memory: no file is made, nothing stays open, also when the key is refused."""

    async def main() -> None:
        opened: list[str] = []

        def watched(context: ssl.SSLContext, path: str, **kwargs: object) -> None:
            opened.append(os.readlink(path))
            raise ssl.SSLError("no")

        monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", watched)
        before = set(os.listdir("/proc/self/fd"))
        with pytest.raises(CallError) as caught:
            await CredentialsCache(SystemClock()).ssl_context(own)
        assert caught.value.reason == "credentials"
        assert opened[0].startswith("/memfd:")
        assert set(os.listdir("/proc/self/fd")) <= before

    asyncio.run(main())


def test_text_around_the_certificates(own: SecurityConfig) -> None:
    """Bundles hold comments in any encoding; gRPC skips them, and so must we."""
    roots = Path(own.tls.ca_file)
    roots.write_bytes("# Zürich, Wurzel\n".encode() + roots.read_bytes() + b"\xff\xfe trailing\n")

    async def main() -> None:
        context = await CredentialsCache(SystemClock()).ssl_context(own)
        assert context is not None
        assert len(context.get_ca_certs()) == 1

    asyncio.run(main())


def copies(own: SecurityConfig, folder: Path, count: int) -> list[SecurityConfig]:
    """Return blocks of different files with the same content."""
    blocks = []
    for i in range(count):
        path = folder / f"copy-{i}.pem"
        shutil.copy(own.tls.ca_file, path)
        blocks.append(replace(own, tls=replace(own.tls, ca_file=str(path))))
    return blocks


async def refused(cache: CredentialsCache, block: SecurityConfig, *, fresh: bool = False) -> str:
    """Return why there is no context."""
    with pytest.raises(CallError) as caught:
        await cache.ssl_context(block, fresh=fresh)
    assert caught.value.reason == "credentials"
    return caught.value.detail


@pytest.mark.slow
@pytest.mark.parametrize("good", [True, False])
def test_one_process_for_a_thousand_at_once(own: SecurityConfig, good: bool) -> None:
    """Whoever asks while the files are being judged gets what comes of that, be it good or bad."""
    if not good:
        _write(own.tls.key_file, b"broken")

    async def main() -> None:
        examiner = Counted(apart=True)
        cache = CredentialsCache(SystemClock(), examiner=examiner)
        asked = [cache.ssl_context(replace(own, server_name=f"agent-{i}")) for i in range(1_000)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert examiner.batches == [1]
        assert {type(each) for each in found} == {ssl.SSLContext if good else CallError}
        assert len({id(each) for each in found}) == (1 if good else 1_000)  # no traceback is shared
        assert (cache.loads, cache.hits) == (1, 999)

    asyncio.run(main())


@pytest.mark.slow
def test_many_sets_of_files_are_judged_together(own: SecurityConfig, tmp_path: Path) -> None:
    """A thousand agents with a certificate each take a handful of processes, not a thousand."""
    blocks = copies(own, tmp_path, 600)

    async def main() -> None:
        examiner = Counted()
        cache = CredentialsCache(SystemClock(), examiner=examiner)
        found = await asyncio.gather(*(cache.ssl_context(block) for block in blocks))
        assert len({id(each) for each in found}) == 600
        assert sum(examiner.batches) == 600
        assert max(examiner.batches) <= BLOCKS_MAX
        assert len(examiner.batches) <= 5

    asyncio.run(main())


def test_who_is_cancelled_takes_nobody_along(own: SecurityConfig) -> None:
    """When the one whose examination runs gives up, the next who waits has the files judged."""

    async def main() -> None:
        examiner = Counted()
        examiner.gate = asyncio.Event()
        cache = CredentialsCache(SystemClock(), examiner=examiner)
        async with asyncio.TaskGroup() as group:
            first = group.create_task(cache.ssl_context(own))
            others = [group.create_task(cache.ssl_context(own)) for _ in range(3)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert examiner.batches == [1]
            first.cancel()
            others[1].cancel()
            examiner.gate.set()
        assert first.cancelled() and others[1].cancelled()
        assert others[0].result() is others[2].result() is not None
        assert examiner.batches == [1, 1]

    asyncio.run(main())


def test_a_refusal_is_remembered(own: SecurityConfig, tmp_path: Path) -> None:
    """What was refused is not judged again until a file changes, or after a long time."""
    clock = SetClock()
    good = Path(own.tls.key_file).read_bytes()
    _write(own.tls.key_file, b"broken")

    async def main() -> None:
        examiner = Counted()
        cache = CredentialsCache(clock, examiner=examiner)
        for _ in range(1_000):
            assert "poller-key.pem" in await refused(cache, own)
            assert "poller-key.pem" in await refused(cache, own, fresh=True)
        assert examiner.batches == [1]
        clock.ahead_s = REFUSED_AGAIN_S + 1
        await refused(cache, own)
        assert examiner.batches == [1, 1]
        clock.ahead_s = 0.0  # set back: what was found to be expired may not be
        await refused(cache, own)
        assert examiner.batches == [1, 1, 1]
        _write(own.tls.key_file, good)
        assert await cache.ssl_context(own) is not None

    asyncio.run(main())


def test_a_refusal_ends_with_its_cause(own: SecurityConfig, tmp_path: Path) -> None:
    """A certificate that is not valid yet is judged again when it is; a file that becomes readable at once."""
    clock = SetClock()
    clock.ahead_s = -30 * 86_400.0

    async def main() -> None:
        examiner = Counted()
        cache = CredentialsCache(clock, examiner=examiner)
        assert "not valid before" in await refused(cache, own)
        starts_s = _starts_s(own)
        clock.ahead_s = starts_s - SystemClock.wall() - 100.0
        assert "not valid before" in await refused(cache, own)
        clock.ahead_s += 50.0
        await refused(cache, own)
        assert examiner.batches == [1, 1]
        clock.ahead_s += 51.0
        assert await cache.ssl_context(own) is not None
        os.chmod(own.tls.key_file, 0o640)
        assert await cache.ssl_context(own) is not None
        assert examiner.batches == [1, 1, 1, 1]

    asyncio.run(main())


def _starts_s(own: SecurityConfig) -> float:
    identity = examine(own, now=SystemClock.wall()).identity
    assert identity is not None
    return identity.not_before_s


def test_what_is_in_use_outlives_a_failed_examination(own: SecurityConfig, tmp_path: Path) -> None:
    """Files change and nobody can judge them: the old material serves who does not insist, and is replaced later."""
    clock = SetClock()

    async def main() -> None:
        examiner = Counted()
        cache = CredentialsCache(clock, examiner=examiner)
        before = await cache.ssl_context(own)
        make_leaf(tmp_path, "poller", role="poller", overwrite=True)
        examiner.failing = lambda blocks: True
        for _ in range(100):
            assert await cache.ssl_context(own) is before
            assert await refused(cache, own, fresh=True) == "no judgement"
        assert (examiner.batches, cache.failures) == ([1, 1], 1)
        clock.ahead_s = FAILED_AGAIN_S + 1
        assert await cache.ssl_context(own) is before
        assert (examiner.batches, cache.failures) == ([1, 1, 1], 2)
        clock.ahead_s = 400 * 86_400.0  # its time is over
        assert await refused(cache, own) == "no judgement"
        clock.ahead_s = 0.0
        examiner.failing = lambda blocks: False
        assert await cache.ssl_context(own) not in (None, before)

    asyncio.run(main())


def test_no_material_without_an_examination(own: SecurityConfig) -> None:
    """Where nothing was in use before, a failed examination is a failure, tried again after a while."""
    clock = SetClock()

    async def main() -> None:
        examiner = Counted()
        examiner.failing = lambda blocks: True
        cache = CredentialsCache(clock, examiner=examiner)
        assert {await refused(cache, own) for _ in range(100)} == {"no judgement"}
        assert examiner.batches == [1]
        clock.ahead_s = FAILED_AGAIN_S + 1
        examiner.failing = lambda blocks: False
        assert await cache.ssl_context(own) is not None

    asyncio.run(main())


def test_files_that_break_an_examination_harm_no_others(own: SecurityConfig, tmp_path: Path) -> None:
    """Where judging one set of files fails, those judged with it are judged alone."""
    blocks = copies(own, tmp_path, 10)

    async def main() -> None:
        examiner = Counted()
        examiner.failing = lambda batch: blocks[3].tls in batch
        cache = CredentialsCache(SystemClock(), examiner=examiner)
        found = await asyncio.gather(*(cache.ssl_context(block) for block in blocks), return_exceptions=True)
        assert [isinstance(each, ssl.SSLContext) for each in found] == [i != 3 for i in range(10)]
        # The first began alone; the nine others failed together, then each by itself.
        assert len(examiner.batches) == 11

    asyncio.run(main())


def test_a_survey_fills_the_cache(own: SecurityConfig, tmp_path: Path) -> None:
    """What is judged for the warnings at the start is not judged again for the first clients."""
    blocks = copies(own, tmp_path, 4)
    _write(blocks[2].tls.ca_file, b"nothing")

    async def main() -> None:
        examiner = Counted()
        cache = CredentialsCache(SystemClock(), examiner=examiner)
        results = await cache.survey([block.tls for block in blocks])
        assert [isinstance(each, Examined) and each.material is not None for each in results] == [
            True,
            True,
            False,
            True,
        ]
        for block in (blocks[0], blocks[1], blocks[3]):
            assert await cache.ssl_context(block) is not None
        assert "copy-2.pem" in await refused(cache, blocks[2])
        assert examiner.batches == [4]
        assert await cache.survey([]) == []

    asyncio.run(main())


def test_a_survey_that_fails_says_so(own: SecurityConfig, tmp_path: Path) -> None:
    """Each block that could not be judged is told of, and tried again by whoever needs it."""
    blocks = copies(own, tmp_path, 3)

    async def main() -> None:
        examiner = Counted()
        examiner.failing = lambda batch: True
        cache = CredentialsCache(SystemClock(), examiner=examiner)
        results = await cache.survey([block.tls for block in blocks])
        assert [str(each) for each in results] == ["credentials: no judgement"] * 3
        examiner.failing = lambda batch: False
        assert await cache.ssl_context(blocks[1]) is not None
        assert examiner.batches == [3, 1]

    asyncio.run(main())


def test_what_was_judged_is_not_judged_along_with_others(own: SecurityConfig, tmp_path: Path) -> None:
    """Who asked for files while they were being judged leaves no order to judge them again."""
    blocks = copies(own, tmp_path, 2)

    async def main() -> None:
        examiner = Counted()
        cache = CredentialsCache(SystemClock(), examiner=examiner)
        found = await asyncio.gather(*(cache.ssl_context(blocks[0]) for _ in range(5)))
        await cache.ssl_context(blocks[1])
        assert examiner.batches == [1, 1]
        assert await cache.ssl_context(blocks[0]) is found[0]

    asyncio.run(main())


def test_who_is_cancelled_leaves_the_others_together(own: SecurityConfig, tmp_path: Path) -> None:
    """When the one gives up that had many judged with its own, the next one has them judged, not each its own."""
    blocks = copies(own, tmp_path, 20)

    async def main() -> None:
        examiner = Counted()
        examiner.gate = asyncio.Event()
        cache = CredentialsCache(SystemClock(), examiner=examiner)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(cache.ssl_context(block)) for block in blocks]
            await asyncio.sleep(0)
            tasks[0].cancel()
            while len(examiner.batches) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0)
            tasks[1].cancel()
            examiner.gate.set()
        assert all(task.result() is not None for task in tasks[2:])
        assert len(examiner.batches) == 3

    asyncio.run(main())


def test_where_nothing_can_be_judged_few_processes_try(own: SecurityConfig, tmp_path: Path) -> None:
    """A machine without memory gets a few processes to kill, not one for each set of files, and then one at a time."""
    blocks = copies(own, tmp_path, 50)
    clock = SetClock()

    async def main() -> None:
        examiner = Counted()
        examiner.failing = lambda batch: True
        cache = CredentialsCache(clock, examiner=examiner)

        async def ask() -> int:
            examiner.batches.clear()
            found = await asyncio.gather(*(cache.ssl_context(block) for block in blocks), return_exceptions=True)
            return sum(isinstance(each, ssl.SSLContext) for each in found)

        assert await ask() == 0
        assert examiner.batches == [1, 49, 1, 1]
        assert await ask() == 0
        assert examiner.batches == []
        clock.ahead_s += FAILED_AGAIN_S + 1.0
        assert await ask() == 0
        assert examiner.batches == [1]
        clock.ahead_s += FAILED_AGAIN_S + 1.0
        examiner.failing = lambda batch: False
        assert await ask() == 50
        assert examiner.batches == [1, 49]

    asyncio.run(main())


def test_files_that_break_every_examination_stop_no_others(own: SecurityConfig, tmp_path: Path) -> None:
    """One set of files that can never be judged, however often it is asked for, is no sign of a machine that can't."""
    blocks = copies(own, tmp_path, 2)
    clock = SetClock()

    async def main() -> None:
        examiner = Counted()
        examiner.failing = lambda batch: blocks[0].tls in batch
        cache = CredentialsCache(clock, examiner=examiner)
        for _ in range(10):
            await refused(cache, blocks[0])
            clock.ahead_s += FAILED_AGAIN_S + 1.0
        assert await cache.ssl_context(blocks[1]) is not None

    asyncio.run(main())
