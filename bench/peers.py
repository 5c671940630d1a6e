"""Pools for threads behind one small interface, with connections that do nothing."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.dummies import Connection, Opener, RedisConnection
from poolkit import Connector, Pool, PoolConfig
from poolkit.cluster import Cluster

__all__ = (
    "PEERS",
    "Peer",
    "Sizes",
    "engine",
    "engine_lease",
    "cluster",
    "lock_and_deque",
    "hand_over",
    "lifo_queue",
    "sqlalchemy_own",
    "sqlalchemy_poolkit",
    "redis_own",
    "redis_own_plain",
    "redis_poolkit",
    "dbutils_own",
    "dbutils_poolkit",
    "psycopg_own",
)

PATIENCE = 120.0
"""Seconds that a caller waits for a connection: longer than any turn, so that no caller times out."""


@dataclass(frozen=True)
class Sizes:
    """How large a pool is, how many connections are open before the turn, seconds for opening one."""

    size: int
    minimum: int = 0
    connect: float = 0.0


@dataclass(frozen=True)
class Peer:
    """One pool: how to take and return a connection, how many were opened, how to close it."""

    get: Callable[[], Any]
    put: Callable[[Any], object]
    opened: Callable[[], int]
    close: Callable[[], object]


class _Server(Connector[Connection]):
    def __init__(self, opener: Opener) -> None:
        self._opener = opener

    def connect(self, timeout: float | None) -> Connection:
        return self._opener()


def engine(sizes: Sizes, *, listeners: Any = ()) -> Peer:
    """Poolkit's engine, acquire() and release()."""
    opener = Opener(sizes.connect)
    pool = Pool(_Server(opener), max_size=sizes.size, min_size=sizes.minimum, listeners=listeners)
    pool.warm_up()
    return Peer(pool.acquire, pool.release, lambda: opener.count, pool.close)


def engine_lease(sizes: Sizes) -> Peer:
    """Poolkit's engine through lease()."""
    opener = Opener(sizes.connect)
    pool = Pool(_Server(opener), max_size=sizes.size, min_size=sizes.minimum)
    pool.warm_up()
    return Peer(pool.lease, lambda lease: lease.close(), lambda: opener.count, pool.close)


def cluster(sizes: Sizes, *, nodes: int = 4) -> Peer:
    """A cluster of pools through lease(): a node is chosen, then its pool asked."""
    opener = Opener(sizes.connect)
    config = PoolConfig(max_size=sizes.size, min_size=sizes.minimum)
    many = Cluster(lambda node: _Server(opener), [f"node {number}" for number in range(nodes)], pool=config)
    for node in many.nodes:
        many.pool(node.name).warm_up()
    return Peer(many.lease, lambda lease: lease.close(), lambda: opener.count, many.close)


def lock_and_deque(sizes: Sizes) -> Peer:
    """The floor: what a pool without any feature costs."""
    lock, idle = threading.Lock(), deque(Connection() for _ in range(sizes.size))

    def get() -> Connection:
        with lock:
            return idle.pop()

    def put(connection: Connection) -> None:
        with lock:
            idle.append(connection)

    return Peer(get, put, lambda: sizes.size, idle.clear)


def hand_over(sizes: Sizes) -> Peer:
    """The fair floor: as above, but a caller that finds no connection sleeps until it is handed one, in order."""
    lock, idle = threading.Lock(), deque(Connection() for _ in range(sizes.size))
    queued: deque[tuple[threading.Lock, list[Connection]]] = deque()

    def get() -> Connection:
        with lock:
            if idle:
                return idle.pop()
            asleep, given = place = threading.Lock(), list[Connection]()
            asleep.acquire()
            queued.append(place)
        asleep.acquire(timeout=PATIENCE)
        return given[0]

    def put(connection: Connection) -> None:
        with lock:
            if queued:
                asleep, given = queued.popleft()
                given.append(connection)
                asleep.release()
            else:
                idle.append(connection)

    return Peer(get, put, lambda: sizes.size, idle.clear)


def lifo_queue(sizes: Sizes) -> Peer:
    """A queue without order of arrival, on which most pools are built."""
    slots: queue.LifoQueue[Connection | None] = queue.LifoQueue()
    opener = Opener(sizes.connect)
    for number in range(sizes.size):
        slots.put(Connection() if number >= sizes.size - (sizes.minimum or sizes.size) else None)
    return Peer(lambda: slots.get(timeout=PATIENCE) or opener(), slots.put, lambda: opener.count, lambda: None)


def _sqlalchemy(kind: Any, sizes: Sizes) -> Peer:
    opener = Opener(sizes.connect)
    low = sizes.minimum or sizes.size
    pool = kind(opener, pool_size=low, max_overflow=sizes.size - low, timeout=PATIENCE, use_lifo=True)
    peer = Peer(pool.connect, lambda fairy: fairy.close(), lambda: opener.count, pool.dispose)
    return _warm(peer, sizes)


