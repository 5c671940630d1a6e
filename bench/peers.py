"""Pools under one small interface: ``get()`` and ``put(connection)``, on connections that do nothing."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from poolkit import Connector, Pool

__all__ = ("PEERS", "Peer", "Sizes")


class Connection:
    """Looks enough like a DB-API or redis-py connection for their pools."""

    pid = os.getpid()

    def rollback(self) -> None: ...
    def commit(self) -> None: ...
    def close(self) -> None: ...
    def cursor(self) -> Connection:
        return self

    def connect(self) -> None: ...
    def disconnect(self) -> None: ...
    def can_read(self, timeout: float = 0) -> bool:
        return False

    def should_reconnect(self) -> bool:
        return False

    def set_re_auth_token(self, token: object) -> None: ...
    def re_auth(self) -> None: ...
    def register_connect_callback(self, callback: object) -> None: ...


@dataclass(frozen=True)
class Sizes:
    """How large the pool is and how long opening a connection takes, in seconds."""

    size: int
    minimum: int = 0
    connect: float = 0.0


@dataclass(frozen=True)
class Peer:
    """One pool: how to take and give back, how many connections it has opened, how to end it."""

    name: str
    get: Callable[[], Any]
    put: Callable[[Any], None]
    opened: Callable[[], int]
    close: Callable[[], None]


class _Opener:
    def __init__(self, connect: float) -> None:
        self.connect = connect
        self.count = 0
        self._lock = threading.Lock()

    def __call__(self, *_args: Any, **_kwargs: Any) -> Connection:
        with self._lock:
            self.count += 1
        if self.connect:
            time.sleep(self.connect)
        return Connection()


def poolkit_engine(sizes: Sizes) -> Peer:
    opener = _Opener(sizes.connect)

    class Server(Connector[Connection]):
        def connect(self, timeout: float | None) -> Connection:
            return opener()

    pool = Pool(Server(), max_size=sizes.size, min_size=sizes.minimum)
    pool.warm_up()
    return Peer("poolkit", pool.acquire, pool.release, lambda: opener.count, pool.close)


def poolkit_lease(sizes: Sizes) -> Peer:
    peer = poolkit_engine(sizes)
    pool: Pool[Any] = peer.get.__self__ if hasattr(peer.get, "__self__") else peer.close.__self__  # type: ignore[attr-defined]
    return Peer("poolkit lease()", pool.lease, lambda lease: lease.close(), peer.opened, peer.close)


def lock_and_deque(sizes: Sizes) -> Peer:
    """The floor: what a pool without any feature costs."""
    lock, idle = threading.Lock(), deque(Connection() for _ in range(sizes.size))

    def get() -> Connection:
        with lock:
            return idle.pop()

    def put(connection: Connection) -> None:
        with lock:
            idle.append(connection)

    return Peer("lock and deque", get, put, lambda: sizes.size, idle.clear)


def lifo_queue(sizes: Sizes) -> Peer:
    """What most pools are inside: nobody's turn is kept."""
    slots: queue.LifoQueue[Connection | None] = queue.LifoQueue()
    opener = _Opener(sizes.connect)
    for number in range(sizes.size):
        slots.put(Connection() if number >= sizes.size - (sizes.minimum or sizes.size) else None)
    return Peer("queue.LifoQueue", lambda: slots.get() or opener(), slots.put, lambda: opener.count, lambda: None)


def sqlalchemy_queue(sizes: Sizes) -> Peer:
    from sqlalchemy.pool import QueuePool

    opener = _Opener(sizes.connect)
    low = sizes.minimum or sizes.size
    pool = QueuePool(opener, pool_size=low, max_overflow=sizes.size - low, timeout=120, use_lifo=True)
    _warm(pool.connect, lambda fairy: fairy.close(), sizes.minimum)
    return Peer("SQLAlchemy QueuePool", pool.connect, lambda fairy: fairy.close(), lambda: opener.count, pool.dispose)


