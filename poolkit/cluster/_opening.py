"""Opens leases of a cluster: waits for a node, then for a connection of its pool; in threads or in tasks."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .._deadline import BLOCKS, current
from .._numbers import seconds
from .._slow_path import DEFAULT, Default
from ..errors import AcquireTimeout, ConfigError, PoolBusy, PoolClosed, PoolSuspended, ServerUnavailable, UsageError
from ..policies.retire import NEVER
from ..runtimes.base import AsyncParker, SyncParker
from ._core import ClusterCore, NodeEntry, NodeRequest
from ._leases import AsyncClusterLease, ClusterLease
from ._nodepool import engine_of

if TYPE_CHECKING:
    from ._async import AsyncCluster
    from ._shell import ClusterShell
    from ._threads import Cluster

__all__ = ("LeaseOpener", "TaskLeaseOpener", "ThreadLeaseOpener")

C = TypeVar("C")


class LeaseOpener:
    """The common part of both kinds of openers."""

    def __init__(self, cluster: ClusterShell[Any]) -> None:
        self._base = cluster
        limit = cluster._config.acquire_timeout
        self._default = NEVER if limit is None else limit  # seconds that a caller without a timeout waits

    def deadline(self, timeout: float | Default | None, now: float) -> float:
        """Return the caller's deadline. Raises ConfigError if ``timeout`` is no time."""
        if isinstance(timeout, Default):
            timeout = self._default
        else:
            seconds("timeout", timeout, most=NEVER, none="no limit")
        block = current()
        own = NEVER if timeout is None else now + timeout
        return own if block is None else min(own, now + block.left())

    def restrict(self, request: NodeRequest, avoid: Iterable[str]) -> None:
        """Check the wanted role and apply ``avoid``."""
        if request.role is not None and not isinstance(request.role, str):
            raise ConfigError(f"role={request.role!r}: must be a string, or None", "role")
        if avoid:
            entries = self._base._core.entries
            request.tried = {entries[name] for name in avoid if name in entries}

    def still_in_time(self, request: NodeRequest, deadline: float) -> float:
        """Return the time. Raises AcquireTimeout if the deadline has passed, unless the request was just served."""
        cluster = self._base
        now = cluster._clock()
        if now >= deadline:
            error = cluster._gate.step(self.expire, cluster._core, request, now)
            if error is not None:
                raise cluster._translated(error)
        return now

    def expire(self, core: ClusterCore, request: NodeRequest, now: float) -> AcquireTimeout | None:
        """Return the error of a request after its deadline, or None if it was just served. Called under the lock."""
        if request.outcome is not None:
            return None
        ahead = sum(other.ticket < request.ticket for queue in core.requests.queues.values() for other in queue)
        nodes = ", ".join(f"{m.name} {m.state.value} {m.leases}/{m.capacity():g}" for m in core.entries.values())
        core.abandon(request, now, timed_out=True)
        return AcquireTimeout(
            f"{core.name}: no free place on a node within {now - request.since:.2f} s ({ahead} ahead of you; {nodes})"
        )

    def failed(self, request: NodeRequest, entry: NodeEntry, error: BaseException, spent: float, late: bool) -> bool:
        """Record that the node's pool gave no lease. Return whether another node may be tried."""
        cluster = self._base
        core, now = cluster._core, cluster._clock()
        ticket = request.ticket
        if isinstance(error, PoolSuspended) and engine_of(entry.pool) is not None:
            cluster._gate.post(core.suspended, entry, ticket, now)  # it may serve the request after resume()
            request.outcome = None
            _forget_frames(error)
            return True
        request.tried = {*request.tried, entry}
        busy = isinstance(error, AcquireTimeout) and not isinstance(error, ServerUnavailable)
        if not isinstance(error, Exception) or isinstance(error, (ConfigError, UsageError)) or busy:
            return False  # the caller's abandon() frees the capacity
        if isinstance(error, (PoolClosed, PoolSuspended, PoolBusy)):  # the node was taken out meanwhile
            cluster._gate.post(core.give_up, entry, ticket, now)
            request.outcome = None
            _forget_frames(error)
            return True
        cluster._gate.post(core.failed, entry, ticket, error, spent, now)
        request.outcome = None
        if late:
            return False
        _forget_frames(error)
        return True