def sqlalchemy_own(sizes: Sizes) -> Peer:
    """SQLAlchemy's QueuePool."""
    from sqlalchemy.pool import QueuePool

    return _sqlalchemy(QueuePool, sizes)


def sqlalchemy_poolkit(sizes: Sizes) -> Peer:
    """The adapter instead of QueuePool."""
    from poolkit_adapters.sqlalchemy import PoolkitPool

    return _sqlalchemy(PoolkitPool, sizes)


def _redis(kind: Any, sizes: Sizes, **settings: Any) -> Peer:
    opener = Opener(sizes.connect)
    pool = kind(max_connections=sizes.size, connection_class=partial(RedisConnection, opener), **settings)
    peer = Peer(pool.get_connection, pool.release, lambda: opener.count, pool.disconnect)
    return _warm(peer, sizes)


def redis_own(sizes: Sizes) -> Peer:
    """redis-py's BlockingConnectionPool."""
    from redis import BlockingConnectionPool

    return _redis(BlockingConnectionPool, sizes, timeout=PATIENCE)


def redis_own_plain(sizes: Sizes) -> Peer:
    """redis-py's ConnectionPool, which raises where others wait."""
    from redis import ConnectionPool

    return _redis(ConnectionPool, sizes)


def redis_poolkit(sizes: Sizes) -> Peer:
    """The adapter instead of both."""
    from poolkit_adapters.redis import PoolkitConnectionPool

    return _redis(PoolkitConnectionPool, sizes, timeout=PATIENCE)


class _Module:
    """A DB-API module whose connections do nothing."""

    __name__ = "dummy"
    apilevel = "2.0"
    threadsafety = 1
    paramstyle = "qmark"
    Error = Warning = InterfaceError = DatabaseError = ConnectionError
    DataError = OperationalError = IntegrityError = InternalError = ProgrammingError = NotSupportedError = Error

    def __init__(self, opener: Opener) -> None:
        self.connect = opener


def dbutils_own(sizes: Sizes) -> Peer:
    """DBUtils' PooledDB."""
    from dbutils.pooled_db import PooledDB

    opener = Opener(sizes.connect)
    settings = {"mincached": sizes.minimum, "maxconnections": sizes.size, "blocking": True, "reset": False}
    pool = PooledDB(_Module(opener), **settings)
    return Peer(pool.connection, lambda connection: connection.close(), lambda: opener.count, pool.close)


def dbutils_poolkit(sizes: Sizes) -> Peer:
    """The adapter for DB-API modules."""
    from poolkit_adapters.dbapi import PooledDatabase

    opener = Opener(sizes.connect)
    module: Any = _Module(opener)
    pool = PooledDatabase(module, max_size=sizes.size, min_size=sizes.minimum, acquire_timeout=PATIENCE)
    peer = Peer(pool.connect, lambda connection: connection.close(), lambda: opener.count, pool.close)
    return _warm(peer, sizes)


def psycopg_own(sizes: Sizes) -> Peer:
    """psycopg_pool's ConnectionPool."""
    import psycopg
    import psycopg_pool
    from psycopg.pq import TransactionStatus

    opener = Opener(sizes.connect)

    class Fake:
        _pool: Any = None
        closed = broken = False

        class pgconn:  # psycopg's own name
            transaction_status = TransactionStatus.IDLE

        def close(self) -> None: ...

    class Factory(psycopg.Connection[Any]):
        @classmethod
        def connect(cls, *_arguments: Any, **_settings: Any) -> Any:
            opener()
            return Fake()

    low = sizes.minimum or sizes.size
    pool = psycopg_pool.ConnectionPool(
        "", connection_class=Factory, min_size=low, max_size=sizes.size, timeout=PATIENCE, open=True
    )
    pool.wait(PATIENCE)
    return Peer(pool.getconn, pool.putconn, lambda: opener.count, pool.close)


def _warm(peer: Peer, sizes: Sizes) -> Peer:
    for connection in [peer.get() for _ in range(sizes.minimum)]:
        peer.put(connection)
    return peer


PEERS: dict[str, Callable[[Sizes], Peer]] = {
    "poolkit": engine,
    "poolkit lease()": engine_lease,
    "lock and deque": lock_and_deque,
    "lock, deque and hand-over": hand_over,
    "queue.LifoQueue": lifo_queue,
    "psycopg_pool": psycopg_own,
    "DBUtils": dbutils_own,
    "DBUtils -> poolkit": dbutils_poolkit,
    "SQLAlchemy QueuePool": sqlalchemy_own,
    "SQLAlchemy -> poolkit": sqlalchemy_poolkit,
    "redis-py BlockingConnectionPool": redis_own,
    "redis-py ConnectionPool": redis_own_plain,
    "redis-py -> poolkit": redis_poolkit,
}
