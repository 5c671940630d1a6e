"""How a cluster starts, and starts again: in a forked child, or on another event loop."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any

from ..policies.members import snapshot
from ..runtimes.fork import Stage, after_fork
from ._core import ClusterCore
from ._gate import ClusterGate

if TYPE_CHECKING:
    from ._shell import ClusterShell

__all__ = ("live_clusters", "open_core", "register", "restart")

_clusters: weakref.WeakSet[ClusterShell[Any]] = weakref.WeakSet()
_clusters_lock = threading.Lock()


def open_core(cluster: ClusterShell[Any]) -> None:
    """Give the cluster an empty core, and a gate with a lock of its own. The parts of the cluster exist already."""
    cluster._core = core = ClusterCore(
        cluster.name, cluster._config, cluster._random, asks_roles=cluster._role_of is not None
    )
    cluster._listeners.restart()
    cluster._gate = ClusterGate(
        core,
        name=cluster.name,
        clock=cluster._clock,
        lock=threading.RLock(),
        repair=lambda: core.repair(cluster._clock()),
        perform=cluster._housekeeping.perform,
        call_later=cluster._driver.call_later,
        run_due=cluster._housekeeping.run_due,
        note_alone=cluster._housekeeping.note_alone,
    )


def restart(cluster: ClusterShell[Any]) -> None:
    """Continue with the same nodes. The leases and probes have ended with their process or event loop."""
    old = cluster._core
    cluster._members.restart()
    open_core(cluster)
    cluster._core.inherit(old)
    cluster._finder.restart()


def register(cluster: ClusterShell[Any]) -> None:
    """Add a cluster to those of this process. It is also restarted in each forked child, after its pools."""
    with _clusters_lock:
        _clusters.add(cluster)


def live_clusters() -> list[ClusterShell[Any]]:
    """Return all clusters of this process that are not closed."""
    with _clusters_lock:
        known = snapshot(_clusters)
    return [cluster for cluster in known if not cluster.closed]


def _after_fork_in_child() -> None:
    global _clusters_lock
    _clusters_lock = threading.Lock()  # another thread of the parent process may have held it
    for cluster in list(_clusters):
        cluster._driver.unbind()
        restart(cluster)


after_fork(Stage.CLUSTERS, _after_fork_in_child)