class ThreadLeaseOpener(LeaseOpener, Generic[C]):
    """Opens leases in the calling thread."""

    def __init__(self, cluster: Cluster[C]) -> None:
        super().__init__(cluster)
        self._cluster = cluster

    def lease(
        self, timeout: float | Default | None, key: Hashable, role: str | None, avoid: Iterable[str]
    ) -> ClusterLease[C]:
        """See :meth:`poolkit.cluster.Cluster.lease`."""
        cluster = self._cluster
        now = cluster._clock()
        deadline = now + self._default if timeout is DEFAULT and not BLOCKS else self.deadline(timeout, now)
        request = NodeRequest(role, key, now)
        if role is not None or avoid:
            self.restrict(request, avoid)
        parker: SyncParker | None = None
        try:
            while True:
                cluster._gate.step(cluster._core.acquire, request, now)
                while True:
                    if request.outcome is not None:
                        break
                    if parker is None:
                        parker = request.parker = cluster._driver.runtime.parker()
                        continue  # check again: the request may have been served before the parker was set
                    left = deadline - cluster._clock()
                    if left > 0:
                        parker.wait(None if deadline == NEVER else left)
                    cluster._gate.run_posted()
                    cluster._gate.keep_time()
                    now = self.still_in_time(request, deadline)
                if not isinstance(request.outcome, NodeEntry):
                    raise cluster._translated(request.outcome)
                lease = self._open(request, request.outcome, deadline, now)
                if lease is not None:
                    return lease
                now = cluster._clock()
        except BaseException:
            cluster._gate.step(cluster._core.abandon, request, cluster._clock())
            raise

    def _open(self, request: NodeRequest, entry: NodeEntry, deadline: float, now: float) -> ClusterLease[C] | None:
        """Lease a connection from the node's pool; None if another node should be tried."""
        left = None if deadline == NEVER else max(0.0, deadline - now)
        try:
            inner = entry.pool.lease(left)
        except BaseException as error:
            later = self._cluster._clock()
            if self.failed(request, entry, error, later - now, late=later >= deadline):
                return None
            raise
        lease = ClusterLease(self._cluster, entry, now)
        lease.connection = inner.connection
        lease._inner = inner
        lease._ticket = request.ticket  # the lease owns the ticket now, for a moment together with the request
        request.outcome = None
        return lease


class TaskLeaseOpener(LeaseOpener, Generic[C]):
    """Opens leases in the calling task."""

    def __init__(self, cluster: AsyncCluster[C]) -> None:
        super().__init__(cluster)
        self._cluster = cluster

    async def lease(
        self, timeout: float | Default | None, key: Hashable, role: str | None, avoid: Iterable[str]
    ) -> AsyncClusterLease[C]:
        """See :meth:`poolkit.cluster.AsyncCluster.lease`."""
        cluster = self._cluster
        runtime = cluster._driver.bind()
        now = cluster._clock()
        deadline = now + self._default if timeout is DEFAULT and not BLOCKS else self.deadline(timeout, now)
        request = NodeRequest(role, key, now)
        if role is not None or avoid:
            self.restrict(request, avoid)
        if cluster._finder.found is None:
            await cluster._finder.find_first(runtime, deadline)
            now = cluster._clock()
        parker: AsyncParker | None = None
        try:
            while True:
                cluster._gate.step(cluster._core.acquire, request, now)
                while True:
                    if request.outcome is not None:
                        break
                    if parker is None:
                        parker = request.parker = runtime.parker()
                        continue  # check again: the request may have been served before the parker was set
                    left = deadline - cluster._clock()
                    if left > 0:
                        await parker.wait(None if deadline == NEVER else left)
                    cluster._gate.run_posted()
                    now = self.still_in_time(request, deadline)
                if not isinstance(request.outcome, NodeEntry):
                    raise cluster._translated(request.outcome)
                lease = await self._open(request, request.outcome, deadline, now)
                if lease is not None:
                    return lease
                now = cluster._clock()
        except BaseException:
            cluster._gate.step(cluster._core.abandon, request, cluster._clock())
            raise

    async def _open(
        self, request: NodeRequest, entry: NodeEntry, deadline: float, now: float
    ) -> AsyncClusterLease[C] | None:
        """Lease a connection from the node's pool; None if another node should be tried."""
        left = None if deadline == NEVER else max(0.0, deadline - now)
        try:
            inner = await entry.pool.lease(left)
        except BaseException as error:
            later = self._cluster._clock()
            if self.failed(request, entry, error, later - now, late=later >= deadline):
                return None
            raise
        lease = AsyncClusterLease(self._cluster, entry, now)
        lease.connection = inner.connection
        lease._inner = inner
        lease._ticket = request.ticket  # the lease owns the ticket now, for a moment together with the request
        request.outcome = None
        return lease


def _forget_frames(error: BaseException) -> None:
    """Remove the traceback of an error that no caller gets. The error and the frames that raised it form a reference
    cycle: if the caller drops its lease without closing it, that cycle would keep the lease until the next collection.
    """
    error.__traceback__ = None
    if error.__cause__ is not None:
        error.__cause__.__traceback__ = None
