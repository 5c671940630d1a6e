"""The cluster for tasks, with the same code for asyncio and trio."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import TYPE_CHECKING, TypeVar

from .._async import AsyncPool
from ..config import PoolConfig
from ..connector import AsyncConnector, Verdict
from ..errors import PoolClosed
from ..policies.retire import NEVER
from ..runtimes.base import AsyncRuntime
from ._config import ClusterConfig, ClusterSettings
from ._driver import TaskNodeDriver
from ._events import ClusterListener
from ._leases import ClusterLeaseRequest
from ._node import Node
from ._nodepool import NodePool
from ._opening import TaskLeaseOpener
from ._shell import DEFAULT, ClusterShell, Default, ending
from .discovery import Discovery

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ("AsyncCluster",)

C = TypeVar("C")


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
        **settings: Unpack[ClusterSettings],
    ) -> None:
        super().__init__(
            make, nodes, config, settings, pool=pool, name=name, role_of=role_of, classify=classify,
            listeners=listeners, clock=clock, random=random, runtime=runtime,
        )  # fmt: skip
        self._opener = TaskLeaseOpener(self)
        if not isinstance(nodes, Discovery):
            self._finder.find_now()

    # -- leases --------------------------------------------------------------------------------------------------------

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
        return ClusterLeaseRequest(lambda: self._opener.lease(timeout, key, role, avoid))

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
        await self._endings.lease_of(connection).close(discard=discard, error=error)

    # -- shutdown ------------------------------------------------------------------------------------------------------

    async def drain(self, timeout: float | None = 30.0) -> bool:
        """Refuse new requests, wait up to ``timeout`` seconds for leases to end, abort the rest, close.

        Returns True if no lease had to be aborted.
        """
        whole = True
        for pool, left in ending(self, timeout):
            whole = bool(await pool.drain(left)) and whole
        return whole

    async def close(self, timeout: float | None = 5.0) -> None:
        """Close every node's pool within ``timeout`` seconds; waiting requests fail with :class:`~poolkit.PoolClosed`.

        Idempotent.
        """
        for pool, left in ending(self, timeout):
            await pool.close(left)

    async def __aenter__(self) -> AsyncCluster[C]:
        if self.closed:
            raise self._translated(PoolClosed(f"{self.name}: the cluster is closed"))
        runtime = self._driver.bind()
        if self._finder.found is None:
            await self._finder.find_first(runtime, NEVER)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
