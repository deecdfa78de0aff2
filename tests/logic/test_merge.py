from __future__ import annotations

import base64
import json
import tracemalloc
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serviceradar_poller.logic.jsontext import decode
from serviceradar_poller.logic.merge import (
    ITEM_KEYS,
    NO_FINAL,
    PARSE_FAILED,
    MergeError,
    MergeLimits,
    MergeResult,
    feed,
    finish,
    new_merge,
)
from serviceradar_poller.wire.messages import ResultsChunk

LIMITS = MergeLimits()


def merged(
    chunks: Iterable[ResultsChunk], service_type: str = "sync", *, limits: MergeLimits = LIMITS, last_sequence: str = ""
) -> tuple[bytes, MergeResult]:
    """Merge as a reader does: up to the final chunk."""
    merge = new_merge(service_type, limits=limits, last_sequence=last_sequence)
    pieces = []
    for chunk in chunks:
        merge, piece = feed(merge, chunk)
        pieces.append(piece)
        if chunk.is_final:
            break
    end, result = finish(merge)
    document = b"".join([*pieces, end])
    assert result.bytes == len(document)
    return document, result


def chunked(*data: bytes, numbered: bool = False, sequence: str = "") -> list[ResultsChunk]:
    last = len(data) - 1
    return [
        ResultsChunk(
            data=each,
            is_final=index == last,
            chunk_index=index if numbered else 0,
            total_chunks=len(data) if numbered else 0,
            current_sequence=sequence,
        )
        for index, each in enumerate(data)
    ]


def refused(chunks: Iterable[ResultsChunk], *, limits: MergeLimits = LIMITS) -> MergeError:
    with pytest.raises(MergeError) as caught:
        merged(chunks, limits=limits)
    return caught.value


def exact(text: bytes) -> Any:
    """Values, telling 1.0 from 1."""
    return json.loads(text, parse_float=lambda digits: ("float", float(digits)))


def test_every_vector(merge_vectors: list[dict[str, Any]]) -> None:
    """Every recorded stream gives the recorded document, whole numbers as integers, or the recorded error."""
    assert len(merge_vectors) == 156
    for vector in merge_vectors:
        chunks = [
            ResultsChunk(data=base64.b64decode(chunk["data"]), is_final=chunk["is_final"]) for chunk in vector["chunks"]
        ]
        expect = vector["expect"]
        if "error" in expect:
            with pytest.raises(MergeError) as caught:
                merged(chunks, vector["service_type"])
            assert str(caught.value).partition(":")[0] == expect["error"].partition(":")[0]
        else:
            document, _ = merged(chunks, vector["service_type"])
            assert exact(document) == exact(base64.b64decode(expect["out"])), vector


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=12,
)


def integers(value: Any) -> Any:
    """What core is told of a value: whole doubles below 1e21 as integers."""
    return decode(json.dumps(value).encode())


def read(document: bytes) -> Any:
    """Return the values of a document in strict UTF-8."""
    return json.loads(document.decode())


def same(left: Any, right: Any) -> bool:
    return repr(left) == repr(right) if not isinstance(left, dict | list) else _same_inside(left, right)


def _same_inside(left: Any, right: Any) -> bool:
    if type(left) is not type(right) or len(left) != len(right):
        return False
    if isinstance(left, dict):
        return all(key in right and same(left[key], right[key]) for key in left)
    return all(map(same, left, right))


