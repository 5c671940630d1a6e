"""The background work of a cluster: probes, lookups of roles, draining; in threads or in tasks."""

from __future__ import annotations

import inspect
import weakref
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from ..errors import AcquireTimeout, PoolSuspended, ServerUnavailable, WrongLoop
from ..policies.retire import NEVER
from ..runtimes.base import AsyncRuntime, Runtime
from ..runtimes.current import current_runtime
from ..runtimes.threads import ThreadRuntime
from ._begin import restart
from ._core import Do, NodeEntry
from ._finder import Answer, checked, look
from ._nodepool import NodePool, engine_of, send_away
from .discovery import Discovery, Found

if TYPE_CHECKING:
    from ._async import AsyncCluster
    from ._shell import ClusterShell
    from ._threads import Cluster

__all__ = ("TaskNodeDriver", "ThreadNodeDriver")

C = TypeVar("C")

_THREADS = ThreadRuntime()


class ThreadNodeDriver(Generic[C]):
    """Does the background work of a :class:`~poolkit.cluster.Cluster` in threads."""

    def __init__(self, cluster: Cluster[C], runtime: Runtime) -> None:
        self._cluster = cluster
        self.runtime = runtime

    def call_later(self, delay: float) -> bool | None:
        """See :class:`~poolkit._gate.Gate`."""
        return self.runtime.schedule(self._cluster._housekeeping, delay) is not False

    def wake(self) -> None:
        """Have the steps in the cluster's inbox run soon."""
        self.runtime.nudge(self._cluster._housekeeping)

    def stop(self) -> None:
        """Cancel the timer, because no work is due."""
        self.call_later(NEVER)

    def unbind(self) -> None:
        """In a forked child: nothing to do. The runtime starts threads when they are needed."""

    def start(self, do: Do, entry: NodeEntry) -> None:
        """Start the action that the core asks for."""
        job = {
            Do.DROP: send_away, Do.PROBE: self._probe, Do.ROLE: self._look_up_role, Do.DRAIN: self._drain,
        }[do]  # fmt: skip
        self.runtime.spawn(job, entry)

    def find(self) -> None:
        """Start the next call of the discovery."""
        finder = self._cluster._finder
        self.runtime.spawn(_find, weakref.ref(self._cluster), finder.source, finder.found)

    def _probe(self, entry: NodeEntry) -> None:
        """Probe a node: open ``warm_up`` connections one after another and look up the role."""
        cluster, config = self._cluster, self._cluster._config
        error: BaseException | None = None
        role = entry.known_role
        leases: list[Any] = []
        try:
            if hasattr(entry.pool, "probe"):
                entry.pool.probe(config.probe_timeout)
            for _ in range(max(1, min(config.warm_up, int(min(entry.capacity(), 1e9))))):
                leases.append(entry.pool.lease(config.probe_timeout))  # noqa: PERF401  kept if the next fails
            if cluster._role_of is not None:
                role = self._role(entry, leases[0].connection)
        except BaseException as failure:  # noqa: BLE001  passed to probed()
            error = failure
        for lease in leases:
            lease.close(error=error)
        _probe_after(cluster, entry, error, role)

    def _role(self, entry: NodeEntry, connection: C) -> str | None:
        """Look up the role, within ``probe_timeout`` if the node's pool can end the query."""
        cluster = self._cluster
        assert cluster._role_of is not None
        pool = entry.pool
        own = isinstance(pool, NodePool)
        with pool.limited(connection, cluster._config.probe_timeout) if own else nullcontext():
            role: str | None = cluster._role_of(connection)
        return role

    def _look_up_role(self, entry: NodeEntry) -> None:
        error: BaseException | None = None
        role: str | None = None
        try:
            lease = entry.pool.lease(self._cluster._config.probe_timeout)
            try:
                role = self._role(entry, lease.connection)
            except BaseException as failure:
                error = failure
                raise
            finally:
                lease.close(error=error)
        except BaseException as failure:  # noqa: BLE001  passed to the core
            error = failure
        _role_after(self._cluster, entry, error, role)

    def _drain(self, entry: NodeEntry) -> None:
        cluster = self._cluster
        try:
            entry.pool.drain(cluster._config.drain_timeout)
        finally:
            cluster._gate.step(cluster._core.drained, entry)


