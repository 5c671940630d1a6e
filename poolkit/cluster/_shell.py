"""The base of both clusters: it creates the parts of a cluster, and has the methods that do not wait."""

from __future__ import annotations

import random as _random
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from .. import _registry
from .._listeners import Listeners
from .._numbers import seconds
from .._slow_path import DEFAULT, Default
from ..config import PoolConfig
from ..connector import Verdict
from ..errors import ConfigError, shown
from ..policies.retire import NEVER
from ._begin import open_core, register
from ._config import ClusterConfig, ClusterSettings
from ._core import ClusterCore
from ._endings import LeaseEndings
from ._events import ClusterEvent, ClusterListener, ClusterStats
from ._finder import Finder
from ._gate import ClusterGate
from ._housekeeping import ClusterHousekeeping
from ._members import Members
from ._node import Node, checked_nodes, node_name
from ._nodepool import in_words, node_stats
from .discovery import Discovery

__all__ = ("DEFAULT", "ClusterShell", "Default", "ending")

C = TypeVar("C")


def _unchanged(error: BaseException) -> BaseException:
    """Return the error as it is."""
    return error


class ClusterShell(Generic[C]):
    """The common part of :class:`Cluster` and :class:`AsyncCluster`. None of its methods waits."""

    _pool_kind: type[Any]
    _driver_kind: Any
    _driver: Any
    _core: ClusterCore
    _gate: ClusterGate
    _leases: dict[int, Any]  # of acquire()
    _translated: Callable[[BaseException], BaseException] = staticmethod(_unchanged)
    """An error as callers get it. Those of an adapter's cluster are also the driver's."""

    def __init__(
        self,
        make: Callable[[Node], Any],
        nodes: Iterable[Node | str] | Discovery,
        config: ClusterConfig | None,
        settings: ClusterSettings,
        *,
        pool: PoolConfig | None,
        name: str | None,
        role_of: Callable[[C], Any] | None,
        classify: Callable[[BaseException], Verdict] | None,
        listeners: Iterable[ClusterListener],
        clock: Callable[[], float] | None,
        random: Callable[[], float] | None,
        runtime: Any,
    ) -> None:
        self._members = Members(self, make, self._pool_kind, pool)
        if config is not None and not isinstance(config, ClusterConfig):
            raise ConfigError(f"config={config!r}: must be a ClusterConfig", "config")
        self._config = (config or ClusterConfig()).replace(**settings)
        self.name = _registry.pool_name(name).replace("pool-", "cluster-") if name is None else shown(name)
        self._role_of = role_of
        self._clock = clock or time.monotonic
        self._random = random or _random.random
        self._listeners: Listeners[ClusterEvent] = Listeners(self.name, self.remove_listener)
        for listener in listeners:
            self._listeners.add(listener)
        self._leases = {}
        self._finder = Finder(self, nodes)
        self._endings = LeaseEndings(self, classify)
        self._housekeeping = ClusterHousekeeping(self)
        self._driver = self._driver_kind(self, runtime)
        open_core(self)
        register(self)

    # -- listeners and nodes ------------------------------------------------------------------------------------------

    def add_listener(self, listener: ClusterListener) -> None:
        """Call ``listener(event)`` for each later :class:`ClusterEvent`, in order, outside the lock. Thread-safe."""
        self._gate.step(self._listeners.add, listener)

    def remove_listener(self, listener: ClusterListener) -> None:
        """Undo :meth:`add_listener`. Does nothing if the listener is not registered. Thread-safe."""
        self._gate.step(self._listeners.remove, listener)

    def update(self, nodes: Iterable[Node | str]) -> None:
        """Replace the nodes. Thread-safe.

        Nodes that stay keep their connections, even if weight, priority, zone or role change. A removed node gets no
        new requests and drains within ``drain_timeout``. A new node is warmed up first and then starts slowly.
        A discovery overrides this with its next change. Raises :class:`~poolkit.ConfigError` for invalid nodes, and
        changes nothing then.
        """
        self._members.replace(checked_nodes(nodes))

    def pool(self, node: str) -> Any:
        """Return a node's pool: a :class:`~poolkit.Pool`, or what ``make`` returned. KeyError for an unknown node."""
        return self._core.entries[node_name(node)].pool

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The current nodes."""
        return tuple(entry.node for entry in list(self._core.entries.values()))

    # -- settings and numbers -----------------------------------------------------------------------------------------

    @property
    def config(self) -> ClusterConfig:
        """The settings in effect."""
        return self._config

    @property
    def closed(self) -> bool:
        """Whether the cluster refuses new requests."""
        return self._core.closed

    def stats(self) -> ClusterStats:
        """Return a frozen snapshot. Thread-safe; never waits for I/O."""
        core = self._core
        self._gate.run_posted()
        entries = self._gate.step(lambda: (*core.entries.values(), *core.draining))
        nodes = tuple(node_stats(entry, core.tiering) for entry in entries)
        waiting = self._gate.step(lambda: sum(len(queue) for queue in core.requests.queues.values()))
        return ClusterStats(self.name, nodes, sum(node.leases for node in nodes), waiting, core.timeouts)

    def explain(self) -> str:
        """Return the state of the cluster as text. Thread-safe."""
        return in_words(self.stats())

    def check_books(self) -> None:
        """Raise AssertionError unless the invariants of the cluster hold. For tests."""
        self._gate.run_posted()
        self._gate.step(self._core.check)

    def __repr__(self) -> str:
        core = self._core
        return f"<{type(self).__name__} {self.name!r} of {len(core.entries)} nodes{', closed' if core.closed else ''}>"


def ending(cluster: ClusterShell[Any], timeout: float | None) -> Iterator[tuple[Any, float | None]]:
    """Refuse new requests; yield the pool of each node with the seconds that are left to end it."""
    seconds("timeout", timeout, most=NEVER, none="no limit")
    core, clock = cluster._core, cluster._clock
    deadline = NEVER if timeout is None else clock() + timeout
    cluster._gate.step(core.close, clock())
    cluster._finder.source.close()
    cluster._driver.stop()
    for entry in (*core.entries.values(), *core.draining):
        yield entry.pool, None if deadline == NEVER else max(0.0, deadline - clock())