@st.composite
def written(draw: st.DrawFn, items: list[Any]) -> bytes:
    """Write items in one of the forms that a chunk may have."""
    dump = draw(
        st.sampled_from(
            [
                lambda value: json.dumps(value, ensure_ascii=False).encode(),
                lambda value: json.dumps(value, separators=(",", ":")).encode(),
                lambda value: json.dumps(value, indent=1).encode(),
            ]
        )
    )
    forms: list[Any] = [items, {draw(st.sampled_from(ITEM_KEYS)): items}]
    forms.append({"n": 1, draw(st.sampled_from(ITEM_KEYS)): json.dumps(items, indent=draw(st.none() | st.just(1)))})
    forms.append({"hosts": {f"key {index}": item for index, item in enumerate(items)}})
    forms.append({"hosts": "no array", "data": items, "entries": 7})
    if not items:
        forms += [None, {}, {"n": 1}, {"hosts": None}, {"data": 3}]
        if draw(st.booleans()):
            return b""
    return bytes(dump(draw(st.sampled_from(forms))))


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[Any], list[bytes]]:
    """Items, and chunks that hold them: cut anywhere, in any form, with empty ones between."""
    items = draw(st.lists(values, max_size=8))
    cuts = sorted(draw(st.lists(st.integers(0, len(items)), max_size=4)))
    parts = [items[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(items)], strict=True)]
    return items, [draw(written(part)) for part in parts]


@given(streams(), st.booleans())
def test_chunking_does_not_matter(stream: tuple[list[Any], list[bytes]], numbered: bool) -> None:
    """However items are cut into chunks, and whatever form each chunk has, the same array comes out."""
    items, data = stream
    document, result = merged(chunked(*data, numbered=numbered))
    assert same(read(document), integers(items))
    assert result.items == len(items)
    assert result.has_new_data or data == [b"{}"]


names = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda name: name not in ITEM_KEYS)


@given(streams(), st.dictionaries(names, values, max_size=4))
def test_a_sweep_keeps_the_metadata_of_its_first_chunk(
    stream: tuple[list[Any], list[bytes]], metadata: dict[str, Any]
) -> None:
    """The first chunk's members stand before the hosts; later chunks' members are dropped."""
    items, data = stream
    first = json.dumps({**metadata, "devices": []}).encode()
    document, _ = merged(chunked(first, *data), "sweep")
    value = read(document)
    assert same(value.pop("hosts"), integers(items))
    assert same(value, integers(metadata))


noise = st.one_of(
    st.binary(max_size=20),
    st.text().map(lambda text: text.encode("utf-8", "surrogatepass")),
    values.map(lambda value: json.dumps(value).encode()),
    st.lists(
        st.sampled_from([b"[", b"]", b"{", b"}", b'"', b":", b",", b"1.0", b'"hosts"', b"1e9", b"\\", b"\xff"])
    ).map(b"".join),
)


@given(st.lists(noise, min_size=1, max_size=4), st.sampled_from(["sync", "sweep"]))
@settings(max_examples=300)
def test_what_comes_out_is_json(data: list[bytes], service_type: str) -> None:
    """Any bytes end in strict UTF-8 JSON or in an error that says the chunk can't be parsed."""
    failure = None
    document = b""
    try:
        document, _ = merged(chunked(*data), service_type)
    except MergeError as error:
        failure = error
    if failure is not None:
        assert failure.reason == "parse"
        assert str(failure).startswith(PARSE_FAILED)
    else:
        assert isinstance(json.loads(document.decode(), parse_constant=pytest.fail), list | dict)


@pytest.mark.parametrize(
    ("service_type", "data", "document"),
    [
        ("sync", [b'["\xff", "\\ud800"]'], b'["\xef\xbf\xbd", "\\ufffd"]'),
        ("sync", [b'[{"a":1.0,"b":"1.0,"}]', b"[1E5,2.50]"], b'[{"a":1,"b":"1.0,"},100000,2.50]'),
        ("sync", [b"[12345678901234567890123, 0.1]"], b"[12345678901234567890123, 0.1]"),
        ("sync", [b'{"hosts":"[1.0\\n]"}'], b"[1]"),
        ("sync", [b'{"hosts":[1],"hosts":[2]}'], b"[2]"),
        ("sync", [b'{"hosts":"null","devices":[3]}'], b"[3]"),
        ("sync", [b'{"Hosts":[1],"data":[2]}'], b"[2]"),
        ("sweep", [b'{"hosts":"x","devices":[1],"n":1.0}'], b'{"n":1,"hosts":[1]}'),
        ("sweep", [b"", b'{"n":1,"hosts":[1]}'], b"[1]"),
        ("sweep", [b'{"n":1,"hosts":[]}', b"[]", b"[1]", b"null", b"[2]"], b'{"n":1,"hosts":[1,2]}'),
        ("sync", [b'[":0e:", " e ", ":e1,", "10.0, 1e5,"]'], b'[":0e:"," e ",":e1,","10.0, 1e5,"]'),
    ],
)
def test_examples(service_type: str, data: list[bytes], document: bytes) -> None:
    """Chunks and the document they make, byte for byte."""
    assert merged(chunked(*data), service_type)[0] == document


