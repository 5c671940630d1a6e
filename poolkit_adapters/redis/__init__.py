"""redis-py: :class:`PoolkitConnectionPool` and :class:`AsyncPoolkitConnectionPool`.

They stand in for ``redis.BlockingConnectionPool`` and ``redis.asyncio.BlockingConnectionPool``; with ``timeout=0``
for ``ConnectionPool``::

    client = redis.Redis(connection_pool=PoolkitConnectionPool.from_url("redis://localhost"))

With Sentinel: ``sentinel.master_for("main", connection_pool_class=PoolkitSentinelConnectionPool)``.
"""

from poolkit_adapters.redis._async import AsyncPoolkitConnectionPool
from poolkit_adapters.redis._errors import (
    RedisAcquireTimeout,
    RedisCircuitOpen,
    RedisConnectFailed,
    RedisConnectTimeout,
    RedisPoolBusy,
    RedisPoolClosed,
    RedisPoolSuspended,
    RedisServerUnavailable,
)
from poolkit_adapters.redis._sentinel import AsyncPoolkitSentinelConnectionPool, PoolkitSentinelConnectionPool
from poolkit_adapters.redis._threads import PoolkitConnectionPool

__all__ = (
    "PoolkitConnectionPool",
    "AsyncPoolkitConnectionPool",
    "PoolkitSentinelConnectionPool",
    "AsyncPoolkitSentinelConnectionPool",
    "RedisAcquireTimeout",
    "RedisCircuitOpen",
    "RedisConnectFailed",
    "RedisConnectTimeout",
    "RedisPoolBusy",
    "RedisPoolClosed",
    "RedisPoolSuspended",
    "RedisServerUnavailable",
)
