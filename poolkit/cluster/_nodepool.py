"""The pool behind a node, and the statistics of a node."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from .._pool_base import PoolBase
from ..connector import Verdict
from ..errors import describe, shown
from ._events import ClusterStats, NodeStats
from ._parts import Made, NodeEntry
from ._tiers import Tiers

__all__ = ("NodePool", "callers_have_elsewhere", "engine_of", "in_words", "made_of", "node_stats", "send_away")


class NodePool:
    """The pool of a node where that is an adapter's pool around a :class:`~poolkit.Pool`.

    Subclass it, set ``poolkit`` and implement ``lease``; ``close`` and ``drain`` call the engine's. For an
    :class:`AsyncCluster`, ``lease`` is a coroutine function. An optional method ``probe(timeout)`` is called before
    the node gets requests; if it raises, the node gets none.
    """

    poolkit: Any
    """The engine's pool behind it."""
    places: Callable[[], float] | None = None
    """Returns how many leases the node can have at once; None: the engine's ``max_size``."""
    classify: Callable[[BaseException], Verdict] | None = None
    """Decides what an error of a lease means; None: the engine's connector decides."""

    def lease(self, timeout: float | None) -> Any:
        """Return a :class:`NodeLease` or :class:`AsyncNodeLease` (or an object like it) within ``timeout`` seconds."""
        raise NotImplementedError

    def limited(self, connection: Any, timeout: float) -> AbstractContextManager[object]:
        """Limit a block that asks a leased connection for the node's role to ``timeout`` seconds.

        A :class:`Cluster` calls this, because its threads cannot be interrupted. An override shuts the connection's
        socket down when the time is up. This default sets no limit, so ``role_of`` needs a timeout of its own. An
        :class:`AsyncCluster` cancels ``role_of`` instead.
        """
        return nullcontext()

    def drain(self, timeout: float | None) -> Any:
        """Wait up to ``timeout`` seconds for leases to end, abort the rest, close."""
        return self.poolkit.drain(timeout)

    def close(self, timeout: float | None) -> Any:
        """Close the pool. Leased connections are closed when they are returned."""
        return self.poolkit.close(timeout)


def engine_of(pool: Any) -> PoolBase[Any] | None:
    """Return the engine's pool behind the pool of a node; None if there is none."""
    engine = getattr(pool, "poolkit", pool)
    return engine if isinstance(engine, PoolBase) else None


def callers_have_elsewhere(engine: PoolBase[Any]) -> None:
    """Have callers of a node's pool fail at once after a failed connect, even if connections of it are in use: the
    cluster tries another node.
    """
    engine._driver.operations.elsewhere = True
    engine._core.features = engine._driver.operations.features


def made_of(pool: Any) -> Made:
    """Return what the core knows of a node's pool."""
    places = getattr(pool, "places", None)
    engine = engine_of(pool)
    if engine is None:
        return Made(pool, places, 0) if callable(places) else Made(pool, _unlimited, 1)
    own = engine

    def limit() -> float:
        return own._config.max_size or math.inf

    def suspended() -> bool:
        return own._core.suspended

    def refuses() -> bool:
        return own._core.suspended and own._core.fail_fast

    capacity, least = (places, 0) if callable(places) else (_unlimited if own._core.features.keyed else limit, 1)
    return Made(pool, capacity, least, suspended, refuses)


def _unlimited() -> float:
    return math.inf


def send_away(entry: NodeEntry) -> None:
    """Close the idle connections of an ejected node and send the waiters of its pool to other nodes."""
    engine = engine_of(entry.pool)
    if engine is None:
        return
    if entry.suspended():  # by the application, which also ends it; no caller waits there
        engine.clear()
        return
    engine.suspend(fail_fast=True)
    engine.clear()
    engine.resume()


def node_stats(entry: NodeEntry, tiers: Tiers | None = None) -> NodeStats:
    """Return the statistics of one node."""
    engine = engine_of(entry.pool)
    capacity = entry.capacity()
    node = entry.node
    return NodeStats(
        name=node.name,
        address=shown(node.address),
        state=entry.state.value,
        role=entry.known_role,
        weight=node.weight,
        priority=node.priority,
        zone=node.zone,
        leases=entry.leases,
        places=None if capacity == math.inf else int(capacity),
        served=entry.served,
        failures=entry.failures,
        ejections=entry.ejections,
        last_error=describe(entry.last_error) if entry.last_error is not None else None,
        pool=None if engine is None else engine.stats(),
        tier="" if tiers is None else tiers.name_of(entry),
        use=None if tiers is None else tiers.use(entry, entry.tier),
    )


def in_words(stats: ClusterStats) -> str:
    """Return the state of a cluster as text."""
    nodes = "; ".join(
        " ".join(word for word in (n.name, n.state, _pause(n), n.tier, n.role) if word)
        + f" {n.leases}/{n.places or 'no limit'}"
        + (f", last error {n.last_error}" if n.last_error else "")
        for n in stats.nodes
    )
    return f"{stats.name}: {stats.leases} leases, {stats.waiting} waiting; {nodes}"


def _pause(stats: NodeStats) -> str:
    return "suspended" if stats.pool is not None and stats.pool.phase == "suspended" else ""