@pytest.mark.parametrize("text", [b"5", b'"x"', b"true", b" ", b"[1", b"[1]x", b"nullx", b"[1e999]", b"\xef\xbb\xbf[]"])
def test_what_chunks_never_hold(text: bytes) -> None:
    """Anything but an array, an object or null, in whole, is an error that says so."""
    error = refused(chunked(b"[1]", text))
    assert (error.reason, str(error).partition(":")[0]) == ("parse", "failed to parse chunk data")


def test_deep_nesting_is_an_error() -> None:
    """A document too deep to check is never passed on."""
    assert refused(chunked(b"[" * 100_000 + b"]" * 100_000)).reason == "parse"


def test_a_stream_needs_its_end() -> None:
    """Without a final chunk there is no result, also when nothing came at all."""
    for chunks in ([], [ResultsChunk(data=b"[1]")]):
        error = refused(chunks)
        assert (error.reason, str(error)) == ("no_final", NO_FINAL)


def test_nothing_follows_the_final_chunk() -> None:
    """Feeding on after the final chunk is the caller's mistake."""
    merge, _ = feed(new_merge("sync", limits=LIMITS), ResultsChunk(is_final=True))
    with pytest.raises(AssertionError):
        feed(merge, ResultsChunk())


# -- order


def places(*indices: int, totals: Sequence[int] | int = 0) -> list[ResultsChunk]:
    said = [totals] * len(indices) if isinstance(totals, int) else list(totals)
    return [
        ResultsChunk(data=b"[1]", chunk_index=index, total_chunks=total, is_final=position == len(indices) - 1)
        for position, (index, total) in enumerate(zip(indices, said, strict=True))
    ]


@pytest.mark.parametrize(
    "chunks",
    [
        places(0),
        places(0, 0, 0),
        places(0, 1, 2),
        places(0, 1, 2, totals=3),
        places(0, totals=1),
        places(0, 1, 2, totals=[0, 0, 3]),
        places(0, 1, 2, totals=[3, 0, 0]),
    ],
)
def test_chunks_in_their_place(chunks: list[ResultsChunk]) -> None:
    """Chunks that are numbered from 0, or not at all, with a total where the agent gives one, are merged."""
    assert merged(chunks)[1].items == len(chunks)


@pytest.mark.parametrize(
    ("chunks", "reason"),
    [
        (places(0, 2, 3), "gap"),
        (places(1, 2), "gap"),
        (places(1, 0), "gap"),
        (places(0, 1, 1, 2), "duplicate"),
        (places(0, 0, 1), "duplicate"),
        (places(0, 0, 0, 1), "duplicate"),
        (places(0, 0, 3), "duplicate"),
        (places(0, 0, totals=2), "duplicate"),
        (places(0, 1, 2, 0), "order"),
        (places(0, -1), "order"),
        (places(0, 1, totals=3), "total"),
        (places(0, 1, 2, totals=2), "total"),
        (places(0, 1, totals=[2, 3]), "total"),
        (places(0, totals=-1), "total"),
        (places(0, 1, 2, totals=[0, 0, 2]), "total"),
    ],
)
def test_chunks_out_of_place(chunks: list[ResultsChunk], reason: str) -> None:
    """A missing, doubled, reordered or uncounted chunk ends the merge with the reason."""
    assert refused(chunks).reason == reason


@given(st.integers(2, 8).flatmap(lambda n: st.tuples(st.just(n), st.permutations(range(n)))), st.booleans())
def test_only_the_right_order_merges(case: tuple[int, list[int]], with_total: bool) -> None:
    """Of all orders of numbered chunks, only the ascending one gives a result."""
    count, order = case
    chunks = places(*order, totals=count if with_total else 0)
    if order == sorted(order):
        assert merged(chunks)[1].items == count
    else:
        assert refused(chunks).reason in {"gap", "duplicate", "order"}


