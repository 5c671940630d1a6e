"""Events and statistics of a cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from ..errors import PoolError
from ..stats import PoolStats

__all__ = ("ClusterEvent", "ClusterEventKind", "ClusterListener", "ClusterStats", "NoNodeAvailable", "NodeState",
           "NodeStats")  # fmt: skip


class NodeState(Enum):
    """The state of a node. Only a usable node gets requests."""

    USABLE = "usable"
    PROBING = "probing"
    """Added or coming back: connections are opened before it gets requests."""
    EJECTED = "ejected"
    DRAINING = "draining"
    """Removed: its leases may still end."""


class ClusterEventKind(Enum):
    """The kinds of events of a cluster."""

    NODE_ADDED = "node added"
    NODE_CHANGED = "node changed"
    NODE_USABLE = "node usable"
    NODE_EJECTED = "node ejected"
    PROBE_FAILED = "probe failed"
    ROLE_CHANGED = "role changed"
    NODE_MOVED = "node moved"
    """The node moved to another tier; ``detail`` names both tiers."""
    NODE_REMOVED = "node removed"
    DISCOVERY_FAILED = "discovery failed"


@dataclass(frozen=True)
class ClusterEvent:
    """An event of a cluster, ``at`` a time of the cluster's clock in seconds.

    ``node`` is "" and ``error`` is None where they do not apply.
    """

    kind: ClusterEventKind
    cluster: str
    at: float
    node: str = ""
    error: BaseException | None = None
    detail: str = ""


ClusterListener = Callable[[ClusterEvent], object]
"""Called for each event, in order, never under the cluster's lock. One that raises is logged and removed."""


class NoNodeAvailable(PoolError):
    """No node of the cluster, or none of the wanted role, is usable.

    ``errors`` maps each node's name to its last error (None: none so far). The message contains them too.
    """

    def __init__(self, message: str, errors: dict[str, BaseException | None] | None = None) -> None:
        super().__init__(message, errors)
        self.errors: dict[str, BaseException | None] = errors or {}

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class NodeStats:
    """A snapshot of one node.

    ``leases``: leases now; ``places``: how many it can have at once, None for no limit; ``served``: leases that have
    ended. ``failures`` and ``ejections``: how many in a row.
    """

    name: str
    address: str
    state: str
    role: str | None
    weight: float
    priority: int
    zone: str
    leases: int
    places: int | None
    served: int
    failures: int
    ejections: int
    last_error: str | None
    pool: PoolStats | None
    tier: str = ""
    """The name of its tier; "" without tiers."""
    use: float | None = None
    """Average number of leases over ``tier_window``, as a share of its capacity; None without tiers."""


@dataclass(frozen=True)
class ClusterStats:
    """A snapshot of a cluster. ``waiting``: callers in the queue; ``timeouts``: callers that timed out in it."""

    name: str
    nodes: tuple[NodeStats, ...]
    leases: int
    waiting: int
    timeouts: int
