"""Map keys to shards. The same key and the same table give the same shard in every process."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from .._numbers import given, is_number
from ..errors import ConfigError
from .hashing import Ring, hash_key, jump_hash, rendezvous_order

__all__ = (
    "FunctionRouter",
    "JumpRouter",
    "LookupRouter",
    "RangeRouter",
    "RendezvousRouter",
    "RingRouter",
    "Router",
)


class Router:
    """The names of the shards, and the shard of each key. Subclass it for your own rule."""

    names: tuple[str, ...]
    """Every shard, in order."""

    def shard_of(self, key: Any) -> str:
        """The shard of ``key``. Raises :class:`~poolkit.ConfigError` for a key of the wrong kind or without one."""
        raise NotImplementedError

    def choose(self, key: Any, load: Callable[[str], int]) -> str:
        """The shard to use now; ``load(name)`` returns its leases. By default :meth:`shard_of`."""
        return self.shard_of(key)


def _names(shards: Sequence[str] | Mapping[str, Any]) -> tuple[str, ...]:
    if isinstance(shards, str):
        raise ConfigError(f"shards={shards!r}: must be a list of names", "shards")
    names: tuple[Any, ...] = tuple(shards)
    if not names:
        raise ConfigError("shards: empty; one or more are needed", "shards")
    for name in names:
        if not isinstance(name, str) or not name:
            raise ConfigError(f"shards: {name!r}: must be a word", "shards")
    if len(set(names)) < len(names):
        raise ConfigError(f"shards={list(names)!r}: names must be unique", "shards")
    return names


def _weights(shards: Sequence[str] | Mapping[str, float]) -> dict[str, float]:
    names = _names(shards)
    weights: dict[str, Any] = dict(shards) if isinstance(shards, Mapping) else dict.fromkeys(names, 1.0)
    for name, weight in weights.items():
        if not is_number(weight) or not 0 < weight < math.inf:
            raise ConfigError(f"shard {name!r}: weight={given(weight)}: must be a number above 0", "weight")
    return weights


class RingRouter(Router):
    """Consistent hashing on a ring (ketama) with ``points`` virtual nodes for each shard of weight 1.

    ``shards``: names, or weights by name. With ``bound`` (for example 1.25) no shard gets more than that factor of its
    share of the current leases; the key then goes to the next shard of the ring. For caches, where a key may be on
    several shards.
    """

    def __init__(
        self, shards: Sequence[str] | Mapping[str, float], *, points: int = 160, bound: float | None = None
    ) -> None:
        self._weights = _weights(shards)
        self.names = tuple(self._weights)
        given: tuple[Any, Any] = (points, bound)
        if isinstance(given[0], bool) or not isinstance(given[0], int) or points < 1:
            raise ConfigError(f"points={points!r}: must be a whole number, 1 or more", "points")
        if bound is not None and (not isinstance(given[1], (int, float)) or bound <= 1):
            raise ConfigError(f"bound={bound!r}: must be a number above 1, or None", "bound")
        self.bound = bound
        self._ring = Ring(self._weights, points)

    def shard_of(self, key: Any) -> str:
        """The next shard on the ring after the position of the key."""
        return self._ring.owner(key)

    def choose(self, key: Any, load: Callable[[str], int]) -> str:
        """The same, skipping shards above the bound."""
        if self.bound is None:
            return self._ring.owner(key)
        loads = {name: load(name) for name in self.names}
        fair = self.bound * (sum(loads.values()) + 1) / sum(self._weights.values())
        return self._ring.owner(key, lambda name: loads[name] + 1 <= math.ceil(fair * self._weights[name]))


class RendezvousRouter(Router):
    """Highest random weight: the evenest shares, at a cost that grows with the number of shards."""

    def __init__(self, shards: Sequence[str] | Mapping[str, float]) -> None:
        self._shares = _weights(shards) if isinstance(shards, Mapping) else None
        self.names = _names(shards)

    def shard_of(self, key: Any) -> str:
        """The shard with the highest weight for the key."""
        return rendezvous_order(key, self.names, self._shares)[0]


class JumpRouter(Router):
    """Jump consistent hash: no table at all. Shards are added and removed at the end of the list only."""

    def __init__(self, shards: Sequence[str]) -> None:
        self.names = _names(shards)

    def shard_of(self, key: Any) -> str:
        """The shard at the index to which the key jumps."""
        return self.names[jump_hash(hash_key(key), len(self.names))]


class RangeRouter(Router):
    """Ranges of keys: ``RangeRouter([1000, 2000], ["a", "b", "c"])`` sends keys below 1000 to a, from 1000 on to b,
    from 2000 on to c. Keys and bounds are of one kind that can be compared.
    """

    def __init__(self, bounds: Sequence[Any], shards: Sequence[str]) -> None:
        self.bounds = list(bounds)
        self._shards = tuple(shards)  # two ranges may be on one shard
        self.names = _names(tuple(dict.fromkeys(shards)))
        if len(self._shards) != len(self.bounds) + 1:
            raise ConfigError(
                f"bounds: {len(self.bounds)} bounds make {len(self.bounds) + 1} ranges, but there are "
                f"{len(self._shards)} shards",
                "bounds",
            )
        try:
            rising = all(low < high for low, high in zip(self.bounds, self.bounds[1:], strict=False))
        except TypeError as error:
            raise ConfigError(f"bounds={self.bounds!r}: cannot be compared: {error}", "bounds") from None
        if not rising:
            raise ConfigError(f"bounds={self.bounds!r}: must be in ascending order", "bounds")

    def shard_of(self, key: Any) -> str:
        """The shard of the key's range."""
        try:
            return self._shards[bisect_right(self.bounds, key)]
        except TypeError:
            kind = type(self.bounds[0]).__name__
            raise ConfigError(f"key={key!r}: must be of the kind of the bounds ({kind})", "key") from None


class LookupRouter(Router):
    """A table from keys to shards; ``default`` (a shard or another router) for all others."""

    def __init__(self, table: Mapping[Hashable, str], default: str | Router | None = None) -> None:
        self.table = dict(table)
        self.default = default
        named = [*self.table.values()]
        if isinstance(default, Router):
            named += default.names
        elif default is not None:
            named.append(default)
        self.names = _names(tuple(dict.fromkeys(named)))

    def shard_of(self, key: Any) -> str:
        """The shard of the key in the table."""
        try:
            found = self.table.get(key)
        except TypeError:
            raise ConfigError(f"key={key!r}: must be hashable, to be looked up in a table", "key") from None
        if found is not None:
            return found
        if isinstance(self.default, Router):
            return self.default.shard_of(key)
        if self.default is None:
            raise ConfigError(f"key={key!r}: not in the table, and there is no default", "key")
        return self.default


class FunctionRouter(Router):
    """A function from keys to names of shards."""

    def __init__(self, function: Callable[[Any], str], shards: Sequence[str]) -> None:
        self.function = function
        self.names = _names(shards)

    def shard_of(self, key: Any) -> str:
        """The shard that the function returns. Raises ConfigError if there is no such shard."""
        name = self.function(key)
        if name not in self.names:
            raise ConfigError(
                f"key={key!r}: the function returned {name!r}, which is not one of the shards {list(self.names)}", "key"
            )
        return name
