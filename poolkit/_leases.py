"""Leases: the right to use one connection until closed."""

from __future__ import annotations

from collections.abc import Generator, Hashable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ._core.lease_record import Held
from ._timeouts import Default
from .errors import LeaseOverdue, UsageError

if TYPE_CHECKING:
    from ._async import AsyncPool
    from ._threads import Pool

__all__ = ("AsyncLease", "Lease", "LeaseRequest")

C = TypeVar("C")


class Lease(Generic[C]):
    """The right to use one connection until the lease is closed. Closing returns the connection; closing again does
    nothing.

    As a context manager it gives the connection. The connector classifies an exception of the block: a broken
    connection is closed and replaced. Do not use one lease in several threads while it is being closed.
    """

    __slots__ = ("__weakref__", "_pool", "_record", "connection", "since")

    def __init__(self, pool: Pool[C]) -> None:
        self._pool = pool
        self._record: Held | None = None

    since: float
    """When the lease began, by the pool's clock, in seconds."""

    connection: C
    """The driver's own object; not to be used after :meth:`close`."""

    def close(self, *, discard: bool = False, error: BaseException | None = None) -> None:
        """Return the connection. ``discard``: close it instead. ``error``: the error of its use, for the connector."""
        if self._record is not None:
            pool = self._pool
            record = pool._leased.pop(id(self), None)
            self._record = None  # in this order: whoever was interrupted before it can close again
            if record is None:
                # taken away by the pool's end or a fork, or by a close cut short
                pool._register.revoked.discard(id(self))
            elif discard or error is not None or not pool._put(record):
                pool._slow.give(record, id(self), discard, error)

    def detach(self) -> C:
        """Take the connection out of the pool. The caller owns it and must close it; its slot is free.

        Raises :class:`~poolkit.UsageError` while the connection has other leases.
        """
        record = self._record
        if record is None:
            raise self._pool._register.not_leased()
        if record.slot.leases > 1:
            raise UsageError(f"{self._pool.name}: detach() of a connection that has other leases")
        self._record = None
        self._pool._register.detach(id(self))
        return self.connection

    def set_capacity(self, leases: int) -> None:
        """Set how many leases this multiplexed connection serves at once from now on (0: no further ones)."""
        record = self._record
        if record is not None:
            self._pool._register.set_capacity(record, leases)

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

    def __del__(self) -> None:
        try:
            record = self._record
        except AttributeError:  # interrupted while it was made
            return
        if record is not None:
            self._pool._register.dropped(id(self), record)

    def __repr__(self) -> str:
        held = getattr(self, "_record", None) is not None  # a debugger may meet one whose acquire failed
        return f"<Lease of {self._pool.name!r}: {repr(self.connection) if held else 'closed'}>"


class AsyncLease(Generic[C]):
    """The right to use one connection until the lease is closed. Closing returns the connection; closing again does
    nothing.
    """

    __slots__ = ("__weakref__", "_pool", "_record", "connection", "since")

    def __init__(self, pool: AsyncPool[C]) -> None:
        self._pool = pool
        self._record: Held | None = None

    since: float
    """When the lease began, by the pool's clock, in seconds."""

    connection: C
    """The driver's own object; not to be used after :meth:`close`."""

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

    def detach(self) -> C:
        """Take the connection out of the pool. The caller owns it and must close it; its slot is free.

        Raises :class:`~poolkit.UsageError` while the connection has other leases.
        """
        record = self._record
        if record is None:
            raise self._pool._register.not_leased()
        if record.slot.leases > 1:
            raise UsageError(f"{self._pool.name}: detach() of a connection that has other leases")
        self._record = None
        self._pool._register.detach(id(self))
        return self.connection

    def set_capacity(self, leases: int) -> None:
        """Set how many leases this multiplexed connection serves at once from now on (0: no further ones)."""
        record = self._record
        if record is not None:
            self._pool._register.set_capacity(record, leases)

    async def __aenter__(self) -> C:
        if self._record is None:
            raise self._pool._register.not_leased()
        return self.connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close(error=error)

    def __del__(self) -> None:
        record = self._record
        if record is not None:
            self._pool._register.dropped(id(self), record)

    def __repr__(self) -> str:
        held = getattr(self, "_record", None) is not None  # a debugger may meet one whose acquire failed
        return f"<AsyncLease of {self._pool.name!r}: {repr(self.connection) if held else 'closed'}>"


class LeaseRequest(Generic[C]):
    """``await pool.lease()`` gives the lease, ``async with pool.lease() as connection`` the connection."""

    __slots__ = ("_key", "_lease", "_pool", "_timeout")

    def __init__(self, pool: AsyncPool[C], timeout: float | Default | None, key: Hashable) -> None:
        self._pool = pool
        self._timeout = timeout
        self._key = key
        self._lease: AsyncLease[C] | None = None

    def __await__(self) -> Generator[Any, Any, AsyncLease[C]]:
        return self._pool._lease_of(self._timeout, self._key).__await__()

    async def __aenter__(self) -> C:
        self._lease = lease = await self._pool._lease_of(self._timeout, self._key)
        return lease.connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._lease is not None:
            await self._lease.close(error=error)
