"""Loading from files and the environment."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from serviceradar_poller.config import sources
from serviceradar_poller.config.loading import load
from serviceradar_poller.config.model import TransportBackend
from serviceradar_poller.config.schema import scalar_paths
from serviceradar_poller.config.sources import variable_suffix
from serviceradar_poller.errors import ConfigError

MINIMAL = {"core_address": "core:50052", "poller_id": "p1", "agents": {"edge": {"address": "edge:50051"}}}


def write(path: Path, value: object) -> str:
    path.write_text(json.dumps(value), encoding="utf-8")
    return str(path)


def refusals(path: str, environ: dict[str, str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, environ)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("chosen", ["", "file", "FILE"])
def test_reads_the_file(tmp_path: Path, chosen: str) -> None:
    """Without a source, or with the source file, the given path is read."""
    path = write(tmp_path / "poller.json", MINIMAL)
    loaded = load(path, {"CONFIG_SOURCE": chosen})
    assert loaded.config.core_address == "core:50052"
    assert loaded.sources == (path,)


def test_missing_file_is_named(tmp_path: Path) -> None:
    """A file that isn't there is one problem."""
    path = str(tmp_path / "none.json")
    assert refusals(path, {}) == [f"{path}: found no such file; accepted: a readable JSON file of at most 64 MiB"]


