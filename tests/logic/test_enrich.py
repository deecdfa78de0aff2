from __future__ import annotations

import base64
import json
import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serviceradar_poller.logic.enrich import enrich, should_enrich
from serviceradar_poller.logic.jsontext import text_of

HOST = {"host_ip": "10.0.0.9", "ip": "10.0.0.9", "host_name": "edge", "hostname": "edge"}


def enriched(message: bytes, details: str = "", ip: str = "10.0.0.9", host: str = "edge") -> bytes:
    return enrich(message, details=details, device_ip=ip, device_host=host)


def read(message: bytes) -> Any:
    """Return the values in a form where 10 and 10.0 differ."""
    return json.loads(message, parse_float=lambda digits: ("float", float(digits)))


def test_every_vector(enrich_vectors: list[dict[str, Any]]) -> None:
    """Every recorded message is enriched as recorded, whole numbers as integers; what was left alone still is."""
    assert len(enrich_vectors) == 260
    untouched = 0
    for vector in enrich_vectors:
        message, expected = base64.b64decode(vector["message"]), base64.b64decode(vector["expect"]["out"])
        out = enriched(message, vector["details"], vector["device_ip"], vector["device_host"])
        if expected == message:
            untouched += 1
            assert out == message, vector
        else:
            assert read(out) == read(expected), vector
    assert 0 < untouched < 260


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False), st.text()
)
keys = st.sampled_from(["status", "status_text", "host_ip", "ip", "host_name", "hostname", "x"]) | st.text(max_size=3)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)
objects = st.dictionaries(keys, values, max_size=6)


def whole(value: object) -> object:
    """Return *value* with its whole doubles below 1e21 as integers: what a reader must see."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e21:
        return int(Fraction(repr(value)))  # the number as it stands in the message
    if isinstance(value, list):
        return [whole(item) for item in value]
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    return ("float", value) if isinstance(value, float) else value


def model(payload: dict[str, Any], ip: str, name: str) -> dict[str, Any]:
    """Return what the rules make of an object, told slowly."""
    result = dict(payload)
    status = result.get("status")
    if not isinstance(status, dict):
        if status is not None:
            result["status_text"] = status
        status = {}
    status = dict(status)
    result["status"] = status

    def says(*names: str) -> bool:
        found = [place.get(key) for place in (status, result) for key in names]
        return any(isinstance(text, str) and text.strip() != "" for text in found)

    if not says("host_ip", "ip"):
        for place in (status, result):
            place.update(host_ip=ip, ip=ip)
    if not says("host_name", "hostname"):
        for place in (status, result):
            place["host_name"] = name
            place.setdefault("hostname", name)
    return result


@pytest.mark.slow
@given(objects)
def test_objects_get_what_the_rules_say(payload: dict[str, Any]) -> None:
    """Every object comes back with all its values and the host fields where the rules put them."""
    message = json.dumps(payload).encode()
    assert read(enriched(message)) == model(whole(payload), "10.0.0.9", "edge")  # type: ignore[arg-type]


@pytest.mark.slow
@given(objects)
def test_enriching_twice_changes_nothing_more(payload: dict[str, Any]) -> None:
    """The result says of its host what it should, so that another pass finds nothing to do."""
    once = enriched(json.dumps(payload).encode())
    assert read(enriched(once, ip="10.0.0.1", host="other")) == read(once)


@given(st.binary() | st.text().map(str.encode) | values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_become_json_that_core_can_read(message: bytes) -> None:
    """Whatever an agent sends: an array stays, anything else becomes an object with host fields, in UTF-8."""
    out = enriched(message)
    payload = json.loads(out.decode("utf-8", "surrogateescape"))
    if isinstance(payload, list):
        assert out == message
        return
    out.decode()
    assert isinstance(payload["status"], dict)
    said = [place.get(key) for place in (payload, payload["status"]) for key in ("host_ip", "ip")]
    assert any(isinstance(text, str) and text.strip() for text in said)


@given(st.binary())
def test_without_an_address_nothing_is_touched(message: bytes) -> None:
    """No literal address anywhere, no change."""
    assert enriched(message, details="agent:80", ip="", host="edge") == message


@given(st.text(), st.text(), st.text(st.characters(categories=["Cs", "Lu", "Ll", "Cc", "So"])))
def test_any_host_texts_are_fine(details: str, ip: str, host: str) -> None:
    """Whatever stands in details, address and name, the result is JSON; control characters never get in."""
    payload = json.loads(enriched(b"{}", details, ip, host) or b"{}")
    assert all(char >= " " or char in "\t\r\n" for char in payload.get("host_name", ""))


@pytest.mark.parametrize(
    ("text", "digits"),
    [
        ("10.0", "10"),
        ("1E5", "100000"),
        ("1e+3", "1000"),
        ("-0.0", "0"),
        ("1e20", "100000000000000000000"),
        ("9007199254740993", "9007199254740993"),
        ("9007199254740993.0", "9007199254740993"),
        ("12345678901234567890123", "12345678901234567890123"),
        ("-9223372036854775809", "-9223372036854775809"),
        ("0.5", "0.5"),
        ("1e-7", "1e-7"),
        ("1.5e300", "1.5e300"),
    ],
)
def test_whole_numbers_are_written_as_integers(text: str, digits: str) -> None:
    """Core's integer fields refuse points and exponents, so whole numbers have none, and lose no digit."""
    out = enriched(b'{"n":%s,"deep":[{"n":%s}]}' % (text.encode(), text.encode()))
    assert out.startswith(b'{"n":%s,"deep":[{"n":%s}],' % (digits.encode(), digits.encode()))


