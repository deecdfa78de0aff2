"""
What the poller and the process that judges its certificates say to each other: one request, one answer, as JSON.

    request   {"now": 1.7e9, "blocks": [{"cert_file": …, "key_file": …, "ca_file": …, "client_ca_file": …}, …]}
    answer    {"pem": [base64, …], "results": [{"material": {"roots": 0, "key": 1, …}, "identity": …, "findings": …}]}

Material names its PEM by index, so that blocks with the same roots carry them once. The standard library's JSON spells
any text, file names that are no UTF-8 included.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from serviceradar_poller.config.model import TlsConfig
from serviceradar_poller.transport.material import Examined, Finding, Identity, Material

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be judged; ``now`` in unix seconds."""

    now: float
    blocks: tuple[TlsConfig, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Material:
    """Material whose PEM stands elsewhere: indices."""

    roots: int
    client_roots: int
    key: int
    chain: int
    identity: Identity
    valid_until_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Result:
    material: _Material | None
    identity: Identity | None
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    pem: tuple[bytes, ...]
    results: tuple[_Result, ...]


def encode_request(request: Request) -> bytes:
    """Write a request."""
    return _encode(request)


def decode_request(data: bytes) -> Request:
    """Read a request. Raises ValueError."""
    return _decode(data, Request)


def encode_answer(results: Sequence[Examined]) -> bytes:
    """Write what each block came to, in the order of the request."""
    pem: dict[bytes, int] = {}

    def place(content: bytes) -> int:
        return pem.setdefault(content, len(pem))

    def packed(material: Material) -> _Material:
        return _Material(
            roots=place(material.roots),
            client_roots=place(material.client_roots),
            key=place(material.key),
            chain=place(material.chain),
            identity=material.identity,
            valid_until_s=material.valid_until_s,
        )

    written = tuple(
        _Result(
            material=packed(each.material) if each.material is not None else None,
            identity=each.identity,
            findings=each.findings,
        )
        for each in results
    )
    return _encode(_Answer(pem=tuple(pem), results=written))


def decode_answer(data: bytes, *, count: int) -> tuple[Examined, ...]:
    """
    Read what *count* blocks came to.

    Raises:
        ValueError: It is no answer, or one to another request; the text holds nothing of it.
    """
    answer = _decode(data, _Answer)
    if len(answer.results) != count:
        raise ValueError(f"{len(answer.results)} results for {count} blocks")
    pem = answer.pem

    def unpacked(material: _Material) -> Material:
        indices = (material.roots, material.client_roots, material.key, material.chain)
        if not all(0 <= index < len(pem) for index in indices):
            raise ValueError("a file that is not in it")
        roots, client_roots, key, chain = (pem[index] for index in indices)
        return Material(
            roots=roots,
            client_roots=client_roots,
            key=key,
            chain=chain,
            identity=material.identity,
            valid_until_s=material.valid_until_s,
        )

    examined: list[Examined] = []
    for each in answer.results:
        if each.material is None and not any(finding.fatal for finding in each.findings):
            raise ValueError("neither material nor a reason")
        material = unpacked(each.material) if each.material is not None else None
        examined.append(Examined(material, each.identity, each.findings))
    return tuple(examined)


def _encode(value: Any) -> bytes:
    return json.dumps(msgspec.to_builtins(value)).encode("ascii")


def _decode(data: bytes, kind: type[T]) -> T:
    """Read JSON; what is wrong is said without what stands there, which may be a key."""
    try:
        return msgspec.convert(json.loads(data), kind)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON ({type(error).__name__})") from None
