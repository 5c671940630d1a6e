"""Map keys to nodes by rendezvous, ring and jump hashing. The result is the same in every process and version."""

from __future__ import annotations

import struct
from bisect import bisect
from collections.abc import Callable, Hashable, Mapping, Sequence
from hashlib import blake2b, md5
from math import log

from ..errors import ConfigError

__all__ = ("Ring", "hash_key", "jump_hash", "rendezvous_order")


def hash_key(key: Hashable) -> int:
    """64 bits of a key (str, bytes, int, or a tuple of these), stable over processes and versions, unlike ``hash()``.

    Raises ConfigError for anything else: its text might not be the same everywhere.
    """
    return int.from_bytes(blake2b(_bytes(key), digest_size=8).digest(), "big")


def _bytes(key: Hashable) -> bytes:
    if isinstance(key, str):
        return b"s" + key.encode()
    if isinstance(key, (bytes, bytearray, memoryview)):
        return b"b" + bytes(key)
    if isinstance(key, bool):
        return b"t" if key else b"f"
    if isinstance(key, int):
        return b"i" + str(key).encode()
    if isinstance(key, tuple):
        return b"(" + b",".join(str(len(part)).encode() + b":" + part for part in map(_bytes, key)) + b")"
    if hasattr(key, "bytes") and isinstance(key.bytes, bytes):  # uuid.UUID
        return b"u" + key.bytes
    raise ConfigError(f"key={key!r}: must be a string, bytes, a whole number, a UUID, or a tuple of these", "key")


def rendezvous_order(key: Hashable, names: Sequence[str], weights: Mapping[str, float] | None = None) -> list[str]:
    """The names in the order in which they own ``key``: highest random weight first.

    D. Thaler, C. Ravishankar, "A Name-Based Mapping Scheme for Rendezvous", 1996. Removing a name moves only that
    name's keys. With ``weights``: the logarithmic method (J. Resch, SNIA 2015), a share in proportion.
    """
    base = _bytes(key)

    def score(name: str) -> float:
        salt = blake2b(name.encode(), digest_size=16).digest()
        drawn = int.from_bytes(blake2b(base, key=salt, digest_size=8).digest(), "big")
        if weights is None:
            return drawn
        return -weights[name] / log((drawn + 0.5) / 2.0**64)

    return sorted(names, key=lambda name: (-score(name), name))


def jump_hash(key: int, buckets: int) -> int:
    """The bucket, 0 to ``buckets - 1``, of a 64-bit key.

    J. Lamping, E. Veach, "A Fast, Minimal Memory, Consistent Hash Algorithm", 2014. Buckets can only be added or
    removed at the end; then the least possible number of keys moves.
    """
    if buckets < 1:
        raise ConfigError(f"buckets={buckets!r}: must be 1 or more", "buckets")
    key &= 0xFFFFFFFFFFFFFFFF
    bucket, jump = -1, 0
    while jump < buckets:
        bucket = jump
        key = (key * 2862933555777941757 + 1) & 0xFFFFFFFFFFFFFFFF
        jump = int((bucket + 1) * ((1 << 31) / ((key >> 33) + 1)))
    return bucket


class Ring:
    """A hash ring with virtual nodes, 160 for each node of weight 1 (ketama, R. Jones, last.fm, 2007).

    ``points`` of a heavier node are more in proportion. A lookup is a binary search.
    """

    def __init__(self, weights: Mapping[str, float], points: int = 160) -> None:
        self._names = list(weights)
        placed: list[tuple[int, str]] = []
        for name, weight in weights.items():
            for number in range(max(1, round(points * weight / 4))):  # four points out of each digest
                digest = md5(f"{name}-{number}".encode(), usedforsecurity=False).digest()
                placed += [(point, name) for point in struct.unpack("<4I", digest)]
        placed.sort()
        self._points = [point for point, _ in placed]
        self._owners = [name for _, name in placed]

    def owner(self, key: Hashable, accept: Callable[[str], bool] | None = None) -> str:
        """The first node clockwise from the key's position that ``accept`` accepts (None: any).

        With a condition on the load, this is "consistent hashing with bounded loads" (V. Mirrokni, M. Thorup, M.
        Zadimoghaddam, 2018). If no node is accepted, the first one.
        """
        at = bisect(self._points, hash_key(key) & 0xFFFFFFFF) % len(self._points)
        if accept is None:
            return self._owners[at]
        refused: set[str] = set()
        for step in range(len(self._points)):
            name = self._owners[(at + step) % len(self._points)]
            if name in refused:
                continue
            if accept(name):
                return name
            refused.add(name)
            if len(refused) == len(self._names):
                break
        return self._owners[at]