@given(st.integers(min_value=2**53 + 1, max_value=10**30) | st.integers(-(10**30), -(2**53) - 1))
def test_integers_beyond_2_53_stay_exact(number: int) -> None:
    """Where the Go poller rounds to the next double, every digit is kept; the rest is as Go has it."""
    out = enriched(b'{"n":%d}' % number)
    assert out.startswith(b'{"n":%d,' % number)
    assert {**read(out), "n": 0} == {"n": 0, **HOST, "status": HOST}


@pytest.mark.parametrize(
    "message",
    [b"", b" \n", b"null", b" null ", b"{}", b'{"status":null}', b'{"status":{}}', b'{"ip":null,"host_ip":" "}'],
)
def test_nothing_said_gives_the_host_alone(message: bytes) -> None:
    """Empty, blank and null messages are an empty object, and so are empty values; null does not crash."""
    assert read(enriched(message)) == {**HOST, "status": HOST}


@given(st.binary(min_size=1))
def test_words_that_are_no_json_are_kept_whole(noise: bytes) -> None:
    """Where the Go poller drops what it can't read, the text is there under status_text, and nothing else differs."""
    message = b"Error: " + noise
    assert read(enriched(message)) == {**HOST, "status": HOST, "status_text": text_of(message)}


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (b"5", "5"),
        (b"true", "true"),
        (b" 1.50 ", " 1.50 "),
        (b'"up"', "up"),
        (b'""', ""),
        (b"NaN", "NaN"),
        (b"[1,", "[1,"),
        (b'{"a":1', '{"a":1'),
        (b'{"a":1e999}', '{"a":1e999}'),
        (b"\xffoops\xe2\x82", "\ufffdoops\ufffd\ufffd"),
    ],
)
def test_scalars_and_broken_json_are_kept_as_text(message: bytes, text: str) -> None:
    """A string's characters, or the bytes as they came."""
    assert read(enriched(message)) == {**HOST, "status": HOST, "status_text": text}


@pytest.mark.parametrize("message", [b"[]", b" [1.0, 2] ", b'["\xff"]', b'["\\ud800"]', b"[" * 5000 + b"]" * 5000])
def test_arrays_stay_byte_for_byte(message: bytes) -> None:
    """Core reads arrays itself."""
    assert enriched(message) == message


@pytest.mark.parametrize("value", [b"[1,2.0]", b'"down"', b"0", b"false"])
def test_a_status_that_is_no_object_moves(value: bytes) -> None:
    """It goes to status_text, in place of what stood there, and status becomes an object."""
    out = read(enriched(b'{"status_text":"old","status":%s}' % value))
    assert out["status_text"] == json.loads(value)
    assert out["status"] == HOST


