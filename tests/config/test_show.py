"""Properties of whole documents: what is refused is told, what is accepted is shown and read back."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serviceradar_poller.config.loading import parse
from serviceradar_poller.config.model import PollerConfig
from serviceradar_poller.config.schema import ROOT, Field, Kind, fold
from serviceradar_poller.config.show import effective, render_effective, render_fatal
from serviceradar_poller.errors import ConfigError, ConfigProblem

ANY_JSON: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
WORDS = ["", "none", "MTLS", "spiffe", "poller", "info", "Warning", "stderr", "batch", "cycle"]
PLACES = ["host:1", ":0", "127.0.0.1:1", "certs", "/certs/", "a.pem", "/a.pem", "../b"]
TEXTS = st.sampled_from([*WORDS, *PLACES, "é\u2028", "x" * 99]) | st.text(max_size=5)
DURATIONS = st.sampled_from(
    ["30s", "1h30m", "250ms", "0", "-1s", "1d", "1.5h", "1ms", "0.0000001s", "2562047h", 30, 10**9, 1.5e9]
)
VALUES: dict[Kind, st.SearchStrategy[object]] = {
    Kind.STRING: TEXTS,
    Kind.BOOL: st.booleans(),
    Kind.INT: st.integers(-1, 5) | st.integers(),
    Kind.NUMBER: st.floats(0, 2) | st.integers(0, 5),
    Kind.DURATION: DURATIONS | st.integers(0, 10**13),
}


def documents_of(field: Field, *, noise: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    """Documents that a field could hold, with *noise* in some places."""
    element = field.element
    if field.kind is Kind.OBJECT:
        members = {child.name: documents_of(child, noise=noise) for child in field.fields}
        return st.fixed_dictionaries({}, optional=members) | noise
    if element is not None and field.kind is Kind.MAP:
        names = st.sampled_from(["edge", "Edge", "a.b", ""]) | st.text(max_size=3)
        return st.dictionaries(names, documents_of(element, noise=noise), max_size=2) | noise
    if element is not None:
        return st.lists(documents_of(element, noise=noise), max_size=3) | noise
    return VALUES[field.kind] | noise


NOISY = documents_of(ROOT, noise=ANY_JSON)
USABLE_BASE = {"core_address": "c:1", "poller_id": "p", "agents": {"edge": {"address": "edge:1"}}}


def parsed_or_none(text: str) -> PollerConfig | None:
    """Return the configuration, or None when it is refused properly."""
    problems: tuple[ConfigProblem, ...]
    try:
        return parse(text, "x").config
    except ConfigError as error:
        problems = error.problems
        lines = render_fatal(error).encode("utf-8").decode("utf-8").splitlines()
    assert problems
    assert len(lines) == len(problems)
    assert all(line.startswith("failed to load config: x") for line in lines)
    return None


def assert_read_back(config: PollerConfig) -> None:
    """Its own picture gives the configuration again, agents that can't be used left out."""
    whole = replace(config, agents=tuple(agent for agent in config.agents if not agent.problems))
    if not whole.agents:
        return
    again = parse(render_effective(whole, hide_secrets=False), "again")
    assert again.config == whole
    hidden = parse(render_effective(whole), "again").config
    blank = tuple((name, "***") for name, _ in whole.logging.otel.headers)
    assert hidden == replace(whole, logging=replace(whole.logging, otel=replace(whole.logging.otel, headers=blank)))


@pytest.mark.slow
@settings(deadline=None)
@given(ANY_JSON | NOISY)
def test_any_document_gives_a_configuration_or_problems(value: object) -> None:
    """Whatever JSON comes: a configuration or ConfigError with a line for each problem, never anything else."""
    parsed_or_none(json.dumps(value))


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.fixed_dictionaries({}, optional={f.name: documents_of(f, noise=st.nothing()) for f in ROOT.fields}))
def test_what_is_accepted_is_shown_and_read_back(value: dict[str, object]) -> None:
    """The effective configuration, read again, is the same configuration."""
    value.pop("workers", None)
    for key in ("core_address", "poller_id", "agents"):
        if not value.get(key):
            value[key] = USABLE_BASE[key]
    config = parsed_or_none(json.dumps(value))
    if config is not None:
        assert_read_back(config)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_one_section_at_a_time_is_read_back(data: st.DataObject) -> None:
    """With all else usable, each section alone is accepted often, and is read back whenever it is."""
    field = data.draw(st.sampled_from([f for f in ROOT.fields if f.name != "workers"]))
    value = {**USABLE_BASE, field.name: data.draw(documents_of(field, noise=st.nothing()))}
    config = parsed_or_none(json.dumps(value))
    if config is not None:
        assert_read_back(config)


@pytest.mark.parametrize("cert_dir", ["certs", "certs/", "/certs", "/certs/", "/", ".", "c//d"])
@pytest.mark.parametrize("name", ["a.pem", "../a.pem", "/a.pem", "/certs//a.pem", "certs/a.pem"])
def test_relative_certificates_are_read_back(cert_dir: str, name: str) -> None:
    """Joining happens once, however often a configuration is shown and read."""
    tls = {"cert_file": name, "key_file": name, "ca_file": name}
    value = {**USABLE_BASE, "security": {"mode": "mtls", "cert_dir": cert_dir, "tls": tls}}
    assert_read_back(parse(json.dumps(value), "x").config)


def test_every_key_is_shown() -> None:
    """The picture holds every key that the parser knows."""
    value = {
        **USABLE_BASE,
        "agents": {
            "edge": {
                "address": "a:1",
                "security": {"mode": "none"},
                "checks": [{"service_type": "sync", "service_name": "s", "results_interval": "1m"}],
            }
        },
        "security": {"mode": "none"},
        "logging": {"otel": {"headers": {"h": "v"}, "tls": {}}},
    }
    shown = effective(parse(json.dumps(value), "x").config)

    def keys(field: Field, value: object) -> None:
        if field.kind is Kind.OBJECT:
            assert isinstance(value, dict)
            assert sorted(value) == sorted(child.name for child in field.fields)
            for child in field.fields:
                keys(child, value[child.name])
        elif field.element is not None:
            assert isinstance(value, dict | list)
            for item in value.values() if isinstance(value, dict) else value:
                keys(field.element, item)

    keys(ROOT, shown)


def test_header_values_are_hidden() -> None:
    """Values of headers never show, their names do."""
    value = {**USABLE_BASE, "logging": {"otel": {"headers": {"Authorization": "Bearer 31337"}}}}
    config = parse(json.dumps(value), "x").config
    assert "31337" not in render_effective(config)
    assert "Authorization" in render_effective(config)
    assert "31337" in render_effective(config, hide_secrets=False)


def test_fatal_lines_are_lines() -> None:
    """Nothing in a problem breaks its line, the terminal or the encoder."""
    problem = ConfigProblem(source="a\nb", path="p\x1b[31m", found="\udcff", accepted="é\u2028", text="t\r")
    rendered = render_fatal(ConfigError((problem, problem)))
    lines = rendered.encode("utf-8").decode("utf-8").splitlines()
    assert lines == ["failed to load config: a\\nb: p\\x1b[31m: t\\r: found \\udcff; accepted: é\\u2028"] * 2


def test_names_in_the_schema_are_folded() -> None:
    """Every key of the schema is written as keys are compared."""

    def names(field: Field) -> list[str]:
        below = [*field.fields, *([field.element] if field.element else [])]
        return [field.name, *(name for child in below for name in names(child))]

    assert all(name == fold(name) for name in names(ROOT))
