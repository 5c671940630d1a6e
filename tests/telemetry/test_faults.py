"""Five induced faults on real servers, each named in the text of the error that the caller gets."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
import redis

from poolkit import AcquireTimeout, Cause, ServerUnavailable
from poolkit.testing.servers import PostgresServer, RedisServer
from poolkit_adapters.dbapi import PooledConnection, PooledDatabase
from poolkit_adapters.redis import PoolkitConnectionPool
from tests.support.waiting import until


@pytest.fixture
def db(postgres: PostgresServer) -> Iterator[PooledDatabase]:
    with PooledDatabase(psycopg, postgres.url, max_size=3, debug=True, name="orders-db") as database:
        for _ in range(20):  # a past, so that there is an "as usual"
            query(database)
        yield database


def query(database: PooledDatabase, text: str = "select 1") -> None:
    with database.connect() as connection:
        connection.execute(text)


def timed_out(database: PooledDatabase, timeout: float = 0.4) -> str:
    with pytest.raises(AcquireTimeout) as caught:
        database.connect(timeout)
    text = str(caught.value)
    assert "time spent: " in text
    return text


def test_too_small(db: PooledDatabase) -> None:
    """Every lease comes back after its usual time; there are more callers than the connections can serve."""
    for _ in range(30):
        query(db, "select pg_sleep(0.03)")
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            query(db, "select pg_sleep(0.03)")

    with ThreadPoolExecutor(12) as workers:
        for _ in range(12):
            workers.submit(work)
        until(lambda: db.stats().waiting >= 8 and db.stats().in_use == 3)
        text = timed_out(db, 0.05)
        over.set()
    assert "; diagnosis: too small: all 3 connections are in use, each returned after " in text
    assert "poolkit size" in text


def test_leaking(db: PooledDatabase) -> None:
    """Connections are kept one after the other, by threads that live on, while others borrow and return."""
    kept: list[PooledConnection] = []
    with ThreadPoolExecutor(3) as workers:
        for _ in range(3):
            workers.submit(lambda: (kept.append(db.connect()), time.sleep(0.01))).result()
            end = time.monotonic() + 0.3
            while len(kept) < 3 and time.monotonic() < end:
                query(db)
        text = timed_out(db)
    assert "; diagnosis: leaking: 2 of 3 leases are kept while others are returned; longest held " in text
    assert f"{__file__}:" in text  # the place where it was taken
    for connection in kept:
        connection.close()


def test_leaking_by_threads_that_have_ended(db: PooledDatabase) -> None:
    kept: list[PooledConnection] = []
    threads = [threading.Thread(target=lambda: kept.append(db.connect())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "; diagnosis: leaking: 3 of 3 leases are held by a thread or task that has ended: thread " in timed_out(db)
    for connection in kept:
        connection.close()


def test_server_slow(db: PooledDatabase, postgres: PostgresServer) -> None:
    """A lock on a table stops every query: nothing comes back any more."""
    with psycopg.connect(postgres.url) as admin:
        admin.execute("create table if not exists slow_orders (id int)")
    with psycopg.connect(postgres.url) as admin, ThreadPoolExecutor(3) as workers:
        admin.execute("lock table slow_orders in access exclusive mode")
        for _ in range(3):
            workers.submit(query, db, "select * from slow_orders")
        until(lambda: db.stats().in_use == 3)
        text = timed_out(db)
        admin.rollback()
    assert "; diagnosis: server slow: no connection is returned: 3 of 3 leases are held for up to " in text


def test_server_down(redis_server: RedisServer) -> None:
    """Nothing listens on the server's port any more."""
    pool = PoolkitConnectionPool.from_url(redis_server.url, max_size=3, timeout=0.5)
    client = redis.Redis(connection_pool=pool, retry=None)
    client.ping()
    redis_server.stop()
    try:
        pool.poolkit.clear()
        with pytest.raises(redis.ConnectionError) as caught:
            client.ping()
    finally:
        redis_server.start()
        client.close()
        pool.close()
    assert "refused" in str(caught.value)


def test_server_down_for_a_pool_that_connects_by_itself(postgres: PostgresServer) -> None:
    with PooledDatabase(psycopg, postgres.url, max_size=3, name="orders-db") as db:
        query(db)
        postgres.stop()
        try:
            db.poolkit.clear()
            with pytest.raises(ServerUnavailable) as caught:
                db.connect(1.0)
            found = db.poolkit.diagnose()
        finally:
            postgres.start()
    text = str(caught.value)
    assert "; diagnosis: server down: " in text
    assert "in a row failed, the last with OperationalError: " in text
    assert found is not None
    assert found.cause is Cause.SERVER_DOWN


def test_self_deadlock(db: PooledDatabase) -> None:
    """A request takes a connection for each of its steps, and one more while it holds them."""
    mine = [db.connect() for _ in range(3)]
    text = timed_out(db)
    assert "; diagnosis: self-deadlock: MainThread waits for a connection while it holds all 3 leases of this" in text
    for connection in mine:
        connection.close()


def test_self_deadlock_of_many(db: PooledDatabase) -> None:
    """Each of three workers holds one connection and wants a second."""
    everybody = threading.Barrier(3)
    texts: list[str] = []

    def work(timeout: float) -> None:
        with db.connect():
            everybody.wait(10)
            try:
                db.connect(timeout).close()
            except AcquireTimeout as error:
                texts.append(str(error))

    with ThreadPoolExecutor(3) as workers:
        for timeout in (0.3, 5.0, 5.0):
            workers.submit(work, timeout)
    assert "; diagnosis: self-deadlock: each of the 3 holders waits for one more connection, so none is" in texts[0]
    assert len(texts) == 1  # the first to give up lets the others through
