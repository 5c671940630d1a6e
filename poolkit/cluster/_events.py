"""What happened in a cluster, and snapshots of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from ..errors import PoolError
from ..stats import PoolStats

__all__ = ("ClusterEvent", "ClusterEventKind", "ClusterListener", "ClusterStats", "NoNodeAvailable", "NodeState",
           "NodeStats")  # fmt: skip


class NodeState(Enum):
    """Whether a node gets callers."""

    USABLE = "usable"
    PROBING = "probing"
    """Added, or to come back: connections are being opened before it gets callers."""
    EJECTED = "ejected"
    DRAINING = "draining"
    """Removed: its leases may end."""


class ClusterEventKind(Enum):
    """The kinds of event."""

    NODE_ADDED = "node added"
    NODE_CHANGED = "node changed"
    NODE_USABLE = "node usable"
    NODE_EJECTED = "node ejected"
    PROBE_FAILED = "probe failed"
    ROLE_CHANGED = "role changed"
    NODE_MOVED = "node moved"
    """To another tier; ``detail`` says from which to which."""
    NODE_REMOVED = "node removed"
    DISCOVERY_FAILED = "discovery failed"


@dataclass(frozen=True)
class ClusterEvent:
    """One thing that happened. ``node`` is "" and ``error`` None where they do not apply."""

    kind: ClusterEventKind
    cluster: str
    at: float
    node: str = ""
    error: BaseException | None = None
    detail: str = ""


ClusterListener = Callable[[ClusterEvent], object]
"""Called for each event, in order, never under the cluster's lock. One that raises is logged once and dropped."""


class NoNodeAvailable(PoolError):
    """No node of the cluster (or none of the wanted role) can be used.

    ``errors`` holds each node's last error by name (None: none yet). The message tells them, too.
    """

    def __init__(self, message: str, errors: dict[str, BaseException | None] | None = None) -> None:
        super().__init__(message, errors)
        self.errors: dict[str, BaseException | None] = errors or {}

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class NodeStats:
    """One node at one moment. ``failures`` in a row, ``ejections`` in a row, ``served``: leases that have ended."""

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
    """Its tier by name; "" without tiers."""
    use: float | None = None
    """Leases on average over ``tier_window``, as a share of those that fit; None without tiers."""


@dataclass(frozen=True)
class ClusterStats:
    """A cluster at one moment."""

    name: str
    nodes: tuple[NodeStats, ...]
    leases: int
    waiting: int
    timeouts: int
