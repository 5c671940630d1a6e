"""The cluster for threads: waits, opens leases, probes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterable
from contextlib import nullcontext
from typing import Any, TypeVar

from .._threads import Pool
from ..config import PoolConfig
from ..connector import Connector, Verdict
from ..errors import PoolClosed
from ..policies.retire import NEVER
from ..runtimes.base import Runtime, SyncParker
from ..runtimes.threads import ThreadRuntime
from ._config import ClusterConfig
from ._core import Caller, Do, Member
from ._events import ClusterListener
from ._leases import ClusterLease
from ._node import Node
from ._nodepool import NodePool
from ._shell import DEFAULT, ClusterShell, Default
from .discovery import Discovery, Found

__all__ = ("Cluster",)

C = TypeVar("C")

_THREADS = ThreadRuntime()


class Cluster(ClusterShell[C]):
    """Many endpoints behind one ``lease()``. Thread-safe throughout; safe after ``fork()``.

    ``make``: called with each :class:`~poolkit.cluster.Node`; gives the node's :class:`~poolkit.Connector`, from which
    a :class:`~poolkit.Pool` with the settings ``pool`` is made, or a pool of its own (anything with
    ``lease(timeout)``). It must do no I/O. ``nodes``: a list of nodes or addresses, or a
    :class:`~poolkit.cluster.Discovery`, which is asked once before this returns, and then in the background.
    ``config``: a :class:`~poolkit.cluster.ClusterConfig`; single settings may be given as keywords and win.
    ``role_of``: called with a connection, tells its node's role ("primary", "replica"). ``classify``: what an error
    means, instead of the connectors' own. ``listeners``: called for each :class:`~poolkit.cluster.ClusterEvent`.

    Raises :class:`~poolkit.ConfigError` for what cannot be meant, and the discovery's own error if its first answer
    fails.
    """

    _pool_kind = Pool

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
        **settings: Any,
    ) -> None:
        self._runtime = runtime or _THREADS
        self._leases: dict[int, ClusterLease[C]] = {}
        super().__init__(
            make, nodes, config, settings, pool=pool, name=name, role_of=role_of, classify=classify,
            listeners=listeners, clock=clock, random=random,
        )  # fmt: skip
        self._take_found(self._source.find(None))
        self._keep_time()

    # -- leases -------------------------------------------------------------------------------------------------------

    def lease(
        self,
        timeout: float | Default | None = DEFAULT,
        *,
        key: Hashable = None,
        role: str | None = None,
        avoid: Iterable[str] = (),
    ) -> ClusterLease[C]:
        """A lease on a connection of one node: ``with cluster.lease() as connection: ...``.

        ``timeout`` in seconds replaces ``acquire_timeout``: one deadline over the queue, the node's pool, checks,
        connects, and further nodes where connecting fails. ``role``: "primary", "replica", or "prefer-replica" (one if
        there is a free one, else any). ``key``: the same key gets the same node as long as that is usable and has a
        free place. ``avoid``: names of nodes that will not do (where something has failed before). Raises
        :class:`~poolkit.cluster.NoNodeAvailable`, :class:`~poolkit.AcquireTimeout` or
        :class:`~poolkit.PoolClosed`.
        """
        now = self._clock()
        deadline = self._deadline(timeout, now)
        caller = Caller(role, key, now)
        if role is not None or avoid:
            self._restrict(caller, avoid)
        parker: SyncParker | None = None
        try:
            while True:
                self._decide(self._core.acquire, caller, now)
                while caller.outcome is None:
                    if parker is None:
                        parker = caller.parker = self._runtime.parker()
                        continue  # served before there was somebody to wake?
                    left = deadline - self._clock()
                    if left > 0:
                        parker.wait(None if deadline == NEVER else left)
                    self._drain()
                    self._keep_time()
                    now = self._clock()
                    if now >= deadline:
                        error = self._decide(self._expire, caller, now)
                        if error is not None:
                            raise self._translated(error)
                if not isinstance(caller.outcome, Member):
                    raise self._translated(caller.outcome)
                lease = self._open(caller, caller.outcome, deadline, now)
                if lease is not None:
                    return lease
                now = self._clock()
        except BaseException:
            self._decide(self._core.abandon, caller, self._clock())
            raise

    def _open(self, caller: Caller, member: Member, deadline: float, now: float) -> ClusterLease[C] | None:
        """A lease out of the node's pool; None if another node is to be tried."""
        left = None if deadline == NEVER else max(0.0, deadline - now)
        try:
            inner = member.pool.lease(left)
        except BaseException as error:
            later = self._clock()
            if self._not_opened(caller, member, error, later - now, late=later >= deadline):
                return None
            raise
        lease = ClusterLease(self, member, now)
        lease.connection = inner.connection
        lease._inner = inner
        lease._ticket = caller.ticket  # the place is the lease's from here on (and for a moment also the caller's)
        caller.outcome = None
        return lease

    def acquire(
        self,
        timeout: float | Default | None = DEFAULT,
        *,
        key: Hashable = None,
        role: str | None = None,
        avoid: Iterable[str] = (),
    ) -> C:
        """A connection, to be given back with :meth:`release`. Arguments and errors as :meth:`lease`."""
        lease = self.lease(timeout, key=key, role=role, avoid=avoid)
        self._leases[id(lease.connection)] = lease
        return lease.connection

    def release(self, connection: C, *, discard: bool = False, error: BaseException | None = None) -> None:
        """Give back what :meth:`acquire` gave. Raises :class:`~poolkit.NotLeased` for any other object, or twice."""
        self._on_lease(connection).close(discard=discard, error=error)

    # -- background work ----------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        self._order(self._runtime, min(self._core.due, self._find_at))

    def _begin_job(self, do: Do, member: Member) -> None:
        job = {Do.DROP: self._drop, Do.PROBE: self._probe, Do.ROLE: self._look_up_role, Do.DRAIN: self._drain_node}[do]
        self._runtime.spawn(job, member)

    def _probe(self, member: Member) -> None:
        """Open connections one after another, ask for the role."""
        error: BaseException | None = None
        role = member.known_role
        leases: list[Any] = []
        try:
            if hasattr(member.pool, "probe"):
                member.pool.probe(self._config.probe_timeout)
            for _ in range(max(1, min(self._config.warm_up, int(min(member.places(), 1e9))))):
                leases.append(member.pool.lease(self._config.probe_timeout))  # noqa: PERF401  kept if the next fails
            if self._role_of is not None:
                role = self._role(member, leases[0].connection)
        except BaseException as failure:  # noqa: BLE001  the verdict on the node
            error = failure
        for lease in leases:
            lease.close(error=error)
        self._decide(self._core.probed, member, error, role, self._clock())

    def _role(self, member: Member, connection: C) -> str | None:
        """Ask for the role, within ``probe_timeout`` where the node's pool can end the question."""
        assert self._role_of is not None
        pool = member.pool
        own = isinstance(pool, NodePool)
        with pool.limited(connection, self._config.probe_timeout) if own else nullcontext():
            role: str | None = self._role_of(connection)
        return role

    def _look_up_role(self, member: Member) -> None:
        error: BaseException | None = None
        role: str | None = None
        try:
            lease = member.pool.lease(self._config.probe_timeout)
            try:
                role = self._role(member, lease.connection)
            except BaseException as failure:
                error = failure
                raise
            finally:
                lease.close(error=error)
        except BaseException as failure:  # noqa: BLE001  told to the core
            error = failure
        self._role_after(member, error, role)

    def _drain_node(self, member: Member) -> None:
        try:
            member.pool.drain(self._config.drain_timeout)
        finally:
            self._decide(self._core.drained, member)

    def _begin_find(self) -> None:
        self._runtime.spawn(_find, weakref.ref(self), self._source, self._found)

    # -- the end ------------------------------------------------------------------------------------------------------

    def drain(self, timeout: float | None = 30.0) -> bool:
        """Admit nobody, let the leases end within ``timeout`` seconds, cut the rest, close. True if none was cut."""
        whole = True
        for pool, left in self._ending(timeout):
            whole = bool(pool.drain(left)) and whole
        return whole

    def close(self, timeout: float | None = 5.0) -> None:
        """Wake all who wait with :class:`~poolkit.PoolClosed` and close every node's pool. Idempotent, thread-safe."""
        for pool, left in self._ending(timeout):
            pool.close(left)

    def __enter__(self) -> Cluster[C]:
        if self.closed:
            raise self._translated(PoolClosed(f"{self.name}: the cluster is closed"))
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _find(ref: weakref.ref[Cluster[Any]], source: Discovery, last: Found | None) -> None:
    """One look of the source, in a worker thread, that keeps no cluster alive."""
    found, error = None, None
    try:
        found = source.find(last)
    except Exception as failure:  # noqa: BLE001  the cluster tells it
        error = failure
    cluster = ref()
    if cluster is not None and not cluster.closed:
        cluster._after_find(found, error)
