"""Pools for the tasks of one event loop behind one small interface, with connections that do nothing."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.dummies import AsyncRedisConnection, Connection, Opener
from bench.peers import PATIENCE, Sizes
from poolkit import AsyncConnector, AsyncPool, PoolConfig
from poolkit.cluster import AsyncCluster

__all__ = (
    "ASYNC_PEERS",
    "AsyncPeer",
    "engine",
    "cluster",
    "lock_and_deque",
    "lifo_queue",
    "sqlalchemy_own",
    "sqlalchemy_poolkit",
    "redis_own",
    "redis_own_plain",
    "redis_poolkit",
    "psycopg_own",
    "asyncpg_own",
)


@dataclass(frozen=True)
class AsyncPeer:
    """One pool: how to take and give back, how many connections it has opened, how to end it.

    ``cycle``: takes and gives back so many times; another way than awaiting ``get`` and ``put`` where the pool is
    used in another way.
    """

    get: Callable[[], Awaitable[Any]]
    put: Callable[[Any], Awaitable[object]]
    opened: Callable[[], int]
    close: Callable[[], Awaitable[object]]
    cycle: Callable[[int], Awaitable[None]] | None = None

    async def rounds(self, number: int) -> None:
        """Take and give back ``number`` times."""
        if self.cycle is not None:
            await self.cycle(number)
            return
        get, put = self.get, self.put
        for _ in range(number):
            await put(await get())


class _Server(AsyncConnector[Connection]):
    def __init__(self, opener: Opener) -> None:
        self._opener = opener

    async def connect(self, timeout: float | None) -> Connection:
        return await self._opener.open()


async def engine(sizes: Sizes, *, listeners: Any = ()) -> AsyncPeer:
    """Poolkit's engine, acquire() and release()."""
    opener = Opener(sizes.connect)
    pool = AsyncPool(_Server(opener), max_size=sizes.size, min_size=sizes.minimum, listeners=listeners)
    await pool.warm_up()
    return AsyncPeer(pool.acquire, pool.release, lambda: opener.count, pool.close)


async def cluster(sizes: Sizes, *, nodes: int = 4) -> AsyncPeer:
    """A cluster of pools through lease(): a node is chosen, then its pool asked."""
    opener = Opener(sizes.connect)
    config = PoolConfig(max_size=sizes.size, min_size=sizes.minimum)
    many = AsyncCluster(lambda node: _Server(opener), [f"node {number}" for number in range(nodes)], pool=config)

    async def get() -> Any:
        return await many.lease()

    for node in many.nodes:
        await many.pool(node.name).warm_up()
    return AsyncPeer(get, lambda lease: lease.close(), lambda: opener.count, many.close)


async def lock_and_deque(sizes: Sizes) -> AsyncPeer:
    """The floor: two coroutines around a deque, without a lock, because one event loop needs none."""
    idle = deque(Connection() for _ in range(sizes.size))

    async def get() -> Connection:
        return idle.pop()

    async def put(connection: Connection) -> None:
        idle.append(connection)

    async def close() -> None:
        idle.clear()

    return AsyncPeer(get, put, lambda: sizes.size, close)


async def lifo_queue(sizes: Sizes) -> AsyncPeer:
    """Asyncio's LifoQueue, on which several pools are built."""
    slots: asyncio.LifoQueue[Connection | None] = asyncio.LifoQueue()
    opener = Opener(sizes.connect)
    for number in range(sizes.size):
        slots.put_nowait(Connection() if number >= sizes.size - (sizes.minimum or sizes.size) else None)

    async def get() -> Connection:
        return await slots.get() or await opener.open()

    async def close() -> None: ...

    return AsyncPeer(get, slots.put, lambda: opener.count, close)


async def _sqlalchemy(kind: Any, sizes: Sizes) -> AsyncPeer:
    from sqlalchemy.util import await_only, greenlet_spawn

    opener = Opener(sizes.connect)
    low = sizes.minimum or sizes.size
    # As the drivers' dialects do it: the pool's code is synchronous and waits through its greenlet.
    pool = kind(lambda: await_only(opener.open()), pool_size=low, max_overflow=sizes.size - low, timeout=PATIENCE)

    async def get() -> Any:
        return await greenlet_spawn(pool.connect)

    async def put(fairy: Any) -> None:
        await greenlet_spawn(fairy.close)

    def rounds(number: int) -> None:
        for _ in range(number):
            pool.connect().close()

    async def cycle(number: int) -> None:
        await greenlet_spawn(rounds, number)

    async def close() -> None:
        await greenlet_spawn(pool.dispose)

    peer = AsyncPeer(get, put, lambda: opener.count, close, cycle)
    return await _warm(peer, sizes)


