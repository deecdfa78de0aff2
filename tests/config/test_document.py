"""Reading JSON text and merging documents."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serviceradar_poller.config.document import Document, merge, read_json, render_path
from serviceradar_poller.errors import ConfigError

KEYS = st.sampled_from(["a", "A", "b", "security", "agents", "tls"])
JSON_VALUES: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(KEYS, JSON_VALUES, max_size=4)


def document(value: object, source: str = "base") -> Document:
    return read_json(json.dumps(value), source)


def refusal(data: bytes | str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_json(data, "poller.json")
    assert len(caught.value.problems) == 1
    return str(caught.value.problems[0])


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"a": 1,\n  "b": }', "line 2, column 8"),
        ('{"a": "NaN \\" Infinity",\n "b": [-Infinity]}', "line 2, column 8"),
        ("{} {}", "line 1, column 4"),
        ('{"a": "\x01"}', "line 1, column 8"),
    ],
)
def test_syntax_error_tells_line_and_column(text: str, place: str) -> None:
    """A text that is no JSON is refused at the place where it stops being JSON."""
    assert place in refusal(text)


@pytest.mark.parametrize("text", ["", "   \n", b"\xef\xbb\xbf"])
def test_empty_text_is_called_empty(text: str | bytes) -> None:
    """An empty file is named as what it is."""
    assert "an empty text" in refusal(text)


@pytest.mark.parametrize("depth", [200, 100_000])
def test_deep_nesting_is_refused(depth: int) -> None:
    """Nesting that would exhaust the stack is a problem, not a crash."""
    assert "levels of nesting" in refusal("[" * depth + "]" * depth)


def test_byte_order_mark_is_skipped() -> None:
    """A file that begins with a UTF-8 byte order mark is read."""
    assert read_json(b'\xef\xbb\xbf{"a": 1}', "x").root == {"a": 1}


def test_bytes_that_are_not_utf8_are_replaced_with_a_warning() -> None:
    """A stray Latin-1 byte becomes U+FFFD, and the warning names its line."""
    read = read_json(b'{\n"a": "caf\xe9"}', "x")
    assert read.root == {"a": "caf\ufffd"}
    assert [warning.text for warning in read.warnings] == ["line 2 is not UTF-8: the character is replaced by U+FFFD"]


def test_half_a_surrogate_pair_is_replaced() -> None:
    """A text that UTF-8 can't hold does not get in; a whole pair stays one character."""
    assert read_json('{"a\\ud800": "\\udc00x\\ud83d\\ude00"}', "x").root == {"a\ufffd": "\ufffdx😀"}


def test_endless_integer_is_no_crash() -> None:
    """An integer longer than Python converts becomes a number that no check accepts."""
    assert read_json('{"a": ' + "9" * 10_000 + "}", "x").root == {"a": float("inf")}


def test_last_of_repeated_keys_counts_with_a_warning() -> None:
    """Keys that repeat, also in another case, give the last value, and each repetition is told with its path."""
    read = read_json('{"tls": {"CA_file": 1, "ca_file": 2, "ca_file": 3}}', "x")
    assert read.root == {"tls": {"ca_file": 3}}
    assert [(warning.path, warning.text) for warning in read.warnings] == [
        ("tls.ca_file", 'the key stands more than once (also written "CA_file"): the last one counts'),
        ("tls.ca_file", "the key stands more than once: the last one counts"),
    ]


def test_agents_differ_by_case() -> None:
    """Names that operators chose are not keys of ours: Edge and edge are two agents."""
    read = read_json('{"Agents": {"Edge": 1, "edge": 2}}', "x")
    assert read.root == {"Agents": {"Edge": 1, "edge": 2}}
    assert read.warnings == ()


def test_merge_is_recursive_for_objects_only() -> None:
    """Objects merge key by key without regard to case; lists and scalars are replaced."""
    base = document({"Security": {"mode": "none", "tls": {"ca_file": "x"}}, "list": [1, 2], "x": {"y": 1}})
    overlay = document({"SECURITY": {"MODE": "mtls", "tls": {"key_file": "k"}}, "list": [3], "x": 4}, "pinned")
    assert merge(base, overlay).root == {
        "Security": {"mode": "mtls", "tls": {"ca_file": "x", "key_file": "k"}},
        "list": [3],
        "x": 4,
    }


def test_merge_keeps_agents_apart_by_case() -> None:
    """An overlay for the agent edge does not touch the agent Edge."""
    merged = merge(document({"agents": {"Edge": {"address": "a"}}}), document({"agents": {"edge": {}}}))
    assert merged.root == {"agents": {"Edge": {"address": "a"}, "edge": {}}}


def test_origin_is_the_source_that_gave_the_value() -> None:
    """Every value knows its source: the overlay's where it spoke, the base's elsewhere."""
    base = Document(
        root={"a": {"x": 1, "y": 2}, "b": {"z": 1}}, source="env", origins={("a", "x"): "VAR_X", ("b", "z"): "VAR_Z"}
    )
    merged = merge(base, document({"A": {"Y": [0]}, "b": 5}, "pinned"))
    assert merged.origin_of(("a", "x")) == "VAR_X"
    assert merged.origin_of(("a", "y", 0)) == "pinned"
    assert merged.origin_of(("a",)) == "env"
    assert merged.origin_of(("b", "z")) == "pinned"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ((), ""),
        (("agents", "edge-01", "checks", 2, "port"), "agents.edge-01.checks[2].port"),
        (("agents", "a.b", "address"), 'agents["a.b"].address'),
        (("agents", ""), 'agents[""]'),
        (("agents", "é\n"), 'agents["\\u00e9\\n"]'),
    ],
)
def test_paths_are_written_unambiguously(path: tuple[str | int, ...], text: str) -> None:
    """Plain names are joined by points, odd ones are quoted."""
    assert render_path(path) == text


@pytest.mark.slow
@given(OBJECTS)
def test_merging_nothing_changes_nothing(value: dict[str, object]) -> None:
    """An empty overlay is neutral on either side."""
    read = document(value)
    assert merge(read, document({})).root == read.root
    assert merge(document({}), read).root == read.root


@pytest.mark.slow
@given(OBJECTS)
def test_merging_twice_is_merging_once(value: dict[str, object]) -> None:
    """A document laid over itself is itself."""
    read = document(value)
    assert merge(read, read).root == read.root


@pytest.mark.slow
@given(OBJECTS, OBJECTS, OBJECTS)
def test_overlays_win_again(first: dict[str, object], second: dict[str, object], third: dict[str, object]) -> None:
    """Laying an overlay on once more, after whatever came between, makes it win as if it had come last alone."""
    a, b, c = document(first), document(second, "b"), document(third, "c")
    merged = merge(merge(merge(a, b), c), b)
    assert merge(merged, b).root == merged.root
    for key, value in (b.root if isinstance(b.root, dict) else {}).items():
        if not isinstance(value, dict):
            place = (key.lower(),)
            assert merged.origin_of(place) == "b"


@given(JSON_VALUES)
def test_reading_keeps_what_json_says(value: object) -> None:
    """Without repeated keys a document is exactly its JSON."""
    folded = document(value)
    if not folded.warnings:
        assert folded.root == value


@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_any_bytes_give_a_document_or_one_problem(data: bytes) -> None:
    """Nothing but ConfigError leaves the reader."""
    problems = 0
    try:
        read_json(data, "x")
    except ConfigError as error:
        problems = len(error.problems)
    assert problems <= 1
