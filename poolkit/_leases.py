"""The common part of the leases of both pools, and the object that ``AsyncPool.lease()`` returns."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ._core.slots import Held
from .errors import UsageError

if TYPE_CHECKING:
    from ._pool_base import PoolBase

__all__ = ("AskedLease", "LeaseBase")

C = TypeVar("C")
L = TypeVar("L", bound=Any)  # AsyncLease or AsyncClusterLease


class LeaseBase(Generic[C]):
    """The common part of both kinds of leases. None of its methods waits."""

    __slots__ = ("__weakref__", "_pool", "_record", "connection", "since")

    _pool: PoolBase[C]
    _record: Held | None
    """None: the lease is closed."""

    since: float
    """When the lease began, by the pool's clock, in seconds."""

    connection: C
    """The driver's connection; it must not be used after :meth:`close`."""

    def detach(self) -> C:
        """Take the connection out of the pool. The caller owns it and must close it; the pool may open another one.

        Raises :class:`~poolkit.UsageError` while the connection has other leases.
        """
        record = self._record
        if record is None:
            raise self._pool._register.not_leased()
        if record.slot.leases > 1:
            raise UsageError(f"{self._pool.name}: detach(): the connection has other leases; close them first")
        self._record = None
        self._pool._register.detach(id(self))
        return self.connection

    def set_capacity(self, leases: int) -> None:
        """Set how many leases this multiplexed connection serves at once from now on (0: no further ones)."""
        record = self._record
        if record is not None:
            self._pool._register.set_capacity(record, leases)

    def __del__(self, ending: Callable[[], bool] = sys.is_finalizing) -> None:
        try:
            record = self._record
        except AttributeError:  # __init__ was interrupted
            return
        # at interpreter shutdown no thread would run the step, and without the GIL the modules' globals are gone
        if record is not None and not ending():
            self._pool._register.dropped(id(self), record)

    def __repr__(self) -> str:
        held = getattr(self, "_record", None) is not None  # a debugger may show one whose acquire failed
        return f"<{type(self).__name__} of {self._pool.name!r}: {repr(self.connection) if held else 'closed'}>"


_ASKING: Any = object()
"""In the place of the lease that an ``async with`` waits for."""


class AskedLease(Generic[L, C]):
    """``await`` returns the lease, ``async with`` its connection. Both call ``ask``, which waits for the lease.

    It may be used for several blocks, one after the other. UsageError for a block inside or beside another one.
    """

    __slots__ = ("_ask", "_lease")

    def __init__(self, ask: Callable[[], Awaitable[L]]) -> None:
        self._ask = ask
        self._lease: L | None = None

    def __await__(self) -> Generator[Any, Any, L]:
        return self._ask().__await__()

    async def __aenter__(self) -> C:
        if self._lease is not None:
            raise UsageError(
                "this lease() is already in use by another 'async with'; call lease() again for each block, or await it"
            )
        self._lease = _ASKING  # two tasks may enter it at once
        try:
            self._lease = lease = await self._ask()
            connection: C = lease.connection
            return connection
        except BaseException:
            self._lease = None
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            await lease.close(error=error)
