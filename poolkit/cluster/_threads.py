"""The cluster for threads."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, TypeVar

from .._threads import Pool
from ..config import PoolConfig
from ..connector import Connector, Verdict
from ..errors import PoolClosed
from ..runtimes.base import Runtime
from ..runtimes.threads import ThreadRuntime
from ._config import ClusterConfig, ClusterSettings
from ._driver import ThreadNodeDriver
from ._events import ClusterListener
from ._leases import ClusterLease
from ._node import Node
from ._nodepool import NodePool
from ._opening import ThreadLeaseOpener
from ._shell import DEFAULT, ClusterShell, Default, ending
from .discovery import Discovery

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ("Cluster",)

C = TypeVar("C")

_THREADS = ThreadRuntime()


class Cluster(ClusterShell[C]):
    """Several nodes behind one ``lease()``. Thread-safe; usable in a forked child.

    Args:
        make: called with each :class:`~poolkit.cluster.Node`; must do no I/O. Returns the node's
            :class:`~poolkit.Connector`, for which a :class:`~poolkit.Pool` is created, or a pool (any object with
            ``lease(timeout)``).
        nodes: a list of nodes or addresses, or a :class:`~poolkit.cluster.Discovery`. A discovery is called once
            before this returns, then in the background.
        config: a :class:`~poolkit.cluster.ClusterConfig`. Single settings given as keywords override it.
        pool: the settings of the pool of each node.
        name: for messages and statistics; None: "cluster-" and a number.
        role_of: called with a connection; returns the role of its node ("primary", "replica").
        classify: decides what an error means, instead of the connectors' ``classify``.
        listeners: called for each :class:`~poolkit.cluster.ClusterEvent`.

    Raises :class:`~poolkit.ConfigError` for an invalid argument, and the discovery's own error if its first call
    fails.
    """

    _pool_kind = Pool
    _driver_kind = ThreadNodeDriver
    _driver: ThreadNodeDriver[C]

    def __init__(
        self,
        make: Callable[[Node], Connector[C] | Pool[C] | NodePool],
        nodes: Iterable[Node | str] | Discovery,
        config: ClusterConfig | None = None,
        *,
        pool: PoolConfig | None = None,
        name: str | None = None,
        role_of: Callable[[C], str | None] | None = None,
        classify: Callable[[BaseException], Verdict] | None = None,
        listeners: Iterable[ClusterListener] = (),
        clock: Callable[[], float] | None = None,
        random: Callable[[], float] | None = None,
        runtime: Runtime | None = None,
        **settings: Unpack[ClusterSettings],
    ) -> None:
        super().__init__(
            make, nodes, config, settings, pool=pool, name=name, role_of=role_of, classify=classify,
            listeners=listeners, clock=clock, random=random, runtime=runtime or _THREADS,
        )  # fmt: skip
        self._opener = ThreadLeaseOpener(self)
        self._finder.find_now()
        self._gate.keep_time()

    # -- leases --------------------------------------------------------------------------------------------------------

    def lease(
        self,
        timeout: float | Default | None = DEFAULT,
        *,
        key: Hashable = None,
        role: str | None = None,
        avoid: Iterable[str] = (),
    ) -> ClusterLease[C]:
        """Lease a connection of one node: ``with cluster.lease() as connection: ...``.

        Args:
            timeout: seconds, instead of ``acquire_timeout``; None: no limit. One deadline for the queue, the node's
                pool, checks, connects, and further nodes where connecting fails.
            key: the same key gets the same node while that node is usable and has a free place.
            role: "primary", "replica", or "prefer-replica" (a replica if one is free, otherwise any node).
            avoid: names of nodes not to use, for example because something failed there.

        Raises :class:`~poolkit.cluster.NoNodeAvailable`, :class:`~poolkit.AcquireTimeout` or
        :class:`~poolkit.PoolClosed`.
        """
        return self._opener.lease(timeout, key, role, avoid)

    def acquire(
        self,
        timeout: float | Default | None = DEFAULT,
        *,
        key: Hashable = None,
        role: str | None = None,
        avoid: Iterable[str] = (),
    ) -> C:
        """Lease a connection that is returned with :meth:`release`. Arguments and errors as :meth:`lease`."""
        lease = self.lease(timeout, key=key, role=role, avoid=avoid)
        self._leases[id(lease.connection)] = lease
        return lease.connection

    def release(self, connection: C, *, discard: bool = False, error: BaseException | None = None) -> None:
        """Return a connection of :meth:`acquire`. Raises :class:`~poolkit.NotLeased` for any other object, or twice."""
        self._endings.lease_of(connection).close(discard=discard, error=error)

    # -- shutdown ------------------------------------------------------------------------------------------------------

    def drain(self, timeout: float | None = 30.0) -> bool:
        """Refuse new requests, wait up to ``timeout`` seconds for leases to end, abort the rest, close.

        Returns True if no lease had to be aborted.
        """
        whole = True
        for pool, left in ending(self, timeout):
            whole = bool(pool.drain(left)) and whole
        return whole

    def close(self, timeout: float | None = 5.0) -> None:
        """Close every node's pool within ``timeout`` seconds; waiting requests fail with :class:`~poolkit.PoolClosed`.

        Idempotent, thread-safe.
        """
        for pool, left in ending(self, timeout):
            pool.close(left)

    def __enter__(self) -> Cluster[C]:
        if self.closed:
            raise self._translated(PoolClosed(f"{self.name}: the cluster is closed"))
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
