"""What the helpers have in common: which pool is behind an object, whether it serves, its end within a deadline."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import ConfigError, UsageError
from ..stats import PoolStats

__all__ = ("Drained", "check_seconds", "checked", "drain_all", "engine_of", "opened", "trouble")

Drained = dict[str, bool]
"""By name, whether every lease of the pool had ended by itself."""

_WAYS = (
    (),  # itself
    ("poolkit",),  # any adapter's pool or transport
    ("pool", "poolkit"),  # SQLAlchemy's engines
    ("connection_pool", "poolkit"),  # redis-py's clients
    ("connection_pool", "group"),
    ("_transport", "poolkit"),  # httpx's clients
    ("_transport", "cluster"),
    ("cluster",),  # a transport for several servers
)


def engine_of(thing: Any) -> Any:
    """The poolkit pool (or cluster) that an object is or stands on; None if there is none."""
    for way in _WAYS:
        found = thing
        for attribute in way:
            found = getattr(found, attribute, None)
        if callable(getattr(found, "lease", None)) and callable(getattr(found, "drain", None)):
            return found
    return None


def checked(pools: Mapping[str, Any], who: str) -> dict[str, Any]:
    """The pools as given to a helper: objects with a pool behind, or functions that make such.

    Raises ConfigError for anything else.
    """
    for name, thing in pools.items():
        if engine_of(thing) is None and not callable(thing):
            raise _no_pool(name, thing, who)
    return dict(pools)


def check_seconds(name: str, value: Any) -> None:
    """Raise ConfigError unless it is a time in seconds; nothing here waits for ever."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise ConfigError(f"{name}={value!r}: must be a time in seconds, 0 or more", name)


def _no_pool(name: str, thing: object, who: str) -> ConfigError:
    return ConfigError(
        f"{who}: {name}={type(thing).__name__}: has no poolkit pool behind it; give a Pool, an AsyncPool, a cluster, "
        "an adapter's pool or transport, a driver's client or engine that was made with one, or a function that makes "
        "one of these",
        name,
    )


def opened(name: str, thing: Any, who: str, *arguments: Any) -> Any:
    """The object itself, made now if a function was given. Raises ConfigError, and UsageError for a closed pool."""
    if engine_of(thing) is None:
        thing = thing(*arguments)
        if engine_of(thing) is None:
            raise _no_pool(name, thing, who)
    elif engine_of(thing).closed:
        raise UsageError(
            f"{who}: the pool of {name!r} has been closed; where the application may be started again, give a "
            "function that makes it"
        )
    return thing


def trouble(engine: Any) -> str | None:
    """Why a pool serves nobody now, in a word or two; None while it does.

    Only what ends by itself or by command: an open breaker lets a probe through in time, so whoever sends no requests
    to a process that is not ready must not keep it from becoming ready.
    """
    if engine.closed:
        return "closed"
    stats = engine.stats()
    if isinstance(stats, PoolStats):
        return _trouble(stats)
    found = {_trouble(node.pool) for node in stats.nodes if node.pool is not None}
    return None if None in found or not found else f"every node: {', '.join(sorted(map(str, found)))}"


def _trouble(stats: PoolStats) -> str | None:
    if stats.phase != "open":
        return stats.phase
    return "circuit open" if stats.open_breakers and stats.open_breakers >= stats.lanes else None


def drain_all(engines: Iterable[tuple[str, Any]], timeout: float) -> Drained:
    """Drain synchronous pools, all of them within ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    done: Drained = {}
    for name, engine in engines:
        done[name] = bool(engine.drain(max(0.0, deadline - time.monotonic()))) and done.get(name, True)
    return done