def test_what_an_agent_says_of_its_host_stays() -> None:
    """One non-blank text at either place is enough to leave both address keys alone; names likewise."""
    assert read(enriched(b'{"status":{"ip":"192.0.2.1"},"host_name":"own"}')) == {
        "status": {"ip": "192.0.2.1"},
        "host_name": "own",
    }


def test_a_hostname_key_is_never_overwritten() -> None:
    """Not even null, nor a number; host_name is."""
    out = read(enriched(b'{"hostname":null,"host_name":7,"status":{"hostname":3}}'))
    assert (out["hostname"], out["host_name"]) == (None, "edge")
    assert (out["status"]["hostname"], out["status"]["host_name"]) == (3, "edge")


@pytest.mark.parametrize(
    ("details", "ip", "host", "address", "name"),
    [
        ("9.9.9.9", "10.0.0.1", "edge", "9.9.9.9", "9.9.9.9"),
        (" 9.9.9.9:53 ", "10.0.0.1", "edge", "9.9.9.9", "9.9.9.9"),
        ("[2001:db8::1]:22", "10.0.0.1", "edge", "2001:db8::1", "2001:db8::1"),
        ("::ffff:10.0.0.7", "", "edge", "10.0.0.7", "edge"),
        ("mapper:50056", "10.0.0.1", "edge", "10.0.0.1", "edge"),
        ("mapper:50056", "10.0.0.1", "", "10.0.0.1", "mapper"),
        ("", "10.0.0.1", "", "10.0.0.1", "10.0.0.1"),
        ("agent", "010.0.0.1", "10.0.0.3", "10.0.0.3", "10.0.0.3"),
        ("fe80::1%eth0", "::ffff:10.0.0.7", "h\x01ost", "10.0.0.7", "host"),
        ("", "10.0.0.1", "h" * 600, "10.0.0.1", "h" * 512),
        ("", "10.0.0.1", "h" * 511 + "é", "10.0.0.1", "h" * 511 + "\ufffd"),
        ("", "10.0.0.1", "a\ud800", "10.0.0.1", "a\ufffd"),
    ],
)
def test_which_host_a_message_is_about(details: str, ip: str, host: str, address: str, name: str) -> None:
    """The details' host if it is an address, else the agent's; its name likewise."""
    out = read(enriched(b"{}", details, ip, host))
    assert (out["ip"], out["host_name"]) == (address, name)


def test_bad_text_inside_an_object_does_not_spoil_it() -> None:
    """Bytes that are not UTF-8 and halves of surrogate pairs are replaced, as core would, and the rest stays."""
    out = read(enriched(b'{"a":"x\xff","b":"\\ud800","c":"\\ud83d\\ude00"}'))
    assert (out["a"], out["b"], out["c"]) == ("x\ufffd", "\ufffd", "😀")


def test_the_last_of_equal_keys_wins() -> None:
    """As in Go."""
    assert read(enriched(b'{"a":1,"a":2}'))["a"] == 2


@pytest.mark.parametrize("depth", [3_000, 200_000])
def test_deep_nesting_is_left_alone(depth: int) -> None:
    """An object too deep to read is not touched, and one that is also broken is not lost; neither crashes."""
    deep = b'{"a":' * depth + b"1" + b"}" * depth
    assert enriched(deep) == deep
    broken = b'{"a":' * 100 + b"1"
    assert read(enriched(broken))["status_text"] == broken.decode()


def test_moderate_nesting_is_enriched() -> None:
    """A hundred levels are nothing special."""
    deep = b'{"a":' * 100 + b"10.0" + b"}" * 100
    out = enriched(deep)
    assert out.startswith(b'{"a":' * 100 + b"10" + b"}" * 99)
    assert read(out)["status"] == HOST


def test_snmp_is_not_enriched() -> None:
    """Its payload is a map of targets, and core takes no other keys there."""
    assert not should_enrich("snmp")
    assert all(map(should_enrich, ["", "icmp", "grpc", "sweep", "sync", "SNMP"]))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_doubles_keep_their_value(value: float) -> None:
    """A double comes out as the same double, and as an integer exactly when it is whole and below 1e21."""
    number = json.loads(enriched(b'{"n":%s}' % repr(value).encode()))["n"]
    assert float(number) == value
    assert isinstance(number, int) == (value.is_integer() and math.fabs(value) < 1e21)
