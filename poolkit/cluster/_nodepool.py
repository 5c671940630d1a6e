"""What stands behind a node, and the numbers of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from .._shell import Shell
from ..connector import Verdict
from ..errors import describe, shown
from ._events import ClusterStats, NodeStats
from ._parts import Member
from ._tiers import Tiers

__all__ = ("NodePool", "engine_of", "node_stats", "told")


class NodePool:
    """What stands behind a node where that is not a :class:`~poolkit.Pool` itself but an adapter's pool around one.

    Subclass it, set ``poolkit`` and implement ``lease``; ``close`` and ``drain`` are the engine's. For an
    :class:`AsyncCluster` ``lease`` is a coroutine function. A method ``probe(timeout)``, where there is one, is called
    before the node gets callers, and fails if it is not to.
    """

    poolkit: Any
    """The engine's pool behind it."""
    places: Callable[[], float] | None = None
    """How many leases fit; None: as many as the engine's ``max_size``."""
    classify: Callable[[BaseException], Verdict] | None = None
    """What an error of a lease means; None: what the engine's connector says."""

    def lease(self, timeout: float | None) -> Any:
        """A :class:`NodeLease` or :class:`AsyncNodeLease` (or what is used like one), within ``timeout`` seconds."""
        raise NotImplementedError

    def limited(self, connection: Any, timeout: float) -> AbstractContextManager[object]:
        """A block that asks ``connection``, of a lease, for the node's role and must be over in ``timeout`` seconds.

        For a :class:`Cluster`, whose threads cannot be interrupted: shut the connection's socket down when the time is
        up. Here: no limit, the question needs one of its own. An :class:`AsyncCluster` cancels the question.
        """
        return nullcontext()

    def drain(self, timeout: float | None) -> Any:
        """Let the leases end, cut the rest after ``timeout`` seconds, close."""
        return self.poolkit.drain(timeout)

    def close(self, timeout: float | None) -> Any:
        """Close; the leases are closed when they come back."""
        return self.poolkit.close(timeout)


def engine_of(pool: Any) -> Shell[Any] | None:
    """The engine's pool behind what stands behind a node, if there is one."""
    engine = getattr(pool, "poolkit", pool)
    return engine if isinstance(engine, Shell) else None


def node_stats(member: Member, tiers: Tiers | None = None) -> NodeStats:
    """The numbers of one node."""
    engine = engine_of(member.pool)
    places = member.places()
    node = member.node
    return NodeStats(
        name=node.name,
        address=shown(node.address),
        state=member.state.value,
        role=member.known_role,
        weight=node.weight,
        priority=node.priority,
        zone=node.zone,
        leases=member.leases,
        places=None if places == math.inf else int(places),
        served=member.served,
        failures=member.failures,
        ejections=member.ejections,
        last_error=describe(member.last_error) if member.last_error is not None else None,
        pool=None if engine is None else engine.stats(),
        tier="" if tiers is None else tiers.name_of(member),
        use=None if tiers is None else tiers.use(member, member.tier),
    )


def told(stats: ClusterStats) -> str:
    """The state of a cluster in plain words."""
    nodes = "; ".join(
        " ".join(word for word in (n.name, n.state, n.tier, n.role) if word)
        + f" {n.leases}/{n.places or 'no limit'}"
        + (f", last error {n.last_error}" if n.last_error else "")
        for n in stats.nodes
    )
    return f"{stats.name}: {stats.leases} leases, {stats.waiting} waiting; {nodes}"
