"""The cluster for tasks, with the same code for asyncio and trio."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import Any, TypeVar

from .._async import AsyncPool, current_runtime
from ..config import PoolConfig
from ..connector import AsyncConnector, Verdict
from ..errors import PoolClosed, WrongLoop
from ..policies.retire import NEVER
from ..runtimes.base import AsyncParker, AsyncRuntime
from ..runtimes.threads import ThreadRuntime
from ._config import ClusterConfig
from ._core import NodeEntry, NodeRequest
from ._driver import TaskNodeDriver, look
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
    _driver_kind = TaskNodeDriver
    _driver: TaskNodeDriver[C]

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
        self._driver.start_postponed()
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

    # -- discovery ----------------------------------------------------------------------------------------------------

    async def _find_first(self, deadline: float) -> None:
        """Get the first answer of the discovery; the first callers wait for it."""
        answers: list[tuple[Found | None, BaseException | None]] = []
        runtime = self._bind_loop()
        parker = runtime.parker()
        if inspect.iscoroutinefunction(self._source.find):
            answers.append((await self._source.find(None), None))
        else:
            _THREADS.spawn(look, self._source, None, answers, parker)
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
