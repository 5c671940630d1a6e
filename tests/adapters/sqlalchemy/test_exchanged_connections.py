"""Lost and outdated connections are replaced by the engine: with its pace, limits, backoff and circuit breaker."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import event, exc, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

import poolkit
from poolkit import BackoffConfig, BreakerConfig
from poolkit.testing.servers import PostgresServer
from poolkit_adapters.sqlalchemy import AsyncPoolkitCluster, AsyncPoolkitPool, PoolkitCluster, PoolkitPool
from poolkit_adapters.sqlalchemy._exchange import patience
from tests.adapters.sqlalchemy.servers import Databases, calling
from tests.faults.proxy import FaultProxy
from tests.support.waiting import PATIENCE, until

DRIVERS = ("psycopg", "asyncpg", "psycopg_async")
LOST = ("invalidated", "outdated", "dead")
MANY = 8


@pytest.mark.parametrize("lost", ["invalidated", "outdated"])
def test_many_callers_of_lost_connections_connect_one_at_a_time(fake: Any, lost: str) -> None:
    """QueuePool would reconnect all of them at once."""
    opening: list[int] = []
    most: list[int] = []
    one = threading.Lock()
    slow = threading.Event()
    go_on = threading.Event()

    def creator() -> Any:
        with one:
            opening.append(1)
            most.append(len(opening))
        try:
            assert not slow.is_set() or go_on.wait(PATIENCE)
            return fake()
        finally:
            with one:
                opening.pop()

    pool = PoolkitPool(creator, pool_size=MANY, max_overflow=0, timeout=PATIENCE, max_connecting=1)
    held = [pool.connect() for _ in range(MANY)]
    for connection in held:
        connection.invalidate(soft=lost == "outdated")
        if lost == "outdated":
            connection.close()
    slow.set()
    with ThreadPoolExecutor(MANY) as threads:
        callers = [threads.submit(pool.connect) for _ in range(MANY)]
        until(lambda: pool.poolkit.stats().waiting == MANY)
        go_on.set()
        for caller in callers:
            caller.result(PATIENCE)
    assert max(most) == 1
    assert pool.poolkit.stats().connects == len(most) == 2 * MANY
    pool.dispose()
    pool.poolkit.check_books()


def lose(caller: Any, proxy: FaultProxy, lost: str) -> None:
    def use() -> None:
        with caller.engine.connect() as connection:
            connection.execute(text("select 1"))
            if lost != "dead":
                connection.invalidate() if lost == "invalidated" else connection.connection.invalidate(soft=True)

    caller.run(use)
    if lost == "dead":
        proxy.cut()
        until(lambda: proxy.open == 0)


@pytest.mark.parametrize("lost", LOST)
@pytest.mark.parametrize("driver", DRIVERS)
def test_the_circuit_breaker_counts_a_lost_connection_that_cannot_be_replaced(
    postgres: PostgresServer, fault_proxy: Any, driver: str, lost: str
) -> None:
    proxy: FaultProxy = fault_proxy(postgres.host, postgres.port)
    url = make_url(postgres.sqlalchemy_url(driver)).set(host=proxy.host, port=proxy.port)
    breaker = BreakerConfig(failure_threshold=1, reset_timeout=PATIENCE)
    with calling(
        url.render_as_string(hide_password=False), driver, pool_size=1, max_overflow=0, breaker=breaker,
        pool_pre_ping=lost == "dead", backoff=BackoffConfig(base=0.001, cap=0.001),
    ) as caller:  # fmt: skip
        tries: list[Any] = []
        event.listen(caller.engine, "do_connect", lambda *_: tries.append(1))
        lose(caller, proxy, lost)
        proxy.mode = "refuse"
        tries.clear()
        for error in (poolkit.ConnectFailed, poolkit.CircuitOpen):
            with pytest.raises(error):
                caller.run(caller.engine.connect)
        assert len(tries) == 1
        pool: Any = caller.engine.pool
        assert (pool.checkedin(), pool.checkedout(), pool.overflow()) == (1, 0, 0), "the record stays, as in QueuePool"
        pool.poolkit.check_books()


@pytest.mark.parametrize("lost", LOST)
@pytest.mark.parametrize("driver", DRIVERS)
def test_the_record_and_its_info_stay(postgres: PostgresServer, fault_proxy: Any, driver: str, lost: str) -> None:
    proxy: FaultProxy = fault_proxy(postgres.host, postgres.port)
    url = make_url(postgres.sqlalchemy_url(driver)).set(host=proxy.host, port=proxy.port)
    with calling(
        url.render_as_string(hide_password=False), driver, pool_size=1, max_overflow=0, pool_pre_ping=lost == "dead"
    ) as caller:
        events: list[tuple[str, Any]] = []
        event.listen(caller.engine, "connect", lambda connection, record: events.append(("connect", record)))
        event.listen(caller.engine, "checkout", lambda connection, record, fairy: events.append(("checkout", record)))
        event.listen(caller.engine, "checkin", lambda connection, record: events.append(("checkin", record)))

        def use() -> tuple[Any, Any]:
            with caller.engine.connect() as connection:
                fairy: Any = connection.connection
                seen = dict(fairy.record_info), dict(fairy.info)
                fairy.record_info["kept"] = fairy.info["forgotten"] = True
                return seen

        caller.run(use)
        lose(caller, proxy, lost)
        events.clear()
        assert caller.run(use) == ({"kept": True}, {})
        assert [name for name, _ in events] == ["connect", "checkout", "checkin"]
        assert len({record for _, record in events}) == 1
        pool: Any = caller.engine.pool
        assert (pool.checkedin(), pool.checkedout(), pool.poolkit.stats().connects) == (1, 0, 2)


def test_a_checkout_listener_that_disconnects_gets_another_connection(fake: Any) -> None:
    pool = PoolkitPool(fake, pool_size=2, max_overflow=0, timeout=PATIENCE)
    first = pool.connect()
    old = first.dbapi_connection
    first.close()
    seen: list[Any] = []

    @event.listens_for(pool, "checkout")
    def checkout(connection: Any, record: Any, fairy: Any) -> None:
        seen.append(connection)
        if connection is old:
            raise exc.DisconnectionError

    with pool.connect() as connection:  # type: ignore[attr-defined]
        assert seen == [old, connection.dbapi_connection]
        assert pool.poolkit.stats().in_use == 1
    assert pool.poolkit.stats().idle == 1
    pool.dispose()
    pool.poolkit.check_books()


def test_a_checkout_listener_that_always_disconnects_gives_its_record_back(databases: Databases) -> None:
    with calling(databases.url("psycopg"), "psycopg", pool_size=1, max_overflow=0, pool_timeout=PATIENCE) as caller:
        pool: Any = caller.engine.pool

        @event.listens_for(pool, "checkout")
        def checkout(connection: Any, record: Any, fairy: Any) -> None:
            raise exc.DisconnectionError

        for _ in range(2):
            with pytest.raises(exc.InvalidRequestError, match="This connection is closed"):
                caller.engine.connect()
        assert pool.checkedout() == 0
        pool.poolkit.check_books()


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
@pytest.mark.parametrize("left", [0.3, 0.0])
def test_an_exchange_in_a_node_of_a_cluster_has_what_is_left_of_the_callers_time(
    postgres: PostgresServer, fault_proxy: Any, driver: str, left: float
) -> None:
    """The pool of a node has a timeout of its own, of 30 seconds."""
    proxy: FaultProxy = fault_proxy(postgres.host, postgres.port)
    url = postgres.sqlalchemy_url(driver)
    nodes = [f"{proxy.host}:{proxy.port}"]
    waits: list[float | None] = []

    def watch(engine: Any) -> None:
        acquire = engine.pool.poolkit.acquire

        def noted(timeout: Any = None) -> Any:
            waits.append(timeout)
            assert timeout is not None
            assert timeout < left + 0.1  # it may be rounded
            return acquire(timeout)

        engine.pool.poolkit.acquire = noted

    def in_threads() -> None:
        with PoolkitCluster(url, nodes, roles=False, acquire_timeout=PATIENCE, pool_size=1) as cluster:
            with cluster.connect() as connection:
                connection.connection.invalidate(soft=True)
            proxy.mode = "silent"
            watch(cluster.engine(nodes[0]))
            with pytest.raises(poolkit.AcquireTimeout), cluster.connect(timeout=left):
                pass

    async def in_tasks() -> None:
        async with AsyncPoolkitCluster(url, nodes, roles=False, acquire_timeout=PATIENCE, pool_size=1) as cluster:
            async with cluster.connect() as connection:
                (await connection.get_raw_connection()).invalidate(soft=True)
            proxy.mode = "silent"
            watch(cluster.engine(nodes[0]).sync_engine)
            with pytest.raises(poolkit.AcquireTimeout):
                async with cluster.connect(timeout=left):
                    pass

    if driver == "psycopg":
        in_threads()
    else:
        asyncio.run(in_tasks())
    assert len(waits) == 2, "one for the outdated connection, one for its successor"


@pytest.mark.parametrize("driver", ["psycopg", "psycopg_async"])
def test_another_engine_in_an_event_of_a_cluster_has_its_own_time(
    postgres: PostgresServer, make_engine: Any, driver: str
) -> None:
    """The caller of the cluster has no limit; the engine that its event asks has one."""
    url, nodes = postgres.sqlalchemy_url(driver), [f"{postgres.host}:{postgres.port}"]
    other = make_engine(pool_timeout=PATIENCE)
    times: list[float | None] = []

    def ask(engine: Any) -> None:
        event.listen(engine, "checkout", lambda *_: times.extend((patience(engine.pool), patience(other.pool))))

    async def in_tasks() -> None:
        async with AsyncPoolkitCluster(url, nodes, roles=False, acquire_timeout=None) as cluster:
            ask(cluster.engine(nodes[0]).sync_engine)
            async with cluster.connect():
                pass

    if driver == "psycopg":
        with PoolkitCluster(url, nodes, roles=False, acquire_timeout=None) as cluster:
            ask(cluster.engine(nodes[0]))
            with cluster.connect():
                pass
    else:
        asyncio.run(in_tasks())
    assert times == [None, PATIENCE]


def test_the_close_of_an_outdated_connection_takes_no_more_than_the_callers_time(
    postgres: PostgresServer, fault_proxy: Any
) -> None:
    """asyncpg waits until the server has ended the session. A peer that is silent keeps the slot for as long."""
    proxy: FaultProxy = fault_proxy(postgres.host, postgres.port)
    url = make_url(postgres.sqlalchemy_url("asyncpg")).set(host=proxy.host, port=proxy.port)

    async def main() -> None:
        engine = create_async_engine(
            url, poolclass=AsyncPoolkitPool, pool_size=1, max_overflow=0, pool_timeout=PATIENCE, check_timeout=PATIENCE
        )
        pool: Any = engine.pool
        async with engine.connect() as connection:
            (await connection.get_raw_connection()).invalidate(soft=True)
        proxy.mode = "silent"
        pool.poolkit.reconfigure(acquire_timeout=0.2)
        with pytest.raises(poolkit.AcquireTimeout):
            await engine.connect()
        assert (pool.checkedout(), pool.poolkit.stats().size, proxy.open) == (0, 1, 1), "its slot is kept"
        proxy.mode = "pass"
        proxy.cut()
        pool.poolkit.reconfigure(acquire_timeout=PATIENCE)
        async with engine.connect():
            pass
        pool.poolkit.check_books()
        await engine.dispose()

    asyncio.run(main())


def test_a_caller_of_a_nodes_engine_waits_as_its_pool_says(postgres: PostgresServer) -> None:
    url = postgres.sqlalchemy_url("psycopg")
    with PoolkitCluster(url, [f"{postgres.host}:{postgres.port}"], roles=False, pool_size=1, max_overflow=0) as cluster:
        engine = cluster.engine(cluster.stats().nodes[0].name)
        pool: Any = engine.pool
        with engine.connect():
            pool.poolkit.reconfigure(acquire_timeout=0.01)
            with pytest.raises(poolkit.AcquireTimeout):
                engine.connect()