async def sqlalchemy_own(sizes: Sizes) -> AsyncPeer:
    """SQLAlchemy's AsyncAdaptedQueuePool."""
    from sqlalchemy.pool import AsyncAdaptedQueuePool

    return await _sqlalchemy(AsyncAdaptedQueuePool, sizes)


async def sqlalchemy_poolkit(sizes: Sizes) -> AsyncPeer:
    """The adapter instead of it."""
    from poolkit_adapters.sqlalchemy import AsyncPoolkitPool

    return await _sqlalchemy(AsyncPoolkitPool, sizes)


async def _redis(kind: Any, sizes: Sizes, **settings: Any) -> AsyncPeer:
    opener = Opener(sizes.connect)
    pool = kind(max_connections=sizes.size, connection_class=partial(AsyncRedisConnection, opener), **settings)
    peer = AsyncPeer(pool.get_connection, pool.release, lambda: opener.count, pool.disconnect)
    return await _warm(peer, sizes)


async def redis_own(sizes: Sizes) -> AsyncPeer:
    """redis.asyncio's BlockingConnectionPool."""
    from redis.asyncio import BlockingConnectionPool

    return await _redis(BlockingConnectionPool, sizes, timeout=PATIENCE)


async def redis_own_plain(sizes: Sizes) -> AsyncPeer:
    """redis.asyncio's ConnectionPool, which raises where others wait."""
    from redis.asyncio import ConnectionPool

    return await _redis(ConnectionPool, sizes)


async def redis_poolkit(sizes: Sizes) -> AsyncPeer:
    """The adapter instead of both."""
    from poolkit_adapters.redis import AsyncPoolkitConnectionPool

    return await _redis(AsyncPoolkitConnectionPool, sizes, timeout=PATIENCE)


async def psycopg_own(sizes: Sizes) -> AsyncPeer:
    """psycopg_pool's AsyncConnectionPool."""
    import psycopg
    import psycopg_pool
    from psycopg.pq import TransactionStatus

    opener = Opener(sizes.connect)

    class Fake:
        _pool: Any = None
        closed = broken = False

        class pgconn:  # psycopg's own name
            transaction_status = TransactionStatus.IDLE

        async def close(self) -> None: ...

    class Factory(psycopg.AsyncConnection[Any]):
        @classmethod
        async def connect(cls, *_arguments: Any, **_settings: Any) -> Any:
            await opener.open()
            return Fake()

    low = sizes.minimum or sizes.size
    pool = psycopg_pool.AsyncConnectionPool(
        "", connection_class=Factory, min_size=low, max_size=sizes.size, timeout=PATIENCE, open=False
    )
    await pool.open(wait=True, timeout=PATIENCE)
    return AsyncPeer(pool.getconn, pool.putconn, lambda: opener.count, pool.close)


async def asyncpg_own(sizes: Sizes) -> AsyncPeer:
    """Asyncpg's pool."""
    import asyncpg

    opener = Opener(sizes.connect)

    class Protocol:
        queries_count = 0

        def _is_cancelling(self) -> bool:
            return False

        def is_in_transaction(self) -> bool:
            return False

    class Fake(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
        _pool_holder: Any = None

        def __init__(self) -> None:
            self._protocol = Protocol()
            self._shut = False
            self._proxy = None

        def __del__(self) -> None: ...
        def is_closed(self) -> bool:
            return self._shut

        def _on_release(self, *_arguments: Any, **_settings: Any) -> None: ...
        async def reset(self, *, timeout: float | None = None) -> None: ...
        async def close(self, *, timeout: float | None = None) -> None:
            self.terminate()

        def terminate(self) -> None:
            self._shut = True
            self._pool_holder()._release_on_close()

    async def connect(*_arguments: Any, **_settings: Any) -> Fake:
        await opener.open()
        return Fake()

    low = sizes.minimum or sizes.size
    pool = await asyncpg.create_pool(
        connect=connect, connection_class=Fake, min_size=low, max_size=sizes.size, max_inactive_connection_lifetime=0
    )
    return AsyncPeer(pool.acquire, pool.release, lambda: opener.count, pool.close)


async def _warm(peer: AsyncPeer, sizes: Sizes) -> AsyncPeer:
    for connection in [await peer.get() for _ in range(sizes.minimum)]:
        await peer.put(connection)
    return peer


ASYNC_PEERS: dict[str, Callable[[Sizes], Awaitable[AsyncPeer]]] = {
    "poolkit": engine,
    "deque": lock_and_deque,
    "asyncio.LifoQueue": lifo_queue,
    "psycopg_pool": psycopg_own,
    "asyncpg": asyncpg_own,
    "SQLAlchemy AsyncAdaptedQueuePool": sqlalchemy_own,
    "SQLAlchemy -> poolkit": sqlalchemy_poolkit,
    "redis-py BlockingConnectionPool": redis_own,
    "redis-py ConnectionPool": redis_own_plain,
    "redis-py -> poolkit": redis_poolkit,
}