def sqlalchemy_poolkit(sizes: Sizes) -> Peer:
    from poolkit_adapters.sqlalchemy import PoolkitPool

    opener = _Opener(sizes.connect)
    low = sizes.minimum or sizes.size
    pool = PoolkitPool(opener, pool_size=low, max_overflow=sizes.size - low, timeout=120, use_lifo=True)
    _warm(pool.connect, lambda fairy: fairy.close(), sizes.minimum)
    return Peer("SQLAlchemy PoolkitPool", pool.connect, lambda fairy: fairy.close(), lambda: opener.count, pool.dispose)


def _redis_class(sizes: Sizes) -> tuple[type[Connection], _Opener]:
    opener = _Opener(sizes.connect)

    class Slow(Connection):
        def __init__(self, **_settings: Any) -> None:
            self.open = False

        def connect(self) -> None:  # redis-py makes the object first and opens it later
            if not self.open:
                opener()
                self.open = True

    return Slow, opener


def redis_blocking(sizes: Sizes) -> Peer:
    from redis import BlockingConnectionPool

    kind, opener = _redis_class(sizes)
    pool = BlockingConnectionPool(max_connections=sizes.size, timeout=120, connection_class=kind)
    _warm(pool.get_connection, pool.release, sizes.minimum)
    return Peer(
        "redis BlockingConnectionPool", pool.get_connection, pool.release, lambda: opener.count, pool.disconnect
    )


def redis_poolkit(sizes: Sizes) -> Peer:
    from poolkit_adapters.redis import PoolkitConnectionPool

    kind, opener = _redis_class(sizes)
    pool = PoolkitConnectionPool(max_connections=sizes.size, timeout=120, connection_class=kind)
    _warm(pool.get_connection, pool.release, sizes.minimum)
    return Peer("redis+poolkit", pool.get_connection, pool.release, lambda: opener.count, pool.disconnect)


def dbutils(sizes: Sizes) -> Peer:
    from dbutils.pooled_db import PooledDB

    opener = _Opener(sizes.connect)

    class Module:
        threadsafety = 1
        Error = OperationalError = InterfaceError = InternalError = Exception
        connect = staticmethod(opener)

    pool = PooledDB(Module, mincached=sizes.minimum, maxconnections=sizes.size, blocking=True, reset=False)
    return Peer("DBUtils PooledDB", pool.connection, lambda c: c.close(), lambda: opener.count, pool.close)


def psycopg_pool(sizes: Sizes) -> Peer:
    import psycopg
    import psycopg_pool as module
    from psycopg.pq import TransactionStatus

    opener = _Opener(sizes.connect)

    class Fake:
        _pool: Any = None
        closed = broken = False

        class pgconn:
            transaction_status = TransactionStatus.IDLE

        def close(self) -> None: ...

    class Factory(psycopg.Connection[Any]):
        @classmethod
        def connect(cls, *_args: Any, **_kwargs: Any) -> Any:
            opener()
            return Fake()

    pool = module.ConnectionPool(
        "", connection_class=Factory, min_size=sizes.minimum or sizes.size, max_size=sizes.size, timeout=120, open=True
    )
    pool.wait()
    return Peer("psycopg_pool", pool.getconn, pool.putconn, lambda: opener.count, pool.close)


def _warm(get: Callable[[], Any], put: Callable[[Any], None], count: int) -> None:
    for connection in [get() for _ in range(count)]:
        put(connection)


PEERS: dict[str, Callable[[Sizes], Peer]] = {
    "poolkit": poolkit_engine,
    "lease": poolkit_lease,
    "floor": lock_and_deque,
    "lifo": lifo_queue,
    "psycopg_pool": psycopg_pool,
    "sqlalchemy": sqlalchemy_queue,
    "sqlalchemy+poolkit": sqlalchemy_poolkit,
    "redis": redis_blocking,
    "redis+poolkit": redis_poolkit,
    "dbutils": dbutils,
}
