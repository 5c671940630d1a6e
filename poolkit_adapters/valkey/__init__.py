"""valkey-py: :class:`PoolkitConnectionPool` and :class:`AsyncPoolkitConnectionPool`.

They replace ``valkey.BlockingConnectionPool`` and ``valkey.asyncio.BlockingConnectionPool``. With ``timeout=0`` they
replace ``ConnectionPool``::

    client = valkey.Valkey(connection_pool=PoolkitConnectionPool.from_url("valkey://localhost"))

With Sentinel: ``sentinel.master_for("main", connection_pool_class=PoolkitSentinelConnectionPool)``.

Each error has the name of poolkit's error and is also an error of valkey-py.
"""

from typing import TYPE_CHECKING, Any

from ._async import AsyncPoolkitConnectionPool
from ._errors import (
    AcquireTimeout,
    CircuitOpen,
    ConnectFailed,
    ConnectTimeout,
    LeaseCut,
    LeaseOverdue,
    NotLeased,
    PoolBusy,
    PoolClosed,
    PoolSuspended,
    ServerUnavailable,
    UsageError,
    WrongLoop,
)
from ._sentinel import AsyncPoolkitSentinelConnectionPool, PoolkitSentinelConnectionPool
from ._sync import PoolkitConnectionPool

if TYPE_CHECKING:
    from ._group import AsyncPoolkitServerGroup, NoServerAvailable, PoolkitServerGroup, role_of, role_of_async


def __getattr__(name: str) -> Any:
    """Import the names for several servers on first use: most programs have one server and need none of them."""
    if name in ("AsyncPoolkitServerGroup", "NoServerAvailable", "PoolkitServerGroup", "role_of", "role_of_async"):
        from . import _group

        return getattr(_group, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = (
    "PoolkitConnectionPool",
    "AsyncPoolkitConnectionPool",
    "PoolkitSentinelConnectionPool",
    "AsyncPoolkitSentinelConnectionPool",
    "PoolkitServerGroup",
    "AsyncPoolkitServerGroup",
    "role_of",
    "role_of_async",
    "AcquireTimeout",
    "CircuitOpen",
    "ConnectFailed",
    "ConnectTimeout",
    "LeaseCut",
    "LeaseOverdue",
    "NoServerAvailable",
    "NotLeased",
    "PoolBusy",
    "PoolClosed",
    "PoolSuspended",
    "ServerUnavailable",
    "UsageError",
    "WrongLoop",
)
