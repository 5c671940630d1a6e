"""The cluster for tasks, with the same code for asyncio and trio."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import Any, TypeVar, cast

from .._async import AsyncPool, current_runtime
from ..config import PoolConfig
from ..connector import AsyncConnector, Verdict
from ..errors import PoolClosed, WrongLoop
from ..policies.retire import NEVER
from ..runtimes.base import AsyncParker, AsyncRuntime
from ..runtimes.threads import ThreadRuntime
from ._config import ClusterConfig
from ._core import Do, NodeEntry, NodeRequest
from ._events import ClusterListener
from ._leases import AsyncClusterLease, ClusterLeaseRequest
from ._node import Node
from ._nodepool import NodePool
from ._shell import DEFAULT, ClusterShell, Default
from .discovery import Discovery, Found

__all__ = ("AsyncCluster",)

C = TypeVar("C")

_THREADS = ThreadRuntime()


class AsyncCluster(ClusterShell[C]):
    """As :class:`~poolkit.cluster.Cluster`, for the tasks of one event loop (asyncio or trio).

    ``make`` returns :class:`~poolkit.AsyncConnector` objects or asynchronous pools; ``role_of`` may be a coroutine
    function. An AsyncCluster may be created outside of an event loop: the first caller then starts the discovery.
    ``find`` of a discovery runs in a worker thread, or in a task if it is a coroutine function.
    """

    _pool_kind = AsyncPool

    def __init__(
        self,
        make: Callable[[Node], AsyncConnector[C] | AsyncPool[C] | NodePool],
        nodes: Iterable[Node | str] | Discovery,
        config: ClusterConfig | None = None,
        *,
        pool: PoolConfig | None = None,
        name: str | None = None,
        role_of: Callable[[C], str | Awaitable[str | None] | None] | None = None,
        classify: Callable[[BaseException], Verdict] | None = None,
        listeners: Iterable[ClusterListener] = (),
        clock: Callable[[], float] | None = None,
        random: Callable[[], float] | None = None,
        runtime: AsyncRuntime | None = None,
        **settings: Any,
    ) -> None:
        self._runtime: AsyncRuntime | None = runtime
        self._leases: dict[int, AsyncClusterLease[C]] = {}
        self._postponed: list[tuple[Do, NodeEntry]] = []
        super().__init__(
            make, nodes, config, settings, pool=pool, name=name, role_of=role_of, classify=classify,
            listeners=listeners, clock=clock, random=random,
        )  # fmt: skip
        if not isinstance(nodes, Discovery):
            self._take_found(self._source.find(None))

    def _after_fork(self) -> None:
        self._runtime = None  # the parent's event loop does not run in this process
        super()._after_fork()

    def _bind_loop(self) -> AsyncRuntime:
        """Return the runtime of the caller's event loop; bind the cluster to that loop if it has none."""
        runtime = self._runtime
        if runtime is not None and runtime.here():
            return runtime
        if runtime is not None and runtime.alive():
            raise self._translated(
                WrongLoop(
                    f"{self.name}: this AsyncCluster belongs to another event loop that is still running; create one "
                    "for each loop"
                )
            )
        again = runtime is not None
        self._runtime = current_runtime()
        if again:
            self._after_loop()
        self._gate.scheduled = NEVER
        self._gate.keep_time()
        postponed, self._postponed = self._postponed, []
        for do, entry in postponed:
            self._begin_job(do, entry)
        return self._runtime

    def _after_loop(self) -> None:
        """The previous event loop has ended, and with it all leases, probes and calls of the discovery."""
        ClusterShell._after_fork(self)

    # -- leases -------------------------------------------------------------------------------------------------------

    def lease(
        self,
        timeout: float | Default | None = DEFAULT,
        *,
        key: Hashable = None,
        role: str | None = None,
        avoid: Iterable[str] = (),
    ) -> ClusterLeaseRequest[C]:
        """``async with cluster.lease() as connection: ...`` or ``lease = await cluster.lease()``.

        Arguments and errors as :meth:`poolkit.cluster.Cluster.lease`.
        """
        return ClusterLeaseRequest(lambda: self._lease_of(timeout, key, role, avoid))

    async def _lease_of(
        self, timeout: float | Default | None, key: Hashable, role: str | None, avoid: Iterable[str]
    ) -> AsyncClusterLease[C]:
        runtime = self._bind_loop()
        now = self._clock()
        deadline = self._deadline(timeout, now)
        request = NodeRequest(role, key, now)
        if role is not None or avoid:
            self._restrict(request, avoid)
        if self._found is None:
            await self._find_first(deadline)
            now = self._clock()
        parker: AsyncParker | None = None
        try:
            while True:
                self._gate.step(self._core.acquire, request, now)
                while request.outcome is None:
                    if parker is None:
                        parker = request.parker = runtime.parker()
                        continue  # check again: the request may have been served before the parker was set
                    left = deadline - self._clock()
                    if left > 0:
                        await parker.wait(None if deadline == NEVER else left)
                    self._gate.run_posted()
                    now = self._clock()
                    if now >= deadline:
                        error = self._gate.step(self._expire, request, now)
                        if error is not None:
                            raise self._translated(error)
                if not isinstance(request.outcome, NodeEntry):
                    raise self._translated(request.outcome)
                lease = await self._open(request, request.outcome, deadline, now)
                if lease is not None:
                    return lease
                now = self._clock()
        except BaseException:
            self._gate.step(self._core.abandon, request, self._clock())
            raise

    async def _open(
        self, request: NodeRequest, entry: NodeEntry, deadline: float, now: float
    ) -> AsyncClusterLease[C] | None:
        """Lease a connection from the node's pool; None if another node should be tried."""
        left = None if deadline == NEVER else max(0.0, deadline - now)
        try:
            inner = await entry.pool.lease(left)
        except BaseException as error:
            later = self._clock()
            if self._not_opened(request, entry, error, later - now, late=later >= deadline):
                return None
            raise
        lease = AsyncClusterLease(self, entry, now)
        lease.connection = inner.connection
        lease._inner = inner
        lease._ticket = request.ticket  # the lease owns the ticket now, for a moment together with the request
        request.outcome = None
        return lease

    async def acquire(
        self,
        timeout: float | Default | None = DEFAULT,
        *,
        key: Hashable = None,
        role: str | None = None,
        avoid: Iterable[str] = (),
    ) -> C:
        """Lease a connection that is returned with :meth:`release`. Arguments and errors as :meth:`lease`."""
        lease = await self.lease(timeout, key=key, role=role, avoid=avoid)
        self._leases[id(lease.connection)] = lease
        return lease.connection

    async def release(self, connection: C, *, discard: bool = False, error: BaseException | None = None) -> None:
        """Return a connection of :meth:`acquire`. Raises :class:`~poolkit.NotLeased` for any other object, or twice."""
        await self._on_lease(connection).close(discard=discard, error=error)

    # -- background work ----------------------------------------------------------------------------------------------

    def _call_later(self, delay: float) -> bool | None:
        if self._runtime is None:
            return None  # _bind_loop() asks again on the first use
        self._runtime.schedule(self, delay)
        return True

    def _begin_job(self, do: Do, entry: NodeEntry) -> None:
        if do is Do.DROP:
            self._drop(entry)
            return
        if self._runtime is None:
            self._postponed.append((do, entry))  # _bind_loop() starts it on the first use
            return
        job = {Do.PROBE: self._probe, Do.ROLE: self._look_up_role, Do.DRAIN: self._drain_node}[do]
        self._runtime.spawn(job, entry)

    async def _probe(self, entry: NodeEntry) -> None:
        """Probe a node: open ``warm_up`` connections one after another and look up the role."""
        error: BaseException | None = None
        role = entry.known_role
        leases: list[Any] = []
        try:
            if hasattr(entry.pool, "probe"):
                await entry.pool.probe(self._config.probe_timeout)
            for _ in range(max(1, min(self._config.warm_up, int(min(entry.capacity(), 1e9))))):
                leases.append(await entry.pool.lease(self._config.probe_timeout))  # noqa: PERF401  kept if one fails
            if self._role_of is not None:
                role = await self._bounded_role(leases[0].connection)
        except BaseException as failure:
            error = failure
            if not isinstance(failure, Exception):
                raise
        finally:
            for lease in leases:
                await lease.close(error=error)
            self._gate.step(self._core.probed, entry, error, role, self._clock())

    async def _role(self, connection: C) -> str | None:
        assert self._role_of is not None
        role = self._role_of(connection)
        return await role if inspect.isawaitable(role) else cast("str | None", role)

    async def _look_up_role(self, entry: NodeEntry) -> None:
        error: BaseException | None = None
        role: str | None = None
        try:
            lease = await entry.pool.lease(self._config.probe_timeout)
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
            self._role_after(entry, error, role)

    async def _bounded_role(self, connection: C) -> str | None:
        runtime: Any = self._runtime
        role: str | None = await runtime.bounded(self._config.probe_timeout, self._role, connection)
        return role

    async def _drain_node(self, entry: NodeEntry) -> None:
        try:
            await entry.pool.drain(self._config.drain_timeout)
        finally:
            self._gate.step(self._core.drained, entry)

    # -- discovery ----------------------------------------------------------------------------------------------------

    async def _find_first(self, deadline: float) -> None:
        """Get the first answer of the discovery; the first callers wait for it."""
        answers: list[tuple[Found | None, BaseException | None]] = []
        runtime = self._bind_loop()
        parker = runtime.parker()
        if inspect.iscoroutinefunction(self._source.find):
            answers.append((await self._source.find(None), None))
        else:
            _THREADS.spawn(_look, self._source, None, answers, parker)
            while not answers:
                left = deadline - self._clock()
                if left <= 0:
                    raise TimeoutError(f"{self.name}: the discovery did not answer within the timeout")
                await parker.wait(None if deadline == NEVER else left)
        found, error = answers[0]
        if error is not None:
            raise error
        assert found is not None
        if self._found is None:  # else another caller got the answer first
            self._take_found(found)
            self._gate.keep_time()

    def _start_find(self) -> None:
        cast("AsyncRuntime", self._runtime).spawn(_find, weakref.ref(self), self._source, self._found)

    # -- shutdown ------------------------------------------------------------------------------------------------------

    async def drain(self, timeout: float | None = 30.0) -> bool:
        """Refuse new requests, wait up to ``timeout`` seconds for leases to end, abort the rest, close.

        Returns True if no lease had to be aborted.
        """
        whole = True
        for pool, left in self._ending(timeout):
            whole = bool(await pool.drain(left)) and whole
        return whole

    async def close(self, timeout: float | None = 5.0) -> None:
        """Close every node's pool within ``timeout`` seconds; waiting requests fail with :class:`~poolkit.PoolClosed`.

        Idempotent.
        """
        for pool, left in self._ending(timeout):
            await pool.close(left)

    async def __aenter__(self) -> AsyncCluster[C]:
        if self.closed:
            raise self._translated(PoolClosed(f"{self.name}: the cluster is closed"))
        self._bind_loop()
        if self._found is None:
            await self._find_first(NEVER)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


def _look(
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


async def _find(ref: weakref.ref[AsyncCluster[Any]], source: Discovery, last: Found | None) -> None:
    """Call ``find`` once without keeping the cluster alive: in a worker thread, or here if it is a coroutine."""
    answers: list[tuple[Found | None, BaseException | None]] = []
    if inspect.iscoroutinefunction(source.find):
        try:
            answers.append((await source.find(last), None))
        except Exception as error:  # noqa: BLE001  the cluster tells it
            answers.append((None, error))
    else:
        parker = current_runtime().parker()
        _THREADS.spawn(_look, source, last, answers, parker)
        while not answers:
            await parker.wait(None)
    cluster = ref()
    if cluster is not None and not cluster.closed:
        cluster._after_find(*answers[0])
