"""Shared by the frameworks' helpers: find the pool of an object, tell whether it serves, drain within a deadline."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import ConfigError, UsageError
from ..stats import PoolStats

__all__ = ("Drained", "checked", "drain_all", "engine_of", "opened", "trouble")

Drained = dict[str, bool]
"""By pool name, whether all its leases ended without being aborted."""

_WAYS = (
    (),  # the object itself
    ("poolkit",),  # any adapter's pool or transport
    ("pool", "poolkit"),  # SQLAlchemy's engines
    ("connection_pool", "poolkit"),  # redis-py's clients
    ("connection_pool", "group"),
    ("_transport", "poolkit"),  # httpx's clients
    ("_transport", "cluster"),
    ("cluster",),  # a transport for several servers
)


def engine_of(thing: Any) -> Any:
    """The poolkit pool or cluster that an object is or uses; None if there is none."""
    for way in _WAYS:
        found = thing
        for attribute in way:
            found = getattr(found, attribute, None)
        if callable(getattr(found, "lease", None)) and callable(getattr(found, "drain", None)):
            return found
    return None


def checked(pools: Mapping[str, Any], who: str) -> dict[str, Any]:
    """Check the pools given to a helper: objects that use a poolkit pool, or functions that create such objects.

    Raises ConfigError for anything else.
    """
    for name, thing in pools.items():
        if engine_of(thing) is None and not callable(thing):
            raise _no_pool(name, thing, who)
    return dict(pools)


def _no_pool(name: str, thing: object, who: str) -> ConfigError:
    return ConfigError(
        f"{who}: {name}={type(thing).__name__}: does not use a poolkit pool; give a Pool, an AsyncPool, a cluster, "
        "an adapter's pool or transport, a driver's client or engine that uses one, or a function that creates one of "
        "these",
        name,
    )


def opened(name: str, thing: Any, who: str, *arguments: Any) -> Any:
    """The object, created now if a function was given.

    Raises ConfigError if it does not use a poolkit pool, UsageError if its pool is closed.
    """
    if engine_of(thing) is None:
        thing = thing(*arguments)
        if engine_of(thing) is None:
            raise _no_pool(name, thing, who)
    elif engine_of(thing).closed:
        raise UsageError(
            f"{who}: the pool of {name!r} is closed; if the application may be started again, give a function that "
            "creates the pool"
        )
    return thing


def trouble(engine: Any) -> str | None:
    """The reason why a pool does not serve now, in a word or two; None if it does.

    Only states that end by themselves or by a command count: a process that is not ready gets no requests, and must
    become ready without them. An open breaker does, because it lets a probe through after a time.
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