class TaskNodeDriver(Generic[C]):
    """Does the background work of an :class:`~poolkit.cluster.AsyncCluster` in tasks of its event loop."""

    def __init__(self, cluster: AsyncCluster[C], runtime: AsyncRuntime | None) -> None:
        self._cluster = cluster
        self.runtime = runtime  # the event loop; None before the first use, also in a forked child
        self._postponed: list[tuple[Do, NodeEntry]] = []

    # -- the event loop -----------------------------------------------------------------------------------------------

    def bind(self) -> AsyncRuntime:
        """Return the caller's event loop, and bind the cluster to it if it has none. Raises WrongLoop if the cluster is
        bound to another one that is running.
        """
        runtime = self.runtime
        if runtime is not None and runtime.here():
            return runtime
        cluster = self._cluster
        if runtime is not None and runtime.alive():
            raise cluster._translated(
                WrongLoop(
                    f"{cluster.name}: this AsyncCluster belongs to another event loop that is still running; create "
                    "one for each loop"
                )
            )
        self.runtime = new = current_runtime()
        if runtime is not None:
            restart(cluster)  # all leases, probes and calls of the discovery have ended with the loop
        cluster._gate.scheduled = NEVER
        cluster._gate.keep_time()
        postponed, self._postponed = self._postponed, []
        for do, entry in postponed:
            self.start(do, entry)
        return new

    def unbind(self) -> None:
        """In a forked child: the parent's event loop does not run in this process."""
        self.runtime = None

    def call_later(self, delay: float) -> bool | None:
        """See :class:`~poolkit._gate.Gate`."""
        if self.runtime is None:
            return None  # the gate asks again when the cluster is bound to an event loop
        self.runtime.schedule(self._cluster._housekeeping, delay)
        return True

    def wake(self) -> None:
        """Have the steps in the cluster's inbox run soon."""
        if self.runtime is not None:
            self.runtime.nudge(self._cluster._housekeeping)

    def stop(self) -> None:
        """Cancel the timer, because no work is due."""
        self.call_later(NEVER)

    # -- nodes --------------------------------------------------------------------------------------------------------

    def start(self, do: Do, entry: NodeEntry) -> None:
        """Start the action that the core asks for. If it needs an event loop, it is postponed until there is one."""
        if do is Do.DROP:
            send_away(entry)
        elif self.runtime is None:
            self._postponed.append((do, entry))
        else:
            job = {Do.PROBE: self._probe, Do.ROLE: self._look_up_role, Do.DRAIN: self._drain}[do]
            self.runtime.spawn(job, entry)

    def find(self) -> None:
        """Start the next call of the discovery."""
        runtime, finder = cast("AsyncRuntime", self.runtime), self._cluster._finder
        runtime.spawn(_find_in_task, weakref.ref(self._cluster), finder.source, finder.found)

    async def _probe(self, entry: NodeEntry) -> None:
        """Probe a node: open ``warm_up`` connections one after another and look up the role."""
        cluster, config = self._cluster, self._cluster._config
        error: BaseException | None = None
        role = entry.known_role
        leases: list[Any] = []
        try:
            if hasattr(entry.pool, "probe"):
                await entry.pool.probe(config.probe_timeout)
            for _ in range(max(1, min(config.warm_up, int(min(entry.capacity(), 1e9))))):
                leases.append(await entry.pool.lease(config.probe_timeout))  # noqa: PERF401  kept if one fails
            if cluster._role_of is not None:
                role = await self._bounded_role(leases[0].connection)
        except BaseException as failure:
            error = failure
            if not isinstance(failure, Exception):
                raise
        finally:
            for lease in leases:
                await lease.close(error=error)
            _probe_after(cluster, entry, error, role)

    async def _role(self, connection: C) -> str | None:
        assert self._cluster._role_of is not None
        role = self._cluster._role_of(connection)
        return await role if inspect.isawaitable(role) else cast("str | None", role)

    async def _bounded_role(self, connection: C) -> str | None:
        runtime = cast("AsyncRuntime", self.runtime)
        role: str | None = await runtime.bounded(self._cluster._config.probe_timeout, self._role, connection)
        return role

    async def _look_up_role(self, entry: NodeEntry) -> None:
        error: BaseException | None = None
        role: str | None = None
        try:
            lease = await entry.pool.lease(self._cluster._config.probe_timeout)
            try:
                role = await self._bounded_role(lease.connection)
            except BaseException as failure:
                error = failure
                raise
            finally:
                await lease.close(error=error)
        except BaseException as failure:
            error = failure
            if not isinstance(failure, Exception):
                raise
        finally:
            _role_after(self._cluster, entry, error, role)

    async def _drain(self, entry: NodeEntry) -> None:
        cluster = self._cluster
        try:
            await entry.pool.drain(cluster._config.drain_timeout)
        finally:
            cluster._gate.step(cluster._core.drained, entry)


def _probe_after(cluster: ClusterShell[Any], entry: NodeEntry, error: BaseException | None, role: str | None) -> None:
    """Report the result of a probe to the core. A suspended pool says nothing about the node."""
    if isinstance(error, PoolSuspended) and engine_of(entry.pool) is not None:
        cluster._gate.step(cluster._core.health.interrupted, entry)
    else:
        cluster._gate.step(cluster._core.probed, entry, error, role, cluster._clock())


def _role_after(cluster: ClusterShell[Any], entry: NodeEntry, error: BaseException | None, role: str | None) -> None:
    """Report the result of a lookup of a node's role to the core. A busy or suspended pool changes nothing."""
    busy = isinstance(error, (AcquireTimeout, PoolSuspended)) and not isinstance(error, ServerUnavailable)
    if busy:
        error, role = None, entry.known_role
    cluster._gate.step(cluster._core.role_found, entry, error, role, cluster._clock())


def _find(ref: weakref.ref[Cluster[Any]], source: Discovery, last: Found | None) -> None:
    """Call ``find`` once, in a worker thread, without keeping the cluster alive."""
    found, error = None, None
    try:
        found = checked(source, source.find(last))
    except BaseException as failure:  # noqa: BLE001  the cluster reports it; nobody else sees it in this thread
        error = failure
    cluster = ref()
    if cluster is not None and not cluster.closed:
        cluster._finder.answered(found, error)


async def _find_in_task(ref: weakref.ref[AsyncCluster[Any]], source: Discovery, last: Found | None) -> None:
    """Call ``find`` once without keeping the cluster alive: in a worker thread, or here if it is a coroutine."""
    answers: list[Answer] = []
    if inspect.iscoroutinefunction(source.find):
        try:
            answers.append((checked(source, await source.find(last)), None))
        except Exception as error:  # noqa: BLE001  the cluster reports it
            answers.append((None, error))
    else:
        parker = current_runtime().parker()
        _THREADS.spawn(look, source, last, answers, parker)
        while not answers:
            await parker.wait(None)
    cluster = ref()
    if cluster is not None and not cluster.closed:
        cluster._finder.answered(*answers[0])