def test_directory_is_named(tmp_path: Path) -> None:
    """A directory is called a directory."""
    assert "found a directory" in refusals(str(tmp_path), {})[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file_is_named(tmp_path: Path) -> None:
    """A file without permission says so."""
    path = tmp_path / "poller.json"
    path.touch(mode=0)
    assert "may not read" in refusals(str(path), {})[0]


def test_denied_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the test: a refusal by the system is a problem, not a traceback."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert "may not read" in refusals(str(tmp_path / "poller.json"), {})[0]


@pytest.mark.parametrize("path", ["", "a\0b", "/dev/null/x", "x" * 5000])
def test_impossible_paths_are_one_problem(path: str) -> None:
    """No path makes the loader crash."""
    assert len(refusals(path, {})) == 1


def test_large_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file above the limit is refused before it is parsed."""
    monkeypatch.setattr(sources, "FILE_BYTES_MAX", 10)
    path = write(tmp_path / "poller.json", MINIMAL)
    assert "a larger file" in refusals(path, {})[0]


def test_kv_is_refused_in_one_line() -> None:
    """KV as a source says that it isn't available and what is."""
    assert refusals("/nowhere", {"CONFIG_SOURCE": "kv"}) == [
        "CONFIG_SOURCE: KV is not available as a source in this version: found kv; accepted: file, env"
    ]


def test_unknown_source_has_the_known_text() -> None:
    """An unknown source gives the sentence that other programs look for."""
    with pytest.raises(ConfigError) as caught:
        load("/nowhere", {"CONFIG_SOURCE": "etcd"})
    assert caught.value.problems[0].text == ("invalid CONFIG_SOURCE value: etcd (expected 'file', 'kv', or 'env')")


def test_pinned_file_wins(tmp_path: Path) -> None:
    """The pinned file is merged last, without regard to the case of keys, and is named as source of its errors."""
    path = write(tmp_path / "poller.json", {**MINIMAL, "security": {"mode": "none", "cert_dir": "/c"}})
    pinned = write(tmp_path / "pinned.json", {"Poller_ID": "p2", "SECURITY": {"Mode": "odd"}})
    problems = refusals(path, {"PINNED_CONFIG_PATH": pinned})
    assert problems == [f'{pinned}: security.mode: unknown security mode: odd: found "odd"; accepted: none, mtls']
    pinned = write(tmp_path / "pinned.json", {"Poller_ID": "p2"})
    loaded = load(path, {"PINNED_CONFIG_PATH": pinned})
    assert loaded.config.poller_id == "p2"
    assert loaded.config.security is not None
    assert loaded.config.security.cert_dir == "/c"
    assert loaded.sources == (path, pinned)


def test_every_unreadable_source_is_told(tmp_path: Path) -> None:
    """A missing file and a pinned file that is no object are both told at once."""
    pinned = write(tmp_path / "pinned.json", [1])
    problems = refusals(str(tmp_path / "none"), {"PINNED_CONFIG_PATH": pinned})
    assert len(problems) == 2
    assert problems[1] == f"{pinned}: found a list; accepted: a JSON object"


def test_reads_a_whole_document_from_the_environment() -> None:
    """CONFIG_JSON holds everything; single variables are not looked at then."""
    environ = {
        "CONFIG_SOURCE": "env",
        "SERVICERADAR_CONFIG_JSON": json.dumps(MINIMAL),
        "SERVICERADAR_POLLER_ID": "other",
    }
    loaded = load("", environ)
    assert loaded.config.poller_id == "p1"
    assert loaded.sources == ("SERVICERADAR_CONFIG_JSON",)


def test_reads_single_variables(tmp_path: Path) -> None:
    """Each key has its variable; numbers, flags and durations are read as such; the pinned file still wins."""
    environ = {
        "CONFIG_SOURCE": "env",
        "CONFIG_ENV_PREFIX": "SR_",
        "SR_CORE_ADDRESS": "core:1",
        "SR_POLLER_ID": "p1",
        "SR_AGENTS": '{"Edge": {"address": "a:1"}, "edge": {"address": "b:1"}}',
        "SR_POLL_INTERVAL": "30s",
        "SR_SECURITY_MODE": "mtls",
        "SR_SECURITY_TLS_CERT_FILE": "/c.pem",
        "SR_SECURITY_TLS_KEY_FILE": "/k.pem",
        "SR_SECURITY_TLS_CA_FILE": "/ca.pem",
        "SR_LOGGING_LEVEL": "debug",
        "SR_LOGGING_DEBUG": "T",
        "SR_LOGGING_OTEL_HEADERS": '{"X": "y"}',
        "SR_RESILIENCE_RETRY_BUDGET_RATIO": "0.5",
        "SR_RESILIENCE_BREAKER_FAILURES": "7",
        "SR_PARTITION": "",
        "PINNED_CONFIG_PATH": write(tmp_path / "pinned.json", {"poll_interval": "20s"}),
    }
    config = load("", environ).config
    assert [agent.name for agent in config.agents] == ["Edge", "edge"]
    assert config.security is not None
    assert config.security.tls.cert_file == "/c.pem"
    assert (config.logging.level, config.logging.debug) == ("debug", True)
    assert config.logging.otel.headers == (("X", "y"),)
    assert (config.resilience.breaker_failures, config.resilience.retry_budget_ratio) == (7, 0.5)
    assert config.partition == "default"
    assert config.poll_interval_s == 20


@pytest.mark.parametrize(("text", "interval_s"), [("30000000000", 30.0), ("1m30s", 90.0), (" 15000000000 ", 15.0)])
def test_environment_takes_durations_both_ways(text: str, interval_s: float) -> None:
    """An interval may be nanoseconds or a text with units."""
    environ = {"CONFIG_SOURCE": "env", "SERVICERADAR_POLL_INTERVAL": text, **_minimal_environ()}
    assert load("", environ).config.poll_interval_s == interval_s


def test_the_transport_is_a_variable_too() -> None:
    """What makes calls can be chosen in the environment."""
    environ = {"CONFIG_SOURCE": "env", "SERVICERADAR_TRANSPORT": "native", **_minimal_environ()}
    assert load("", environ).config.transport is TransportBackend.NATIVE


def test_bad_variables_are_named() -> None:
    """A problem in a variable names the variable and the key; JSON that isn't is told with its place."""
    environ = {"CONFIG_SOURCE": "env", **_minimal_environ(), "SERVICERADAR_WORKERS": "many"}
    assert refusals("", environ) == ['SERVICERADAR_WORKERS: workers: found "many"; accepted: an integer']
    environ["SERVICERADAR_AGENTS"] = "{"
    assert "SERVICERADAR_AGENTS: found a syntax error at line 1, column 2" in refusals("", environ)[0]


def test_empty_environment_lacks_the_required_keys_in_order() -> None:
    """Nothing set: the three required keys are asked for in Go's order."""
    with pytest.raises(ConfigError) as caught:
        load("", {"CONFIG_SOURCE": "env"})
    assert [problem.text for problem in caught.value.problems] == [
        "core address is required",
        "poller id is required",
        "agent address is required",
    ]


def test_misspelt_variables_of_own_sections_are_told() -> None:
    """A variable that can only be ours and isn't known is told; those of other programs are left alone."""
    environ = {
        "CONFIG_SOURCE": "env",
        **_minimal_environ(),
        "SERVICERADAR_SCHEDULING_CHECK_TIMOUT": "1s",
        "SERVICERADAR_AGENT_EDGE_IP": "10.0.0.1",
        "SERVICERADAR_API_KEY": "x",
    }
    loaded = load("", environ)
    assert [(warning.source, warning.text) for warning in loaded.warnings if not warning.path] == [
        (
            "SERVICERADAR_SCHEDULING_CHECK_TIMOUT",
            "no such setting; did you mean SERVICERADAR_SCHEDULING_CHECK_TIMEOUT?",
        )
    ]


def test_bytes_that_are_no_text_do_not_get_in() -> None:
    """A variable whose bytes aren't UTF-8 leaves nothing that can't be encoded."""
    environ = {"CONFIG_SOURCE": "env", **_minimal_environ(), "SERVICERADAR_PARTITION": "a\udcff"}
    assert load("", environ).config.partition == "a\ufffd"


def test_variables_of_keys_are_distinct() -> None:
    """No two keys share a variable."""
    suffixes = [variable_suffix(path) for path, _ in scalar_paths()]
    assert len(suffixes) == len(set(suffixes))
    assert "SECURITY_TLS_CERT_FILE" in suffixes


def _minimal_environ() -> dict[str, str]:
    return {
        "SERVICERADAR_CORE_ADDRESS": "core:1",
        "SERVICERADAR_POLLER_ID": "p1",
        "SERVICERADAR_AGENTS": '{"edge": {"address": "a:1"}}',
    }
