"""
Make the large results that simulated agents stream: device updates of a sync service, hosts of a sweep.

Everything is computed from the index, nothing is stored: a million devices cost no memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

#: Device updates in one chunk of a sync service.
DEVICES_PER_CHUNK = 1365
#: A sweep above this many bytes is split.
SWEEP_SPLIT_BYTES = 1024 * 1024
HOSTS_PER_CHUNK = 1000
#: As many as 10.0.0.0/8 has.
ITEMS_MAX = 16_000_000
#: Encoded size of a sweep host, for the decision to split.
_HOST_BYTES = 260


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """One part of a result set."""

    data: bytes
    index: int
    total: int

    @property
    def is_final(self) -> bool:
        """Whether it is the last."""
        return self.index == self.total - 1


@dataclass(slots=True, kw_only=True)
class Dataset:
    """
    A result set that can change.

    Attributes:
        count: Devices or hosts in it.
        sequence: Unix seconds of the last change; moves with touch().
        period_s: It changes by itself this often; 0: never.
    """

    count: int
    sequence: int
    period_s: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.count <= ITEMS_MAX:
            raise ValueError(f"a result set has between 0 and {ITEMS_MAX} items, not {self.count}")

    def sequence_at(self, now: float) -> str:
        """Return the sequence in force at *now* (unix seconds), after a change that was due."""
        if self.period_s > 0 and now - self.sequence >= self.period_s:
            self.sequence += int((now - self.sequence) // self.period_s * self.period_s) or 1
        return str(self.sequence)

    def touch(self, now: float, *, count: int | None = None) -> str:
        """Change the set, perhaps its size too; return the new sequence, always above the old."""
        if count is not None:
            if not 0 <= count <= ITEMS_MAX:
                raise ValueError(f"a result set has between 0 and {ITEMS_MAX} items, not {count}")
            self.count = count
        self.sequence = max(self.sequence + 1, int(now))
        return str(self.sequence)


def device_chunks(count: int, *, agent_id: str, poller_id: str, timestamp: str) -> Iterator[Chunk]:
    """Yield device updates as JSON arrays of DEVICES_PER_CHUNK; none gives one ``[]``."""
    total = max(1, -(-count // DEVICES_PER_CHUNK))
    head = f'{{"agent_id":{_text(agent_id)},"poller_id":{_text(poller_id)},"source":"netbox","partition":"default",'
    tail = f'"timestamp":"{timestamp}","confidence":0,"is_available":'
    for index in range(total):
        begin = index * DEVICES_PER_CHUNK
        parts = []
        for number in range(begin, min(count, begin + DEVICES_PER_CHUNK)):
            ip = _ip(number)
            parts.append(
                f'{head}"ip":"{ip}","mac":"02:00:{number >> 24 & 255:02x}:{number >> 16 & 255:02x}:'
                f'{number >> 8 & 255:02x}:{number & 255:02x}","hostname":"host-{number:07d}.example.net",'
                f'"device_id":"default:{ip}",{tail}{"true" if number % 17 else "false"},'
                f'"metadata":{{"integration_id":"{number}","integration_type":"netbox","site":"site-{number % 97:02d}",'
                f'"role":"access-switch"}}}}'
            )
        yield Chunk(data=f"[{','.join(parts)}]".encode(), index=index, total=total)


def sweep_chunks(count: int, *, network: str, last_sweep: int, sequence: str) -> Iterator[Chunk]:
    """Yield a sweep: summary keys and ``hosts``; split by HOSTS_PER_CHUNK when it is above SWEEP_SPLIT_BYTES."""
    split = count * _HOST_BYTES > SWEEP_SPLIT_BYTES
    total = -(-count // HOSTS_PER_CHUNK) if split else 1
    size = HOSTS_PER_CHUNK if split else count
    summary = sweep_summary(count, network=network, last_sweep=last_sweep, sequence=sequence)
    for index in range(total):
        begin = index * size
        hosts = [_sweep_host(number, last_sweep) for number in range(begin, min(count, begin + size))]
        yield Chunk(data=msgspec.json.encode({**summary, "hosts": hosts}), index=index, total=total)


def sweep_summary(count: int, *, network: str, last_sweep: int, sequence: str) -> dict[str, object]:
    """Return a sweep without its hosts: what GetStatus tells."""
    available = sum(_answers(number) for number in range(min(count, 4096)))
    return {
        "network": network,
        "total_hosts": count,
        "available_hosts": available if count <= 4096 else count - count // 7,
        "last_sweep": last_sweep,
        "ports": [{"port": 22, "available": available}, {"port": 443, "available": available // 2}],
        "defined_cidrs": 1,
        "unique_ips": count,
        "sequence": sequence,
    }


def _answers(number: int) -> bool:
    return number % 7 != 3


def _sweep_host(number: int, last_sweep: int) -> dict[str, object]:
    available = _answers(number)
    seen = f"{last_sweep}"
    return {
        "host": _ip(number),
        "available": available,
        "first_seen": seen,
        "last_seen": seen,
        "port_results": [{"port": 22, "available": available, "response_time": 1_200_000 + number % 1000}],
        "icmp_status": {"available": available, "round_trip": 900_000 + number % 1000, "packet_loss": 0},
        "response_time": 900_000 + number % 1000,
    }


def _ip(number: int) -> str:
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def _text(value: str) -> str:
    return msgspec.json.encode(value).decode()
