"""The background work of a cluster: probes, lookups of roles, draining; in threads or in tasks."""

from __future__ import annotations

import inspect
import weakref
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from .._async import current_runtime
from ..runtimes.base import AsyncParker, AsyncRuntime
from ..runtimes.threads import ThreadRuntime
from ._core import Do, NodeEntry
from ._nodepool import NodePool
from .discovery import Discovery, Found

if TYPE_CHECKING:
    from ._async import AsyncCluster
    from ._threads import Cluster

__all__ = ("TaskNodeDriver", "ThreadNodeDriver", "look")

C = TypeVar("C")

_THREADS = ThreadRuntime()


class ThreadNodeDriver(Generic[C]):
    """Does the background work of a :class:`~poolkit.cluster.Cluster` in threads."""

    def __init__(self, cluster: Cluster[C]) -> None:
        self._cluster = cluster

    def call_later(self, delay: float) -> bool | None:
        """See :class:`~poolkit._gate.Gate`."""
        return self._cluster._runtime.schedule(self._cluster, delay) is not False

    def start(self, do: Do, entry: NodeEntry) -> None:
        """Start what the core asks for."""
        job = {
            Do.DROP: self._cluster._drop, Do.PROBE: self._probe, Do.ROLE: self._look_up_role, Do.DRAIN: self._drain,
        }[do]  # fmt: skip
        self._cluster._runtime.spawn(job, entry)

    def find(self) -> None:
        """Start the next call of the discovery."""
        cluster = self._cluster
        cluster._runtime.spawn(_find, weakref.ref(cluster), cluster._source, cluster._found)

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
        cluster._gate.step(cluster._core.probed, entry, error, role, cluster._clock())

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
        self._cluster._role_after(entry, error, role)

    def _drain(self, entry: NodeEntry) -> None:
        cluster = self._cluster
        try:
            entry.pool.drain(cluster._config.drain_timeout)
        finally:
            cluster._gate.step(cluster._core.drained, entry)


class TaskNodeDriver(Generic[C]):
    """Does the background work of an :class:`~poolkit.cluster.AsyncCluster` in tasks of its event loop."""

    def __init__(self, cluster: AsyncCluster[C]) -> None:
        self._cluster = cluster
        self._postponed: list[tuple[Do, NodeEntry]] = []

    def call_later(self, delay: float) -> bool | None:
        """See :class:`~poolkit._gate.Gate`."""
        runtime = self._cluster._runtime
        if runtime is None:
            return None  # asked again when the cluster is bound to an event loop
        runtime.schedule(self._cluster, delay)
        return True

    def start(self, do: Do, entry: NodeEntry) -> None:
        """Start what the core asks for; what needs an event loop is postponed until there is one."""
        if do is Do.DROP:
            self._cluster._drop(entry)
        elif self._cluster._runtime is None:
            self._postponed.append((do, entry))
        else:
            job = {Do.PROBE: self._probe, Do.ROLE: self._look_up_role, Do.DRAIN: self._drain}[do]
            self._cluster._runtime.spawn(job, entry)

    def start_postponed(self) -> None:
        """The cluster is bound to an event loop."""
        postponed, self._postponed = self._postponed, []
        for do, entry in postponed:
            self.start(do, entry)

    def find(self) -> None:
        """Start the next call of the discovery."""
        cluster = self._cluster
        runtime = cast("AsyncRuntime", cluster._runtime)
        runtime.spawn(_find_in_task, weakref.ref(cluster), cluster._source, cluster._found)

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
            cluster._gate.step(cluster._core.probed, entry, error, role, cluster._clock())

    async def _role(self, connection: C) -> str | None:
        assert self._cluster._role_of is not None
        role = self._cluster._role_of(connection)
        return await role if inspect.isawaitable(role) else cast("str | None", role)

    async def _bounded_role(self, connection: C) -> str | None:
        cluster = self._cluster
        runtime = cast("AsyncRuntime", cluster._runtime)
        role: str | None = await runtime.bounded(cluster._config.probe_timeout, self._role, connection)
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
            self._cluster._role_after(entry, error, role)

    async def _drain(self, entry: NodeEntry) -> None:
        cluster = self._cluster
        try:
            await entry.pool.drain(cluster._config.drain_timeout)
        finally:
            cluster._gate.step(cluster._core.drained, entry)


def _find(ref: weakref.ref[Cluster[Any]], source: Discovery, last: Found | None) -> None:
    """Call ``find`` once, in a worker thread, without keeping the cluster alive."""
    found, error = None, None
    try:
        found = source.find(last)
    except Exception as failure:  # noqa: BLE001  the cluster reports it
        error = failure
    cluster = ref()
    if cluster is not None and not cluster.closed:
        cluster._after_find(found, error)


def look(
    source: Discovery,
    last: Found | None,
    answers: list[tuple[Found | None, BaseException | None]],
    parker: AsyncParker,
) -> None:
    """Call ``find`` once, in a worker thread."""
    try:
        answers.append((source.find(last), None))
    except Exception as error:  # noqa: BLE001  the cluster tells it
        answers.append((None, error))
    parker.wake()


async def _find_in_task(ref: weakref.ref[AsyncCluster[Any]], source: Discovery, last: Found | None) -> None:
    """Call ``find`` once without keeping the cluster alive: in a worker thread, or here if it is a coroutine."""
    answers: list[tuple[Found | None, BaseException | None]] = []
    if inspect.iscoroutinefunction(source.find):
        try:
            answers.append((await source.find(last), None))
        except Exception as error:  # noqa: BLE001  the cluster tells it
            answers.append((None, error))
    else:
        parker = current_runtime().parker()
        _THREADS.spawn(look, source, last, answers, parker)
        while not answers:
            await parker.wait(None)
    cluster = ref()
    if cluster is not None and not cluster.closed:
        cluster._after_find(*answers[0])
