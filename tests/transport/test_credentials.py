from __future__ import annotations

import asyncio
import os
import shutil
import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from serviceradar_poller.config.model import SecurityConfig, SecurityMode, TlsConfig
from serviceradar_poller.env import SystemClock
from serviceradar_poller.errors import CallError
from serviceradar_poller.lab.pki import make_leaf
from serviceradar_poller.transport import credentials
from serviceradar_poller.transport.credentials import CredentialsCache

Block = Callable[..., SecurityConfig]


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
