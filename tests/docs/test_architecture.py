"""docs/architecture.md against the code: its limits exist, its packages are all, its tree is the one that runs."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import io
import re
from pathlib import Path

import pytest

from serviceradar_poller.app.poller import new_poller, start_poller
from serviceradar_poller.app.run import _services
from serviceradar_poller.config.loading import parse
from serviceradar_poller.config.model import LoggingConfig
from serviceradar_poller.observe.observation import Observation
from serviceradar_poller.otp import TreeNode
from serviceradar_poller.testing.fakes import FakeTransport, LoopClock, fake_env
from serviceradar_poller.testing.simloop import run
from serviceradar_poller.transport.credentials import CredentialsCache

PAGE = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text("utf-8")
PACKAGE = "serviceradar_poller"


def section(title: str) -> str:
    """Return the text under a heading of the second level."""
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def limits() -> list[str]:
    """Return the dotted names in the first column of the table of limits, each with its module."""
    found: list[str] = []
    for row in re.findall(r"^\| (`[^|]*) \|", section("What is bounded, and where"), re.MULTILINE):
        module = ""
        for name in re.findall(r"`([a-zA-Z_.]+)`", row):
            if re.fullmatch(r"[a-z]+(\.[a-z]+)*", name) or name.startswith(("reporting.queue", "scheduling.")):
                continue  # a key of the configuration, or a module whose limit is one
            if "." in name:
                module = name.rpartition(".")[0]
            elif name.isupper():
                name = f"{module}.{name}"
            else:
                continue
            found.append(name)
    return found


@pytest.mark.parametrize("name", limits())
def test_a_limit_exists(name: str) -> None:
    """A name in the table of limits is one in the code."""
    path, _, last = name.rpartition(".")
    holder = path.rpartition(".")
    if holder[2][:1].isupper():
        assert hasattr(getattr(importlib.import_module(f"{PACKAGE}.{holder[0]}"), holder[2]), last)
    else:
        assert hasattr(importlib.import_module(f"{PACKAGE}.{path}"), last)


def test_there_are_limits() -> None:
    """The table is found and read."""
    assert len(limits()) >= 35


def test_the_packages_are_exactly_the_ones_described() -> None:
    """Every package has a row in the table of layers, and every row is a package or module."""
    documented = {
        name.rstrip("/") for name in re.findall(r"^\| `([a-z_]+(?:/|\.py))` \|", section("Layers"), re.MULTILINE)
    }
    source = Path(__file__).parents[2] / "src" / PACKAGE
    there = {entry.name for entry in source.iterdir() if entry.is_dir() and entry.name != "__pycache__"}
    there |= {entry.name for entry in source.glob("*.py") if not entry.name.startswith("__")}
    assert documented == there


def test_the_tree_is_the_one_that_is_drawn() -> None:
    """A poller that runs has the children that the picture shows, in that order."""
    drawn = [
        (len(indent) // 2, name)
        for indent, name in re.findall(
            r"^([│├└ ]*)([a-z<>-]+)", section("The supervision tree").split("```")[1].partition("\n")[2], re.MULTILINE
        )
    ]
    assert running_tree() == [(depth, name) for depth, name in drawn]


def running_tree() -> list[tuple[int, str]]:
    """Return depth and id of every child of a poller of one agent, depth first in start order."""
    tls = '{"mode": "mtls", "tls": {"cert_file": "/c", "key_file": "/k", "ca_file": "/r"}}'
    agents = f'{{"agent": {{"address": "a:1", "security": {tls}}}}}'
    text = f'{{"core_address": "c:1", "poller_id": "p", "http": {{"listen_addr": ""}}, "agents": {agents}}}'
    # On virtual time nothing may listen: no HTTP, and an address that the gRPC server refuses.
    config = dataclasses.replace(parse(text, "x").config, listen_addr="nowhere")

    async def tree() -> TreeNode:
        transport = FakeTransport()
        transport.add_agent("agent")
        poller = new_poller(config, fake_env(transport, []), source_ip="")
        observation = Observation(io.BytesIO(), logging=LoggingConfig(), clock=LoopClock(), version="1")
        services = _services(poller, observation, CredentialsCache(LoopClock()))
        started = await start_poller(poller, services=lambda made: services)
        await asyncio.sleep(1.0)
        assert poller.polling
        node = started.inspect()
        await started.stop()
        observation.close()
        return node

    found: list[tuple[int, str]] = []

    def walk(node: TreeNode, depth: int) -> None:
        found.append((depth, "<agent>" if node.id == "agent" else node.id))
        for child in node.children:
            walk(child, depth + 1)

    walk(run(tree()), 0)
    return found
