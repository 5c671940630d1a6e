"""The pools of a cluster's nodes: created for new nodes, kept for nodes that stay."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .._misuse import together
from ..config import PoolConfig
from ..connector import AsyncConnector, Connector
from ..errors import ConfigError, PoolClosed
from ..events import Event, EventKind
from ._node import Node
from ._nodepool import callers_have_elsewhere, engine_of, made_of
from ._parts import Made

if TYPE_CHECKING:
    from ._shell import ClusterShell

__all__ = ("Members",)


class Members:
    """Replaces the nodes of one cluster.

    Args:
        cluster: the cluster.
        make: called with each node; returns its connector or pool.
        kind: the class of the pool that is created for a connector.
        config: the settings of that pool.
    """

    def __init__(
        self, cluster: ClusterShell[Any], make: Callable[[Node], Any], kind: type[Any], config: PoolConfig | None
    ) -> None:
        if not callable(make):
            raise ConfigError(f"make={make!r}: must be a function from a Node to its connector or pool", "make")
        if config is not None and not isinstance(config, PoolConfig):
            raise ConfigError(f"pool={config!r}: must be a PoolConfig, for the pool of each node", "pool")
        self._cluster = cluster
        self._make = make
        self._kind = kind
        self._config = config
        self._lock = threading.Lock()

    def restart(self) -> None:
        """In a forked child: another thread of the parent process may have held the lock."""
        self._lock = threading.Lock()

    def replace(self, nodes: tuple[Node, ...]) -> None:
        """Replace the nodes of the cluster. Raises PoolClosed if the cluster is closed."""
        cluster = self._cluster
        with self._lock:  # one update at a time; pools are created outside of the core's lock
            if cluster.closed:
                raise cluster._translated(PoolClosed(f"{cluster.name}: the cluster is closed"))
            old = cluster._core.entries
            made = {
                node.name: self._made(node)
                for node in nodes
                if node.name not in old or not old[node.name].node.same_endpoint(node)
            }
            cluster._gate.step(cluster._core.update, nodes, made, cluster._clock())

    def _made(self, node: Node) -> Made:
        """Create the pool of a node. Does no I/O."""
        name = self._cluster.name
        with together():  # one pool per node is no sign of misuse, whether make() is the user's or an adapter's
            made = self._make(node)
        if isinstance(made, (Connector, AsyncConnector)) or (hasattr(made, "connect") and not hasattr(made, "lease")):
            with together():
                made = self._kind(made, self._config, name=f"{name}/{node.name}")
        if not hasattr(made, "lease"):
            raise ConfigError(
                f"{name}: make({node.name!r}) returned {made!r}: must be a connector or have lease(timeout)", "make"
            )
        engine = engine_of(made)
        if engine is not None:
            callers_have_elsewhere(engine)
            engine.add_listener(_Look(self._cluster))
        return made_of(made)


class _Look:
    """Tells a cluster that a node's pool was suspended or resumed."""

    kinds = frozenset({EventKind.POOL_SUSPENDED, EventKind.POOL_READY})

    def __init__(self, cluster: ClusterShell[Any]) -> None:
        self._cluster = weakref.ref(cluster)

    def __call__(self, event: Event) -> None:
        cluster = self._cluster()
        if cluster is not None:
            cluster._gate.step(cluster._core.pool_changed, cluster._clock())
