from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serviceradar_poller.logic.jsontext import encodable, text_of
from serviceradar_poller.logic.wrap import needs_wrap, wrap

KEYS = ["poller_id", "agent_id", "partition", "service_type", "service_name", "data"]


def wrapped(message: bytes) -> bytes:
    return wrap(message, poller_id="p1", agent_id="a1", partition="default", service_type="icmp", service_name="ping")


def data_of(envelope: bytes) -> bytes:
    head, tail = b'"service_name":"ping","data":', b"}"
    assert envelope.endswith(tail)
    return envelope[envelope.index(head) + len(head) : -len(tail)]


def test_every_vector(wrap_vectors: list[dict[str, Any]]) -> None:
    """Every recorded message gets the recorded envelope: values, order of keys, and how numbers are written."""
    assert len(wrap_vectors) == 54

    def exact(text: bytes) -> object:
        return json.loads(text, parse_float=lambda digits: ("float", float(digits)), object_pairs_hook=list)

    for vector in wrap_vectors:
        out = wrap(
            base64.b64decode(vector["message"]),
            poller_id="p1",
            agent_id=vector["agent_id"],
            partition=vector["partition"],
            service_type=vector["service_type"],
            service_name=vector["service_name"],
        )
        assert exact(out) == exact(base64.b64decode(vector["expect"]["out"])), vector


names = st.text(st.characters(categories=["Cs", "Lu", "Ll", "Cc", "So"]), max_size=12)


@given(st.one_of(st.binary(), st.text().map(str.encode)), names, names, names, names, names)
def test_an_envelope_is_json_whatever_is_in_it(
    message: bytes, poller: str, agent: str, partition: str, kind: str, name: str
) -> None:
    """Any bytes and any names give strict UTF-8 JSON with the six keys in order and the names as given."""
    out = wrap(message, poller_id=poller, agent_id=agent, partition=partition, service_type=kind, service_name=name)
    envelope = json.loads(out.decode())
    assert list(envelope) == KEYS
    assert [envelope[key] for key in KEYS[:5]] == [encodable(t) for t in (poller, agent, partition, kind, name)]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(values)
def test_json_goes_in_byte_for_byte(value: object) -> None:
    """Sound JSON is spliced in as it came."""
    message = json.dumps(value, ensure_ascii=False).encode()
    assert data_of(wrapped(message)) == message


@given(st.binary(min_size=1))
def test_what_is_no_json_goes_in_as_text(noise: bytes) -> None:
    """Any other message is there as text, a replacement for each byte that is not UTF-8."""
    message = b"oops " + noise
    assert json.loads(data_of(wrapped(message))) == {"message": text_of(message)}


@pytest.mark.parametrize(
    ("message", "data"),
    [
        (b"", b"{}"),
        (b"null", b"null"),
        (b' {"a": 1.0} \n', b'{"a": 1.0}'),
        (b'{"n":12345678901234567890123,"m":1e999}', b'{"n":12345678901234567890123,"m":1e999}'),
        (b" \n", b'{"message":" \\n"}'),
        (b'{"a":NaN}', b'{"message":"{\\"a\\":NaN}"}'),
        (b'{"a":1}{"b":2}', b'{"message":"{\\"a\\":1}{\\"b\\":2}"}'),
        (b'"a\xff"', '"a\ufffd"'.encode()),
        (b'"\\ud800"', b'"\\ufffd"'),
        (b"\xff\xe2\x82", '{"message":"\ufffd\ufffd\ufffd"}'.encode()),
    ],
)
def test_examples(message: bytes, data: bytes) -> None:
    """Messages and what stands for them in the envelope."""
    assert data_of(wrapped(message)) == data


def test_deep_nesting_goes_in_as_text() -> None:
    """What is too deep to be checked is never trusted to be JSON."""
    message = b"[" * 100_000 + b"]" * 100_000
    assert json.loads(data_of(wrapped(message))) == {"message": message.decode()}


def test_only_sync_goes_without() -> None:
    """Core takes device updates bare, and everything else in its envelope."""
    assert not needs_wrap("sync")
    assert all(map(needs_wrap, ["", "icmp", "sweep", "SYNC", "sync2"]))