@given(st.integers(2, 8), st.data())
def test_a_lost_or_doubled_chunk_never_merges(count: int, data: st.DataObject) -> None:
    """With numbers and a total, no stream that lost or doubled a chunk gives a result."""
    chunks = places(*range(count), totals=count)
    at = data.draw(st.integers(0, count - 1))
    damaged = chunks[:at] + chunks[at + 1 :] if data.draw(st.booleans()) else chunks[: at + 1] + chunks[at:]
    if at == count - 1 and len(damaged) > count:
        damaged = chunks  # what follows the final chunk is not read
        assert merged(damaged)[1].items == count
    else:
        assert refused(damaged).reason in {"gap", "duplicate", "no_final"}


# -- what is new


@pytest.mark.parametrize(
    ("data", "sequence", "has_new_data"),
    [
        ([b"{}"], "7", False),
        ([b" {\n} "], "7", False),
        ([b"{}"], "8", True),
        ([b"[]"], "7", True),
        ([b'{"hosts":[]}'], "7", True),
        ([b"[1]", b"{}"], "7", True),
        ([b"{}", b"{}"], "7", True),
    ],
)
def test_unchanged(data: list[bytes], sequence: str, has_new_data: bool) -> None:
    """Only a lone empty object at the position that was asked about says that nothing changed."""
    _, result = merged(chunked(*data, sequence=sequence), "sweep", last_sequence="7")
    assert result.has_new_data is has_new_data
    assert result.sequence == sequence


def test_the_last_sequence_given_counts() -> None:
    """The position is the last that a chunk gave; chunks without one don't erase it."""
    chunks = [
        ResultsChunk(current_sequence="1"),
        ResultsChunk(current_sequence="2"),
        ResultsChunk(is_final=True),
    ]
    assert merged(chunks)[1].sequence == "2"


# -- limits


@pytest.mark.parametrize(
    ("limits", "data", "reason"),
    [
        (MergeLimits(chunk_bytes_max=10), [b"[12345678]", b"[123456789]"], "too_large"),
        (MergeLimits(total_bytes_max=8), [b"[1]", b"[2]", b"[3]"], "too_large"),
        (MergeLimits(items_max=3), [b"[1,2]", b"[3]", b"[4]"], "too_many"),
        (MergeLimits(chunks_max=2), [b"", b"", b""], "too_many"),
        (MergeLimits(total_bytes_max=2), [b"", b"", b""], "too_large"),
    ],
)
def test_limits(limits: MergeLimits, data: list[bytes], reason: str) -> None:
    """The first chunk beyond a limit ends the merge; what is at the limit passes."""
    merged(chunked(*data[:-1]), limits=limits)
    assert refused(chunked(*data), limits=limits).reason == reason


@pytest.mark.slow
def test_a_chunk_of_tiny_values_costs_no_more_than_its_bound() -> None:
    """A chunk of millions of one-digit items is refused before it is taken apart."""
    dense = b"[" + b"0," * 4_000_000 + b"0]"
    tracemalloc.start()
    try:
        assert refused(chunked(dense)).reason == "too_large"
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_memory_is_that_of_one_chunk() -> None:
    """Merging a hundred chunks takes at most a few times the memory of one, whatever came before."""
    item = b'{"ip":"10.0.0.1","name":"' + b"n" * 300 + b'","up":true}'
    data = b"[" + b",".join([item] * 1000) + b"]"
    merge = new_merge("sync", limits=LIMITS)
    tracemalloc.start()
    try:
        for index in range(100):
            merge, piece = feed(merge, ResultsChunk(data=data, chunk_index=index, is_final=index == 99))
            assert len(piece) >= len(data) - 2
        assert tracemalloc.get_traced_memory()[1] < 4 * len(data)
    finally:
        tracemalloc.stop()
    assert merge.items == 100_000
