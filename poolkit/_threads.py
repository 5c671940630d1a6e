"""The pool for threads, and its leases. The core decides, the slow path waits, and the driver does the I/O."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from ._access import Access
from ._begin import Kind, begin
from ._core.slots import Held
from ._core.state import Phase
from ._driver import ThreadDriver, refuse_closed
from ._fast import decline_put, make_acquire, make_lease, make_release
from ._leases import LeaseBase
from ._pool_base import PoolBase
from ._shutdown import shut_in_threads
from ._slow_path import DEFAULT, Default, ThreadSlowPath
from ._warm_up import warm_up_in_threads
from .config import PoolConfig, PoolSettings
from .connector import Connector, require_kind
from .events import Listener
from .runtimes.base import Runtime
from .runtimes.threads import ThreadRuntime

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ("Lease", "Pool")

C = TypeVar("C")

_THREADS = ThreadRuntime()
_new: Any = object.__new__  # calling __init__ would cost one more call


class Lease(LeaseBase[C]):
    """The right to use one connection until the lease is closed. Closing returns the connection; closing again does
    nothing.

    As a context manager it gives the connection. The connector classifies an exception of the block: a broken
    connection is closed and replaced. Do not use one lease in several threads while it is being closed.
    """

    __slots__ = ()

    _pool: Pool[C]

    def close(self, *, discard: bool = False, error: BaseException | None = None) -> None:
        """Return the connection. ``discard``: close it instead. ``error``: the error of its use, for the connector."""
        if self._record is not None:
            pool = self._pool
            record = pool._leased.pop(id(self), None)
            self._record = None  # after the pop: if interrupted before this line, close() can be called again
            if record is None:
                # revoked by the close of the pool or by a fork, or an earlier close() was interrupted
                pool._register.revoked.discard(id(self))
            elif discard or error is not None or not pool._put(record):
                pool._slow.give(record, id(self), discard, error)

    def __enter__(self) -> C:
        if self._record is None:
            raise self._pool._register.not_leased()
        return self.connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._record is not None:
            pool = self._pool
            record = pool._leased.pop(id(self), None)
            self._record = None
            if record is None:
                pool._register.revoked.discard(id(self))
            elif error is not None or not pool._put(record):
                pool._slow.give(record, id(self), False, error)


def _methods_of(pool: Pool[Any], access: Access) -> dict[str, Callable[..., Any]]:
    """Return functions that replace methods of the pool while the core need not be asked, which saves a call."""
    made: dict[str, Callable[..., Any]] = {}
    if access.plain:
        kind, slow = type(pool), pool._slow
        take = (pool._core, pool._clock, pool._caller, pool._fast.undo_take)
        if kind.acquire is Pool.acquire:
            made["acquire"] = make_acquire(*take, slow.acquire_bare, DEFAULT)
        if kind.lease is Pool.lease:
            made["lease"] = make_lease(pool, Lease, *take, partial(Pool.lease, pool), DEFAULT)
        if kind.release is Pool.release and access.put is not decline_put and slow.plain_end:
            made["release"] = make_release(pool._core, pool._clock, pool._fast.missed, slow.give)
    return made


class Pool(PoolBase[C]):
    """A pool for threads. Thread-safe, and safe after ``fork()``: the child starts with an empty pool.

    ``connector``: a :class:`~poolkit.Connector`. ``config``: a :class:`~poolkit.PoolConfig`; keywords set single
    settings and override it. ``name``: for messages and metrics, unique in the application. ``listeners``: called for
    each :class:`~poolkit.Event`. ``debug``: record the place of every acquire. ``keyed``: one endpoint for each ``key``
    given to :meth:`lease`, all under one ``max_size``. ``clock``, ``random``, ``runtime``: for tests, and for drivers
    that wait in their own way.

    Raises :class:`~poolkit.ConfigError` for an invalid setting or a connector that cannot connect.
    """

    _kind = Kind(ThreadDriver, ThreadSlowPath, _methods_of, barging=0.001)
    _driver: ThreadDriver[C]
    _slow: ThreadSlowPath[C]

    def __init__(
        self,
        connector: Connector[C],
        config: PoolConfig | None = None,
        *,
        name: str | None = None,
        listeners: Iterable[Listener] = (),
        debug: bool = False,
        keyed: bool = False,
        clock: Callable[[], float] | None = None,
        random: Callable[[], float] | None = None,
        runtime: Runtime | None = None,
        **settings: Unpack[PoolSettings],
    ) -> None:
        require_kind(connector, asynchronous=False)
        self._runtime = runtime or _THREADS
        self._caller = self._runtime.caller
        begin(
            self, connector, config, settings,
            name=name, clock=clock, random=random, listeners=listeners, debug=debug, keyed=keyed,
        )  # fmt: skip
        self._housekeeping.start_if_eager()

    # -- leases ---------------------------------------------------------------------------------------------------

    def acquire(self, timeout: float | Default | None = DEFAULT) -> C:
        """Lease a connection that is returned with :meth:`release`.

        ``timeout`` in seconds replaces ``acquire_timeout``: 0 never waits, None waits without a limit. Raises
        :class:`~poolkit.AcquireTimeout`, :class:`~poolkit.ConnectFailed`, :class:`~poolkit.PoolClosed`,
        :class:`~poolkit.PoolBusy` or :class:`~poolkit.PoolSuspended`.
        """
        if (slot := self._take()) is None:
            return self._slow.acquire_bare(timeout)
        connection: C = slot.connection
        self._leased[id(connection)] = slot
        return connection

    def release(self, connection: C, discard: bool = False, error: BaseException | None = None) -> None:
        """Return a connection of :meth:`acquire`. Never waits for the pool's lock, so finalizers may call it.

        ``discard``: close the connection instead of keeping it. ``error``: the error of its use, which the connector's
        ``classify`` judges. Raises :class:`~poolkit.NotLeased` for any other object, and for a second release.
        """
        record = self._leased.pop(id(connection), None)
        if record is None or discard or error is not None or not self._put(record):
            self._slow.give(record, id(connection), discard, error)

    def lease(self, timeout: float | Default | None = DEFAULT, key: Hashable = None) -> Lease[C]:
        """Return a :class:`Lease` of a connection: ``with pool.lease() as connection: ...``.

        Arguments and errors are those of :meth:`acquire`. ``key``: the endpoint of a keyed pool.
        """
        lease: Lease[C] = _new(Lease)
        lease._pool = self
        record: Held | None = self._take() if key is None else self._take_at(key)
        if record is None:
            record = self._slow.acquire(timeout, key)
        lease.connection = record.connection
        lease.since = record.since
        lease._record = record  # first: the finalizer of a lease that is dropped from here on returns the connection
        self._leased[id(lease)] = record
        return lease

    def detach(self, connection: C) -> None:
        """Take a connection of :meth:`acquire` out of the pool. The caller owns it and must close it."""
        self._register.detach(id(connection))

    # -- the pool as a whole --------------------------------------------------------------------------------------

    def warm_up(self, count: int | None = None, *, timeout: float | None = None) -> None:
        """Open connections until ``count`` exist (None: ``min_size``), ``max_connecting`` at a time.

        Waits at most ``timeout`` seconds (None: as long as each connect may take, or ``acquire_timeout`` if it has no
        limit). If any failed, raises :class:`~poolkit.ConnectFailed` with all ``errors``. Connections that open stay.
        Raises :class:`~poolkit.PoolSuspended` if it has to open connections and the pool is suspended.
        """
        warm_up_in_threads(self, count, timeout)

    def drain(self, timeout: float | None = 30.0) -> bool:
        """Accept no callers, close idle connections, and wait up to ``timeout`` seconds until the leases end. Then
        abort the others and close the pool. Return True if every lease ended by itself. Thread-safe.
        """
        return shut_in_threads(self, Phase.DRAINING, timeout)

    def close(self, timeout: float | None = 5.0) -> None:
        """Close the pool: waiting callers get :class:`~poolkit.PoolClosed`, and idle connections are closed. A leased
        connection is closed when it is returned. Waits up to ``timeout`` seconds until the idle ones are closed.
        Idempotent, thread-safe.
        """
        shut_in_threads(self, Phase.CLOSED, timeout)

    def __enter__(self) -> Pool[C]:
        refuse_closed(self)
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
