"""redis-py: :class:`PoolkitConnectionPool` and :class:`AsyncPoolkitConnectionPool`.

They replace ``redis.BlockingConnectionPool`` and ``redis.asyncio.BlockingConnectionPool``. With ``timeout=0`` they
replace ``ConnectionPool``::

    client = redis.Redis(connection_pool=PoolkitConnectionPool.from_url("redis://localhost"))

With Sentinel: ``sentinel.master_for("main", connection_pool_class=PoolkitSentinelConnectionPool)``.
"""

from typing import TYPE_CHECKING, Any

from poolkit_adapters.redis._async import AsyncPoolkitConnectionPool
from poolkit_adapters.redis._errors import (
    RedisAcquireTimeout,
    RedisCircuitOpen,
    RedisConnectFailed,
    RedisConnectTimeout,
    RedisLeaseCut,
    RedisLeaseOverdue,
    RedisNotLeased,
    RedisPoolBusy,
    RedisPoolClosed,
    RedisPoolSuspended,
    RedisServerUnavailable,
    RedisUsageError,
    RedisWrongLoop,
)
from poolkit_adapters.redis._sentinel import AsyncPoolkitSentinelConnectionPool, PoolkitSentinelConnectionPool
from poolkit_adapters.redis._sync import PoolkitConnectionPool

if TYPE_CHECKING:
    from ._group import AsyncPoolkitServerGroup, PoolkitServerGroup, RedisNoServerAvailable, role_of, role_of_async


def __getattr__(name: str) -> Any:
    """Import the names for several servers on first use: most programs have one server and need none of them."""
    if name in ("AsyncPoolkitServerGroup", "PoolkitServerGroup", "RedisNoServerAvailable", "role_of", "role_of_async"):
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
    "RedisAcquireTimeout",
    "RedisCircuitOpen",
    "RedisNoServerAvailable",
    "RedisConnectFailed",
    "RedisConnectTimeout",
    "RedisLeaseCut",
    "RedisLeaseOverdue",
    "RedisNotLeased",
    "RedisPoolBusy",
    "RedisPoolClosed",
    "RedisPoolSuspended",
    "RedisServerUnavailable",
    "RedisUsageError",
    "RedisWrongLoop",
)
