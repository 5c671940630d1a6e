"""The pool for tasks, and its leases: the same code for asyncio and trio. The core makes the decisions.

I/O on a connection does not run in the task of a caller, except for connects of a driver with ``connect_in_caller``.
Checks, connects, resets and closes run in tasks of the pool, under deadlines of their own, and a caller sleeps until
they have ended. So the cancellation of a caller cannot interrupt an exchange with the server.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from ._begin import Kind, begin
from ._binding import bind_if_eager, bind_loop
from ._core.slots import Held
from ._core.state import Phase
from ._driver import TaskDriver, refuse_closed
from ._leases import AskedLease, LeaseBase
from ._pool_base import PoolBase
from ._shutdown import shut_in_tasks
from ._slow_path import DEFAULT, Default, TaskSlowPath
from ._warm_up import warm_up_in_tasks
from .config import PoolConfig, PoolSettings
from .connector import AsyncConnector, require_kind
from .errors import LeaseOverdue
from .events import Listener
from .runtimes.base import AsyncRuntime

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ("AsyncLease", "AsyncPool", "LeaseRequest")

C = TypeVar("C")


class AsyncLease(LeaseBase[C]):
    """The right to use one connection until the lease is closed. Closing returns the connection; closing again does
    nothing.
    """

    __slots__ = ()

    _pool: AsyncPool[C]

    def __init__(self, pool: AsyncPool[C]) -> None:
        self._pool = pool
        self._record = None

    async def close(self, *, discard: bool = False, error: BaseException | None = None) -> None:
        """Return the connection. ``discard``: close it instead. ``error``: the error of its use, for the connector.

        The lease has ended even if this call is cancelled. Waits for a reset if one is needed.
        """
        record, self._record = self._record, None
        if record is not None:
            pool = self._pool
            leased = pool._leased.pop(id(self), None)
            if leased is None or discard or error is not None or not pool._put(leased):
                await pool._slow.give(leased, id(self), discard, error)

    def close_nowait(self, *, discard: bool = False, error: BaseException | None = None) -> LeaseOverdue | None:
        """Do the same as :meth:`close` without waiting for the reset. Any finalizer and any thread may call it.

        Returns the LeaseOverdue that :meth:`close` would raise.
        """
        record, self._record = self._record, None
        if record is not None:
            pool = self._pool
            leased = pool._leased.pop(id(self), None)
            if leased is None or discard or error is not None or not pool._put(leased):
                return pool._slow.give_nowait(leased, id(self), discard, error)
        return None

    async def __aenter__(self) -> C:
        if self._record is None:
            raise self._pool._register.not_leased()
        return self.connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close(error=error)


class LeaseRequest(AskedLease[AsyncLease[C], C]):
    """``await pool.lease()`` gives the lease, ``async with pool.lease() as connection`` the connection."""

    __slots__ = ()


async def _begin_lease(pool: AsyncPool[C], timeout: float | Default | None, key: Hashable) -> AsyncLease[C]:
    """Wait for a connection and begin its lease."""
    runtime = pool._runtime
    if runtime is None or not runtime.here():
        runtime = bind_loop(pool)
    lease = AsyncLease(pool)
    record: Held | None = pool._take() if key is None else pool._take_at(key)
    if record is None:
        record = await pool._slow.acquire(runtime, timeout, key)
    lease.connection = record.connection
    lease.since = record.since
    pool._leased[id(lease)] = record
    lease._record = record
    return lease


class AsyncPool(PoolBase[C]):
    """A pool for tasks (asyncio, trio). Arguments as :class:`~poolkit.Pool`, with an :class:`~poolkit.AsyncConnector`.

    It may be created outside an event loop. It belongs to the loop of its first use, and raises
    :class:`~poolkit.WrongLoop` on another one while the first loop is open. ``start="eager"`` binds it to the loop in
    which it is created, while that runs. After the first loop is closed, another one may use the pool, which starts
    again with new connections. If connections belong to no loop (``any_loop``), several asyncio loops may use the pool,
    even at once in different threads.
    """

    _kind = Kind(TaskDriver, TaskSlowPath)
    _driver: TaskDriver[C]
    _slow: TaskSlowPath[C]
    _made_in: AsyncRuntime | None = None
    """The event loop to which the creation of the pool has bound it, until its first use."""

    def __init__(
        self,
        connector: AsyncConnector[C],
        config: PoolConfig | None = None,
        *,
        name: str | None = None,
        listeners: Iterable[Listener] = (),
        debug: bool = False,
        keyed: bool = False,
        clock: Callable[[], float] | None = None,
        random: Callable[[], float] | None = None,
        runtime: AsyncRuntime | None = None,
        **settings: Unpack[PoolSettings],
    ) -> None:
        require_kind(connector, asynchronous=True)
        self._runtime = runtime
        self._caller = (lambda: 0) if runtime is None else runtime.caller
        begin(
            self, connector, config, settings,
            name=name, clock=clock, random=random, listeners=listeners, debug=debug, keyed=keyed,
        )  # fmt: skip
        bind_if_eager(self)

    # -- leases ---------------------------------------------------------------------------------------------------

    async def acquire(self, timeout: float | Default | None = DEFAULT) -> C:
        """Lease a connection that is returned with :meth:`release`. See :meth:`poolkit.Pool.acquire`."""
        runtime = self._runtime
        if runtime is None or not runtime.here():
            runtime = bind_loop(self)
        record: Held | None = self._take()
        if record is None:
            record = await self._slow.acquire(runtime, timeout, None)
            if record.capacity > 1:
                self._slow.refuse_shared(record)
        connection: C = record.connection
        self._leased[id(connection)] = record
        return connection

    async def release(self, connection: C, discard: bool = False, error: BaseException | None = None) -> None:
        """Return a connection of :meth:`acquire`, and wait for a reset if one is needed. See
        :meth:`poolkit.Pool.release`.

        The pool owns the connection from this call on, even if the call is cancelled.
        """
        record = self._leased.pop(id(connection), None)
        if record is None or discard or error is not None or not self._put(record):
            await self._slow.give(record, id(connection), discard, error)

    def release_nowait(
        self, connection: C, discard: bool = False, error: BaseException | None = None
    ) -> LeaseOverdue | None:
        """Do the same as :meth:`release` without waiting. Any thread and any finalizer may call it.

        Returns the LeaseOverdue that :meth:`release` would raise.
        """
        record = self._leased.pop(id(connection), None)
        if record is None or discard or error is not None or not self._put(record):
            return self._slow.give_nowait(record, id(connection), discard, error)
        return None

    def lease(self, timeout: float | Default | None = DEFAULT, key: Hashable = None) -> LeaseRequest[C]:
        """``async with pool.lease() as connection: ...`` or ``lease = await pool.lease()``."""
        return LeaseRequest(partial(_begin_lease, self, timeout, key))

    def detach(self, connection: C) -> None:
        """Take a connection of :meth:`acquire` out of the pool. The caller owns it and must close it."""
        self._register.detach(id(connection))

    # -- the pool as a whole --------------------------------------------------------------------------------------

    async def warm_up(self, count: int | None = None, *, timeout: float | None = None) -> None:
        """Open connections until ``count`` exist (None: ``min_size``). See :meth:`poolkit.Pool.warm_up`."""
        await warm_up_in_tasks(self, count, timeout)

    async def drain(self, timeout: float | None = 30.0) -> bool:
        """Accept no callers, let leases end, abort the others, close the pool. See :meth:`poolkit.Pool.drain`."""
        return await shut_in_tasks(self, Phase.DRAINING, timeout)

    async def close(self, timeout: float | None = 5.0) -> None:
        """Do the same as :meth:`poolkit.Pool.close`. The pool is closed even if this call is cancelled."""
        await shut_in_tasks(self, Phase.CLOSED, timeout)

    async def __aenter__(self) -> AsyncPool[C]:
        refuse_closed(self)
        bind_loop(self)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
