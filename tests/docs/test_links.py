"""All Markdown files: links lead somewhere, commands that are shown can be typed, configurations load."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from serviceradar_poller.cli import _parser
from serviceradar_poller.config.loading import parse

ROOT = Path(__file__).parents[2]
FILES = sorted(
    [
        *ROOT.glob("*.md"),
        *(file for folder in ("docs", "benchmarks", "tests") for file in (ROOT / folder).rglob("*.md")),
    ]
)
IDS = [str(file.relative_to(ROOT)) for file in FILES]
#: Languages of fenced blocks that hold commands; in ``console`` only lines after a prompt are typed.
SHELLS = ("console", "sh", "bash", "shell")
MAKE_TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Give the language and content of each fenced block, those in lists without their indent."""
    for indent, language, body in re.findall(r"^( *)```([a-z]*)[^\n]*\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL):
        yield language, re.sub(rf"^{indent}", "", body, flags=re.MULTILINE)


def prose(text: str) -> str:
    """Return *text* without fenced blocks and code."""
    text = re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings, as GitHub makes them."""
    without_blocks = re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.MULTILINE | re.DOTALL)
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?) *$", without_blocks, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number = 1
        unique = slug
        while unique in found:
            unique = f"{slug}-{number}"
            number += 1
        found.add(unique)
    return found


def broken_links(file: Path, root: Path = ROOT) -> list[str]:
    """Return the relative links of *file* that lead nowhere, or out of *root*."""
    text = file.read_text("utf-8")
    targets = re.findall(r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)", prose(text))
    broken = []
    for target in targets:
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        path, _, anchor = target.partition("#")
        other = (file.parent / path).resolve() if path else file
        found = other.exists() and other.is_relative_to(root)
        if found and anchor and other.suffix == ".md":
            found = anchor in anchors(other.read_text("utf-8"))
        if not found:
            broken.append(target)
    return broken


def commands(text: str) -> list[list[str]]:
    """Return the words of every command that is shown: in shell blocks, and of a unit's ExecStart."""
    lines: list[str] = []
    for language, body in blocks(text):
        body = body.replace("\\\n", " ")
        if language == "console":
            lines += [line[2:] for line in body.splitlines() if line.startswith("$ ")]
        elif language in SHELLS:
            lines += [line for line in body.splitlines() if line.strip() and not line.startswith("#")]
        elif language == "ini":
            lines += re.findall(r"^ExecStart=(.*)$", body, re.MULTILINE)
    return [words for line in lines for words in _simple_commands(line)]


def _simple_commands(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    redirected = False
    for word in lexer:
        if set(word) <= set("();<>|&"):
            redirected = set(word) <= set("<>&") and bool(set(word) & set("<>"))
            if not redirected:
                yield words
                words = []
        elif redirected:
            redirected = False
        else:
            words.append(word)
    yield words


def arguments_of(words: list[str], program: str) -> list[str] | None:
    """Return what follows *program*, whoever starts it and from wherever; None where it is not started."""
    for index, word in enumerate(words):
        if word.rpartition("/")[2] == program:
            before = words[:index]
            if not before or before[0] in ("sudo", "exec", "time", "env") or all("=" in each for each in before):
                return words[index + 1 :]
    return None


def understood(arguments: list[str]) -> bool:
    """Whether the program takes *arguments*; nothing is run."""
    try:
        _parser(wants_lab=arguments[:1] == ["lab"]).parse_args(arguments)
    except SystemExit as end:
        return end.code == 0  # --help and --version
    return True


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_links_lead_somewhere(file: Path) -> None:
    """A relative link names a file of the project, and an anchor a heading in it."""
    assert broken_links(file) == []


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_shown_commands_can_be_typed(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line that calls the program is one that it understands, and a make target exists."""
    for words in commands(file.read_text("utf-8")):
        arguments = arguments_of(words, "serviceradar-poller")
        if arguments is not None:
            assert understood(arguments), f"{' '.join(words)}: {capsys.readouterr().err}"
        targets = [word for word in arguments_of(words, "make") or [] if "=" not in word and word[:1] != "-"]
        assert set(targets) <= MAKE_TARGETS, words


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_shown_json_loads(file: Path) -> None:
    """A JSON example is JSON, and one that is a configuration is without problem or warning."""
    for language, body in blocks(file.read_text("utf-8")):
        if language != "json":
            continue
        value = json.loads(body)
        if isinstance(value, dict) and "core_address" in value:
            parsed = parse(body, str(file))
            assert parsed.warnings == ()
            assert all(agent.problems == () for agent in parsed.config.agents)


def test_what_is_wrong_is_found(tmp_path: Path) -> None:
    """The checks of this file see a missing file, a missing heading and an unknown option."""
    page = ROOT / "docs" / "architecture.md"
    assert "the-picture" in anchors(page.read_text("utf-8"))
    (command,) = commands(
        "```console\n$ A=1 serviceradar-poller poll-once f --agnet x > out | less\nno command\n```\n"
    )[:1]
    assert command == ["A=1", "serviceradar-poller", "poll-once", "f", "--agnet", "x"]
    arguments = arguments_of(command, "serviceradar-poller")
    assert arguments == ["poll-once", "f", "--agnet", "x"]
    assert not understood(arguments)
    assert understood(["--version"])
    page = tmp_path / "page.md"
    page.write_text("# A\n[x](nowhere.md) [y](#b) [z](#a) [w](https://example.org)\n", "utf-8")
    assert broken_links(page, tmp_path.resolve()) == ["nowhere.md", "#b"]
    assert broken_links(page) == ["nowhere.md", "#b", "#a"], "a link must not lead out of the project"


def test_the_program_is_shown_often_enough_to_mean_something() -> None:
    """The pages that these tests are for are among the files, and show commands."""
    assert {"CHANGELOG.md", "README.md", "docs/architecture.md", "docs/operations.md"} <= set(IDS)
    shown = commands((ROOT / "docs" / "operations.md").read_text("utf-8"))
    assert sum(arguments_of(words, "serviceradar-poller") is not None for words in shown) >= 10
